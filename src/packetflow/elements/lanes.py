"""Lanes: many pieces of one packet's work, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from packetflow.elements.call import Call
from packetflow.errors import InvalidPacket

__all__ = ["in_parallel"]

MAX_CONCURRENCY = 1024
LANE_BYTES = 2048
"""What one of the steps that run at once takes besides its packet."""
AT_ONCE = 4
"""Lanes that are cancelled in a turn: each then ends in a step of its own, outside of it."""


async def in_parallel(
    call: Call, count: int, one: Callable[[int], Coroutine[Any, Any, Any]], concurrency: int
) -> list[Any]:
    """``[await one(0), ...]``, at most `concurrency` at once; the first failure ends all."""
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise InvalidPacket(f"concurrency: expected 1 to {MAX_CONCURRENCY:,}, got {concurrency:,}")
    width = min(concurrency, count)
    call.hold(LANE_BYTES * width + 16 * count)
    return await _Lanes(call, count, one, width).run()


class _Lanes:
    """An object rather than closures that know one another: those, and what they hold, only a collection ends."""

    __slots__ = ("_call", "_count", "_first", "_one", "_places", "_results", "_running", "_tasks", "_width")

    def __init__(self, call: Call, count: int, one: Callable[[int], Coroutine[Any, Any, Any]], width: int) -> None:
        self._call = call
        self._count = count
        self._one: Callable[[int], Coroutine[Any, Any, Any]] | None = one
        self._width = width
        self._results: list[Any] = [None] * count
        self._places = iter(range(count))
        self._tasks: list[asyncio.Task[None]] = []
        self._first: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self._running = 0

    async def run(self) -> list[Any]:
        assert self._first is not None
        self._begin()
        try:
            if self._count:
                await self._first
        finally:
            if not self._first.cancel() and not self._first.cancelled():
                self._first.exception()  # said, or not wanted any more
            try:
                await _cancel_all(self._call, [task for task in self._tasks if not task.done()])
            finally:
                # a failure knows the frames that it came through, and they know this: it must not know the failure
                self._first = self._one = None
                self._tasks.clear()
        return self._results

    async def _lane(self) -> None:
        # each begins the next when its turn has come: a thousand at once were no small piece of work
        await self._call.turn()
        self._begin()
        for place in self._places:
            if self._one is None:
                return
            self._results[place] = await self._one(place)

    def _begin(self) -> None:
        if len(self._tasks) < self._width and self._first is not None and not self._first.done():
            self._running += 1
            task = asyncio.ensure_future(self._lane())
            self._tasks.append(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        error = None if task.cancelled() else task.exception()
        if self._first is None or self._first.done():
            return
        if error is not None:
            self._first.set_exception(error)
        elif not self._running:
            self._first.set_result(None)


async def _cancel_all(call: Call, tasks: list[asyncio.Task[None]]) -> None:
    """Cancels many, in turns, and returns when they have ended: what they hold is this packet's, and goes with it."""
    if not tasks:
        return
    todo = iter(tasks)
    try:
        for place, task in enumerate(todo):
            task.cancel()
            if place % AT_ONCE == AT_ONCE - 1:
                await call.turn()
    finally:
        for task in todo:  # cancelled in between, or the gateway has ended
            task.cancel()
    await asyncio.wait(tasks)
    await call.turn()  # what follows lets go of all that the lanes had
