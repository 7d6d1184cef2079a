"""Collective: barriers, broadcasts, gathering, votes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from packetflow.elements.df import in_parallel
from packetflow.elements.runtime import (
    Call,
    Request,
    Step,
    check_may,
    check_name,
    check_size,
    element,
    full,
    no_handler,
)
from packetflow.errors import (
    ConnectionLost,
    DependencyFailed,
    InvalidPacket,
    PacketFlowError,
    PacketTimeout,
)
from packetflow.state import Entry, StoreFull
from pfcore.flights import Member

__all__ = ["ELEMENTS"]

ENDED_S = 5.0
"""Seconds that the end of a generation or a ballot is kept for who waits to read: they are woken at once."""
IDLE_S = 60.0
"""Seconds that a barrier nobody waits at is kept: then its generations count from 0 again."""
BALLOT_S = 300.0
"""Seconds that a decided ballot is kept for voters who come late."""
MAX_PARTIES = 10_000


class Sync(Request):
    """co:sync"""

    barrier: str
    parties: int
    data: msgspec.Raw = msgspec.Raw(b"null")
    wait_ms: int | None = None


@element("co", "sync")
async def sync(call: Call, request: Sync) -> Any:
    """All parties return together, or none does."""
    name = check_name("barrier", request.barrier)
    if not 1 <= request.parties <= MAX_PARTIES:
        raise InvalidPacket(f"parties: expected 1 to {MAX_PARTIES:,}, got {request.parties:,}")
    check_size(call, "data", request.data)
    store = call.store
    entry = await store.get("barrier", name)
    fresh: dict[str, Any] = {"generation": 0, "parties": request.parties, "data": []}
    state: dict[str, Any] = entry.value if entry is not None else fresh
    if state["data"] and state["parties"] != request.parties:
        raise InvalidPacket(f"barrier {name!r}: {state['parties']} parties were announced, not {request.parties}")
    index, generation = len(state["data"]), state["generation"]
    data = [*state["data"], msgspec.Raw(bytes(request.data))]
    complete = len(data) == request.parties
    following = {"generation": generation + complete, "parties": request.parties, "data": [] if complete else data}
    try:
        await store.put("barrier", name, following, version=entry.version if entry is not None else 0,
                        ttl=IDLE_S if complete else None)  # fmt: skip
    except StoreFull as error:
        raise full(error) from None
    key = f"{name}\0{generation}"
    if complete:
        await _end(call, "barrier end", key, {"data": data})
        return {"index": index, "generation": generation, "data": data}

    async def attempt() -> Entry | None:
        return await store.get("barrier end", key)

    try:
        end = (await call.wait("barrier", key, attempt, wait_ms=request.wait_ms)).value
    except asyncio.CancelledError:
        late = call.runtime.alarms.now() >= call.deadline - 0.001
        call.runtime.spawn(_break(call, name, generation, "PF408" if late else "PF502"))
        raise
    except PacketTimeout:
        await _break(call, name, generation, "PF408")
        raise PacketTimeout(f"barrier {name!r}: not all of {request.parties} parties came") from None
    if "code" in end:
        kind = PacketTimeout if end["code"] == "PF408" else ConnectionLost
        what = "did not come in time" if end["code"] == "PF408" else "was lost"
        raise kind(f"barrier {name!r}: a party {what}, generation {generation} is broken")
    return {"index": index, "generation": generation, "data": end["data"]}


async def _break(call: Call, name: str, generation: int, code: str) -> None:
    """Ends a generation for all of its parties, and begins the next."""
    store = call.store
    entry = await store.get("barrier", name)
    if entry is None or entry.value["generation"] != generation:
        return
    following = entry.value | {"generation": generation + 1, "data": []}
    await store.put("barrier", name, following, version=entry.version, ttl=IDLE_S)
    key = f"{name}\0{generation}"
    await _end(call, "barrier end", key, {"code": code})


async def _end(call: Call, kind: str, key: str, end: dict[str, Any]) -> None:
    """How something ended, for who waits for it."""
    try:
        await call.store.put(kind, key, end, ttl=ENDED_S)
    except StoreFull as error:
        raise full(error) from None


class Broadcast(Request):
    """co:broadcast"""

    packet: Step
    wait: bool = True


@element("co", "broadcast")
async def broadcast(call: Call, request: Broadcast) -> Any:
    """To every reactor that handles it."""
    step = request.packet
    members, packet_of = _audience(call, step)
    replies: list[tuple[Member, Any]] = []
    for member in members:
        try:
            replies.append((member, call.runtime.host.submit_to(member, packet_of())))
        except PacketFlowError as error:
            replies.append((member, error))
    if not request.wait:
        for _, reply in replies:
            if not isinstance(reply, PacketFlowError):
                reply.add_done_callback(_retrieve)
        return {"delivered": len(members), "results": []}
    try:
        results = [await _entry(member, reply) for member, reply in replies]
    finally:
        for _, reply in replies:
            if not isinstance(reply, PacketFlowError):
                reply.cancel()
    return {"delivered": len(members), "results": results}


def _audience(call: Call, step: Step) -> tuple[list[Member], Any]:
    """Who handles a step, and what makes a packet of it for each."""
    call.check_steps(1)
    host = call.runtime.host
    check_may(call, step.key)
    members = host.reactors_for(step.key)
    if not members:
        raise no_handler(step.key)
    # encoded once, whoever it goes to
    data = call.build(step, {"input": None, "prev": None, "results": {}}).data
    raw = msgspec.structs.replace(step, data=data if isinstance(data, msgspec.Raw) else msgspec.Raw(_encode(data)))
    return members, lambda: call.build(raw, None)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _retrieve(reply: Any) -> None:
    if not reply.cancelled():
        reply.exception()


async def _entry(member: Member, reply: Any) -> dict[str, Any]:
    name = member.reactor or f"#{member.number}"
    try:
        if isinstance(reply, PacketFlowError):
            raise reply
        result = await reply
    except PacketFlowError as error:
        return {"reactor": name, "status": "error", "error": _error(error.code, error.message, error.details)}
    if result.ok:
        return {"reactor": name, "status": "success", "data": result.data}
    return {"reactor": name, "status": "error", "error": result.error}


def _error(code: str, message: str, details: Any) -> dict[str, Any]:
    error = {"code": code, "message": message}
    return error | {"details": details} if details else error


class Gather(Request):
    """co:gather"""

    packets: list[Step]
    need: int | None = None
    concurrency: int = 64


@element("co", "gather")
async def gather(call: Call, request: Gather) -> Any:
    """Many steps at once, until enough have succeeded."""
    steps = request.packets
    call.check_steps(len(steps))
    need = len(steps) if request.need is None else request.need
    if not 0 <= need <= len(steps):
        raise InvalidPacket(f"need: expected 0 to {len(steps)}, got {need}")
    entries: list[dict[str, Any] | None] = [None] * len(steps)
    succeeded = failed = 0
    enough = asyncio.get_running_loop().create_future()
    context: dict[str, Any] = {"input": None, "prev": None, "results": {}}

    async def one(place: int) -> None:
        nonlocal succeeded, failed
        try:
            result = await call.result_of(steps[place], {**context, "index": place})
            entry = (
                {"status": "success", "data": result.data} if result.ok else {"status": "error", "error": result.error}
            )
        except PacketFlowError as error:
            entry = {"status": "error", "error": _error(error.code, error.message, error.details)}
        entries[place] = entry
        if entry["status"] == "success":
            succeeded += 1
        else:
            failed += 1
        if not enough.done() and (succeeded >= need or failed > len(steps) - need):
            enough.set_result(None)

    if need == 0:
        return entries
    running = asyncio.ensure_future(in_parallel(len(steps), one, request.concurrency))
    try:
        await asyncio.wait({running, enough}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if succeeded < need:
        failures = [entry["error"] for entry in entries if entry is not None and entry["status"] == "error"]
        raise DependencyFailed(
            f"{need} of {len(steps)} had to succeed, {failed} have failed", details={"errors": failures[:10]}
        )
    return entries


class Vote(Request):
    """co:vote"""

    ballot: str | None = None
    choice: Any = msgspec.UNSET
    voters: int | None = None
    need: int | None = None
    packet: Step | None = None
    wait_ms: int | None = None


@element("co", "vote")
async def vote(call: Call, request: Vote) -> Any:
    """A decision, once enough agree or cannot any more."""
    if request.packet is not None:
        if request.ballot is not None or request.choice is not msgspec.UNSET or request.voters is not None:
            raise InvalidPacket("packet: expected neither ballot, choice nor voters beside it")
        return await _poll(call, request.packet, request.need)
    if request.ballot is None or request.choice is msgspec.UNSET or request.voters is None:
        raise InvalidPacket("expected ballot, choice and voters, or packet")
    name = check_name("ballot", request.ballot)
    voters = request.voters
    if not 1 <= voters <= MAX_PARTIES:
        raise InvalidPacket(f"voters: expected 1 to {MAX_PARTIES:,}, got {voters:,}")
    need = _need(request.need, voters)
    store = call.store
    entry = await store.get("ballot", name)
    fresh: dict[str, Any] = {"voters": voters, "need": need, "votes": {}, "came": 0, "end": None}
    state: dict[str, Any] = entry.value if entry is not None else fresh
    if (state["voters"], state["need"]) != (voters, need):
        raise InvalidPacket(
            f"ballot {name!r}: it is of {state['voters']} voters of whom {state['need']} have to agree, "
            f"not {voters} and {need}"
        )
    state = state | {"votes": state["votes"] | {call.packet.id: request.choice}, "came": state["came"] + 1}
    if state["end"] is None:
        state["end"] = _decide(list(state["votes"].values()), voters, need)
    key = f"{name}\0{state.get('born', store.revision())}"
    state.setdefault("born", int(key.rpartition("\0")[2]))
    try:
        if state["end"] is not None and state["came"] >= voters:
            if entry is not None:
                await store.delete("ballot", name, version=entry.version)
        else:
            await store.put("ballot", name, state, version=entry.version if entry is not None else 0,
                            ttl=BALLOT_S if state["end"] is not None else None)  # fmt: skip
    except StoreFull as error:
        raise full(error) from None
    if state["end"] is not None:
        await _end(call, "ballot end", key, state["end"])
        return state["end"]

    async def attempt() -> Entry | None:
        return await store.get("ballot end", key)

    try:
        return (await call.wait("ballot", key, attempt, wait_ms=request.wait_ms)).value
    except asyncio.CancelledError:
        call.runtime.spawn(_withdraw(call, name, state["born"]))
        raise
    except PacketTimeout:
        await _withdraw(call, name, state["born"])
        raise PacketTimeout(f"ballot {name!r}: no decision in time") from None


async def _withdraw(call: Call, name: str, born: int) -> None:
    """A voter who waits no more has not voted: he may again."""
    entry = await call.store.get("ballot", name)
    if entry is None or entry.value["born"] != born or call.packet.id not in entry.value["votes"]:
        return
    votes = {voter: choice for voter, choice in entry.value["votes"].items() if voter != call.packet.id}
    if not votes:
        await call.store.delete("ballot", name, version=entry.version)
    else:
        left = entry.value | {"votes": votes, "came": entry.value["came"] - 1}
        await call.store.put("ballot", name, left, version=entry.version)


async def _poll(call: Call, step: Step, need: int | None) -> Any:
    """Every handler's data is its vote; one that fails abstains."""
    members, packet_of = _audience(call, step)
    wanted = _need(need, len(members))
    votes: list[Any] = []
    asked: dict[asyncio.Future[dict[str, Any]], None] = {}
    for member in members:
        try:
            reply: Any = call.runtime.host.submit_to(member, packet_of())
        except PacketFlowError as error:
            reply = error
        asked[asyncio.ensure_future(_entry(member, reply))] = None
    waiting = set(asked)
    abstained = 0
    end = None
    try:
        while end is None and waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                entry = one.result()
                if entry["status"] == "success":
                    votes.append(entry["data"])
                else:
                    abstained += 1
            end = _decide(votes, len(members), wanted, abstained)
    finally:
        for one in waiting:
            one.cancel()
    return end or {"decision": None, "tally": _tally(votes), "decided": False}


def _need(need: int | None, voters: int) -> int:
    if need is None:
        return voters // 2 + 1
    if not 1 <= need <= voters:
        raise InvalidPacket(f"need: expected 1 to {voters}, got {need}")
    return need


def _decide(votes: list[Any], voters: int, need: int, abstained: int = 0) -> dict[str, Any] | None:
    """The end of a ballot, None while it is open."""
    tally = _tally(votes)
    leading: list[Any] = tally[0] if tally else [None, 0]
    if leading[1] >= need:
        return {"decision": leading[0], "tally": tally, "decided": True}
    if leading[1] + voters - len(votes) - abstained < need:
        return {"decision": None, "tally": tally, "decided": False}
    return None


def _tally(votes: list[Any]) -> list[list[Any]]:
    """[[choice, n]], the most chosen first."""
    counts: dict[bytes, list[Any]] = {}
    for choice in votes:
        counts.setdefault(msgspec.json.encode(_plain(choice), order="sorted"), [choice, 0])[1] += 1
    return sorted(counts.values(), key=lambda entry: -entry[1])


def _plain(value: Any) -> Any:
    """Equal JSON, equal bytes: 1 and 1.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


ELEMENTS = (sync, broadcast, gather, vote)
