"""What every standard element stands on: who asks, until when, and how a step is submitted."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from packetflow.elements.expressions import expand
from packetflow.elements.watched import Watched
from packetflow.errors import (
    Forbidden,
    InvalidPacket,
    NoHandler,
    Overloaded,
    PacketFlowError,
    PacketTimeout,
    TooLarge,
    exception_for,
)
from packetflow.model import DEFAULT_TIMEOUT_MS, Packet, Result
from packetflow.state import Alarms, Change, Leases, Lines, MemoryStore, Session, Sessions, Store, StoreFull
from pfcore.dispatch import Handler
from pfcore.flights import Member, Principal
from pfcore.reply import Reply

__all__ = ["Bounds", "Call", "Element", "Host", "Request", "Runtime", "Step", "element"]

log = logging.getLogger("packetflow.elements")

T = TypeVar("T")

MAX_NAME = 256
MAX_TTL_MS = 86_400_000
DEFAULT_TTL_MS = 30_000


@dataclass(frozen=True)
class Bounds:
    """How much the standard elements take; past each the answer is PF429 or PF400 and names it.

    `steps` of a packet; `nesting` of elements; `iterations` of a loop; `waiters` of a
    name; `names` of a kind; `value` and `cache`: bytes of a value, and of all that is
    cached; `stream_items`, `stream_bytes`: of one stream; `timers`: timers and
    reactions of a link.
    """

    steps: int = 1000
    nesting: int = 16
    iterations: int = 10_000
    waiters: int = 10_000
    names: int = 100_000
    value: int = 1_048_576
    cache: int = 256 * 1_048_576
    stream_items: int = 100_000
    stream_bytes: int = 64 * 1_048_576
    timers: int = 10_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


WAITED_FOR = {"gate": "gate", "pool": "pool", "lock": "lock", "barrier end": "barrier", "ballot end": "ballot"}
"""Kinds of the store -> the lines of those who wait for a change of one."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """The data of an element: unknown keys are mistakes, and refused."""


class Step(Request, kw_only=True):
    """A nested packet."""

    group: str
    element: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    priority: int | None = None
    timeout_ms: int | None = None
    metadata: dict[str, Any] | None = None
    as_: str | None = msgspec.field(name="as", default=None)

    @property
    def key(self) -> str:
        """Its ``group:element``."""
        return f"{self.group}:{self.element}"


class Host(Protocol):
    """What the elements need of the gateway that they run in."""

    def submit_as(self, principal: Principal, packet: Packet, retry: int = 0) -> Reply:
        """Routes a packet as if this principal had submitted it."""

    def may_submit(self, principal: Principal, key: str) -> bool:
        """May it?"""

    def reactors_for(self, key: str) -> list[Member]:
        """Who handles it."""

    def submit_to(self, member: Member, packet: Packet) -> Reply:
        """Sends a packet to one reactor."""


@dataclass(frozen=True, slots=True)
class _Nest:
    """Whose a nested packet is, and how deep."""

    principal: Principal
    session: Session
    depth: int


Function = Callable[["Call", Any], Awaitable[Any]]


@dataclass(frozen=True)
class Element:
    """A standard element: its address, the shape of its data, and what it does."""

    group: str
    name: str
    request: type[Request]
    function: Function

    @property
    def key(self) -> str:
        return f"{self.group}:{self.name}"


def element(group: str, name: str) -> Callable[[Function], Element]:
    """Makes an `Element` of a function ``(call, request)``; the annotation of `request` is its data's shape."""

    def make(function: Function) -> Element:
        import typing

        request = typing.get_type_hints(function)["request"]
        return Element(group, name, request, function)

    return make


