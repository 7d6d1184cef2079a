"""What is watched is kept as long as somebody may come back for it, and no longer."""

from __future__ import annotations

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
