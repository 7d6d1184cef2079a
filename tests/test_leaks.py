"""Reference counts and memory stay flat over a million submits, errors and cancels."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import packetflow
from packetflow import Gateway, Packet, Reactor


async def _mix(reactor: Reactor, rounds: int) -> None:
    """A hundred submits a round: successes, errors, refusals, timeouts, cancels, maps."""
    packet = Packet("df", "echo", {"a": [1, "x" * 50]})

    async def cancelled() -> None:
        await reactor.call("df", "forever")

    for _ in range(rounds):
        await asyncio.gather(*(reactor.call("df", "echo", {"n": n, "text": "é\n"}) for n in range(40)))
        results = await asyncio.gather(
            *(reactor.call("df", "fail", "x") for _ in range(10)),
            *(reactor.call("df", "transform", 5) for _ in range(5)),
            *(reactor.call("co", "nothing") for _ in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(result, packetflow.PacketFlowError) for result in results)
        await asyncio.gather(*(reactor.call("df", "later", n) for n in range(15)))
        async for result in reactor.map("df", "transform", ["a"] * 20, window=8):
            assert result.data == "A"
        result = await reactor.submit(packet if _ == 0 else Packet("df", "echo", packet.data))
        assert result.ok
        tasks = [asyncio.create_task(cancelled()) for _ in range(4)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for bad in ("\ud800", float("nan"), object()):
            with pytest.raises(packetflow.InvalidPacket):
                reactor.call("df", "echo", bad)


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects()) + sys.getallocatedblocks()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Failures of handlers are not logged here: pytest keeps every record, and its traceback."""
    logger = logging.getLogger("packetflow.handlers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def _run(rounds: int, gateway: Gateway) -> tuple[int, int]:
    """(growth in objects and blocks, growth in resident bytes) over `rounds`, after as many to warm up."""

    @gateway.register("df", "later")
    async def later(data: Any) -> Any:
        await asyncio.sleep(0)
        return data

    process = psutil.Process()
    async with gateway, Reactor(gateway.endpoint) as reactor:
        await _mix(reactor, max(50, rounds // 10))
        before, resident = _objects(), process.memory_info().rss
        counts = [sys.getrefcount(value) for value in (None, True, gateway, reactor, packetflow.InvalidPacket)]
        await _mix(reactor, rounds)
        gc.collect()  # garbage that is yet to be found holds None, too
        after = [sys.getrefcount(value) for value in (None, True, gateway, reactor, packetflow.InvalidPacket)]
        for one, other in zip(counts, after, strict=True):
            assert abs(one - other) < 1000 or one > 2**30, (counts, after)  # immortal from 3.12 on
        return _objects() - before, process.memory_info().rss - resident


async def test_ten_thousand_submits_leave_nothing_behind(gateway: Gateway) -> None:
    objects, resident = await _run(100, gateway)
    assert objects < 1000
    assert resident < 8 * 1024 * 1024


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_million_submits_leave_nothing_behind(gateway: Gateway) -> None:
    objects, resident = await _run(10_000, gateway)
    assert objects < 1000
    assert resident < 8 * 1024 * 1024


async def test_connections_leave_nothing_behind(gateway: Gateway) -> None:
    async with gateway:

        async def some(count: int) -> None:
            for _ in range(count):
                async with Reactor(gateway.endpoint, name="r") as reactor:
                    assert await reactor.call("df", "echo", 1) == 1

        await some(30)
        grown = []
        for _ in range(3):  # timers that were cancelled stay with the loop for a while: what is left behind stays
            before = _objects()
            await some(120)
            grown.append(_objects() - before)
        assert min(grown) < 900  # one link left behind is a dozen
