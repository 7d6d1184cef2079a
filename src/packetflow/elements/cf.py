"""Control flow: steps one after another, by condition, again and again; gates."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from packetflow.elements.expressions import compile_expression, expand, truth
from packetflow.elements.runtime import Call, Request, Step, check_name, element, full
from packetflow.errors import InvalidPacket
from packetflow.state import StoreFull

__all__ = ["ELEMENTS"]

DEFAULT_ITERATIONS = 1000


class Seq(Request):
    """cf:seq"""

    steps: list[Step]
    input: Any = None
    return_: str | None = msgspec.field(name="return", default=None)


@element("cf", "seq")
async def seq(call: Call, request: Seq) -> Any:
    """One step after another."""
    call.check_steps(len(request.steps))
    returned = compile_expression(request.return_) if request.return_ is not None else None
    results: dict[str, Any] = {}
    context = {"input": request.input, "prev": request.input, "results": results}
    for place, step in enumerate(request.steps):
        data = await call.run(step, context, place)
        context["prev"] = data
        if step.as_ is not None:
            results[step.as_] = data
    return context["prev"] if returned is None else returned.of(context)


class Case(Request):
    """A case of cf:branch."""

    when: str
    then: Step


class Branch(Request):
    """cf:branch"""

    cases: list[Case]
    input: Any = None
    else_: Step | None = msgspec.field(name="else", default=None)


@element("cf", "branch")
async def branch(call: Call, request: Branch) -> Any:
    """The first case that holds."""
    call.check_steps(len(request.cases) + 1)
    context = {"input": request.input, "prev": request.input, "results": {}}
    conditions = [compile_expression(case.when) for case in request.cases]
    for place, (case, condition) in enumerate(zip(request.cases, conditions, strict=True)):
        if truth(condition.of(context)):
            return await call.run(case.then, context, place)
    if request.else_ is not None:
        return await call.run(request.else_, context, "else")
    return None


class Loop(Request):
    """cf:loop"""

    step: Step
    input: Any = None
    times: int | None = None
    items: Any = msgspec.UNSET
    while_: str | None = msgspec.field(name="while", default=None)
    until: str | None = None
    max_iterations: int = DEFAULT_ITERATIONS
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
    context: dict[str, Any] = {"input": request.input, "prev": request.input, "results": {}, "index": 0}
    items = None
    planned: int | None = request.times
    if planned is not None and planned < 0:
        raise InvalidPacket(f"times: expected 0 or more, got {planned}")
    if given == ["items"]:
        items = expand(request.items, context) if isinstance(request.items, dict) else request.items
        if not isinstance(items, list):
            raise InvalidPacket("items: expected a list, or a reference to one")
        planned = len(items)
    if planned is not None and planned > request.max_iterations:
        raise InvalidPacket(f"{planned:,} iterations, max_iterations is {request.max_iterations:,}")
    before = compile_expression(request.while_) if request.while_ is not None else None
    after = compile_expression(request.until) if request.until is not None else None
    collected: list[Any] = []
    index = 0
    while planned is None or index < planned:
        context["index"] = index
        if items is not None:
            context["item"] = items[index]
        if before is not None and not truth(before.of(context)):
            break
        if index >= request.max_iterations:
            raise InvalidPacket(f"more than {request.max_iterations:,} iterations, which is max_iterations")
        data = await call.run(request.step, context, index)
        context["prev"] = data
        if request.step.as_ is not None:
            context["results"][request.step.as_] = data
        if request.collect:
            collected.append(data)
        index += 1
        if after is not None and truth(after.of(context)):
            break
    return collected if request.collect else context["prev"]


class Gate(Request):
    """cf:gate"""

    gate: str
    action: Literal["wait", "open", "close", "arrive"]
    count: int | None = None
    wait_ms: int | None = None


@element("cf", "gate")
async def gate(call: Call, request: Gate) -> Any:
    """Waits until a gate is open; opens, closes, or counts arrivals until it opens."""
    name = check_name("gate", request.gate)
    if (request.count is not None) != (request.action == "arrive"):
        raise InvalidPacket("count: expected with the action arrive, and only there")

    async def is_open() -> bool | None:
        entry = await call.store.get("gate", name)
        return True if entry is not None and entry.value["open"] else None

    if request.action == "wait":
        await call.wait("gate", name, is_open, wait_ms=request.wait_ms)
    else:
        entry = await call.store.get("gate", name)
        state = dict(entry.value) if entry is not None else {"open": False, "arrived": 0}
        if request.action == "arrive":
            if request.count is None or request.count < 1:
                raise InvalidPacket(f"count: expected 1 or more, got {request.count}")
            state["arrived"] += 1
            state["open"] = state["open"] or state["arrived"] >= request.count
        else:
            state = {"open": request.action == "open", "arrived": 0}
        if not state["open"] and not state["arrived"]:
            await call.store.delete("gate", name)  # as every gate is that nobody has touched
        else:
            try:
                await call.store.put("gate", name, state, version=entry.version if entry is not None else 0)
            except StoreFull as error:
                raise full(error) from None
    return {"open": bool(await is_open()), "waiting": call.runtime.lines.waiting("gate", name)}


ELEMENTS = (seq, branch, loop, gate)
