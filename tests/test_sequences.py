"""Unlucky and hostile sequences, each against a whole gateway in simulated time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
import pytest

from packetflow import Access, Packet, Role
from pfcore.memory import clock
from pfcore.work.handler import Handler
from tests.simulated import ADMIN, ANONYMOUS, NARROW, USER, Fabric, SimulatedLink, identity, simulated_time

ONE_LOOP = "simulated"


class House(Fabric):
    """A gateway, and what goes over its links. Handlers of its own: `own` (in `runs`), `later` (in `suspended`)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seqs = itertools.count(1)
        self.runs: list[Any] = []
        self.suspended: list[asyncio.Future[Any]] = []

    def __enter__(self) -> House:
        super().__enter__()
        self.heard = []

        def own(data: Any) -> Any:
            self.runs.append(data)
            return data

        async def later(data: Any) -> Any:
            self.suspended.append(asyncio.get_running_loop().create_future())
            return await self.suspended[-1]

        self.register(Handler("df", "own", own), Handler("ed", "own", own), Handler("df", "later", later))
        return self

    def register(self, *handlers: Handler) -> None:
        for handler in handlers:
            self.gateway.view.dispatcher.register(handler)
        self.do(self.gateway._handlers_changed)

    def link(self, name: str | None = None, *, silent: bool = True) -> int:
        """`silent`: it announces that it handles something that nobody wants."""
        number = self.join(name, handles="ed:none" if silent else None)
        assert number is not None
        return number

    def worker(self, name: str, key: str, window: int = 1000) -> int:
        number = self.join(name, handles=key)
        assert number is not None
        self.heartbeat(number, [key], window=window)
        return number

    def heartbeat(self, link: int, capabilities: list[str], **more: Any) -> None:
        payload = {"timestamp": 1, "capabilities": capabilities, **more}
        self.say(link, self.frame("heartbeat", payload))

    def cancel(self, packet_id: str) -> bytes:
        return self.frame("error", {"code": "PF499", "message": "", "packet_id": packet_id})

    def answer(self, worker: int, place: int = 0, code: str | None = None, data: Any = 1) -> None:
        """A worker's answer to the packet that it was given at this place."""
        work = self.work[worker][place]
        result = {"packet_id": work["payload"]["id"], "status": "error" if code else "success", "duration_ms": 0}
        more = {"error": {"code": code, "message": ""}} if code else {"data": data}
        self.say(worker, self.frame("result", result | more, work["seq"]))

    def frame(self, kind: str, payload: dict[str, Any], seq: int | None = None) -> bytes:
        message = {"type": kind, "seq": next(self.seqs) if seq is None else seq, "payload": payload}
        return json.dumps(message, separators=(",", ":")).encode()

    def packet(self, packet_id: str, key: str = "df:own", data: Any = None, **fields: Any) -> bytes:
        group, _, element = key.partition(":")
        packet = {"version": "1.0", "id": packet_id, "group": group, "element": element, "data": data, "priority": 5}
        return self.frame("submit", packet | fields)

    def outcomes(self, packet_id: str) -> list[tuple[int, Any]]:
        """``[(link, code or data)]`` of what has been answered to that id."""
        found = []
        for line in self.heard or ():
            _, link, text = line.split(" ", 2)
            if text.startswith("{"):
                message = json.loads(text)
                payload = message["payload"]
                if message["type"] == "result" and payload["packet_id"] == packet_id:
                    found.append((int(link), payload["error"]["code"] if "error" in payload else payload["data"]))
        return found

    def held(self, link: int) -> int:
        """Bytes that a link is charged with."""
        return int(self.links[link].engine.member.account.held)  # type: ignore[union-attr]


class Lingering(House):
    """Connections that the gateway closes go after a while: their peers read slowly, or not at all."""

    def closes(self, link: SimulatedLink, reason: str) -> None:
        if link.closing is None:
            link.closing = reason
            self.loop.call_later(4.0, self._lose, link)

    def settle(self) -> None:
        self.loop.settle()
        self.collect()
        for link in list(self.links.values()):
            link.look()


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    with simulated_time(), Lingering() as house:
        yield house


@pytest.fixture
def house() -> Iterator[House]:
    with simulated_time(), House() as house:
        yield house
        assert house.check() == []


# ---------------------------------------------------------------- what an answer sets off


def test_a_refusal_within_anothers_answer_is_not_remembered(house: House) -> None:
    link = house.link("bob")
    second = house.packet("B", data="B", dependencies=["A"])
    house.say(link, second)
    house.gateway.view.dispatcher.tune(max_queue=1, concurrency=1)  # a full house
    house.say(link, house.packet("L", "df:later"), house.packet("Q", data="Q"), house.packet("A", "ed:own", "A"))
    assert house.outcomes("B") == [(link, "PF429")]
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(1)
    house.say(link, second)  # as it was told
    house.pass_time(1)
    assert house.outcomes("B") == [(link, "PF429"), (link, "B")]


def test_an_answer_within_anothers_goes_to_all_who_wait_for_it(house: House) -> None:
    typed = Handler("df", "typed", lambda data: data, decoder=msgspec.json.Decoder(int).decode)
    house.register(typed)
    one, other = house.link("bob"), house.link("bob")
    second = house.packet("B", "df:typed", "no number", dependencies=["A"])
    house.say(one, house.packet("A", "df:later"), second)
    house.say(other, second)
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(1)
    assert sorted(house.outcomes("B")) == sorted([(one, "PF400"), (other, "PF400")])


