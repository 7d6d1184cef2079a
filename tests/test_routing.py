"""Packets between reactors: who gets them, in which order, how often, and what a loss means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from packetflow import (
    ConnectionLost,
    Gateway,
    NoHandler,
    Overloaded,
    Packet,
    PacketTimeout,
    Reactor,
    Unavailable,
)
from packetflow.conformance.wire import Peer, frame
from tests.helpers import submit, until

Start = Callable[..., Awaitable[Reactor]]


@pytest.fixture
async def start(hub: Gateway) -> AsyncIterator[Start]:
    """Starts a reactor with handlers, and returns it once the gateway knows it."""
    async with AsyncExitStack() as stack:

        async def start(name: str, handlers: dict[str, Any] | None = None, **settings: Any) -> Reactor:
            reactor = Reactor(hub.endpoint, name=name, **settings)
            for key, handler in (handlers or {}).items():
                group, _, element = key.partition(":")
                reactor.register(group, element, handler)
            await stack.enter_async_context(reactor)
            await hub.wait_for_reactor(name)
            return reactor

        yield start


# ---------------------------------------------------------------- who gets it


async def test_a_packet_goes_to_the_reactor_that_announced_its_element(hub: Gateway, start: Start) -> None:
    await start("upper", {"df:upper": str.upper})
    await start("lower", {"df:lower": str.lower})
    client = await start("client")
    assert await client.call("df", "upper", "Ab") == "AB"
    assert await client.call("df", "lower", "Ab") == "ab"


async def test_a_reactor_may_handle_its_own_packet(start: Start) -> None:
    both = await start("both", {"df:upper": str.upper})
    assert await both.call("df", "upper", "x") == "X"


async def test_the_gateway_submits_to_reactors_as_everyone_does(hub: Gateway, start: Start) -> None:
    await start("upper", {"df:upper": str.upper})
    assert await hub.call("df", "upper", "x") == "X"
    assert (await hub.submit({"group": "df", "element": "upper", "data": "y"})).data == "Y"


async def test_a_handler_registered_later_is_announced(hub: Gateway, start: Start) -> None:
    worker, client = await start("worker"), await start("client")
    with pytest.raises(NoHandler):
        await client.call("ed", "later", 1)
    worker.register("ed", "later", lambda data: data + 1)
    await until(lambda: hub.switch.reactors_for("ed:later"))
    assert await client.call("ed", "later", 1) == 2
    worker.unregister("ed", "later")
    await until(lambda: not hub.switch.reactors_for("ed:later"))
    with pytest.raises(Unavailable):  # it was there a moment ago
        await client.call("ed", "later", 1)


async def test_the_gateways_own_handler_serves_what_nobody_else_does(hub: Gateway, start: Start) -> None:
    hub.register("df", "who", lambda data: "gateway")
    hub.register("rm", "who", lambda data: "gateway")
    client = await start("client")
    assert await client.call("df", "who") == "gateway"
    await start("worker", {"df:who": lambda data: "worker", "rm:who": lambda data: "worker"})
    assert await client.call("df", "who") == "worker"
    assert await client.call("rm", "who") == "gateway", "only df may be taken over without a role that says so"


async def test_mc_is_for_admins(hub: Gateway, start: Start) -> None:
    await start("worker", {"mc:tune": lambda data: data})
    client = await start("client")
    result = await client.submit({"group": "mc", "element": "tune"})
    assert result.error["code"] == "PF403"


async def test_work_is_spread_over_reactors(hub: Gateway, start: Start) -> None:
    seen: dict[str, int] = {"a": 0, "b": 0}

    def worker(name: str) -> Any:
        async def work(data: Any) -> None:
            seen[name] += 1
            await asyncio.sleep(0)

        return work

    await start("a", {"df:work": worker("a")})
    await start("b", {"df:work": worker("b")})
    client = await start("client")
    await asyncio.gather(*(client.call("df", "work") for _ in range(400)))
    assert sum(seen.values()) == 400
    assert min(seen.values()) > 100


async def test_cf_and_rm_stick_to_a_reactor_by_key(hub: Gateway, start: Start) -> None:
    for name in "abc":
        await start(name, {"cf:who": lambda data, name=name: name, "rm:who": lambda data, name=name: name})
    client = await start("client")
    for group in ("cf", "rm"):
        homes: dict[str, set[str]] = {}
        for turn in range(60):
            key = f"k{turn % 12}"
            result = await client.submit({"group": group, "element": "who", "metadata": {"key": key}})
            homes.setdefault(key, set()).add(result.data)
        assert all(len(home) == 1 for home in homes.values())
        assert len(set.union(*homes.values())) > 1, "all keys went to one reactor"
    assert len({await client.call("cf", "who") for _ in range(20)}) == 1, "without a key: by link"
    assert len({await client.call("rm", "who", {"key": "x"}) for _ in range(20)}) == 1, "rm: by data.key, too"


async def test_handles_in_the_url_announce(hub: Gateway) -> None:
    peer = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:one,df:two")
    await until(lambda: hub.switch.reactors_for("df:two"))
    answer = asyncio.ensure_future(hub.call("df", "two", 5))
    packet = (await peer.message("submit"))["payload"]
    await peer.send(
        {"type": "result", "seq": 0, "payload": {"packet_id": packet["id"], "status": "success", "data": 6}}
    )
    assert await answer == 6
    peer.close()


async def test_a_reactor_that_announces_nothing_is_tried_and_its_refusal_remembered(hub: Gateway) -> None:
    """The first packet for an element finds its way, later ones go straight there."""
    peers = {name: await Peer.connect(hub.endpoint) for name in ("knows", "not")}
    asked = {"knows": 0, "not": 0}

    async def serve(name: str) -> None:
        while True:
            message = await peers[name].message("submit")
            asked[name] += message["payload"]["element"] == "thing"  # the gateway's question is another
            packet_id = message["payload"]["id"]
            result = {"packet_id": packet_id, "status": "success", "data": name, "duration_ms": 0}
            if name == "not" or message["payload"]["element"] != "thing":
                error = {"code": "PF001", "message": "No handler"}
                result = {"packet_id": packet_id, "status": "error", "error": error, "duration_ms": 0}
            await peers[name].send({"type": "result", "seq": 0, "payload": result})

    tasks = [asyncio.create_task(serve(name)) for name in peers]
    for _ in range(20):
        assert await hub.call("df", "thing") == "knows"
    assert asked["knows"] == 20
    assert asked["not"] <= 1
    await peers["not"].send({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1}})
    before = asked["not"]
    while asked["not"] == before:  # a heartbeat: it may have registered more
        assert await hub.call("df", "thing") == "knows"
    assert asked["not"] == before + 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for peer in peers.values():
        peer.close()


async def refuse(peer: Peer, packet: dict[str, Any]) -> None:
    error = {"code": "PF001", "message": "No handler"}
    await peer.send(
        {"type": "result", "seq": 0, "payload": {"packet_id": packet["id"], "status": "error", "error": error}}
    )


async def test_pf001_only_when_all_have_refused(hub: Gateway) -> None:
    peer = await Peer.connect(hub.endpoint)
    answer = asyncio.ensure_future(hub.submit({"group": "df", "element": "none"}))
    for element in ("packetflow.anyone", "none"):
        packet = (await peer.message("submit"))["payload"]
        assert packet["element"] == element
        await refuse(peer, packet)
    assert (await answer).error["code"] == "PF001"
    peer.close()


async def test_a_silent_reactor_is_passed_over_after_three_deadlines(hub: Gateway) -> None:
    peer = await Peer.connect(hub.endpoint)
    await refuse(peer, (await peer.message("submit"))["payload"])  # it is a reactor, then
    await until(lambda: hub.switch.reactors_for("df:throws"))
    codes = []
    for _ in range(4):
        result = await hub.submit({"group": "df", "element": "throws", "timeout_ms": 20})
        codes.append(result.error["code"])
    assert codes == ["PF408", "PF408", "PF408", "PF001"]
    peer.close()


async def test_two_letter_codes_mean_the_standard_elements(hub: Gateway, start: Start) -> None:
    await start("worker", {"df:transform": lambda data: f"transform {data}"})
    client = await start("client")
    assert await client.call("df", "tr", 1) == "transform 1"
    await start("exact", {"df:tr": lambda data: "exact"})
    assert await client.call("df", "tr", 1) == "exact"
    hub.register("co", "sync", lambda data: "sync")
    assert await client.call("co", "ba") == "sync"
    with pytest.raises(NoHandler):
        await client.call("co", "zz")


# ---------------------------------------------------------------- windows, queues, priorities


async def test_no_more_than_its_window_goes_to_a_reactor(hub: Gateway, start: Start) -> None:
    running = most = 0

    async def work(data: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    await start("worker", {"df:work": work}, window=7)
    client = await start("client")
    await asyncio.gather(*(client.call("df", "work") for _ in range(100)))
    assert most == 7


async def test_the_most_urgent_leaves_the_queue_first(hub: Gateway, start: Start) -> None:
    gate = asyncio.Event()
    order: list[int] = []

    async def work(data: int) -> None:
        await gate.wait()
        order.append(data)

    await start("worker", {"df:work": work}, window=1)
    client = await start("client", window=4096)
    first = client.call("df", "work", 0)
    await until(lambda: hub.switch.routed == 1)
    rest = [client.call("df", "work", p, priority=p) for p in (1, 5, 10, 5, 1)]
    await until(lambda: hub.switch.queued == 5)
    gate.set()
    await asyncio.gather(first, *rest)
    assert order == [0, 10, 5, 5, 1, 1]


async def test_past_the_bound_of_its_queue_pf429_says_when_to_come_back() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", max_waiting=5) as hub:
        async with Reactor(hub.endpoint, name="w", window=1) as worker, Reactor(hub.endpoint) as client:
            gate = asyncio.Event()

            @worker.register("df", "work")
            async def work(data: Any) -> None:
                await gate.wait()

            await until(lambda: hub.switch.reactors_for("df:work"))
            replies = [client.call("df", "work") for _ in range(7)]
            with pytest.raises(Overloaded) as caught:
                await replies[-1]
            assert caught.value.details["retry_after_ms"] > 0
            gate.set()
            await asyncio.gather(*replies[:-1])


async def test_submits_beyond_the_gateways_window_wait_in_the_reactor() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", window=3) as hub, Reactor(hub.endpoint, name="c") as client:
        hub.register("df", "echo", lambda data: data)
        await hub.wait_for_reactor("c")
        await client.call("df", "echo", 0)
        assert await asyncio.gather(*(client.call("df", "echo", n) for n in range(50))) == list(range(50))


async def test_expired_work_is_never_started(hub: Gateway, start: Start) -> None:
    gate = asyncio.Event()
    ran: list[Any] = []

    async def work(data: Any) -> None:
        ran.append(data)
        await gate.wait()

    await start("worker", {"df:work": work}, window=1)
    client = await start("client")
    first = client.call("df", "work", "first")
    await until(lambda: ran)
    with pytest.raises(PacketTimeout):
        await client.call("df", "work", "late", timeout_ms=20)
    gate.set()
    await first
    await client.call("df", "work", "after")
    assert ran == ["first", "after"]


async def test_events_pass_a_full_house(hub: Gateway, start: Start) -> None:
    """ed runs at once, never behind queued work."""
    gate = asyncio.Event()

    async def work(data: Any) -> None:
        await gate.wait()

    await start("worker", {"df:work": work, "ed:event": lambda data: data}, concurrency=2, window=64)
    client = await start("client")
    busy = [client.call("df", "work") for _ in range(200)]
    await until(lambda: hub.switch.queued > 0)
    assert await client.call("ed", "event", 7) == 7
    gate.set()
    await asyncio.gather(*busy)


# ---------------------------------------------------------------- deadlines and cancelling


async def test_cancelling_reaches_the_handler_across_the_gateway(hub: Gateway, start: Start) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work(data: Any) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await start("worker", {"df:work": work})
    client = await start("client")
    reply = client.call("df", "work")
    await started.wait()
    reply.cancel()
    await cancelled.wait()
    await until(lambda: hub.switch.in_flight == 0)


async def test_a_deadline_at_the_gateway_cancels_the_handler(hub: Gateway, start: Start) -> None:
    cancelled = asyncio.Event()

    async def work(data: Any) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await start("worker", {"df:work": work})
    client = await start("client")
    with pytest.raises(PacketTimeout):
        await client.call("df", "work", timeout_ms=30)
    await cancelled.wait()


async def test_a_client_that_dies_takes_its_work_with_it(hub: Gateway, start: Start) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work(data: Any) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await start("worker", {"df:work": work})
    peer = await Peer.connect(hub.endpoint)
    await peer.send(submit(1))
    await started.wait()
    peer.close()
    await cancelled.wait()
    await until(lambda: hub.switch.in_flight == 0)


# ---------------------------------------------------------------- once, and only once


async def test_a_lost_worker_fails_its_packets_with_pf502(hub: Gateway, start: Start) -> None:
    worker = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:work")
    client = await start("client")
    await until(lambda: hub.switch.reactors_for("df:work"))
    reply = client.call("df", "work")
    await worker.message("submit")
    worker.close()
    with pytest.raises(ConnectionLost, match="may have run or not"):
        await reply


async def test_with_retry_another_worker_gets_it_under_the_same_id(hub: Gateway, start: Start) -> None:
    worker = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:work")
    client = await start("client")
    await until(lambda: hub.switch.reactors_for("df:work"))
    reply = client.submit(Packet("df", "work", 1, id="the-id"), retry=2)
    assert (await worker.message("submit"))["payload"]["id"] == "the-id"
    seen: list[str] = []

    def work(data: Any, packet: Packet) -> Any:
        seen.append(packet.id)
        return data

    await start("second", {"df:work": work})
    worker.close()
    assert (await reply).data == 1
    assert seen == ["the-id"]


@pytest.mark.parametrize("retry", [0, 3])
async def test_a_handler_that_began_runs_once_whatever_it_raises(hub: Gateway, start: Start, retry: int) -> None:
    runs = []
    workers: list[Reactor] = []

    async def charge(data: Any) -> None:
        runs.append(data)
        await workers[0].call("df", "missing", data)  # nobody has that

    workers += [await start(name, {"df:charge": charge}) for name in "abc"]
    client = await start("client")
    answers = [await client.submit(Packet("df", "charge", 1, id="order"), retry=retry) for _ in range(2)]
    assert len(runs) == 1
    for answer in answers:
        assert answer.error is not None
        assert (answer.error["code"], answer.error["details"]["code"]) == ("PF500", "PF001")


async def test_with_retry_it_waits_for_a_worker_that_comes_back(hub: Gateway, start: Start) -> None:
    worker = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:work")
    client = await start("client")
    await until(lambda: hub.switch.reactors_for("df:work"))
    reply = client.call("df", "work", 5, retry=True)
    await worker.message("submit")
    worker.close()
    await until(lambda: hub.switch.queued == 1)
    await start("again", {"df:work": lambda data: data})
    assert await reply == 5


async def test_the_same_id_again_attaches_or_is_answered_from_memory(hub: Gateway, start: Start) -> None:
    runs = 0
    gate = asyncio.Event()

    async def work(data: Any) -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    await start("worker", {"df:work": work})
    one, two = await Peer.connect(hub.endpoint), await Peer.connect(hub.endpoint)
    await one.send(submit(1, id="same"))
    await until(lambda: runs == 1)
    await two.send(submit(9, id="same"))
    await until(lambda: hub.switch.duplicates == 1)
    gate.set()
    first, second = await one.message("result"), await two.message("result")
    assert (first["seq"], second["seq"]) == (1, 9)
    assert first["payload"] == second["payload"]
    await one.send(submit(2, id="same"))
    assert (await one.message("result"))["payload"] == first["payload"]
    await one.send(submit(3, id="same", data="other"))
    assert (await one.message("result"))["payload"]["error"]["code"] == "PF409"
    assert runs == 1
    one.close()
    two.close()


async def test_what_ends_when_its_connection_takes_no_more_is_remembered_like_any_other(hub: Gateway) -> None:
    """The peer reads nothing: the answer that is one too many ends the connection, and is none the less an outcome."""
    runs = []
    release = asyncio.Event()

    async def own(data: Any) -> str:
        runs.append(data)
        await release.wait()
        return str(data % 10) * 900_000

    hub.register("df", "own", own)
    messages = [
        submit(n + 1, id=f"mine-{n}", element="own", data=n, timeout_ms=300_000, metadata={"retry": 1})
        for n in range(48)
    ]
    peer = await Peer.connect(hub.endpoint)
    peer.writer.write(b"".join(frame(json.dumps(message).encode(), mask=b"abcd") for message in messages))
    await until(lambda: len(runs) == 48)
    release.set()
    await until(lambda: not hub.view.links)
    peer.close()
    await until(lambda: hub.switch.in_flight == 0)
    again = await Peer.connect(hub.endpoint)
    for n in range(48):
        await again.send(messages[n])
        payload = (await again.message("result"))["payload"]
        # the latest are kept; of the others it is known that they have ended
        assert payload.get("data") == str(n % 10) * 900_000 or payload["error"]["code"] == "PF409"
    assert sorted(runs) == list(range(48))
    again.close()


@pytest.mark.parametrize("suspends", [False, True])
async def test_ids_are_remembered_for_the_gateways_own_handlers_too(hub: Gateway, suspends: bool) -> None:
    runs = 0

    @hub.register("df", "work")
    async def work(data: Any) -> int:
        nonlocal runs
        runs += 1
        if suspends:
            await asyncio.sleep(0.01)
        return runs

    peer = await Peer.connect(hub.endpoint)
    await peer.send(submit(1, id="same"))
    await peer.send(submit(2, id="same"))
    results = [await peer.message("result") for _ in range(2)]
    assert sorted(result["seq"] for result in results) == [1, 2]
    assert {result["payload"]["data"] for result in results} == {1}
    assert runs == 1
    peer.close()


async def test_a_client_that_comes_back_gets_the_answer_of_its_retry_safe_packet(hub: Gateway, start: Start) -> None:
    runs = 0
    gate = asyncio.Event()

    async def work(data: Any) -> str:
        nonlocal runs
        runs += 1
        await gate.wait()
        return "done"

    await start("worker", {"df:work": work})
    client = await start("client")
    reply = client.call("df", "work", retry=3)
    await until(lambda: runs == 1)
    hub.reactors["client"].disconnect()
    await until(lambda: hub.counts["reconnects"] == 1)
    await until(lambda: hub.switch.duplicates == 1)
    gate.set()
    assert await reply == "done"
    assert runs == 1


async def test_the_same_for_a_handler_of_the_gateways_own(hub: Gateway, start: Start) -> None:
    runs = 0
    gate = asyncio.Event()

    @hub.register("df", "work")
    async def work(data: Any) -> str:
        nonlocal runs
        runs += 1
        await gate.wait()
        return "done"

    client = await start("client")
    reply = client.call("df", "work", retry=3)
    await until(lambda: runs == 1)
    hub.reactors["client"].disconnect()
    await until(lambda: hub.switch.duplicates == 1)
    gate.set()
    assert await reply == "done"
    assert runs == 1


async def test_a_reactor_fails_over_to_the_other_gateway_and_back() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as one, Gateway("ws://127.0.0.1:0/packetflow/v1") as two:
        one.register("df", "who", lambda data: "one")
        two.register("df", "who", lambda data: "two")
        async with Reactor([one.endpoint, two.endpoint], name="r") as reactor:
            assert await reactor.call("df", "who") == "one"
            first = one.endpoint
            await one.stop()
            assert await reactor.call("df", "who", retry=5) == "two"
            back = Gateway(first)
            back.register("df", "who", lambda data: "one again")
            async with back:
                await two.stop()
                assert await reactor.call("df", "who", retry=5) == "one again"


async def test_a_result_counts_only_from_the_link_its_packet_went_to(hub: Gateway, start: Start) -> None:
    worker = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:work")
    forger = await Peer.connect(hub.endpoint)
    client = await start("client")
    await until(lambda: hub.switch.reactors_for("df:work"))
    reply = client.call("df", "work")
    message = await worker.message("submit")
    forged = {"packet_id": message["payload"]["id"], "status": "success", "data": "forged", "duration_ms": 0}
    for seq in (0, message["seq"], message["seq"] + 1):
        await forger.send({"type": "result", "seq": seq, "payload": forged})
    await until(lambda: hub.switch.late >= 3)
    await worker.send({"type": "result", "seq": message["seq"], "payload": forged | {"data": "real"}})
    assert await reply == "real"
    worker.close()
    forger.close()


# ---------------------------------------------------------------- dependencies


async def test_a_packet_waits_for_what_it_depends_on_across_reactors(hub: Gateway, start: Start) -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def slow(data: Any) -> None:
        await gate.wait()
        order.append("slow")

    await start("one", {"df:slow": slow})
    await start("two", {"df:after": lambda data: order.append("after")})
    hub.register("df", "own", lambda data: order.append("own"))
    client = await start("client")
    waiting = client.submit(Packet("df", "after", dependencies=["a"], id="b"))
    own = client.submit(Packet("df", "own", dependencies=["a", "b"]))
    first = client.submit(Packet("df", "slow", id="a"))
    await until(lambda: hub.switch.in_flight == 3)
    gate.set()
    assert (await first).ok
    assert (await waiting).ok
    assert (await own).ok
    assert order == ["slow", "after", "own"]
    assert (await client.submit(Packet("df", "after", dependencies=["a", "b"]))).ok, "known to have succeeded"


async def test_a_failed_dependency_is_pf424_with_its_id(hub: Gateway, start: Start) -> None:
    hub.register("df", "fail", lambda data: 1 / 0)
    hub.register("df", "echo", lambda data: data)
    client = await start("client")
    assert not (await client.submit(Packet("df", "fail", id="bad"))).ok
    result = await client.submit(Packet("df", "echo", dependencies=["bad"]))
    assert result.error["code"] == "PF424"
    assert result.error["details"] == {"dependency": "bad"}
    waiting = client.submit(Packet("df", "echo", dependencies=["bad too"]))
    await client.submit(Packet("df", "fail", id="bad too"))
    assert (await waiting).error["code"] == "PF424"


async def test_a_dependency_that_never_comes_is_pf424_at_the_deadline(hub: Gateway, start: Start) -> None:
    hub.register("df", "echo", lambda data: data)
    client = await start("client")
    result = await client.submit(Packet("df", "echo", dependencies=["never"], timeout_ms=30))
    assert result.error["code"] == "PF424"
    assert hub.switch.in_flight == 0


async def test_a_cycle_is_refused_at_once(hub: Gateway, start: Start) -> None:
    hub.register("df", "echo", lambda data: data)
    client = await start("client")
    a = client.submit(Packet("df", "echo", id="a", dependencies=["b"]))
    b = client.submit(Packet("df", "echo", id="b", dependencies=["c"]))
    c = await client.submit(Packet("df", "echo", id="c", dependencies=["a"]))
    assert c.error["code"] == "PF424"
    assert "cycle" in c.error["message"]
    assert (await b).error["code"] == "PF424"
    assert (await a).error["code"] == "PF424"
    own = await client.submit(Packet("df", "echo", id="s", dependencies=["s"]))
    assert own.error["code"] == "PF424"


async def test_a_long_chain_of_dependencies_resolves(hub: Gateway, start: Start) -> None:
    hub.register("df", "echo", lambda data: data)
    client = await start("client")
    replies = [client.submit(Packet("df", "echo", n, id=f"n{n}", dependencies=[f"n{n - 1}"])) for n in range(1, 2000)]
    await client.submit(Packet("df", "echo", 0, id="n0"))
    results = await asyncio.gather(*replies)
    assert [result.data for result in results] == list(range(1, 2000))


# ---------------------------------------------------------------- layouts


async def test_what_two_parsers_could_read_differently_is_written_anew(hub: Gateway) -> None:
    worker = await Peer.connect(hub.endpoint, path="/packetflow/v1?handles=df:work")
    await until(lambda: hub.switch.reactors_for("df:work"))
    peer = await Peer.connect(hub.endpoint)
    raw = (
        b'{ "payload": {"priority": 7.0, "metadata": {"k": 1, "k": 2}, "id": "\\u0061", "x": 1, "data": [1.50, "\\u00e9"],'
        b'"element": "w\\u006frk", "group": "df", "version": "1.3", "timeout_ms": null }, "seq": 4, "type": "submit"}'
    )
    await peer.send(raw)
    opcode, payload = await worker.frame()
    while b'"submit"' not in payload:
        opcode, payload = await worker.frame()
    assert opcode == 1
    assert payload.startswith(b'{"type":"submit","seq":')
    assert payload.partition(b'"payload":')[2] == (
        b'{"version":"1.3","id":"a","group":"df","element":"work","data":[1.50, "\\u00e9"],"priority":7,'
        b'"metadata":{"k":2}}}'
    )
    peer.close()
    worker.close()


async def test_a_reference_reactors_answer_is_understood(hub: Gateway, start: Start) -> None:
    """Elixir's order of keys, nulls, and seq 0."""
    worker = await Peer.connect(hub.endpoint)
    client = await start("client")
    reply = client.submit({"group": "df", "element": "x", "data": None})
    await refuse(worker, (await worker.message("submit"))["payload"])  # the gateway's question
    packet = (await worker.message("submit"))["payload"]
    await worker.send(
        b'{"payload":{"data":{"b":[1,null]},"duration_ms":-3,"error":null,"packet_id":"%s","status":"success"},'
        b'"seq":0,"type":"result"}' % packet["id"].encode()
    )
    result = await reply
    assert (result.data, result.duration_ms) == ({"b": [1, None]}, 0)
    worker.close()