class Runtime:
    """The standard elements of one gateway, and all that they keep."""

    def __init__(
        self,
        host: Host,
        elements: Mapping[str, Element],
        *,
        loop: asyncio.AbstractEventLoop,
        bounds: Bounds | None = None,
        store: Callable[[Alarms], Store] | None = None,
        gateway: Principal,
        admin: Any,
    ) -> None:
        self.host = host
        self.admin = admin
        self.elements = MappingProxyType(dict(elements))
        self.bounds = bounds or Bounds()
        self.loop = loop
        self.alarms = Alarms(loop)
        self.store: Store = (store or self._memory)(self.alarms)
        self.lines = Lines(loop, self.bounds.waiters)
        self.leases = Leases(self.alarms, self.spawn)
        self.watched = Watched(self.store, self.lines, self.alarms, self.spawn, self.bounds.names)
        self.sessions = Sessions(self.alarms)
        self.gateway = gateway
        self.nests: dict[str, _Nest] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.rooms: dict[str, Any] = {}
        """What a group's module keeps for itself, by its name."""
        for kind, line in WAITED_FOR.items():
            self.store.watch(kind, "*", functools.partial(self._changed, line))

    def _changed(self, line: str, change: Change) -> None:
        """Something was put, deleted, or has had its time, here or at another gateway of the same store."""
        self.lines.wake(line, change.name)

    def _memory(self, alarms: Alarms) -> Store:
        bounds = self.bounds
        return MemoryStore(
            alarms,
            max_names=bounds.names,
            max_bytes={"cache": bounds.cache},
            log_items={"event": 1000, "key": 1000},
            log_bytes={"event": 4 * bounds.value, "key": 4 * bounds.value},
        )

    def handlers(self) -> list[Handler]:
        """A compiled handler for every element."""
        return [self._handler(one) for one in self.elements.values()]

    def _handler(self, one: Element) -> Handler:
        function = one.function

        def handle(request: Any, packet: Packet, caller: Member | Principal) -> Awaitable[Any]:
            return function(Call(self, packet, caller), request)

        decode: Callable[[bytes], Any] = msgspec.json.Decoder(one.request).decode
        if not any(field.required for field in msgspec.structs.fields(one.request)):
            # data absent says as little as an empty object
            decode_some = msgspec.json.Decoder(one.request | None).decode

            def decode(data: bytes) -> Any:
                return decode_some(data) or one.request()

        return Handler(one.group, one.name, handle, decoder=decode, free=True, wants_caller=True)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Runs what nobody waits for; its failure is logged."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task of the elements failed", exc_info=task.exception())

    def drain(self) -> None:
        """Everyone who waits gets PF503, and nothing new is started."""
        self.lines.close()

    def close(self) -> None:
        """Ends everything."""
        self.lines.close()
        self.sessions.close()
        self.alarms.close()
        for task in self.tasks:
            task.cancel()


