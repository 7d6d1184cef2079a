"""Reactors come, hold things, wait for things, and go: nothing of them stays."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from contextlib import suppress
from typing import Any

import pytest

from packetflow import Gateway, PacketFlowError, Reactor
from packetflow.elements import gather, ref, seq, step
from tests.helpers import until


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
    runtime = hub.view.runtime()
    assert runtime is not None
    runtime.sessions.grace = 0.02
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


BIG = step("df", "big")
MAP = {"input": list(range(30)), "map": BIG}
SOMETIMES = {"input": list(range(30)), "map": step("df", "sometimes")}
CYCLES: dict[str, tuple[str, str, Any]] = {
    "what succeeds": ("df", "transform", {"input": [1, 2], "map": step("df", "echo")}),
    "results too large together": ("df", "transform", MAP),
    "results past the budget of a packet": ("df", "transform", MAP | {"input": list(range(1000))}),
    "one of many fails": ("df", "transform", SOMETIMES),
    "maps in a map of which one fails": ("df", "transform", SOMETIMES | {"map": step("df", "transform", SOMETIMES)}),
    "a gather of which one fails": ("co", "gather", {"packets": [step("df", "sometimes")] * 30}),
    "a gather that has enough": ("co", "gather", {"packets": [step("df", "echo"), step("df", "hold")], "need": 1}),
    "a gather past its deadline": ("co", "gather", {"packets": [step("df", "hold")] * 3}),
    "a sequence that fails": ("cf", "seq", {"steps": [step("df", "echo"), step("df", "fails")]}),
    "a loop past its deadline": ("cf", "loop", {"times": 2, "step": step("df", "hold")}),
    "a branch that fails": ("cf", "branch", {"cases": [], "else": step("df", "fails")}),
    "a fill that fails": ("rm", "cache", {"op": "fill", "key": "k", "step": step("df", "fails")}),
    "fills that wait past their deadline": ("rm", "cache", {"op": "fill", "key": "h", "step": step("df", "hold")}),
    "a lock whose step fails": ("rm", "lock", {"key": "k", "step": step("df", "fails")}),
    "a gate that stays shut": ("cf", "gate", {"gate": "g", "action": "wait"}),
    "a barrier that nobody comes to": ("co", "sync", {"barrier": "b", "parties": 1000}),
    "a vote without votes": ("co", "vote", {"packet": step("df", "hold"), "need": 1}),
    "a broadcast": ("co", "broadcast", {"packet": step("df", "hold")}),
    "an event that does not come": ("ed", "watch", {"event": "never"}),
    "a reduction that fails": ("df", "reduce", {"input": [1, 2, 3], "with": step("df", "fails")}),
}


@pytest.mark.parametrize("how", ["ends", "is cancelled"])
@pytest.mark.parametrize("name", CYCLES)
async def test_nothing_waits_for_the_garbage_collector(hub: Gateway, name: str, how: str) -> None:
    """What has ended holds nothing: a megabyte in a cycle is a megabyte until the next full collection."""
    calls = itertools.count(1)

    def sometimes(data: Any) -> str:
        if next(calls) % 20 == 0:
            raise ValueError(data)
        return "x" * 100

    def fails(data: Any) -> None:
        raise ValueError(data)

    async def hold(data: Any) -> None:
        await asyncio.get_running_loop().create_future()

    hub.register("df", "big", lambda data: "x" * 100_000)
    hub.register("df", "echo", lambda data: data)
    for one in (sometimes, fails, hold):
        hub.register("df", one.__name__, one)
    group, element, data = CYCLES[name]

    async def run(client: Reactor) -> None:
        replies = [client.call(group, element, data, timeout_ms=100) for _ in range(10)]
        if how == "is cancelled":
            await asyncio.sleep(0.02)
            for reply in replies:
                reply.cancel()
        for reply in replies:
            with suppress(PacketFlowError, asyncio.CancelledError):
                await reply

    async with Reactor(hub.endpoint) as client:
        await run(client)
        gc.collect()
        gc.disable()
        try:
            await run(client)
            await until(lambda: hub.switch.in_flight == 0 and not hub.view.runtime().tasks)  # type: ignore[union-attr]
            await asyncio.sleep(0)
            assert gc.collect() < 10
        finally:
            gc.enable()