async def test_stopping_drains_and_refuses_what_comes_after(start: Start, hub: Gateway) -> None:
    gate = asyncio.Event()

    async def work(data: Any) -> str:
        await gate.wait()
        return "done"

    await start("worker", {"df:work": work})
    client = await start("client", reconnect=False)
    reply = client.call("df", "work")
    await until(lambda: hub.switch.routed == 1)
    stopping = asyncio.create_task(hub.stop(grace=5))
    await until(lambda: hub.switch.draining)
    with pytest.raises(Unavailable):
        await client.call("df", "work")
    gate.set()
    assert await reply == "done"
    await stopping


# ---------------------------------------------------------------- learned routes


async def answers(peer: Peer, data: str, *elements: str) -> None:
    """A bare reactor that announces nothing: answers these elements with `data`, PF001 to any other."""
    while True:
        message = await peer.message("submit")
        packet = message["payload"]
        outcome: dict[str, Any] = {"status": "error", "error": {"code": "PF001", "message": "not here"}}
        if packet["element"] in elements:
            outcome = {"status": "success", "data": data}
        payload = {"packet_id": packet["id"], "duration_ms": 0, **outcome}
        await peer.send({"type": "result", "seq": 0, "payload": payload})


async def test_a_reactor_that_has_answered_shares_the_work_with_one_that_announces(hub: Gateway, start: Start) -> None:
    bare = await Peer.connect(hub.endpoint)
    answering = asyncio.ensure_future(answers(bare, "bare", "work"))
    client = await start("client")
    assert await client.call("df", "work") == "bare"
    await start("lister", {"df:work": lambda data: "lister"}, window=256)
    seen = await asyncio.gather(*(client.call("df", "work") for _ in range(100)))
    assert set(seen) == {"bare", "lister"}
    bare.close()
    answering.cancel()
    await until(lambda: len(hub.switch.reactors_for("df:work")) == 1)
    assert await client.call("df", "work") == "lister"


