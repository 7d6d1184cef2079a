"""The garbage collector, paced: a collection stops everybody, and how long depends on what a stranger holds.

For a process that is a gateway and nothing else; a library does not change its
host's collector. Python begins a collection of the young objects once so many
more were made than were freed: with thousands of packets under way as many come
as go, and when it does begin tens of thousands are young, which takes tens of
milliseconds. So here it is by the clock: every five milliseconds while there is
work, and seldom while there is none. A full collection takes time in proportion
to all objects there are; it is due once a minute, and only while little is held
for peers, or where the process has become much larger.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import Callable

from packetflow.gateway.memory import resident

__all__ = ["Collector"]

M_MXFAST = 1
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

YOUNG = 0.005
"""Seconds between looks at the young objects while there is work."""
IDLE = 0.25
"""... and while there is none."""
BUSY = 0.1
"""Of a processor: with less there is no work."""
MUCH = 64 * 1_048_576
"""Bytes that the process has become larger by, besides what is held for peers, after which a full one is due."""
EVERY = 60.0
"""Seconds between full collections."""
LATEST = 900.0
"""Seconds after which one is due whatever is held."""
MORE = 16 * 1_048_576
"""Bytes that the process has become larger by, after which the system gets back what is free of them."""
TRIES = 4
"""So often, where it does not become smaller; then it is as large as it has to be."""
SHARE = 100
"""So many times as long as one took passes before the next."""


def set_up_memory() -> None:
    """Buffers of megabytes are the system's again as soon as they are free. For glibc; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # By itself the threshold would grow to 32 MiB with the first large buffer, and keep what is smaller. A message
        # is a megabyte at most: new pages for each were a third of the time that large results took.
        libc.mallopt(M_MMAP_THRESHOLD, 1_114_112)
        # what is free at the end of the heap is given back by `give_back`, not by every other call of free
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 28)
        libc.mallopt(M_TOP_PAD, 1 << 20)
        # small chunks that are free join their neighbours at once: a hundred thousand of them took ten milliseconds
        # in the middle of one call of malloc
        libc.mallopt(M_MXFAST, 0)


def give_back() -> None:
    """Pages that hold nothing go back to the system. For glibc; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Collector:
    """Collects when it harms least.

    `held`: bytes held for peers just now; `little`: up to which it may run.
    `let_go`: gives up what is kept to be used again.
    """

    def __init__(
        self, held: Callable[[], int], little: int = 32 * 1_048_576, let_go: Callable[[], None] | None = None
    ) -> None:
        self._held = held
        self._let_go = let_go
        self._little = little
        self._started = False
        self._interval = YOUNG
        self._spent = 0.0
        self._young: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0
        self._took = 0.0
        self._floor = 0  # as small as it was when the system last had back what was free
        self._tries = 0
        self._size = 0  # after the last full collection, less what was held for peers

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on; what is there already is never looked at again."""
        set_up_memory()
        gc.collect()
        gc.freeze()
        self._floor = self._size = resident()
        gc.disable()
        self._started = True
        self._spent = time.process_time()
        self._young = loop.call_later(YOUNG, self._look_at_young, loop)
        self._last = loop.time()
        self._timer = loop.call_later(EVERY / 6, self._look, loop)

    def stop(self) -> None:
        """As it was before."""
        for timer in (self._timer, self._young):
            if timer is not None:
                timer.cancel()
        self._timer = self._young = None
        if self._started:
            self._started = False
            gc.enable()
            gc.unfreeze()

    def _look_at_young(self, loop: asyncio.AbstractEventLoop) -> None:
        gc.collect(0)  # what survives this waits for a full one: to look through it twice would take as long again
        spent = time.process_time()
        busy = spent - self._spent > BUSY * self._interval
        self._spent = spent
        self._interval = YOUNG if busy else min(2 * self._interval, IDLE)
        self._young = loop.call_later(self._interval, self._look_at_young, loop)

    def _shrink(self) -> None:
        if self._let_go is not None:
            self._let_go()
        give_back()
        size = resident()
        self._tries += 1
        if size <= self._floor + MORE or self._tries == TRIES:
            self._tries = 0
            self._floor = size if size > self._floor + MORE else min(self._floor, size)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        held = self._held()
        size = resident()
        larger = held <= self._little and size > self._floor + MORE
        since = loop.time() - self._last
        every = max(EVERY / 3 if larger else EVERY, SHARE * self._took)
        due = since >= every and (held <= self._little or since >= LATEST)
        if due or size - held > self._size + MUCH:
            began = time.perf_counter()
            gc.collect()
            self._took = time.perf_counter() - began
            self._size = resident() - held
            self._last = loop.time()
        if larger:
            self._shrink()
        self._timer = loop.call_later(EVERY / 6, self._look, loop)
