"""Whoever has something kept pays for it, until it leaves: no account is ever below nothing, and none is left with any.

Elements of all kinds from links that come and go, cancel and run into their deadlines, in simulated time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from packetflow.elements import STANDARD, Bounds, Runtime, gather, loop, ref, seq, step, transform
from packetflow.elements.watched import PATTERN_BYTES
from packetflow.errors import Overloaded, PacketFlowError
from packetflow.model import Packet, Result
from packetflow.state import Session
from packetflow.state.memory import ITEM_BYTES
from pfcore.memory.budget import Account, Budget
from pfcore.route.flights import Principal
from tests.elements.test_models import SimulatedLoop


class Engine:
    """As much of a link as a session needs."""

    def __init__(self, member: Link) -> None:
        self.member = member


class Link:
    """As much of a member as the elements need."""

    def __init__(self, principal: Principal, account: Account, name: str | None) -> None:
        self.principal = principal
        self.account = account
        self.engine = Engine(self)
        self.reactor = name
        self.listed = False
        self.number = 7
        self.tasks: list[asyncio.Task[Any]] = []


class Host:
    """Routes nested packets: standard elements to themselves, others to what a test wants of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.runtime: Any = None
        self.reactors: list[Link] = []
        self.never: list[asyncio.Future[Any]] = []

    def submit_as(self, principal: Principal, packet: Packet, account: Account | None = None) -> Any:
        assert account is not None
        key = f"{packet.group}:{packet.element}"
        if key in STANDARD:
            raw = msgspec.json.encode(packet.data)
            return self.loop.create_task(self.nested(key, raw, packet, Link(principal, account, None)))
        return self.answer(packet)

    def answer(self, packet: Packet) -> Any:
        future: asyncio.Future[Any] = self.loop.create_future()
        if packet.element == "full":
            raise Overloaded("no room")
        if packet.element == "never":
            self.never.append(future)
        elif packet.element == "fail":
            future.set_result(Result(packet.id, "error", error={"code": "PF500", "message": "no"}))
        elif packet.element == "unknown":
            future.set_result(Result(packet.id, "error", error={"code": "PF001", "message": "no"}))
        else:
            future.set_result(Result(packet.id, data=msgspec.Raw(msgspec.json.encode(packet.data))))
        return future

    async def nested(self, key: str, raw: bytes, packet: Packet, caller: Link) -> Result:
        one = STANDARD[key]
        try:
            request = msgspec.json.decode(raw, type=one.request)
            data = await self.runtime.run(one, request, packet, caller)
        except PacketFlowError as error:
            return Result(packet.id, "error", error={"code": error.code, "message": error.message})
        return Result(packet.id, data=msgspec.Raw(msgspec.json.encode(data)))

    def may_submit(self, principal: Principal, key: str) -> bool:
        return True

    def reactors_for(self, key: str) -> list[Link]:
        return self.reactors

    def submit_to(self, member: Link, packet: Packet) -> Any:
        return self.answer(packet)

    def spend(self, principal: Principal, count: int) -> bool:
        return True


ECHO = step("df", "echo", {"a": ref("prev")})
NEVER = step("df", "never")
FULL = step("df", "full")
FAIL = step("df", "fail")
NAMES = st.sampled_from(["a", "b"])
INNER = st.sampled_from(
    [ECHO, NEVER, FULL, FAIL, step("df", "echo", "x" * 5000, name="x"), step("ed", "signal", {"event": "e", "payload": 1}),
     step("df", "produce", {"stream": "a", "items": [1, "x" * 300]}), step("rm", "lock", {"key": "a", "ttl_ms": 50}),
     step("cf", "gate", {"gate": "a", "action": "wait", "wait_ms": 20})]
)  # fmt: skip
WAITS = st.sampled_from([0, 5, 20, None])


