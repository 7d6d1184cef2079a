"""Submitting and handling over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import packetflow
from packetflow import Gateway, Packet, Reactor
from packetflow.conformance.wire import Peer, accept_handshake


async def test_the_specifications_usage_example(reactor: Reactor) -> None:
    result = await reactor.submit({"group": "df", "element": "transform", "data": "hello world", "priority": 5})
    assert result.status == "success"
    assert result.data == "HELLO WORLD"
    assert result.error is None
    assert result.duration_ms >= 0
    assert len(result.packet_id) == 36


async def test_submit_takes_a_packet_and_keeps_its_id(reactor: Reactor) -> None:
    packet = Packet("df", "transform", "x", id="mine", metadata={"a": 1})
    result = await reactor.submit(packet)
    assert (result.packet_id, result.data) == ("mine", "X")


async def test_submit_resolves_whatever_the_handler_did(reactor: Reactor) -> None:
    result = await reactor.submit({"group": "df", "element": "fail", "data": "boom"})
    assert (result.status, result.ok, result.data) == ("error", False, None)
    assert result.error == {"code": "PF500", "message": "boom"}
    missing = await reactor.submit({"group": "co", "element": "nobodys"})
    assert missing.error["code"] == "PF001"


async def test_call_gives_the_data_or_raises(reactor: Reactor) -> None:
    assert await reactor.call("df", "echo", {"a": [1, None]}) == {"a": [1, None]}
    assert await reactor.call("df", "echo") is None
    with pytest.raises(packetflow.HandlerError, match="boom") as caught:
        await reactor.call("df", "fail", "boom")
    assert caught.value.packet_id
    with pytest.raises(packetflow.NoHandler, match="df:nothing"):
        await reactor.call("df", "nothing")


async def test_an_invalid_packet_raises_at_once(reactor: Reactor) -> None:
    for bad in ({"group": "xx", "element": "y"}, {"group": "df"}, {"group": "df", "element": "x", "prio": 1}, 5):
        with pytest.raises(packetflow.InvalidPacket):
            reactor.submit(bad)
    with pytest.raises(packetflow.InvalidPacket):
        reactor.call("df", "echo", object())
    with pytest.raises(packetflow.TooLarge):
        reactor.call("df", "echo", "x" * 1_048_576)
    assert await reactor.call("df", "echo", 1) == 1


async def test_sizes_up_to_the_limit(reactor: Reactor) -> None:
    for size in (1, 125, 126, 65_400, 65_536, 70_000, 1_048_000):
        text = "x" * size
        assert await reactor.call("df", "echo", text) == text


async def test_every_kind_of_value(reactor: Reactor) -> None:
    for value in (None, True, 0, -1, 2**53 + 1, 10**15, 2**64, 10**30, 1e-300, 0.1, "", "é😀\x00\x1f\"\\", [], {}, [[]],
                  {"": {"a": [1.5]}}, "".join(map(chr, range(32)))):  # fmt: skip
        answer = await reactor.call("df", "echo", value)
        assert answer == value
        assert type(answer) is type(value)


# -- the awaitable


async def test_gather_wait_and_wait_for_take_replies_as_they_are(reactor: Reactor) -> None:
    assert await asyncio.gather(*(reactor.call("df", "echo", n) for n in range(50))) == list(range(50))
    done, pending = await asyncio.wait([reactor.call("df", "echo", n) for n in range(5)])
    assert {reply.result() for reply in done} == set(range(5))
    assert not pending
    assert await asyncio.wait_for(reactor.call("df", "echo", 1), 10) == 1
    assert await asyncio.shield(reactor.call("df", "echo", 2)) == 2
    results = await asyncio.gather(
        reactor.call("df", "fail", "x"), reactor.call("df", "echo", 1), return_exceptions=True
    )
    assert isinstance(results[0], packetflow.HandlerError)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reactor.call("df", "forever"), 0.01)


async def test_a_reply_is_a_future_in_all_but_name(reactor: Reactor) -> None:
    reply = reactor.call("df", "echo", 1)
    assert not reply.done()
    with pytest.raises(asyncio.InvalidStateError):
        reply.result()
    with pytest.raises(asyncio.InvalidStateError):
        reply.exception()
    called = asyncio.Event()
    removed: list[Any] = []
    reply.add_done_callback(removed.append)
    reply.add_done_callback(lambda _: called.set())
    assert reply.remove_done_callback(removed.append) == 1
    await called.wait()
    assert reply.done() and not reply.cancelled()
    assert (reply.result(), reply.exception(), removed) == (1, None, [])
    assert reply.get_loop() is asyncio.get_running_loop()
    assert not reply.cancel()
    again = asyncio.Event()
    reply.add_done_callback(lambda _: again.set())
    await again.wait()
    assert await reply == await reply == 1
    failed = reactor.call("df", "fail", "x")
    await asyncio.wait([failed])
    assert isinstance(failed.exception(), packetflow.HandlerError)


async def test_callbacks_run_in_their_own_context_and_their_errors_are_reported(reactor: Reactor) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))

    async def task(name: str) -> None:
        variable.set(name)
        await reactor.call("df", "echo", name)
        seen.append(variable.get())

    await asyncio.gather(*(task(name) for name in "abc"))
    assert sorted(seen) == ["a", "b", "c"]
    reply = reactor.call("df", "echo", 1)
    reply.add_done_callback(lambda _: 1 / 0)
    await reply
    await reactor.call("df", "echo", 1)
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


async def test_cancelling_the_awaiting_task_cancels_the_work(gateway: Gateway, reactor: Reactor) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    @gateway.register("df", "watched")
    async def watched(data: Any) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    task = asyncio.create_task(_await(reactor.call("df", "watched")))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended.wait()
    assert await reactor.call("df", "echo", "still alive") == "still alive"


async def _await(reply: Any) -> Any:
    return await reply


async def test_a_dropped_reply_leaves_nothing_behind(reactor: Reactor) -> None:
    class Marker:
        pass

    marker = Marker()
    reference = weakref.ref(marker)

    async def wait(held: Marker) -> None:
        with pytest.raises(packetflow.HandlerError):
            await reactor.call("df", "fail", "x")

    task = asyncio.create_task(wait(marker))
    await task
    del task, marker
    gc.collect()
    assert reference() is None


# -- map


async def test_map_gives_results_in_the_order_of_the_items(gateway: Gateway, reactor: Reactor) -> None:
    @gateway.register("df", "uneven")
    async def uneven(data: int) -> int:
        for _ in range(data % 7):
            await asyncio.sleep(0)
        return data * data

    results = [result async for result in reactor.map("df", "uneven", range(3000), window=100)]
    assert [result.data for result in results] == [n * n for n in range(3000)]


async def test_map_keeps_to_its_window(gateway: Gateway, reactor: Reactor) -> None:
    most = running = 0

    @gateway.register("df", "count")
    async def count(data: int) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async for _ in reactor.map("df", "count", range(200), window=5):
        pass
    assert most == 5


@pytest.mark.parametrize("count", [0, 1, 17, 500])
async def test_map_takes_async_iterables(reactor: Reactor, count: int) -> None:
    async def items() -> AsyncIterator[int]:
        for n in range(count):
            await asyncio.sleep(0)
            yield n

    assert [result.data async for result in reactor.map("df", "echo", items(), window=8)] == list(range(count))


async def test_map_reports_failures_as_results_and_goes_on(reactor: Reactor) -> None:
    codes = [result.error and result.error["code"] async for result in reactor.map("df", "transform", ["a", 1, "b"])]
    assert codes == [None, "PF400", None]


async def test_an_error_in_the_items_ends_the_iteration(reactor: Reactor) -> None:
    def items() -> Any:
        yield 1
        raise KeyError("items")

    async def async_items() -> AsyncIterator[int]:
        yield 1
        raise KeyError("items")

    for source in (items(), async_items()):
        with pytest.raises(KeyError):
            async for _ in reactor.map("df", "echo", source, window=1):
                pass
    with pytest.raises(packetflow.InvalidPacket):
        async for _ in reactor.map("df", "echo", [1, object()]):
            pass
    with pytest.raises(TypeError):
        reactor.map("df", "echo", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window: expected 1 to"):
        reactor.map("df", "echo", [], window=0)


async def test_leaving_map_early_cancels_what_is_in_flight(gateway: Gateway, reactor: Reactor) -> None:
    cancelled = asyncio.Event()
    started = 0

    @gateway.register("df", "stuck")
    async def stuck(data: int) -> int:
        nonlocal started
        if data == 0:
            return 0
        started += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            started -= 1
            if not started:
                cancelled.set()
        return 1

    async for _ in reactor.map("df", "stuck", range(50), window=50):
        break
    await cancelled.wait()


# -- handlers on the reactor, and submits within them


async def test_the_gateway_submits_to_a_named_reactor(gateway: Gateway, reactor: Reactor) -> None:
    @reactor.register("ed", "greet")
    async def greet(data: str, packet: Packet) -> str:
        return f"hello {data} at {packet.priority}"

    assert await gateway.call("ed", "greet", "Ada", reactor="r1", priority=8) == "hello Ada at 8"
    result = await gateway.submit({"group": "ed", "element": "greet", "data": 5}, reactor="r1")
    assert result.error["code"] == "PF400"
    assert gateway.reactors["r1"].name == "r1"
    with pytest.raises(packetflow.ConnectionLost, match="no reactor named 'r2'"):
        gateway.call("ed", "greet", "x", reactor="r2")


async def test_handlers_are_announced_when_they_change(gateway: Gateway, reactor: Reactor) -> None:
    reactor.register("df", "late", lambda data: data)
    await reactor.call("df", "echo")  # behind the announcement on the same wire
    assert gateway.reactors["r1"].handles == ["df:late"]


async def test_a_handler_may_submit_through_its_own_reactor(gateway: Gateway, reactor: Reactor) -> None:
    @reactor.register("cf", "twice")
    async def twice(data: str) -> str:
        return await reactor.call("df", "transform", data) * 2

    assert await gateway.call("cf", "twice", "ab", reactor="r1") == "ABAB"
    assert await asyncio.gather(*(gateway.call("cf", "twice", str(n), reactor="r1") for n in range(300))) == [
        str(n) * 2 for n in range(300)
    ]


async def test_a_plain_handler_may_return_an_awaitable(gateway: Gateway, reactor: Reactor) -> None:
    reactor.register("cf", "pass", lambda data: reactor.call("df", "transform", data))
    assert await gateway.call("cf", "pass", "ab", reactor="r1") == "AB"


# -- deadlines and priorities


async def test_the_deadline_is_kept_and_the_handler_cancelled(gateway: Gateway, reactor: Reactor) -> None:
    cancelled = asyncio.Event()

    @gateway.register("df", "slow")
    async def slow(data: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(packetflow.PacketTimeout) as caught:
        await reactor.call("df", "slow", timeout_ms=20)
    assert isinstance(caught.value, TimeoutError)
    await cancelled.wait()
    result = await reactor.submit({"group": "df", "element": "slow", "timeout_ms": 5})
    assert result.error["code"] == "PF408"


async def test_a_handler_that_ignores_its_cancellation_answers_nobody(gateway: Gateway, reactor: Reactor) -> None:
    finished = asyncio.Event()

    @gateway.register("df", "stubborn")
    async def stubborn(data: Any) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            finished.set()
        return "too late"

    with pytest.raises(packetflow.PacketTimeout):
        await reactor.call("df", "stubborn", timeout_ms=10)
    await finished.wait()
    assert await reactor.call("df", "echo", 1) == 1


async def test_no_answer_at_all_ends_one_second_after_the_deadline() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Reactor(f"ws://127.0.0.1:{port}/packetflow/v1") as reactor:
            with pytest.raises(packetflow.PacketTimeout, match="no answer came"):
                await reactor.submit({"group": "df", "element": "x", "timeout_ms": 1})


async def test_at_the_concurrency_limit_the_most_urgent_waits_least() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1)
    gate = asyncio.Event()
    order: list[int] = []

    @gateway.register("df", "work")
    async def work(data: int) -> None:
        order.append(data)
        if data == 0:
            await gate.wait()

    async with gateway, Reactor(gateway.endpoint) as reactor:
        calls = [reactor.call("df", "work", 0)]
        calls += [reactor.call("df", "work", n, priority=p) for n, p in ((1, 1), (2, 5), (3, 10), (4, 5), (5, 10))]
        calls.append(reactor.call("df", "nothing"))
        with pytest.raises(packetflow.NoHandler):  # read after all the others
            await calls[-1]
        gate.set()
        await asyncio.gather(*calls[:-1])
    assert order == [0, 3, 5, 2, 4, 1]


async def test_a_packet_that_expires_in_the_queue_never_runs() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1)
    gate = asyncio.Event()
    ran: list[str] = []

    @gateway.register("df", "work")
    async def work(data: str) -> None:
        ran.append(data)
        await gate.wait()

    async with gateway, Reactor(gateway.endpoint) as reactor:
        first = reactor.call("df", "work", "first")
        with pytest.raises(packetflow.PacketTimeout):
            await reactor.call("df", "work", "second", timeout_ms=10)
        gate.set()
        await first
    assert ran == ["first"]


async def test_past_the_queues_bound_the_answer_is_pf429() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1, max_queue=2)
    gate = asyncio.Event()
    gateway.register("df", "work", lambda data: gate.wait())
    async with gateway, Reactor(gateway.endpoint) as reactor:
        calls = [reactor.call("df", "work", n) for n in range(5)]
        outcomes = []
        for call in calls[3:]:
            with pytest.raises(packetflow.Overloaded) as caught:
                await call
            outcomes.append(caught.value.details)
        assert outcomes == [{"retry_after_ms": 100}] * 2
        gate.set()
        assert await asyncio.gather(*calls[:3]) == [True, True, True]


async def test_handlers_that_keep_the_loop_take_turns_with_it() -> None:
    """A read full of slow packets must not hold up everything else until its end."""
    import time

    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    gateway.register("df", "busy", lambda data: time.sleep(0.002))
    gateway.register("ed", "now", lambda data: time.perf_counter())
    async with gateway, Reactor(gateway.endpoint) as reactor:
        busy = [reactor.call("df", "busy") for _ in range(100)]
        urgent = await reactor.call("ed", "now", priority=10)
        await asyncio.gather(*busy)
        assert time.perf_counter() - urgent > 0.1  # most of the 200 ms came after it


async def test_a_results_data_as_json(gateway: Gateway, reactor: Reactor) -> None:
    gateway.register("df", "echo", lambda data: data)
    gateway.register("df", "nothing", lambda data: None)
    data = {"big": 12345678901234567890123, "é": [1.0, None]}
    result = await reactor.submit({"group": "df", "element": "echo", "data": data}, raw=True)
    assert isinstance(result.data, msgspec.Raw)
    assert msgspec.json.decode(result.data) == data
    nothing = await reactor.submit({"group": "df", "element": "nothing"}, raw=True)
    assert bytes(nothing.data) == b"null"
    failed = await reactor.submit({"group": "df", "element": "unknown"}, raw=True)
    assert (failed.data, failed.error["code"]) == (None, "PF001")


async def test_a_slow_handler_is_named_in_a_warning(gateway: Gateway, reactor: Reactor, caplog: Any) -> None:
    import time

    gateway.register("df", "sluggish", lambda data: time.sleep(0.12))
    await reactor.call("df", "sluggish")
    assert "df:sluggish kept the event loop for 1" in caplog.text


async def test_a_slow_handler_that_raises_is_named_and_answered(
    gateway: Gateway, reactor: Reactor, caplog: Any
) -> None:
    import time

    @gateway.register("df", "sluggish")
    async def sluggish(data: Any) -> None:
        await asyncio.sleep(0)
        time.sleep(0.12)
        raise ValueError("too late")

    for _ in range(3):
        result = await reactor.submit({"group": "df", "element": "sluggish"})
        assert result.error == {"code": "PF500", "message": "too late"}
    assert "df:sluggish kept the event loop for 1" in caplog.text


# -- tasks and contexts of handlers


async def test_handlers_have_a_task_and_a_context_of_their_own(gateway: Gateway, reactor: Reactor) -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)
    tasks: list[Any] = []

    @gateway.register("df", "keep")
    async def keep(data: Any) -> Any:
        tasks.append(asyncio.current_task())
        before = variable.get()
        variable.set(data)
        if data % 2:
            await asyncio.sleep(0)
        assert asyncio.current_task() is tasks[-1] or data % 2
        return before

    @gateway.register("df", "timeout")
    async def timeout(data: Any) -> str:
        try:
            async with asyncio.timeout(0.005):
                await asyncio.sleep(10)
        except TimeoutError:
            return "timed out"
        return "never"

    @gateway.register("df", "group")
    async def group(data: Any) -> list[int]:
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
        return [child.result() for child in children]

    for n in range(20):
        assert await reactor.call("df", "keep", n) is None
    assert all(isinstance(task, asyncio.Task) for task in tasks)
    assert len({id(task) for task in tasks}) == 20  # all were kept, so none was used again
    assert await asyncio.gather(*(reactor.call("df", "timeout") for _ in range(20))) == ["timed out"] * 20
    assert await reactor.call("df", "group") == [0, 1, 2]


async def test_a_handler_that_suspends_many_at_once(gateway: Gateway, reactor: Reactor) -> None:
    @gateway.register("df", "hop")
    async def hop(data: int) -> int:
        for _ in range(data % 4):
            await asyncio.sleep(0)
        return data

    for _ in range(3):
        assert await asyncio.gather(*(reactor.call("df", "hop", n) for n in range(1500))) == list(range(1500))


# -- life


async def test_nobody_there_is_connection_lost() -> None:
    reactor = Reactor("ws://127.0.0.1:1/packetflow/v1")
    with pytest.raises(packetflow.ConnectionLost, match="cannot connect to ws://127.0.0.1:1") as caught:
        await reactor.start()
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(packetflow.ConnectionLost, match="not started"):
        reactor.call("df", "x")
    await reactor.stop()


async def test_a_reactor_may_be_started_again(gateway: Gateway) -> None:
    async with gateway:
        reactor = Reactor(gateway.endpoint)
        for _ in range(3):
            async with reactor:
                assert reactor.connected
                assert await reactor.call("df", "echo", 1) == 1
                with pytest.raises(RuntimeError, match="started already"):
                    await reactor.start()
            assert not reactor.connected


async def test_stopping_ends_what_is_unanswered(gateway: Gateway) -> None:
    async with gateway:
        reactor = Reactor(gateway.endpoint)
        await reactor.start()
        reply = reactor.call("df", "forever")
        await reactor.call("df", "echo")
        await reactor.stop()
        with pytest.raises((packetflow.ConnectionLost, packetflow.Unavailable)):
            await reply


async def test_stopping_lets_accepted_packets_finish(gateway: Gateway, reactor: Reactor) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @reactor.register("df", "slow")
    async def slow(data: Any) -> str:
        started.set()
        await gate.wait()
        return "finished"

    call = gateway.call("df", "slow", reactor="r1")
    await started.wait()
    stopping = asyncio.create_task(reactor.stop())
    await asyncio.sleep(0)
    with pytest.raises(packetflow.Unavailable):
        await gateway.call("df", "slow", reactor="r1")
    gate.set()
    assert await call == "finished"
    await stopping


async def test_a_reactor_dials_again_and_what_waits_is_sent_then(gateway: Gateway) -> None:
    async with gateway:
        proxy_target = gateway.endpoint
        reactor = Reactor(proxy_target, name="r")
        async with reactor:
            await gateway.wait_for_reactor("r")
            lost = reactor.call("df", "forever")
            await reactor.call("df", "echo")
            gateway.reactors["r"].disconnect()
            with pytest.raises(packetflow.ConnectionLost, match="answer is unknown"):
                await lost
            assert await reactor.call("df", "echo", "after") == "after"
            assert reactor.connected


async def test_without_reconnect_a_loss_is_final(gateway: Gateway) -> None:
    async with gateway, Reactor(gateway.endpoint, name="r", reconnect=False) as reactor:
        await gateway.wait_for_reactor("r")
        lost = reactor.call("df", "forever")
        await reactor.call("df", "echo")
        gateway.reactors["r"].disconnect()
        with pytest.raises(packetflow.ConnectionLost):
            await lost
        with pytest.raises(packetflow.ConnectionLost):
            await reactor.call("df", "echo", 1)


async def test_another_thread_is_told_to_use_the_blocking_reactor(reactor: Reactor) -> None:
    def elsewhere() -> None:
        for attempt in (lambda: reactor.call("df", "echo"), lambda: reactor.submit({"group": "df", "element": "echo"})):
            with pytest.raises(RuntimeError, match=r"packetflow\.sync\.Reactor"):
                attempt()

    await asyncio.to_thread(elsewhere)
    assert await reactor.call("df", "echo", 1) == 1


async def test_a_gateway_that_never_reads_costs_deadlines_and_nothing_more() -> None:
    """Back-pressure: what the socket does not take waits here, bounded, and ends by its deadline."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()
        writer.transport.abort()

    gone = asyncio.Event()
    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Reactor(f"ws://127.0.0.1:{port}/packetflow/v1", max_pending=3000) as reactor:
            calls = [reactor.call("df", "x", "x" * 10_000, timeout_ms=20) for _ in range(3000)]
            with pytest.raises(packetflow.Overloaded):
                reactor.call("df", "x")
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {packetflow.PacketTimeout}
            assert any("never sent" in str(outcome) for outcome in outcomes)
            gone.set()


