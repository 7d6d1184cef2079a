"""A packet that ends while a store far away is told of it: it has what it was granted, or nobody has, and others do not wait.

Every operation takes ten milliseconds there and ten back: the store has done it at 10, and is heard of at 20.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulated import simulated_time
from tests.state.suspending import far_away
from tests.test_sequences import House

AFTER_MS = [5, 15, 25, 35, 45, 55]
"""Within the first operation, the second and the third, before the store has done it and after."""


@pytest.fixture
def house() -> Iterator[House]:
    with simulated_time(), House(store=far_away) as house:
        yield house
        assert house.check() == []


def end(house: House, link: int, packet_id: str, how: str) -> None:
    """In one of the ways of a packet that has not been answered; that of the deadline comes by itself."""
    if how == "cancelled":
        house.say(link, house.frame("error", {"code": "PF499", "message": "", "packet_id": packet_id}))
    elif how == "lost":
        house.leave(link)


def begin(house: House, link: int, key: str, data: Any, how: str, after_ms: int) -> None:
    """Submits it, as ``X``, and ends it after so many milliseconds."""
    house.say(link, house.packet("X", key, data, timeout_ms=after_ms if how == "deadline" else 300_000))
    house.pass_time(after_ms / 1000)
    end(house, link, "X", how)


LOCK: tuple[str, dict[str, Any]] = ("rm:lock", {"key": "k", "ttl_ms": 1000})
ALLOC: tuple[str, dict[str, Any]] = ("rm:alloc", {"pool": "p", "capacity": 3, "units": 3, "ttl_ms": 1000})
UNDER_LOCK: tuple[str, dict[str, Any]] = (
    "rm:lock",
    {"key": "k", "step": {"group": "df", "element": "own"}},
)
HOW = ["cancelled", "lost", "deadline"]


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("key", "data"), [LOCK, ALLOC, UNDER_LOCK], ids=["lock", "alloc", "lock with step"])
def test_what_was_to_be_had_is_free_again(
    house: House, key: str, data: dict[str, Any], how: str, after_ms: int
) -> None:
    begin(house, house.link("bob"), key, data, how, after_ms)
    house.pass_time(10)
    house.say(house.link("bob"), house.packet("next", key, data))
    house.pass_time(1)
    assert not isinstance(house.outcomes("next")[0][1], str), "no code"


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("key", "data"), [LOCK, ALLOC], ids=["lock", "alloc"])
def test_who_has_got_it_meanwhile_keeps_it(
    house: House, key: str, data: dict[str, Any], how: str, after_ms: int
) -> None:
    mine = data | {"ttl_ms": 60_000, "wait_ms": 5000}
    link, other, third = house.link("bob"), house.link("bob"), house.link("bob")
    begin(house, link, key, data, how, after_ms)
    house.say(other, house.packet("waits", key, mine))
    house.pass_time(2)
    assert isinstance(house.outcomes("waits")[0][1], dict), "it waited for no more than the other's end"
    house.say(third, house.packet("late", key, data))
    house.pass_time(1)
    assert house.outcomes("late") == [(third, "PF429" if key == "rm:alloc" else "PF409")]


@pytest.mark.parametrize("after_ms", [5, 15, 25])
@pytest.mark.parametrize(("key", "data"), [LOCK, ALLOC], ids=["lock", "alloc"])
def test_what_is_being_freed_is_free(house: House, key: str, data: dict[str, Any], after_ms: int) -> None:
    link = house.link("bob")
    house.say(link, house.packet("have", key, data | {"ttl_ms": 86_400_000}))
    house.pass_time(1)
    lease = house.seen[-1]["lease"]
    begin(house, link, "rm:free", {"lease": lease}, "cancelled", after_ms)
    house.pass_time(1)
    house.say(link, house.packet("next", key, data))
    house.pass_time(1)
    assert isinstance(house.outcomes("next")[0][1], dict)


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("op", ["set", "delete"])
def test_who_watches_is_told_of_what_has_changed(house: House, op: str, how: str, after_ms: int) -> None:
    link, watcher = house.link("bob"), house.link("bob")
    house.say(link, house.packet("before", "rm:cache", {"op": "set", "key": "k", "value": "before"}))
    house.pass_time(1)
    house.say(watcher, house.packet("W", "ed:watch", {"key": "k"}, timeout_ms=300_000))
    house.pass_time(1)
    begin(
        house,
        house.link("bob"),
        "rm:cache",
        {"op": op, "key": "k", **({"value": 1} if op == "set" else {})},
        how,
        after_ms,
    )
    house.pass_time(1)
    house.say(link, house.packet("after", "rm:cache", {"op": "get", "key": "k"}))
    house.pass_time(1)
    found = house.outcomes("after")[0][1]["value"]
    told = house.outcomes("W")
    assert (told[0][1]["value"] if told else "before") == found


# ---------------------------------------------------------------- co:sync, co:vote

SYNC = {"barrier": "b", "parties": 2}
VOTE = {"ballot": "b", "voters": 3, "choice": 1}


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
def test_one_who_never_came_breaks_no_generation(house: House, how: str, after_ms: int) -> None:
    """Since it announced another number of parties it is refused, whenever it ends."""
    one, stranger, two = house.link("bob"), house.link(), house.link("bob")
    house.say(one, house.packet("A", "co:sync", SYNC))
    house.pass_time(1)
    begin(house, stranger, "co:sync", SYNC | {"parties": 3}, how, after_ms)
    house.pass_time(1)
    assert house.outcomes("A") == []
    house.say(two, house.packet("B", "co:sync", SYNC))
    house.pass_time(1)
    assert [house.outcomes(name)[0][1]["index"] for name in "AB"] == [0, 1]


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
def test_one_who_came_and_went_breaks_it_for_all_who_wait(house: House, how: str, after_ms: int) -> None:
    """Their second generation: the first is not touched, nor is that which comes after."""
    parties = SYNC | {"parties": 3}
    for place in range(3):
        house.say(house.link("bob"), house.packet(f"first {place}", "co:sync", parties))
    house.pass_time(1)
    one, gone = house.link("bob"), house.link("bob")
    house.say(one, house.packet("A", "co:sync", parties))
    house.pass_time(1)
    begin(house, gone, "co:sync", parties, how, after_ms)
    house.pass_time(20)
    broken = house.outcomes("A")
    if not broken:
        # it had not come: the two others complete it
        for place in range(2):
            house.say(house.link("bob"), house.packet(f"again {place}", "co:sync", parties))
        house.pass_time(1)
        assert [house.outcomes(name)[0][1]["generation"] for name in ("A", "again 0", "again 1")] == [1] * 3
        return
    assert after_ms > 20, "it had asked who is there, no more"
    assert broken == [(one, "PF502")] or (how == "deadline" and broken == [(one, "PF408")])
    for place in range(3):
        house.say(house.link("bob"), house.packet(f"later {place}", "co:sync", parties))
    house.pass_time(1)
    assert [house.outcomes(f"later {place}")[0][1]["generation"] for place in range(3)] == [2] * 3


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
def test_the_last_to_come_leaves_nobody_waiting(house: House, how: str, after_ms: int) -> None:
    one, last = house.link("bob"), house.link("bob")
    house.say(one, house.packet("A", "co:sync", SYNC))
    house.pass_time(1)
    begin(house, last, "co:sync", SYNC, how, after_ms)
    house.pass_time(20)
    if not house.outcomes("A"):
        # it had not come, and the next is the last
        house.say(house.link("bob"), house.packet("next", "co:sync", SYNC))
        house.pass_time(1)
    assert house.outcomes("A"), "all had come"
    assert after_ms < 25 or house.outcomes("A")[0][1]["index"] == 0


@pytest.mark.parametrize("left_ms", [1, 5, 15, 25, 35])
def test_a_wait_that_is_over_just_before_the_deadline_breaks_it_for_all(house: House, left_ms: int) -> None:
    """What tells the others takes longer than the packet has left."""
    parties = SYNC | {"parties": 3}
    one, other = house.link("bob"), house.link("bob")
    house.say(one, house.packet("A", "co:sync", parties, timeout_ms=300_000))
    house.say(other, house.packet("B", "co:sync", parties | {"wait_ms": 1000}, timeout_ms=1000 + left_ms))
    house.pass_time(5)
    assert house.outcomes("A") == [(one, "PF408")]


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
def test_a_voter_who_is_gone_has_not_voted(house: House, how: str, after_ms: int) -> None:
    links = [house.link("bob") for _ in range(4)]
    house.say(links[0], house.packet("A", "co:vote", VOTE | {"need": 3}))
    house.pass_time(1)
    begin(house, links[1], "co:vote", VOTE | {"need": 3}, how, after_ms)
    house.pass_time(20)
    assert house.outcomes("A") == []
    for place in (2, 3):
        house.say(links[place], house.packet(f"B{place}", "co:vote", VOTE | {"need": 3}))
        house.pass_time(1)
    for name in ("A", "B2", "B3"):
        assert house.outcomes(name)[0][1] == {"decision": 1, "tally": [[1, 3]], "decided": True}


@pytest.mark.parametrize("after_ms", AFTER_MS)
@pytest.mark.parametrize("how", HOW)
def test_whose_vote_decides_leaves_nobody_waiting(house: House, how: str, after_ms: int) -> None:
    """Where it was counted its decision stands, and all are told of it."""
    one, gone, third = house.link("bob"), house.link("bob"), house.link("bob")
    house.say(one, house.packet("A", "co:vote", VOTE))
    house.pass_time(1)
    begin(house, gone, "co:vote", VOTE, how, after_ms)
    house.pass_time(20)
    house.say(third, house.packet("B", "co:vote", VOTE))
    house.pass_time(1)
    assert house.outcomes("A")[0][1]["decided"]
    assert house.outcomes("B")[0][1]["decided"]
