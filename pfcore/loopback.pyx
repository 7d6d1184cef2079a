"""A gateway's link to itself. See ``loopback.pxd``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from pfcore.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.engine cimport Engine, EngineState
from pfcore.link cimport Link

import time

__all__ = ["Loopback"]


cdef int _deliver(bytes frames, Engine engine, int64_t now) except -1:
    """Whole unmasked frames (RFC 6455, section 5.2), as an OutputBuffer writes them, to an engine."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(frames)
    cdef const unsigned char* end = p + PyBytes_GET_SIZE(frames)
    cdef Py_ssize_t n
    cdef int i
    while end - p >= 2:
        n = p[1] & 0x7F
        if n == 126:
            n = (<Py_ssize_t>p[2] << 8) | p[3]
            i = 4
        elif n == 127:
            n = 0
            for i in range(8):
                n = (n << 8) | p[2 + i]
            i = 10
        else:
            i = 2
        if p[0] == 0x81:
            engine.receive(p + i, n, now)
        p += i + n
    return 0


cdef class Loopback(Link):
    """`near`: the engine that submits. `far`: the switch's. Neither masks; `open_up` opens both."""

    def __init__(self, Engine near not None, Engine far not None, *, loop):
        super().__init__(near, loop=loop)
        self.far = far
        far.loop = loop
        far.wake = self._wake
        far.flush_now = self._from_far
        near.flush_now = None

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
        self.far.disconnected(message, now)
        self.engine.disconnected(message, now)
        self.engine.close(code, message)
        self.far.close(code, message)
        self.flush_ended()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    cdef int _to_far(self) except -1:
        cdef int64_t now = pf_monotonic_ns()
        if self.engine.out.size == 0 or self.far.state != EngineState.OPEN or self.moving:
            return 0
        frames = self.engine.out.take()
        self.moving = True
        self.far.in_batch = True
        self.far.acceptor.begin_batch(now)
        try:
            _deliver(frames, self.far, now)
        finally:
            self.far.acceptor.end_batch()
            self.far.in_batch = False
            self.moving = False
        return 0

    cdef int _to_near(self) except -1:
        if self.far.out.size > 0:
            _deliver(self.far.out.take(), self.engine, pf_monotonic_ns())
        return 0

    def _from_far(self):
        self._to_near()
        self.far.sent_since_wake = False
        if self.engine.ready and not self.in_batch:
            self._wake()

    cdef int flush(self) except -1:
        while self.engine.out.size > 0 or self.far.out.size > 0:
            self._to_far()
            self._to_near()
            if self.engine.waiting.live() > 0:
                self.engine.pump(self.engine.now)
            if self.engine.state != EngineState.OPEN:
                break
        self.engine.sent_since_wake = False
        self.far.sent_since_wake = False
        if self.engine.ready:
            self._wake()
        return 0

    cdef int arm(self) except -1:
        cdef int64_t wanted = self.engine.wake_at()
        cdef int64_t other = self.far.wake_at()
        cdef int64_t delay
        if self.engine.state == EngineState.CLOSED:
            return 0
        if wanted < 0 or (0 <= other < wanted):
            wanted = other
        if wanted < 0 or (self.timer is not None and 0 <= self.timer_at <= wanted):
            return 0
        if self.timer is not None:
            self.timer.cancel()
        delay = wanted - pf_monotonic_ns()
        self.timer_at = wanted
        self.timer = self.loop.call_later(delay / 1e9 if delay > 0 else 0, self._on_timer)
        return 0

    def _on_timer(self):
        cdef int64_t now = pf_monotonic_ns()
        self.timer = None
        self.timer_at = -1
        self.in_batch = True
        self.engine.in_batch = True
        try:
            self.far.tick(now)
            self.engine.tick(now)
        finally:
            self.end_batch()
