"""Data flow: transformations and reductions; its streams are in `streams`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from packetflow.elements import streams
from packetflow.elements.call import RESULT_BYTES, Call, Results
from packetflow.elements.expressions import compile_expression
from packetflow.elements.lanes import in_parallel
from packetflow.elements.request import (
    Int,
    Request,
    Step,
    element,
    list_of,
)
from packetflow.errors import InvalidPacket

__all__ = ["ELEMENTS"]


class Transform(Request):
    """df:transform"""

    input: msgspec.Raw = msgspec.Raw(b"null")
    expression: str | None = None
    map: Step | None = None
    concurrency: Int = 64


@element("df", "transform")
async def transform(call: Call, request: Transform) -> Any:
    """An expression's value, or the step's data for each item."""
    if (request.expression is None) == (request.map is None):
        raise InvalidPacket("expected one of expression and map")
    if request.expression is not None:
        text = request.expression
        return await call.evaluate(
            lambda view: compile_expression(text, view.meter).of(view.decode(request.input), view.meter), {}
        )
    step = request.map
    assert step is not None
    items = await items_of(call, request.input)

    async def one(place: int) -> Any:
        item = items[place]
        context = {"input": request.input, "prev": item, "item": item, "index": place, "results": {}}
        data = await call.step(step, context, place)
        call.keep(RESULT_BYTES + len(data))
        return data

    return await in_parallel(call, len(items), one, request.concurrency)


class Reduce(Request):
    """df:reduce"""

    input: msgspec.Raw
    op: Literal["sum", "count", "min", "max", "avg", "concat", "merge"] | None = None
    with_: Step | None = msgspec.field(name="with", default=None)
    initial: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@element("df", "reduce")
async def reduce(call: Call, request: Reduce) -> Any:
    """One value of many: by an operation, or a left fold."""
    if (request.op is None) == (request.with_ is None):
        raise InvalidPacket("expected one of op and with")
    initial = request.initial if isinstance(request.initial, msgspec.Raw) else None
    if request.op is not None:
        op = request.op
        if op == "count":
            return len(await call.evaluate(lambda view: list_of(view, request.input, "input"), {}))

        def work(view: Any) -> Any:
            items = view.decode(request.input)
            if not isinstance(items, list):
                raise InvalidPacket("input: expected a list")
            view.pay(len(items) >> 1)
            if initial is not None:
                items = [view.decode(initial), *items]
            return _OPERATIONS[op](items)

        return await call.evaluate(work, {})
    step = request.with_
    assert step is not None
    items = await items_of(call, request.input)
    if initial is None:
        if not items:
            return None
        initial = items.pop(0)
    results = Results(call, initial)
    for place, item in enumerate(items):
        context = {**results.values, "input": request.input, "item": item, "index": place}
        results.came(await call.step(step, context, place), None)
    return results.values["prev"]


def _numbers(op: str, items: list[Any]) -> list[Any]:
    for place, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise InvalidPacket(f"input[{place}]: expected a number for {op}, got {type(item).__name__}")
    return items


def _extreme(op: str, choose: Callable[[Any], Any], items: list[Any]) -> Any:
    if items and all(isinstance(item, str) for item in items):
        return choose(items)
    return choose(_numbers(op, items)) if items else None


def _concat(items: list[Any]) -> Any:
    if not items:
        return None
    if all(isinstance(item, str) for item in items):
        return "".join(items)
    if all(isinstance(item, list) for item in items):
        return [inner for item in items for inner in item]
    raise InvalidPacket("input: expected texts only, or lists only, for concat")


def _merge(items: list[Any]) -> Any:
    if not all(isinstance(item, dict) for item in items):
        raise InvalidPacket("input: expected objects for merge")
    if not items:
        return None
    merged: dict[str, Any] = {}
    for item in items:
        merged.update(item)
    return merged


def _sum(items: list[Any]) -> Any:
    try:
        total = sum(_numbers("sum", items))
    except OverflowError as error:
        raise InvalidPacket(f"input: {error}") from None
    if isinstance(total, float) and not math.isfinite(total):
        raise InvalidPacket("input: the sum is larger than a number may be")
    return total


def _average(items: list[Any]) -> Any:
    try:
        return _sum(items) / len(items)
    except OverflowError as error:
        raise InvalidPacket(f"input: {error}") from None


_OPERATIONS: dict[str, Callable[[list[Any]], Any]] = {
    "sum": _sum,
    "count": len,
    "min": lambda items: _extreme("min", min, items),
    "max": lambda items: _extreme("max", max, items),
    "avg": lambda items: _average(items) if items else None,
    "concat": _concat,
    "merge": _merge,
}


async def items_of(call: Call, data: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a list, JSON still, every one of which will be a step's."""
    items = await call.evaluate(lambda view: list_of(view, data, "input"), {})
    call.cause.iterate(len(items))
    call.hold(72 * len(items))
    return items


ELEMENTS = (*streams.ELEMENTS, transform, reduce)
