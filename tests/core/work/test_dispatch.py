"""What handlers may do to the one who calls them: raise anything, suspend, cancel, be cancelled, by the thousand."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from packetflow import (
    Gateway,
    HandlerError,
    NoHandler,
    Overloaded,
    Packet,
    PacketFlowError,
    Reactor,
    TooLarge,
    Unavailable,
)
from packetflow.conformance.wire import Peer, messages
from packetflow.testing import pair
from pfcore.link.engine import Engine
from pfcore.memory import clock
from pfcore.simulate import receive_message, take_output
from pfcore.wire.frames import encode_message
from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler

START = 1_000_000_000_000


def odd(code: Any, message: Any = "no", details: Any = None) -> PacketFlowError:
    error = PacketFlowError("no")
    error.code, error.message, error.details = code, message, details
    return error


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize(
    "error",
    [odd([]), odd(None), odd(""), odd("é"), odd("X" * 65), odd("PF400", 7, "none"), odd("PF400", "\ud800")],
    ids=["list", "none", "empty", "not ASCII", "long", "details", "surrogate"],
)
async def test_whatever_stands_in_an_error_it_is_told_and_nothing_breaks(error: Exception, suspends: bool) -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "odd")
        async def handle(data: Any) -> None:
            if suspends:
                await asyncio.sleep(0)
            raise error

        gateway.register("df", "echo", lambda data: data)
        with pytest.raises(PacketFlowError) as told:
            await reactor.call("df", "odd", 1)
        assert told.value.code in ("PF500", "PF400")
        assert await reactor.call("df", "echo", 2) == 2


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize(
    "error", [Overloaded("full"), Unavailable("away"), NoHandler("nobody")], ids=["PF429", "PF503", "PF001"]
)
async def test_a_handler_that_has_begun_does_not_say_that_it_has_not(error: PacketFlowError, suspends: bool) -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "refuses")
        async def handle(data: Any) -> None:
            if suspends:
                await asyncio.sleep(0)
            raise error

        with pytest.raises(HandlerError) as told:
            await reactor.call("df", "refuses", 1)
        assert told.value.details["code"] == error.code


class Strange(BaseException):
    pass


class OddlyCancelled(asyncio.CancelledError):
    made = 0

    def __init__(self, *args: object) -> None:
        super().__init__("a user's code")
        OddlyCancelled.made += 1


async def test_a_handlers_own_kind_of_cancellation_is_not_made_again() -> None:
    OddlyCancelled.made = 0
    async with pair() as (gateway, reactor):

        @gateway.register("df", "odd")
        async def handle(data: Any) -> None:
            await asyncio.sleep(0)
            raise OddlyCancelled

        with pytest.raises(PacketFlowError):
            await reactor.call("df", "odd", 1)
    assert OddlyCancelled.made == 1


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("error", [Strange, GeneratorExit, asyncio.CancelledError, OddlyCancelled])
async def test_exceptions_that_are_no_exception_end_the_packet_only(error: type[BaseException], suspends: bool) -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "strange")
        async def handle(data: Any) -> None:
            if suspends:
                await asyncio.sleep(0)
            raise error

        gateway.register("df", "echo", lambda data: data)
        with pytest.raises(PacketFlowError):
            await reactor.call("df", "strange", 1)
        assert await reactor.call("df", "echo", 2) == 2


async def test_a_handler_may_cancel_the_task_that_it_runs_in() -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "suicide")
        async def handle(data: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if data:
                await asyncio.sleep(60)
            return "went on"

        gateway.register("df", "echo", lambda data: data)
        assert await reactor.call("df", "suicide", 0) == "went on"
        with pytest.raises(PacketFlowError):
            await reactor.call("df", "suicide", 1, timeout_ms=5000)
        assert [await reactor.call("df", "echo", n) for n in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("how", ["deadline", "cancel", "lost"])
async def test_thousands_that_end_at_once_all_end(how: str) -> None:
    """They are cancelled over several iterations of the loop; none is forgotten, each runs its `finally`."""
    begun = ended = 0
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")

    @gateway.register("df", "hold")
    async def hold(data: Any) -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended += 1

    async with gateway:
        reactor = Reactor(gateway.endpoint)
        await reactor.start()
        packets = [Packet("df", "hold", 1, timeout_ms=100 if how == "deadline" else 60_000) for _ in range(800)]
        replies = [reactor.submit(packet) for packet in packets]
        if how != "deadline":
            while begun < 800:
                await asyncio.sleep(0)
        if how == "cancel":
            for reply in replies:
                reply.cancel()
        elif how == "lost":
            await reactor.stop(0)
        await asyncio.gather(*replies, return_exceptions=True)
        while ended < begun or gateway.view.dispatcher.running or gateway.view.dispatcher.queued:
            await asyncio.sleep(0)
        await reactor.stop()


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_a_handler_that_was_cancelled_is_no_work_for_the_collector(how: str) -> None:
    """Its task, its worker and `asyncio.timeout` in its frames held one another, and a full collection stood still."""
    async with pair() as (gateway, reactor):

        @gateway.register("df", "hold")
        async def hold(data: Any) -> None:
            async with asyncio.timeout(60):
                await asyncio.get_running_loop().create_future()

        async def some() -> None:
            tasks = [
                asyncio.ensure_future(reactor.call("df", "hold", 1, timeout_ms=10 if how == "deadline" else 5000))
                for _ in range(20)
            ]
            if how == "cancel":
                while gateway.view.dispatcher.running < 20:
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while gateway.view.dispatcher.running:
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)

        await some()
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            await some()
            gc.collect()
            left = [one for one in gc.garbage if type(one).__name__ in ("Worker", "Task", "coroutine", "frame")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left == []


async def test_what_a_cancelled_handler_waits_for_goes_with_it() -> None:
    """Cancelled as soon as it has begun, before its task has come to wait for the nested packet."""
    async with pair() as (gateway, _):
        gateway.register("df", "hold", lambda data: asyncio.get_running_loop().create_future())

        @gateway.register("df", "hold")
        async def hold(data: Any) -> None:
            await asyncio.get_running_loop().create_future()

        peer = await Peer.connect(gateway.endpoint)
        for seq in range(1, 301):
            packet = {"version": "1.0", "id": f"c{seq}", "group": "cf", "element": "sequence", "priority": 5,
                      "data": {"steps": [{"group": "df", "element": "hold", "data": 1}]}}  # fmt: skip
            await peer.send({"type": "submit", "seq": seq, "payload": packet})
            await peer.send({"type": "error", "seq": seq, "payload": {
                "code": "PF499", "message": "", "packet_id": f"c{seq}"}})  # fmt: skip
        await peer.send({"type": "submit", "seq": 400, "payload": {
            "version": "1.0", "id": "last", "group": "df", "element": "nobody", "data": 1, "priority": 5}})  # fmt: skip
        while (await peer.message())["seq"] != 400:
            pass
        dispatcher = gateway.view.dispatcher
        while dispatcher.running or dispatcher.waiting or dispatcher.queued or gateway.switch.in_flight:
            await asyncio.sleep(0)
        peer.close()


async def test_data_of_very_many_containers_is_refused() -> None:
    """Each is an object of Python's, and all are made at once."""
    async with pair() as (gateway, reactor):
        gateway.register("df", "count", lambda data: len(data))
        assert await reactor.call("df", "count", [[]] * 99_999) == 99_999
        with pytest.raises(TooLarge, match="100,?000"):
            await reactor.call("df", "count", [[]] * 100_001)


