"""What every `Store` must do, as checks that run.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_the_contract(check):
        await check(make_my_store())

Each is given a store with nothing in it and raises `Broken` with what it expected.
They know nothing of how the store works: operations may suspend, and overtake one another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from packetflow.state.store import (
    Change,
    LogBounds,
    LogFull,
    Payment,
    Store,
    StoreFull,
    VersionMismatch,
    update,
)
from pfcore.memory.budget import Account, Budget

__all__ = ["CHECKS", "Broken"]

PATIENCE = 5.0
"""Seconds for word of a change, and for a value to leave after its time."""


class Broken(AssertionError):
    """A store that does not do what stores must."""


def _expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise Broken(f"{what}: expected {expected!r}, found {found!r}")


async def _refused(what: str, kind: type[BaseException], operation: Awaitable[Any]) -> BaseException:
    try:
        found = await operation
    except kind as error:
        return error
    raise Broken(f"{what}: expected {kind.__name__}, found {found!r}")


async def _soon(what: str, true: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise Broken(f"{what}: not within {PATIENCE:g} s") from None


async def values_are_kept_as_they_came(store: Store) -> None:
    """Bytes of any kind, names with any character, kinds apart from one another."""
    _expect("a name that was never set", await store.get("k", "a"), None)
    values = {"a": b"", "é:*.>\x00": bytes(range(256)), "b" * 256: b"x" * 100_000}
    made = {name: await store.put("k", name, value) for name, value in values.items()}
    for name, value in values.items():
        found = await store.get("k", name)
        _expect(f"the value of {name!r}", found, made[name])
        _expect(f"the value of {name!r}", found.value if found is not None else None, value)
    _expect("the same name of another kind", await store.get("other", "a"), None)


async def versions_grow(store: Store) -> None:
    """Of all names together; also past a deletion."""
    versions = [(await store.put("k", name, b"1")).version for name in ("a", "b", "a")]
    await store.delete("k", "a")
    versions.append((await store.put("k", "a", b"2", version=0)).version)
    _expect("versions", versions, sorted(set(versions)))
    if versions[0] <= 0:
        raise Broken(f"the first version: expected more than 0, found {versions[0]}")
    if store.revision() < versions[-1]:
        raise Broken(f"revision: expected {versions[-1]} or more, found {store.revision()}")


async def only_the_version_that_was_read(store: Store) -> None:
    """`put` and `delete` with a version change nothing where there is another."""
    await _refused("put of a version where there is none", VersionMismatch, store.put("k", "a", b"1", version=7))
    made = await store.put("k", "a", b"1", version=0)
    error = await _refused("put where there is one", VersionMismatch, store.put("k", "a", b"2", version=0))
    _expect("what the mismatch tells", getattr(error, "entry", None), made)
    await _refused("delete of another version", VersionMismatch, store.delete("k", "a", version=made.version + 1))
    _expect("the value after all that", await store.get("k", "a"), made)
    again = await store.put("k", "a", b"3", version=made.version)
    _expect("delete of its version", await store.delete("k", "a", version=again.version), True)
    _expect("delete of what is gone", await store.delete("k", "a"), False)


async def one_of_many_wins(store: Store) -> None:
    """Of those who make a name at once, and of those who change a version at once, exactly one does."""

    async def attempt(value: bytes, version: int) -> bool:
        try:
            await store.put("k", "a", value, version=version)
        except VersionMismatch:
            return False
        return True

    _expect("who made it", sum(await asyncio.gather(*(attempt(b"%d" % n, 0) for n in range(20)))), 1)
    entry = await store.get("k", "a")
    version = entry.version if entry is not None else 0
    _expect("who changed it", sum(await asyncio.gather(*(attempt(b"%d" % n, version) for n in range(20)))), 1)


async def updates_lose_nothing(store: Store) -> None:
    """`update`, by many at once: every one of them counts, and the last takes the name away."""

    def more(before: bytes | None) -> tuple[bytes | None, Payment]:
        return b"%d" % (int(before or b"0") + 1), Payment()

    def fewer(before: bytes | None) -> tuple[bytes | None, Payment]:
        left = int(before or b"0") - 1
        return b"%d" % left if left > 0 else None, Payment()

    await asyncio.gather(*(update(store, "k", "n", more) for _ in range(30)))
    entry = await store.get("k", "n")
    _expect("what thirty have counted", entry.value if entry is not None else None, b"30")
    _expect("one who leaves it as it is", await update(store, "k", "n", lambda before: (before, Payment())), entry)
    await asyncio.gather(*(update(store, "k", "n", fewer) for _ in range(30)))
    _expect("what is left when all have gone", await store.get("k", "n"), None)


async def names_in_order(store: Store) -> None:
    """`scan`: by prefix, after a name, so many at most."""
    for name in ("b", "a:2", "a:1", "a", "a:10", "c"):
        await store.put("k", name, name.encode())
    await store.delete("k", "a:2")

    async def names(prefix: str, after: str, limit: int) -> list[str]:
        found = await store.scan("k", prefix, after, limit)
        for name, entry in found:
            _expect(f"the value of {name!r}", entry.value, name.encode())
        return [name for name, _ in found]

    _expect("all", await names("", "", 100), ["a", "a:1", "a:10", "b", "c"])
    _expect("those of a prefix", await names("a:", "", 100), ["a:1", "a:10"])
    _expect("those after one", await names("a:", "a:1", 100), ["a:10"])
    _expect("one at most", await names("", "a", 1), ["a:1"])
    _expect("those of no such prefix", await names("z", "", 100), [])


async def values_leave_after_their_time(store: Store) -> None:
    """`ttl`; a value that is set again has the time of that, or none."""
    seen: list[str] = []
    watching = store.watch("k", "*", lambda change: seen.append(change.name) if change.entry is None else None)
    await store.put("k", "stays", b"1", ttl=0.01)
    await store.put("k", "stays", b"2")
    await store.put("k", "goes", b"1", ttl=0.02)
    await _soon("a value whose time has come is gone, and that is told", lambda: "goes" in seen)
    _expect("it", await store.get("k", "goes"), None)
    _expect("delete of it", await store.delete("k", "goes"), False)
    if await store.get("k", "stays") is None:
        raise Broken("a value that was set again without a time: expected to stay")
    watching.close()


async def logs_keep_their_order(store: Store) -> None:
    """`append`, `read`, `trim`, `extent`, `forget`."""
    _expect("a log without items", (await store.extent("log", "l"))[:2], (0, 0))
    _expect("what is read of it", await store.read("log", "l", 0, 10), [])
    first, last = await store.append("log", "l", [(b"a", 1), (b"b", 2), (b"c", 3)])
    later, _ = await store.append("log", "other", [(b"x", 1)])
    fourth, _ = await store.append("log", "l", [(b"d", 4)])
    if not first < last < later < fourth:
        raise Broken(f"ids: expected to grow over all logs, found {first}, {last}, {later}, {fourth}")
    found = await store.read("log", "l", 0, 10)
    _expect("the items", [value for _, value in found], [b"a", b"b", b"c", b"d"])
    ids = [each for each, _ in found]
    _expect("the ids", [ids[0], ids[2], ids[3]], [first, last, fourth])
    _expect("those after one", await store.read("log", "l", ids[1], 1), [(last, b"c")])
    _expect("those after the last", await store.read("log", "l", fourth, 10), [])
    _expect("how much there is", (await store.extent("log", "l"))[:2], (4, 10))
    _expect("how many were dropped, at most one", await store.trim("log", "l", last, 1), 1)
    _expect("how many were dropped", await store.trim("log", "l", last), 2)
    _expect("what is left", await store.read("log", "l", 0, 10), [(fourth, b"d")])
    _expect("its extent", await store.extent("log", "l"), (1, 4, last))
    await store.forget("log", "l")
    _expect("what is read once it is forgotten", await store.read("log", "l", 0, 10), [])
    _expect("the other log", await store.read("log", "other", 0, 10), [(later, b"x")])


async def logs_keep_their_bounds(store: Store) -> None:
    """Of items and of bytes, whoever appends at once; all items of an append, or none."""
    bounds = LogBounds(3, 100)
    await _refused("four where three may be", LogFull, store.append("log", "l", [(b"x", 1)] * 4, bounds=bounds))
    await _refused("too many bytes", LogFull, store.append("log", "l", [(b"x", 51)] * 2, bounds=bounds))
    _expect("what is there", (await store.extent("log", "l"))[:2], (0, 0))

    async def attempt() -> bool:
        try:
            await store.append("log", "l", [(b"x", 1)], bounds=bounds)
        except LogFull:
            return False
        return True

    _expect("how many of ten at once", sum(await asyncio.gather(*(attempt() for _ in range(10)))), 3)
    _expect("what is there then", (await store.extent("log", "l"))[0], 3)
    latest = LogBounds(3, 100, oldest_leave=True)
    for n in range(5):
        last, _ = await store.append("recent", "l", [(b"%d" % n, 1)], bounds=latest)
    found = await store.read("recent", "l", 0, 10)
    _expect("the latest", [value for _, value in found], [b"2", b"3", b"4"])
    _expect("what was dropped of them", (await store.extent("recent", "l"))[2] < found[0][0], True)
    _expect("the last id", found[-1][0], last)


async def changes_are_told(store: Store) -> None:
    """`watch`: of a name, and of all that begin so, until it is closed."""
    exact: list[Change] = []
    prefix: list[Change] = []
    watches = [store.watch("k", "a", exact.append), store.watch("k", "a*", prefix.append)]
    made = await store.put("k", "a", b"1")
    await store.put("k", "ab", b"1")
    await store.put("k", "b", b"1")
    await store.put("other", "a", b"1")
    await store.delete("k", "a")
    await _soon("word of three changes", lambda: len(exact) >= 2 and len(prefix) >= 3)
    _expect("the name's", [(change.name, change.entry) for change in exact], [("a", made), ("a", None)])
    _expect("the prefix's", [change.name for change in prefix], ["a", "ab", "a"])
    versions = [change.version for change in prefix]
    _expect("their versions", versions, sorted(set(versions)))
    for watch in watches:
        watch.close()
        watch.close()  # again is nothing
    await store.put("k", "a", b"2")
    _expect("once it is closed", len(exact), 2)


async def owners_pay(store: Store) -> None:
    """For what is there, and for nothing else; past their bound they are refused, and nothing has changed."""
    budget = Budget(1 << 30)
    owner = Account("owner", 10_000, budget)
    await store.put("k", "a", b"1", size=1000, owner=owner)
    await store.append("log", "l", [(b"x", 1000)], owner=owner)
    if owner.held < 2000:
        raise Broken(f"what the owner pays: expected 2,000 bytes or more, found {owner.held:,}")
    before = owner.held
    await _refused("a value past the bound", StoreFull, store.put("k", "b", b"1", size=9000, owner=owner))
    await _refused("an item past the bound", StoreFull, store.append("log", "l", [(b"x", 9000)], owner=owner))
    _expect("what is paid after that", owner.held, before)
    _expect("the value that was refused", await store.get("k", "b"), None)
    _expect("the items of the log", (await store.extent("log", "l"))[0], 1)
    await store.put("k", "must", b"1", size=9000, owner=owner, must=True)
    await store.delete("k", "must")
    await store.delete("k", "a")
    await store.forget("log", "l")
    _expect("what is paid when all has gone", owner.held, 0)


CHECKS: tuple[Callable[[Store], Awaitable[None]], ...] = (
    values_are_kept_as_they_came,
    versions_grow,
    only_the_version_that_was_read,
    one_of_many_wins,
    updates_lose_nothing,
    names_in_order,
    values_leave_after_their_time,
    logs_keep_their_order,
    logs_keep_their_bounds,
    changes_are_told,
    owners_pay,
)
"""Every check; each wants a store with nothing in it."""
