"""Which packets run beside which in a reactor: lanes by group and key, offloading, middleware."""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from packetflow import Access, Forbidden, Gateway, HandlerError, InvalidPacket, Packet, Reactor, Role
from packetflow.middleware import CallNext
from packetflow.testing import pair


class Counter:
    """A handler that notes how many run beside it, and which."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.order: list[Any] = []

    async def __call__(self, data: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(data)
        for _ in range(3):
            await asyncio.sleep(0)
        self.running -= 1
        return data


@pytest.mark.parametrize(("group", "most"), [("cf", 1), ("mc", 1), ("df", 20), ("co", 20), ("ed", 20), ("rm", 20)])
async def test_the_group_says_how_many_run_at_once(group: str, most: int) -> None:
    counter = Counter()
    everything = Access(anonymous=Role("anyone", submit=("*:*",), handle=("*:*",), admin=True))
    async with pair(Gateway("ws://127.0.0.1:0/packetflow/v1", access=everything)) as (gateway, reactor):
        reactor.register(group, "work", counter)
        assert await asyncio.gather(*(gateway.call(group, "work", n, reactor="reactor") for n in range(20))) == list(
            range(20)
        )
    assert counter.most == most
    assert counter.order == list(range(20))


@pytest.mark.parametrize("group", ["cf", "rm"])
async def test_per_key_one_at_a_time(group: str) -> None:
    running: dict[str, int] = {}
    most = beside = 0

    async with pair() as (gateway, reactor):

        @reactor.register(group, "work")
        async def work(data: Any, packet: Packet) -> None:
            nonlocal most, beside
            key = packet.metadata["key"]
            running[key] = running.get(key, 0) + 1
            most, beside = max(most, running[key]), max(beside, sum(running.values()))
            for _ in range(3):
                await asyncio.sleep(0)
            running[key] -= 1

        packets = [Packet(group, "work", n, metadata={"key": f"k{n % 4}"}) for n in range(40)]
        results = await asyncio.gather(*(gateway.submit(packet, reactor="reactor") for packet in packets))
        assert all(result.ok for result in results)
        assert not reactor._dispatcher.queued
    assert most == 1
    assert beside == 4


async def test_rm_takes_its_key_from_the_data_too() -> None:
    counter = Counter()
    async with pair() as (gateway, reactor):
        reactor.register("rm", "work", counter)
        await asyncio.gather(*(gateway.call("rm", "work", {"key": "x"}, reactor="reactor") for _ in range(10)))
        assert counter.most == 1


async def test_a_serial_lane_runs_the_most_urgent_next() -> None:
    gate = asyncio.Event()
    order: list[int] = []
    async with pair() as (gateway, reactor):

        @reactor.register("cf", "work")
        async def work(data: int) -> None:
            await gate.wait()
            order.append(data)

        replies = [gateway.call("cf", "work", p, priority=p or 5, reactor="reactor") for p in (0, 1, 9, 5, 9)]
        while reactor._dispatcher.queued != 4:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*replies)
    assert order == [0, 9, 9, 5, 1]


async def test_a_handler_may_have_a_bound_of_its_own() -> None:
    counter = Counter()
    async with pair() as (gateway, reactor):
        reactor.register("df", "work", counter, concurrency=3)
        await asyncio.gather(*(gateway.call("df", "work", n, reactor="reactor") for n in range(30)))
    assert counter.most == 3
    with pytest.raises(ValueError, match="concurrency: expected 0 or more"):
        reactor.register("df", "x", counter, concurrency=-1)


async def test_cancelled_and_expired_packets_leave_their_lane() -> None:
    gate = asyncio.Event()
    ran: list[Any] = []
    async with pair() as (gateway, reactor):

        @reactor.register("cf", "work")
        async def work(data: Any) -> None:
            ran.append(data)
            await gate.wait()

        first = gateway.call("cf", "work", 1, reactor="reactor")
        cancelled = gateway.call("cf", "work", 2, reactor="reactor")
        expired = gateway.submit(Packet("cf", "work", 3, timeout_ms=20), reactor="reactor")
        last = gateway.call("cf", "work", 4, reactor="reactor")
        while reactor._dispatcher.queued != 3:
            await asyncio.sleep(0)
        cancelled.cancel()
        assert (await expired).error["code"] == "PF408"
        gate.set()
        await asyncio.gather(first, last)
        assert ran == [1, 4]
        assert reactor._dispatcher.queued == 0


async def test_an_event_does_not_wait_for_queued_work() -> None:
    gate = asyncio.Event()
    async with pair(concurrency=1) as (gateway, reactor):

        @reactor.register("df", "work")
        async def work(data: Any) -> None:
            await gate.wait()

        reactor.register("ed", "event", lambda data: data)
        busy = [gateway.call("df", "work", reactor="reactor") for _ in range(10)]
        while reactor._dispatcher.queued != 9:
            await asyncio.sleep(0)
        assert await gateway.call("ed", "event", 1, reactor="reactor") == 1
        gate.set()
        await asyncio.gather(*busy)


# ---------------------------------------------------------------- offloading


async def test_a_blocking_handler_in_a_thread_keeps_nobody_waiting() -> None:
    release = threading.Event()
    async with pair() as (gateway, reactor):

        @reactor.register("df", "block", offload="thread")
        def block(data: int, packet: Packet) -> list[Any]:
            release.wait(5)
            return [data, packet.id, threading.current_thread() is threading.main_thread()]

        reactor.register("df", "quick", lambda data: data)
        blocked = gateway.submit(Packet("df", "block", 1, id="p"), reactor="reactor")
        assert await gateway.call("df", "quick", 2, reactor="reactor") == 2
        release.set()
        assert (await blocked).data == [1, "p", False]


OFFLOADED = """
import os

