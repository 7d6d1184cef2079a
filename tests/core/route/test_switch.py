"""The switch in simulated time, without sockets: whatever happens, every submit ends once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packetflow.conformance.wire import messages
from pfcore.audit import audit
from pfcore.link.engine import Engine
from pfcore.memory import clock
from pfcore.memory.budget import Account
from pfcore.route.flights import Principal
from pfcore.route.switch import Switch
from pfcore.simulate import advance, receive_message, take_output
from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler
from tests.scripts import KNOWN
from tests.simulated import SimulatedLoop, simulated_time

MS = 1_000_000
SECOND = 1000 * MS
ALL = (1 << 64) - 1


class Simulation:
    """A switch and links that come, speak and go; `answers` has what each link was told, by seq.

    `loop`: one in simulated time, for handlers that suspend; without it only plain functions run.
    """

    def __init__(self, loop: SimulatedLoop | None = None) -> None:
        self.now = 1000 * SECOND
        self.loop = loop
        self.suspended: list[asyncio.Future[Any]] = []
        self.dispatcher = Dispatcher(concurrency=3, max_queue=4)
        self.dispatcher.register(Handler("df", "own", lambda data: data))
        self.dispatcher.register(Handler("df", "fails", lambda data: 1 / 0))
        if loop is not None:
            for group in ("df", "cf", "mc"):
                self.dispatcher.register(Handler(group, "later", self.later))
            self.dispatcher.register(Handler("co", "later", self.later, unbounded=True))
        self.dispatcher.start(loop)
        self.switch = Switch(self.dispatcher, lambda key: (ALL, ALL, ALL), aliases={"df:tr": "df:transform"})
        self.switch.start(0)
        self.switch.handlers_changed()
        self.links: dict[int, Engine] = {}
        self.asked: dict[int, set[int]] = {}
        self.answers: dict[int, list[dict[str, Any]]] = {}
        self.work: dict[int, list[dict[str, Any]]] = {}
        self.count = 0
        self.inner: list[Engine] = []
        if loop is not None:
            inner = Engine(client=False, sink=self.switch)
            self.switch.admit(inner, Principal("gateway", 1, 63), ())
            inner.connected(self.now)
            self.switch.join(inner)
            self.switch.set_inner(inner)
            self.inner.append(inner)

    async def later(self, data: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.suspended.append(future)
        return await future

    def resume(self, place: int, how: str) -> None:
        """A suspended handler returns, raises, or is cancelled from within."""
        future = self.suspended.pop(place % len(self.suspended))
        if future.done():
            return
        if how == "return":
            future.set_result("done")
        elif how == "raise":
            future.set_exception(KeyError("late"))
        else:
            future.cancel()
        self.run(lambda: None)
        self.collect()

    def run(self, function: Callable[[], Any]) -> None:
        """Calls it, inside the loop where there is one, and runs what follows from it."""
        if self.loop is None:
            function()
            return
        raised: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 - it is raised below
                raised.append(error)

        self.loop.call_soon(call)
        self.loop.settle()
        if raised:
            raise raised[0]

    def audit(self, *, at_rest: bool = False) -> None:
        tasks = asyncio.all_tasks(self.loop) if self.loop is not None else ()
        assert audit(self.switch, tasks=tasks, at_rest=at_rest) == []

    def join(
        self,
        handles: list[str] | None = None,
        principal: int = 2,
        window: int = 4096,
        anonymous: tuple[Account, Account] | None = None,
    ) -> int:
        """`anonymous`: what pays for the link, and for what outlives it; then it is nobody's."""
        self.count += 1
        engine = Engine(client=False, sink=self.switch, on_heartbeat=self.switch.update, window=window)
        if anonymous is None:
            self.switch.admit(engine, Principal(f"p{principal}", principal, 1), handles)
        else:
            self.switch.admit(engine, Principal("anonymous", 0, 0, stored=anonymous[1]), handles, anonymous[0])
        engine.connected(self.now)
        self.switch.join(engine)
        self.links[self.count] = engine
        self.asked[self.count], self.answers[self.count], self.work[self.count] = set(), [], []
        self.collect()
        return self.count

    def leave(self, link: int) -> None:
        engine = self.links.pop(link)

        def gone() -> None:
            engine.disconnected("gone", self.now)
            self.switch.leave(engine, self.now)
            engine.close("PF502", "gone")

        self.run(gone)
        self.collect()

    def tell(self, link: int, message: dict[str, Any] | bytes) -> None:
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.run(lambda: receive_message(self.links[link], payload, self.now))
        self.collect()

    def collect(self) -> None:
        for link, engine in self.links.items():
            for message in messages(take_output(engine)):
                if message["type"] == "submit":
                    self.work[link].append(message)
                elif message["type"] == "result":
                    self.answers[link].append(message)
                elif message["type"] == "error" and message["payload"].get("code") == "PF499":
                    self.work[link] = [one for one in self.work[link] if one["seq"] != message["seq"]]

    def submit(self, link: int, packet_id: str, element: str = "work", **fields: Any) -> int:
        seq = len(self.asked[link]) + 1
        self.asked[link].add(seq)
        group, _, element = ("df:" + element).rpartition(":")
        group = group[-2:]
        packet = {"version": "1.0", "id": packet_id, "group": group, "element": element, "data": 1, "priority": 5}
        self.tell(link, {"type": "submit", "seq": seq, "payload": packet | fields})
        return seq

    def answer(self, link: int, message: dict[str, Any], code: str | None = None, seq: int | None = None) -> None:
        payload: dict[str, Any] = {"packet_id": message["payload"]["id"], "duration_ms": 0}
        payload |= {"status": "success", "data": "done"} if code is None else {
            "status": "error", "error": {"code": code, "message": "no"}}  # fmt: skip
        self.tell(link, {"type": "result", "seq": message["seq"] if seq is None else seq, "payload": payload})

    def pass_time(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        if self.loop is not None:
            clock.simulate(self.now)

        def due() -> None:
            for engine in (*self.links.values(), *self.inner):
                engine.heard(self.now)
                advance(engine, self.now)
            self.switch.advance(self.now)

        self.run(due)
        self.collect()


def test_a_flight_goes_there_and_back() -> None:
    sim = Simulation()
    client, worker = sim.join(), sim.join(["df:work"])
    sim.submit(client, "a")
    (message,) = sim.work[worker]
    sim.answer(worker, message)
    (answer,) = sim.answers[client]
    assert (answer["seq"], answer["payload"]["packet_id"], answer["payload"]["data"]) == (1, "a", "done")
    assert sim.switch.in_flight == 0


def test_what_waited_is_handed_on_with_the_time_that_is_left() -> None:
    sim = Simulation()
    client, worker = sim.join(), sim.join(["df:work"])
    sim.tell(worker, {"type": "heartbeat", "seq": 1, "payload": {"window": 1, "capabilities": ["df:work"]}})
    sim.submit(client, "a", timeout_ms=10_000)
    sim.submit(client, "b", timeout_ms=10_000)
    first = sim.work[worker].pop()
    sim.pass_time(4)
    sim.answer(worker, first)
    (second,) = sim.work[worker]
    assert second["payload"]["timeout_ms"] == 6000


def test_a_flights_deadline_is_kept_and_its_late_answer_dropped() -> None:
    sim = Simulation()
    client, worker = sim.join(), sim.join(["df:work"])
    sim.submit(client, "a", timeout_ms=1000)
    (message,) = sim.work[worker]
    sim.pass_time(1.1)
    (answer,) = sim.answers[client]
    assert answer["payload"]["error"]["code"] == "PF408"
    sim.answer(worker, message)
    assert len(sim.answers[client]) == 1
    assert sim.switch.late == 1


IDS = st.sampled_from([f"id{n}" for n in range(12)])
STEP = st.one_of(
    st.tuples(st.just("join"), st.sampled_from([None, ["df:work"], ["df:work", "df:transform"], []])),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(
        st.just("submit"), st.integers(0, 9), IDS, st.sampled_from(["work", "own", "fails", "tr", "none", "later", "cf:later", "mc:later", "co:later"]),
        st.sampled_from([None, {"retry": 2}, {"retry": True}]), st.lists(IDS, max_size=2),
        st.sampled_from([None, 50, 5000]), st.integers(1, 10), st.integers(1, 3),
    ),
    st.tuples(st.just("answer"), st.integers(0, 9), st.integers(0, 9),
              st.sampled_from([None, None, "PF001", "PF429", "PF500", "PF503"]), st.sampled_from([None, 0, 7])),
    st.tuples(st.just("cancel"), st.integers(0, 9), IDS),
    st.tuples(st.just("window"), st.integers(0, 9), st.integers(1, 3)),
    st.tuples(st.just("time"), st.sampled_from([0.01, 0.2, 6.0])),
    st.tuples(st.just("drain"), st.integers(0, 9)),
    st.tuples(st.just("resume"), st.integers(0, 9), st.sampled_from(["return", "raise", "cancel"])),
)  # fmt: skip


@contextlib.contextmanager
def with_a_loop() -> Iterator[Simulation]:
    """A simulation whose handlers may suspend."""
    loop = SimulatedLoop()
    with simulated_time(stride=0):
        try:
            yield Simulation(loop)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.settle()
            loop.close()


def play(steps: list[tuple[Any, ...]]) -> None:
    """Runs a script; in the end every submit of a link that stayed has its one answer, or was cancelled."""
    with with_a_loop() as sim:
        play_in(sim, steps)


def play_in(sim: Simulation, steps: list[tuple[Any, ...]]) -> None:
    excused: dict[int, set[int]] = {}
    sim.join()
    sim.join(["df:work"])
    for step in steps:
        sim.audit()
        kind, *rest = step
        links = sorted(sim.links)
        link = links[rest[0] % len(links)] if links and isinstance(rest[0], int) else None
        if kind == "join":
            sim.join(rest[0], principal=2 + sim.count % 2)
        elif kind == "time":
            sim.pass_time(rest[0])
        elif kind == "resume":
            if sim.suspended:
                sim.resume(rest[0], rest[1])
        elif link is None:
            continue
        elif kind == "leave":
            sim.leave(link)
        elif kind == "submit":
            _, packet_id, element, metadata, needs, timeout, priority, data = rest
            if "later" in element and "two principals" in KNOWN:
                packet_id += sim.links[link].member.principal.name
            sim.submit(link, packet_id, element, metadata=metadata, dependencies=needs, timeout_ms=timeout,
                       priority=priority, data=data)  # fmt: skip
        elif kind == "answer" and sim.work[link]:
            _, place, code, seq = rest
            sim.answer(link, sim.work[link].pop(place % len(sim.work[link])), code, seq)
        elif kind == "cancel":
            answered = {one["seq"] for one in sim.answers[link]}
            excused.setdefault(link, set()).update(sim.asked[link] - answered)
            sim.tell(link, {"type": "error", "seq": 1, "payload": {"code": "PF499", "packet_id": rest[1]}})
        elif kind == "window":
            payload = {"window": rest[1], "capabilities": ["df:work"], "ext": ["cancel"]}
            sim.tell(link, {"type": "heartbeat", "seq": 1, "payload": payload})
        elif kind == "drain":
            sim.switch.drain_member(next(m for m in sim.switch.links if m.engine is sim.links[link]))
    for _ in range(4):
        sim.pass_time(40)
        sim.audit()
    sim.audit(at_rest=True)
    assert sim.switch.in_flight == 0
    assert sim.switch.queued == 0
    assert all(member.outstanding == 0 and member.submitted == 0 for member in sim.switch.links)
    assert all(route.in_flight == 0 for route in sim.switch.elements.values())
    for link in sim.links:
        seqs = [one["seq"] for one in sim.answers[link]]
        assert len(seqs) == len(set(seqs)), "answered twice"
        assert set(seqs) <= sim.asked[link]
        assert sim.asked[link] - set(seqs) <= excused.get(link, set()), "never answered"


@given(st.lists(STEP, max_size=60))
@settings(max_examples=300)
def test_every_submit_ends_once_whatever_comes_and_goes(steps: list[tuple[Any, ...]]) -> None:
    play(steps)


def test_many_submits_at_once_are_counted_all_or_not_at_all() -> None:
    second = 1_000_000_000
    principal = Principal("user", 2, 1, rate=10, burst=20)
    now = 100 * second
    assert principal.spend_many(15, now)
    assert not principal.spend_many(6, now)
    assert principal.spend_many(5, now), "nothing was counted for those that were refused"
    # more than ever are there at once: allowed with all that there is, and owed
    assert not principal.spend_many(50, now + second)
    assert principal.spend_many(50, now + 2 * second)
    assert not principal.spend_many(1, now + 5 * second)
    assert principal.spend_many(1, now + 5 * second + second // 5)
    assert Principal("free", 3, 1).spend_many(1_000_000, now)


@pytest.mark.parametrize("code", [[], {}, 7, True, "X" * 65], ids=repr)
def test_an_answer_whose_code_is_none_ends_its_packet_and_its_deadline(code: Any) -> None:
    """It was taken out of the table before it was read, and what raised then left the deadline to crash on."""
    sim = Simulation()
    client, worker = sim.join(), sim.join(["df:work"])
    sim.submit(client, "a", timeout_ms=1000)
    (message,) = sim.work[worker]
    sim.tell(worker, {"type": "result", "seq": message["seq"], "payload": {
        "packet_id": "a", "status": "error", "duration_ms": 0, "error": {"code": code, "message": "no"}}})  # fmt: skip
    assert sim.answers[client][0]["payload"]["error"]["code"] == "PF502"
    sim.pass_time(5)
    assert len(sim.answers[client]) == 1
    sim.audit(at_rest=True)


@pytest.mark.parametrize("ends", ["leave", "deadline", "cancel"])
def test_a_hundred_thousand_needs_are_let_go_of_over_time(ends: str) -> None:
    sim = Simulation()
    client, other = sim.join(window=4096), sim.join()
    awaited = [f"never-{n}" for n in range(64)]
    for n in range(300):
        sim.submit(client, f"p{n}", dependencies=awaited, timeout_ms=10_000)
    sim.submit(other, "same", dependencies=awaited[:3], timeout_ms=60_000)
    sim.audit()
    if ends == "leave":
        sim.leave(client)
    elif ends == "cancel":
        for n in range(300):
            sim.tell(client, {"type": "error", "seq": n + 1, "payload": {
                "code": "PF499", "message": "", "packet_id": f"p{n}"}})  # fmt: skip
    sim.audit()  # some still stand on the lists, and the switch is to be called again
    for n in range(3):  # whose flights are those of packets that have ended
        sim.submit(other, f"again-{n}", dependencies=[awaited[n], awaited[63 - n]], timeout_ms=60_000)
    sim.audit()
    for _ in range(60):
        sim.pass_time(0.2)
        sim.audit()
    assert sim.switch.in_flight == 4
    for n in range(64):
        sim.tell(other, {"type": "submit", "seq": 1000 + n, "payload": {
            "version": "1.0", "id": f"never-{n}", "group": "df", "element": "own", "data": 1, "priority": 5}})  # fmt: skip
    sim.pass_time(1)
    # nobody handles them, which is found out once they need wait no longer
    ended = {answer["payload"]["packet_id"]: answer["payload"] for answer in sim.answers[other]}
    assert [ended[name]["error"]["code"] for name in ("same", "again-0", "again-1", "again-2")] == ["PF001"] * 4
    sim.audit(at_rest=True)


def test_the_busiest_elements_are_told_by_what_has_ended() -> None:
    sim = Simulation()
    client = sim.join()
    worker = sim.join([f"df:w{n}" for n in range(20)])
    for n in range(20):
        for turn in range(n):
            sim.submit(client, f"{n}-{turn}", f"w{n}")
            sim.answer(worker, sim.work[worker].pop())
    assert [key for key, _ in sim.switch.busiest(3)] == ["df:w17", "df:w18", "df:w19"]
    assert len(sim.switch.busiest(100)) == len(sim.switch.elements)


def test_one_that_says_nothing_is_asked_and_gets_no_packets() -> None:
    sim = Simulation()
    client, silent = sim.join(["df:nothing"]), sim.join()
    sim.pass_time(0.1)
    (question,) = sim.work[silent]
    assert (question["payload"]["group"], question["payload"]["element"]) == ("df", "packetflow.anyone")
    sim.submit(client, "early", timeout_ms=5000)
    assert sim.work[silent] == [question]
    sim.pass_time(2)
    assert [answer["payload"]["error"]["code"] for answer in sim.answers[client]] == ["PF001"]
    assert sim.work[silent] == [question]


def test_one_that_has_said_nothing_is_given_nothing_that_waits() -> None:
    """Where another that announces nothing has no room, one that has just come is no place for what waits."""
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join()
    sim.switch.set_window(sim.switch.links[-1], 1)
    sim.pass_time(0.1)
    sim.answer(worker, sim.work[worker].pop(), "PF001")
    sim.submit(client, "a")
    sim.submit(client, "b")
    assert len(sim.work[worker]) == 1
    silent = sim.join()
    sim.switch.set_window(sim.switch.links[-1], 1)
    assert sim.work[silent] == []
    sim.pass_time(0.1)
    assert [message["payload"]["element"] for message in sim.work[silent]] == ["packetflow.anyone"]
    sim.audit()


def test_one_that_answers_the_question_is_tried() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join()
    sim.pass_time(0.1)
    sim.submit(client, "a")
    sim.answer(worker, sim.work[worker].pop(), "PF001")
    sim.pass_time(0)
    (message,) = sim.work[worker]
    sim.answer(worker, message)
    assert sim.answers[client][0]["payload"]["data"] == "done"
    sim.audit()


def test_deadlines_that_are_due_at_once_are_all_kept() -> None:
    """So many in one look; the switch is to be called again for the others."""
    sim = Simulation()
    client, _ = sim.join(), sim.join(["df:work"], window=4096)
    for n in range(1000):
        sim.submit(client, f"p{n}", timeout_ms=1000)
    sim.pass_time(1.1)
    assert 0 < len(sim.answers[client]) < 1000
    for _ in range(10):
        sim.pass_time(0)
    assert sorted(answer["seq"] for answer in sim.answers[client]) == list(range(1, 1001))
    assert {answer["payload"]["error"]["code"] for answer in sim.answers[client]} == {"PF408"}


def test_one_that_is_asked_again_while_the_first_question_ends() -> None:
    sim = Simulation()
    client, late = sim.join(["df:nothing"]), sim.join()
    sim.pass_time(0.1)
    sim.pass_time(1.8)
    sim.tell(late, {"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1}})
    assert len(sim.work[late]) == 2
    sim.pass_time(0.3)  # the first is over, the second is not
    sim.audit()
    sim.answer(late, sim.work[late][1], "PF001")
    sim.submit(client, "a")
    assert sim.work[late][-1]["payload"]["element"] == "work"


def test_a_link_with_many_packets_ends_in_slices_and_none_is_left() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join(["df:work"])
    other = sim.join(["df:nothing"])
    for n in range(60):
        sim.submit(client, f"mine-{n}", timeout_ms=60_000)
        sim.submit(other, f"others-{n}", timeout_ms=60_000)
    sim.switch.leave_at_once = 20
    sim.leave(client)
    sim.leave(worker)
    assert sim.switch.in_flight > 0
    sim.audit()
    for _ in range(20):
        sim.pass_time(0)
        sim.audit()
    assert sim.switch.in_flight == 0
    assert {answer["payload"]["error"]["code"] for answer in sim.answers[other]} == {"PF502"}
    assert len(sim.answers[other]) == 60


def test_packets_that_waited_for_an_answer_are_tried_so_many_at_a_time() -> None:
    sim = Simulation()
    client, asked = sim.join(["df:nothing"]), sim.join()
    sim.pass_time(0.1)
    (question,) = sim.work[asked]
    for n in range(200):
        sim.submit(client, f"p{n}", timeout_ms=20_000)
    assert sim.work[asked] == [question]
    sim.answer(asked, question, "PF001")
    sim.pass_time(0)
    assert 0 < len(sim.work[asked]) - 1 < 200 - 1
    sim.audit()
    for _ in range(10):
        sim.pass_time(0)
        sim.audit()
    assert len(sim.work[asked]) == 201  # within the window


def test_a_link_whose_packets_many_wait_for_ends_in_slices() -> None:
    """What waits for a packet is looked at when it ends: that counts, too."""
    sim = Simulation()
    client, _ = sim.join(["df:nothing"]), sim.join(["df:work"])
    for n in range(2000):
        sim.submit(client, f"p{n}", timeout_ms=60_000, dependencies=[f"p{n + k}" for k in range(1, 33)])
    assert sim.switch.in_flight == 2000
    sim.leave(client)
    sim.pass_time(0)
    assert sim.switch.in_flight > 1000
    sim.audit()
    for _ in range(60):
        sim.pass_time(0)
    sim.audit(at_rest=True)
    assert sim.switch.in_flight == 0


@pytest.mark.parametrize("waiting", range(64))
def test_a_link_may_end_with_any_number_of_packets_behind_its_own(waiting: int) -> None:
    """What is left of an iteration's share is a number, and no number of dependents makes it look like an error."""
    sim = Simulation()
    client, _ = sim.join(["df:nothing"]), sim.join(["df:work"])
    other = sim.join(["df:nothing"])
    sim.switch.leave_at_once = 5
    for n in range(9):
        sim.submit(client, f"p{n}", timeout_ms=60_000)
    for n in range(waiting):
        sim.submit(other, f"q{n}", timeout_ms=60_000, dependencies=[f"p{n % 9}"])
    sim.leave(client)
    for _ in range(60):
        sim.pass_time(0)
        sim.audit()
    assert len(sim.answers[other]) == waiting
    sim.audit(at_rest=True)


@pytest.mark.parametrize("room", [True, False])
def test_what_outlives_an_anonymous_link_counts_against_all_of_them(room: bool) -> None:
    sim = Simulation()
    stored = Account("anonymous", 1_000_000 if room else 100)
    own = Account("a link", 1_000_000)
    client = sim.join(["df:nothing"], anonymous=(own, stored))
    worker = sim.join(["df:work"])
    sim.submit(client, "kept", metadata={"retry": 2}, timeout_ms=20_000)
    sim.submit(client, "plain", timeout_ms=20_000)
    assert own.held > 0
    assert stored.held == 0
    sim.leave(client)
    assert own.held == 0
    assert sim.switch.in_flight == room
    assert (stored.held > 0) == room
    for message in sim.work[worker]:
        sim.answer(worker, message)
    sim.audit(at_rest=True)
    assert stored.held == 0


def test_what_waited_does_not_begin_once_its_account_holds_too_much() -> None:
    with with_a_loop() as sim:
        own = Account("a link", 100_000)
        client = sim.join(["df:nothing"], anonymous=(own, Account("anonymous", 1_000_000)))
        announced = own.held
        for n in range(4):
            sim.submit(client, f"p{n}", element="later")
        assert (len(sim.suspended), sim.dispatcher.queued) == (3, 1)
        own.insist(100_000)
        sim.resume(0, "return")
        refused = [answer for answer in sim.answers[client] if answer["payload"]["status"] == "error"]
        assert [answer["payload"]["error"]["code"] for answer in refused] == ["PF429"]
        own.release(100_000)
        while sim.suspended:
            sim.resume(0, "return")
        sim.audit(at_rest=True)
        assert own.held == announced


def test_elements_that_end_with_their_reactor_are_not_known_for_good() -> None:
    """Packets for them were under way when it went: what is kept of an element goes with its last packet."""
    sim = Simulation()
    client = sim.join(["df:nothing"])
    before = len(sim.switch.elements)
    for turn in range(3):
        names = [f"e{turn}.{n}" for n in range(1000)]
        worker = sim.join([f"df:{name}" for name in names])
        for name in names:
            sim.submit(client, f"p{name}", element=name, timeout_ms=20_000)
        sim.leave(worker)
        for _ in range(20):
            sim.pass_time(0)
    for _ in range(60):
        sim.pass_time(0.5)
    assert len(sim.answers[client]) == 3000
    assert len(sim.switch.elements) - before <= 1024  # those that are kept for their history
    sim.audit(at_rest=True)


def _keyed(sim: Simulation, client: int, workers: list[int], key: str, name: str = "key") -> int:
    """Which worker gets a packet with this key, as JSON."""
    before = {worker: len(sim.work[worker]) for worker in workers}
    seq = len(sim.asked[client]) + 1
    sim.asked[client].add(seq)
    sim.tell(client, (f'{{"type":"submit","seq":{seq},"payload":{{"version":"1.0","id":"k{seq}","group":"df",'
                      f'"element":"work","data":1,"priority":5,"metadata":{{"{name}":{key}}}}}}}').encode())  # fmt: skip
    (chosen,) = [worker for worker in workers if len(sim.work[worker]) > before[worker]]
    return chosen


def test_equal_keys_lead_to_one_reactor_however_they_are_written() -> None:
    sim = Simulation()
    sim.switch.set_policy("df", "keyed")
    client, workers = sim.join(["df:nothing"]), [sim.join(["df:work"]) for _ in range(8)]
    for n in range(20):
        for one, other in [
            (f'"k{n}\u00e9"', f'"k{n}\\u00e9"'),
            (f"{n}", f"{n}.0"),
            (f'[{n}, {{"a": {n}.0}}]', f'[{n}.0,{{"a":{n}}}]'),
            (f'{{"a":{n},"b":[true]}}', f'{{"b": [true], "a": {n}.0}}'),
        ]:
            assert _keyed(sim, client, workers, one) == _keyed(sim, client, workers, other), (one, other)
        assert _keyed(sim, client, workers, one) == _keyed(sim, client, workers, one, r"k\u0065\u0079")
    assert len({_keyed(sim, client, workers, f"[{n}]") for n in range(60)}) > 4


def test_the_fastest_is_who_answered_in_the_least_time_and_has_room() -> None:
    sim = Simulation()
    sim.switch.set_policy("df", "fastest")
    client, slow, fast = sim.join(["df:nothing"]), sim.join(["df:work"]), sim.join(["df:work"])
    took = {slow: 0.3, fast: 0.1}
    for n in range(60):  # until both have answered some
        sim.submit(client, f"p{n}")
        (worker,) = [one for one in took if sim.work[one]]
        sim.pass_time(took[worker])
        sim.answer(worker, sim.work[worker].pop())
    sim.tell(fast, {"type": "heartbeat", "seq": 1, "payload": {"window": 2, "capabilities": ["df:work"]}})
    for n in range(3):
        sim.submit(client, f"q{n}")
    assert (len(sim.work[fast]), len(sim.work[slow])) == (2, 1)


def test_settings_that_cannot_be_are_refused() -> None:
    for setting in ({"max_routes": 0}, {"max_queue": 0}):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            Switch(Dispatcher(), lambda key: (ALL, ALL, ALL), **setting)


def test_a_log_that_fails_is_nobodys_fault() -> None:
    told = []

    def listener(code: str, *rest: Any) -> None:
        told.append(code)
        raise OSError("no space left")

    sim = Simulation()
    sim.switch = Switch(sim.dispatcher, lambda key: (ALL, ALL, ALL), on_failure=listener)
    sim.switch.start(0)
    sim.switch.handlers_changed()
    client, _ = sim.join(["df:nothing"]), sim.join(["df:work"])
    for n in range(3):
        sim.submit(client, f"p{n}", timeout_ms=100)
    sim.pass_time(1)
    sim.pass_time(1)
    assert [answer["payload"]["error"]["code"] for answer in sim.answers[client]] == ["PF408"] * 3
    assert told == ["PF408"] * 3


def test_what_is_kept_to_be_used_again_may_be_given_up_at_any_time() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join(["df:work"])
    sim.submit(client, "a", metadata={"retry": 2}, data="x" * 100_000)
    assert sim.switch.held > 100_000
    assert sim.switch.leave_at_once == 512
    sim.switch.let_go()
    (message,) = sim.work[worker]
    sim.answer(worker, message)
    assert sim.switch.held == 0
    sim.audit()


def test_an_error_with_more_details_than_go_on_loses_them_and_says_so() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join(["df:work"])
    for n, error in enumerate([{"code": "MINE", "message": "no", "details": {"x": "y" * 70_000}}, {"x": "y" * 70_000}]):
        sim.submit(client, f"p{n}")
        message = sim.work[worker].pop()
        payload = {"packet_id": f"p{n}", "status": "error", "error": error, "duration_ms": 0}
        sim.tell(worker, {"type": "result", "seq": message["seq"], "payload": payload})
    told = [answer["payload"]["error"] for answer in sim.answers[client]]
    assert [one["code"] for one in told] == ["MINE", "PF500"]
    assert told[0]["message"].startswith("no (details left out: an error of 70")
    assert all("details" not in one and "x" not in one for one in told)


def test_an_element_that_is_forgotten_makes_room_for_another_and_none_is_made_beyond_the_most() -> None:
    sim = Simulation()
    sim.switch = Switch(sim.dispatcher, lambda key: (ALL, ALL, ALL), max_routes=4)
    sim.switch.start(0)
    sim.switch.handlers_changed()
    client = sim.join(["df:nothing"])
    sim.join(["df:work"])  # own, fails, nothing and work are all that may be
    for n in range(3):
        sim.submit(client, f"p{n}", f"none{n}")
    assert {answer["payload"]["error"]["code"] for answer in sim.answers[client]} <= {"PF001", "PF429"}
    assert len(sim.answers[client]) == 3
    assert len(sim.switch.elements) <= 4
    assert sim.switch.reactors_for("df:another") == []
    sim.audit()


def test_so_many_submits_of_one_packet_wait_for_its_answer() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), sim.join(["df:work"])
    for _ in range(200):
        sim.submit(client, "a")
    (message,) = sim.work[worker]
    refused = len(sim.answers[client])
    assert 0 < refused < 199
    assert {answer["payload"]["error"]["code"] for answer in sim.answers[client]} == {"PF409"}
    sim.answer(worker, message)
    assert len(sim.answers[client]) == 200
    sim.audit(at_rest=True)


def test_a_packet_that_a_stranger_did_not_know_goes_on_under_the_full_name() -> None:
    sim = Simulation()
    client, stranger = sim.join(["df:nothing"]), sim.join()
    sim.pass_time(0.1)
    (question,) = sim.work[stranger]
    sim.answer(stranger, question, "PF001")
    sim.pass_time(0)
    worker = sim.join(["df:transform"])
    sim.submit(client, "a", "tr", data="x" * 100)
    message = sim.work[stranger][-1]
    assert message["payload"]["element"] == "tr"
    sim.answer(stranger, message, "PF001")
    sim.pass_time(0)
    (message,) = sim.work[worker]
    assert (message["payload"]["element"], message["payload"]["data"]) == ("transform", "x" * 100)
    sim.audit()
    sim.answer(worker, message)
    assert [answer["payload"]["data"] for answer in sim.answers[client]] == ["done"]
    assert sim.switch.held == 0
    sim.audit(at_rest=True)


def _small(sim: Simulation, handles: list[str]) -> int:
    """A link whose output nobody takes, and little of it fits."""
    link = sim.join(handles)
    engine = Engine(client=False, sink=sim.switch, on_heartbeat=sim.switch.update, max_frame=1024, max_buffer=8192)
    sim.switch.admit(engine, Principal("small", 5, 1), handles)
    engine.connected(sim.now)
    sim.switch.join(engine)
    sim.leave(link)
    sim.links[link] = engine
    sim.asked[link], sim.answers[link], sim.work[link] = set(), [], []
    return link


def test_a_reactor_that_reads_nothing_ends_and_its_packets_find_another() -> None:
    sim = Simulation()
    client, worker = sim.join(["df:nothing"]), _small(sim, ["df:work"])
    engine = sim.links.pop(worker)  # nothing of it is collected
    for n in range(40):
        sim.submit(client, f"p{n}", data="x" * 500, metadata={"retry": 3}, timeout_ms=60_000)
    assert engine.fatal == 1008
    other = sim.join(["df:work"])
    sim.links[worker] = engine
    sim.leave(worker)
    for _ in range(60):
        sim.pass_time(0.1)
        for message in sim.work[other]:
            sim.answer(other, message)
        sim.work[other].clear()
    assert sum(answer["payload"]["status"] == "success" for answer in sim.answers[client]) == 40
    sim.audit(at_rest=True)


def test_a_client_that_reads_no_answers_ends() -> None:
    sim = Simulation()
    client, worker = _small(sim, ["df:nothing"]), sim.join(["df:work"])
    for n in range(40):
        sim.submit(client, f"p{n}", data="x" * 500)
    engine = sim.links.pop(client)
    for message in sim.work[worker]:
        payload = {"packet_id": message["payload"]["id"], "status": "success", "data": "y" * 500, "duration_ms": 0}
        sim.tell(worker, {"type": "result", "seq": message["seq"], "payload": payload})
    assert engine.fatal == 1008
    sim.links[client] = engine
    sim.leave(client)
    sim.audit(at_rest=True)


@pytest.mark.parametrize("room", [True, False])
def test_what_waits_here_outlives_an_anonymous_link_at_the_cost_of_all_of_them(room: bool) -> None:
    with with_a_loop() as sim:
        stored = Account("anonymous", 1_000_000 if room else 100)
        client = sim.join(["df:nothing"], anonymous=(Account("a link", 1_000_000), stored))
        for n in range(5):
            sim.submit(client, f"p{n}", element="later", metadata={"retry": 1}, timeout_ms=60_000)
        assert (len(sim.suspended), sim.dispatcher.queued) == (3, 2)
        sim.leave(client)
        sim.audit()
        assert (stored.held > 0) == room
        while sim.suspended:
            sim.resume(0, "return")
        sim.audit(at_rest=True)
        assert stored.held == 0


def test_what_may_not_wait_here_is_refused_before_it_has_begun() -> None:
    with with_a_loop() as sim:
        own = Account("a link", 100_000)
        client = sim.join(["df:nothing"], anonymous=(own, Account("anonymous", 1_000_000)))
        for n in range(3):
            sim.submit(client, f"p{n}", element="later")
        own.insist(100_000 - own.held - 1000)
        for n in range(3, 6):
            sim.submit(client, f"p{n}", element="later", data="x" * 2000)
        assert [answer["payload"]["error"]["code"] for answer in sim.answers[client]] == ["PF429"] * 3
        own.insist(1000)
        sim.submit(client, "p6", "own")
        assert sim.answers[client][-1]["payload"]["error"]["code"] == "PF429"
        while sim.suspended:
            sim.resume(0, "return")
        sim.audit()


def test_who_handles_very_many_elements_comes_to_all_of_them() -> None:
    sim = Simulation()
    names = [f"e{n}" for n in range(400)]
    client, worker = sim.join(["df:nothing"]), sim.join([f"df:{name}" for name in names])
    sim.tell(worker, {"type": "heartbeat", "seq": 1,
                      "payload": {"window": 1, "capabilities": [f"df:{name}" for name in names]}})  # fmt: skip
    for name in names:
        sim.submit(client, name, name, timeout_ms=60_000)
    for _ in range(len(names)):
        (message,) = sim.work[worker]
        sim.work[worker].clear()
        sim.answer(worker, message)
        for _ in range(len(names) // 64 + 1):
            if not sim.work[worker]:
                sim.pass_time(0)
        sim.audit()
    assert len(sim.answers[client]) == len(names)


def test_what_waits_for_one_reactor_moves_to_another() -> None:
    sim = Simulation()
    sim.switch.set_policy("df", "sticky")
    client, worker = sim.join(["df:nothing"]), sim.join(["df:work"])
    heartbeat = {"type": "heartbeat", "seq": 1, "payload": {"window": 1, "capabilities": ["df:work"]}}
    sim.tell(worker, heartbeat)
    for n in range(4):
        sim.submit(client, f"p{n}")
    other = sim.join(["df:work"])
    sim.tell(other, heartbeat)
    members = {member.engine: member for member in sim.switch.links}
    assert sim.switch.migrate(members[sim.links[worker]], members[sim.links[other]], sim.now) == 3
    sim.pass_time(0)
    sim.audit()
    for link in (worker, other, other, other):
        (message,) = sim.work[link]
        sim.work[link].clear()
        sim.answer(link, message)
    assert len(sim.answers[client]) == 4
    sim.audit(at_rest=True)
