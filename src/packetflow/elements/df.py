"""Data flow: streams of items that are acknowledged, transformations, reductions."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from packetflow.elements.call import RESULT_BYTES, Call, Results
from packetflow.elements.expressions import compile_expression
from packetflow.elements.lanes import in_parallel
from packetflow.elements.request import (
    Int,
    Request,
    Step,
    check_name,
    check_size,
    element,
    full,
    key_of,
    list_of,
    prefix_of,
)
from packetflow.errors import InvalidPacket, Overloaded, PacketFlowError
from packetflow.state import Alarm, Change, Entry, StoreFull

__all__ = ["ELEMENTS"]

MAX_DELIVERIES = 5
MAX_CONSUMED = 10_000
MAX_PRODUCED = 10_000
MAX_CONSUMERS = 1000
MAX_TAKEN = MAX_CONSUMED
"""Items of one answer: nothing else happens while they are taken."""
AGAIN = 25
"""So many times the work of a new item is one that is due again, and once more where it is one of the dead now."""
PREPAID = 16
"""So many of those are paid for with the consumer's name: a stream can be read however full the account is."""
PENDING_BYTES = 320
"""What an item takes that was given out and is not acknowledged yet."""
ITEM_BYTES = 200
"""What an item that is on its way into a stream takes besides its text."""


class _Progress:
    """How far a consumer name has read a stream, and what it has yet to acknowledge: id -> (deliveries, due)."""

    __slots__ = ("_due", "_order", "cursor", "pending")

    def __init__(self, cursor: int = 0) -> None:
        self.cursor = cursor
        self.pending: dict[int, tuple[int, float]] = {}
        self._order: deque[int] = deque()  # ids as they were first given out, those that are done with among them
        self._due: list[tuple[float, int]] = []  # a heap; those that are no longer so among them

    def give(self, item: int, deliveries: int, due: float) -> None:
        """It was given out, and may be again when it is due."""
        if item not in self.pending:
            self._order.append(item)
        self.pending[item] = (deliveries, due)
        if len(self._due) > 2 * len(self.pending) + 64:
            self._due = [(when, one) for one, (_, when) in self.pending.items()]
            heapq.heapify(self._due)
        else:
            heapq.heappush(self._due, (due, item))

    def done(self, item: int) -> None:
        """It was acknowledged, or is gone."""
        self.pending.pop(item, None)

    def floor(self) -> int:
        """Everything up to this id is done with."""
        while self._order and self._order[0] not in self.pending:
            self._order.popleft()
        return self._order[0] - 1 if self._order else self.cursor

    def next_due(self) -> tuple[float, int] | None:
        """When the next is due, and which."""
        while self._due:
            when, item = self._due[0]
            if self.pending.get(item, (0, None))[1] == when:
                return when, item
            heapq.heappop(self._due)
        return None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return 300 + PENDING_BYTES * max(PREPAID, len(self.pending))


class _Readers:
    """Who waits for items here, by stream, and the alarms that wake them when one is due again."""

    __slots__ = ("alarms", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, int]] = {}  # stream -> consumer -> how many
        self.alarms: dict[tuple[str, str], Alarm] = {}


def _readers(call: Call) -> _Readers:
    found: _Readers | None = call.runtime.rooms.get("readers")
    if found is not None:
        return found
    readers = call.runtime.rooms["readers"] = _Readers()
    lines = call.runtime.lines

    def changed(change: Change) -> None:
        # items have come or gone: who waits for either has a look
        for consumer in tuple(readers.waiting.get(change.name, ())):
            lines.wake("stream", (change.name, consumer))
        lines.wake("room", change.name)

    call.store.watch("stream", "*", changed)
    return readers


class Produce(Request):
    """df:produce"""

    stream: str
    items: list[msgspec.Raw]
    wait_ms: Int | None = None