async def test_one_that_answers_no_more_is_passed_over(hub: Gateway, start: Start) -> None:
    bare = await Peer.connect(hub.endpoint)
    answering = asyncio.ensure_future(answers(bare, "bare", "work"))
    client = await start("client")
    assert await client.call("df", "work") == "bare"
    await start("lister", {"df:work": lambda data: "lister"}, window=256)
    answering.cancel()
    answering = asyncio.ensure_future(answers(bare, "bare"))
    assert set(await asyncio.gather(*(client.call("df", "work") for _ in range(100)))) == {"lister"}
    assert [member.listed for member in hub.switch.reactors_for("df:work")] == [True]
    answering.cancel()
    bare.close()


async def test_a_two_letter_code_finds_a_reactor_that_announces_nothing(hub: Gateway, start: Start) -> None:
    bare = await Peer.connect(hub.endpoint)
    answering = asyncio.ensure_future(answers(bare, "bare", "transform"))
    client = await start("client")
    assert await client.call("df", "tr") == "bare"
    assert await client.call("df", "transform") == "bare"
    answering.cancel()
    bare.close()


async def test_one_that_has_answered_does_not_take_the_place_of_our_own_handler(hub: Gateway, start: Start) -> None:
    bare = await Peer.connect(hub.endpoint)
    answering = asyncio.ensure_future(answers(bare, "bare", "work"))
    client = await start("client")
    assert await client.call("rm", "work") == "bare"
    hub.register("rm", "work", lambda data: "gateway")
    assert [await client.call("rm", "work") for _ in range(4)] == ["gateway"] * 4
    answering.cancel()
    bare.close()