@st.composite
def packets(draw: Any) -> tuple[str, dict[str, Any]]:
    """An element's key and its data."""
    name, inner, wait = draw(NAMES), draw(INNER), draw(WAITS)
    size = draw(st.sampled_from([1, 300]))
    few = draw(st.integers(1, 3))
    text = "x" * size
    options: dict[str, Any] = {
        "cf:seq": seq(inner, ECHO, draw(INNER), input=text, returns=draw(st.sampled_from([None, "prev", "@"])))["data"],
        "cf:branch": {"cases": [{"when": draw(st.sampled_from(["prev", "`1`", "("])), "then": inner}]},
        "cf:loop": loop(inner, times=few, input=text, collect=draw(st.booleans()))["data"],
        "cf:gate": draw(
            st.sampled_from(
                [
                    {"gate": name, "action": "open"},
                    {"gate": name, "action": "close"},
                    {"gate": name, "action": "arrive", "count": few},
                    {"gate": name, "action": "wait", "wait_ms": wait},
                ]
            )
        ),
        "df:produce": {"stream": name, "items": [text] * few, "wait_ms": wait},
        "df:consume": {"stream": name, "consumer": draw(NAMES), "max": few, "wait_ms": wait, "redeliver_after_ms": 30},
        "df:transform": transform([text] * few, map=inner, concurrency=2)["data"],
        "df:reduce": {"input": [text] * few, "with": inner},
        "ed:signal": {"event": draw(st.sampled_from(["e", "f"])), "payload": text},
        "ed:timer": {"id": name, "packet": inner, "after_ms": 5, "every_ms": 10, "count": few},
        "ed:react": draw(
            st.sampled_from([{"id": name, "event": "e", "packet": inner}, {"cancel": name}, {"event": "*", "packet": inner}])
        ),
        "ed:watch": {"event": "e", "wait_ms": wait},
        "co:sync": {"barrier": name, "parties": few, "data": text, "wait_ms": wait},
        "co:broadcast": {"packet": inner, "wait": draw(st.booleans())},
        "co:gather": gather(inner, ECHO, draw(INNER), need=few)["data"],
        "co:vote": draw(
            st.sampled_from(
                [{"ballot": name, "choice": text, "voters": few, "wait_ms": wait}, {"packet": inner}]
            )
        ),
        "rm:alloc": {"pool": name, "capacity": 3, "units": few, "ttl_ms": 40, "wait_ms": wait or 0},
        "rm:lock": draw(
            st.sampled_from([{"key": name, "ttl_ms": 40, "wait_ms": wait}, {"key": name, "step": inner}])
        ),
        "rm:cache": draw(
            st.sampled_from(
                [
                    {"op": "set", "key": name, "value": text, "ttl_ms": 40},
                    {"op": "set", "key": name + str(few), "value": text * 20},
                    {"op": "delete", "key": name},
                    {"op": "incr", "key": name},
                    {"op": "fill", "key": name, "step": inner},
                ]
            )
        ),
    }  # fmt: skip
    key = draw(st.sampled_from(sorted(options)))
    return key, options[key]


