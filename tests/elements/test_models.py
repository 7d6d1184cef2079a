"""Locks, pools, gates, streams and the cache against models, in simulated time and without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from packetflow.elements import STANDARD, Bounds, Runtime
from packetflow.elements.call import Call
from packetflow.elements.request import key_of
from packetflow.elements.streams import MAX_DELIVERIES
from packetflow.errors import PacketFlowError
from packetflow.model import Packet
from packetflow.state import Session
from pfcore.route.flights import Principal


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock is moved by hand."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Machine(RuleBasedStateMachine):
    """Elements called as the dispatcher calls them, by holders that come and go."""

    bounds = Bounds()

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.user = Principal("user", 2, 1)
        self.runtime = Runtime(
            None,  # type: ignore[arg-type] # no element here submits steps
            STANDARD,
            loop=self.loop,
            bounds=self.bounds,
            gateway=Principal("gateway", 1, 63),
            admin=None,
        )
        self.holders: dict[int, Session] = {}

    def session(self, holder: int) -> Session:
        if holder not in self.holders or self.holders[holder].ended:
            self.holders[holder] = self.runtime.sessions.of(f"link {holder}", 2)
        return self.holders[holder]

    def do(self, key: str, data: dict[str, Any], holder: int = 0) -> Any:
        """The element's answer, or its error."""
        one = STANDARD[key]
        call = Call(self.runtime, Packet(one.group, one.name, data), self.user)
        call._session = self.session(holder)
        request = msgspec.json.decode(msgspec.json.encode(data), type=one.request)

        async def run() -> Any:
            try:
                answer = await one.function(call, request)
            except PacketFlowError as error:
                return error
            await self.settle()
            return msgspec.json.decode(msgspec.json.encode(answer))

        return self.loop.run_until_complete(run())

    async def settle(self) -> None:
        while True:
            await asyncio.sleep(0)
            if not self.runtime.tasks:
                return

    def wait(self, seconds: float) -> None:
        """Time passes, and what is due happens."""
        self.loop.now += seconds

        async def due() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            await self.settle()

        self.loop.run_until_complete(due())

    def lose(self, holder: int) -> None:
        self.runtime.sessions.end(self.session(holder))
        self.wait(0.0)

    def teardown(self) -> None:
        self.runtime.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


KEYS = st.sampled_from(["a", "b"])
HOLDERS = st.integers(0, 2)


