"""Data flow: streams of items that are acknowledged."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

from packetflow.elements.call import Call
from packetflow.elements.kept import Kind
from packetflow.elements.request import (
    MAX_NAME,
    Int,
    Request,
    check_name,
    check_size,
    element,
    items_of,
    key_of,
    prefix_of,
)
from packetflow.errors import InvalidPacket, Overloaded, PacketFlowError
from packetflow.state import Alarm, Change, LogBounds, LogFull, StoreFull, VersionMismatch
from pfcore.memory.budget import Account

__all__ = ["ELEMENTS"]

MAX_DELIVERIES = 5
DEAD = ".dead"
"""Ends the name of the stream that has the dead of another."""
MAX_CONSUMED = 10_000
MAX_PRODUCED = 10_000
MAX_CONSUMERS = 1000
MAX_PENDING = 10_000
"""Items that a consumer name may have and not have acknowledged; it gets nothing new before."""
MAX_TAKEN = MAX_CONSUMED
"""Items of one answer: nothing else happens to the consumer name while they are taken."""
PIECE = 256
"""Items taken, or told to the store, in one piece of work."""
AGAIN = 25
"""So many times the work of a new item is one that is due again, and once more where it is one of the dead now."""
PREPAID = 16
"""So many of those are paid for with the consumer's name: a stream can be read however full the account is."""
PENDING_BYTES = 320
"""What an item takes that was given out and is not acknowledged yet."""
ITEM_BYTES = 200
"""What an item that is on its way into a stream takes besides its text."""
FEW = 64
"""Such a progress is told to the store with every change; of one with more pending that takes too long."""
SAVE_S = 0.1
"""Seconds after which the store is told of those, and which a gateway's end may cost: then they are delivered again."""


class _Saved(msgspec.Struct, array_like=True):
    """A consumer name's progress as the store has it: another gateway may go on, whose clock is another."""

    cursor: int
    pending: list[tuple[int, int, int]]  # id, deliveries, ms until it is due again

    @property
    def floor(self) -> int:
        """Everything up to this id is done with."""
        return self.pending[0][0] - 1 if self.pending else self.cursor


CONSUMERS = Kind("consumer", _Saved, 300)


class _Progress:
    """How far a consumer name has read a stream, and what it has yet to acknowledge: id -> (deliveries, due)."""

    __slots__ = ("_due", "_order", "cursor", "pending", "turn", "version")

    def __init__(self, cursor: int, version: int) -> None:
        self.cursor = cursor
        self.version = version  # what the store has of it
        self.pending: dict[int, tuple[int, float]] = {}
        self.turn = asyncio.Lock()  # who holds it may change it, and nobody else does meanwhile
        self._order: deque[int] = deque()  # ids as they were first given out, those that are done with among them
        self._due: list[tuple[float, int]] = []  # a heap; those that are no longer so among them

    @classmethod
    def of(cls, saved: _Saved, version: int, now: float) -> _Progress:
        """What another gateway, or this one before, has told the store."""
        progress = cls(saved.cursor, version)
        for item, deliveries, left in saved.pending:
            progress.give(item, deliveries, now + left / 1000)
        return progress

    def give(self, item: int, deliveries: int, due: float) -> None:
        """It was given out, and may be again when it is due."""
        if item not in self.pending:
            self._order.append(item)
            if len(self._order) > 2 * len(self.pending) + 64:
                # one that is never acknowledged must not keep all the others
                self._order = deque([one for one in self._order if one in self.pending or one == item])
        self.pending[item] = (deliveries, due)
        heapq.heappush(self._due, (due, item))
        self._compact()

    def done(self, item: int) -> None:
        """It was acknowledged, or is gone."""
        self.pending.pop(item, None)
        self._compact()

    def _compact(self) -> None:
        """Those that are due no more are not left for who asks next, ten thousand at once."""
        if len(self._due) > 2 * len(self.pending) + 64:
            self._due = [(when, one) for one, (_, when) in self.pending.items()]
            heapq.heapify(self._due)

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
        return CONSUMERS.size + PENDING_BYTES * max(PREPAID, len(self.pending))