@element("df", "produce")
async def produce(call: Call, request: Produce) -> Any:
    """Appends to a stream."""
    name = check_name("stream", request.stream)
    bounds = call.bounds
    _readers(call)
    count = len(request.items)
    if count > MAX_PRODUCED:
        raise InvalidPacket(f"items: expected at most {MAX_PRODUCED:,} in one packet, got {count:,}")
    size = sum(map(len, request.items)) + 100 * count
    if count > bounds.stream_items or size > bounds.stream_bytes:
        raise InvalidPacket(
            f"items: {count:,} of {size:,} bytes, a stream holds {bounds.stream_items:,} of {bounds.stream_bytes:,}"
        )
    for item in request.items:
        check_size(call, "items", item)
    call.hold(size + ITEM_BYTES * count)
    items = []
    for place, item in enumerate(request.items):
        if place % 256 == 255:
            await call.turn()
        items.append((msgspec.Raw(bytes(item)), len(item) + 100))

    async def attempt() -> dict[str, Any] | None:
        length, used, _ = await call.store.extent("stream", name)
        if length + len(items) > bounds.stream_items or used + size > bounds.stream_bytes:
            return None
        if not items:
            return {"first": None, "last": None, "length": length}
        try:
            first, last = await call.store.append("stream", name, items, owner=call.stored)
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
    max: Int = 100
    wait_ms: Int | None = None
    ack: list[Int] = []  # noqa: RUF012 - msgspec copies it
    redeliver_after_ms: Int = 30_000


@element("df", "consume")
async def consume(call: Call, request: Consume) -> Any:
    """Items of a stream, each to one caller of a consumer name, until it is acknowledged."""
    stream = check_name("stream", request.stream)
    name = check_name("consumer", request.consumer)
    if not 0 <= request.max <= MAX_CONSUMED:
        raise InvalidPacket(f"max: expected 0 to {MAX_CONSUMED:,}, got {request.max:,}")
    if not 1 <= request.redeliver_after_ms <= 86_400_000:
        raise InvalidPacket(f"redeliver_after_ms: expected 1 to 86,400,000, got {request.redeliver_after_ms:,}")
    if len(request.ack) > MAX_CONSUMED:
        raise InvalidPacket(f"ack: expected at most {MAX_CONSUMED:,} ids, got {len(request.ack):,}")
    await _acknowledge(call, stream, name, request.ack)
    if request.max == 0:
        return {"items": []}

    async def attempt() -> dict[str, Any] | None:
        items = await _take(call, stream, name, request)
        return {"items": items} if items else None

    waiting = _readers(call).waiting.setdefault(stream, {})
    waiting[name] = waiting.get(name, 0) + 1
    try:
        return await call.wait("stream", (stream, name), attempt, wait_ms=request.wait_ms, shown=stream)
    finally:
        waiting[name] -= 1
        if not waiting[name]:
            del waiting[name]
            if not waiting and _readers(call).waiting.get(stream) is waiting:
                del _readers(call).waiting[stream]


async def _acknowledge(call: Call, stream: str, consumer: str, ack: list[int]) -> None:
    """Makes the consumer name known, and takes what it is done with from it."""
    entry = await call.store.get("consumer", key_of(stream, consumer))
    if entry is not None and not ack:
        return
    if entry is None:
        # a name that comes late sees what is still there
        _, _, dropped = await call.store.extent("stream", stream)
        others = await call.store.scan("consumer", prefix_of(stream), "", MAX_CONSUMERS)
        if len(others) >= MAX_CONSUMERS:
            raise Overloaded(f"stream {stream!r}: {MAX_CONSUMERS:,} consumer names read it, the most that may")
        progress = _Progress(dropped)
        try:
            entry = await _keep(call, stream, consumer, progress, None)
        except StoreFull as error:
            raise full(error) from None
    progress = entry.value
    if ack:
        for item in ack:
            progress.done(item)
        await _keep(call, stream, consumer, progress, entry, must=True)
        await _trim(call, stream)


async def _keep(
    call: Call, stream: str, consumer: str, progress: _Progress, entry: Entry | None, must: bool = False
) -> Entry:
    return await call.store.put(
        "consumer",
        key_of(stream, consumer),
        progress,
        version=entry.version if entry is not None else 0,
        size=progress.size,
        owner=call.stored,
        must=must,
    )


