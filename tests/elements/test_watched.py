"""What is watched is kept as long as somebody may come back for it, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from packetflow.elements.watched import KEPT, PATTERN_BYTES, Watched
from packetflow.errors import Conflict, Overloaded
from packetflow.state import Alarms, Lines, MemoryStore
from pfcore.memory.budget import Account
from tests.helpers import Loop
from tests.state.test_memory import run


class Store(MemoryStore):
    """One that says when something is appended, as one far away is busy meanwhile."""

    appending: Callable[[], object] = staticmethod(lambda: None)

    async def append(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        self.appending()
        return await super().append(*arguments, **options)


@pytest.fixture
def store(time: Loop) -> Store:
    return Store(Alarms(time.loop))


def watched_in(store: Store, time: Loop, names: int = 16) -> Watched:
    return Watched(store, Lines(time.loop, Alarms(time.loop)), Alarms(time.loop), run, names, 10_000)


def test_a_pattern_is_kept_for_a_while_after_it_was_last_watched(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    owner = Account("owner", 10_000)
    with watched.watching("event", "a*", owner) as start:
        cursor = watched.tell("event", "a*", start)
        time.pass_time(KEPT + 1)  # as long as somebody watches
    assert run(watched.note("event", "a1", {"event": "a1"}, 0)) == 0
    assert len(watched) == 1
    found = run(watched.next("event", "a*", cursor))
    assert bytes(found["event"]) == b'"a1"'
    time.pass_time(KEPT - 2)
    assert len(watched) == 1
    time.pass_time(3)
    assert len(watched) == 0
    assert owner.held == 0
    assert run(store.extent("event", "a*")) == (0, 0, 0), "its log has gone, too"
    with pytest.raises(Conflict, match="older than what is kept") as caught:
        run(watched.next("event", "a*", cursor))
    assert caught.value.details == {"oldest": store.revision()}


def test_who_cannot_pay_for_a_pattern_does_not_watch(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    with pytest.raises(Overloaded):
        watched.keep("key", "k", Account("poor", PATTERN_BYTES - 1))
    assert len(watched) == 0


def test_who_watches_more_than_half_of_all_names_cannot_watch_the_last_eighth(store: Store, time: Loop) -> None:
    watched = watched_in(store, time, names=16)
    greedy, other = Account("greedy", 1 << 20), Account("other", 1 << 20)
    for n in range(14):
        watched.keep("key", f"k{n}", greedy)
    with pytest.raises(Overloaded, match="14 names are watched"):
        watched.keep("key", "one more", greedy)
    watched.keep("key", "another's", other)
    watched.keep("key", "nobody's")
    with pytest.raises(Overloaded, match="16 names are watched"):
        watched.keep("key", "past the bound", other)
    watched.close()
    assert (greedy.held, other.held, len(watched)) == (0, 0, 0)


def test_what_nobody_pays_for_leaves_as_well(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    with watched.watching("key", "k"):
        assert len(watched) == 1
    assert len(watched) == 0


def test_a_pattern_that_goes_while_another_is_noted_is_left_out(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    watching = watched.watching("event", "ab*")
    watched.tell("event", "a*", watched.keep("event", "a*"))
    watching.__enter__()
    patterns = watched._patterns["event"].match("abc")
    if patterns[0] == "ab*":  # the one that is noted second is the one that goes
        store.appending = lambda: watched._kept.pop(("event", "a*"), None)
        gone = "a*"
    else:
        store.appending = lambda: watching.__exit__(None, None, None)
        gone = "ab*"
    assert run(watched.note("event", "abc", {"event": "abc"}, 0)) == 0
    assert run(store.extent("event", gone))[0] == 0


def test_closing_leaves_no_alarm(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    watched.tell("event", "e", watched.keep("event", "e", None))
    watched.close()
    time.pass_time(2 * KEPT)
    assert len(watched) == 0


def test_of_two_that_one_owner_watches_one_may_go(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    owner = Account("owner", 10_000)
    watched.keep("key", "stays", owner)
    with watched.watching("key", "goes", owner):
        assert owner.held == 2 * PATTERN_BYTES
    assert owner.held == PATTERN_BYTES


class Forgetting(Store):
    """One that takes its time to forget."""

    def __init__(self, alarms: Alarms) -> None:
        super().__init__(alarms)
        self.told, self.goes_on = asyncio.Event(), asyncio.Event()

    async def forget(self, kind: str, name: str) -> None:
        self.told.set()
        await self.goes_on.wait()
        await super().forget(kind, name)


async def test_what_is_watched_again_while_the_store_forgets_it_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packetflow.elements.watched.KEPT", 0.01)
    loop = asyncio.get_running_loop()
    alarms = Alarms(loop)
    store = Forgetting(alarms)
    tasks: list[asyncio.Task[Any]] = []
    watched = Watched(
        store, Lines(loop, alarms), alarms, lambda coroutine: tasks.append(loop.create_task(coroutine)), 16, 10_000
    )
    watched.tell("event", "e", watched.keep("event", "e"))
    await watched.note("event", "e", {"event": "before"}, 0)
    await store.told.wait()
    monkeypatch.setattr("packetflow.elements.watched.KEPT", 600.0)
    cursor = watched.tell("event", "e", watched.keep("event", "e"))
    noting = [loop.create_task(watched.note("event", "e", {"event": n}, 0)) for n in range(2)]
    await asyncio.sleep(0)
    assert await watched.next("event", "e", cursor) is None, "what was before"
    store.goes_on.set()
    await asyncio.gather(*noting, *tasks)
    for n in range(2):
        found = await watched.next("event", "e", cursor)
        assert found is not None
        assert bytes(found["event"]) == b"%d" % n
        cursor = found["cursor"]
    watched.close()
    alarms.close()


def test_a_pattern_stays_while_the_store_is_told_of_an_event(store: Store, time: Loop) -> None:
    watched = watched_in(store, time)
    watched.tell("event", "e", watched.keep("event", "e"))
    store.appending = lambda: time.pass_time(KEPT + 1)  # so long it takes
    run(watched.note("event", "e", {"event": "e"}, 0))
    assert len(watched) == 1
    time.pass_time(2 * KEPT + 1)
    assert len(watched) == 0
    assert run(store.extent("event", "e")) == (0, 0, 0), "nothing is left that nobody forgets"