class _Readers:
    """Who reads streams here: consumer names, who waits for items, and alarms that wake them when one is due again."""

    __slots__ = ("alarms", "changed", "known", "saving", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, dict[str, int]] = {}  # stream -> consumer -> how many
        self.alarms: dict[tuple[str, str], Alarm] = {}
        self.known: dict[str, _Progress] = {}  # key of stream and consumer -> its progress
        self.changed: dict[str, Account | None] = {}  # the same keys, of what the store has yet to be told -> who pays
        self.saving = False


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


@dataclass(slots=True)
class _Reader:
    """One packet that reads a stream, under a consumer name."""

    call: Call
    readers: _Readers
    stream: str
    consumer: str
    key: str

    async def progress(self) -> _Progress:
        """The consumer name's; one that comes late sees what is still there."""
        known = self.readers.known
        while (progress := known.get(self.key)) is None:
            known.setdefault(self.key, await self._found())
        return progress

    async def _found(self) -> _Progress:
        call = self.call
        kept = await call.read(CONSUMERS, self.key)
        if kept is not None:
            return _Progress.of(kept.record, kept.version, call.runtime.alarms.now())
        _, _, dropped = await call.store.extent("stream", self.stream)
        others = await call.store.scan(CONSUMERS.name, prefix_of(self.stream), "", MAX_CONSUMERS)
        if len(others) >= MAX_CONSUMERS:
            raise Overloaded(f"stream {self.stream!r}: {MAX_CONSUMERS:,} consumer names read it, the most that may")
        fresh = _Progress(dropped, 0)
        try:
            await _put(call, self.key, fresh, call.stored, must=False)
        except VersionMismatch:
            return await self._found()  # another gateway has just made it
        return fresh

    async def keep(self, progress: _Progress) -> None:
        """It has changed: the store is told, at once where that is little."""
        readers = self.readers
        if len(progress.pending) <= FEW and self.key not in readers.changed:
            try:
                await _put(self.call, self.key, progress, self.call.stored, must=True)
            except VersionMismatch:
                _lose(readers, self.key, progress)
            return
        self.keep_later()

    def keep_later(self) -> None:
        """It has changed: the store is told soon."""
        self.readers.changed[self.key] = self.call.stored
        if not self.readers.saving:
            _save_later(self.call, self.readers)


async def _saved(call: Call, progress: _Progress, owner: Account | None) -> _Saved:
    """What the store is told, in the owner's turns. Whoever asks has the progress's, or nobody else knows it yet."""
    turns = call.runtime.turns
    account = call.runtime.orphans if owner is None else owner
    now = call.runtime.alarms.now()
    pending = []
    for place, (item, (deliveries, due)) in enumerate(progress.pending.items()):
        if place % PIECE == PIECE - 1 and turns.spent(account):
            await turns.next(account)
        pending.append((item, deliveries, max(0, round((due - now) * 1000))))
    return _Saved(progress.cursor, pending)


async def _put(call: Call, key: str, progress: _Progress, owner: Account | None, must: bool) -> None:
    saved = await _saved(call, progress, owner)
    entry = await call.store.put(
        CONSUMERS.name,
        key,
        CONSUMERS.encode(saved),
        version=progress.version,
        size=progress.size,
        owner=owner,
        must=must,
    )
    progress.version = entry.version


def _save_later(call: Call, readers: _Readers) -> None:
    readers.saving = True
    alarms = call.runtime.alarms
    alarms.at(alarms.now() + SAVE_S, lambda: call.runtime.spawn(_save(call, readers)))


async def _save(call: Call, readers: _Readers) -> None:
    """Tells the store of all that has changed; of what has changed meanwhile, or could not be told, a little later."""
    owners: dict[Account | None, list[str]] = {}
    for key, owner in readers.changed.items():
        owners.setdefault(owner, []).append(key)
    try:
        # nobody's is late because another has no turn just now
        await asyncio.gather(*(_save_some(call, readers, keys) for keys in owners.values()))
    except asyncio.CancelledError:
        readers.changed.clear()  # the gateway has ended
        raise
    finally:
        readers.saving = False
        if readers.changed:
            _save_later(call, readers)


async def _save_some(call: Call, readers: _Readers, keys: list[str]) -> None:
    for key in keys:
        progress = readers.known.get(key)
        if progress is None:
            readers.changed.pop(key, None)
            continue
        async with progress.turn:
            if key not in readers.changed:
                continue
            try:
                await _put(call, key, progress, readers.changed[key], must=True)
                readers.changed.pop(key, None)
            except VersionMismatch:
                _lose(readers, key, progress)
        await asyncio.sleep(0)  # each may be a millisecond


