"""The standard elements of one gateway, and all that they keep."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from packetflow.elements.bounds import Bounds
from packetflow.elements.call import Call, Nest
from packetflow.elements.request import Element, full
from packetflow.elements.turns import Turns
from packetflow.elements.watched import Watched
from packetflow.errors import PacketFlowError, exception_for
from packetflow.model import Packet
from packetflow.state import Alarms, Change, Leases, Lines, MemoryStore, Sessions, Store, StoreFull
from pfcore.link.reply import Reply
from pfcore.memory.budget import Account
from pfcore.route.flights import Member, Principal
from pfcore.wire.codes import REFUSALS, TRY_AGAIN
from pfcore.work.handler import Handler

if TYPE_CHECKING:
    from packetflow.elements.standing import Standing

__all__ = ["Host", "Runtime", "StoreFactory", "in_memory"]

log = logging.getLogger("packetflow.elements")

T = TypeVar("T")

ORPHANS = 134_217_728
"""Bytes held for all packets together whose links had gone before they began."""

WAITED_FOR = {"gate": "gate", "pool": "pool", "lock": "lock", "barrier end": "barrier", "ballot end": "ballot"}
"""Kinds of the store -> the lines of those who wait for a change of one."""


StoreFactory = Callable[[Alarms, Bounds], Store]
"""Makes the store of a gateway: told of its alarms, which ring in its loop, and of how much its elements may take."""


def in_memory(alarms: Alarms, bounds: Bounds) -> Store:
    """A store in this process."""
    return MemoryStore(alarms, max_names=bounds.names, max_bytes={"cache": bounds.cache})


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
        store: StoreFactory = in_memory,
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
        self.store: Store = store(self.alarms, self.bounds)
        self._at_once = type(self.store) is MemoryStore  # its operations never suspend, so none is cut short
        self.lines = Lines(loop, self.alarms, self.bounds.waiters)
        self.leases = Leases(self.alarms, self.in_turn)
        self.watched = Watched(
            self.store, self.lines, self.alarms, self.spawn, self.bounds.names, 4 * self.bounds.value
        )
        self.standing: dict[tuple[int, str, str], Standing] = {}
        """Timers and reactions, by principal, kind and id."""
        self.sessions = Sessions(self.alarms)
        self.gateway = gateway
        self.nests: dict[str, Nest] = {}
        self.draining = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self._later: dict[Account, deque[Callable[[], Any]]] = {}  # what is to be done when their turns come
        self.rooms: dict[str, Any] = {}
        """What a group's module keeps for itself, by its name."""
        for kind, line in WAITED_FOR.items():
            self.store.watch(kind, "*", functools.partial(self._changed, kind, line))

    def _changed(self, kind: str, line: str, change: Change) -> None:
        """Something was put, deleted, or has had its time, here or at another gateway of the same store."""
        if change.entry is None and kind in self.rooms:
            self.rooms[kind].pop(change.name, None)  # of an end, how many were to read it
        self.lines.wake(line, change.name)

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
            unbounded=True,
            wants_caller=True,
        )

    async def run(self, one: Element, request: Any, packet: Packet, caller: Member | Principal) -> Any:
        """One packet of an element: its bytes are its owner's until it ends, whatever the way."""
        call = Call(self, packet, caller)
        try:
            try:
                return await one.function(call, request)
            except StoreFull as error:
                raise full(error) from None
        except PacketFlowError as error:
            error.began = call.begun > 0  # type: ignore[attr-defined] # its outcome is remembered, whatever its code
            if call.begun > 0 and error.code in TRY_AGAIN:
                # something of it has run: nobody may take this for a packet that was not begun
                raise exception_for("PF502", error.message, {**(error.details or {}), "code": error.code}) from None
            if call.begun > 0 and error.code in REFUSALS:
                # nobody handles a step of it: that is what its submitter has to know, and a workflow around it this
                error.details = {**(error.details or {}), "began": True}
            raise
        finally:
            call.end()

    async def whole(self, operation: Coroutine[Any, Any, T], undo: Callable[[T], object] | None = None) -> T:
        """What an operation gives that is of the store's operations and nothing else. It is never left in the middle.

        Who is cancelled meanwhile is so at once, and the operation goes on: a store that was
        told to stop may have done it, or may not, and what is in doubt can be neither kept nor
        given back. `undo` is called with what it gave, then, for nobody else knows of it.
        """
        if self._at_once:
            return await operation
        task = self.loop.create_task(operation)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if undo is not None:
                task.add_done_callback(functools.partial(_undone, undo))
            raise
        finally:
            del task  # its failure knows this frame

    def in_turn(self, coroutine: Callable[[], Any], account: Account | None) -> None:
        """Runs what nobody waits for when it is that account's turn: one after another, each measured as its work."""
        account = account or self.orphans
        waiting = self._later.get(account)
        if waiting is None:
            waiting = self._later[account] = deque()
            self.spawn(self._one_by_one(account, waiting))
        waiting.append(coroutine)

    async def _one_by_one(self, account: Account, waiting: deque[Callable[[], Any]]) -> None:
        # not a task each: what a task does is no longer within the turn that began it
        try:
            while waiting:
                # before what he has begun himself: others may wait for what ends here
                await self.turns.next(account, first=True)
                try:
                    await waiting.popleft()()
                except (Exception, asyncio.CancelledError):
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise  # the gateway ends
                    log.exception("a background task of the elements failed")
        finally:
            del self._later[account]

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
        """Everyone who waits gets PF503, and timers and reactions set off nothing more: steps go on."""
        self.draining = True
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


def _undone(undo: Callable[[T], object], task: asyncio.Task[T]) -> None:
    if not task.cancelled() and task.exception() is None:
        undo(task.result())
