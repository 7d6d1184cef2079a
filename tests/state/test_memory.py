"""The in-memory store: versions, logs, order, times to live, watching; and the alarms below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packetflow.errors import Overloaded
from packetflow.state import (
    SAME,
    Alarms,
    Change,
    Leases,
    LogBounds,
    MemoryStore,
    Patterns,
    Sessions,
    StoreFull,
)
from packetflow.state.memory import ITEM_BYTES, NAME_BYTES, _Sorted
from pfcore.memory.budget import Account, Budget

RECENT = LogBounds(3, 1 << 40, oldest_leave=True)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    alarms = Alarms(asyncio.new_event_loop())
    yield MemoryStore(alarms, max_names=3, max_bytes={"small": 100})
    alarms.close()
    alarms._loop.close()


def run(coroutine: Any) -> Any:
    """What a coroutine that never suspends gives: the in-memory store's do not."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


def test_names_are_bounded(store: MemoryStore) -> None:
    for name in "abc":
        run(store.put("k", name, b"1"))
    with pytest.raises(StoreFull, match="3 names"):
        run(store.put("k", "d", b"1"))
    run(store.put("k", "a", b"2"))  # one that is there may change
    run(store.delete("k", "b"))
    run(store.put("k", "d", b"1"))
    for name in "abc":
        run(store.append("log", name, [(b"1", 1)]))
    with pytest.raises(StoreFull):
        run(store.append("log", "d", [(b"1", 1)]))


def test_the_least_recently_used_leave_at_the_bound_in_bytes(store: MemoryStore) -> None:
    run(store.put("small", "a", b"1", size=40))
    run(store.put("small", "b", b"1", size=40))
    run(store.get("small", "a"))
    run(store.put("small", "c", b"1", size=40))
    assert [name for name, _ in run(store.scan("small", "", "", 9))] == ["a", "c"]
    assert store.size("small") == 80


def test_what_must_be_kept_has_a_name_past_the_bound(store: MemoryStore) -> None:
    owner, other = Account("owner", 10_000), Account("other", 10_000)
    for name in "abcd":
        run(store.put("k", name, b"1", owner=owner, must=True))
        run(store.append("log", name, [(name.encode(), 1)], owner=owner, must=True))
    assert store.names("k") == 4
    with pytest.raises(StoreFull):
        run(store.put("k", "e", b"1", owner=other))
    with pytest.raises(StoreFull):
        run(store.append("log", "e", [(b"1", 1)], owner=other))
    for name in "abcd":
        assert run(store.read("log", name, 0, 10))[0][1] == name.encode()
        run(store.delete("k", name))
        run(store.forget("log", name))
    assert owner.held == 0


def test_what_must_be_kept_makes_others_leave_that_may(store: MemoryStore) -> None:
    for name in "abcd":
        run(store.put("small", name, b"1", must=True))
        run(store.append("recent", name, [(b"1", 1)], bounds=RECENT, must=True))
    assert [name for name, _ in run(store.scan("small", "", "", 10))] == ["b", "c", "d"]
    assert run(store.read("recent", "a", 0, 10)) == []


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
            run(store.put("k", name, b"%d" % place))
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


def test_reading_from_the_middle_of_a_long_log(store: MemoryStore) -> None:
    first, _ = run(store.append("log", "l", [(b"%d" % n, 1) for n in range(1000)]))
    assert run(store.read("log", "l", first + 499, 3)) == [(first + 500 + n, b"%d" % (500 + n)) for n in range(3)]
    assert run(store.read("log", "l", 0, 1)) == [(first, b"0")]


def test_a_bounded_log_keeps_the_latest(store: MemoryStore) -> None:
    first, _ = run(store.append("recent", "l", [(b"%d" % n, 1) for n in range(5)], bounds=RECENT))
    assert [value for _, value in run(store.read("recent", "l", 0, 10))] == [b"2", b"3", b"4"]
    assert run(store.extent("recent", "l"))[2] == first + 1
    for name in "abc":
        run(store.append("recent", name, [(b"1", 1)], bounds=RECENT))
    assert run(store.extent("recent", "l")) == (0, 0, 0)  # the one that was quiet for longest


async def test_a_time_to_live() -> None:
    alarms = Alarms(asyncio.get_running_loop())
    store = MemoryStore(alarms)
    gone = asyncio.Event()
    store.watch("k", "a", lambda change: gone.set() if change.entry is None else None)
    await store.put("k", "a", b"1", ttl=0.01)
    await store.put("k", "kept", b"1", ttl=0.01)
    await store.put("k", "kept", b"2")
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


# ---------------------------------------------------------------- who pays


