"""What every standard element stands on: who asks, until when, and how a step is submitted."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from packetflow.elements.cause import Cause
from packetflow.elements.cut import Cut
from packetflow.elements.expressions import MAX_AT_ONCE, View, compile_expression, expand
from packetflow.elements.turns import Turns
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
from packetflow.state import (
    SAME,
    Alarms,
    Change,
    Entry,
    Leases,
    Lines,
    MemoryStore,
    Session,
    Sessions,
    Store,
    StoreFull,
    VersionMismatch,
)
from pfcore.link.reply import Reply
from pfcore.memory.budget import Account
from pfcore.route.flights import Member, Principal
from pfcore.work.handler import Handler

__all__ = [
    "Bounds",
    "Call",
    "Element",
    "Host",
    "Int",
    "Request",
    "Results",
    "Runtime",
    "Standing",
    "Step",
    "element",
    "key_of",
    "list_of",
    "prefix_of",
]

log = logging.getLogger("packetflow.elements")

T = TypeVar("T")

NEVER_RAN = ("PF429", "PF503")
"""Codes that say: it was not begun, send it again."""

CALL_BYTES = 4096
"""What a packet that waits takes besides its data: a task, coroutines, its places in tables."""
STEP_BYTES = 256
"""What a step in a packet's data takes besides its text."""
LARGE = 65_536
"""Bytes of a step's result that are worth a turn of their own."""
SENT_BYTES = 1024
"""What a step that nobody waits for takes besides its data, until it has ended."""
RESULT_BYTES = 200
"""What a result that is kept takes besides its text."""
STANDING_BYTES = 1024
"""What a timer or reaction takes besides its step."""
ORPHANS = 134_217_728
"""Bytes held for all packets together whose links had gone before they began."""

Int = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""An integer of a packet: what is larger is refused by its name before anything is reckoned with it."""

MAX_NAME = 256
MAX_TTL_MS = 86_400_000
DEFAULT_TTL_MS = 30_000


@dataclass(frozen=True)
class Bounds:
    """How much the standard elements take; past each the answer is PF429 or PF400 and names it.

    Of one outermost packet with all that it sets off, nested packets and reactions
    to its signals included: `steps`; `iterations` of its loops, maps and folds;
    `result_bytes` of results kept at once; `evaluation_steps` of expressions and
    references, some 0.2 µs each. `nesting` of elements; `waiters` of a name; `names`
    of a kind; `value` and `cache`: bytes of a value, and of all that is cached;
    `stream_items`, `stream_bytes`: of one stream; `timers`: timers and reactions of
    a link; `leases`: of a link.
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
    leases: int = 10_000
    result_bytes: int = 16 * 1_048_576
    evaluation_steps: int = 5_000_000

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
    priority: Int | float | None = None
    timeout_ms: Int | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    as_: str | None = msgspec.field(name="as", default=None)

    @property
    def key(self) -> str:
        """Its ``group:element``."""
        return f"{self.group}:{self.element}"


class Host(Protocol):
    """What the elements need of the gateway that they run in."""

    def submit_as(self, principal: Principal, packet: Packet, account: Account | None = None) -> Reply:
        """Routes a packet as if this principal had submitted it; `account` pays. Its `Result` holds JSON."""

    def may_submit(self, principal: Principal, key: str) -> bool:
        """May it?"""

    def reactors_for(self, key: str) -> list[Member]:
        """Who handles it."""

    def submit_to(self, member: Member, packet: Packet) -> Reply:
        """Sends a packet to one reactor. Its `Result` holds JSON."""

    def spend(self, principal: Principal, count: int) -> bool:
        """Counts packets against a principal's rate; False, and nothing is counted, where they are too many."""


