"""Resource management: pools, leases, locks, the cache."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import msgspec

from packetflow.elements.call import Call
from packetflow.elements.kept import Kind
from packetflow.elements.request import Int, Request, Step, check_name, check_size, check_ttl, element
from packetflow.errors import Conflict, InvalidPacket, Overloaded, PacketFlowError, PacketTimeout
from packetflow.state import Entry, Lease, VersionMismatch

__all__ = ["ELEMENTS"]

MAX_UNITS = 2**53 - 1
PAGE = 1000
POOL_S = 86_400.0
POOL_BYTES = 64
LOCK_BYTES = 64
MAX_SUM = 10**308
FILLING_BYTES = 512


class _Pool(msgspec.Struct):
    """What is kept of a pool."""

    capacity: int
    used: int


class _Lock(msgspec.Struct):
    """What is kept of a lock that is held; the version of its entry is the fence."""

    reactor: str | None


POOLS = Kind("pool", _Pool, POOL_BYTES)
LOCKS = Kind("lock", _Lock, LOCK_BYTES)


class Alloc(Request):
    """rm:alloc"""

    pool: str
    units: Int = 1
    capacity: Int | None = None
    ttl_ms: Int | None = None
    wait_ms: Int = 0


@element("rm", "alloc")
async def alloc(call: Call, request: Alloc) -> Any:
    """Units of a pool, as a lease."""
    name = check_name("pool", request.pool)
    ttl = check_ttl(request.ttl_ms)
    assert ttl is not None
    if not 1 <= request.units <= MAX_UNITS:
        raise InvalidPacket(f"units: expected 1 to 2^53-1, got {request.units}")
    if request.capacity is not None and not 1 <= request.capacity <= MAX_UNITS:
        raise InvalidPacket(f"capacity: expected 1 to 2^53-1, got {request.capacity}")
    runtime = call.runtime

    def take(pool: _Pool | None) -> _Pool:
        if pool is None:
            if request.capacity is None:
                raise InvalidPacket(f"pool {name!r}: there is none, and no capacity for a new one was given")
            pool = _Pool(request.capacity, 0)
        if request.units > pool.capacity:
            raise InvalidPacket(f"pool {name!r}: {request.units} units, its capacity is {pool.capacity}")
        if pool.used + request.units > pool.capacity:
            raise _NotFree
        return _Pool(pool.capacity, pool.used + request.units)

    async def attempt() -> Any:
        session = call.session
        runtime.leases.check_room(call.account, session, call.bounds.leases)
        try:
            kept = await runtime.whole(call.update(POOLS, name, take), lost)
        except _NotFree:
            return None
        assert kept is not None
        lease = runtime.leases.grant("pool", name, call.principal.number, session, ttl, give_back, account=call.account)
        return {
            "lease": lease.id,
            "expires_at": lease.expires_at,
            "units": request.units,
            "available": kept.record.capacity - kept.record.used,
        }

    async def give_back(lease: Lease) -> None:
        await _give_back(call, name, request.units)

    def lost(_: object) -> None:
        # whose they were to be has gone, and they have no lease to end
        runtime.in_turn(lambda: _give_back(call, name, request.units), call.account)

    def none_free() -> PacketFlowError:
        return Overloaded(f"pool {name!r}: {request.units} units are not free", details={"retry_after_ms": 1000})

    return await call.wait("pool", name, attempt, wait_ms=request.wait_ms, otherwise=none_free)


class _NotFree(Exception):
    """So many units are not there just now."""


async def _give_back(call: Call, name: str, units: int) -> None:
    def give(pool: _Pool | None) -> _Pool | None:
        return _Pool(pool.capacity, max(0, pool.used - units)) if pool is not None else None

    # a pool that nobody has anything of keeps its capacity for a day
    await call.update(POOLS, name, give, ttl=lambda pool: POOL_S if pool.used == 0 else None)


class Free(Request):
    """rm:free"""

    lease: str


@element("rm", "free")
async def free(call: Call, request: Free) -> Any:
    """Ends a lease."""
    lease = call.runtime.leases.find(request.lease, call.principal.number)
    return {"freed": lease is not None and await call.runtime.whole(call.runtime.leases.free(lease))}


class Lock(Request):
    """rm:lock"""

    key: str | None = None
    ttl_ms: Int | None = None
    wait_ms: Int | None = None
    lease: str | None = None
    step: Step | None = None


@element("rm", "lock")
async def lock(call: Call, request: Lock) -> Any:
    """Exclusive access, with a fence; renewing; a step under the lock."""
    ttl = check_ttl(request.ttl_ms)
    assert ttl is not None
    if request.lease is not None:
        return _renew(call, request, ttl)
    if request.key is None:
        raise InvalidPacket("expected key, or lease to renew")
    left = math.inf
    if request.step is not None:
        call.check_steps(1)  # what can be refused is refused before it has the lock
        # the lock must outlive its step, and needs not outlive its packet
        left = max(1, call.remaining_ms()) / 1000
        ttl = left if request.ttl_ms is None else min(ttl, left)
    lease = await _acquire(call, check_name("key", request.key), ttl, request.wait_ms)
    if request.step is None:
        return {"lease": lease.id, "expires_at": lease.expires_at, "fence": lease.note.fence}
    context = {"input": None, "prev": None, "results": {}, "fence": lease.note.fence}
    running = lease.note.running = asyncio.ensure_future(call.step(request.step, context, 0))
    try:
        return await running
    except asyncio.CancelledError:
        if call.runtime.leases.find(lease.id, lease.principal) is None:
            if ttl >= left:
                raise PacketTimeout(f"lock {request.key!r}: the deadline passed before the step had ended") from None
            raise Conflict(f"lock {request.key!r}: its time was over before the step had ended") from None
        raise
    finally:
        running.cancel()
        del running  # its failure knows this frame
        lease.note.running = None
        await call.runtime.whole(call.runtime.leases.free(lease))


class _Held:
    """What a lease of a lock knows."""

    __slots__ = ("fence", "running")

    def __init__(self, fence: int) -> None:
        self.fence = fence
        self.running: asyncio.Future[Any] | None = None


def _renew(call: Call, request: Lock, ttl: float) -> Any:
    if request.key is not None or request.step is not None:
        raise InvalidPacket("lease: expected neither key nor step beside it")
    assert request.lease is not None
    lease = call.runtime.leases.find(request.lease, call.principal.number)
    if lease is None or lease.kind != "lock":
        raise Conflict("lease: it has ended, or was never of a lock of yours")
    call.runtime.leases.renew(lease, ttl)
    return {"lease": lease.id, "expires_at": lease.expires_at, "fence": lease.note.fence}


async def _acquire(call: Call, key: str, ttl: float, wait_ms: int | None) -> Lease:
    runtime = call.runtime

    async def attempt() -> Lease | None:
        try:
            # the version is the fence: it grows with every grant, of this key and all others
            session = call.session
            runtime.leases.check_room(call.account, session, call.bounds.leases)
            value = LOCKS.encode(_Lock(session.name))
            put = call.store.put(LOCKS.name, key, value, version=0, size=LOCKS.size, owner=call.stored)
            entry = await runtime.whole(put, lost)
        except VersionMismatch:
            return None
        return runtime.leases.grant(
            "lock",
            key,
            call.principal.number,
            session,
            ttl,
            release,
            note=_Held(entry.version),
            account=call.account,
        )

    async def release(lease: Lease) -> None:
        if lease.note.running is not None:
            lease.note.running.cancel()
        await unlock(lease.note.fence)

    async def unlock(fence: int) -> None:
        try:
            await call.store.delete(LOCKS.name, key, version=fence)
        except VersionMismatch:
            pass  # somebody else's by now

    def lost(entry: Entry) -> None:
        # whose it was to be has gone, and it has no lease to end
        runtime.in_turn(lambda: unlock(entry.version), call.account)

    def held() -> PacketFlowError:
        return Conflict(f"lock {key!r}: it is held by another")

    return await call.wait("lock", key, attempt, wait_ms=wait_ms, default_ms=0, otherwise=held)


class Cache(Request):
    """rm:cache"""

    op: Literal["get", "set", "delete", "incr", "list", "fill"]
    key: str = ""
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    ttl_ms: Int | None = None
    version: Int | None = None
    by: Int | float | None = None
    after: str = ""
    step: Step | None = None


MISSING: dict[str, Any] = {"value": None, "version": 0, "found": False}


@element("rm", "cache")
async def cache(call: Call, request: Cache) -> Any:
    """Values by key, with versions and times to live."""
    if request.op == "list":
        return await _list(call, request)
    key = check_name("key", request.key)
    if request.op == "get":
        entry = await call.store.get("cache", key)
        return _found(entry) if entry is not None else MISSING
    ttl = check_ttl(request.ttl_ms, None)
    try:
        match request.op:
            case "set":
                if request.value is msgspec.UNSET:
                    raise InvalidPacket("value: expected with the op set")
                value = request.value
                check_size(call, "value", value)
                return await _set(call, key, value, request.version, ttl)
            case "delete":
                return await _delete(call, key, request.version)
            case "incr":
                return await _incr(call, key, request, ttl)
            case _:
                return await _fill(call, key, request, ttl)
    except VersionMismatch as error:
        found = error.entry.version if error.entry is not None else 0
        raise Conflict(
            f"key {key!r}: expected version {request.version}, found {found}", details={"version": found}
        ) from None


def _found(entry: Entry) -> dict[str, Any]:
    return {"value": msgspec.Raw(entry.value), "version": entry.version, "found": True}


async def _set(call: Call, key: str, value: msgspec.Raw, version: int | None, ttl: float | None) -> Any:
    # a copy: what came borrows the frame that it came in
    call.hold(len(value))
    kept = bytes(value)
    call.runtime.watched.check_room("key", key, len(kept), call.stored)
    size = len(kept) + len(key) + 200

    async def put() -> Entry:
        entry = await call.store.put("cache", key, kept, version=version, ttl=ttl, size=size, owner=call.stored)
        await _tell(call, key, kept, entry.version)
        return entry

    entry = await call.runtime.whole(put())  # who watches it is told of what has changed, whoever changed it
    call.drop(len(value))
    return _found(entry)


async def _delete(call: Call, key: str, version: int | None) -> Any:
    call.runtime.watched.check_room("key", key, 0, call.stored)
    entry = await call.store.get("cache", key)

    async def delete() -> bool:
        gone = await call.store.delete("cache", key, version=version)
        if gone:
            await _tell(call, key, None, call.store.revision())
        return gone

    gone = await call.runtime.whole(delete())
    return _found(entry) if gone and entry is not None else MISSING


async def _incr(call: Call, key: str, request: Cache, ttl: float | None) -> Any:
    by = 1 if request.by is None else request.by
    while True:
        entry = await call.store.get("cache", key)
        before: Any = 0
        if entry is not None:
            # no number is longer than this
            before = msgspec.json.decode(entry.value) if len(entry.value) <= 400 else None
        if isinstance(before, bool) or not isinstance(before, int | float):
            raise InvalidPacket(f"key {key!r}: expected a number to add to, found something else")
        if request.version is not None and request.version != (entry.version if entry is not None else 0):
            raise VersionMismatch(entry)
        try:
            after = before + by
        except OverflowError:
            after = math.inf
        if not (math.isfinite(after) if isinstance(after, float) else abs(after) < MAX_SUM):
            raise InvalidPacket(f"key {key!r}: the sum is larger than a number may be")
        try:
            # integers stay exact, however long
            value = msgspec.Raw(str(after).encode() if isinstance(after, int) else msgspec.json.encode(after))
            return await _set(call, key, value, entry.version if entry is not None else 0, ttl)
        except VersionMismatch:
            continue


async def _list(call: Call, request: Cache) -> Any:
    prefix = request.key.removesuffix("*")
    found = await call.store.scan("cache", prefix, request.after, PAGE)
    entries = [{"key": key, "value": msgspec.Raw(entry.value), "version": entry.version} for key, entry in found]
    size = sum(len(entry.value) + len(key) + 60 for key, entry in found)
    while size > call.bounds.value * 3 // 4 and len(entries) > 1:
        entries.pop()
        key, entry = found[len(entries)]
        size -= len(entry.value) + len(key) + 60
    more = len(found) == PAGE or len(entries) < len(found)
    after = entries[-1]["key"] if more and entries else None
    return {"value": entries, "version": call.store.revision(), "found": bool(entries), "after": after}


async def _fill(call: Call, key: str, request: Cache, ttl: float | None) -> Any:
    """The cached value, or the step's data, computed once however many ask."""
    if request.step is None:
        raise InvalidPacket("step: expected with the op fill")
    fillings: dict[str, _Filling] = call.runtime.rooms.setdefault("filling", {})
    running = fillings.get(key)
    if running is None:
        entry = await call.store.get("cache", key)
        if entry is not None:
            return _found(entry)
        running = fillings.get(key)  # the store may have taken its time

    async def attempt() -> Any:
        nonlocal running
        while running is not None and running.over:
            if running.made is not None:
                return running.made
            running = fillings.get(key)  # that one failed or was taken back
        return False if running is None else None

    if running is not None:
        # in a line, so that thousands of answers of a megabyte do not leave in one iteration of the loop
        made = await call.wait("fill", key, attempt, wait_ms=None)
        if made:
            return made
    call.check_steps(1)
    call.hold(FILLING_BYTES)
    mine = fillings[key] = _Filling()
    try:
        data = await call.step(request.step, {"input": None, "prev": None, "results": {}}, 0)
        check_size(call, "value", data)
        mine.made = await _set(call, key, data, None, ttl) | {"found": False}
        return mine.made
    finally:
        mine.over = True
        del fillings[key]
        call.runtime.lines.wake("fill", key)


class _Filling:
    """A value that is being computed. Who asked meanwhile gets it, even where it is kept for a millisecond only."""

    def __init__(self) -> None:
        self.made: dict[str, Any] | None = None
        self.over = False


async def _tell(call: Call, key: str, value: bytes | None, version: int) -> None:
    shown = msgspec.Raw(value) if value is not None else None
    what = {"key": key, "value": shown, "version": version}
    await call.runtime.watched.note("key", key, what, len(value) if value is not None else 0, call.stored)


ELEMENTS = (alloc, free, lock, cache)