class Call:
    """One packet of a standard element: who submitted it, until when, what its steps may see."""

    __slots__ = ("_below", "_caller", "_session", "deadline", "depth", "packet", "principal", "runtime", "steps")

    def __init__(self, runtime: Runtime, packet: Packet, caller: Member | Principal) -> None:
        self.runtime = runtime
        self.packet = packet
        self._caller = caller
        self._session: Session | None = None
        self._below: _Nest | None = None
        self.steps = 0
        self.deadline = runtime.alarms.now() + (packet.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000
        nest = runtime.nests.get(packet.id) if runtime.nests else None
        if nest is not None and _principal(caller) is nest.principal:
            self.principal = nest.principal
            self._session = nest.session
            self.depth = nest.depth
            if self.depth > runtime.bounds.nesting:
                raise InvalidPacket(f"elements are nested {self.depth} deep, at most {runtime.bounds.nesting} may be")
        else:
            self.principal = _principal(caller)
            self.depth = 1

    def again(self, depth: int) -> Call:
        """As this one, for what it set up and is due now."""
        if depth > self.bounds.nesting:
            raise InvalidPacket(f"elements are nested {depth} deep, at most {self.bounds.nesting} may be")
        call = Call.__new__(Call)
        call.runtime = self.runtime
        call.packet = self.packet
        call.principal = self.principal
        call._caller = self._caller
        call._session = self.session
        call._below = None
        call.deadline = self.deadline
        call.depth = depth
        call.steps = 0
        return call

    @property
    def store(self) -> Store:
        return self.runtime.store

    @property
    def bounds(self) -> Bounds:
        return self.runtime.bounds

    @property
    def session(self) -> Session:
        """Who holds what this packet is granted."""
        if self._session is None:
            caller = self._caller
            sessions = self.runtime.sessions
            if self.principal is self.runtime.gateway:
                self._session = sessions.own
            elif isinstance(caller, Principal) or caller.engine.member is not caller:
                # its link has gone, and the packet goes on for who may come back for its outcome
                self._session = sessions.orphan(self.principal.number)
            else:
                self._session = sessions.of(caller.engine, self.principal.number)
        return self._session

    def remaining_ms(self) -> int:
        """Milliseconds until the packet's deadline."""
        return int((self.deadline - self.runtime.alarms.now()) * 1000)

    def until(self, wait_ms: int | None, default_ms: int | None = None) -> float:
        """Loop time until which it may wait: never past the deadline. `default_ms`: where the packet names none."""
        if wait_ms is None:
            wait_ms = default_ms
        if wait_ms is None:
            return self.deadline
        if wait_ms < 0:
            raise InvalidPacket(f"wait_ms: expected 0 or more, got {wait_ms}")
        return min(self.deadline, self.runtime.alarms.now() + wait_ms / 1000)

    async def wait(
        self,
        kind: str,
        name: str,
        attempt: Callable[[], Awaitable[T | None]],
        *,
        wait_ms: int | None,
        default_ms: int | None = None,
        otherwise: Callable[[], PacketFlowError] | None = None,
    ) -> T:
        """What `attempt` gives, in turn; `otherwise` is raised when the wait is over (default: PF408)."""
        until = self.until(wait_ms, default_ms)
        try:
            return await self.runtime.lines.wait(
                kind, name, attempt, priority=self.packet.priority, until=until, session=lambda: self.session
            )
        except TimeoutError:
            if otherwise is not None:
                raise otherwise() from None
            raise PacketTimeout(f"{kind} {name!r}: the wait is over") from None

    # -- steps

    def check_steps(self, count: int) -> None:
        """Counts steps against the bound."""
        self.steps += count
        if self.steps > self.bounds.steps:
            raise InvalidPacket(f"{self.steps:,} steps in one packet, at most {self.bounds.steps:,} may be")

    def build(self, step: Step, context: dict[str, Any] | None, timeout_ms: int | None = None) -> Packet:
        """The packet of a step, references replaced. `timeout_ms`: instead of what is left of this packet's."""
        data: Any = step.data
        if context is not None and _refers(bytes(step.data)):
            data = expand(msgspec.json.decode(step.data), context)
        left = self.remaining_ms() if timeout_ms is None else timeout_ms
        if left <= 0:
            raise PacketTimeout("the deadline has passed")
        timeout = left if step.timeout_ms is None else min(left, step.timeout_ms)
        own = self.packet
        return Packet(
            step.group,
            step.element,
            data,
            priority=own.priority if step.priority is None else step.priority,
            timeout_ms=timeout,
            metadata=own.metadata if step.metadata is None else step.metadata,
        )

    def submit(self, packet: Packet) -> Reply:
        """Routes a packet as this packet's submitter. Its id leaves `nests` once it has been answered."""
        runtime = self.runtime
        if self.depth >= runtime.bounds.nesting and f"{packet.group}:{packet.element}" in runtime.elements:
            raise InvalidPacket(f"elements are nested {self.depth + 1} deep, at most {runtime.bounds.nesting} may be")
        below = self._below
        if below is None:
            below = self._below = _Nest(self.principal, self.session, self.depth + 1)
        runtime.nests[packet.id] = below
        try:
            return runtime.host.submit_as(self.principal, packet)
        except BaseException:
            del runtime.nests[packet.id]
            raise

    def send(self, step: Step, context: dict[str, Any] | None, timeout_ms: int | None = None) -> None:
        """Submits a step whose outcome nobody waits for; a refusal is logged."""
        packet = self.build(step, context, timeout_ms)
        reply = self.submit(packet)
        nests = self.runtime.nests

        def ended(reply: Any) -> None:
            nests.pop(packet.id, None)
            if not reply.cancelled() and (error := reply.exception()) is not None:
                log.info("%s:%s, which nobody waits for: %s", packet.group, packet.element, error)

        reply.add_done_callback(ended)

    async def result_of(self, step: Step, context: dict[str, Any] | None) -> Result:
        """The result of a step, whatever it is."""
        packet = self.build(step, context)
        reply = self.submit(packet)
        try:
            result: Result = await reply
            return result
        finally:
            self.runtime.nests.pop(packet.id, None)

    async def run(self, step: Step, context: dict[str, Any] | None, place: int | str) -> Any:
        """The data of a step; its failure is this packet's, with the place of the step."""
        try:
            # as `result_of`, without a coroutine more: workflows are made of this
            packet = self.build(step, context)
            reply = self.submit(packet)
            try:
                result = await reply
            finally:
                self.runtime.nests.pop(packet.id, None)
        except PacketFlowError as error:
            raise step_failed(step, place, error.code, error.message, error.details) from None
        if result.ok:
            return result.data
        failed = result.error or {}
        raise step_failed(step, place, failed.get("code", "PF500"), failed.get("message", ""), failed.get("details"))


def step_failed(step: Step, place: int | str, code: str, message: str, details: Any) -> PacketFlowError:
    """The failure of a step as that of the packet around it: its code and message, and which step it was."""
    inner = details if isinstance(details, dict) else {}
    kept = {name: value for name, value in inner.items() if name not in ("step", "element")}
    if "step" in inner:
        kept["inner"] = {"step": inner["step"], "element": inner.get("element")}
    return exception_for(code, message, {**kept, "step": place if step.as_ is None else step.as_, "element": step.key})


def _refers(data: bytes) -> bool:
    """May there be a reference in it? Most data has none, and goes on as it came."""
    return b'"$' in data or b"\\u0024" in data


def _principal(caller: Member | Principal) -> Principal:
    return caller if isinstance(caller, Principal) else caller.principal


def check_name(what: str, name: str) -> str:
    """A name of 1 to 256 bytes."""
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise InvalidPacket(f"{what}: expected a name of 1 to {MAX_NAME} bytes, got {len(name.encode())}")
    return name


def check_ttl(ttl_ms: int | None, default: int | None = DEFAULT_TTL_MS) -> float | None:
    """Seconds of a ``ttl_ms`` of 1 ms to 24 h."""
    if ttl_ms is None:
        return default / 1000 if default is not None else None
    if not 1 <= ttl_ms <= MAX_TTL_MS:
        raise InvalidPacket(f"ttl_ms: expected 1 to {MAX_TTL_MS:,}, got {ttl_ms:,}")
    return ttl_ms / 1000


def check_size(call: Call, what: str, value: msgspec.Raw) -> None:
    """A value within the bound."""
    if len(value) > call.bounds.value:
        raise TooLarge(f"{what}: {len(value):,} bytes, at most {call.bounds.value:,} may be")


def full(error: StoreFull) -> Overloaded:
    """A bound of the store as an answer."""
    return Overloaded(str(error), details={"retry_after_ms": 1000})


def check_may(call: Call, key: str) -> None:
    """Raises `Forbidden` unless the submitter may submit to this element."""
    if not call.runtime.host.may_submit(call.principal, key):
        raise Forbidden(f"not allowed for this principal: {key}")


def no_handler(key: str) -> NoHandler:
    """Nobody handles it."""
    return NoHandler(f"no handler for {key}")
