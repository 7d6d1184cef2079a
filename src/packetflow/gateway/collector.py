"""The garbage collector, paced: a full collection stops everybody, and how long depends on what a stranger holds.

For a process that is a gateway and nothing else; a library does not change its
host's collector. Young objects are collected as ever, in larger portions. A full
collection takes time in proportion to all objects there are, and Python starts
one whenever a quarter more have come; here it is due once a minute, and only
while little is held for peers.
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

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

YOUNG = 2_000
"""Objects that are made before the young ones are looked through: some 0.1 ms."""
MIDDLE = 2
"""Looks before those that have come since are looked through once more, up to 3 ms; by what survives that, no more."""
NEVER = 1_000_000
EVERY = 60.0
"""Seconds between full collections."""
LATEST = 900.0
"""Seconds after which one is due whatever is held."""
MORE = 16 * 1_048_576
"""Bytes that the process has become larger by, after which the system gets back what is free of them."""
SHARE = 100
"""So many times as long as one took passes before the next."""


def set_up_memory() -> None:
    """Large buffers are the system's again as soon as they are free. For glibc; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # by itself the threshold would grow to 32 MiB with the first large buffer, and keep what is smaller
        libc.mallopt(M_MMAP_THRESHOLD, 131_072)
        # what is free at the end of the heap is given back by `give_back`, not by every other call of free
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 28)
        libc.mallopt(M_TOP_PAD, 1 << 20)


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
        self._before: tuple[int, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0
        self._took = 0.0
        self._resident = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on; what is there already is never looked at again."""
        set_up_memory()
        gc.collect()
        gc.freeze()
        self._resident = resident()
        self._before = gc.get_threshold()
        gc.set_threshold(YOUNG, MIDDLE, NEVER)
        self._last = loop.time()
        self._timer = loop.call_later(EVERY / 6, self._look, loop)

    def stop(self) -> None:
        """As it was before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        held = self._held()
        if held <= self._little and resident() > self._resident + MORE:
            if self._let_go is not None:
                self._let_go()
            give_back()
            self._resident = resident()
        since = loop.time() - self._last
        if since >= max(EVERY, SHARE * self._took) and (held <= self._little or since >= LATEST):
            began = time.perf_counter()
            gc.collect()
            self._took = time.perf_counter() - began
            self._last = loop.time()
        self._timer = loop.call_later(EVERY / 6, self._look, loop)