@dataclass(frozen=True, slots=True)
class _Nest:
    """Whose a nested packet is, who pays for it, how deep it is, and what it counts for."""

    principal: Principal
    session: Session
    account: Account
    depth: int
    cause: Cause


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
        later: Callable[[Callable[[], object]], object] | None = None,
        bounds: Bounds | None = None,
        store: Callable[[Alarms], Store] | None = None,
        gateway: Principal,
        admin: Any,
        orphans: Account | None = None,
    ) -> None:
        self.host = host
        self.admin = admin
        self.elements = MappingProxyType(dict(elements))
        self.bounds = bounds or Bounds()
        self.loop = loop
        self.alarms = Alarms(loop)
        self.turns = Turns(loop, later=later)
        self.orphans = orphans or Account("links that have gone", ORPHANS)
        """Pays for packets of anonymous links that had gone before they began."""
        self.store: Store = (store or self._memory)(self.alarms)
        self.lines = Lines(loop, self.bounds.waiters)
        self.leases = Leases(self.alarms, self._later)
        self.watched = Watched(self.store, self.lines, self.alarms, self.spawn, self.bounds.names)
        self.standing: dict[tuple[int, str, str], Standing] = {}
        """Timers and reactions, by principal, kind and id."""
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
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(one.request).decode
        # data absent says as little as an empty object
        optional = not any(field.required for field in msgspec.structs.fields(one.request))

        def decode_optional(data: bytes) -> Any:
            return one.request() if data == b"null" else decode(data)

        return Handler(
            one.group,
            one.name,
            functools.partial(self.run, one),
            decoder=decode_optional if optional else decode,
            free=True,
            wants_caller=True,
        )

    async def run(self, one: Element, request: Any, packet: Packet, caller: Member | Principal) -> Any:
        """One packet of an element: its bytes are its owner's until it ends, whatever the way."""
        call = Call(self, packet, caller)
        try:
            return await one.function(call, request)
        except PacketFlowError as error:
            if error.code in NEVER_RAN and call.begun > 0:
                # something of it has run: nobody may take this for a packet that was not begun
                raise exception_for("PF502", error.message, {**(error.details or {}), "code": error.code}) from None
            raise
        finally:
            call.end()

    def end_principal(self, principal: Principal) -> None:
        """A principal is no more: its timers, reactions and leases end."""
        for key, standing in list(self.standing.items()):
            if key[0] == principal.number:
                standing.end()
        self.leases.end_principal(principal.number)

    def _later(self, coroutine: Callable[[], Any], account: Account | None) -> None:
        self.turns.when(account or self.orphans, lambda: self.spawn(coroutine()))

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
        for standing in list(self.standing.values()):
            standing.end()
        self.turns.close()
        self.alarms.close()
        self.watched.close()
        self.store.close()
        for task in self.tasks:
            task.cancel()