def _lose(readers: _Readers, key: str, progress: _Progress) -> None:
    """Another gateway gives out the items of this name: what it says counts."""
    if readers.known.get(key) is progress:
        del readers.known[key]
    readers.changed.pop(key, None)


class Produce(Request):
    """df:produce"""

    stream: str
    items: msgspec.Raw
    wait_ms: Int | None = None


@element("df", "produce")
async def produce(call: Call, request: Produce) -> Any:
    """Appends to a stream."""
    name = _check_stream(request.stream)
    bounds = call.bounds
    room = _room(call)
    _readers(call)
    given = items_of(request.items, "items", MAX_PRODUCED)
    count = len(given)
    size = sum(map(len, given)) + 100 * count
    if count > bounds.stream_items or size > bounds.stream_bytes:
        raise InvalidPacket(
            f"items: {count:,} of {size:,} bytes, a stream holds {bounds.stream_items:,} of {bounds.stream_bytes:,}"
        )
    for item in given:
        check_size(call, "items", item)
    call.hold(size + ITEM_BYTES * count)
    items = []
    for place, item in enumerate(given):
        if place % 256 == 255:
            await call.turn()
        items.append((bytes(item), len(item) + 100))

    async def attempt() -> dict[str, Any] | None:
        try:
            first, last = await call.store.append("stream", name, items, bounds=room, owner=call.stored)
        except LogFull:
            return None
        length, _, _ = await call.store.extent("stream", name)
        return {"first": first if items else None, "last": last if items else None, "length": length}

    def no_room() -> PacketFlowError:
        return Overloaded(
            f"stream {name!r}: it is full ({bounds.stream_items:,} items, {bounds.stream_bytes:,} bytes)",
            details={"retry_after_ms": 1000},
        )

    return await call.wait("room", name, attempt, wait_ms=request.wait_ms, otherwise=no_room)


def _check_stream(name: str) -> str:
    """A stream's name: so much shorter than others that what is dead of it has one, too, and can be read."""
    check_name("stream", name)
    if not name.endswith(DEAD) and _dead_of(name) is None:
        raise InvalidPacket(
            f"stream: expected a name of 1 to {MAX_NAME - len(DEAD)} bytes, or {MAX_NAME} where it ends with {DEAD}, "
            f"got {len(name.encode())}"
        )
    return name


def _dead_of(stream: str) -> str | None:
    """The stream of what is dead of this one; None where that would have too long a name: nothing dies there."""
    dead = stream + DEAD
    return dead if len(dead.encode()) <= MAX_NAME else None


def _room(call: Call) -> LogBounds:
    return LogBounds(call.bounds.stream_items, call.bounds.stream_bytes)


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
    stream = _check_stream(request.stream)
    name = check_name("consumer", request.consumer)
    if not 0 <= request.max <= MAX_CONSUMED:
        raise InvalidPacket(f"max: expected 0 to {MAX_CONSUMED:,}, got {request.max:,}")
    if not 1 <= request.redeliver_after_ms <= 86_400_000:
        raise InvalidPacket(f"redeliver_after_ms: expected 1 to 86,400,000, got {request.redeliver_after_ms:,}")
    if len(request.ack) > MAX_CONSUMED:
        raise InvalidPacket(f"ack: expected at most {MAX_CONSUMED:,} ids, got {len(request.ack):,}")
    readers = _readers(call)
    reader = _Reader(call, readers, stream, name, key_of(stream, name))
    progress = await reader.progress()
    if request.ack:
        await _acknowledge(reader, progress, request.ack)
    if request.max == 0:
        return {"items": []}

    async def attempt() -> dict[str, Any] | None:
        items = await _take(reader, request)
        return {"items": items} if items else None

    waiting = readers.waiting.setdefault(stream, {})
    waiting[name] = waiting.get(name, 0) + 1
    try:
        return await call.wait("stream", (stream, name), attempt, wait_ms=request.wait_ms, shown=stream)
    finally:
        waiting[name] -= 1
        if not waiting[name]:
            del waiting[name]
            if not waiting and readers.waiting.get(stream) is waiting:
                del readers.waiting[stream]


