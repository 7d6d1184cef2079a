# How the links of one gateway share an iteration of the loop.
#
# No link reads so much at once that the others wait for long, whatever its
# frames cost: a batch that took long makes the link's next one smaller, and once
# all of an iteration's batches have taken long together, the rest of its reads
# are small. What need not be done at once is put off: each iteration does one of
# it at least, and more while that takes no time to speak of.

from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account

cdef enum:
    QUICK = 250000               # ns: a batch of less may be larger the next time; so much is worth a callback
    ITERATION = 4000000          # ns that long batches may take in one iteration of the loop, until the rest is small

cdef class Sharing:
    cdef:
        object loop
        int64_t spent                # ns of the long batches of this iteration
        int64_t small                # ns of the short ones, until they are worth a callback
        object work                  # deque of callables: slices of what runs in the gateway
        object moves                 # ... and of links that have much to write or to take
        object readers               # deque of (ns it may take, callable): links that read on in another iteration
        bint moved                   # whose turn it was
        bint scheduled               # `_turn` was handed to call_soon
        object ended                 # deque of callables: links whose connections have gone and that have not ended
        object leavers               # deque of transports whose peers have closed, and that we have yet to close
        Py_ssize_t leaving           # how many were in this iteration
        int64_t ending               # ns that links took to end in this iteration
        Account latest               # whose link had the last batch
        int64_t switched             # ns; when that was another's before

    # A batch of this account's took so long; something else did.
    cdef int note(self, Account account, int64_t took, int64_t now) except -1
    cdef int spend(self, int64_t took) except -1
    # Have long batches had what they may have of this iteration?
    cdef bint full(self) noexcept
    # A connection has gone: `callback` does what follows, at once (True), or where many go together in their turn.
    cdef bint end(self, object callback) except -1
    # A link has much to write, or to take; it reads on, which may take `expected` ns.
    cdef int move_later(self, object callback) except -1
    cdef int read_later(self, int64_t expected, object callback) except -1
    # -- private
    cdef int _schedule(self) except -1
    cdef int _end_some(self) except -1
    cdef int _close_some(self) except -1
    cdef int _do_some(self) except -1
    cdef int _do(self, object callback) except -1
