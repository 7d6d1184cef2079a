"""Whatever one does, what another waits for comes to its turn: sequences against a whole gateway in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from packetflow import Access
from pfcore.work.handler import Handler
from tests.simulated import ADMIN, ANONYMOUS, USER, identity, simulated_time
from tests.test_sequences import House

BY_AGE = 4


def ids(house: House, worker: int) -> list[str]:
    return [work["payload"]["id"] for work in house.work[worker]]


def served_after(house: House, worker: int, most: int, before: Callable[[str], None] = lambda _: None) -> int:
    """How many others the worker has answered when it is given ``quiet``. `before`: called with each of those."""
    for place in range(most):
        for link in house.links.values():
            link.engine.heard(0)  # it says nothing, and lives
        for _ in range(8):
            if place >= len(house.work[worker]):
                house.pass_time(0.001)
        if ids(house, worker)[place] == "quiet":
            return place
        before(ids(house, worker)[place])
        house.answer(worker, place)
    raise AssertionError(f"{most} others were given to it, and quiet was not")


@pytest.mark.parametrize("window", [16, 256])
def test_events_have_their_part_of_a_window_and_no_more(window: int) -> None:
    """What is for events alone is offered to them first: with that they must not take all that becomes free."""
    with simulated_time(), House() as house:
        worker = house.worker("alice", "df:work", window)
        house.heartbeat(worker, ["df:work", "ed:event"], window=window)
        loud, count = house.link(), 0

        def flood(n: int) -> None:
            nonlocal count
            frames = [house.packet(f"e{count + k}", "ed:event", priority=1, timeout_ms=300_000) for k in range(n)]
            count += n
            house.say(loud, *frames)

        flood(window + 30)
        quiet = house.link("bob")
        house.say(quiet, house.packet("quiet", "df:work", priority=10, timeout_ms=300_000))
        assert served_after(house, worker, window + 100, lambda _: flood(1)) <= window + BY_AGE
        assert house.check() == []


def test_a_sixteenth_of_a_window_is_kept_for_events() -> None:
    with simulated_time(), House() as house:
        worker = house.worker("alice", "df:work", 32)
        house.heartbeat(worker, ["df:work", "ed:event"], window=32)
        client = house.link("bob")
        house.say(client, *[house.packet(f"p{n}", "df:work") for n in range(40)])
        house.say(client, *[house.packet(f"e{n}", "ed:event") for n in range(4)])
        assert len([one for one in ids(house, worker) if one.startswith("p")]) == 30
        assert [one for one in ids(house, worker) if one.startswith("e")] == ["e0", "e1"]
        house.answer(worker, 0)
        assert ids(house, worker)[-1] == "p30"
        house.answer(worker, 30)  # e0
        assert ids(house, worker)[-1] == "e2"
        assert house.check() == []


@pytest.mark.parametrize("place", [10, 266, 458])
def test_every_element_of_a_reactor_with_many_comes_to_its_turn(place: int) -> None:
    """One element in each part that is looked at has urgent packets of one stranger's, always."""
    keys = [f"df:w{n}" for n in range(512)]
    with simulated_time(), House() as house:
        worker = house.join("alice", handles=keys[0])
        assert worker is not None
        house.heartbeat(worker, keys, window=1)
        loud, pending = house.link(), dict[str, int]()

        def flood(element: int, n: int) -> None:
            names = [f"e{len(pending) + k}" for k in range(n)]
            pending.update(dict.fromkeys(names, element))
            frames = [house.packet(name, keys[element], priority=10, timeout_ms=300_000) for name in names]
            house.say(loud, *frames)

        for element in range(5, len(keys), 64):
            flood(element, 6)
        quiet = house.link("bob")
        house.say(quiet, house.packet("quiet", keys[place], priority=1, timeout_ms=300_000))
        assert served_after(house, worker, 200, lambda name: flood(pending[name], 1)) < 100


@pytest.mark.parametrize("goes", [False, True])
def test_what_a_link_leaves_behind_has_the_part_of_one(goes: bool) -> None:
    """It is paid for by another account from then on: turns are counted for who has it in the queue."""
    with simulated_time(), House() as house:
        worker = house.worker("alice", "df:work", 1)
        loud = house.link()
        for n in range(0, 200, 50):
            frames = [
                house.packet(f"loud{n + k}", "df:work", priority=10, metadata={"retry": 3}, timeout_ms=300_000)
                for k in range(50)
            ]
            house.say(loud, *frames)
        quiet = house.link("bob")
        house.say(quiet, house.packet("quiet", "df:work", priority=1, timeout_ms=300_000))
        if goes:
            house.leave(loud)
            house.pass_time(0.2)
        assert served_after(house, worker, 100) <= BY_AGE
        assert house.check() == []


