"""A gateway's link to itself. See ``loopback.pxd``."""

from libc.stdint cimport int64_t

from pfcore.link.driver cimport Driver
from pfcore.link.engine cimport Engine
from pfcore.link.outgoing cimport EngineState
from pfcore.link.sharing cimport Sharing
from pfcore.memory.buffers cimport OutputBuffer
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns

import time

__all__ = ["Loopback"]


cdef enum:
    MOST_MOVED = 1048576         # bytes that one loopback takes one way in an iteration of the loop: some 1 ms
    MOST_TIME = 1000000          # ... and ns
    LARGE = 65536                # bytes that are worth a look at the clock
    KEEP = 65536                 # bytes of a buffer that are kept between batches
    # Bytes of results that wait to be moved, beyond which no more packets are: handlers that answer at once with a
    # megabyte each would fill the whole budget, and to give back 128 MiB takes the kernel 15 ms.
    MOST_WAITING = 2097152


cdef Py_ssize_t _deliver(OutputBuffer messages, Py_ssize_t at, Engine engine, Py_ssize_t answers,
                         int64_t now) except? -1:
    """Messages to an engine, from `at` on; where it ended.

    Until an iteration's share or all are through, or the engine has written more than `answers`.
    """
    cdef Py_ssize_t start = at
    cdef const unsigned char* p
    cdef Py_ssize_t n
    engine.now = now
    while (at < messages.size and at - start < MOST_MOVED and pf_monotonic_ns() - now < MOST_TIME
           and engine.out.size <= answers):
        at = messages.message(at, &p, &n)
        engine.receive(p, n, engine.now)  # which goes on as handlers take their time
    return at


cdef int _empty(OutputBuffer frames) except -1:
    if frames.capacity > KEEP:
        frames.release()
    else:
        frames.clear()
    return 0


cdef class Loopback(Driver):
    """`near`: the engine that submits. `far`: the switch's. Neither masks; `open_up` opens both."""

    def __init__(self, Engine near not None, Engine far not None, *, loop, Sharing sharing=None):
        super().__init__(near, loop=loop, sharing=sharing)
        self.far = far
        self.packets = OutputBuffer()
        self.results = OutputBuffer()
        far.loop = loop
        far.wake = self._wake
        far.flush_now = self._from_far
        near.out.bare = far.out.bare = True

    def open_up(self):
        """Both sides are connected from now on."""
        cdef int64_t now = pf_monotonic_ns()
        self.engine.wall_offset = self.far.wall_offset = time.time_ns() - now
        self.engine.connected(now)
        self.far.connected(now)
        self._run_batch()

    def shut(self, str code, str message):
        """Ends every submit that is left with `code`."""
        cdef int64_t now = pf_monotonic_ns()
        if not self.taking:
            self.results.release()
            self.results_at = 0
        if not self.moving:
            self.packets.release()
            self.packets_at = 0
        self.far.disconnected(message, now)
        self._settle()
        self.engine.disconnected(message, now)
        self.engine.close(code, message)
        self.far.close(code, message)
        self.flush_ended()
        self.far.wake = None
        self.far.flush_now = None
        self.part()

    cdef int _to_far(self) except -1:
        cdef OutputBuffer packets = self.packets
        cdef int64_t now = pf_monotonic_ns()
        cdef Py_ssize_t at = self.packets_at
        cdef Py_ssize_t waiting = self.results.size - self.results_at
        if (packets.size == 0 and self.engine.out.size == 0) or self.far.state != EngineState.OPEN or self.moving:
            return 0
        if self.far.out.size + waiting > MOST_WAITING:
            self._wake()
            return 0
        if packets.size == 0:
            self.engine.out.swap(packets)
        self.moving = True
        self.packets_at = packets.size  # nothing is delivered twice, whatever happens
        self.far.in_batch = True
        self.far.sink.begin_batch(now)
        try:
            self.packets_at = _deliver(packets, at, self.far, MOST_WAITING - waiting, now)
        finally:
            self.moving = False
            if self.packets_at < packets.size and self.far.state == EngineState.OPEN:
                self._wake()  # as below
            else:
                self.packets_at = 0
                _empty(packets)
            self.far.sink.end_batch()
            self.far.in_batch = False
            self._settle()
        if self.sharing is not None:
            self.sharing.note(self.far.account, pf_monotonic_ns() - now, now)
        return 0

    cdef int _to_near(self) except -1:
        cdef OutputBuffer results = self.results
        cdef int64_t now
        cdef Py_ssize_t at = self.results_at
        cdef bint large
        if self.taking or (results.size == 0 and self.far.out.size == 0):
            return 0
        now = pf_monotonic_ns()
        if results.size == 0:
            self.far.out.swap(results)
        large = results.size > LARGE
        self.taking = True
        self.results_at = results.size  # nothing is delivered twice, whatever happens
        try:
            self.results_at = _deliver(results, at, self.engine, <Py_ssize_t>1 << 60, now)
        finally:
            self.taking = False
            if self.results_at < results.size and self.engine.state == EngineState.OPEN:
                # results of a megabyte for many workflows at once: the rest when the loop has had a turn
                self._wake()
            else:
                self.results_at = 0
                _empty(results)
        self._settle()
        if large and self.sharing is not None:
            self.sharing.spend(pf_monotonic_ns() - now)
        return 0

    cdef void _settle(self) noexcept:
        """What has not been moved yet is held for who asked: past his budget nothing more begins."""
        cdef Py_ssize_t there = (self.far.out.size + self.results.size - self.results_at
                                 + self.packets.size - self.packets_at)
        if self.far.account is not None and (there > LARGE or self.charged > 0):
            self.far.account.settle(there - self.charged)
            self.charged = there

    cdef bint much(self) noexcept:
        # what it moves is begun, answered and handled at once
        return self.sharing is not None

    cdef bint waits(self) noexcept:
        return self.sharing is not None and self.sharing.full() and (
            self.results.size > 0 or self.far.out.size >= LARGE)

    def _from_far(self):
        if self.results.size > 0 or self.waits():
            self._settle()
            self._wake()
        else:
            self._to_near()
        self.far.sent_since_wake = False
        if self.engine.ready and not self.in_batch:
            self._wake()

    cdef int flush(self) except -1:
        while self.engine.out.size > 0 or self.far.out.size > 0 or self.results.size > 0 or self.packets.size > 0:
            self._to_far()
            self._to_near()
            if self.engine.waiting.live() > 0:
                self.engine.pump(self.engine.now)
            if self.engine.state != EngineState.OPEN or self.results.size > 0 or self.packets.size > 0:
                break
        self.engine.sent_since_wake = False
        self.far.sent_since_wake = False
        if self.engine.ready:
            self._wake()
        return 0

    # -- time: both sides'

    cdef int tick(self, int64_t now) except -1:
        self.far.tick(now)
        return self.engine.tick(now)

    cdef int64_t wake_at(self) except? -2:
        cdef int64_t wanted = self.engine.wake_at()
        cdef int64_t other = self.far.wake_at()
        return other if wanted < 0 or 0 <= other < wanted else wanted

    cdef int64_t earliest(self) noexcept:
        return -1 if self.engine.earliest < 0 or self.far.earliest < 0 else min(self.engine.earliest, self.far.earliest)

    cdef bint over(self) noexcept:
        return self.engine.state == EngineState.CLOSED
