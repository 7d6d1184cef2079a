"""What one outermost packet sets off is bounded as a whole, in width and in depth; whoever sets it off is told the bound."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.elements import Bounds, branch, case, gather, loop, ref, seq, step, transform
from packetflow.elements.expressions import MAX_STEPS
from packetflow.gateway import hash_token
from tests.helpers import refused, until

ECHO = step("df", "echo", 1)


async def ask(client: Reactor, packet: dict[str, Any]) -> Any:
    return await client.call(packet["group"], packet["element"], packet["data"])


def offering(hub: Gateway) -> None:
    hub.register("df", "echo", lambda data: data)
    hub.register("df", "big", lambda data: "x" * data)


async def test_steps_of_all_nested_packets_count_together() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(steps=20)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        offering(hub)
        assert await ask(client, loop(seq(ECHO, ECHO), times=10)) == 1
        error = await refused(ask(client, loop(seq(ECHO, ECHO), times=11)))
        assert (error.code, "steps: 22" in error.message) == ("PF400", True)
        assert (await refused(ask(client, seq(gather(*[ECHO] * 10), gather(*[ECHO] * 10))))).code in ("PF400", "PF424")


async def test_iterations_of_all_nested_packets_count_together() -> None:
    bounds = Bounds(iterations=20)
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", elements=bounds) as hub, Reactor(hub.endpoint) as client:
        offering(hub)
        inner = transform([1, 2, 3, 4], map=ECHO)
        assert await ask(client, loop(inner, times=4, max_iterations=20)) == [1] * 4
        error = await refused(ask(client, loop(inner, times=5, max_iterations=20)))
        assert (error.code, "iterations: " in error.message) == ("PF400", True)


@pytest.mark.parametrize(
    "packet",
    [
        loop(step("df", "big", 1000), times=100, collect=True),
        transform([1000] * 100, map=step("df", "big", ref("item"))),
        gather(*[step("df", "big", 1000)] * 100, need=100),
        seq(*[step("df", "big", 1000, name=f"n{n}") for n in range(100)], returns="`1`"),
    ],
    ids=["collect", "map", "gather", "as"],
)
async def test_results_that_are_kept_are_bounded(packet: dict[str, Any]) -> None:
    bounds = Bounds(result_bytes=50_000)
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", elements=bounds) as hub, Reactor(hub.endpoint) as client:
        offering(hub)
        error = await refused(ask(client, packet))
        assert (error.code, "result_bytes: " in error.message) == ("PF400", True)
        # what is kept one after another, and no more, is not together
        assert await ask(client, loop(step("df", "big", 1000), times=100)) == "x" * 1000


async def test_the_bytes_of_a_broadcasts_answers_are_bounded() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(result_bytes=1500)) as hub,
        Reactor(hub.endpoint, name="one") as one,
        Reactor(hub.endpoint, name="two") as two,
        Reactor(hub.endpoint, name="client") as client,
    ):
        for reactor in (one, two):
            reactor.register("df", "where", lambda data: "x" * 1000)
        await until(lambda: len(hub.switch.reactors_for("df:where")) == 2)
        assert "result_bytes" in (await refused(client.broadcast("df", "where"))).message
        assert "result_bytes" in (await refused(client.poll("df", "where"))).message


async def test_all_evaluation_of_a_packet_counts_together() -> None:
    bounds = Bounds(evaluation_steps=20_000)
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", elements=bounds) as hub, Reactor(hub.endpoint) as client:
        offering(hub)
        value = [{"a": n} for n in range(400)]
        conditions = branch(*[case("prev[*].a | [-1] == `-1`", ECHO)] * 3, input=value)
        assert await ask(client, conditions) is None
        many = branch(*[case("prev[*].a | [-1] == `-1`", ECHO)] * 20, input=value)
        error = await refused(ask(client, many))
        assert (error.code, "evaluation_steps: " in error.message) == ("PF400", True)
        looped = loop(step("df", "echo", {"x": ref("input[*].a | [0]")}), times=20, input=value)
        assert "evaluation_steps: " in (await refused(ask(client, looped))).message


async def test_all_references_of_a_step_may_take_what_one_expression_may(client: Reactor) -> None:
    value = [{"a": n} for n in range(2000)]
    packet = seq(step("df", "echo", [ref("input[*].a")] * 60), input=value)
    error = await refused(ask(client, packet))
    assert (error.code, f"{MAX_STEPS:,} steps" in error.message) == ("PF400", True)
    assert await ask(client, seq(step("df", "echo", [ref("input[*].a | [0]")] * 3), input=value)) == [0, 0, 0]
    # a result as a whole goes on as it came: that costs nothing
    assert len(await ask(client, seq(step("df", "echo", [ref("input")] * 10), input=value))) == 10


async def test_reactions_that_signal_their_own_event_end() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(steps=100)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        for n in range(10):
            await client.react("e", step("ed", "signal", {"event": "e"}), id=f"r{n}")
        assert await client.signal("e") == 10
        await until(lambda: hub.switch.in_flight == 0 and not hub.view.runtime().nests)  # type: ignore[union-attr]
        # each of them met ten: without a bound in width they were 10^15
        assert hub.switch.elements["ed:signal"].succeeded <= 102


async def test_ones_many_reactions_do_not_keep_anothers_from_an_event() -> None:
    heard: list[Any] = []
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(steps=20)) as hub,
        Reactor(hub.endpoint, name="many") as many,
        Reactor(hub.endpoint, name="one") as one,
    ):
        hub.register("df", "hear", heard.append)
        hub.register("df", "echo", lambda data: data)
        for n in range(50):
            await many.react("e", step("df", "echo"), id=f"r{n}")
        await one.react("e", step("df", "hear", "me"), id="mine")
        told = await one.call("ed", "signal", {"event": "e"})
        assert told == {"delivered": 20, "refused": 31}
        await until(lambda: heard == ["me"])


async def test_a_broadcast_counts_a_packet_for_each_who_gets_it() -> None:
    role = Role("user", submit=("*:*",), handle=("*:*",))
    identities = [
        Identity("user", "user", tokens=(hash_token("token"),), rate=1, burst=5),
        Identity("workers", "user", tokens=(hash_token("other"),)),
    ]
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of([role], identities)) as hub:
        workers = [Reactor(hub.endpoint, name=f"w{n}", token="other") for n in range(3)]
        for worker in workers:
            worker.register("df", "where", lambda data: data)
            await worker.start()
        await until(lambda: len(hub.switch.reactors_for("df:where")) == 3)
        async with Reactor(hub.endpoint, token="token", name="user") as user:
            assert len(await user.broadcast("df", "where")) == 3  # one of its own and three
            error = await refused(user.broadcast("df", "where"))
            assert (error.code, "1 packets a second" in error.message) == ("PF429", True)
        for worker in workers:
            await worker.stop()


async def test_a_broadcast_counts_a_step_for_each_who_gets_it() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(steps=1)) as hub,
        Reactor(hub.endpoint, name="one") as one,
        Reactor(hub.endpoint, name="two") as two,
    ):
        for reactor in (one, two):
            reactor.register("df", "where", lambda data: 1)
        await until(lambda: len(hub.switch.reactors_for("df:where")) == 2)
        for asked in (one.broadcast("df", "where"), one.poll("df", "where")):
            assert "steps: 2" in (await refused(asked)).message


# ---------------------------------------------------------------- what never ran


async def test_a_workflow_passes_on_that_nothing_of_it_began(hub: Gateway, client: Reactor) -> None:
    alloc = step("rm", "alloc", {"pool": "p", "units": 1})
    await client.pool("p", capacity=1).alloc()
    for packet in (seq(alloc, ECHO), loop(alloc, times=1), branch(case("`1`", alloc)), transform([1], map=alloc)):
        error = await refused(ask(client, packet))
        assert (error.code, error.details["element"]) == ("PF429", "rm:alloc")  # type: ignore[index]


async def test_a_workflow_of_which_a_step_began_does_not_say_that_it_never_ran(client: Reactor) -> None:
    alloc = step("rm", "alloc", {"pool": "p", "units": 1})
    await client.pool("p", capacity=1).alloc()
    for packet in (
        seq(ECHO, alloc),
        loop(seq(ECHO, alloc), times=1),
        step("df", "reduce", {"input": [1, 2], "initial": 0, "with": seq(ECHO, alloc)}),
        step("rm", "cache", {"op": "fill", "key": "k", "step": seq(ECHO, alloc)}),
    ):
        error = await refused(ask(client, packet))
        assert (error.code, error.details["code"]) == ("PF502", "PF429")  # type: ignore[index]
    inner = error.details  # type: ignore[union-attr]
    assert json.loads(json.dumps(inner)) == inner


async def test_a_map_some_of_which_may_have_begun(client: Reactor) -> None:
    alloc = step("rm", "alloc", {"pool": "p", "units": 1})
    await client.pool("p", capacity=1).alloc()
    mapped = transform([1, 2, 3], map=seq(step("df", "sleep", 0.001), alloc), concurrency=3)
    error = await refused(ask(client, mapped))
    assert (error.code, error.details["code"]) == ("PF502", "PF429")  # type: ignore[index]


async def test_those_who_wait_at_the_end_of_a_gateway(client: Reactor, hub: Gateway) -> None:
    waits = [
        asyncio.ensure_future(client.gate("g").wait()),
        asyncio.ensure_future(ask(client, seq(ECHO, step("cf", "gate", {"gate": "g", "action": "wait"})))),
    ]
    await until(lambda: hub.view.runtime().lines.waiting("gate", "g") == 2)  # type: ignore[union-attr]
    hub.view.runtime().drain()  # type: ignore[union-attr]
    assert (await refused(waits[0])).code == "PF503"
    error = await refused(waits[1])
    assert (error.code, error.details["code"]) == ("PF502", "PF503")  # type: ignore[index]