def test_a_success_within_anothers_answer_is_remembered(house: House) -> None:
    link = house.link("bob")
    second = house.packet("B", "ed:own", "B", dependencies=["A"])
    house.say(link, second, house.packet("C", data="C", dependencies=["B"]))
    house.gateway.view.dispatcher.tune(concurrency=1)
    house.say(link, house.packet("L", "df:later"), house.packet("A", data="A"))
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(1)
    house.say(link, second)
    house.pass_time(1)
    assert house.runs == ["A", "B", "C"]
    assert house.outcomes("C") == [(link, "C")]


def test_ones_packet_never_ends_the_wait_of_anothers(house: House) -> None:
    house.gateway.switch.leave_at_once = 512
    evil, second, bob = house.link("alice"), house.link("alice"), house.link("bob")
    house.worker("bob", "df:work")
    for number in range(150):  # more than can be taken off the lists at once
        others = [f"never{number}-{place}" for place in range(63)]
        house.say(evil, house.packet(f"w{number}", "df:work", dependencies=["step", *others], timeout_ms=300_000))
    house.pass_time(3)

    def at_once() -> None:
        house._lose(house.links[evil])
        house._say(house.links[bob], (house.packet("b", "df:work", "bob's", dependencies=["step"]),))
        house._say(house.links[second], (house.packet("step"),))

    house.do(at_once)
    assert not any('"b"' in line for line in house.heard or () if '"submit"' in line), "his own step has not ended"


def test_thousands_that_wait_for_one_are_looked_at_in_turns(house: House) -> None:
    link = house.link("bob")
    for number in range(6000):
        house.links[link].engine.heard(0)
        house.say(link, house.packet(f"d{number}", dependencies=["a"])) if number % 1000 == 0 else house._say(
            house.links[link], (house.packet(f"d{number}", dependencies=["a"]),)
        )
        if number == 4000:
            link = house.link("bob")
    house.say(link, house.packet("a"))
    house.pass_time(1)
    assert len(house.runs) == 6001


def test_of_thousands_that_may_begin_everybodys_have_turns(house: House) -> None:
    evil, other = house.link("bob"), house.link("alice")
    for place in range(0, 3000, 100):
        house.links[evil].engine.heard(0)
        house.say(evil, *[house.packet(f"d{place + n}", data="evil", dependencies=["a"]) for n in range(100)])
    house.say(other, house.packet("mine", data="another's", dependencies=["b"]))

    def at_once() -> None:
        house._say(house.links[evil], (house.packet("a", data="evil"),))
        house._say(house.links[other], (house.packet("b", data="another's"),))

    house.do(at_once)
    house.pass_time(1)
    assert house.runs.count("evil") == 3001
    assert len(house.runs) - house.runs[::-1].index("another's") < 1000, "his second began before the other's last"


# ---------------------------------------------------------------- what goes on without its link


def test_what_a_stranger_left_is_no_answer_to_the_gateways_own_packet(house: House) -> None:
    worker = house.worker("bob", "df:work")
    got: list[Any] = []

    async def own() -> None:
        got.append(await house.gateway.submit(Packet("df", "work", "ours", id="nightly")))

    task = house.do(house.loop.create_task, own())
    house.settle()
    stranger = house.link()
    house.say(stranger, house.packet("nightly", "df:later", metadata={"retry": 1}))
    house.leave(stranger)
    house.do(house.suspended[0].set_result, "forged")
    house.pass_time(0.5)
    assert got == []
    (work,) = house.work[worker]
    result = {"packet_id": "nightly", "status": "success", "data": "done", "duration_ms": 0}
    house.say(worker, house.frame("result", result, work["seq"]))
    house.settle()
    assert task.done()
    assert got[0].data == "done"


def test_two_principals_chose_one_id_and_their_links_go(house: House) -> None:
    alice, bob, again = house.link("alice"), house.link("bob"), house.link("bob")
    house.say(alice, house.packet("order", "df:later", metadata={"retry": 1}))
    packet = house.packet("order", "df:later")
    house.say(bob, packet)
    house.say(again, packet)
    house.leave(alice)
    house.leave(bob)
    assert house.gateway.switch.in_flight == 2
    house.do(house.suspended[1].set_result, "bob's")
    house.pass_time(0.1)
    assert house.outcomes("order") == [(again, "bob's")]
    house.do(house.suspended[0].set_result, "alice's")
    house.pass_time(0.1)
    assert house.gateway.switch.in_flight == 0


@pytest.mark.parametrize("key", ["df:work", "df:later"])
def test_what_outlives_an_anonymous_link_is_paid_for_by_all_of_them(house: House, key: str) -> None:
    house.worker("bob", "df:work", window=1)
    stored = house.gateway.view.principals.anonymous.stored
    link = house.link()
    account = house.links[link].engine.member.account  # type: ignore[union-attr]
    packets = [house.packet(f"p{n}", key, "x" * 20_000, metadata={"retry": 1}) for n in range(20)]
    house.say(link, *packets)
    before = account.held
    house.leave(link)
    house.pass_time(0.1)
    assert account.held == 0
    assert stored.held > before // 2
    for future in house.suspended:
        house.do(future.set_result, 1)
    house.pass_time(60)
    assert stored.held == 0


# ---------------------------------------------------------------- who may, who pays


def test_what_waits_for_one_alone_goes_to_nobody_who_may_no_longer_have_it(house: House) -> None:
    worker, client = house.worker("alice", "cf:work", window=1), house.link("bob")
    for number in range(3):
        house.say(client, house.packet(f"p{number}", "cf:work", metadata={"key": "a"}))
    (first,) = house.work[worker]
    house.reload(2)  # alice may handle df:work only
    result = {"packet_id": "p0", "status": "success", "data": 1, "duration_ms": 0}
    house.say(worker, house.frame("result", result, first["seq"]))
    house.pass_time(1)
    assert len(house.work[worker]) == 1
    assert [code for n in (1, 2) for _, code in house.outcomes(f"p{n}")] == ["PF503", "PF503"]