def test_a_lane_of_many_accounts_comes_to_all_of_them() -> None:
    with simulated_time(), House() as house:
        ran: list[str] = []

        async def keyed(data: str) -> Any:
            ran.append(data)
            house.suspended.append(asyncio.get_running_loop().create_future())
            return await house.suspended[-1]

        house.register(Handler("cf", "keyed", keyed))
        links, count = [house.link() for _ in range(72)], 0

        def burst(link: int) -> None:
            nonlocal count
            frames = [
                house.packet(
                    f"l{count + k}", "cf:keyed", "loud", priority=10, metadata={"key": "k"}, timeout_ms=300_000
                )
                for k in range(8)
            ]
            count += 8
            house.links[link].engine.heard(0)
            house.say(link, *frames)

        burst(links[0])
        quiet = house.link("bob")
        house.say(quiet, house.packet("quiet", "cf:keyed", "quiet", priority=1, metadata={"key": "k"}))
        for place in range(100):
            if "quiet" in ran:
                assert place <= 2 * BY_AGE
                return
            if count - place <= 2:
                burst(links[count // 8 % 72])
            house.do(house.suspended[place].set_result, 1)
        raise AssertionError("a hundred others ran before it")


# ---------------------------------------------------------------- room that becomes free


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("how", ["cancel", "leave", "removed", "drain"])
def test_room_that_becomes_free_is_offered_to_who_waits(how: str, cancels: bool) -> None:
    with simulated_time(), House() as house:
        worker = house.worker("bob", "df:work", window=2)
        if cancels:
            house.heartbeat(worker, ["df:work"], window=2, ext=["cancel"])
        first, second = house.link("alice"), house.link("bob")
        house.say(first, house.packet("a1", "df:work"), house.packet("a2", "df:work"))
        house.say(second, house.packet("waits", "df:work", timeout_ms=20_000))
        assert ids(house, worker) == ["a1", "a2"]
        if how == "leave":
            house.leave(first)
        elif how == "cancel":
            house.say(first, house.cancel("a1"), house.cancel("a2"))
        elif how == "removed":
            house.reload(1)
        else:
            member = house.links[worker].engine.member
            house.do(house.gateway.switch.drain_member, member, True)
            house.answer(worker, 0)
            house.answer(worker, 1)
            assert "waits" not in ids(house, worker)
            house.do(house.gateway.switch.drain_member, member, False)
        house.pass_time(0.001)
        assert "waits" in ids(house, worker)
        assert house.check() == []


@pytest.mark.parametrize("how", ["answer", "again", "refuse", "cancel", "deadline"])
def test_a_direct_submit_of_the_gateways_own_leaves_room_when_it_ends(how: str) -> None:
    with simulated_time(), House() as house:
        worker = house.worker("alice", "df:work", window=1)
        house.heartbeat(worker, ["df:work"], window=1, reactor="worker", ext=["cancel"])
        peer = house.gateway.reactors["worker"]
        reply = house.do(lambda: peer.call("df", "direct", timeout_ms=3000, retry=how == "again"))
        house.pass_time(0.001)
        house.say(house.link("bob"), house.packet("waits", "df:work"))
        assert [work["payload"]["element"] for work in house.work[worker]] == ["direct"]
        if how == "answer":
            house.answer(worker, 0)
        elif how == "again":
            house.answer(worker, 0, "PF429")
        elif how == "refuse":
            error = {"code": "PF400", "message": "", "packet_id": house.work[worker][0]["payload"]["id"]}
            house.say(worker, house.frame("error", error, house.work[worker][0]["seq"]))
        elif how == "cancel":
            house.do(reply.cancel)
        else:
            house.pass_time(4.1)
        house.pass_time(0.001)
        assert "waits" in ids(house, worker)
        assert house.check() == []


def test_a_reactor_that_announces_nothing_and_comes_back_is_given_what_waited_for_it() -> None:
    with simulated_time(), House() as house:
        client = house.link("alice")

        def come() -> int:
            worker = house.join("bob")
            assert worker is not None
            house.say(worker, house.frame("heartbeat", {"timestamp": 1, "window": 100}))
            house.pass_time(0.1)
            for place, work in enumerate(house.work[worker]):
                if work["payload"]["element"] == "packetflow.anyone":
                    house.answer(worker, place, "PF001")
            return worker

        worker = come()
        house.say(client, house.packet("one", "df:work"))
        house.answer(worker, len(house.work[worker]) - 1)
        house.say(client, house.packet("two", "df:work", metadata={"retry": 5}, timeout_ms=25_000))
        house.pass_time(15)  # past the time in which reactors may be on their way
        house.leave(worker)
        house.pass_time(1)
        worker = come()
        house.pass_time(0.001)
        assert ids(house, worker)[-1] == "two"


def test_who_refused_a_packet_is_not_given_it_again_and_again() -> None:
    """Another announces it and drains: within seconds of the start the packet could wait for that one."""
    with simulated_time(), House() as house:
        worker, draining = house.worker("bob", "df:work"), house.worker("bob", "df:work")
        house.do(house.gateway.switch.drain_member, house.links[draining].engine.member, True)
        client = house.link("bob")
        house.say(client, house.packet("one", "df:work", metadata={"retry": 1}, timeout_ms=60_000))
        house.answer(worker, 0, "PF001")
        assert ids(house, worker) == ["one"]
        assert house.outcomes("one") == [(client, "PF001")]
        house.do(house.gateway.switch.drain_member, house.links[worker].engine.member, True)
        house.say(client, house.packet("two", "df:work", metadata={"retry": 1}, timeout_ms=60_000))
        house.do(house.gateway.switch.drain_member, house.links[draining].engine.member, False)
        house.pass_time(0.001)
        assert ids(house, draining) == ["two"]


# ---------------------------------------------------------------- who goes, and what goes on


def test_links_that_have_gone_do_not_count_among_those_that_wait_for_one_answer(house: House) -> None:
    link = house.link("bob")
    packet = house.packet("one", "df:later", timeout_ms=300_000, metadata={"retry": 5})
    house.say(link, packet)
    for _ in range(16):
        again = house.link("bob")
        house.say(again, packet)
        house.leave(again)
    again = house.link("bob")
    house.say(again, packet)
    assert house.outcomes("one") == []
    house.do(house.suspended[0].set_result, 7)
    assert house.outcomes("one") == [(link, 7), (again, 7)]


@pytest.mark.parametrize("key", ["df:work", "df:later"])
def test_what_began_does_not_begin_again_where_nobody_can_pay_for_it_any_longer(key: str) -> None:
    """A packet with `retry`, of an anonymous link that goes, when all that outlives such links is full."""
    with simulated_time(), House(max_stored_principal_bytes=10_000) as house:
        worker = house.worker("bob", "df:work")
        house.heartbeat(worker, ["df:work"], window=100, ext=["cancel"])
        stranger = house.link()
        for n in range(20):
            house.say(stranger, house.packet(f"c{n}", "df:produce", {"stream": "s", "items": ["x" * 400]}))
        first = house.link()
        packet = house.packet("one", key, "data", metadata={"retry": 5}, timeout_ms=60_000)
        house.say(first, packet)
        house.leave(first)
        house.pass_time(0.1)
        again = house.link()
        house.say(again, packet)
        house.pass_time(0.1)
        given = [line for line in house.heard or () if '"submit"' in line and '"one"' in line]
        assert len(given) + len(house.suspended) == 1
        assert house.outcomes("one") == [(again, "PF502")]


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("key", ["df:work", "df:later"])
def test_who_has_gone_pays_for_nothing(key: str, cancels: bool) -> None:
    """Two anonymous links sent one packet with `retry`; the first takes it back, perhaps, then both go."""
    with simulated_time(), House() as house:
        house.worker("bob", "df:work")
        links = [house.link(), house.link()]
        members = [house.links[link].engine.member for link in links]
        packet = house.packet("one", key, "x" * 100_000, metadata={"retry": 5}, timeout_ms=300_000)
        for link in links:
            house.say(link, packet)
        if cancels:
            house.say(links[0], house.cancel("one"))
            assert members[0].account.held < 2000
        for link in reversed(links):
            house.leave(link)
        house.pass_time(0.1)
        assert [member.account.held for member in members] == [0, 0]
        assert members[0].principal.stored.held > 100_000
        assert house.gateway.switch.in_flight == 1
        assert house.check() == []


def test_who_is_let_in_again_while_much_of_his_ends_loses_nothing_new() -> None:
    principals = [identity("alice", "user"), identity("bob", "admin")]
    with simulated_time(), House() as house:
        house.do(house.gateway.set_access, Access.of([USER, ADMIN], principals, anonymous=ANONYMOUS))
        worker = house.worker("bob", "df:work", window=100_000)
        for link in [house.link() for _ in range(3)]:
            frames = [house.packet(f"p{link}-{n}", "df:work", timeout_ms=100_000) for n in range(1000)]
            house.say(link, *frames)
        new: list[int] = []

        def come() -> None:
            number = house._join(None, "ed:none")
            new.append(number)
            frames = tuple(house.packet(f"new{n}", "df:work", timeout_ms=100_000) for n in range(600))
            house._say(house.links[number], frames)

        def reload() -> None:
            house.gateway.set_access(Access.of([USER, ADMIN], principals, anonymous=None))
            house.gateway.set_access(Access.of([USER, ADMIN], principals, anonymous=ANONYMOUS))
            house.loop.call_soon(come)

        house.do(reload)
        house.pass_time(1)
        assert house.gateway.switch.in_flight == 600
        for place, name in enumerate(ids(house, worker)):
            if name.startswith("new"):
                house.answer(worker, place)
        assert all(house.outcomes(f"new{n}") == [(new[0], 1)] for n in range(0, 600, 50))
        assert house.gateway.switch.in_flight == 0


@pytest.fixture
def house() -> Any:
    with simulated_time(), House() as house:
        yield house
        assert house.check() == []
