"""Control flow: every row of the contract, and its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packetflow import Gateway, Reactor
from packetflow.elements import branch, case, lit, loop, ref, seq, step
from tests.helpers import refused, until

ECHO = step("df", "echo")


# ---------------------------------------------------------------- cf:seq


async def run(client: Reactor, packet: dict[str, Any]) -> Any:
    return await client.call(packet["group"], packet["element"], packet["data"])


async def test_seq_gives_the_last_steps_data(client: Reactor) -> None:
    assert await run(client, seq(step("df", "double", 1), step("df", "double", ref("prev")))) == 4


async def test_seq_sees_input_prev_and_results(client: Reactor) -> None:
    steps = (
        step("df", "double", ref("input.n"), name="a"),
        step("df", "double", ref("prev"), name="b"),
        step("df", "echo", {"all": ref("results"), "first": [ref("results.a")], "plain": 1}),
    )
    assert await run(client, seq(*steps, input={"n": 3})) == {"all": {"a": 6, "b": 12}, "first": [6], "plain": 1}


async def test_seq_of_nothing_gives_its_input(client: Reactor) -> None:
    assert await run(client, seq(input=[1])) == [1]


async def test_seq_returns_an_expression_over_the_context(client: Reactor) -> None:
    packet = seq(
        step("df", "double", 2, name="x"), step("df", "double", 5), returns="[results.x, prev, input]", input=0
    )
    assert await run(client, packet) == [4, 10, 0]


async def test_a_failing_step_fails_the_packet_with_its_place(client: Reactor) -> None:
    error = await refused(run(client, seq(step("df", "double", 1), step("df", "fail", "luck"))))
    assert (error.code, error.message) == ("PF500", "no luck")
    assert error.details == {"step": 1, "element": "df:fail"}
    named = await refused(run(client, seq(step("df", "fail", "luck", name="try"))))
    assert named.details == {"step": "try", "element": "df:fail"}
    inner = await refused(run(client, seq(seq(step("df", "fail", "x")))))
    assert inner.details == {"step": 0, "element": "cf:seq", "inner": {"step": 0, "element": "df:fail"}}


async def test_what_was_inserted_is_not_expanded_again(client: Reactor) -> None:
    evil = {"$": "input.secret"}
    assert await run(
        client, seq(step("df", "echo", {"got": ref("input.evil")}), input={"evil": evil, "secret": 1})
    ) == {"got": evil}
    assert await run(
        client, seq(step("df", "echo", evil), step("df", "echo", ref("prev")), input={"secret": {"$": "input"}})
    ) == {"$": "input"}
    assert await run(client, seq(step("df", "echo", lit(evil)))) == evil


async def test_references_inside_a_nested_packet_are_its_own(client: Reactor) -> None:
    inner = seq(step("df", "echo", ref("input")), input="inner")
    assert await run(client, seq(inner, input="outer")) == "inner"
    # data that only looks like a packet is left alone, too
    looks = {"group": "df", "element": "echo", "data": {"$": "input"}}
    assert await run(client, seq(step("df", "echo", looks), input=1)) == looks


@pytest.mark.parametrize("reference", [5, None, ["prev"]])
async def test_a_reference_is_a_text(client: Reactor, reference: Any) -> None:
    error = await refused(run(client, seq(step("df", "echo", {"$": reference}))))
    assert error.code == "PF400"
    assert "reference" in error.message


async def test_steps_take_the_packets_priority_deadline_and_metadata(hub: Gateway, client: Reactor) -> None:
    seen: list[Any] = []
    hub.register("df", "note", lambda data, packet: seen.append(packet))
    packet = {
        **seq(step("df", "note"), step("df", "note", priority=2, timeout_ms=60_000, metadata={"own": 1})),
        "priority": 9,
        "timeout_ms": 5000,
        "metadata": {"trace": "x"},
    }
    assert (await client.submit(packet)).ok
    assert [one.priority for one in seen] == [9, 2]
    assert [one.metadata for one in seen] == [{"trace": "x"}, {"own": 1}]
    # a step's deadline never exceeds the one around it
    assert all(one.timeout_ms <= 5000 for one in seen)


async def test_a_step_that_outlives_the_deadline_is_cut(client: Reactor) -> None:
    error = await refused(client.call("cf", "seq", seq(step("df", "sleep", 30))["data"], timeout_ms=100))
    assert error.code == "PF408"


async def test_a_thousand_steps_and_no_more(client: Reactor) -> None:
    hundred = [step("df", "double", 1)] * 1000
    assert await run(client, seq(*hundred)) == 2
    error = await refused(run(client, seq(*hundred, step("df", "double", 1))))
    assert (error.code, "1,000" in error.message) == ("PF400", True)


def nested(depth: int) -> dict[str, Any]:
    packet = step("df", "echo", "deep")
    for _ in range(depth):
        packet = seq(packet)
    return packet


async def test_sixteen_deep_and_no_deeper(client: Reactor) -> None:
    assert await run(client, nested(16)) == "deep"
    error = await refused(run(client, nested(17)))
    assert error.code == "PF400"
    assert "at most 16" in error.message


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({}, "steps"),
        ({"steps": 5}, "steps"),
        ({"steps": [{"group": "df"}]}, "element"),
        ({"steps": [], "step": 1}, "step"),
        ({"steps": [{"group": "df", "element": "echo", "wait": 1}]}, "wait"),
        ({"steps": [], "return": "a b"}, "expression"),
    ],
)
async def test_data_that_is_not_as_it_must_be_is_refused(client: Reactor, data: Any, where: str) -> None:
    error = await refused(client.call("cf", "seq", data))
    assert error.code == "PF400"
    assert where in error.message


async def test_a_step_to_nowhere(client: Reactor) -> None:
    assert (await refused(run(client, seq(step("df", "nobody"))))).code == "PF001"
    assert (await refused(run(client, seq(step("xx", "nobody"))))).code == "PF400"


# ---------------------------------------------------------------- cf:branch


async def test_branch_takes_the_first_case_that_holds(client: Reactor) -> None:
    cases = (
        case("input.n > `10`", step("df", "echo", "many")),
        case("input.n > `1`", step("df", "double", ref("input.n"))),
        case("input", step("df", "echo", "some")),
    )
    assert await run(client, branch(*cases, input={"n": 11})) == "many"
    assert await run(client, branch(*cases, input={"n": 2})) == 4
    assert await run(client, branch(*cases, input={"n": 0})) == "some"
    assert await run(client, branch(*cases[:2], input={"n": 0}, otherwise=step("df", "echo", "none"))) == "none"
    assert await run(client, branch(*cases[:2], input={"n": 0})) is None


@pytest.mark.parametrize(
    ("value", "holds"), [(0, True), (False, False), (None, False), ("", False), ([], False), ({}, False), ([0], True)]
)
async def test_truth_is_jmespaths(client: Reactor, value: Any, holds: bool) -> None:
    packet = branch(case("input", step("df", "echo", True)), input=value, otherwise=step("df", "echo", False))
    assert await run(client, packet) is holds


# ---------------------------------------------------------------- cf:loop


async def test_loop_a_number_of_times(client: Reactor) -> None:
    assert await run(client, loop(step("df", "double", ref("prev")), input=1, times=10)) == 1024
    assert await run(client, loop(step("df", "echo", ref("index")), times=3, collect=True)) == [0, 1, 2]
    assert await run(client, loop(ECHO, input="same", times=0)) == "same"


async def test_loop_over_items(client: Reactor) -> None:
    body = step("df", "double", ref("item"))
    assert await run(client, loop(body, items=[1, 2, 3], collect=True)) == [2, 4, 6]
    assert await run(client, loop(body, items=ref("input.list"), input={"list": [5]}, collect=True)) == [10]
    assert await run(client, loop(body, items=[], collect=True)) == []


async def test_loop_while_and_until(client: Reactor) -> None:
    double = step("df", "double", ref("prev"))
    assert await run(client, loop(double, input=1, while_="prev < `100`")) == 128
    assert await run(client, loop(double, input=1, until="prev > `100`")) == 128
    # `while` is tested before, `until` after
    assert await run(client, loop(double, input=1, while_="`false`")) == 1
    assert await run(client, loop(double, input=1, until="`true`")) == 2


async def test_loop_ends_at_its_bound(client: Reactor) -> None:
    error = await refused(run(client, loop(step("df", "echo", 1), while_="`true`", max_iterations=5)))
    assert (error.code, "max_iterations" in error.message) == ("PF400", True)
    assert (await refused(run(client, loop(step("df", "echo", 1), times=1001)))).code == "PF400"
    assert (await refused(run(client, loop(step("df", "echo", 1), times=1, max_iterations=10_001)))).code == "PF400"


@pytest.mark.parametrize(
    "data", [{}, {"times": 1, "items": []}, {"items": 5}, {"times": -1}, {"items": {"$": "input"}}]
)
async def test_loop_takes_exactly_one_way_to_end(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("cf", "loop", {"step": ECHO, **data}))).code == "PF400"


# ---------------------------------------------------------------- cf:gate


async def test_a_gate_starts_closed_and_opens(hub: Gateway, client: Reactor) -> None:
    gate = client.gate("g")
    waiting = [asyncio.ensure_future(gate.wait()) for _ in range(5)]
    await until(lambda: hub.view.runtime().lines.waiting("gate", "g") == 5)  # type: ignore[union-attr]
    assert await client.call("cf", "gate", {"gate": "g", "action": "open"}) == {"open": True, "waiting": 5}
    await asyncio.gather(*waiting)
    await gate.wait()  # open now
    await gate.close()
    assert (await refused(gate.wait(timeout=0.02))).code == "PF408"


async def test_a_gate_opens_at_the_last_arrival(client: Reactor) -> None:
    gate = client.gate("latch")
    waiting = asyncio.ensure_future(gate.wait())
    assert [await gate.arrive(3) for _ in range(3)] == [False, False, True]
    await waiting


async def test_waiters_are_served_by_priority(hub: Gateway, client: Reactor) -> None:
    order: list[int] = []

    async def wait(priority: int) -> None:
        await client.submit(
            {"group": "cf", "element": "gate", "data": {"gate": "p", "action": "wait"}, "priority": priority}
        )
        order.append(priority)

    waiting = [asyncio.ensure_future(wait(priority)) for priority in (1, 10, 5)]
    await until(lambda: hub.view.runtime().lines.waiting("gate", "p") == 3)  # type: ignore[union-attr]
    await client.gate("p").open()
    await asyncio.gather(*waiting)
    assert order == [10, 5, 1]


@pytest.mark.parametrize(
    "data",
    [
        {"gate": "", "action": "wait"},
        {"gate": "x" * 257, "action": "wait"},
        {"gate": "g", "action": "jump"},
        {"gate": "g", "action": "arrive"},
        {"gate": "g", "action": "arrive", "count": 0},
        {"gate": "g", "action": "open", "count": 1},
        {"gate": "g", "action": "wait", "wait_ms": -1},
    ],
)
async def test_gates_refuse_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("cf", "gate", data))).code == "PF400"


async def test_waiters_end_with_their_deadline_their_link_and_the_gateway(hub: Gateway, client: Reactor) -> None:
    lines = hub.view.runtime().lines  # type: ignore[union-attr]
    assert (await refused(client.call("cf", "gate", {"gate": "d", "action": "wait"}, timeout_ms=30))).code == "PF408"
    await until(lambda: lines.waiting("gate", "d") == 0)
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    lost = asyncio.ensure_future(other.gate("d").wait())
    await until(lambda: lines.waiting("gate", "d") == 1)
    other._connection.abort()  # type: ignore[union-attr]
    assert (await refused(lost)).code == "PF502"
    await until(lambda: lines.waiting("gate", "d") == 0)
    await other.stop()
    stopped = asyncio.ensure_future(client.gate("d").wait())
    await until(lambda: lines.waiting("gate", "d") == 1)
    client._reconnect = False
    await hub.stop()
    assert (await refused(stopped)).code == "PF503"


async def test_what_is_collected_is_seen_by_its_name_too(client: Reactor) -> None:
    packet = loop(step("df", "add", [ref("index"), ref("results.last || `10`")], name="last"), times=3, collect=True)
    assert await client.call("cf", "loop", packet["data"]) == [10, 11, 13]
