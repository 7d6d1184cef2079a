"""Control flow: steps one after another, by condition, again and again; gates."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from packetflow.elements.call import RESULT_BYTES, Call, Results
from packetflow.elements.expressions import View, expand
from packetflow.elements.kept import Kind
from packetflow.elements.request import STEP_BYTES, Int, Request, Step, check_name, element, list_of
from packetflow.errors import InvalidPacket

__all__ = ["ELEMENTS"]

DEFAULT_ITERATIONS = 1000
GATE_BYTES = 64
ITEM_BYTES = 72
"""What an item of a list takes besides its text, while it is JSON still."""
NULL = msgspec.Raw(b"null")


async def check_expressions(call: Call, *texts: str | None) -> None:
    """Raises `InvalidPacket` for one that is none, before anything is run."""
    for text in texts:
        if text is not None:
            await call.turn()
            call.compile(text)


class Seq(Request):
    """cf:seq"""

    steps: list[Step]
    input: msgspec.Raw = NULL
    return_: str | None = msgspec.field(name="return", default=None)


@element("cf", "seq")
async def seq(call: Call, request: Seq) -> Any:
    """One step after another."""
    call.check_steps(len(request.steps))
    call.hold(STEP_BYTES * len(request.steps))
    await check_expressions(call, request.return_)
    results = Results(call, request.input)
    for place, step in enumerate(request.steps):
        results.came(await call.step(step, results.values, place), step.as_)
    if request.return_ is None:
        return results.values["prev"]
    returned = request.return_
    return await call.evaluate(lambda view: view.of(returned), results.values)


class Case(Request):
    """A case of cf:branch."""

    when: str
    then: Step


class Branch(Request):
    """cf:branch"""

    cases: list[Case]
    input: msgspec.Raw = NULL
    else_: Step | None = msgspec.field(name="else", default=None)


@element("cf", "branch")
async def branch(call: Call, request: Branch) -> Any:
    """The first case that holds."""
    count = len(request.cases) + 1
    if count > call.bounds.steps:
        raise InvalidPacket(f"steps: {count:,} in one packet, at most {call.bounds.steps:,} may be")
    call.check_steps(1)
    call.hold(STEP_BYTES * count)
    context = {"input": request.input, "prev": request.input, "results": {}}
    await check_expressions(call, *[case.when for case in request.cases])
    for place, case in enumerate(request.cases):
        if await _holds(call, case.when, context):
            return await call.step(case.then, context, place)
    if request.else_ is not None:
        return await call.step(request.else_, context, "else")
    return None


async def _holds(call: Call, text: str, context: dict[str, Any]) -> bool:
    return await call.evaluate(lambda view: view.holds(text), context)


class Loop(Request):
    """cf:loop"""

    step: Step
    input: msgspec.Raw = NULL
    times: Int | None = None
    items: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    while_: str | None = msgspec.field(name="while", default=None)
    until: str | None = None
    max_iterations: Int = DEFAULT_ITERATIONS
    collect: bool = False


@element("cf", "loop")
async def loop(call: Call, request: Loop) -> Any:
    """One step a number of times, for each item, while or until something holds."""
    given = [
        name
        for name, is_given in (
            ("times", request.times is not None),
            ("items", request.items is not msgspec.UNSET),
            ("while", request.while_ is not None),
            ("until", request.until is not None),
        )
        if is_given
    ]
    if len(given) != 1:
        raise InvalidPacket(f"expected one of times, items, while and until, got {', '.join(given) or 'none'}")
    if not 1 <= request.max_iterations <= call.bounds.iterations:
        raise InvalidPacket(f"max_iterations: expected 1 to {call.bounds.iterations:,}, got {request.max_iterations:,}")
    results = Results(call, request.input)
    context = results.values
    context["index"] = 0
    items = None
    planned: int | None = request.times
    if planned is not None and planned < 0:
        raise InvalidPacket(f"times: expected 0 or more, got {planned}")
    if isinstance(request.items, msgspec.Raw):
        given_items = request.items
        items = await call.evaluate(lambda view: _items(view, given_items), context)
        planned = len(items)
    if planned is not None:
        if planned > request.max_iterations:
            raise InvalidPacket(f"{planned:,} iterations, max_iterations is {request.max_iterations:,}")
        call.cause.iterate(planned)
    if items is not None:
        call.hold(sum(map(len, items)) + ITEM_BYTES * planned if planned else 0)
    await check_expressions(call, request.while_, request.until)
    collected: list[Any] = []
    index = 0
    while planned is None or index < planned:
        context["index"] = index
        if items is not None:
            context["item"] = items[index]
        if request.while_ is not None and not await _holds(call, request.while_, context):
            break
        if index >= request.max_iterations:
            raise InvalidPacket(f"more than {request.max_iterations:,} iterations, which is max_iterations")
        if planned is None:
            call.cause.iterate(1)
        data = await call.step(request.step, context, index)
        if request.collect:
            call.keep(RESULT_BYTES + len(data))
            collected.append(data)
            context["prev"] = data
            if request.step.as_ is not None:
                context["results"][request.step.as_] = data
        else:
            results.came(data, request.step.as_)
        index += 1
        if request.until is not None and await _holds(call, request.until, context):
            break
    return collected if request.collect else context["prev"]


def _items(view: View, given: msgspec.Raw) -> list[msgspec.Raw]:
    """A list, or what a reference to one gives."""
    if bytes(given).startswith(b"{"):
        value = expand(view.decode(given), view)
        given = value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value))
    if not bytes(given).startswith(b"["):
        raise InvalidPacket("items: expected a list, or a reference to one")
    return list_of(view, given, "items")


class _Gate(msgspec.Struct):
    """What is kept of a gate."""

    open: bool
    arrived: int


GATES = Kind("gate", _Gate, GATE_BYTES)


class Gate(Request):
    """cf:gate"""

    gate: str
    action: Literal["wait", "open", "close", "arrive"]
    count: Int | None = None
    wait_ms: Int | None = None


@element("cf", "gate")
async def gate(call: Call, request: Gate) -> Any:
    """Waits until a gate is open; opens, closes, or counts arrivals until it opens."""
    name = check_name("gate", request.gate)
    if (request.count is not None) != (request.action == "arrive"):
        raise InvalidPacket("count: expected with the action arrive, and only there")

    async def is_open() -> bool | None:
        kept = await call.read(GATES, name)
        return True if kept is not None and kept.record.open else None

    if request.count is not None and request.count < 1:
        raise InvalidPacket(f"count: expected 1 or more, got {request.count}")
    wanted = request.count or 0

    def change(state: _Gate | None) -> _Gate | None:
        if request.action == "arrive":
            arrived = state.arrived + 1 if state is not None else 1
            return _Gate((state is not None and state.open) or arrived >= wanted, arrived)
        # closed, it is as every gate that nobody has touched
        return _Gate(True, 0) if request.action == "open" else None

    if request.action == "wait":
        await call.wait("gate", name, is_open, wait_ms=request.wait_ms)
    else:
        await call.update(GATES, name, change)
    return {"open": bool(await is_open()), "waiting": call.runtime.lines.waiting("gate", name)}


ELEMENTS = (seq, branch, loop, gate)