def test_the_same_packet_again_is_paid_for_and_counts_against_the_rate(house: House) -> None:
    house.worker("bob", "df:work", window=1)
    link = house.link("bob")
    packets = [house.packet(f"p{n}", "df:work", dependencies=["never"]) for n in range(100)]
    house.say(link, *packets)
    before = house.held(link)
    for _ in range(10):
        house.say(link, *packets)
    assert house.held(link) - before >= 100 * 10 * 100
    house.reload(2)  # alice: two packets a second
    alice = house.link("alice")
    packet = house.packet("again")
    for _ in range(10):
        house.say(alice, *[packet] * 10)
    codes = [code for _, code in house.outcomes("again")]
    assert 1 <= codes.count(None) <= 10
    assert codes.count("PF409") == 100 - codes.count(None)


def test_what_a_link_announces_is_paid_for_while_it_lives(house: House) -> None:
    one, other = house.link("bob", silent=False), house.link("alice", silent=False)
    before = house.held(one)
    known = len(house.gateway.switch.elements)
    house.heartbeat(one, [f"df:e{n}" for n in range(1000)])
    assert house.held(one) - before > 1000 * 1000
    house.heartbeat(other, [f"df:e{n}" for n in range(500)])
    paid = house.held(other)
    house.heartbeat(one, [])
    assert house.held(one) == before
    assert house.held(other) > 4 * paid, "now it is the only one"
    house.heartbeat(other, [])
    assert len(house.gateway.switch.elements) == known
    house.reload(2)
    house.heartbeat(other, [f"cf:e{n}" for n in range(100)])  # it may not handle those
    assert len(house.gateway.switch.elements) == known


