"""An ending: begun once, waited for by all who ask for it, over by its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ["Ending", "within"]


class Ending:
    """Runs `work`, which is given this ending, in a task of its own.

    `grace`: seconds that what is under way may take. Whoever asks for the same ending again
    may bring its deadline nearer, never put it off. When nobody waits for it any more, because all
    were cancelled, it is cancelled, too: `work` then ends at once what is left.
    """

    def __init__(self, work: Callable[[Ending], Coroutine[Any, Any, None]], grace: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit: asyncio.Timeout | None = None
        self._waiting = 0
        self.deadline = self._loop.time() + grace
        """When the grace is over, by the loop's clock."""
        self._task = self._loop.create_task(work(self), name="packetflow-ending")

    @property
    def now(self) -> float:
        """The time, by the clock of `deadline`."""
        return self._loop.time()

    async def wait(self, grace: float) -> None:
        """Returns when it is over: `grace` seconds from now, and what the closing takes, if nobody wants it sooner."""
        deadline = self._loop.time() + grace
        if deadline < self.deadline:
            self.deadline = deadline
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(deadline)
        self._waiting += 1
        try:
            await asyncio.wait({self._task})
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                self._task.cancel()  # nothing, where it is over
        if not self._task.cancelled():  # over as well: another who waited was the last at that time
            self._task.result()

    async def allow(self, work: Awaitable[object]) -> bool:
        """Waits for `work`, which is cancelled at the deadline; True if it ended in time."""
        try:
            async with asyncio.timeout_at(self.deadline) as self._limit:
                await work
        except TimeoutError:
            return False
        finally:
            self._limit = None
        return True


async def within(seconds: float, work: Awaitable[object]) -> bool:
    """Waits for `work`, which is cancelled after so many seconds; True if it ended in time."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
