"""Alarms: callbacks at a time, many of them, most of which are cancelled."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Alarm", "Alarms"]

log = logging.getLogger("packetflow.state")

SLICE = 0.001
"""Seconds that alarms may take before the rest of the loop has its turn."""


class Alarm:
    """A callback at a time; `cancel` it if it is not wanted any more."""

    __slots__ = ("_alarms", "_number", "callback", "when")

    def __init__(self, alarms: Alarms, when: float, number: int, callback: Callable[[], Any]) -> None:
        self._alarms = alarms
        self._number = number
        self.when = when
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """It will not ring."""
        if self.callback is not None:
            self.callback = None
            self._alarms._cancelled += 1
            self._alarms._tidy()

    def __lt__(self, other: Alarm) -> bool:
        return (self.when, self._number) < (other.when, other._number)


class Alarms:
    """One loop timer for all alarms: a lease a packet would be a timer a packet, and most end before their time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[Alarm] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._numbers = 0
        self._cancelled = 0
        self._more: asyncio.Handle | None = None  # to ring what was left when the slice was over
        self._ringing = False

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def now(self) -> float:
        """Seconds on the loop's monotonic clock."""
        return self._loop.time()

    def at(self, when: float, callback: Callable[[], Any]) -> Alarm:
        """Calls `callback` at `when` (seconds, as `now`), or as soon as the loop gets to it."""
        self._numbers += 1
        alarm = Alarm(self, when, self._numbers, callback)
        heapq.heappush(self._heap, alarm)
        if not self._ringing and self._more is None and (self._timer is None or when < self._timer_at):
            self._arm(when)
        return alarm

    def close(self) -> None:
        """No alarm rings any more."""
        self._heap.clear()
        self._cancelled = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._more is not None:
            self._more.cancel()
            self._more = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = self._more = None
        now = self._loop.time()
        ends = time.monotonic() + SLICE
        self._ringing = True
        try:
            while self._heap and self._heap[0].when <= now and time.monotonic() < ends:
                alarm = heapq.heappop(self._heap)
                callback, alarm.callback = alarm.callback, None
                if callback is None:
                    self._cancelled -= 1
                    continue
                try:
                    callback()
                except Exception:
                    log.exception("an alarm failed")
        finally:
            self._ringing = False
            # only now: what was set meanwhile may come before or after what was there
            if self._heap and self._heap[0].when <= now:
                self._more = self._loop.call_soon(self._ring)
            elif self._heap:
                self._arm(self._heap[0].when)

    def _tidy(self) -> None:
        # cancelled ones leave when they are due; where they are the most they leave now
        if self._cancelled > 1024 and 2 * self._cancelled > len(self._heap):
            self._heap = [alarm for alarm in self._heap if alarm.callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0
