"""Data flow: streams of items that are acknowledged, transformations, reductions."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from packetflow.elements.expressions import compile_expression
from packetflow.elements.runtime import Call, Request, Step, check_name, check_size, element, full
from packetflow.errors import InvalidPacket, Overloaded, PacketFlowError
from packetflow.state import Alarm, Change, Entry, StoreFull

__all__ = ["ELEMENTS"]

MAX_DELIVERIES = 5
MAX_CONSUMED = 10_000
MAX_CONSUMERS = 1000


class _Progress:
    """How far a consumer name has read a stream, and what it has yet to acknowledge: id -> (deliveries, due)."""

    __slots__ = ("cursor", "pending")

    def __init__(self) -> None:
        self.cursor = 0
        self.pending: dict[int, tuple[int, float]] = {}

    def floor(self) -> int:
        """Everything up to this id is done with."""
        return min(self.pending) - 1 if self.pending else self.cursor


class _Readers:
    """Who waits for items here, by stream, and the alarms that wake them when one is due again."""

    __slots__ = ("alarms", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, int]] = {}
        self.alarms: dict[str, Alarm] = {}


def _readers(call: Call) -> _Readers:
    found: _Readers | None = call.runtime.rooms.get("readers")
    if found is not None:
        return found
    readers = call.runtime.rooms["readers"] = _Readers()
    lines = call.runtime.lines

    def changed(change: Change) -> None:
        # items have come or gone: who waits for either has a look
        for line in tuple(readers.waiting.get(change.name, ())):
            lines.wake("stream", line)
        lines.wake("room", change.name)

    call.store.watch("stream", "*", changed)
    return readers


class Produce(Request):
    """df:produce"""

    stream: str
    items: list[msgspec.Raw]
    wait_ms: int | None = None


@element("df", "produce")
async def produce(call: Call, request: Produce) -> Any:
    """Appends to a stream."""
    name = check_name("stream", request.stream)
    bounds = call.bounds
    _readers(call)
    items = []
    for item in request.items:
        check_size(call, "items", item)
        items.append((msgspec.Raw(bytes(item)), len(item) + 100))
    size = sum(cost for _, cost in items)
    if len(items) > bounds.stream_items or size > bounds.stream_bytes:
        raise InvalidPacket(
            f"items: {len(items):,} of {size:,} bytes, "
            f"a stream holds {bounds.stream_items:,} of {bounds.stream_bytes:,}"
        )

    async def attempt() -> dict[str, Any] | None:
        length, used, _ = await call.store.extent("stream", name)
        if length + len(items) > bounds.stream_items or used + size > bounds.stream_bytes:
            return None
        if not items:
            return {"first": None, "last": None, "length": length}
        try:
            first, last = await call.store.append("stream", name, items)
        except StoreFull as error:
            raise full(error) from None
        return {"first": first, "last": last, "length": length + len(items)}

    def no_room() -> PacketFlowError:
        return Overloaded(
            f"stream {name!r}: it is full ({bounds.stream_items:,} items, {bounds.stream_bytes:,} bytes)",
            details={"retry_after_ms": 1000},
        )

    return await call.wait("room", name, attempt, wait_ms=request.wait_ms, otherwise=no_room)


class Consume(Request):
    """df:consume"""

    stream: str
    consumer: str = "default"
    max: int = 100
    wait_ms: int | None = None
    ack: list[int] = []  # noqa: RUF012 - msgspec copies it
    redeliver_after_ms: int = 30_000


@element("df", "consume")
async def consume(call: Call, request: Consume) -> Any:
    """Items of a stream, each to one caller of a consumer name, until it is acknowledged."""
    stream = check_name("stream", request.stream)
    name = check_name("consumer", request.consumer)
    if not 0 <= request.max <= MAX_CONSUMED:
        raise InvalidPacket(f"max: expected 0 to {MAX_CONSUMED:,}, got {request.max:,}")
    if not 1 <= request.redeliver_after_ms <= 86_400_000:
        raise InvalidPacket(f"redeliver_after_ms: expected 1 to 86,400,000, got {request.redeliver_after_ms:,}")
    line = f"{stream}\0{name}"
    await _acknowledge(call, stream, line, request.ack)
    if request.max == 0:
        return {"items": []}

    async def attempt() -> dict[str, Any] | None:
        items = await _take(call, stream, line, request)
        return {"items": items} if items else None

    waiting = _readers(call).waiting.setdefault(stream, {})
    waiting[line] = waiting.get(line, 0) + 1
    try:
        return await call.wait("stream", line, attempt, wait_ms=request.wait_ms)
    finally:
        waiting[line] -= 1
        if not waiting[line]:
            del waiting[line]
            if not waiting:
                _readers(call).waiting.pop(stream, None)


async def _acknowledge(call: Call, stream: str, line: str, ack: list[int]) -> None:
    """Makes the consumer name known, and takes what it is done with from it."""
    entry = await call.store.get("consumer", line)
    if entry is not None and not ack:
        return
    if entry is None:
        # a name that comes late sees what is still there
        _, _, dropped = await call.store.extent("stream", stream)
        others = await call.store.scan("consumer", f"{stream}\0", "", MAX_CONSUMERS)
        if len(others) >= MAX_CONSUMERS:
            raise Overloaded(f"stream {stream!r}: {MAX_CONSUMERS:,} consumer names read it, the most that may")
        progress = _Progress()
        progress.cursor = dropped
    else:
        progress = entry.value
    for item in ack:
        progress.pending.pop(item, None)
    await _keep(call, line, progress, entry)
    if ack:
        await _trim(call, stream)


async def _keep(call: Call, line: str, progress: _Progress, entry: Entry | None) -> None:
    try:
        await call.store.put("consumer", line, progress, version=entry.version if entry is not None else 0)
    except StoreFull as error:
        raise full(error) from None


async def _take(call: Call, stream: str, line: str, request: Consume) -> list[dict[str, Any]]:
    """Items for a caller: those that are due again, then new ones."""
    entry = await call.store.get("consumer", line)
    progress: _Progress = entry.value if entry is not None else _Progress()
    pending = progress.pending
    now = call.runtime.alarms.now()
    due = now + request.redeliver_after_ms / 1000
    items: list[dict[str, Any]] = []
    room = call.bounds.value * 3 // 4  # bytes of an answer
    buried = False
    for item in [item for item, (_, when) in pending.items() if when <= now]:
        if len(items) >= request.max or room <= 0:
            break
        deliveries = pending[item][0]
        found = await call.store.read("stream", stream, item - 1, 1)
        if not found or found[0][0] != item:
            del pending[item]  # gone with its gateway, or by another's hand
            continue
        data = found[0][1]
        if deliveries >= MAX_DELIVERIES:
            if await _bury(call, stream, data):
                del pending[item]
                buried = True
            else:
                pending[item] = (deliveries, due)
            continue
        pending[item] = (deliveries + 1, due)
        items.append({"id": item, "data": data, "deliveries": deliveries + 1})
        room -= len(data) + 60
    while len(items) < request.max and room > 0:
        found = await call.store.read("stream", stream, progress.cursor, min(100, request.max - len(items)))
        if not found:
            break
        for item, data in found:
            if room <= 0:
                break
            progress.cursor = item
            pending[item] = (1, due)
            items.append({"id": item, "data": data, "deliveries": 1})
            room -= len(data) + 60
    if items or buried:
        await _keep(call, line, progress, entry)
    if buried:
        await _trim(call, stream)
    _set_alarm(call, line, progress)
    return items


async def _bury(call: Call, stream: str, data: msgspec.Raw) -> bool:
    """Moves an item that was given out too often to ``<stream>.dead``; False where that is full."""
    dead = f"{stream}.dead"
    length, used, _ = await call.store.extent("stream", dead)
    size = len(data) + 100
    if length >= call.bounds.stream_items or used + size > call.bounds.stream_bytes:
        return False
    try:
        await call.store.append("stream", dead, [(data, size)])
    except StoreFull:
        return False
    return True


async def _trim(call: Call, stream: str) -> None:
    """Drops what every consumer name has acknowledged."""
    consumers = await call.store.scan("consumer", f"{stream}\0", "", MAX_CONSUMERS)
    floor = min(entry.value.floor() for _, entry in consumers)
    await call.store.trim("stream", stream, floor)


def _set_alarm(call: Call, line: str, progress: _Progress) -> None:
    """Whoever waits is woken when an item is due again."""
    if not progress.pending:
        return
    alarms = _readers(call).alarms
    alarm = alarms.get(line)
    when = min(due for _, due in progress.pending.values())
    if alarm is not None and alarm.callback is not None and alarm.when <= when:
        return
    if alarm is not None:
        alarm.cancel()

    def ring() -> None:
        del alarms[line]
        call.runtime.lines.wake("stream", line)

    alarms[line] = call.runtime.alarms.at(max(when, call.runtime.alarms.now() + 0.001), ring)


class Transform(Request):
    """df:transform"""

    input: Any = None
    expression: str | None = None
    map: Step | None = None
    concurrency: int = 64


@element("df", "transform")
async def transform(call: Call, request: Transform) -> Any:
    """An expression's value, or the step's data for each item."""
    if (request.expression is None) == (request.map is None):
        raise InvalidPacket("expected one of expression and map")
    if request.expression is not None:
        return compile_expression(request.expression).of(request.input)
    step = request.map
    assert step is not None
    items = request.input
    if not isinstance(items, list):
        raise InvalidPacket(f"input: expected a list with map, got {type(items).__name__}")
    check_count(call, len(items))

    async def one(place: int) -> Any:
        context = {"input": items, "prev": items[place], "item": items[place], "index": place, "results": {}}
        return await call.run(step, context, place)

    return await in_parallel(len(items), one, request.concurrency)


class Reduce(Request):
    """df:reduce"""

    input: list[Any]
    op: Literal["sum", "count", "min", "max", "avg", "concat", "merge"] | None = None
    with_: Step | None = msgspec.field(name="with", default=None)
    initial: Any = msgspec.UNSET


@element("df", "reduce")
async def reduce(call: Call, request: Reduce) -> Any:
    """One value of many: by an operation, or a left fold."""
    if (request.op is None) == (request.with_ is None):
        raise InvalidPacket("expected one of op and with")
    items = request.input
    if request.op is not None:
        if request.initial is not msgspec.UNSET:
            items = [request.initial, *items] if request.op != "count" else items
        return _OPERATIONS[request.op](items)
    step = request.with_
    assert step is not None
    check_count(call, len(items))
    if request.initial is msgspec.UNSET:
        if not items:
            return None
        value, rest = items[0], items[1:]
    else:
        value, rest = request.initial, items
    for place, item in enumerate(rest):
        context = {"input": items, "prev": value, "item": item, "index": place, "results": {}}
        value = await call.run(step, context, place)
    return value


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
    return functools.reduce(lambda merged, item: {**merged, **item}, items, {}) if items else None


def _sum(items: list[Any]) -> Any:
    try:
        return sum(_numbers("sum", items))
    except OverflowError as error:
        raise InvalidPacket(f"input: {error}") from None


_OPERATIONS: dict[str, Callable[[list[Any]], Any]] = {
    "sum": _sum,
    "count": len,
    "min": lambda items: _extreme("min", min, items),
    "max": lambda items: _extreme("max", max, items),
    "avg": lambda items: _sum(items) / len(items) if items else None,
    "concat": _concat,
    "merge": _merge,
}


def check_count(call: Call, count: int) -> None:
    """A list whose every item is a step within the bound on iterations."""
    if count > call.bounds.iterations:
        raise InvalidPacket(f"input: {count:,} items, at most {call.bounds.iterations:,} may be")


async def in_parallel(count: int, one: Callable[[int], Any], concurrency: int) -> list[Any]:
    """``[await one(0), ...]``, at most `concurrency` at once; the first failure ends all."""
    if not 1 <= concurrency <= 1024:
        raise InvalidPacket(f"concurrency: expected 1 to 1,024, got {concurrency:,}")
    results: list[Any] = [None] * count
    places = iter(range(count))

    async def lane() -> None:
        for place in places:
            results[place] = await one(place)

    lanes = [asyncio.ensure_future(lane()) for _ in range(min(concurrency, count))]
    try:
        await asyncio.gather(*lanes)
    finally:
        for running in lanes:
            running.cancel()
    return results


ELEMENTS = (produce, consume, transform, reduce)
