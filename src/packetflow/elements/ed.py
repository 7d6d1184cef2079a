"""Event driven: signals, timers, watching, reactions."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec

from packetflow.elements.call import Call
from packetflow.elements.cause import Cause
from packetflow.elements.request import Int, Request, Step, check_name, check_size, element
from packetflow.elements.standing import Standing
from packetflow.errors import InvalidPacket, PacketFlowError
from packetflow.state import Alarm, Patterns
from pfcore.memory.budget import Account
from pfcore.memory.ids import new_id

__all__ = ["ELEMENTS"]

log = logging.getLogger("packetflow.elements")

MIN_DELAY_MS = 10
"""Milliseconds between two firings of a timer, at least."""
MAX_DELAY_MS = 366 * 86_400_000


class _Pattern:
    """The reactions to one pattern, by owner."""

    __slots__ = ("by_owner", "count", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.by_owner: dict[Account, dict[_Reaction, None]] = {}
        self.count = 0


class _Reactions:
    """All reactions, by pattern and owner."""

    def __init__(self) -> None:
        self._known: dict[str, _Pattern] = {}
        self._patterns: Patterns[_Pattern] = Patterns()

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, reaction: _Reaction) -> None:
        pattern = self._known.get(reaction.pattern)
        if pattern is None:
            pattern = self._known[reaction.pattern] = _Pattern(reaction.pattern)
            self._patterns.add(pattern.text, pattern)
        pattern.by_owner.setdefault(reaction.account, {})[reaction] = None
        pattern.count += 1

    def remove(self, reaction: _Reaction) -> None:
        pattern = self._known[reaction.pattern]
        reactions = pattern.by_owner[reaction.account]
        del reactions[reaction]
        pattern.count -= 1
        if not reactions:
            del pattern.by_owner[reaction.account]
        if not pattern.count:
            del self._known[pattern.text]
            self._patterns.remove(pattern.text, pattern)

    def match(self, name: str) -> list[_Pattern]:
        """All patterns that a name fits: at most one for each of its lengths."""
        return self._patterns.match(name)

    @staticmethod
    def of(call: Call) -> _Reactions:
        found: _Reactions = call.runtime.rooms.setdefault("reactions", _Reactions())
        return found


class _Reaction(Standing):
    """A step at every match of a pattern."""

    __slots__ = ("_reactions", "pattern")

    def __init__(self, call: Call, reaction_id: str, step: Step, pattern: str) -> None:
        super().__init__(call, "reaction", reaction_id, step)
        self.pattern = pattern
        self._reactions = _Reactions.of(call)
        self._reactions.add(self)

    def end(self) -> None:
        if not self.ended:
            self._reactions.remove(self)
        super().end()


class Signal(Request):
    """ed:signal"""

    event: str
    payload: msgspec.Raw = msgspec.Raw(b"null")


@element("ed", "signal")
async def signal(call: Call, request: Signal) -> Any:
    """To every reaction and watcher."""
    name = check_name("event", request.event)
    check_size(call, "payload", request.payload)
    call.hold(len(request.payload))
    payload = msgspec.Raw(bytes(request.payload))
    watched = call.runtime.watched
    watched.check_room("event", name, len(payload), call.stored)
    patterns = _Reactions.of(call).match(name)
    # what can be refused is refused before anybody has been told
    call.hold((len(payload) if patterns else 0) + 100 * sum([len(pattern.by_owner) for pattern in patterns]))
    delivered = await watched.note("event", name, {"event": name, "payload": payload}, len(payload), call.stored)
    if not patterns:
        return {"delivered": delivered}
    count = sum([pattern.count for pattern in patterns])
    by_owner: dict[Account, list[dict[_Reaction, None]]] = {}
    for pattern in patterns:
        await call.turn()
        for owner, reactions in pattern.by_owner.items():
            by_owner.setdefault(owner, []).append(reactions)
    event = event_of(name, payload)
    context = {"event": event, "input": event, "prev": event, "results": {}}
    refused = 0
    for place, reaction in enumerate(_taking_turns(by_owner.values(), call.bounds.steps)):
        await call.turn()
        if reaction.ended:
            continue
        try:
            call.check_steps(1)
        except PacketFlowError as error:
            refused += max(1, count - place)
            log.info("%d reactions to %r: %s", count - place, name, error)
            break
        try:
            reaction.send(context, call.depth, call.cause)
            delivered += 1
        except PacketFlowError as error:
            refused += 1
            log.info("reaction %s to %r: %s", reaction.id, name, error)
    # said where there is something to say: one's reactions are not another's failure
    return {"delivered": delivered, "refused": refused} if refused else {"delivered": delivered}


def event_of(name: str, payload: Any) -> msgspec.Raw:
    """What a step sees as `event`."""
    return msgspec.Raw(msgspec.json.encode({"name": name, "payload": payload}))


def _taking_turns(owners: Iterable[list[dict[_Reaction, None]]], most: int) -> Iterator[_Reaction]:
    """One of each owner after another, at most so many of each: a bound is not reached by one's many alone."""
    waiting = deque(_reactions_of(one, most) for one in owners)
    while waiting:
        reaction = next(waiting[0], None)
        if reaction is None:
            waiting.popleft()
        else:
            waiting.rotate(-1)
            yield reaction


