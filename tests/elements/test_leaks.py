"""Reactors come, hold things, wait for things, and go: nothing of them stays."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

from packetflow import Gateway, PacketFlowError, Reactor
from packetflow.elements import gather, ref, seq, step
from tests.elements.conftest import until


async def live(gateway: Gateway, number: int, chance: random.Random) -> None:
    """A reactor's life: it holds and waits, and most often goes without a word."""
    reactor = Reactor(gateway.endpoint, name=f"r{number % 40}" if number % 3 else None, reconnect=False)
    await reactor.start()
    waiting: list[Any] = [
        asyncio.ensure_future(wait)
        for wait in (
            reactor.call("rm", "lock", {"key": f"k{number % 5}", "wait_ms": 10_000}),
            reactor.pool("p", capacity=3).alloc(wait=10),
            reactor.gate("g").wait(),
            reactor.call("df", "consume", {"stream": "s", "max": 1, "redeliver_after_ms": 20}),
            reactor.call("ed", "watch", {"event": "e*"}),
            reactor.barrier("b", 1000).wait(),
            reactor.vote("v", number, 1000),
            reactor.react("e", step("df", "echo", ref("event"))),
            reactor.timer(step("df", "echo"), every=0.01),
            reactor.cache.fill(f"c{number}", step("df", "sleep", 0.005)),
            reactor.submit(seq(step("df", "sleep", 0.01), gather(step("df", "sleep", 5), step("df", "echo")))),
        )
    ]
    await asyncio.sleep(chance.uniform(0, 0.02))
    if chance.random() < 0.5 and reactor._connection is not None:
        reactor._connection.abort()
    await reactor.stop(grace=0.01)
    for wait in waiting:
        wait.cancel()
        with suppress(PacketFlowError, asyncio.CancelledError):
            await wait


async def test_nothing_stays_of_those_who_have_gone(hub: Gateway) -> None:
    async def sleep(data: float) -> float:
        await asyncio.sleep(data)
        return data

    hub.register("df", "echo", lambda data: data)
    hub.register("df", "sleep", sleep)
    runtime = hub._elements
    assert runtime is not None
    runtime.sessions._grace = 0.02
    chance = random.Random(7)
    for start in range(0, 200, 25):
        await asyncio.gather(*(live(hub, number, chance) for number in range(start, start + 25)))
        await hub.call("ed", "signal", {"event": "e"})
        await hub.call("df", "produce", {"stream": "s", "items": [start]})
    await until(lambda: not runtime.sessions._by_key and not runtime.sessions._by_link)
    await until(lambda: len(runtime.leases) == 0 and not runtime.lines._lines and not runtime.nests)
    assert not runtime.standing
    assert not runtime.rooms["reactions"]
    assert not runtime.rooms["filling"]
    await until(lambda: hub.switch.in_flight == 0 and not runtime.tasks and len(runtime.turns) == 0)
    # every lock is free, every unit is back
    for key in range(5):
        assert (await hub.call("rm", "lock", {"key": f"k{key}"}))["fence"] > 0
    assert (await hub.call("rm", "alloc", {"pool": "p", "units": 3}))["available"] == 0
