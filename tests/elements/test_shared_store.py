"""Two gateways on one store: what they keep there is one, whoever asks which of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from packetflow import Gateway, Packet, PacketTimeout, Reactor
from packetflow.elements import Bounds, in_memory
from packetflow.elements.co import BALLOTS
from packetflow.elements.request import key_of
from packetflow.elements.streams import CONSUMERS, FEW
from packetflow.state import Alarms
from tests.helpers import refused, until

ONE_LOOP = "asyncio"


class _Shared:
    """What a gateway has of a store that goes on when that gateway ends."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        pass


@pytest.fixture
async def shared() -> AsyncIterator[_Shared]:
    alarms = Alarms(asyncio.get_running_loop())
    store = in_memory(alarms, Bounds())
    yield _Shared(store)
    store.close()
    alarms.close()


@pytest.fixture
async def both(shared: _Shared) -> AsyncIterator[tuple[Reactor, Reactor]]:
    """A client of each of two gateways."""

    def factory(_: Alarms, __: Bounds) -> Any:
        return shared

    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", store=factory) as one,
        Gateway("ws://127.0.0.1:0/packetflow/v1", store=factory) as other,
        Reactor(one.endpoint, name="one") as first,
        Reactor(other.endpoint, name="other") as second,
    ):
        yield first, second


async def test_a_lock_excludes_and_wakes(both: tuple[Reactor, Reactor]) -> None:
    first, second = both
    lease = await first.call("rm", "lock", {"key": "k"})
    assert (await refused(second.call("rm", "lock", {"key": "k"}))).code == "PF409"
    waiting = asyncio.ensure_future(second.call("rm", "lock", {"key": "k", "wait_ms": 5000}))
    await second.call("rm", "cache", {"op": "get", "key": "behind the lock"})
    await first.call("rm", "free", {"lease": lease["lease"]})
    assert (await waiting)["fence"] > lease["fence"]


async def test_a_pool_is_one(both: tuple[Reactor, Reactor]) -> None:
    taken = await asyncio.gather(
        *(each.call("rm", "alloc", {"pool": "p", "capacity": 10, "units": 2, "wait_ms": 5000}) for each in both * 2)
    )
    assert min(lease["available"] for lease in taken) == 2
    assert (await refused(both[0].call("rm", "alloc", {"pool": "p", "units": 3}))).code == "PF429"


async def test_parties_of_a_barrier_and_voters_of_a_ballot(both: tuple[Reactor, Reactor]) -> None:
    for generation in range(3):
        met = await asyncio.gather(
            *(each.call("co", "sync", {"barrier": "b", "parties": 4, "data": n}) for n, each in enumerate(both * 2))
        )
        assert {each["generation"] for each in met} == {generation}
        assert sorted(each["index"] for each in met) == [0, 1, 2, 3]
        assert all(sorted(each["data"]) == [0, 1, 2, 3] for each in met)
    cast = (each.call("co", "vote", {"ballot": "v", "choice": "yes", "voters": 4}) for each in both * 2)
    assert all(each["decision"] == "yes" for each in await asyncio.gather(*cast))


async def test_a_gate_and_the_cache(both: tuple[Reactor, Reactor]) -> None:
    first, second = both
    waiting = asyncio.ensure_future(second.call("cf", "gate", {"gate": "g", "action": "wait"}))
    await first.call("cf", "gate", {"gate": "g", "action": "arrive", "count": 2})
    await second.call("cf", "gate", {"gate": "g", "action": "arrive", "count": 2})
    assert (await waiting)["open"]
    counts = [each.call("rm", "cache", {"op": "incr", "key": "n"}) for each in both * 10]
    assert sorted(each["value"] for each in await asyncio.gather(*counts)) == list(range(1, 21))


async def told(store: Any, pending: int) -> None:
    """The store has been told that so many items are open."""
    key = key_of("s", "default")
    while len(CONSUMERS.decode(key, (await store.get(CONSUMERS.name, key)).value).pending) != pending:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("count", [3, FEW + 1])
async def test_another_gateway_goes_on_where_one_has_read(
    both: tuple[Reactor, Reactor], shared: Any, count: int
) -> None:
    first, second = both
    ids = range(count + 1)
    await first.call("df", "produce", {"stream": "s", "items": list(ids)})
    found = (await first.call("df", "consume", {"stream": "s", "max": count}))["items"]
    assert [item["data"] for item in found] == list(range(count))
    await told(shared, count)  # of more than a few, a little later
    await first.call("df", "consume", {"stream": "s", "max": 0, "ack": [item["id"] for item in found[1:]]})
    await told(shared, 1)
    (item,) = (await second.call("df", "consume", {"stream": "s"}))["items"]
    assert (item["data"], item["deliveries"]) == (count, 1)
    assert (await refused(second.call("df", "consume", {"stream": "s", "wait_ms": 10}))).code == "PF408"
    await second.call("df", "consume", {"stream": "s", "max": 0, "ack": [found[0]["id"], item["id"]]})
    assert (await second.call("df", "produce", {"stream": "s", "items": []}))["length"] == 0


async def test_what_changes_while_the_store_is_told_is_told_too(shared: Any, both: tuple[Reactor, Reactor]) -> None:
    first, _ = both
    count = FEW + 1
    for name in ("s", "t"):
        await first.call("df", "produce", {"stream": name, "items": list(range(count))})
        await first.call("df", "consume", {"stream": name, "max": 0})
    put, far, told_of = shared.inner.put, asyncio.Event(), asyncio.Event()

    async def slow(kind: str, name: str, *arguments: Any, **options: Any) -> Any:
        if kind == CONSUMERS.name and name == key_of("t", "default"):
            told_of.set()
            await far.wait()
        return await put(kind, name, *arguments, **options)

    shared.inner.put = slow
    await first.call("df", "consume", {"stream": "t", "max": count})
    await told_of.wait()
    await first.call("df", "consume", {"stream": "s", "max": count})  # meanwhile, and nobody comes after it
    far.set()
    await told(shared, count)