class Call:
    """One packet of a standard element: who submitted it, until when, what its steps may see, what it holds."""

    __slots__ = (
        "_below",
        "_caller",
        "_cause",
        "_ended",
        "_held",
        "_kept",
        "_session",
        "account",
        "begun",
        "deadline",
        "depth",
        "id",
        "metadata",
        "principal",
        "priority",
        "runtime",
    )

    def __init__(self, runtime: Runtime, packet: Packet, caller: Member | Principal) -> None:
        self.runtime = runtime
        self.id = packet.id
        self.priority = packet.priority
        self.metadata = metadata = packet.raw_metadata
        self._caller = caller
        self._session: Session | None = None
        self._below: _Nest | None = None
        self._held = self._kept = 0
        self._ended = False
        self.begun = 0
        """Steps that have begun, as far as is known: all that were submitted and not refused."""
        self.deadline = runtime.loop.time() + (packet.timeout_ms or DEFAULT_TIMEOUT_MS) / 1000
        principal = caller if type(caller) is Principal else caller.principal
        nest = runtime.nests.get(self.id) if runtime.nests else None
        if nest is not None and principal is nest.principal:
            self.account = nest.account
            self._session = nest.session
            self.depth = nest.depth
            self._cause: Cause | None = nest.cause
            if self.depth > runtime.bounds.nesting:
                raise InvalidPacket(f"elements are nested {self.depth} deep, at most {runtime.bounds.nesting} may be")
        else:
            self.account = caller.account or runtime.orphans
            self.depth = 1
            self._cause = None
        self.principal = principal
        self.hold(CALL_BYTES + packet.size + (0 if metadata is None else len(metadata)))

    @classmethod
    def of(cls, standing: Standing, depth: int, cause: Cause) -> Call:
        """What a timer or reaction does when it is due: as the packet that set it up, which has long ended."""
        runtime = standing.runtime
        if depth > runtime.bounds.nesting:
            raise InvalidPacket(f"elements are nested {depth} deep, at most {runtime.bounds.nesting} may be")
        call = cls.__new__(cls)
        call.runtime = runtime
        call.id = ""
        call.priority = standing.priority
        call.metadata = standing.metadata
        call.principal = standing.principal
        call.account = standing.account
        call._caller = standing.principal
        call._session = standing.session
        call._below = None
        call._held = call._kept = call.begun = 0
        call._ended = False
        call.deadline = 0.0
        call.depth = depth
        call._cause = cause
        return call

    @property
    def cause(self) -> Cause:
        """What its outermost packet has set off."""
        # most packets set nothing off
        if self._cause is None:
            self._cause = Cause(self.runtime.bounds)
        return self._cause

    @property
    def store(self) -> Store:
        return self.runtime.store

    @property
    def stored(self) -> Account | None:
        """Pays for what outlives the link."""
        return self.principal.stored

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

    # -- what it holds

    def hold(self, size: int) -> None:
        """So many bytes more are its owner's, until `drop` or the end of the packet."""
        if self._ended:
            raise asyncio.CancelledError
        if not self.account.charge(size):
            raise Overloaded(self.account.refusal(size), details={"retry_after_ms": 1000})
        self._held += size

    def drop(self, size: int) -> None:
        """It holds them no more."""
        self._held -= size
        self.account.release(size)

    def keep(self, size: int) -> None:
        """So many bytes of results more are kept, until `lose` or the end of the packet."""
        self.cause.keep(size)
        try:
            self.hold(size)
        except BaseException:
            self.cause.give_back(size)
            raise
        self._kept += size

    def lose(self, size: int) -> None:
        """They are kept no more."""
        self._kept -= size
        self.cause.give_back(size)
        self.drop(size)

    def end(self) -> None:
        """It holds nothing any more."""
        self._ended = True
        held, self._held = self._held, 0
        self.account.release(held)
        if self._kept:
            kept, self._kept = self._kept, 0
            self.cause.give_back(kept)

    # -- time

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

    async def turn(self) -> None:
        """Before each piece of work: returns when it is this packet's turn."""
        turns = self.runtime.turns
        if turns.spent(self.account):
            await turns.next(self.account)

    async def wait(
        self,
        kind: str,
        name: Hashable,
        attempt: Callable[[], Awaitable[T | None]],
        *,
        wait_ms: int | None,
        default_ms: int | None = None,
        otherwise: Callable[[], PacketFlowError] | None = None,
        shown: str | None = None,
    ) -> T:
        """What `attempt` gives, in turn; `otherwise` is raised when the wait is over (default: PF408).

        `shown`: the name for messages, where it is not `name`.
        """
        until = self.until(wait_ms, default_ms)
        try:
            return await self.runtime.lines.wait(
                kind,
                name,
                attempt,
                priority=self.priority,
                until=until,
                session=lambda: self.session,
                shown=shown,
            )
        except TimeoutError:
            if otherwise is not None:
                raise otherwise() from None
            raise PacketTimeout(f"{kind} {name if shown is None else shown!r}: the wait is over") from None

    async def update(
        self,
        kind: str,
        name: str,
        change: Callable[[Any], Any],
        *,
        size: int = 0,
        ttl: Callable[[Any], float | None] | None = None,
        owner: Account | None = None,
    ) -> Entry | None:
        """Changes what is kept of a name, whoever else does so meanwhile.

        `change`: from the present value (None: there is none) to the new one (None:
        delete it); it may raise, and may be called again. `ttl`: of the new value,
        seconds. `owner`: pays from when the name is made until it leaves. Returns
        the new entry.
        """
        store = self.store
        while True:
            entry = await store.get(kind, name)
            version = entry.version if entry is not None else 0
            value = change(entry.value if entry is not None else None)
            try:
                if value is None:
                    if entry is not None:
                        await store.delete(kind, name, version=version)
                    return None
                seconds = ttl(value) if ttl is not None else None
                payer = owner if entry is None else SAME
                return await store.put(kind, name, value, version=version, ttl=seconds, size=size, owner=payer)
            except VersionMismatch:
                continue
            except StoreFull as error:
                raise full(error) from None

    # -- expressions

    async def evaluate(self, work: Callable[[View], T], context: Mapping[str, Any]) -> T:
        """What `work` finds in a context, a slice at a time in this packet's turns, and within its bounds."""
        await self.turn()
        turns = self.runtime.turns
        meter = self.cause.meter()
        view = View(context, meter)
        cut: Cut[T] = Cut(lambda: work(view))
        meter.cut(cut.look)
        try:
            while not self._measured(cut.go_on):
                await turns.next(self.account, first=True)
            return cut.result
        finally:
            cut.drop()
            meter.cut(None)
            self.cause.settle(meter)

    def _measured(self, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.runtime.turns.took(self.account, time.perf_counter() - began)

    def _evaluate(self, work: Callable[[View], T], context: Mapping[str, Any]) -> T:
        """The same at once, for a piece that is short."""
        meter = self.cause.meter(MAX_AT_ONCE)
        try:
            return self._measured(lambda: work(View(context, meter)))
        finally:
            self.cause.settle(meter)

    def compile(self, text: str) -> None:
        """Raises `InvalidPacket` for what is no expression."""
        self._evaluate(lambda view: compile_expression(text, view.meter), {})

    # -- steps

    def check_steps(self, count: int) -> None:
        """Counts steps against the bound of the outermost packet."""
        self.cause.step(count)

    async def build(self, step: Step, context: Mapping[str, Any] | None) -> Packet:
        """The packet of a step, references replaced."""
        data: Any = step.data
        if context is not None and _refers(bytes(data)):
            data = await self.evaluate(lambda view: expand(view.decode(step.data), view), context)
        return self.packet(step, data)

    def packet(self, step: Step, data: Any, timeout_ms: int | None = None) -> Packet:
        """The packet of a step with this data. `timeout_ms`: instead of what is left of this packet's."""
        left = self.remaining_ms() if timeout_ms is None else timeout_ms
        if left <= 0:
            raise PacketTimeout("the deadline has passed")
        timeout = left if step.timeout_ms is None else min(left, step.timeout_ms)
        own = step.metadata
        return Packet(
            step.group,
            step.element,
            data,
            priority=self.priority if step.priority is None else step.priority,  # type: ignore[arg-type] # 7.0 is 7
            timeout_ms=timeout,
            metadata=self.metadata if bytes(own) == b"null" else own,
        )

    def submit(self, packet: Packet) -> Reply:
        """Routes a packet as this packet's submitter. Its id leaves `nests` once it has been answered."""
        runtime = self.runtime
        if self.depth >= runtime.bounds.nesting and f"{packet.group}:{packet.element}" in runtime.elements:
            raise InvalidPacket(f"elements are nested {self.depth + 1} deep, at most {runtime.bounds.nesting} may be")
        below = self._below
        if below is None:
            below = self._below = _Nest(self.principal, self.session, self.account, self.depth + 1, self.cause)
        runtime.nests[packet.id] = below
        try:
            return runtime.host.submit_as(self.principal, packet, self.account)
        except BaseException:
            del runtime.nests[packet.id]
            raise

    def send(self, step: Step, context: Mapping[str, Any] | None, timeout_ms: int) -> None:
        """Submits a step whose outcome nobody waits for; a refusal is logged."""
        data: Any = step.data
        if context is not None and _refers(bytes(data)):
            data = self._evaluate(lambda view: expand(view.decode(step.data), view), context)
        packet = self.packet(step, data, timeout_ms)
        account = self.account
        size = SENT_BYTES + len(step.data)
        if not account.charge(size):
            raise Overloaded(account.refusal(size), details={"retry_after_ms": 1000})
        try:
            reply = self.submit(packet)
        except BaseException:
            account.release(size)
            raise
        nests = self.runtime.nests

        def ended(reply: Any) -> None:
            nests.pop(packet.id, None)
            account.release(size)
            if not reply.cancelled() and (error := reply.exception()) is not None:
                log.info("%s:%s, which nobody waits for: %s", packet.group, packet.element, error)

        reply.add_done_callback(ended)

    async def result_of(self, step: Step, context: Mapping[str, Any] | None) -> Result:
        """The result of a step, whatever it is; its data is JSON."""
        turns = self.runtime.turns
        if turns.spent(self.account):
            await turns.next(self.account)
        packet = await self.build(step, context)
        reply = self.submit(packet)
        self.begun += 1
        try:
            result: Result = await reply
        except PacketFlowError as error:
            if error.code in NEVER_RAN:
                self.begun -= 1
            raise
        finally:
            self.runtime.nests.pop(packet.id, None)
        if not result.ok:
            if (result.error or {}).get("code") in NEVER_RAN:
                self.begun -= 1
        elif len(result.data) > LARGE:
            await self.turn()  # as in `step`
        return result

    async def step(self, step: Step, context: Mapping[str, Any] | None, place: int | str) -> msgspec.Raw:
        """The data of a step, JSON; its failure is this packet's, with the place of the step."""
        # as `result_of`, without a coroutine more: workflows are made of this
        turns = self.runtime.turns
        if turns.spent(self.account):
            await turns.next(self.account)
        try:
            data: Any = step.data
            if context is not None and _refers(bytes(data)):
                data = await self.evaluate(lambda view: expand(view.decode(step.data), view), context)
            packet = self.packet(step, data)
            reply = self.submit(packet)
            self.begun += 1
            try:
                result = await reply
            except PacketFlowError as error:
                if error.code in NEVER_RAN:
                    self.begun -= 1
                raise
            finally:
                self.runtime.nests.pop(packet.id, None)
        except PacketFlowError as error:
            raise step_failed(step, place, error.code, error.message, error.details) from None
        if result.ok:
            found: msgspec.Raw = result.data
            if len(found) > LARGE:
                # those of many packets come together: what each does with it next takes time of its own
                await self.turn()
            return found
        failed = result.error or {}
        if failed.get("code") in NEVER_RAN:
            self.begun -= 1
        raise step_failed(step, place, failed.get("code", "PF500"), failed.get("message", ""), failed.get("details"))


class Results:
    """The context of steps that see one another's results; what is kept of them is counted."""

    __slots__ = ("_call", "_named", "_previous", "values")

    def __init__(self, call: Call, first: msgspec.Raw) -> None:
        self._call = call
        self._previous = 0  # bytes that `prev` alone keeps
        self._named: dict[str, int] = {}
        self.values: dict[str, Any] = {"input": first, "prev": first, "results": {}}

    def came(self, data: msgspec.Raw, name: str | None) -> None:
        """A step's data: `prev` from now on, and `name` in `results`."""
        size = RESULT_BYTES + len(data)
        # the one before leaves, and that of the same name
        change = size - self._previous - (self._named.get(name, 0) if name is not None else 0)
        if change > 0:
            self._call.keep(change)
        elif change < 0:
            self._call.lose(-change)
        self.values["prev"] = data
        self._previous = size
        if name is not None:
            self._named[name] = size
            self._previous = 0
            self.values["results"][name] = data


class Standing:
    """A step that outlives the packet that set it up: a timer's, or a reaction's.

    Its bytes are charged to the account of who set it up, until it ends: with
    `end`, or with its session or principal.
    """

    __slots__ = ("_size", "account", "id", "kind", "metadata", "principal", "priority", "runtime", "session", "step")

    def __init__(self, call: Call, kind: str, standing_id: str, step: Step) -> None:
        runtime = call.runtime
        # a copy: what came borrows the frame that it came in
        self.step = msgspec.structs.replace(
            step, data=msgspec.Raw(bytes(step.data)), metadata=msgspec.Raw(bytes(step.metadata))
        )
        self.runtime = runtime
        self.kind = kind
        self.id = standing_id
        self.principal = call.principal
        self.session = call.session
        self.account = call.account
        self.priority = call.priority
        self.metadata = call.metadata
        self._size = STANDING_BYTES + len(step.data) + len(step.metadata) + (len(call.metadata or b""))
        most = runtime.bounds.timers
        before = runtime.standing.get(self.key)
        count = call.session.count("timer") + call.session.count("reaction")
        if count - (before is not None and before.session is call.session) >= most:
            raise Overloaded(f"{most:,} timers and reactions are this reactor's, the most that may")
        if not self.account.charge(self._size):
            raise Overloaded(self.account.refusal(self._size), details={"retry_after_ms": 1000})
        # the same id again takes its place
        if before is not None:
            before.end()
        runtime.standing[self.key] = self
        self.session.hold((kind, standing_id), self.end)

    @property
    def key(self) -> tuple[int, str, str]:
        return self.principal.number, self.kind, self.id

    @property
    def ended(self) -> bool:
        return self.runtime.standing.get(self.key) is not self

    def end(self) -> None:
        """It does nothing any more; again is nothing."""
        if self.ended:
            return
        del self.runtime.standing[self.key]
        self.session.let_go((self.kind, self.id))
        self.account.release(self._size)

    def send(self, context: Mapping[str, Any], depth: int, cause: Cause) -> None:
        """Submits the step as who set it up, `depth` deep."""
        Call.of(self, depth, cause).send(self.step, context, self.step.timeout_ms or DEFAULT_TIMEOUT_MS)


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


def key_of(*names: str) -> str:
    """One name for the store of several, whatever is in them; those with the same first ones have one prefix."""
    return "".join([f"{len(name)}:{name}:" for name in names[:-1]]) + names[-1]


def prefix_of(*names: str) -> str:
    """What all keys begin with whose first names these are."""
    return key_of(*names, "")


def list_of(view: View, data: msgspec.Raw, what: str) -> list[msgspec.Raw]:
    """The items of a list, each JSON still."""
    text = bytes(data)
    if not text.startswith(b"["):
        raise InvalidPacket(f"{what}: expected a list")
    view.pay((text.count(b",") >> 2) + (len(text) >> 7))
    return _decode_list(text)


_decode_list: Callable[[bytes], list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw]).decode


def error_of(code: str, message: str, details: Any = None) -> msgspec.Raw:
    """An error as a result has it."""
    error = {"code": code, "message": message}
    return msgspec.Raw(msgspec.json.encode(error | {"details": details} if details else error))


def check_name(what: str, name: str) -> str:
    """A name of 1 to 256 bytes."""
    if not 1 <= (len(name) if name.isascii() else len(name.encode())) <= MAX_NAME:
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
