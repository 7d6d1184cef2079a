# A function and how it is to be called: what signatures say, worked out once, before any packet comes.

from pfcore.work.keys cimport Keyed

cdef class Handler(Keyed):
    cdef:
        readonly object function     # called with (data) or (data, packet)
        readonly bint wants_packet
        readonly object decoder      # bytes -> value, None: plain JSON
        readonly object check        # value -> value or raises: the annotated return type, or None
        object returns               # a type: exact instances need no `check`
        readonly Py_ssize_t limit    # suspended at once, 0: as many as the dispatcher's
        bint unbounded               # waits rather than works: no lane, no share of `concurrency`
        bint wants_caller            # called with (data, packet, caller)
        bint plain_str               # annotated `str`: a JSON string needs no decoder