def paid(store: MemoryStore, owner: Account) -> int:
    """What a store has of an owner, counted anew."""
    slots = [slot for names in store._kinds.values() for slot in names.slots.values()]
    logs = [log for logs in store._logs.values() for log in logs.values()]
    return (
        sum(slot.cost for slot in slots if slot.owner is owner)
        + sum(log.cost for log in logs if log.owner is owner)
        + sum(size + ITEM_BYTES for log in logs for _, _, size, whose in log.items if whose is owner)
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "same", "must", "delete", "append", "trim", "forget", "get", "wait"]),
            st.sampled_from(["small", "k", "recent", "log"]),
            st.sampled_from("abcd"),
            st.integers(0, 3),
            st.integers(0, 60),
        ),
        max_size=60,
    )
)
def test_owners_pay_for_what_is_there_and_for_nothing_else(script: list[tuple[str, str, str, int, int]]) -> None:
    loop = asyncio.new_event_loop()
    alarms = Alarms(loop)
    budget = Budget(8 * NAME_BYTES)
    owners: list[Account | None] = [Account(f"owner {n}", 3 * NAME_BYTES, budget) for n in range(3)]
    owners.append(None)
    store = MemoryStore(alarms, max_names=8, max_bytes={"small": 100})
    refusals: list[str] = []
    for action, kind, name, owner, size in script:
        account = owners[owner]
        before = [one.held for one in owners if one is not None]
        try:
            match action:
                case "put":
                    run(store.put(kind, name, b"1", size=size, owner=account, ttl=60.0 if size % 7 == 0 else None))
                case "same":
                    run(store.put(kind, name, b"1", size=size, owner=SAME))
                case "must":
                    run(store.put(kind, name, b"1", size=size, owner=account, must=True))
                case "delete":
                    run(store.delete(kind, name))
                case "append":
                    bounds = RECENT if kind == "recent" else None
                    items = [(b"1", size), (b"2", size)]
                    run(store.append(kind, name, items, bounds=bounds, owner=account, must=size == 13))
                case "trim":
                    run(store.trim(kind, name, store.revision() - size, 2))
                case "forget":
                    run(store.forget(kind, name))
                case "get":
                    run(store.get(kind, name))
        except StoreFull as full:
            if kind != "small":  # there the owner's own may have made room in vain
                assert [one.held for one in owners if one is not None] == before
            refusals.append(str(full))
        for one in owners:
            assert one is None or one.held == paid(store, one) >= 0
    assert all("max_principal_bytes" in one or "max_total_bytes" in one or "names" in one for one in refusals)
    store.close()
    assert budget.held == 0
    alarms.close()
    loop.close()


def test_the_cache_takes_from_the_same_owner_first(store: MemoryStore) -> None:
    rich, poor = Account("rich", 3 * NAME_BYTES), Account("poor", 10 * NAME_BYTES)
    store._max_names = 100
    run(store.put("small", "poor's", b"1", owner=poor))
    for name in "abcde":
        run(store.put("small", name, b"1", owner=rich))
    assert [name for name, _ in run(store.scan("small", "", "", 9))] == ["d", "e", "poor's"]
    with pytest.raises(StoreFull, match="max_principal_bytes"):
        run(store.put("small", "f", b"1", size=5 * NAME_BYTES, owner=rich))
    assert len(run(store.scan("small", "", "", 9))) == 3, "what cannot be had costs nothing else"


def test_at_the_bound_of_a_kind_it_takes_from_who_has_most(store: MemoryStore) -> None:
    most, few = Account("most", 1 << 20), Account("few", 1 << 20)
    store._max_names = 100
    run(store.put("small", "few's", b"1", size=10, owner=few))
    for name in "abcdefghi":
        run(store.put("small", name, b"1", size=10, owner=most))
    run(store.put("small", "few's too", b"1", size=30, owner=few))
    names = [name for name, _ in run(store.scan("small", "", "", 99))]
    assert {"few's", "few's too"} <= set(names)
    assert store.size("small") <= 100


def test_who_has_more_than_half_of_the_names_cannot_have_the_last_eighth() -> None:
    alarms = Alarms(asyncio.new_event_loop())
    store = MemoryStore(alarms, max_names=80)
    many, one = Account("many", 1 << 30), Account("one", 1 << 30)

    def fill(put: Callable[[str], Any]) -> int:
        for place in range(100):
            try:
                run(put(f"n{place}"))
            except StoreFull:
                return place
        return 100

    assert fill(lambda name: store.put("k", name, b"1", owner=many)) == 70
    run(store.put("k", "mine", b"1", owner=one))
    assert fill(lambda name: store.append("log", name, [(b"1", 1)], owner=many)) == 70
    run(store.append("log", "mine", [(b"1", 1)], owner=one))
    alarms._loop.close()


