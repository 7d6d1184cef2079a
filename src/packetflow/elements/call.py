"""One packet of a standard element: whose it is, until when, what it holds, and how its steps are submitted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from packetflow.elements.cause import Cause
from packetflow.elements.cut import Cut
from packetflow.elements.expressions import MAX_AT_ONCE, View, compile_expression, expand
from packetflow.elements.kept import Kept, Kind
from packetflow.elements.request import Step
from packetflow.errors import InvalidPacket, Overloaded, PacketFlowError, PacketTimeout, exception_for
from packetflow.model import DEFAULT_TIMEOUT_MS, Packet, Result
from packetflow.state import Session, Store
from pfcore.link.reply import Reply
from pfcore.memory.budget import Account
from pfcore.route.flights import Member, Principal
from pfcore.wire.codes import REFUSALS

if TYPE_CHECKING:
    from packetflow.elements.bounds import Bounds
    from packetflow.elements.runtime import Runtime
    from packetflow.elements.standing import Standing

__all__ = ["Call", "Nest", "Results"]

log = logging.getLogger("packetflow.elements")

T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)

CALL_BYTES = 4096
"""What a packet that waits takes besides its data: a task, coroutines, its places in tables."""
LARGE = 65_536
"""Bytes of a step's result that are worth a turn of their own."""
SENT_BYTES = 1024
"""What a step that nobody waits for takes besides its data, until it has ended."""
RESULT_BYTES = 200
"""What a result that is kept takes besides its text."""


@dataclass(frozen=True, slots=True)
class Nest:
    """Whose a nested packet is, who pays for it, how deep it is, and what it counts for."""

    principal: Principal
    session: Session
    account: Account
    depth: int
    cause: Cause


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
        self._below: Nest | None = None
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
        when = self.turn_or_none()
        if when is not None:
            await when

    def turn_or_none(self) -> Coroutine[Any, Any, None] | None:
        """What to await until it is this packet's turn; None: it is."""
        turns = self.runtime.turns
        return turns.next(self.account) if turns.spent(self.account) else None

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
                turn=self.turn_or_none,
                owner=self.account,
            )
        except TimeoutError:
            if otherwise is not None:
                raise otherwise() from None
            raise PacketTimeout(f"{kind} {name if shown is None else shown!r}: the wait is over") from None

    def read(self, kind: Kind[R], name: str) -> Coroutine[Any, Any, Kept[R] | None]:
        """What is kept of a name, None where there is nothing."""
        return kind.get(self.store, name)

    def update(
        self,
        kind: Kind[R],
        name: str,
        change: Callable[[R | None], R | None],
        *,
        more: Callable[[R], int] | None = None,
        ttl: Callable[[R], float | None] | None = None,
    ) -> Coroutine[Any, Any, Kept[R] | None]:
        """`Kind.update`, paid for by this packet's owner."""
        return kind.update(self.store, name, change, self.stored, more=more, ttl=ttl)

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
            below = self._below = Nest(self.principal, self.session, self.account, self.depth + 1, self.cause)
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
            self._took_back(error.code, error.details)
            await self.turn()  # as in `step`
            raise
        finally:
            self.runtime.nests.pop(packet.id, None)
        if not result.ok:
            failed = result.error or {}
            self._took_back(failed.get("code"), failed.get("details"))
            await self.turn()  # as in `step`
        elif len(result.data) > LARGE:
            await self.turn()
        return result

    def _took_back(self, code: Any, details: Any) -> None:
        """A step has failed: one that was refused had not begun, unless it is a workflow of which something had."""
        if code in REFUSALS and not (isinstance(details, dict) and details.get("began")):
            self.begun -= 1

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
                self._took_back(error.code, error.details)
                raise
            finally:
                self.runtime.nests.pop(packet.id, None)
        except PacketFlowError as error:
            await self.turn()  # as below
            raise step_failed(step, place, error.code, error.message, error.details) from None
        if result.ok:
            found: msgspec.Raw = result.data
            if len(found) > LARGE:
                # those of many packets come together: what each does with it next takes time of its own
                await self.turn()
            return found
        failed = result.error or {}
        self._took_back(failed.get("code"), failed.get("details"))
        # past a budget many fail together, and each lets go of all its steps when it ends
        await self.turn()
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
