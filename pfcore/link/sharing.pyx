"""How the links of one gateway share an iteration of the loop. See ``sharing.pxd``."""

import collections

cimport cython
from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns

__all__ = ["Sharing"]

cdef enum:
    ENDING = 2000000             # ns of an iteration that links may take to end: one at least
    LEAVERS = 64                 # connections that are closed in an iteration because their peers have: 20 us each
    PUT_OFF = 1000000            # ns of what was put off, after which no more of it is begun in an iteration


@cython.final
cdef class Sharing:
    """How the links of one gateway share an iteration of the loop."""

    def __init__(self, loop):
        self.loop = loop
        self.ended = collections.deque()
        self.leavers = collections.deque()
        self.work = collections.deque()
        self.moves = collections.deque()
        self.readers = collections.deque()

    def later(self, callback not None):
        """Calls `callback` in the loop's next iteration, or in one of those that follow if there is much to do.

        For one slice of work, of some milliseconds at most. Those who wait have
        their turns in the order in which they came.
        """
        self.work.append(callback)
        self._schedule()

    cdef int move_later(self, object callback) except -1:
        self.moves.append(callback)
        return self._schedule()

    cdef int read_later(self, int64_t expected, object callback) except -1:
        self.readers.append((expected, callback))
        return self._schedule()

    cdef int _schedule(self) except -1:
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._turn)
        return 0

    cdef int note(self, Account account, int64_t took, int64_t now) except -1:
        if self.latest is not account:
            self.latest = account
            self.switched = now
        # short batches are not worth a callback each
        self.small += took
        if self.small >= QUICK:
            self.spend(self.small)
            self.small = 0
        return 0

    cdef int spend(self, int64_t took) except -1:
        self.spent += took
        return self._schedule()

    cdef bint full(self) noexcept:
        return self.spent > ITERATION

    cdef bint end(self, object callback) except -1:
        """A link may leave thousands of packets and a thousand elements, and a stranger decides how many go at once."""
        self.ended.append(callback)
        self._schedule()
        if self.ending >= ENDING or len(self.ended) > 1:
            return False
        self._end_some()
        return True

    def leaves(self, transport not None):
        """The peer of a connection has closed it. False: close it now; True: it will be, in its turn."""
        self.leaving += 1
        self._schedule()
        if self.leaving <= LEAVERS and not self.leavers:
            return False
        self.leavers.append(transport)
        return True

    cdef int _close_some(self) except -1:
        self.leaving = 0
        while self.leavers and self.leaving < LEAVERS:
            self.leaving += 1
            self._do(self.leavers.popleft().close)
        return 0

    cdef int _end_some(self) except -1:
        cdef int64_t began = pf_monotonic_ns(), now = began
        while self.ended and self.ending + now - began < ENDING:
            self._do(self.ended.popleft())
            now = pf_monotonic_ns()
        self.ending += now - began
        return 0

    def _turn(self):
        self.scheduled = False
        self.spent = 0
        self.ending = 0
        try:
            self._do_some()
            self._close_some()
            if self.ended:
                self._end_some()
        finally:
            if self.ended or self.leavers or self.work or self.moves or self.readers:
                self._schedule()

    cdef int _do_some(self) except -1:
        """Of what was put off before this iteration, by turns of the kinds: one at least, until it has had its time."""
        cdef Py_ssize_t work = len(self.work), moves = len(self.moves)
        cdef int64_t began = pf_monotonic_ns(), now = began, expected = 0
        while self.readers and expected < PUT_OFF:
            each, callback = self.readers.popleft()
            expected += <int64_t>each
            self._do(callback)
        while (work > 0 or moves > 0) and now - began < PUT_OFF:
            self.moved = not self.moved
            if work > 0 and (self.moved or moves == 0):
                work -= 1
                self._do(self.work.popleft())
            else:
                moves -= 1
                self._do(self.moves.popleft())
            now = pf_monotonic_ns()
        self.spent += now - began
        return 0

    cdef int _do(self, object callback) except -1:
        try:
            callback()
        except Exception as error:
            self.loop.call_exception_handler({"message": "packetflow's work failed", "exception": error})
        return 0