async def test_what_has_not_begun_when_the_grace_is_over_may_be_sent_again() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1)
    begun = asyncio.Event()

    @gateway.register("df", "forever")
    async def forever(data: Any) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    gateway.register("cf", "lane", forever)
    async with pair(gateway) as (_, reactor):
        replies = [reactor.call("df", "forever") for _ in range(3)] + [reactor.call("cf", "lane") for _ in range(2)]
        await begun.wait()
        while gateway.view.dispatcher.queued < 4:
            await asyncio.sleep(0)
        assert not await gateway.view.dispatcher.drain(0.01)
        gateway.view.dispatcher.end_all("shutting down")
        ended = await asyncio.gather(*replies, return_exceptions=True)
    codes = [error.code for error in ended if isinstance(error, PacketFlowError)]
    assert sorted(codes) == ["PF502"] + ["PF503"] * 4


@pytest.mark.parametrize("listener", ["on_slow", "on_error"])
async def test_a_listener_that_raises_is_reported_and_the_packet_answered(listener: str) -> None:
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def fails(*what: Any) -> None:
        raise OSError(listener)

    async def handle(data: Any) -> None:
        if listener == "on_error":
            raise ValueError(data)
        clock.simulate(START + 1_000_000_000)  # a second of the loop's

    dispatcher = Dispatcher(**{listener: fails})
    dispatcher.register(Handler("df", "x", handle))
    dispatcher.start(loop)
    side = Engine(client=False, sink=dispatcher, loop=loop)
    side.connected(START)
    take_output(side)
    clock.simulate(START)
    try:
        loop.call_soon(receive_message, side, encode_message("submit", 1, Packet("df", "x", 1)), START)
        await asyncio.sleep(0)
    finally:
        clock.simulate(0)
    while not (answers := [one for one in messages(take_output(side)) if one["type"] == "result"]):
        await asyncio.sleep(0)
    assert answers[0]["payload"]["status"] == ("error" if listener == "on_error" else "success")
    assert [str(error) for error in told] == [listener]
    dispatcher.stop()


async def test_events_begin_at_once_but_not_without_a_bound() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1, max_queue=1)
    ends = asyncio.Event()

    @gateway.register("ed", "event")
    async def event(data: Any) -> None:
        await ends.wait()

    async with pair(gateway) as (_, reactor):
        replies = [reactor.call("ed", "event", n) for n in range(6)]
        while not (refused := [reply for reply in replies if reply.done()]):
            await asyncio.sleep(0)
        assert all(isinstance(reply.exception(), Overloaded) for reply in refused)
        ends.set()
        ended = await asyncio.gather(*replies, return_exceptions=True)
    assert 0 < sum(isinstance(one, Overloaded) for one in ended) < 6
    assert ended[0] is None


async def test_what_waits_without_a_place_of_its_own_is_bounded_too() -> None:
    ends = asyncio.Event()

    async def waits(data: Any) -> None:
        await ends.wait()

    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(max_waiting=2)
    dispatcher.register(Handler("co", "waits", waits, unbounded=True))
    dispatcher.start(loop)
    side = Engine(client=False, sink=dispatcher, loop=loop)
    side.connected(START)
    take_output(side)
    for n in range(1, 5):
        loop.call_soon(receive_message, side, encode_message("submit", n, Packet("co", "waits", n)), START)
        while n <= 2 and dispatcher.waiting < n:
            await asyncio.sleep(0)
    answers: list[dict[str, Any]] = []
    for wanted in (2, 4):
        while len(answers) < wanted:
            await asyncio.sleep(0)
            answers += [one for one in messages(take_output(side)) if one["type"] == "result"]
        ends.set()
    assert [one["payload"]["status"] for one in answers] == ["error"] * 2 + ["success"] * 2
    assert {one["payload"]["error"]["code"] for one in answers[:2]} == {"PF429"}
    assert {one["seq"] for one in answers[:2]} == {3, 4}
    dispatcher.stop()
