"""Cut: a long piece of work that does not await, done a slice at a time.

An expression is evaluated by a library's functions that call one another. A
greenlet has a stack of its own, so it can be left in the middle of them and gone
on with later; nothing of it runs in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

from packetflow.elements.turns import SLICE

__all__ = ["Cut"]

T = TypeVar("T")


class Cut(Generic[T]):
    """`work`, which calls `look` wherever it may be left. What it raises, `go_on` raises; then `result` is not set."""

    __slots__ = ("_clock", "_ends", "_greenlet", "result")

    result: T

    def __init__(self, work: Callable[[], T], clock: Callable[[], float] | None = None) -> None:
        self._greenlet: Any = greenlet(work)
        self._clock = time.perf_counter if clock is None else clock
        self._ends = 0.0

    def go_on(self) -> bool:
        """One slice more; True when all is done."""
        part = self._greenlet
        part.parent = getcurrent()
        self._ends = self._clock() + SLICE
        value = part.switch()
        if not part.dead:
            return False
        self.result = value
        return True

    def look(self) -> None:
        """From within the work: is the slice over? Then it waits here for the next."""
        if self._clock() >= self._ends:
            self._greenlet.parent.switch()

    def drop(self) -> None:
        """It is not wanted any more: what has begun ends where it is. Again, or after the end, is nothing."""
        if self._greenlet and not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw()
