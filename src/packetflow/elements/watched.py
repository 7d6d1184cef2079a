"""What is watched: a log for every pattern that somebody watches, so that nothing between two watches is missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from packetflow.errors import Conflict, Overloaded
from packetflow.state import Alarm, Alarms, Lines, LogBounds, Patterns, Store
from packetflow.state.memory import ITEM_BYTES
from pfcore.memory.budget import Account

__all__ = ["Watched"]

KEPT = 600.0
"""Seconds that a pattern is kept up after it was last watched."""
PATTERN_BYTES = 1024
"""What a pattern takes, its log's own places included."""
EVENT_BYTES = 200
LATEST = 1000
"""Events that are kept of a name."""


_decode: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Pattern:
    __slots__ = ("alarm", "needed", "owner", "since", "until", "watchers")

    def __init__(self, since: int, owner: Account | None) -> None:
        self.since = since
        self.owner = owner
        self.until = 0.0
        self.alarm: Alarm | None = None
        self.watchers = 0
        self.needed = False  # something is in its log, or somebody has a cursor of it and may come back with that


class Watched:
    """Logs of ``event`` and ``key`` patterns. What nobody watches costs nothing.

    A pattern is charged to who watched it first, what happened to who made it happen.
    """

    def __init__(
        self,
        store: Store,
        lines: Lines,
        alarms: Alarms,
        spawn: Callable[[Coroutine[Any, Any, Any]], object],
        max_patterns: int,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._lines = lines
        self._alarms = alarms
        self._spawn = spawn
        self._max_patterns = max_patterns
        self._log = LogBounds(LATEST, max_bytes, oldest_leave=True)
        self._patterns: dict[str, Patterns[str]] = {"event": Patterns(), "key": Patterns()}
        self._kept: dict[tuple[str, str], _Pattern] = {}
        self._going: dict[tuple[str, str], asyncio.Event] = {}  # whose logs the store is being told to forget
        self._owned: dict[Account, int] = {}  # who watched first -> how many

    def check_room(self, kind: str, name: str, size: int, owner: Account | None) -> None:
        """Raises `Overloaded` where the owner cannot pay for what would be noted: before anything has happened."""
        patterns = self._patterns[kind]
        if owner is None or not patterns:
            return
        more = len(patterns.match(name)) * (size + EVENT_BYTES + ITEM_BYTES)
        if not owner.may(more):
            raise Overloaded(owner.refusal(more), details={"retry_after_ms": 1000})

    async def note(self, kind: str, name: str, what: dict[str, Any], size: int, owner: Account | None = None) -> int:
        """Something happened to a name: it goes to whoever watches it. How many waited just now."""
        patterns = self._patterns[kind]
        if not patterns:
            return 0
        waited = 0
        item = (msgspec.json.encode(what), size + EVENT_BYTES)
        for pattern in patterns.match(name):
            kept = self._kept.get((kind, pattern))
            if kept is None:
                continue  # nobody watches it any more, since the one before was noted
            kept.needed = True
            kept.watchers += 1  # it does not go meanwhile, and leave a log that nobody forgets
            try:
                if (going := self._going.get((kind, pattern))) is not None:
                    await going.wait()  # it is watched again: what is noted now must not go with what was before
                # not refused: it has happened, and nothing that is watched may be missed
                await self._store.append(kind, pattern, [item], bounds=self._log, owner=owner, must=True)
            finally:
                kept.watchers -= 1
            waited += self._lines.waiting(kind, pattern)
            self._lines.wake(kind, pattern)
        return waited

    @contextmanager
    def watching(self, kind: str, pattern: str, owner: Account | None = None) -> Iterator[int]:
        """Somebody watches a pattern, from the cursor that this gives on."""
        start = self.keep(kind, pattern, owner)
        kept = self._kept[kind, pattern]
        kept.watchers += 1
        try:
            yield start
        finally:
            kept.watchers -= 1
            # those of a link that has gone would fill the table, and hold the memory between them, for ten minutes
            if not kept.watchers and not kept.needed and self._kept.get((kind, pattern)) is kept:
                self._drop(kind, pattern, kept)

    def tell(self, kind: str, pattern: str, cursor: int) -> int:
        """A cursor for a watcher, who may come back with it."""
        self._kept[kind, pattern].needed = True
        return cursor

    def keep(self, kind: str, pattern: str, owner: Account | None = None) -> int:
        """Logs a pattern from now on, if it was not; the cursor of this moment."""
        kept = self._kept.get((kind, pattern))
        now = self._store.revision()
        if kept is None:
            most = self._max_patterns
            if owner is not None and 2 * self._owned.get(owner, 0) > len(self._kept):
                most -= self._max_patterns >> 3  # as names of the store: the last eighth is for others
            if len(self._kept) >= most:
                raise Overloaded(
                    f"{len(self._kept):,} names are watched already, the most that may",
                    details={"retry_after_ms": 1000},
                )
            if owner is not None and not owner.charge(PATTERN_BYTES):
                raise Overloaded(owner.refusal(PATTERN_BYTES), details={"retry_after_ms": 1000})
            if owner is not None:
                self._owned[owner] = self._owned.get(owner, 0) + 1
            kept = self._kept[kind, pattern] = _Pattern(now, owner)
            self._patterns[kind].add(pattern, pattern)
        kept.until = self._alarms.now() + KEPT
        if kept.alarm is None:
            kept.alarm = self._alarms.at(kept.until, lambda: self._look(kind, pattern))
        return now

    async def next(self, kind: str, pattern: str, after: int) -> dict[str, Any] | None:
        """The first thing after a cursor; `Conflict` where something in between is no longer kept."""
        kept = self._kept.get((kind, pattern))
        _, _, dropped = await self._store.extent(kind, pattern)
        if kept is None or after < kept.since or after < dropped:
            oldest = max(dropped, kept.since) if kept is not None else self._store.revision()
            if kept is not None:
                self.tell(kind, pattern, oldest)
            raise Conflict(f"after: {after} is older than what is kept of {pattern!r}", details={"oldest": oldest})
        found = await self._store.read(kind, pattern, after, 1)
        if not found:
            return None
        cursor, what = found[0]
        return {**_decode(what), "cursor": cursor}  # what was noted is needed already

    def __len__(self) -> int:
        return len(self._kept)

    def _look(self, kind: str, pattern: str) -> None:
        kept = self._kept[kind, pattern]
        kept.alarm = None
        if kept.watchers:
            kept.until = self._alarms.now() + KEPT
        if kept.until > self._alarms.now():
            kept.alarm = self._alarms.at(kept.until, lambda: self._look(kind, pattern))
            return
        self._drop(kind, pattern, kept)
        if (kind, pattern) not in self._going:  # else nothing has been noted since
            self._going[kind, pattern] = asyncio.Event()
            self._spawn(self._forget(kind, pattern))

    async def _forget(self, kind: str, pattern: str) -> None:
        try:
            await self._store.forget(kind, pattern)
        finally:
            self._going.pop((kind, pattern)).set()

    def _drop(self, kind: str, pattern: str, kept: _Pattern) -> None:
        if kept.alarm is not None:
            kept.alarm.cancel()
        del self._kept[kind, pattern]
        if kept.owner is not None:
            kept.owner.release(PATTERN_BYTES)
            self._owned[kept.owner] -= 1
            if not self._owned[kept.owner]:
                del self._owned[kept.owner]
        self._patterns[kind].remove(pattern, pattern)

    def close(self) -> None:
        """The gateway has ended: nobody pays any more."""
        for kept in self._kept.values():
            if kept.alarm is not None:
                kept.alarm.cancel()
            if kept.owner is not None:
                kept.owner.release(PATTERN_BYTES)
        self._kept.clear()
        self._owned.clear()
        self._patterns = {"event": Patterns(), "key": Patterns()}