class Locks(Machine):
    """A key has one holder; its fence grows; it is free once it was freed, is over, or its holder is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, tuple[str, int, float]] = {}  # key -> lease, holder, when it ends
        self.fences: dict[str, int] = {}
        self.ended: list[str] = []

    def forget_what_is_over(self) -> None:
        for key, (lease, _, ends) in list(self.held.items()):
            if ends <= self.loop.now:
                del self.held[key]
                self.ended.append(lease)

    @rule(key=KEYS, holder=HOLDERS, ttl=st.sampled_from([100, 1000, 60_000]))
    def acquire(self, key: str, holder: int, ttl: int) -> None:
        answer = self.do("rm:lock", {"key": key, "ttl_ms": ttl}, holder)
        if key in self.held:
            assert answer.code == "PF409"
            return
        assert answer["fence"] > self.fences.get(key, 0)
        self.fences[key] = answer["fence"]
        self.held[key] = (answer["lease"], holder, self.loop.now + ttl / 1000)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        lease, _, _ = self.held.pop(key)
        assert self.do("rm:free", {"lease": lease}) == {"freed": True}
        self.ended.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        lease, holder, _ = self.held[key]
        answer = self.do("rm:lock", {"lease": lease, "ttl_ms": 5000})
        assert answer["fence"] == self.fences[key]
        self.held[key] = (lease, holder, self.loop.now + 5)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def free_again(self, data: Any) -> None:
        lease = self.ended[data.draw(st.integers(0, len(self.ended) - 1))]
        assert self.do("rm:free", {"lease": lease}) == {"freed": False}
        assert self.do("rm:lock", {"lease": lease}).code == "PF409"

    @rule(seconds=st.sampled_from([0.05, 0.5, 5, 70]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)
        self.forget_what_is_over()

    @rule(holder=HOLDERS)
    def holder_is_lost(self, holder: int) -> None:
        self.lose(holder)
        for key, (lease, its, _) in list(self.held.items()):
            if its == holder:
                del self.held[key]
                self.ended.append(lease)

    @invariant()
    def as_many_leases_as_locks(self) -> None:
        assert len(self.runtime.leases) == len(self.held)


class Pools(Machine):
    """What is leased and what is available make the capacity, always."""

    CAPACITY = 7

    def __init__(self) -> None:
        super().__init__()
        self.leases: dict[str, tuple[int, int, float]] = {}

    @rule(units=st.integers(1, 9), holder=HOLDERS, ttl=st.sampled_from([100, 60_000]))
    def alloc(self, units: int, holder: int, ttl: int) -> None:
        data = {"pool": "p", "units": units, "capacity": self.CAPACITY, "ttl_ms": ttl}
        answer = self.do("rm:alloc", data, holder)
        used = sum(lease[0] for lease in self.leases.values())
        if units > self.CAPACITY:
            assert answer.code == "PF400"
        elif used + units > self.CAPACITY:
            assert answer.code == "PF429"
        else:
            assert answer["available"] == self.CAPACITY - used - units
            self.leases[answer["lease"]] = (units, holder, self.loop.now + ttl / 1000)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def free(self, data: Any) -> None:
        lease = list(self.leases)[data.draw(st.integers(0, len(self.leases) - 1))]  # ids are random, places are not
        del self.leases[lease]
        assert self.do("rm:free", {"lease": lease}) == {"freed": True}

    @rule(seconds=st.sampled_from([0.05, 5, 70]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)
        self.leases = {lease: it for lease, it in self.leases.items() if it[2] > self.loop.now}

    @rule(holder=HOLDERS)
    def holder_is_lost(self, holder: int) -> None:
        self.lose(holder)
        self.leases = {lease: it for lease, it in self.leases.items() if it[1] != holder}


class Gates(Machine):
    """Closed at first; open once opened or enough have arrived; closing forgets arrivals."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, bool] = {}
        self.arrived: dict[str, int] = {}

    @rule(gate=KEYS, action=st.sampled_from(["open", "close"]))
    def move(self, gate: str, action: str) -> None:
        answer = self.do("cf:gate", {"gate": gate, "action": action})
        self.open[gate] = action == "open"
        self.arrived[gate] = 0
        assert answer == {"open": self.open[gate], "waiting": 0}

    @rule(gate=KEYS, count=st.integers(1, 4))
    def arrive(self, gate: str, count: int) -> None:
        answer = self.do("cf:gate", {"gate": gate, "action": "arrive", "count": count})
        self.arrived[gate] = self.arrived.get(gate, 0) + 1
        self.open[gate] = self.open.get(gate, False) or self.arrived[gate] >= count
        assert answer["open"] == self.open[gate]

    @rule(gate=KEYS)
    def wait_for_it(self, gate: str) -> None:
        answer = self.do("cf:gate", {"gate": gate, "action": "wait", "wait_ms": 0})
        if self.open.get(gate):
            assert answer == {"open": True, "waiting": 0}
        else:
            assert answer.code == "PF408"