@pytest.mark.parametrize("endpoint", ["http://x", "ws://", "ws://h:99999", "ws://name@h", "ws://h/#f", "nonsense"])
def test_a_bad_endpoint_says_what_is_wrong(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        Reactor(endpoint)


@pytest.mark.parametrize(
    "settings",
    [{"window": 0}, {"concurrency": 0}, {"max_frame": 1}, {"heartbeat": 0}, {"max_queue": -1}, {"max_pending": 0}],
)
def test_bad_settings_fail_before_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Reactor("ws://127.0.0.1:1/", **settings)


async def test_reference_reactors_are_answered_and_understood(gateway: Gateway) -> None:
    """A peer that speaks exactly as the specification's listings do."""
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        assert (await peer.message())["type"] == "heartbeat"
        await peer.send({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1}})
        packet = {"version": "1.0", "id": "a", "group": "df", "element": "transform", "data": "hi", "priority": 5}
        await peer.send({"payload": {**packet, "timeout_ms": None, "dependencies": None, "metadata": None}, "seq": 1,
                         "type": "submit"})  # fmt: skip
        answer = await peer.message("result")
        assert answer["seq"] == 1
        assert answer["payload"] | {"duration_ms": 0} == {"packet_id": "a", "status": "success", "data": "HI",
                                                          "duration_ms": 0}  # fmt: skip
        peer.close()


async def test_of_several_gateways_the_next_is_dialled(gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="at least one URL"):
        Reactor([])
    async with gateway, Reactor(["ws://127.0.0.1:1/", gateway.endpoint]) as reactor:
        assert reactor.endpoint == gateway.endpoint
        assert await reactor.call("df", "echo", 1) == 1
    with pytest.raises(packetflow.ConnectionLost):
        await Reactor(["ws://127.0.0.1:1/", "ws://127.0.0.1:2/"]).start()


async def test_what_a_gateway_says_instead_of_a_connection_is_told(gateway: Gateway) -> None:
    async with gateway:
        with pytest.raises(packetflow.ConnectionLost, match="no such path here"):
            await Reactor(gateway.endpoint.replace("/v1", "/v2")).start()


async def test_map_has_a_window(reactor: Reactor) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    for window in (0, 65_537):
        with pytest.raises(ValueError, match="window: expected 1 to 65536"):
            await anext(reactor.map("df", "echo", items(), window=window))