class Accounts(RuleBasedStateMachine):
    """Three links, two of them anonymous; all that happens to them."""

    @initialize(limit=st.sampled_from([9_000, 40_000, 10_000_000]), stored=st.sampled_from([2_000, 9_000, 10_000_000]))
    def begin(self, limit: int, stored: int) -> None:
        self.loop = SimulatedLoop()
        self.held, self.kept = Budget(1 << 40), Budget(1 << 40)
        self.anonymous = Principal("anonymous", 0, 0, stored=Account("anonymous", stored, self.kept))
        account = Account("user", limit, self.held)
        self.user = Principal("user", 2, 1, account=account, stored=Account("user", stored, self.kept))
        host = Host(self.loop)
        self.runtime = host.runtime = Runtime(
            host,  # type: ignore[arg-type]
            STANDARD,
            loop=self.loop,
            bounds=Bounds(cache=8000, value=20_000, stream_items=5, result_bytes=30_000, steps=40),
            gateway=Principal("gateway", 1, 63),
            admin=None,
            orphans=Account("orphans", limit, self.held),
        )
        self.host = host
        host.reactors = [Link(self.user, account, "worker"), Link(self.user, account, None)]
        self.accounts = [account, self.runtime.orphans]
        self.links = [self.link(place) for place in range(3)]

    def link(self, place: int) -> Link:
        if place == 0:
            account = self.user.account
            assert account is not None
            return Link(self.user, account, "reactor")
        account = Account(f"link {place}", self.accounts[0].limit, self.held)
        self.accounts.append(account)
        return Link(self.anonymous, account, f"reactor {place}" if place == 1 else None)

    @rule(place=st.integers(0, 2), packet=packets(), metadata=st.sampled_from([None, {"key": "x" * 500}]))
    def submit(self, place: int, packet: tuple[str, dict[str, Any]], metadata: Any) -> None:
        key, data = packet
        one = STANDARD[key]
        raw = msgspec.json.encode(data)
        link = self.links[place]
        wire = Packet(one.group, one.name, None, timeout_ms=100, metadata=metadata)

        async def run() -> Any:
            try:
                request = msgspec.json.decode(raw, type=one.request)
                async with asyncio.timeout(0.1):
                    return msgspec.json.encode(await self.runtime.run(one, request, wire, link))  # type: ignore[arg-type]
            except (PacketFlowError, TimeoutError) as error:
                return error

        link.tasks.append(self.loop.create_task(run()))
        self.settle()

    @precondition(lambda self: any(link.tasks for link in self.links))
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        tasks = [task for link in self.links for task in link.tasks]
        tasks[data.draw(st.integers(0, len(tasks) - 1))].cancel()
        self.settle()

    @rule(place=st.integers(0, 2), soon=st.booleans())
    def lose(self, place: int, soon: bool) -> None:
        link, self.links[place] = self.links[place], self.link(place)
        for task in link.tasks:
            task.cancel()
        self.runtime.sessions.lost(link.engine)
        if soon:
            self.pass_time(6)
        self.settle()

    @rule(seconds=st.sampled_from([0.004, 0.011, 0.06, 0.5, 70]))
    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settle()

    @rule()
    def end_the_user(self) -> None:
        self.runtime.sessions.end_principals({self.user.number})
        self.settle()

    def settle(self) -> None:
        async def quiet() -> None:
            for _ in range(30):
                await asyncio.sleep(0)
            while self.runtime.tasks or len(self.runtime.turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(quiet())
        for link in self.links:
            for task in link.tasks:
                if task.done() and not task.cancelled():
                    task.result()  # nothing but answers and refusals
            link.tasks = [task for task in link.tasks if not task.done()]

    @invariant()
    def nobody_owes_less_than_nothing(self) -> None:
        if hasattr(self, "accounts"):
            assert all(account.held >= 0 for account in self.accounts)
            assert self.held.held == sum(account.held for account in self.accounts)

    @invariant()
    def what_is_stored_is_what_is_paid_for(self) -> None:
        if not hasattr(self, "runtime"):
            return
        for principal in (self.user, self.anonymous):
            assert principal.stored is not None
            assert principal.stored.held == stored_of(self.runtime, principal.stored)

    def teardown(self) -> None:
        if not hasattr(self, "runtime"):
            return
        for link in self.links:
            for task in link.tasks:
                task.cancel()
        for future in self.host.never:
            future.cancel()
        self.settle()
        self.runtime.drain()
        self.runtime.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))
        assert [account for account in self.accounts if account.held] == []
        assert (self.held.held, self.kept.held) == (0, 0)
        assert not self.runtime.nests
        self.loop.close()


def stored_of(runtime: Runtime, owner: Account) -> int:
    """What the store and the watched patterns have of an owner, counted anew."""
    store: Any = runtime.store
    total = 0
    for names in store._kinds.values():
        total += sum(slot.cost for slot in names.slots.values() if slot.owner is owner)
    for logs in store._logs.values():
        for log in logs.values():
            total += log.cost if log.owner is owner else 0
            total += sum(size + ITEM_BYTES for _, _, size, whose in log.items if whose is owner)
    return total + sum(PATTERN_BYTES for kept in runtime.watched._kept.values() if kept.owner is owner)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def session(runtime: Runtime, link: Link) -> Session:
    return runtime.sessions.of(link.engine, link.principal.number)


@pytest.mark.parametrize("kind", ["cf:gate"])
def test_waiting_packets_are_paid_for_with_their_metadata(kind: str) -> None:
    loop = SimulatedLoop()
    host = Host(loop)
    account = Account("user", 1_000_000)
    user = Principal("user", 2, 1, account=account)
    runtime = host.runtime = Runtime(
        host,
        STANDARD,
        loop=loop,
        gateway=Principal("gateway", 1, 63),
        admin=None,  # type: ignore[arg-type]
    )
    link = Link(user, account, "reactor")
    metadata = {"note": "x" * 100_000}

    async def run() -> list[asyncio.Task[Any]]:
        tasks = []
        for _ in range(20):
            packet = Packet("cf", "gate", None, metadata=metadata)
            request = STANDARD[kind].request(gate="g", action="wait")  # type: ignore[call-arg]
            tasks.append(loop.create_task(runtime.run(STANDARD[kind], request, packet, link)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    tasks = loop.run_until_complete(run())
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 20 - 9
    for task in refused:
        error = task.exception()
        assert isinstance(error, Overloaded)
        assert "max_principal_bytes" in error.message
    assert account.held > 9 * 100_000
    runtime.close()
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert account.held == 0
    loop.close()
