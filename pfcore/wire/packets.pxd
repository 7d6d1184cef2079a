# The nouns: what the codec makes and takes, and the checks of their parts.
#
# They never change once made, so what is worked out once (the address, the
# decoded metadata) is kept. Objects of the wire are made by `new_packet` and
# `new_result`, which check nothing: the reader has.

from libc.stdint cimport int64_t

from pfcore.wire.reader cimport FrameReader

cdef class Packet:
    cdef:
        readonly str version     # "1.0" or another "1.x"
        readonly str id          # 1 to 128 bytes of UTF-8
        readonly str group       # one of the six codes
        readonly str element     # 1 to 64 of A-Za-z0-9_.-
        readonly object data     # any JSON value
        readonly int priority    # 1 to 10, 10 most urgent
        readonly object timeout_ms    # int, 1 to 300,000, or None
        readonly object dependencies  # tuple of ids
        readonly Py_ssize_t size    # bytes of its data's JSON as it came; 0 for one that was made here
        bytes address            # `"group":"df","element":"transform"`, or None until needed
        object _metadata         # dict, or bytes not yet decoded, or None

    cdef tuple _fields(self)

cdef class Result:
    cdef:
        str _packet_id           # None until asked for
        readonly object data     # what the handler returned; None on error
        readonly object error    # {"code", "message", "details"?} on error, else None
        double _duration         # milliseconds, not negative
        readonly bint ok         # status is "success"
        unsigned char _id_length  # bytes of `_id` in use; 0: `_packet_id` holds it
        unsigned char[40] _id    # UUID text, before anyone asks for it as str

cdef class Message:
    cdef:
        readonly str type        # "submit", "result", "error" or "heartbeat"
        readonly object seq      # int
        readonly object payload  # Packet, Result, or dict

cdef Packet new_packet(FrameReader reader, object data)
cdef Result new_result(const unsigned char* packet_id, Py_ssize_t n, bint ok, object data, object error,
                       double duration_ms)
# From one of ours, or a mapping with its fields. Raises InvalidPacket.
cdef Packet packet_from(object value)
cdef Result result_from(object value)
# `"group":"df","element":"transform"` of a checked pair; raises InvalidPacket.
cdef bytes check_address(object group, object element)
cdef bytes packet_address(Packet packet)
cdef int64_t check_timeout(object timeout_ms) except? -1   # ms, 0 for None
cdef int check_priority(object priority) except -1
# The InvalidPacket that says where, what was expected and what was found.
cdef object invalid(str where, str expected, object found, str code=*)
# ValueError, TypeError for a text that the other side would refuse in every heartbeat.
cdef int check_plain(str what, object text, Py_ssize_t most) except -1
