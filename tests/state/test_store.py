"""The in-memory store: versions, logs, order, times to live, watching; and the alarms below it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packetflow.state import Alarms, Change, MemoryStore, Patterns, StoreFull, VersionMismatch


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    alarms = Alarms(asyncio.new_event_loop())
    yield MemoryStore(alarms, max_names=3, max_bytes={"small": 100}, log_items={"recent": 3})
    alarms.close()
    alarms._loop.close()


def run(coroutine: Any) -> Any:
    """What a coroutine that never suspends gives: the in-memory store's do not."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


def test_versions_grow_over_all_names(store: MemoryStore) -> None:
    versions = [run(store.put("k", name, 1)).version for name in ("a", "b", "a")]
    assert versions == sorted(set(versions))
    assert run(store.get("k", "a")) == (1, versions[2])
    assert run(store.get("k", "nothing")) is None
    assert run(store.get("other kind", "a")) is None


def test_put_and_delete_if_the_version_matches(store: MemoryStore) -> None:
    made = run(store.put("k", "a", 1, version=0))
    with pytest.raises(VersionMismatch) as caught:
        run(store.put("k", "a", 2, version=0))
    assert caught.value.entry == made
    with pytest.raises(VersionMismatch):
        run(store.delete("k", "a", version=made.version + 1))
    with pytest.raises(VersionMismatch):
        run(store.put("k", "b", 2, version=7))
    assert run(store.delete("k", "a", version=made.version)) is True
    assert run(store.delete("k", "a")) is False
    assert run(store.put("k", "a", 3, version=0)).version > made.version


def test_names_are_bounded(store: MemoryStore) -> None:
    for name in "abc":
        run(store.put("k", name, 1))
    with pytest.raises(StoreFull, match="3 names"):
        run(store.put("k", "d", 1))
    run(store.put("k", "a", 2))  # one that is there may change
    run(store.delete("k", "b"))
    run(store.put("k", "d", 1))
    for name in "abc":
        run(store.append("log", name, [(1, 1)]))
    with pytest.raises(StoreFull):
        run(store.append("log", "d", [(1, 1)]))


def test_the_least_recently_used_leave_at_the_bound_in_bytes(store: MemoryStore) -> None:
    run(store.put("small", "a", 1, size=40))
    run(store.put("small", "b", 1, size=40))
    run(store.get("small", "a"))
    run(store.put("small", "c", 1, size=40))
    assert [name for name, _ in run(store.scan("small", "", "", 9))] == ["a", "c"]
    assert store.bytes("small") == 80


@given(
    st.lists(st.tuples(st.sampled_from("pd"), st.text("ab:", min_size=1, max_size=4))),
    st.text("ab:", max_size=2),
    st.text("ab:", max_size=3),
)
def test_scan_is_in_order_after_a_name(script: list[tuple[str, str]], prefix: str, after: str) -> None:
    alarms = Alarms(asyncio.new_event_loop())
    store = MemoryStore(alarms)
    model = set()
    for place, (action, name) in enumerate(script):
        if action == "p":
            run(store.put("k", name, place))
            model.add(name)
        else:
            run(store.delete("k", name))
            model.discard(name)
        if place % 3 == 0:
            run(store.scan("k", "", "", 1))  # sorted in between, too
    expected = sorted(name for name in model if name.startswith(prefix) and (name > after or not after))
    assert [name for name, _ in run(store.scan("k", prefix, after, 100))] == expected
    assert [name for name, _ in run(store.scan("k", prefix, after, 2))] == expected[:2]
    alarms._loop.close()


def test_logs(store: MemoryStore) -> None:
    first, last = run(store.append("log", "l", [("a", 1), ("b", 2)]))
    assert last == first + 1
    assert run(store.read("log", "l", 0, 10)) == [(first, "a"), (last, "b")]
    assert run(store.read("log", "l", first, 10)) == [(last, "b")]
    assert run(store.read("log", "l", last, 10)) == []
    assert run(store.extent("log", "l")) == (2, 3, 0)
    assert run(store.trim("log", "l", first)) == 1
    assert run(store.extent("log", "l")) == (1, 2, first)
    run(store.forget("log", "l"))
    assert run(store.extent("log", "l")) == (0, 0, 0)


def test_reading_from_the_middle_of_a_long_log(store: MemoryStore) -> None:
    first, _ = run(store.append("log", "l", [(n, 1) for n in range(1000)]))
    assert run(store.read("log", "l", first + 499, 3)) == [(first + 500 + n, 500 + n) for n in range(3)]
    assert run(store.read("log", "l", 0, 1)) == [(first, 0)]


def test_a_bounded_log_keeps_the_latest(store: MemoryStore) -> None:
    first, _ = run(store.append("recent", "l", [(n, 1) for n in range(5)]))
    assert [value for _, value in run(store.read("recent", "l", 0, 10))] == [2, 3, 4]
    assert run(store.extent("recent", "l"))[2] == first + 1
    for name in "abc":
        run(store.append("recent", name, [(1, 1)]))
    assert run(store.extent("recent", "l")) == (0, 0, 0)  # the one that was quiet for longest


def test_watching(store: MemoryStore) -> None:
    seen: list[Change] = []
    exact, prefix = store.watch("k", "a", seen.append), store.watch("k", "a*", seen.append)
    made = run(store.put("k", "a", 1))
    run(store.put("k", "ab", 1))
    run(store.put("k", "b", 1))
    assert [change.name for change in seen] == ["a", "a", "ab"]
    assert seen[0].entry == made
    exact.close()
    prefix.close()
    exact.close()  # again is nothing
    run(store.delete("k", "a"))
    assert len(seen) == 3


async def test_a_time_to_live() -> None:
    alarms = Alarms(asyncio.get_running_loop())
    store = MemoryStore(alarms)
    gone = asyncio.Event()
    store.watch("k", "a", lambda change: gone.set() if change.entry is None else None)
    await store.put("k", "a", 1, ttl=0.01)
    await store.put("k", "kept", 1, ttl=0.01)
    await store.put("k", "kept", 2)
    await gone.wait()
    assert await store.get("k", "a") is None
    assert await store.get("k", "kept") is not None
    alarms.close()


@given(st.lists(st.text("ab*", min_size=1, max_size=3), max_size=8), st.text("ab", max_size=3))
def test_patterns_match_exactly_or_by_prefix(patterns: list[str], name: str) -> None:
    kept: Patterns[int] = Patterns()
    for place, pattern in enumerate(patterns):
        kept.add(pattern, place)

    def fits(pattern: str) -> bool:
        return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))

    assert sorted(kept.match(name)) == [place for place, pattern in enumerate(patterns) if fits(pattern)]
    for place, pattern in enumerate(patterns):
        kept.remove(pattern, place)
        kept.remove(pattern, place)
    assert not kept
    assert kept.match(name) == []


async def test_alarms_ring_in_order_and_cancelled_ones_do_not() -> None:
    loop = asyncio.get_running_loop()
    alarms = Alarms(loop)
    rung: list[int] = []
    done = loop.create_future()
    now = alarms.now()
    alarms.at(now + 0.02, lambda: done.set_result(None))
    many = [alarms.at(now + 0.01 + n / 1e6, lambda n=n: rung.append(n)) for n in range(5000)]

    def fail() -> None:
        raise ValueError("one alarm must not silence the others")

    alarms.at(now + 0.005, fail)
    for alarm in many[::2] + many[1:4000:2]:
        alarm.cancel()
        alarm.cancel()
    assert len(alarms) == 5000 - 2500 - 2000 + 2
    await done
    assert rung == list(range(4001, 5000, 2))
    alarms.close()
