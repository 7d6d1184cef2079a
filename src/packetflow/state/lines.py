"""Lines: who waits for a name, served by priority, then first come, first served."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from packetflow.errors import Overloaded, Unavailable
from packetflow.state.alarms import Alarms
from packetflow.state.sessions import Session

__all__ = ["Lines"]

T = TypeVar("T")


class _Place:
    __slots__ = ("expired", "number", "owner", "priority", "put_off", "turn")

    def __init__(self, priority: int, number: int, turn: asyncio.Future[None], owner: Hashable) -> None:
        self.priority = priority
        self.number = number
        self.turn = turn
        self.owner = owner
        self.expired = False
        self.put_off = False  # it was called, and it is not its owner's turn to work

    def expire(self) -> None:
        """Its time is over."""
        self.expired = True
        if not self.turn.done():
            self.turn.set_result(None)

    def __lt__(self, other: _Place) -> bool:
        return (-self.priority, self.number) < (-other.priority, other.number)


class Lines:
    """The lines of all names. `max_waiters`: of one name (default 10,000), `Overloaded` past it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, alarms: Alarms, max_waiters: int = 10_000) -> None:
        self._loop = loop
        self._alarms = alarms
        self._max_waiters = max_waiters
        self._lines: dict[tuple[str, Hashable], list[_Place]] = {}
        self._numbers = itertools.count()
        self._closed = False

    def waiting(self, kind: str, name: Hashable) -> int:
        """How many wait for a name."""
        return len(self._lines.get((kind, name), ()))

    async def wait(
        self,
        kind: str,
        name: Hashable,
        attempt: Callable[[], Awaitable[T | None]],
        *,
        priority: int,
        until: float,
        session: Callable[[], Session] | None = None,
        shown: str | None = None,
        turn: Callable[[], Awaitable[object] | None] | None = None,
        owner: Hashable = None,
    ) -> T:
        """What `attempt` gives as soon as it gives something, tried in turn and at every `wake`.

        `until`: loop time; TimeoutError when it comes, at once if it has come and
        the first attempt gave nothing, or others wait already. `session`: whose
        the wait is; it is cancelled when that ends. `shown`: the name for messages,
        where it is not `name`. `turn`: asked before each attempt but the first, since one
        change may wake the first of a thousand lines: what it gives is awaited, and
        meanwhile others try who stand behind, but for those of the same `owner`.
        """
        key = (kind, name)
        line = self._lines.get(key)
        if line is None:
            found = await attempt()
            if found is not None:
                return found
        if until <= self._loop.time():
            raise TimeoutError
        if self._closed:
            raise Unavailable("the gateway is stopping")
        if self.waiting(kind, name) >= self._max_waiters:
            what = name if shown is None else shown
            raise Overloaded(
                f"{self._max_waiters:,} wait for {what!r} already, the most that may", details={"retry_after_ms": 1000}
            )
        task = asyncio.current_task()
        holder = session() if session is not None and task is not None else None
        place = _Place(priority, next(self._numbers), self._loop.create_future(), owner)
        held = ("wait", str(place.number))
        line = self._lines.setdefault(key, [])
        bisect.insort(line, place)
        if holder is not None and task is not None:
            holder.hold(held, lambda: _cancel(task))
        # not a timeout of asyncio's: ten thousand that wait for one thing would all be cancelled in one iteration
        alarm = self._alarms.at(until, place.expire)
        try:
            while True:
                if _first(line) is place:
                    found = await attempt()
                    if found is not None:
                        return found
                if self._closed and not place.turn.done():
                    raise Unavailable("the gateway is stopping")  # it was woken just before, for nothing
                if place.expired:
                    raise TimeoutError
                await place.turn
                place.turn = self._loop.create_future()
                when = turn() if turn is not None else None
                if when is not None:
                    place.put_off = True
                    self._call_first(line)  # nobody waits for another's turn
                    await when
                    place.put_off = False
        finally:
            alarm.cancel()
            if place.turn.done() and not place.turn.cancelled():
                place.turn.exception()  # `close` has told who was about to leave anyway
            if holder is not None:
                holder.let_go(held)
            del line[bisect.bisect_left(line, place)]
            if line:
                self._call_first(line)
            elif self._lines.get(key) is line:
                del self._lines[key]

    def wake(self, kind: str, name: Hashable) -> None:
        """Something changed: the first in the line tries, and when it leaves the next."""
        line = self._lines.get((kind, name))
        if line:
            self._call_first(line)

    def close(self) -> None:
        """Everyone who waits gets `Unavailable`, and nobody waits any more."""
        self._closed = True
        for line in self._lines.values():
            for place in line:
                if not place.turn.done():
                    place.turn.set_exception(Unavailable("the gateway is stopping"))

    def _call_first(self, line: list[_Place]) -> None:
        place = _first(line)
        if place is not None and not place.turn.done():
            place.turn.set_result(None)


def _first(line: list[_Place]) -> _Place | None:
    """Who may try: the first that does not wait for a turn of its owner's."""
    if not line[0].put_off:
        return line[0]
    owners = {place.owner for place in line if place.put_off}
    return next((place for place in line if place.owner not in owners), None)


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