def _reactions_of(groups: list[dict[_Reaction, None]], most: int) -> Iterator[_Reaction]:
    for reactions in groups:
        yield from list(islice(reactions, most))  # as they are when their turn comes


class Watch(Request):
    """ed:watch"""

    event: str | None = None
    key: str | None = None
    version: Int | None = None
    after: Int | None = None
    wait_ms: Int | None = None


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
    with watched.watching(kind, pattern, call.stored) as start:
        after = start if request.after is None else request.after
        if request.version is not None and request.after is None:
            entry = await call.store.get("cache", pattern)
            version = entry.version if entry is not None else 0
            if version != request.version:
                value = msgspec.Raw(entry.value) if entry is not None else None
                cursor = watched.tell(kind, pattern, start)
                return {"key": pattern, "value": value, "version": version, "cursor": cursor}

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
    if request.cancel is not None:
        if request.event is not None or request.packet is not None:
            raise InvalidPacket("cancel: expected neither event nor packet beside it")
        found = call.runtime.standing.get((call.principal.number, "reaction", request.cancel))
        if found is not None:
            found.end()
        return {"reaction": request.cancel, "cancelled": found is not None}
    if request.event is None or request.packet is None:
        raise InvalidPacket("expected event and packet, or cancel")
    pattern = check_name("event", request.event)
    reaction_id = new_id() if request.id is None else check_name("id", request.id)
    call.check_steps(1)
    _Reaction(call, reaction_id, request.packet, pattern)
    return {"reaction": reaction_id}


class _Timer(Standing):
    """The n-th firing is at start + n times every; one whose time has gone by before it had its turn is dropped.

    A firing waits for its turn as every piece of work does, and there is never
    more than one of a timer that waits: the next is set when this one has had it.
    """

    __slots__ = ("_alarm", "_depth", "_every", "_left", "place", "start")

    def __init__(
        self, call: Call, timer_id: str, step: Step, start: float, every: float | None, count: int | None
    ) -> None:
        super().__init__(call, "timer", timer_id, step)
        self.start = start
        self.place = 0  # n of the next firing
        self._every = every
        self._left = count
        self._depth = call.depth
        self._alarm: Alarm = self._set()

    def next(self) -> float:
        """Loop time of the next firing."""
        return self.start + self.place * (self._every or 0.0)

    def end(self) -> None:
        if not self.ended:
            self._alarm.cancel()
        super().end()

    def _set(self) -> Alarm:
        turns = self.runtime.turns
        return self.runtime.alarms.at(self.next(), lambda: turns.when(self.account, self._fire))

    def _fire(self) -> None:
        if self.ended:
            return
        place = self.place
        if self._left is not None:
            self._left -= 1
        if self._every is None or self._left == 0:
            self.end()
        else:
            passed = (self.runtime.alarms.now() - self.start) / self._every
            self.place = max(place + 1, math.floor(passed) + 1)
            self._alarm = self._set()
        context: dict[str, Any] = {
            "event": event_of(self.id, place),
            "input": None,
            "prev": None,
            "results": {},
            "index": place,
        }
        try:
            self.send(context, self._depth, Cause(self.runtime.bounds))
        except PacketFlowError as error:
            log.info("timer %s: %s", self.id, error)


class Timer(Request):
    """ed:timer"""

    packet: Step | None = None
    after_ms: Int | None = None
    every_ms: Int | None = None
    at: Int | None = None
    count: Int | None = None
    id: str | None = None
    cancel: str | None = None


@element("ed", "timer")
async def timer(call: Call, request: Timer) -> Any:
    """A step at a time, or again and again."""
    if request.cancel is not None:
        found = call.runtime.standing.get((call.principal.number, "timer", request.cancel))
        if found is not None:
            found.end()
        return {"cancelled": found is not None}
    if request.packet is None:
        raise InvalidPacket("expected packet, or cancel")
    first = _first(call, request)
    if request.count is not None and (request.every_ms is None or request.count < 1):
        raise InvalidPacket("count: expected 1 or more, with every_ms")
    timer_id = new_id() if request.id is None else check_name("id", request.id)
    call.check_steps(1)
    every = request.every_ms / 1000 if request.every_ms is not None else None
    _Timer(call, timer_id, request.packet, first, every, request.count)
    return {"timer": timer_id, "next_at": int((time.time() + first - call.runtime.alarms.now()) * 1000)}


def _first(call: Call, request: Timer) -> float:
    """Loop time of the first firing."""
    now = call.runtime.alarms.now()
    if request.every_ms is not None and not MIN_DELAY_MS <= request.every_ms <= MAX_DELAY_MS:
        raise InvalidPacket(f"every_ms: expected {MIN_DELAY_MS} to {MAX_DELAY_MS:,}, got {request.every_ms:,}")
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


ELEMENTS = (signal, timer, watch, react)