def test_a_full_table_of_elements_is_not_looked_through_for_each_and_leaves_room(house: House) -> None:
    switch = house.gateway.switch
    links = []
    for number in range(131_072 // 1024 - 2):
        links.append(house.link(silent=False))
        house.heartbeat(links[-1], [f"df:l{number}-{n}" for n in range(1024)])
    for place in range(100):
        links.append(house.link(silent=False))
        house.heartbeat(links[-1], [f"df:s{place}-{n}" for n in range(1024)])
    assert len(switch.elements) <= 131_072
    bob = house.link("bob", silent=False)
    house.heartbeat(bob, ["df:late"])
    assert [key for key in switch.elements if key == "df:late"]
    house.register(Handler("df", "ours", lambda data: data))
    house.say(bob, house.packet("p", "df:ours", 5))
    assert house.outcomes("p") == [(bob, 5)]


@pytest.mark.parametrize("count", [100, 1000])
def test_what_waits_for_a_newcomers_word_waits_half_a_second(house: House, count: int) -> None:
    client = house.link("bob")
    house.pass_time(3)
    house.link("bob", silent=False)
    house.pass_time(0.3)
    house.link("bob", silent=False)
    house.pass_time(0.1)
    house.say(client, *[house.packet(f"p{n}", "df:nobody") for n in range(count)])
    house.pass_time(0.6)
    assert all(house.outcomes(f"p{n}") == [(client, "PF001")] for n in (0, count // 2, count - 1))


def test_heartbeats_of_one_segment_make_those_that_wait_look_once(house: House) -> None:
    client = house.link("bob")
    house.pass_time(3)
    house.link("bob", silent=False)
    house.pass_time(0.1)  # it is asked, and says nothing
    house.say(client, *[house.packet(f"p{n}", "df:nobody") for n in range(1000)])
    worker = house.link("bob", silent=False)
    beats = [house.frame("heartbeat", {"timestamp": 1, "capabilities": [f"df:one{n}"]}) for n in range(100)]
    house.say(worker, *beats, house.frame("heartbeat", {"timestamp": 1, "capabilities": ["df:nobody"]}))
    house.pass_time(0.2)
    sent = [line for line in house.heard or () if line.split(" ")[1] == str(worker) and '"submit"' in line]
    assert len(sent) == 240, "those that waited go to who announced that he handles them"


def test_who_is_asked_does_not_meet_the_question_by_its_id(house: House) -> None:
    house.link("bob")
    stranger = house.link(None, silent=False)
    house.pass_time(0.2)
    asked = [json.loads(line.split(" ", 2)[2]) for line in house.heard or () if "packetflow.anyone" in line]
    assert len(asked) == 1
    packet_id = asked[0]["payload"]["id"]
    house.say(stranger, house.packet(packet_id, data=7), house.frame("cancel", {"packet_id": packet_id}))
    house.pass_time(3)
    assert house.outcomes(packet_id) == [(stranger, 7)]


# ---------------------------------------------------------------- what grows, and what breaks for one packet alone


def step(key: str, data: Any = None, **more: Any) -> dict[str, Any]:
    group, _, element = key.partition(":")
    return {"group": group, "element": element, "data": data, **more}


GROWS = b'{"retry":2,"x":[' + b",".join([b"1e9"] * 15_000) + b"]}"
"""Within the bound of metadata, and three times as much once it has been read and written again."""


def growing(house: House, packet_id: str, key: str, data: Any = None, **fields: Any) -> bytes:
    return house.packet(packet_id, key, data, metadata="GROWS", **fields).replace(b'"GROWS"', GROWS)


@pytest.mark.parametrize("key", ["df:own", "df:work", "df:nobody", "df:transform"])
@pytest.mark.parametrize("dependencies", [[], ["never"]])
def test_metadata_that_grows_beyond_its_bound_is_refused(house: House, key: str, dependencies: list[str]) -> None:
    house.worker("bob", "df:work")
    evil = house.link()
    house.link("bob", silent=False)
    house.say(evil, growing(house, "E", key, dependencies=dependencies))
    assert house.outcomes("E") == [(evil, "PF400")]


def test_metadata_at_its_bound_is_handed_on(house: House) -> None:
    worker, bob = house.worker("bob", "df:work"), house.link("bob")
    fits = b'{"retry":2,"x":[' + b",".join([b"1e9"] * 5_000) + b"]}"
    for packet_id, dependencies in (("now", []), ("later", ["now"])):
        packet = house.packet(packet_id, "df:work", metadata="FITS", dependencies=dependencies)
        house.say(bob, packet.replace(b'"FITS"', fits))
    (first,) = house.work[worker]
    result = {"packet_id": "now", "status": "success", "data": 1, "duration_ms": 0}
    house.say(worker, house.frame("result", result, first["seq"]))
    assert [work["payload"]["id"] for work in house.work[worker]] == ["now", "later"]


# ---------------------------------------------------------------- everybody's turn


@pytest.mark.parametrize("priority", [5, 10])
def test_who_waits_for_a_word_is_looked_at_whatever_others_call_urgent(house: House, priority: int) -> None:
    evil, bob = house.link(), house.link("bob")
    house.pass_time(3)
    for tick in range(30):
        if tick % 2 == 0:
            house.link(None, silent=False)  # says nothing
        house.say(evil, *[house.packet(f"e{tick}-{n}", "df:nobody", priority=priority) for n in range(100)])
        if tick == 5:
            house.say(bob, house.packet("victim", "df:wanted"))
        if tick == 20:
            house.worker("bob", "df:wanted")
        house.pass_time(0.1)
    assert house.outcomes("victim"), "it was told in time that there is nobody"


def test_suspended_events_of_one_leave_room_for_others(house: House) -> None:
    async def slow(data: Any) -> Any:
        house.suspended.append(asyncio.get_running_loop().create_future())
        return await house.suspended[-1]

    house.register(Handler("ed", "slow", slow))
    house.gateway.view.dispatcher.tune(concurrency=64)
    alice, bob = house.link(), house.link("bob")
    for burst in range(4):
        house.say(alice, *[house.packet(f"e{burst}-{n}", "ed:slow", timeout_ms=300_000) for n in range(50)])
    house.say(bob, house.packet("B", "df:own", "bob's"))
    house.pass_time(1)
    assert house.outcomes("B") == [(bob, "bob's")]
    for one in house.suspended:
        house.do(one.set_result, 1)


def test_what_one_reactor_has_refused_keeps_nobody_from_it(house: House) -> None:
    client, evil = house.link("bob"), house.link("bob")
    good = house.worker("bob", "df:work", window=1)
    house.say(evil, house.packet("H", "df:work", metadata={"retry": 1}, priority=10, timeout_ms=300_000))
    stuck = house.worker("bob", "df:work", window=1)
    house.say(evil, house.packet("E", "df:work", timeout_ms=300_000))  # at the one that never answers
    assert (len(house.work[good]), len(house.work[stuck])) == (1, 1)
    house.say(client, house.packet("q", "df:work"))
    refusal = {"packet_id": "H", "status": "error", "error": {"code": "PF429", "message": "busy"}, "duration_ms": 0}
    house.say(good, house.frame("result", refusal, house.work[good][0]["seq"]))
    house.pass_time(1)
    assert [work["payload"]["id"] for work in house.work[good]] == ["H", "q"]


def test_what_waits_begins_once_more_may_run(house: House) -> None:
    link = house.link("bob")
    house.gateway.view.dispatcher.tune(concurrency=8)
    house.say(link, *[house.packet(f"l{n}", "df:later", timeout_ms=300_000) for n in range(7)])
    house.say(link, house.packet("q", "df:own", 1))
    house.pass_time(1)
    house.gateway.view.dispatcher.tune(concurrency=1000)
    house.pass_time(1)
    assert house.outcomes("q") == [(link, 1)]
    for one in house.suspended:
        house.do(one.set_result, 1)


# ---------------------------------------------------------------- once, and as whose it is


def test_who_cancels_what_goes_on_without_its_first_link_ends_it(house: House) -> None:
    packet = house.packet("P", "df:later", metadata={"retry": 1}, timeout_ms=2000)
    one = house.link("bob")
    house.say(one, packet)
    house.leave(one)
    other = house.link("bob")
    house.say(other, packet)
    house.say(other, house.frame("error", {"code": "PF499", "message": "", "packet_id": "P"}))
    house.pass_time(60)
    assert house.suspended[0].cancelled()
    assert house.gateway.view.dispatcher.running == 0


def test_what_was_lost_once_is_never_said_not_to_have_begun(house: House) -> None:
    worker, client = house.worker("bob", "df:own"), house.link("bob")
    house.say(client, house.packet("P", "df:own", metadata={"retry": 1}))
    assert len(house.work[worker]) == 1
    house.gateway.view.dispatcher.tune(max_queue=0, concurrency=1)
    house.say(client, house.packet("L", "df:later"))
    house.leave(worker)
    house.pass_time(1)
    assert house.outcomes("P") == [(client, "PF502")]
    house.do(house.suspended[0].set_result, 1)


@pytest.mark.parametrize("key", ["df:nobody", "mc:tune"])
def test_a_workflow_that_has_begun_runs_once_for_its_id(house: House, key: str) -> None:
    link = house.link("alice")
    packet = house.packet("S", "cf:seq", {"steps": [step("df:own", "charge"), step(key, 1)]})
    dependent = house.packet("D", "df:own", "dependent", dependencies=["S"])
    house.say(link, dependent, packet)
    house.pass_time(1)
    house.say(link, packet)
    house.pass_time(1)
    assert house.runs == ["charge"]
    assert house.outcomes("D") == [(link, "PF424")]


def test_nothing_begins_for_a_principal_that_is_no_more(house: House) -> None:
    worker, alice = house.worker("bob", "df:work", window=1), house.link("alice")
    house.gateway.view.dispatcher.tune(concurrency=1)
    orphan = {"metadata": {"retry": 1}, "timeout_ms": 300_000}
    house.say(alice, *[house.packet(f"p{n}", "df:work", **orphan) for n in range(3)])
    house.say(alice, house.packet("a", "df:later", **orphan), house.packet("b", "df:own", "late", **orphan))
    (first,) = house.work[worker]
    house.leave(alice)
    house.reload(1)  # alice is no more
    house.pass_time(30)
    result = {"packet_id": "p0", "status": "success", "data": 1, "duration_ms": 0}
    house.say(worker, house.frame("result", result, first["seq"]))
    house.pass_time(1)
    assert len(house.work[worker]) == 1
    assert house.suspended[0].cancelled()
    assert house.runs == []
    assert house.gateway.switch.in_flight == 0


@pytest.mark.parametrize("key", ["df:work", "cf:seq"])
def test_what_has_waited_is_told_how_much_time_is_left(house: House, key: str) -> None:
    worker, bob = house.worker("bob", "df:work"), house.link("bob")
    data = {"steps": [step("df:work", 1)]} if key == "cf:seq" else 1
    waits = house.packet("B", key, data, dependencies=["A"], timeout_ms=10_000)
    house.say(bob, house.packet("A", "df:later", timeout_ms=20_000), waits)
    house.pass_time(8)
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(0.1)
    (work,) = house.work[worker]
    assert work["payload"]["timeout_ms"] <= 2000


def test_a_lock_is_not_had_for_a_step_that_may_not_begin(house: House) -> None:
    link, other = house.link("bob"), house.link("alice")
    first = step("rm:lock", {"key": "k", "step": step("df:own", 1)})
    house.say(link, house.packet("S", "cf:seq", {"steps": [first] + [step("df:own", 2)] * 999}, timeout_ms=300_000))
    house.pass_time(1)
    assert house.outcomes("S") == [(link, "PF400")]
    house.say(other, house.packet("L", "rm:lock", {"key": "k"}))
    house.pass_time(1)
    assert isinstance(house.outcomes("L")[0][1], dict)


# ---------------------------------------------------------------- what began is never begun again

AROUND = {
    "cf:seq": lambda inner: {"steps": [inner]},
    "cf:branch": lambda inner: {"cases": [], "else": inner},
    "cf:loop": lambda inner: {"step": inner, "times": 1},
    "rm:lock": lambda inner: {"key": "k", "step": inner},
    "rm:cache": lambda inner: {"op": "fill", "key": "k", "step": inner},
    "df:transform": lambda inner: {"input": [1], "map": inner},
    "co:gather": lambda inner: {"packets": [inner]},
}


@pytest.mark.parametrize("key", AROUND)
def test_a_workflow_within_another_runs_once_for_its_id(house: House, key: str) -> None:
    link = house.link("alice")
    inner = step("cf:seq", {"steps": [step("df:own", "charge"), step("df:nobody", 1)]})
    packet = house.packet("S", key, AROUND[key](inner))
    house.say(link, house.packet("D", "df:own", "dependent", dependencies=["S"]), packet)
    house.pass_time(1)
    house.say(link, packet)
    house.pass_time(1)
    assert house.runs == ["charge"]
    assert house.outcomes("D") == [(link, "PF424")]


def test_a_workflow_says_that_something_had_begun(house: House) -> None:
    link = house.link("alice")
    for packet_id, first in (("S", "df:own"), ("T", "df:nobody")):
        steps = [step(first, 1), step("df:nobody", 1)]
        house.say(link, house.packet(packet_id, "cf:seq", {"steps": steps}))
    house.pass_time(1)
    details = [
        json.loads(line.split(" ", 2)[2])["payload"]["error"]["details"].get("began")
        for line in house.heard or ()
        if '"PF001"' in line
    ]
    assert details == [True, None]


def test_so_many_submits_wait_for_one_answer(house: House) -> None:
    worker = house.worker("bob", "df:work")
    links = [house.link("bob") for _ in range(18)]
    packet = house.packet("P", "df:work")
    for link in links:
        house.say(link, packet)
    assert len(house.work[worker]) == 1
    assert house.outcomes("P") == [(links[17], "PF409")]
    house.answer(worker, data="done")
    assert sorted(house.outcomes("P")[1:]) == [(link, "done") for link in links[:17]]


def test_a_workflow_of_which_nothing_has_begun_may_come_again(house: House) -> None:
    link = house.link("alice")
    packet = house.packet("S", "cf:seq", {"steps": [step("cf:seq", {"steps": [step("df:nobody", 1)]})]})
    house.say(link, packet)
    house.pass_time(1)
    house.register(Handler("df", "nobody", lambda data: data))
    house.say(link, packet)
    house.pass_time(1)
    assert house.outcomes("S") == [(link, "PF001"), (link, 1)]


@pytest.mark.parametrize("code", ["PF400", "PF403", "PF409", "PF413", "PF500"])
def test_a_reactors_error_is_its_packets_outcome(house: House, code: str) -> None:
    worker, link = house.worker("bob", "df:work"), house.link("bob")
    packet = house.packet("P", "df:work")
    house.say(link, packet)
    house.answer(worker, code=code)
    house.say(link, packet, house.packet("D", "df:own", dependencies=["P"]))
    house.pass_time(0.1)
    assert len(house.work[worker]) == 1
    assert house.outcomes("P") == [(link, code)] * 2
    assert house.outcomes("D") == [(link, "PF424")]


def test_what_a_reactor_does_not_handle_may_come_again(house: House) -> None:
    worker, link = house.worker("bob", "df:work"), house.link("bob")
    packet = house.packet("P", "df:work")
    house.say(link, packet)
    house.answer(worker, code="PF001")
    house.say(link, packet)
    house.answer(worker, 1, data="done")
    assert house.outcomes("P") == [(link, "PF001"), (link, "done")]


def test_who_is_refused_by_all_is_told_at_once(house: House) -> None:
    workers, link = [house.worker("bob", "df:work") for _ in range(3)], house.link("bob")
    house.say(link, house.packet("P", "df:work", metadata={"retry": 2}))
    for _ in workers:
        (worker,) = (one for one in workers if len(house.work[one]) > 0)
        house.answer(worker, code="PF001")
        house.work[worker].clear()
    assert house.outcomes("P") == [(link, "PF001")]


@pytest.mark.parametrize("key", ["df:work", "df:later", "cf:seq"])
def test_what_was_cancelled_once_it_had_begun_does_not_begin_again(house: House, key: str) -> None:
    worker, link = house.worker("bob", "df:work"), house.link("bob")
    packet = house.packet("P", key, {"steps": [step("df:own", "charge"), step("df:later", 1)]})
    house.say(link, packet)
    house.pass_time(0.1)
    house.say(link, house.cancel("P"))
    house.pass_time(0.1)
    house.say(link, packet, house.packet("D", "df:own", "late", dependencies=["P"]))
    house.pass_time(0.1)
    assert len(house.work[worker]) + len(house.suspended) == 1
    assert house.runs == (["charge"] if key == "cf:seq" else [])
    assert house.outcomes("P") == [(link, "PF499")]
    assert house.outcomes("D") == [(link, "PF424")]


@pytest.mark.parametrize("key", ["df:work", "df:later"])
def test_a_link_that_sent_a_packet_twice_takes_it_back_once(house: House, key: str) -> None:
    worker, link, other = house.worker("bob", "df:work"), house.link("bob"), house.link("bob")
    packet = house.packet("P", key)
    house.say(link, packet, packet)
    house.say(link, house.cancel("P"))
    house.pass_time(0.1)
    assert house.gateway.switch.in_flight == 0
    assert all(future.cancelled() for future in house.suspended)
    # another's submit keeps it going
    again = house.packet("Q", key)
    house.say(link, again, again)
    house.say(other, again)
    house.say(link, house.cancel("Q"))
    assert house.gateway.switch.in_flight == 1
    house.say(other, house.cancel("Q"))
    house.pass_time(0.1)
    assert house.gateway.switch.in_flight == 0
    assert all(future.cancelled() for future in house.suspended)
    assert worker in house.links


def test_what_was_cancelled_before_it_began_may_come_again(house: House) -> None:
    worker, link = house.worker("bob", "df:work", window=1), house.link("bob")
    packet = house.packet("P", "df:work")
    house.say(link, house.packet("first", "df:work"), packet)
    house.say(link, house.cancel("P"))
    house.say(link, packet)
    house.answer(worker)
    house.answer(worker, 1, data="done")
    assert house.outcomes("P") == [(link, "done")]


# ---------------------------------------------------------------- what ends, and what goes on


def test_nothing_begins_for_one_who_is_no_more_though_his_link_lingers(lingering: Lingering) -> None:
    house = lingering
    worker, alice = house.worker("bob", "df:work", window=1), house.link("alice")
    house.gateway.view.dispatcher.tune(concurrency=1)
    house.say(alice, *[house.packet(f"p{n}", "df:work", timeout_ms=300_000) for n in range(3)])
    house.say(alice, house.packet("a", "df:later", timeout_ms=300_000))
    house.say(alice, house.packet("b", "df:own", "late", timeout_ms=300_000))
    house.say(alice, house.packet("t", "cf:seq", {"steps": [step("df:work", 1)]}, timeout_ms=300_000))
    house.reload(1)  # alice is no more
    house.pass_time(0.5)
    house.answer(worker)
    house.pass_time(0.5)
    assert len(house.work[worker]) == 1
    assert house.suspended[0].cancelled()
    assert house.runs == []
    assert house.gateway.switch.in_flight == 0


def test_a_workflow_that_was_accepted_finishes_within_the_grace(lingering: Lingering) -> None:
    house = lingering
    link = house.link("bob")
    workflow = step("cf:seq", {"steps": [step("df:later", 1), step("df:own", "second")]})
    house.say(link, house.packet("S", "rm:lock", {"key": "k", "step": workflow}))
    stopping = house.begin_stop()
    house.pass_time(0.2)
    house.say(link, house.packet("N", "df:own", "new"))
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(0.5)
    house.finish_stop(stopping)
    assert house.outcomes("S") == [(link, "second")]
    assert house.outcomes("N") == [(link, "PF503")]
    assert house.runs == ["second"]


def test_timers_and_reactions_set_off_nothing_during_a_drain(lingering: Lingering) -> None:
    house = lingering
    link = house.link("bob")
    house.say(link, house.packet("T", "ed:timer", {"every_ms": 100, "packet": step("df:own", "tick")}))
    house.say(link, house.packet("R", "ed:react", {"event": "e", "packet": step("df:own", "event")}))
    last = [step("df:later", 1), step("ed:signal", {"event": "e"})]
    house.say(link, house.packet("S", "cf:seq", {"steps": last}))
    stopping = house.begin_stop()
    house.pass_time(1)
    house.do(house.suspended[0].set_result, 1)
    house.pass_time(0.5)
    house.finish_stop(stopping)
    assert house.runs == []
    assert house.outcomes("S") == [(link, {"delivered": 0, "refused": 1})]


def test_large_packets_that_are_sent_again_do_not_all_go_at_once(house: House) -> None:
    refusing, link = house.worker("bob", "df:work"), house.link("bob")
    large = "x" * 33_000
    for n in range(300):
        house.links[link].engine.heard(0)
        house.say(link, house.packet(f"p{n}", "df:work", large, metadata={"retry": 1}))
        house.collect()
    assert len(house.work[refusing]) == 300
    others = [house.worker("bob", "df:work") for _ in range(30)]
    refused = {"status": "error", "error": {"code": "PF001", "message": ""}, "duration_ms": 0}
    answers = [
        house.frame("result", {"packet_id": work["payload"]["id"], **refused}, work["seq"])
        for work in house.work[refusing]
    ]
    counts: list[int] = []

    def at_once() -> None:
        house._say(house.links[refusing], tuple(answers))
        members = [house.links[one].engine.member for one in others]
        counts.append(sum(member.outstanding for member in members if member is not None))

    house.do(at_once)
    house.pass_time(1)
    assert 0 < counts[0] < 300
    assert {work["payload"]["id"] for one in others for work in house.work[one]} == {f"p{n}" for n in range(300)}


def test_broadcasts_that_nobody_waits_for_end_with_their_reactor(house: House) -> None:
    worker, link = house.worker("bob", "df:work", window=2000), house.link("bob")
    before = house.held(link)
    for n in range(1300):
        house.links[link].engine.heard(0)
        house.say(link, house.packet(f"p{n}", "co:broadcast", {"packet": step("df:work", 1), "wait": False}))
    engine = house.links[worker].engine
    assert engine.in_flight == 1300
    house.leave(worker)
    house.pass_time(0.1)
    assert engine.in_flight == 0
    assert house.held(link) <= before


# ---------------------------------------------------------------- who has his turn at a reactor


@pytest.mark.parametrize("key", ["df:work", "df:other"])
@pytest.mark.parametrize("links", [1, 20])
def test_nobodys_urgent_packets_keep_anothers_from_a_reactor(house: House, key: str, links: int) -> None:
    worker = house.worker("alice", "df:work", window=1)
    house.heartbeat(worker, ["df:work", "df:other"], window=1)
    strangers = [house.link() for _ in range(links)]
    for n in range(1000):
        house.links[strangers[n % links]].engine.heard(0)
        house.say(strangers[n % links], house.packet(f"loud{n}", "df:work", priority=10))
    victim = house.link("bob")
    house.say(victim, house.packet("quiet", key, priority=1))
    for place in range(links * 8 + 2):
        house.answer(worker, place)
    assert house.outcomes("quiet") or house.work[worker][-1]["payload"]["id"] == "quiet"


def test_of_ones_own_packets_the_most_urgent_goes_first(house: House) -> None:
    worker = house.worker("alice", "df:work", window=1)
    links = [house.link("bob") for _ in range(3)]
    for n in range(30):
        house.say(links[n % 3], house.packet(f"p{n}", "df:work", priority=1 + n % 10))
    for place in range(29):
        house.answer(worker, place)
    priorities = [work["payload"]["priority"] for work in house.work[worker]][1:]
    assert priorities == sorted(priorities, reverse=True)


def test_nobodys_urgent_packets_keep_anothers_from_a_lane(house: House) -> None:
    async def keyed(data: Any) -> Any:
        house.suspended.append(asyncio.get_running_loop().create_future())
        house.runs.append(data)
        return await house.suspended[-1]

    house.register(Handler("cf", "keyed", keyed))
    stranger, victim = house.link(), house.link("bob")
    for n in range(200):
        house.links[stranger].engine.heard(0)
        house.say(stranger, house.packet(f"loud{n}", "cf:keyed", "loud", priority=10, metadata={"key": "k"}))
    house.say(victim, house.packet("quiet", "cf:keyed", "quiet", priority=1, metadata={"key": "k"}))
    for place in range(12):
        house.do(house.suspended[place].set_result, 1)
        house.pass_time(0.01)
    assert "quiet" in house.runs


ALICE_NARROW = Access.of([NARROW, ADMIN], [identity("alice", "narrow"), identity("bob", "admin")], anonymous=ANONYMOUS)
BOB_NARROW = Access.of(
    [USER, Role("collects", submit=("co:*",), handle=("*:*",))],
    [identity("alice", "user"), identity("bob", "collects")],
    anonymous=ANONYMOUS,
)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("how", ["may not", "gone", "submitter may not"])
def test_a_broadcast_goes_to_who_may_have_it_when_it_is_sent(house: House, wait: bool, how: str) -> None:
    workers = [house.worker(name, "cf:work") for name in ("alice", "bob", "alice")]
    link = house.link("bob")
    runtime = house.gateway._elements
    assert runtime is not None
    account = house.links[link].engine.member.account  # type: ignore[union-attr]
    submit_to, sent = runtime.host.submit_to, []

    def first(member: Any, packet: Packet) -> Any:
        """What it sends takes long, and meanwhile the other two may no longer have it, or are gone."""
        sent.append(member)
        if len(sent) == 1:
            runtime.turns.took(account, 0.005)
            mine = [number for number in workers if house.links[number].engine.member is member]
            if how == "gone":
                for number in set(workers) - set(mine):
                    house.loop.call_soon(house._lose, house.links[number])
            else:
                access = ALICE_NARROW if how == "may not" else BOB_NARROW
                house.loop.call_soon(house.gateway.set_access, access)
        return submit_to(member, packet)

    with mock.patch.object(runtime.host, "submit_to", first):
        house.say(link, house.packet("B", "co:broadcast", {"packet": step("cf:work"), "wait": wait}))
        house.pass_time(1)
    got = [number for number in workers if house.work.get(number)]
    for number in got:
        (work,) = house.work[number]
        result = {"packet_id": work["payload"]["id"], "status": "success", "data": 1, "duration_ms": 0}
        house.say(number, house.frame("result", result, work["seq"]))
    house.pass_time(1)
    names = [member.principal.name for member in sent]
    if how == "submitter may not":
        assert len(sent) == 1
        assert house.outcomes("B") == [(link, "PF403")]
        return
    # whoever was first, then bob alone, if he was not
    assert names == (["alice", "bob"] if how == "may not" and names[0] == "alice" else [names[0]])
    told = house.outcomes("B")[0][1]
    assert (told["delivered"], len(told["results"])) == (len(sent), len(sent) if wait else 0)


@pytest.mark.parametrize("key", ["df:work", "df:later"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_two_links_sent_ends_when_neither_wants_it(house: House, key: str, first: int) -> None:
    house.worker("bob", "df:work")
    for leaves in (True, False):
        links = [house.link("bob"), house.link("bob")]
        packet = house.packet(f"P{leaves}", key, timeout_ms=300_000)
        for link in links:
            house.say(link, packet)
        house.leave(links[first])
        assert house.gateway.switch.in_flight == 1
        if leaves:
            house.leave(links[1 - first])
        else:
            house.say(links[1 - first], house.cancel(f"P{leaves}"))
        house.pass_time(0.1)
        assert house.gateway.switch.in_flight == 0
    assert all(future.cancelled() for future in house.suspended)


def test_what_was_lost_and_then_cancelled_does_not_begin_again(house: House) -> None:
    link, first = house.link("bob"), house.worker("bob", "df:work")
    packet = house.packet("P", "df:work", metadata={"retry": 3}, timeout_ms=60_000)
    house.say(link, packet)
    house.leave(first)
    house.say(link, house.cancel("P"))
    second = house.worker("bob", "df:work")
    house.say(link, packet)
    house.pass_time(0.1)
    assert house.work[second] == []
    assert house.outcomes("P") == [(link, "PF499")]


# ---------------------------------------------------------------- who was asked, and may be asked again


@pytest.mark.parametrize("waits", [False, True])
def test_who_was_busy_is_asked_again_when_nobody_else_is_left(house: House, waits: bool) -> None:
    link = house.link("bob")
    first = house.worker("bob", "df:work")
    house.say(link, house.packet("P", "df:work", metadata={"retry": 10}, timeout_ms=60_000))
    second = house.worker("bob", "df:work", window=1)
    if waits:
        house.say(link, *[house.packet(f"x{n}", "df:work") for n in range(3)])
    house.links[first].engine.heard(0)
    house.answer(first, code="PF503")
    house.failures.clear()  # it says that what it was given never began
    house.leave(second)
    house.pass_time(1)
    assert house.outcomes("P") == []
    assert [work["payload"]["id"] for work in house.work[first]].count("P") == 2


def test_who_takes_a_handler_back_and_has_it_again_gets_what_waited(house: House) -> None:
    link, alice = house.link("bob"), house.link("alice")
    worker = house.worker("bob", "df:work", window=1)
    house.say(link, house.packet("P", "df:work", metadata={"retry": 10}, timeout_ms=300_000))
    house.pass_time(11)
    house.heartbeat(worker, [], window=1)
    house.answer(worker, code="PF001")
    for n in range(3):
        house.say(alice, house.packet(f"a{n}", "df:work", metadata={"retry": 10}))
    house.heartbeat(worker, ["df:work"], window=1)
    for place in range(1, 5):
        house.answer(worker, place)
    assert {work["payload"]["id"] for work in house.work[worker]} == {"P", "a0", "a1", "a2"}
    assert house.gateway.switch.in_flight == 0


def test_what_was_moved_from_a_reactor_keeps_nobody_from_the_other(house: House) -> None:
    link, alice = house.link("bob"), house.link("alice")
    first = house.worker("bob", "df:work", window=1)
    house.say(link, house.packet("P", "df:work", metadata={"retry": 10}, timeout_ms=300_000, priority=10))
    second = house.worker("bob", "df:work", window=1)
    house.say(link, house.packet("x", "df:work", timeout_ms=300_000))
    house.answer(first, code="PF429")
    house.failures.clear()
    house.do(house.gateway.switch.migrate, house.links[second].engine.member, None, clock.now())
    for n in range(2):
        house.say(alice, house.packet(f"a{n}", "df:work"))
    for place in range(1, 4):
        house.answer(first, place)
    assert sorted(work["payload"]["id"] for work in house.work[first][1:]) == ["P", "a0", "a1"]
    house.failures.clear()