async def test_a_store_that_cannot_be_told_just_now_is_told_later(shared: Any, both: tuple[Reactor, Reactor]) -> None:
    first, _ = both
    count = FEW + 1
    await first.call("df", "produce", {"stream": "s", "items": list(range(count))})
    await first.call("df", "consume", {"stream": "s", "max": 0})
    put, refusals = shared.inner.put, [1, 2]

    async def weak(kind: str, *arguments: Any, **options: Any) -> Any:
        if kind == CONSUMERS.name and refusals:
            refusals.pop()
            raise ConnectionError("not just now")
        return await put(kind, *arguments, **options)

    shared.inner.put = weak
    await first.call("df", "consume", {"stream": "s", "max": count})
    await told(shared, count)
    assert refusals == []


async def test_what_one_has_not_acknowledged_comes_again_from_the_other(both: tuple[Reactor, Reactor]) -> None:
    first, second = both
    await first.call("df", "produce", {"stream": "s", "items": ["x"]})
    await first.call("df", "consume", {"stream": "s", "redeliver_after_ms": 50})
    (item,) = (await second.call("df", "consume", {"stream": "s", "wait_ms": 5000}))["items"]
    assert (item["data"], item["deliveries"]) == ("x", 2)


async def test_a_consumer_name_with_too_much_open_waits(both: tuple[Reactor, Reactor], monkeypatch: Any) -> None:
    monkeypatch.setattr("packetflow.elements.streams.MAX_PENDING", 3)
    first, _ = both
    await first.call("df", "produce", {"stream": "s", "items": list(range(5))})
    found = (await first.call("df", "consume", {"stream": "s"}))["items"]
    assert len(found) == 3
    waiting = asyncio.ensure_future(first.call("df", "consume", {"stream": "s"}))
    await first.call("df", "produce", {"stream": "s", "items": [5]})
    await first.call("df", "consume", {"stream": "s", "max": 0, "ack": [found[0]["id"]]})
    assert [item["data"] for item in (await waiting)["items"]] == [3]


async def test_a_store_that_holds_something_else(both: tuple[Reactor, Reactor]) -> None:
    alarms = Alarms(asyncio.get_running_loop())
    store = in_memory(alarms, Bounds())
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", store=lambda *_: store) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        await store.put("gate", "g", b'{"open":"perhaps"}')
        error = await refused(client.call("cf", "gate", {"gate": "g", "action": "arrive", "count": 1}))
        assert error.code == "PF500"
        assert "gate 'g': the store holds something else" in error.message
        assert (await store.get("gate", "g")).value == b'{"open":"perhaps"}'  # type: ignore[union-attr]
    await until(lambda: store.names("gate") == 0)
    alarms.close()


async def take(client: Reactor, **data: Any) -> list[Any]:
    found = await client.call("df", "consume", {"stream": "s", **data})
    return [item["data"] for item in found["items"]]


async def test_what_a_name_at_the_other_gateway_has_not_acknowledged_stays(
    both: tuple[Reactor, Reactor], shared: _Shared
) -> None:
    first, second = both
    await first.stream("s").produce("a", "b")
    assert await take(first, consumer="slow") == ["a", "b"]
    found = await second.call("df", "consume", {"stream": "s", "consumer": "quick"})
    await second.call(
        "df", "consume", {"stream": "s", "consumer": "quick", "max": 0, "ack": [item["id"] for item in found["items"]]}
    )
    assert (await shared.extent("stream", "s"))[0] == 2


@pytest.mark.parametrize("count", [1, FEW + 1])
async def test_a_name_that_both_gateways_serve_misses_nothing(
    both: tuple[Reactor, Reactor], shared: _Shared, count: int
) -> None:
    """Each gives out what it knows of; who finds that the other has told the store in between begins from that."""
    first, second = both
    items = [f"{n}" for n in range(2 * count)]
    await first.stream("s").produce(*items)
    taken = await take(first, max=count) + await take(second, max=count)

    async def told() -> int:
        entry = await shared.get("consumer", key_of("s", "default"))
        return len(CONSUMERS.decode("s", entry.value).pending)

    while await told() < count:
        await asyncio.sleep(0.002)
    await first.stream("s").produce("last")
    while {*items, "last"} - set(taken):
        for client in both:
            try:
                taken += await take(client, wait_ms=5, max=count, redeliver_after_ms=1)
            except PacketTimeout:
                pass


async def test_the_same_packet_at_both_gateways_is_one_vote(both: tuple[Reactor, Reactor], shared: _Shared) -> None:
    first, second = both
    ballot = {"ballot": "v", "voters": 3}

    async def counted(choice: str) -> None:
        while True:
            entry = await shared.get("ballot", "v")
            counts = BALLOTS.decode("v", entry.value).choices.values() if entry is not None else ()
            if [(bytes(one.choice), one.count) for one in counts] == [(b'"%s"' % choice.encode(), 1)]:
                return
            await asyncio.sleep(0.002)

    before = first.submit(Packet("co", "vote", {**ballot, "choice": "before"}, id="same"))
    await counted("before")
    after = second.submit(Packet("co", "vote", {**ballot, "choice": "after"}, id="same"))
    await counted("after")
    before.cancel()  # and takes nothing back: its vote has been given anew
    decided = await first.call("co", "vote", {**ballot, "choice": "after"})
    assert decided["tally"] == [["after", 2]]
    assert (await after).data == decided