async def _take(call: Call, stream: str, consumer: str, request: Consume) -> list[dict[str, Any]]:
    """Items for a caller: those that are due again, then new ones."""
    entry = await call.store.get("consumer", key_of(stream, consumer))
    progress: _Progress = entry.value if entry is not None else _Progress()
    length, _, _ = await call.store.extent("stream", stream)
    fresh = min(request.max, length)  # so many new ones at most
    prepaid = max(0, PREPAID - len(progress.pending))
    more = PENDING_BYTES * (fresh - prepaid)
    refused = fresh > prepaid and call.stored is not None and not call.stored.may(more)
    if refused:
        fresh = prepaid
    now = call.runtime.alarms.now()
    due = now + request.redeliver_after_ms / 1000
    items: list[dict[str, Any]] = []
    room = call.bounds.value * 3 // 4  # bytes of an answer
    buried = changed = False
    work = 0  # nothing else may happen to the consumer name meanwhile, so this is one piece: it has to be short
    while work < MAX_TAKEN:
        first = progress.next_due()
        if first is None or first[0] > now or len(items) >= request.max or room <= 0:
            break
        work += AGAIN
        item = first[1]
        deliveries = progress.pending[item][0]
        found = await call.store.read("stream", stream, item - 1, 1)
        changed = True
        if not found or found[0][0] != item:
            progress.done(item)  # gone with its gateway, or by another's hand
            continue
        data = found[0][1]
        if deliveries >= MAX_DELIVERIES:
            work += AGAIN
            if await _bury(call, stream, data):
                progress.done(item)
                buried = True
            else:
                progress.give(item, deliveries, due)
            continue
        progress.give(item, deliveries + 1, due)
        items.append({"id": item, "data": data, "deliveries": deliveries + 1})
        room -= len(data) + 60
    fresh = min(fresh, request.max - len(items), MAX_TAKEN - work)
    while fresh > 0 and room > 0:
        found = await call.store.read("stream", stream, progress.cursor, min(100, fresh))
        if not found:
            break
        for item, data in found:
            if room <= 0:
                break
            progress.cursor = item
            progress.give(item, 1, due)
            items.append({"id": item, "data": data, "deliveries": 1})
            fresh -= 1
            room -= len(data) + 60
    waits = refused and not items and not changed
    if waits and call.stored is not None and await call.store.read("stream", stream, progress.cursor, 1):
        raise full(StoreFull(call.stored.refusal(more)))
    if items or changed:
        await _keep(call, stream, consumer, progress, entry, must=True)
    if buried:
        await _trim(call, stream)
    _set_alarm(call, stream, consumer, progress)
    return items


async def _bury(call: Call, stream: str, data: msgspec.Raw) -> bool:
    """Moves an item that was given out too often to ``<stream>.dead``; False where that is full."""
    dead = f"{stream}.dead"
    length, used, _ = await call.store.extent("stream", dead)
    size = len(data) + 100
    if length >= call.bounds.stream_items or used + size > call.bounds.stream_bytes:
        return False
    try:
        await call.store.append("stream", dead, [(data, size)], owner=call.stored)
    except StoreFull:
        return False
    return True


async def _trim(call: Call, stream: str) -> None:
    """Drops what every consumer name has acknowledged."""
    consumers = await call.store.scan("consumer", prefix_of(stream), "", MAX_CONSUMERS)
    floor = min((entry.value.floor() for _, entry in consumers), default=0)
    while await call.store.trim("stream", stream, floor, 4096) == 4096:
        await call.turn()


def _set_alarm(call: Call, stream: str, consumer: str, progress: _Progress) -> None:
    """Whoever waits is woken when an item is due again."""
    first = progress.next_due()
    if first is None:
        return
    alarms = _readers(call).alarms
    key = (stream, consumer)
    alarm = alarms.get(key)
    if alarm is not None and alarm.callback is not None and alarm.when <= first[0]:
        return
    if alarm is not None:
        alarm.cancel()
    lines = call.runtime.lines

    def ring() -> None:
        del alarms[key]
        lines.wake("stream", key)

    alarms[key] = call.runtime.alarms.at(max(first[0], call.runtime.alarms.now() + 0.001), ring)


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


ELEMENTS = (produce, consume, transform, reduce)