def test_one_who_watches_and_fails_harms_no_change(store: MemoryStore) -> None:
    def fail(change: Change) -> None:
        raise ValueError("this one")

    seen: list[Change] = []
    store.watch("k", "a", fail)
    store.watch("k", "*", seen.append)
    run(store.put("k", "a", b"1"))
    assert len(seen) == 1


def test_versions_begin_at_the_clocks_microseconds(store: MemoryStore) -> None:
    assert abs(store.revision() - time.time_ns() // 1000) < 3600e6


@given(st.lists(st.tuples(st.booleans(), st.text("abc", max_size=3)), max_size=60), st.text("abc", max_size=3))
def test_texts_in_order(script: list[tuple[bool, str]], start: str) -> None:
    class Small(_Sorted):
        CHUNK = 2

    ordered = Small()
    model: set[str] = set()
    for add, text in script:
        if add and text not in model:
            ordered.add(text)
            model.add(text)
        elif not add and text in model:
            ordered.remove(text)
            model.remove(text)
    assert list(ordered.after(start, itself=True)) == sorted(text for text in model if text >= start)
    assert list(ordered.after(start, itself=False)) == sorted(text for text in model if text > start)


async def test_an_alarm_that_is_set_by_another_does_not_hide_those_that_come_before_it() -> None:
    alarms = Alarms(asyncio.get_running_loop())
    rung: list[str] = []
    done = asyncio.Event()
    now = alarms.now()
    alarms.at(now + 0.01, lambda: alarms.at(now + 1000, lambda: rung.append("late")))
    alarms.at(now + 0.02, done.set)
    await done.wait()
    assert rung == []
    alarms.close()


async def test_many_alarms_leave_the_loop_to_others_in_between() -> None:
    alarms = Alarms(asyncio.get_running_loop())
    rung: list[float] = []

    def slow() -> None:
        end = time.monotonic() + 0.0004
        while time.monotonic() < end:
            pass
        rung.append(time.monotonic())

    now = alarms.now()
    for _ in range(50):
        alarms.at(now, slow)
    while not rung:
        await asyncio.sleep(0)
    turns = 0
    while len(rung) < 50:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 5
    alarms.close()


async def test_a_lease_is_paid_for_until_it_ends() -> None:
    alarms = Alarms(asyncio.get_running_loop())
    account = Account("user", 2000)
    leases = Leases(alarms, lambda coroutine, account: asyncio.ensure_future(coroutine()))
    sessions = Sessions(alarms)
    holder = sessions.of("link", 7)

    async def end(lease: Any) -> None:
        pass

    leases.check_room(account, holder, 2)
    lease = leases.grant("lock", "k", 7, holder, 100, end, account=account)
    with pytest.raises(Overloaded, match="max_principal_bytes"):
        leases.check_room(account, holder, 2)
    await leases.free(lease)
    assert account.held == 0
    leases.grant("lock", "k", 7, holder, 100, end, account=account)
    leases.grant("lock", "l", 8, other := sessions.of("another link", 8), 100, end)
    sessions.end(holder)
    assert (account.held, len(leases)) == (0, 1)
    holder = other
    leases.grant("lock", "m", 8, holder, 100, end)
    with pytest.raises(Overloaded, match="2 leases"):
        leases.check_room(account, holder, 2)
    alarms.close()


async def test_alarms_that_are_closed_in_the_middle_of_many_ring_no_more() -> None:
    loop = asyncio.get_running_loop()
    alarms, rung = Alarms(loop), []

    def ring() -> None:
        rung.append(loop.time())
        time.sleep(0.002)  # more than a slice

    for _ in range(3):
        alarms.at(0.0, ring)
    while not rung:
        await asyncio.sleep(0)
    alarms.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(rung) == 1


def test_at_the_bound_in_names_the_least_recently_used_leave_where_values_may(store: MemoryStore) -> None:
    for name in "abcd":
        run(store.put("small", name, b"", size=1))
    assert [name for name, _ in run(store.scan("small", "", "", 10))] == ["b", "c", "d"]


def test_what_has_just_come_is_not_what_leaves(store: MemoryStore) -> None:
    """Its owner has most of this kind, and nothing else of it."""
    large, little = Account("large", 10_000), Account("little", 10_000)
    run(store.put("small", "little", b"", size=60, owner=little))
    run(store.put("small", "large", b"", size=90, owner=large))
    assert [name for name, _ in run(store.scan("small", "", "", 10))] == ["large"]
    assert little.held == 0