class Cache(Machine):
    """A dictionary with versions and times to live."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, tuple[Any, int, float]] = {}

    def present(self, key: str) -> tuple[Any, int, float] | None:
        found = self.model.get(key)
        if found is not None and found[2] <= self.loop.now:
            del self.model[key]
            return None
        return found

    @rule(
        key=KEYS,
        value=st.integers(),
        ttl=st.sampled_from([None, 100, 60_000]),
        version=st.sampled_from([None, 0, "right", "wrong"]),
    )
    def set(self, key: str, value: int, ttl: int | None, version: Any) -> None:
        found = self.present(key)
        now = found[1] if found is not None else 0
        asked = {"right": now, "wrong": now + 10**6}.get(version, version)
        data = {"op": "set", "key": key, "value": value, "ttl_ms": ttl, "version": asked}
        answer = self.do("rm:cache", {name: one for name, one in data.items() if one is not None})
        if asked is not None and asked != now:
            assert answer.code == "PF409"
            return
        assert answer["version"] > now
        self.model[key] = (value, answer["version"], self.loop.now + (ttl / 1000 if ttl else 1e9))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        found = self.present(key)
        assert self.do("rm:cache", {"op": "delete", "key": key})["found"] == (found is not None)
        self.model.pop(key, None)

    @rule(key=KEYS, by=st.integers(-5, 5))
    def incr(self, key: str, by: int) -> None:
        found = self.present(key)
        answer = self.do("rm:cache", {"op": "incr", "key": key, "by": by})
        assert answer["value"] == (found[0] if found is not None else 0) + by
        # incr without a time to live keeps the value for good, as set does
        self.model[key] = (answer["value"], answer["version"], self.loop.now + 1e9)

    @rule(seconds=st.sampled_from([0.05, 1, 70]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        for key in ("a", "b"):
            found = self.present(key)
            answer = self.do("rm:cache", {"op": "get", "key": key})
            if found is None:
                assert answer == {"value": None, "version": 0, "found": False}
            else:
                assert answer == {"value": found[0], "version": found[1], "found": True}
        listed = self.do("rm:cache", {"op": "list"})["value"]
        assert [entry["key"] for entry in listed] == sorted(key for key in ("a", "b") if self.present(key))


class Streams(Machine):
    """Every item reaches every consumer name at least once, one caller at a time, until it is acknowledged or dead."""

    bounds = Bounds(stream_items=12)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.items: dict[int, int] = {}  # id -> data, of all that was produced
        self.given: dict[str, dict[int, tuple[int, float]]] = {}  # consumer -> id -> deliveries, due
        self.done: dict[str, set[int]] = {}
        self.dead: list[int] = []

    @rule(n=st.integers(1, 4))
    def produce(self, n: int) -> None:
        data = list(range(self.count, self.count + n))
        answer = self.do("df:produce", {"stream": "s", "items": data, "wait_ms": 0})
        kept = [item for item in self.items if not self.done or any(item not in done for done in self.done.values())]
        if isinstance(answer, PacketFlowError):
            assert answer.code == "PF429"
            # what is done with beyond an item that is not is kept, for order's sake
            assert len(kept) + n > self.bounds.stream_items or self.given
            return
        self.items.update(zip(range(answer["first"], answer["last"] + 1), data, strict=True))
        self.count += n

    @rule(consumer=st.sampled_from(["x", "y"]), most=st.integers(1, 5), ack=st.booleans())
    def consume(self, consumer: str, most: int, ack: bool) -> None:
        given = self.given.setdefault(consumer, {})
        if consumer not in self.done:
            # what all who had read had acknowledged is gone before this one comes
            there = self.loop.run_until_complete(self.runtime.store.read("stream", "s", 0, 1000))
            self.done[consumer] = set(self.items) - {item for item, _ in there}
        done = self.done[consumer]
        acknowledged = list(given) if ack else []
        answer = self.do(
            "df:consume",
            {
                "stream": "s",
                "consumer": consumer,
                "max": most,
                "ack": acknowledged,
                "redeliver_after_ms": 1000,
                "wait_ms": 0,
            },
        )
        for item in acknowledged:
            del given[item]
            done.add(item)
        for item, (deliveries, due) in list(given.items()):
            # it went to the dead, unless others filled the batch first
            over = due <= self.loop.now and deliveries >= MAX_DELIVERIES and item not in self.pending(consumer)
            if over and item not in {one["id"] for one in self.got(answer)}:
                del given[item]
                done.add(item)
                self.dead.append(self.items[item])
        for one in self.got(answer):
            item = one["id"]
            assert self.items[item] == one["data"]
            assert item not in done, "acknowledged, and given out again"
            before = given.get(item)
            assert before is None or before[1] <= self.loop.now, "given to two at once"
            assert one["deliveries"] == (before[0] if before else 0) + 1
            assert one["deliveries"] <= MAX_DELIVERIES
            given[item] = (one["deliveries"], self.loop.now + 1)
        if not self.got(answer):
            # nothing was kept back
            assert all(due > self.loop.now for _, due in given.values())
            assert set(self.items) <= set(given) | done

    def got(self, answer: Any) -> list[Any]:
        if isinstance(answer, PacketFlowError):
            assert answer.code == "PF408"
            return []
        return list(answer["items"])

    def pending(self, consumer: str) -> Any:
        entry = self.loop.run_until_complete(self.runtime.store.get("consumer", key_of("s", consumer)))
        return entry.value.pending if entry is not None else {}

    @rule(seconds=st.sampled_from([0.5, 2]))
    def time_passes(self, seconds: float) -> None:
        self.wait(seconds)

    @invariant()
    def it_is_bounded(self) -> None:
        length, _, _ = self.loop.run_until_complete(self.runtime.store.extent("stream", "s"))
        assert length <= self.bounds.stream_items


LIMITS = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLocks = Locks.TestCase
TestPools = Pools.TestCase
TestGates = Gates.TestCase
TestCache = Cache.TestCase
TestStreams = Streams.TestCase
TestLocks.settings = TestPools.settings = TestGates.settings = TestCache.settings = TestStreams.settings = LIMITS
