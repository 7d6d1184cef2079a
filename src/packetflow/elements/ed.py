"""Event driven: signals, timers, watching, reactions."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

import msgspec

from packetflow.elements.runtime import Call, Request, Step, check_name, check_size, element
from packetflow.errors import InvalidPacket, Overloaded, PacketFlowError
from packetflow.model import DEFAULT_TIMEOUT_MS
from packetflow.state import Alarm, Patterns

__all__ = ["ELEMENTS"]

log = logging.getLogger("packetflow.elements")

MAX_DELAY_MS = 366 * 86_400_000


class _Holding:
    """What a timer or reaction needs of the packet that set it up, long after that has ended."""

    __slots__ = ("call", "step")

    def __init__(self, call: Call, step: Step) -> None:
        self.call = call
        # a copy: what came borrows the frame that it came in
        self.step = msgspec.structs.replace(step, data=msgspec.Raw(bytes(step.data)))

    def send(self, context: dict[str, Any], depth: int) -> None:
        """Submits the step as who set it up, `depth` deep."""
        call = self.call.again(depth)
        call.send(self.step, context, timeout_ms=self.step.timeout_ms or DEFAULT_TIMEOUT_MS)


class _Reaction(_Holding):
    __slots__ = ("id", "pattern")

    def __init__(self, call: Call, step: Step, reaction_id: str, pattern: str) -> None:
        super().__init__(call, step)
        self.id = reaction_id
        self.pattern = pattern


class Signal(Request):
    """ed:signal"""

    event: str
    payload: msgspec.Raw = msgspec.Raw(b"null")


@element("ed", "signal")
async def signal(call: Call, request: Signal) -> Any:
    """To every reaction and watcher."""
    name = check_name("event", request.event)
    check_size(call, "payload", request.payload)
    reactions: Patterns[_Reaction] = call.runtime.rooms.setdefault("reactions", Patterns())
    payload = msgspec.Raw(bytes(request.payload))
    delivered = await call.runtime.watched.note("event", name, {"event": name, "payload": payload}, len(payload))
    matching = reactions.match(name)
    if matching:
        event = {"name": name, "payload": msgspec.json.decode(payload)}
        context = {"event": event, "input": event, "prev": event, "results": {}}
        for reaction in matching:
            try:
                reaction.send(context, call.depth)
                delivered += 1
            except PacketFlowError as error:
                log.info("reaction %s to %r: %s", reaction.id, name, error)
    return {"delivered": delivered}


class Watch(Request):
    """ed:watch"""

    event: str | None = None
    key: str | None = None
    version: int | None = None
    after: int | None = None
    wait_ms: int | None = None


@element("ed", "watch")
async def watch(call: Call, request: Watch) -> Any:
    """The next event, or change of a cache key."""
    if (request.event is None) == (request.key is None):
        raise InvalidPacket("expected one of event and key")
    kind = "event" if request.event is not None else "key"
    pattern = check_name(kind, request.event or request.key or "")
    if request.version is not None and (kind == "event" or pattern.endswith("*")):
        raise InvalidPacket("version: expected with one key, without *")
    watched = call.runtime.watched
    start = watched.keep(kind, pattern)
    after = start if request.after is None else request.after
    if request.version is not None and request.after is None:
        entry = await call.store.get("cache", pattern)
        version = entry.version if entry is not None else 0
        if version != request.version:
            value = entry.value if entry is not None else None
            return {"key": pattern, "value": value, "version": version, "cursor": start}

    async def attempt() -> dict[str, Any] | None:
        return await watched.next(kind, pattern, after)

    return await call.wait(kind, pattern, attempt, wait_ms=request.wait_ms)


class React(Request):
    """ed:react"""

    event: str | None = None
    packet: Step | None = None
    id: str | None = None
    cancel: str | None = None


@element("ed", "react")
async def react(call: Call, request: React) -> Any:
    """A step at every match, until it is cancelled or its link ends."""
    reactions: Patterns[_Reaction] = call.runtime.rooms.setdefault("reactions", Patterns())
    known: dict[tuple[int, str], _Reaction] = call.runtime.rooms.setdefault("reactions by id", {})
    owner = call.principal.number

    def end(reaction: _Reaction) -> None:
        if known.get((owner, reaction.id)) is reaction:
            del known[owner, reaction.id]
            reactions.remove(reaction.pattern, reaction)
            reaction.call.session.let_go(("reaction", reaction.id))

    if request.cancel is not None:
        if request.event is not None or request.packet is not None:
            raise InvalidPacket("cancel: expected neither event nor packet beside it")
        found = known.get((owner, request.cancel))
        if found is not None:
            end(found)
        return {"reaction": request.cancel, "cancelled": found is not None}
    if request.event is None or request.packet is None:
        raise InvalidPacket("expected event and packet, or cancel")
    pattern = check_name("event", request.event)
    reaction_id = str(uuid.uuid4()) if request.id is None else check_name("id", request.id)
    call.check_steps(1)
    before = known.get((owner, reaction_id))
    if before is not None:
        end(before)
    _check_room(call)
    reaction = _Reaction(call, request.packet, reaction_id, pattern)
    known[owner, reaction_id] = reaction
    reactions.add(pattern, reaction)
    call.session.hold(("reaction", reaction_id), lambda: end(reaction))
    return {"reaction": reaction_id}


class _Timer(_Holding):
    """A timer: the n-th firing is at start + n times every, however late the one before was."""

    __slots__ = ("alarm", "every", "fired", "id", "left", "start")

    def __init__(self, call: Call, step: Step, timer_id: str, start: float, every: float | None, count: int | None):
        super().__init__(call, step)
        self.id = timer_id
        self.start = start
        self.every = every
        self.left = count
        self.fired = 0
        self.alarm: Alarm | None = None

    def next(self) -> float:
        return self.start + self.fired * (self.every or 0.0)


class Timer(Request):
    """ed:timer"""

    packet: Step | None = None
    after_ms: int | None = None
    every_ms: int | None = None
    at: int | None = None
    count: int | None = None
    id: str | None = None
    cancel: str | None = None


@element("ed", "timer")
async def timer(call: Call, request: Timer) -> Any:
    """A step at a time, or again and again."""
    timers: dict[tuple[int, str], _Timer] = call.runtime.rooms.setdefault("timers", {})
    alarms = call.runtime.alarms
    owner = call.principal.number

    def end(one: _Timer) -> None:
        if timers.get((owner, one.id)) is one:
            del timers[owner, one.id]
            one.call.session.let_go(("timer", one.id))
            if one.alarm is not None:
                one.alarm.cancel()

    def fire(one: _Timer) -> None:
        event = {"name": one.id, "payload": one.fired}
        one.fired += 1
        if one.left is not None:
            one.left -= 1
        if one.every is None or one.left == 0:
            end(one)
        else:
            one.alarm = alarms.at(one.next(), lambda: fire(one))
        try:
            one.send({"event": event, "input": None, "prev": None, "results": {}, "index": one.fired - 1}, call.depth)
        except PacketFlowError as error:
            log.info("timer %s: %s", one.id, error)

    if request.cancel is not None:
        found = timers.get((owner, request.cancel))
        if found is not None:
            end(found)
        return {"cancelled": found is not None}
    if request.packet is None:
        raise InvalidPacket("expected packet, or cancel")
    first = _first(call, request)
    if request.count is not None and (request.every_ms is None or request.count < 1):
        raise InvalidPacket("count: expected 1 or more, with every_ms")
    timer_id = str(uuid.uuid4()) if request.id is None else check_name("id", request.id)
    call.check_steps(1)
    before = timers.get((owner, timer_id))
    if before is not None:
        end(before)
    _check_room(call)
    every = request.every_ms / 1000 if request.every_ms is not None else None
    one = _Timer(call, request.packet, timer_id, first, every, request.count)
    timers[owner, timer_id] = one
    call.session.hold(("timer", timer_id), lambda: end(one))
    one.alarm = alarms.at(one.next(), lambda: fire(one))
    return {"timer": timer_id, "next_at": int((time.time() + first - alarms.now()) * 1000)}


def _first(call: Call, request: Timer) -> float:
    """Loop time of the first firing."""
    now = call.runtime.alarms.now()
    if request.every_ms is not None and not 1 <= request.every_ms <= MAX_DELAY_MS:
        raise InvalidPacket(f"every_ms: expected 1 to {MAX_DELAY_MS:,}, got {request.every_ms:,}")
    if request.after_ms is not None and request.at is not None:
        raise InvalidPacket("expected one of after_ms and at")
    if request.after_ms is not None:
        if not 0 <= request.after_ms <= MAX_DELAY_MS:
            raise InvalidPacket(f"after_ms: expected 0 to {MAX_DELAY_MS:,}, got {request.after_ms:,}")
        return now + request.after_ms / 1000
    if request.at is not None:
        delay = request.at / 1000 - time.time()
        if delay * 1000 > MAX_DELAY_MS:
            raise InvalidPacket(f"at: expected a time within {MAX_DELAY_MS:,} ms from now")
        return now + max(0.0, delay)
    if request.every_ms is not None:
        return now + request.every_ms / 1000
    raise InvalidPacket("expected after_ms, every_ms or at")


def _check_room(call: Call) -> None:
    most = call.bounds.timers
    if call.session.count("timer") + call.session.count("reaction") >= most:
        raise Overloaded(f"{most:,} timers and reactions are this reactor's, the most that may")


ELEMENTS = (signal, timer, watch, react)
