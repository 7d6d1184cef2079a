"""When an engine's output leaves, and when its time has come. See ``driver.pxd``."""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.link.reply cimport Reply
from pfcore.link.sharing cimport QUICK, Sharing
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns

__all__ = ["Driver"]

cdef enum:
    # Replies that are resumed together in the middle of a large read: enough to share the
    # way there, few enough for their values to be still in the cache and young for the
    # garbage collector.
    FIRE_AT = 32


cdef class Driver:
    """Drives `engine` on `loop`. `sharing`: how it shares the loop with others, None for one that is alone."""

    def __init__(self, Engine engine not None, *, loop, Sharing sharing=None):
        self.engine = engine
        self.loop = loop
        self.sharing = sharing
        self.thread = PyThread_get_thread_ident()
        self.timer_at = -1
        engine.loop = loop
        engine.wake = self._wake

    # -- each kind's own

    cdef int write(self) except -1:
        self.engine.sent_since_wake = False
        return 0

    cdef int flush(self) except -1:
        return self.write()

    cdef bint much(self) noexcept:
        return False

    cdef bint waits(self) noexcept:
        return self.much() and self.sharing.full()

    cdef int count_unsent(self) except -1:
        return 0

    cdef int tick(self, int64_t now) except -1:
        return self.engine.tick(now)

    cdef int64_t wake_at(self) except? -2:
        return self.engine.wake_at()

    cdef int64_t earliest(self) noexcept:
        return self.engine.earliest

    cdef bint over(self) noexcept:
        return False

    # -- batches

    cdef int64_t present(self) noexcept:
        """The time: the batch's, where one is under way."""
        return self.engine.now if self.in_batch else pf_monotonic_ns()

    cdef int begin_batch(self, int64_t now) except -1:
        self.in_batch = True
        self.engine.in_batch = True
        self.engine.now = now
        return 0

    cdef int pause(self) except -1:
        if len(self.engine.ready) >= FIRE_AT:
            self.fire()
        if self.engine.worth_writing(self.engine.sent()):
            self.write()
        return 0

    cdef int fire(self) except -1:
        """Resumes who waits for what has arrived."""
        if self.engine.sink is not None:
            self.engine.sink.end_batch()
        while self.engine.fire_ready():
            self.write()
        return 0

    cdef int end_batch(self) except -1:
        """All that has arrived was handled: resume who waited for it, and send what that made."""
        try:
            self.fire()
            if self.engine.waiting.live() > 0:
                self.engine.pump(self.engine.now)
        finally:
            self.in_batch = False
            self.engine.in_batch = False
            if self.engine.ready:
                self.flush_ended()  # an interrupt is on its way out: the others wake later
            self.flush()
            self.arm()
        return 0

    def _run_batch(self):
        """What `end_batch` does, where nothing has been read."""
        if self.in_batch:
            return
        self.begin_batch(pf_monotonic_ns())
        self.end_batch()

    def _wake(self):
        """The engine has output, or an earlier deadline, and no batch is under way."""
        cdef bint much = self.much()
        if much:
            self.count_unsent()  # it waits, and somebody pays for it until then
        if not self.flush_scheduled:
            self.flush_scheduled = True
            if much:
                self.sharing.move_later(self._on_wake)
            else:
                self.loop.call_soon(self._on_wake)

    def _on_wake(self):
        if self.waits() and not self.in_batch:
            self.sharing.move_later(self._on_wake)
            return
        self.flush_scheduled = False
        self.engine.sent_since_wake = False
        self._run_batch()

    def flush_ended(self):
        """Resumes whoever waits for submits that the engine has just ended."""
        cdef object reply
        cdef list ready = self.engine.ready
        cdef Py_ssize_t at = self.engine.ready_at
        self.engine.ready = []
        self.engine.ready_at = 0
        for reply in ready[at:]:
            (<Reply>reply).fire_soon()

    cdef int part(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.engine.wake = None
        self.engine.flush_now = None
        return 0

    # -- time

    cdef object submitted(self, object reply):
        """After submits: a deadline earlier than the timer's needs the timer set again."""
        if not self.in_batch and self.engine.earliest >= 0 and (
                self.timer is None or self.engine.earliest < self.timer_at):
            self.arm()
        return reply

    cdef int arm(self) except -1:
        """Sees to it that `_on_timer` runs when the engine next needs it."""
        cdef int64_t wanted = self.earliest()
        cdef int64_t delay
        if self.timer is not None and 0 <= self.timer_at and wanted >= 0 and self.timer_at <= wanted:
            return 0
        if self.over():
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            return 0
        wanted = self.wake_at()
        if wanted < 0:
            return 0
        if self.timer is not None:
            if self.timer_at <= wanted:
                return 0
            self.timer.cancel()
        delay = wanted - pf_monotonic_ns()
        self.timer_at = wanted
        self.timer = self.loop.call_later(delay / 1e9 if delay > 0 else 0, self._on_timer)
        return 0

    def _on_timer(self):
        cdef int64_t now = pf_monotonic_ns()
        self.timer = None
        self.timer_at = -1
        if self.in_batch:
            return
        if self.sharing is not None and self.sharing.full():
            self.sharing.move_later(self._on_timer)  # deadlines of hundreds of links may come at once
            return
        self.begin_batch(now)
        try:
            self.tick(now)
        finally:
            self.end_batch()
            if self.sharing is not None and pf_monotonic_ns() - now >= QUICK:
                self.sharing.spend(pf_monotonic_ns() - now)