async def _acknowledge(reader: _Reader, progress: _Progress, ack: list[int]) -> None:
    """Takes from a consumer name what it is done with."""
    async with progress.turn:
        was_full = len(progress.pending) >= MAX_PENDING
        for item in ack:
            progress.done(item)
        await reader.keep(progress)
    if was_full:
        reader.call.runtime.lines.wake("stream", (reader.stream, reader.consumer))
    await _trim(reader.call, reader.readers, reader.stream)


async def _take(reader: _Reader, request: Consume) -> list[dict[str, Any]]:
    """Items for a caller: those that are due again, then new ones."""
    progress = await reader.progress()
    async with progress.turn:
        try:
            items, buried = await _give_out(reader, progress, request)
        except asyncio.CancelledError:
            # what was given out already comes again when it is due
            reader.keep_later()
            _set_alarm(reader, progress)
            raise
    if buried:
        await _trim(reader.call, reader.readers, reader.stream)
    return items


async def _give_out(reader: _Reader, progress: _Progress, request: Consume) -> tuple[list[dict[str, Any]], bool]:
    """Those items, and whether one has gone to the dead."""
    call, stream = reader.call, reader.stream
    length, _, _ = await call.store.extent("stream", stream)
    fresh = min(request.max, length, MAX_PENDING - len(progress.pending))  # so many new ones at most
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
    work = piece = 0  # nothing else may happen to the consumer name meanwhile, so it has to be short
    turns, began = call.runtime.turns, call.runtime.turns.clock()
    while work < MAX_TAKEN:
        if work - piece >= PIECE:
            piece = work
            if turns.spent(call.account):
                began = await turns.between(call.account, began)
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
        if deliveries >= MAX_DELIVERIES and (dead := _dead_of(stream)) is not None:
            work += AGAIN
            if await _bury(call, dead, data):
                progress.done(item)
                buried = True
            else:
                progress.give(item, deliveries, due)
            continue
        progress.give(item, deliveries + 1, due)
        items.append({"id": item, "data": msgspec.Raw(data), "deliveries": deliveries + 1})
        room -= len(data) + 60
    fresh = min(fresh, request.max - len(items), MAX_TAKEN - work)
    while fresh > 0 and room > 0:
        if len(items) + work - piece >= PIECE and turns.spent(call.account):
            piece = len(items) + work
            began = await turns.between(call.account, began)
        found = await call.store.read("stream", stream, progress.cursor, min(100, fresh))
        if not found:
            break
        for item, data in found:
            if room <= 0:
                break
            progress.cursor = item
            progress.give(item, 1, due)
            items.append({"id": item, "data": msgspec.Raw(data), "deliveries": 1})
            fresh -= 1
            room -= len(data) + 60
    waits = refused and not items and not changed
    if waits and call.stored is not None and await call.store.read("stream", stream, progress.cursor, 1):
        raise StoreFull(call.stored.refusal(more))
    if items or changed:
        await reader.keep(progress)
    _set_alarm(reader, progress)
    return items, buried


async def _bury(call: Call, dead: str, data: bytes) -> bool:
    """Moves an item that was given out too often to this stream; False where that is full."""
    try:
        await call.store.append("stream", dead, [(data, len(data) + 100)], bounds=_room(call), owner=call.stored)
    except StoreFull:
        return False
    return True


async def _trim(call: Call, readers: _Readers, stream: str) -> None:
    """Drops what every consumer name has acknowledged."""
    known = readers.known
    floor = min(
        (
            known[key].floor() if key in known else CONSUMERS.decode(key, entry.value).floor
            for key, entry in await call.store.scan(CONSUMERS.name, prefix_of(stream), "", MAX_CONSUMERS)
        ),
        default=0,
    )
    while await call.store.trim("stream", stream, floor, 4096) == 4096:
        await call.turn()


def _set_alarm(reader: _Reader, progress: _Progress) -> None:
    """Whoever waits is woken when an item is due again."""
    first = progress.next_due()
    if first is None:
        return
    alarms = reader.readers.alarms
    key = (reader.stream, reader.consumer)
    alarm = alarms.get(key)
    if alarm is not None and alarm.callback is not None and alarm.when <= first[0]:
        return
    if alarm is not None:
        alarm.cancel()
    runtime = reader.call.runtime

    def ring() -> None:
        del alarms[key]
        runtime.lines.wake("stream", key)

    alarms[key] = runtime.alarms.at(max(first[0], runtime.alarms.now() + 0.001), ring)


ELEMENTS = (produce, consume)
