"""The contract of stores: on the one in memory, on one that suspends and reorders, and on some that break it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from packetflow.elements import Bounds, in_memory
from packetflow.state import Alarms, Entry, MemoryStore, Store, VersionMismatch
from packetflow.state.contract import CHECKS, Broken
from tests.state.suspending import SuspendingStore

ONE_LOOP = "asyncio"


@pytest.fixture
def alarms() -> Iterator[Alarms]:
    made: list[Alarms] = []

    class Late(Alarms):
        """Made within the test's loop."""

        def __init__(self) -> None:
            super().__init__(asyncio.get_running_loop())
            made.append(self)

    yield Late  # type: ignore[misc]
    for each in made:
        each.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_in_memory(check: Callable[[Store], Any], alarms: Callable[[], Alarms]) -> None:
    await check(in_memory(alarms(), Bounds()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_far_away(check: Callable[[Store], Any], seed: int, alarms: Callable[[], Alarms]) -> None:
    await check(SuspendingStore(alarms(), Bounds(), seed=seed, steps=5))  # type: ignore[arg-type]


class _NoCompare(MemoryStore):
    async def put(self, *arguments: Any, version: int | None = None, **options: Any) -> Entry:
        return await super().put(*arguments, **options)


class _BlindDelete(MemoryStore):
    async def delete(self, kind: str, name: str, *, version: int | None = None) -> bool:
        return await super().delete(kind, name)


class _Restarted(MemoryStore):
    async def delete(self, kind: str, name: str, *, version: int | None = None) -> bool:
        gone = await super().delete(kind, name, version=version)
        self._revision = 1
        return gone


class _Unbounded(MemoryStore):
    async def append(self, *arguments: Any, bounds: Any = None, **options: Any) -> tuple[int, int]:
        return await super().append(*arguments, **options)


class _Forever(MemoryStore):
    async def put(self, *arguments: Any, ttl: float | None = None, **options: Any) -> Entry:
        return await super().put(*arguments, **options)


class _Quiet(MemoryStore):
    def _publish(self, *_: Any) -> None:
        pass


class _Free(MemoryStore):
    async def put(self, *arguments: Any, owner: Any = None, **options: Any) -> Entry:
        return await super().put(*arguments, **options)


class _Slow(MemoryStore):
    """Compares, and puts later: what came in between is lost."""

    async def put(self, kind: str, name: str, value: bytes, *, version: int | None = None, **options: Any) -> Entry:
        entry = await self.get(kind, name)
        if version is not None and version != (entry.version if entry is not None else 0):
            raise VersionMismatch(entry)
        await asyncio.sleep(0)
        return await super().put(kind, name, value, **options)


class _FromZero(MemoryStore):
    def __init__(self, alarms: Alarms) -> None:
        super().__init__(alarms)
        self._revision = -10


class _Behind(MemoryStore):
    def revision(self) -> int:
        return 0


class _OneLife(MemoryStore):
    """The first time to live of a name is its only one."""

    async def put(self, kind: str, name: str, value: bytes, *, ttl: float | None = None, **options: Any) -> Entry:
        entry = await super().put(kind, name, value, ttl=ttl, **options)
        slot = self._kinds[kind].slots[name]
        if slot.alarm is None and name == "stays":
            slot.alarm = self._alarms.at(0.0, lambda: self._take(kind, self._kinds[kind], name))
        return entry


class _CountsEach(MemoryStore):
    """Every log has ids of its own."""

    async def append(self, kind: str, name: str, *arguments: Any, **options: Any) -> tuple[int, int]:
        first, last = await super().append(kind, name, *arguments, **options)
        return (first, last) if name == "l" else (1, 1)


class _LogsForNothing(MemoryStore):
    async def append(self, *arguments: Any, owner: Any = None, **options: Any) -> tuple[int, int]:
        return await super().append(*arguments, **options)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (_FromZero, "versions_grow"),
        (_Behind, "versions_grow"),
        (_OneLife, "values_leave_after_their_time"),
        (_CountsEach, "logs_keep_their_order"),
        (_LogsForNothing, "owners_pay"),
        (_NoCompare, "only_the_version_that_was_read"),
        (_BlindDelete, "only_the_version_that_was_read"),
        (_Restarted, "versions_grow"),
        (_Unbounded, "logs_keep_their_bounds"),
        (_Forever, "values_leave_after_their_time"),
        (_Quiet, "changes_are_told"),
        (_Free, "owners_pay"),
        (_Slow, "one_of_many_wins"),
        (_Slow, "updates_lose_nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.strip("_"),
)
async def test_a_store_that_breaks_it(
    wrong: type[MemoryStore], name: str, alarms: Callable[[], Alarms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packetflow.state.contract.PATIENCE", 0.2)
    check = next(check for check in CHECKS if check.__name__ == name)  # type: ignore[attr-defined]
    with pytest.raises(Broken):
        await check(wrong(alarms()))