def square(data: int) -> int:
    if data < 0:
        raise ValueError("negative")
    return data * data

def process_id(data):
    return os.getpid()
"""


async def test_a_computing_handler_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a module that the new process can import by its name, as users' are
    (tmp_path / "offloaded_functions.py").write_text(OFFLOADED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("offloaded_functions")
    square, process_id = module.square, module.process_id
    async with pair() as (gateway, reactor):
        reactor.register("df", "square", square, offload="process")
        reactor.register("df", "pid", process_id, offload="process")
        assert await gateway.call("df", "square", 12, reactor="reactor") == 144
        assert await gateway.call("df", "pid", reactor="reactor") != os.getpid()
        with pytest.raises(HandlerError, match="negative"):
            await gateway.call("df", "square", -1, reactor="reactor")


def test_what_cannot_be_offloaded_says_why() -> None:
    reactor = Reactor("ws://127.0.0.1:1")

    async def coroutine(data: Any) -> None: ...

    def with_packet(data: Any, packet: Packet) -> None: ...

    with pytest.raises(TypeError, match="only a plain def can be offloaded"):
        reactor.register("df", "x", coroutine, offload="thread")
    with pytest.raises(TypeError, match="top of a module"):
        reactor.register("df", "x", lambda data: data, offload="process")
    with pytest.raises(TypeError, match="not the packet"):
        reactor.register("df", "x", with_packet, offload="process")
    with pytest.raises(ValueError, match='expected "thread" or "process"'):
        reactor.register("df", "x", math.sqrt, offload="gpu")  # type: ignore[call-overload]


@pytest.mark.parametrize("suspends_first", [False, True])
async def test_a_handler_that_blocks_the_loop_is_named(suspends_first: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (gateway, reactor):

        @reactor.register("df", "hog")
        async def hog(data: Any) -> None:
            if suspends_first:
                await asyncio.sleep(0)
            time.sleep(0.12)  # what it should not do

        with caplog.at_level(logging.WARNING, "packetflow"):
            await gateway.call("df", "hog", reactor="reactor")
    assert "the handler for df:hog kept the event loop for 1" in caplog.text


# ---------------------------------------------------------------- middleware


async def test_middleware_runs_around_every_handler_the_first_outermost() -> None:
    trail: list[str] = []
    async with pair() as (gateway, reactor):
        reactor.register("df", "before", lambda data: data)

        @reactor.use
        async def outer(packet: Packet, call_next: CallNext) -> Any:
            trail.append(f"> outer {packet.element}")
            try:
                return await call_next(packet)
            finally:
                trail.append("< outer")

        @reactor.use
        async def inner(packet: Packet, call_next: CallNext) -> Any:
            trail.append("> inner")
            value = await call_next(packet)
            trail.append("< inner")
            return [value]

        @reactor.register("df", "after")
        async def after(data: str) -> str:
            return data.upper()

        assert await gateway.call("df", "before", 1, reactor="reactor") == [1]
        assert await gateway.call("df", "after", "x", reactor="reactor") == ["X"]
        assert trail == [
            "> outer before", "> inner", "< inner", "< outer", "> outer after", "> inner", "< inner", "< outer"
        ]  # fmt: skip


async def test_middleware_may_answer_refuse_and_see_typed_data() -> None:
    async with pair() as (gateway, reactor):

        @reactor.use
        async def guard(packet: Packet, call_next: CallNext) -> Any:
            assert isinstance(packet.data, int)
            if packet.data < 0:
                raise Forbidden("not below zero", details={"least": 0})
            return "cached" if packet.data == 7 else await call_next(packet)

        @reactor.register("df", "double")
        def double(data: int) -> int:
            return 2 * data

        assert await gateway.call("df", "double", 4, reactor="reactor") == 8
        with pytest.raises(Forbidden) as caught:
            await gateway.call("df", "double", -4, reactor="reactor")
        assert caught.value.details == {"least": 0}
        with pytest.raises(InvalidPacket):
            await gateway.call("df", "double", "x", reactor="reactor")


def test_middleware_must_be_async() -> None:
    def plain(packet: Packet, call_next: CallNext) -> Any: ...

    with pytest.raises(TypeError, match="expected an async function"):
        Gateway().use(plain)
