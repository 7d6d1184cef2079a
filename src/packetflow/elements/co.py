"""Collective: barriers, broadcasts, gathering, votes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from packetflow.elements.call import RESULT_BYTES, SENT_BYTES, Call
from packetflow.elements.expressions import View, decoding_cost
from packetflow.elements.lanes import in_parallel
from packetflow.elements.request import (
    STEP_BYTES,
    Int,
    Request,
    Step,
    check_may,
    check_name,
    check_size,
    element,
    error_of,
    full,
    key_of,
    no_handler,
)
from packetflow.errors import (
    ConnectionLost,
    DependencyFailed,
    InvalidPacket,
    Overloaded,
    PacketFlowError,
    PacketTimeout,
    TooLarge,
)
from packetflow.model import Packet, Result
from packetflow.state import SAME, Entry, StoreFull
from pfcore.route.flights import Member

__all__ = ["ELEMENTS"]

ENDED_S = 5.0
"""Seconds that the end of a generation or a ballot is kept for who waits to read: they are woken at once."""
IDLE_S = 60.0
"""Seconds that a barrier nobody waits at is kept: then its generations count from 0 again."""
BALLOT_S = 300.0
"""Seconds that a decided ballot is kept for voters who come late."""
MAX_PARTIES = 10_000
PARTY_BYTES = 200
"""What a party or a voter takes besides its data."""
BARRIER_BYTES = 300
"""What a barrier or a ballot takes besides what its parties bring."""


class _Barrier:
    """What is kept of a barrier: its present generation."""

    __slots__ = ("data", "generation", "parties", "size")

    def __init__(self) -> None:
        self.generation = 0
        self.begin(0)

    def begin(self, generation: int) -> None:
        self.generation = generation
        self.parties = 0
        self.data: list[msgspec.Raw] = []
        self.size = 0  # bytes of it


class _End:
    """How a generation or a ballot ended, until all who wait have read it."""

    __slots__ = ("left", "outcome")

    def __init__(self, outcome: dict[str, Any], left: int) -> None:
        self.outcome = outcome
        self.left = left


class Sync(Request):
    """co:sync"""

    barrier: str
    parties: Int
    data: msgspec.Raw = msgspec.Raw(b"null")
    wait_ms: Int | None = None


@element("co", "sync")
async def sync(call: Call, request: Sync) -> Any:
    """All parties return together, or none does."""
    name = check_name("barrier", request.barrier)
    if not 1 <= request.parties <= MAX_PARTIES:
        raise InvalidPacket(f"parties: expected 1 to {MAX_PARTIES:,}, got {request.parties:,}")
    check_size(call, "data", request.data)
    size = len(request.data) + PARTY_BYTES
    call.hold(size)
    data = msgspec.Raw(bytes(request.data))
    store = call.store
    entry = await store.get("barrier", name)
    barrier: _Barrier = entry.value if entry is not None else _Barrier()
    if barrier.data and barrier.parties != request.parties:
        raise InvalidPacket(f"barrier {name!r}: {barrier.parties} parties were announced, not {request.parties}")
    if barrier.size + len(data) > call.bounds.value:
        raise TooLarge(
            f"barrier {name!r}: {barrier.size + len(data):,} bytes of all parties' data, "
            f"at most {call.bounds.value:,} may be"
        )
    index, generation = len(barrier.data), barrier.generation
    complete = index + 1 == request.parties
    if complete:
        _check_stored(call, barrier.size + len(data))
    await _keep(call, "barrier", name, barrier, entry, ttl=IDLE_S if complete else None)
    barrier.parties = request.parties
    barrier.data.append(data)
    barrier.size += len(data)
    everyone = barrier.data
    key = key_of(name, str(generation))
    if complete:
        size = barrier.size
        barrier.begin(generation + 1)
        await _end(call, "barrier end", key, {"data": everyone}, request.parties - 1, size)
        return {"index": index, "generation": generation, "data": everyone}

    try:
        end = await _wait_for_end(call, "barrier", key, name, request.wait_ms)
    except asyncio.CancelledError:
        late = call.runtime.alarms.now() >= call.deadline - 0.001
        if barrier.generation == generation:
            call.runtime.spawn(_break(call, name, generation, "PF408" if late else "PF502"))
        raise
    except PacketTimeout:
        await _break(call, name, generation, "PF408")
        raise PacketTimeout(f"barrier {name!r}: not all of {request.parties} parties came") from None
    except Overloaded:
        # it never waited: it is as if it had not come
        if barrier.generation == generation and len(barrier.data) == index + 1:
            barrier.data.pop()
            barrier.size -= len(data)
            if not barrier.data and (entry := await store.get("barrier", name)) is not None:
                await _keep(call, "barrier", name, barrier, entry, ttl=IDLE_S)
        raise
    except PacketFlowError:
        await _break(call, name, generation, "PF502")
        raise
    if "code" in end:
        kind = PacketTimeout if end["code"] == "PF408" else ConnectionLost
        what = "did not come in time" if end["code"] == "PF408" else "was lost"
        raise kind(f"barrier {name!r}: a party {what}, generation {generation} is broken")
    await call.turn()
    return {"index": index, "generation": generation, "data": end["data"]}


async def _break(call: Call, name: str, generation: int, code: str) -> None:
    """Ends a generation for all of its parties, and begins the next."""
    store = call.store
    entry = await store.get("barrier", name)
    if entry is None or entry.value.generation != generation:
        return
    barrier: _Barrier = entry.value
    left = len(barrier.data) - 1
    await store.put("barrier", name, barrier, version=entry.version, ttl=IDLE_S, size=BARRIER_BYTES, owner=SAME)
    barrier.begin(generation + 1)
    await _end(call, "barrier end", key_of(name, str(generation)), {"code": code}, left, 0)


async def _keep(
    call: Call, kind: str, name: str, state: Any, entry: Entry | None, *, ttl: float | None, size: int = 0
) -> None:
    """Keeps what is about to be changed: who made it pays for it, but for `size` bytes who makes it so large."""
    try:
        await call.store.put(
            kind,
            name,
            state,
            version=entry.version if entry is not None else 0,
            ttl=ttl,
            size=BARRIER_BYTES + size,
            owner=call.stored if entry is None or size else SAME,
        )
    except StoreFull as error:
        raise full(error) from None


def _check_stored(call: Call, size: int) -> None:
    """Raises `Overloaded` where so much cannot be stored: before anything has happened."""
    if call.stored is not None and not call.stored.may(size + 2 * BARRIER_BYTES):
        raise full(StoreFull(call.stored.refusal(size + 2 * BARRIER_BYTES)))


async def _end(call: Call, kind: str, key: str, outcome: dict[str, Any], left: int, size: int) -> None:
    """How something ended, for those who wait for it. It has ended: nothing refuses that."""
    if left > 0:
        await call.store.put(kind, key, _End(outcome, left), ttl=ENDED_S, size=size, owner=call.stored, must=True)


async def _wait_for_end(call: Call, kind: str, key: str, name: str, wait_ms: int | None) -> dict[str, Any]:
    """The end, once there is one; the last who reads it takes it away."""

    async def attempt() -> Entry | None:
        return await call.store.get(f"{kind} end", key)

    end: _End = (await call.wait(kind, key, attempt, wait_ms=wait_ms, shown=name)).value
    end.left -= 1
    if end.left <= 0:
        await call.store.delete(f"{kind} end", key)
    return end.outcome


class Broadcast(Request):
    """co:broadcast"""

    packet: Step
    wait: bool = True


@element("co", "broadcast")
async def broadcast(call: Call, request: Broadcast) -> Any:
    """To every reactor that handles it."""
    asked = await _Asked.everyone(call, request.packet)
    if not request.wait:
        await asked.send(listen=False)
        return {"delivered": len(asked.members), "results": []}
    results: list[dict[str, Any] | None] = [None] * len(asked.members)
    try:
        await asked.send()
        async for place, entry in asked:
            results[place] = entry
    finally:
        asked.cancel()
    entries = [entry for entry in results if entry is not None]
    if not entries:
        raise no_handler(request.packet.key)
    return {"delivered": len(entries), "results": entries}


class _Asked:
    """One step for many reactors, and their answers as they come: (place, entry), None where it handles no such thing.

    What is on its way to each counts for who asked, until that has answered.
    """

    def __init__(self, call: Call, members: list[Member], packet: Callable[[], Packet], size: int) -> None:
        self.members = members
        self._call = call
        self._packet = packet
        self._size = size  # bytes of each
        self._replies: list[Any] = []
        self._came: deque[tuple[int, dict[str, Any] | None]] = deque()
        self._left = len(members)
        self._waiter: asyncio.Future[None] | None = None
        self._account = call.account
        self._unsent = len(members)
        self._failure: PacketFlowError | None = None
        self._over = False  # nobody listens

    @classmethod
    async def everyone(cls, call: Call, step: Step) -> _Asked:
        """All who handle a step, each of them counted as a step and as a packet of the submitter's."""
        host = call.runtime.host
        check_may(call, step.key)
        members = host.reactors_for(step.key)
        if not members:
            raise no_handler(step.key)
        call.check_steps(len(members))
        # encoded once, whoever it goes to
        await call.turn()
        data = (await call.build(step, {"input": None, "prev": None, "results": {}})).data
        raw = data if isinstance(data, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(data))
        ready = msgspec.structs.replace(step, data=raw)
        size = len(raw) + SENT_BYTES
        if not call.account.charge(size * len(members)):
            raise Overloaded(call.account.refusal(size * len(members)), details={"retry_after_ms": 1000})
        if not host.spend(call.principal, len(members)):
            call.account.release(size * len(members))
            raise Overloaded(
                f"more than {call.principal.rate:g} packets a second: {len(members)} reactors handle {step.key}",
                details={"retry_after_ms": max(1, int(1000 / call.principal.rate))},
            )
        return cls(call, members, lambda: call.packet(ready, raw), size)

    async def send(self, *, listen: bool = True) -> None:
        """Sends all of them. `listen`: what they answer is wanted."""
        call = self._call
        self._over = not listen
        try:
            for place, member in enumerate(self.members):
                await call.turn()
                try:
                    reply: Any = call.runtime.host.submit_to(member, self._packet())
                except PacketFlowError as error:
                    self._unsent -= 1
                    self._account.release(self._size)
                    self._arrive(place, error)
                    continue
                self._unsent -= 1
                call.begun += 1
                self._replies.append(reply)
                reply.add_done_callback(lambda reply, place=place: self._done(place, reply))
        except BaseException:
            self.cancel()
            raise

    def _done(self, place: int, reply: Any) -> None:
        self._account.release(self._size)
        if reply.cancelled():
            return
        error = reply.exception()
        self._arrive(place, error if error is not None else reply.result())

    def _arrive(self, place: int, outcome: Result | PacketFlowError) -> None:
        if self._over:
            return
        member = self.members[place]
        code = outcome.code if isinstance(outcome, PacketFlowError) else (outcome.error or {}).get("code")
        entry: dict[str, Any] | None = None
        if code != "PF001" or member.listed:  # else it announces nothing, and handles no such thing
            entry = {"reactor": member.reactor or f"#{member.number}", **entry_of(outcome)}
            try:
                self._call.keep(RESULT_BYTES + len(entry.get("data") or entry.get("error") or b""))
            except PacketFlowError as error:
                self._failure, entry = error, None
        self._came.append((place, entry))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Nobody waits any more for who has not answered."""
        self._over = True
        self._account.release(self._unsent * self._size)
        self._unsent = 0
        replies, self._replies = self._replies, []
        for reply in replies:
            reply.cancel()

    def __aiter__(self) -> _Asked:
        return self

    async def __anext__(self) -> tuple[int, dict[str, Any] | None]:
        if not self._left:
            raise StopAsyncIteration
        while not self._came:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        await self._call.turn()
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self._failure = None  # it knows frames that know this
        self._left -= 1
        return self._came.popleft()


def entry_of(outcome: Result | PacketFlowError) -> dict[str, Any]:
    """What became of a packet, as an entry of a list; its data and error are JSON."""
    if isinstance(outcome, PacketFlowError):
        return {"status": "error", "error": error_of(outcome.code, outcome.message, outcome.details)}
    if outcome.ok:
        return {"status": "success", "data": outcome.data}
    return {"status": "error", "error": msgspec.Raw(msgspec.json.encode(outcome.error))}


class Gather(Request):
    """co:gather"""

    packets: list[Step]
    need: Int | None = None
    concurrency: Int = 64


@element("co", "gather")
async def gather(call: Call, request: Gather) -> Any:
    """Many steps at once, until enough have succeeded."""
    steps = request.packets
    call.check_steps(len(steps))
    call.hold(STEP_BYTES * len(steps))
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
            entry = entry_of(await call.result_of(steps[place], {**context, "index": place}))
        except PacketFlowError as error:
            entry = entry_of(error)  # not the error itself: it knows this frame
        call.keep(RESULT_BYTES + len(entry.get("data") or entry.get("error") or b""))
        entries[place] = entry
        if entry["status"] == "success":
            succeeded += 1
        else:
            failed += 1
        if not enough.done() and (succeeded >= need or failed > len(steps) - need):
            enough.set_result(None)

    if need == 0:
        return entries
    running = asyncio.ensure_future(in_parallel(call, len(steps), one, request.concurrency))
    try:
        await asyncio.wait({running, enough}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        running.cancel()
        try:
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()  # said already, or not wanted any more
        finally:
            del running  # its failure knows this frame
    if succeeded < need:
        failures = [entry["error"] for entry in entries if entry is not None and entry["status"] == "error"]
        raise DependencyFailed(
            f"{need} of {len(steps)} had to succeed, {failed} have failed", details={"errors": failures[:10]}
        )
    return entries


class Vote(Request):
    """co:vote"""

    ballot: str | None = None
    choice: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    voters: Int | None = None
    need: Int | None = None
    packet: Step | None = None
    wait_ms: Int | None = None


class _Tally:
    """Votes, counted as they come: each is read once."""

    __slots__ = ("best", "counts", "size")

    def __init__(self) -> None:
        self.counts: dict[bytes, list[Any]] = {}  # digest of a choice -> [choice, how many chose it]
        self.best = 0
        self.size = 0  # bytes of all choices

    def add(self, key: bytes, choice: msgspec.Raw) -> None:
        entry = self.counts.get(key)
        if entry is None:
            entry = self.counts[key] = [choice, 0]
            self.size += len(choice)
        entry[1] += 1
        self.best = max(self.best, entry[1])

    def take(self, key: bytes) -> None:
        entry = self.counts[key]
        entry[1] -= 1
        if not entry[1]:
            del self.counts[key]
            self.size -= len(entry[0])
        self.best = max((count for _, count in self.counts.values()), default=0)

    def end(self, need: int, outstanding: int) -> dict[str, Any] | None:
        """The end, once `need` agree, or cannot any more with so many who have yet to vote; None while it is open."""
        if self.best < need <= self.best + outstanding:
            return None
        tally = sorted(self.counts.values(), key=lambda entry: -entry[1])
        decided = self.best >= need
        return {"decision": tally[0][0] if decided else None, "tally": tally, "decided": decided}


class _Ballot:
    """What is kept of a ballot."""

    __slots__ = ("born", "came", "end", "need", "tally", "voters", "votes")

    def __init__(self, voters: int, need: int, born: int) -> None:
        self.voters = voters
        self.need = need
        self.born = born
        self.tally = _Tally()
        self.votes: dict[tuple[int, str], tuple[bytes, Call]] = {}  # principal and packet -> its choice, who waits
        self.came = 0
        self.end: dict[str, Any] | None = None


@element("co", "vote")
async def vote(call: Call, request: Vote) -> Any:
    """A decision, once enough agree or cannot any more."""
    choice = request.choice
    if request.packet is not None:
        if request.ballot is not None or choice is not msgspec.UNSET or request.voters is not None:
            raise InvalidPacket("packet: expected neither ballot, choice nor voters beside it")
        return await _poll(call, request.packet, request.need)
    if request.ballot is None or not isinstance(choice, msgspec.Raw) or request.voters is None:
        raise InvalidPacket("expected ballot, choice and voters, or packet")
    name = check_name("ballot", request.ballot)
    voters = request.voters
    if not 1 <= voters <= MAX_PARTIES:
        raise InvalidPacket(f"voters: expected 1 to {MAX_PARTIES:,}, got {voters:,}")
    need = _need(request.need, voters)
    check_size(call, "choice", choice)
    call.hold(len(choice) + PARTY_BYTES)
    choice = msgspec.Raw(bytes(choice))
    key = await _digest(call, choice)
    store = call.store
    entry = await store.get("ballot", name)
    ballot: _Ballot = entry.value if entry is not None else _Ballot(voters, need, store.revision())
    if (ballot.voters, ballot.need) != (voters, need):
        raise InvalidPacket(
            f"ballot {name!r}: it is of {ballot.voters} voters of whom {ballot.need} have to agree, "
            f"not {voters} and {need}"
        )
    tally = ballot.tally
    size = tally.size + (0 if key in tally.counts else len(choice))
    if ballot.end is None and size > call.bounds.value:
        raise TooLarge(f"ballot {name!r}: {size:,} bytes of choices, at most {call.bounds.value:,} may be")
    voter = (call.principal.number, call.id)
    if voter in ballot.votes:
        # the same packet again: the one before waits no more
        await _withdraw(call, name, ballot, voter)
        entry = await store.get("ballot", name)
    last = ballot.came + 1 >= voters
    best = max(tally.best, tally.counts[key][1] + 1 if key in tally.counts else 1)
    ends = ballot.end is None and not best < need <= best + voters - len(ballot.votes) - 1
    if ends:
        _check_stored(call, size)
    if ballot.end is not None and last:
        await store.delete("ballot", name)
    elif not (ends and last and entry is None):
        # once it has ended its choices are kept for who comes late, and counted as what they are
        kept = size if ends else tally.size if ballot.end is not None else 0
        over = ends or ballot.end is not None
        await _keep(call, "ballot", name, ballot, entry, ttl=BALLOT_S if over else None, size=kept)
    ballot.came += 1
    if ballot.end is not None:
        return ballot.end
    ballot.votes[voter] = (key, call)
    tally.add(key, choice)
    ballot.end = tally.end(need, voters - len(ballot.votes))
    end_key = key_of(name, str(ballot.born))
    if ballot.end is not None:
        if last:
            await store.delete("ballot", name)
        await _end(call, "ballot end", end_key, ballot.end, len(ballot.votes) - 1, size)
        return ballot.end
    try:
        end = await _wait_for_end(call, "ballot", end_key, name, request.wait_ms)
        await call.turn()
        return end
    except asyncio.CancelledError:
        if ballot.end is None:
            call.runtime.spawn(_withdraw(call, name, ballot, voter, call))
        raise
    except PacketTimeout:
        await _withdraw(call, name, ballot, voter)
        raise PacketTimeout(f"ballot {name!r}: no decision in time") from None
    except PacketFlowError:
        await _withdraw(call, name, ballot, voter)
        raise


async def _withdraw(
    call: Call, name: str, ballot: _Ballot, voter: tuple[int, str], waiting: Call | None = None
) -> None:
    """A voter who waits no more has not voted: he may again. `waiting`: only if it is this that waited."""
    entry = await call.store.get("ballot", name)
    if entry is None or entry.value is not ballot or ballot.end is not None or voter not in ballot.votes:
        return
    if waiting is not None and ballot.votes[voter][1] is not waiting:
        return
    if len(ballot.votes) == 1:
        await call.store.delete("ballot", name, version=entry.version)
    ballot.tally.take(ballot.votes.pop(voter)[0])
    ballot.came -= 1


async def _poll(call: Call, step: Step, need: int | None) -> Any:
    """Every handler's data is its vote; one that fails abstains."""
    asked = await _Asked.everyone(call, step)
    voters = len(asked.members)
    try:
        _need(need, voters)
        await asked.send()
        tally = _Tally()
        outstanding = voters
        end = None
        async for _, entry in asked:
            outstanding -= 1
            if entry is None:
                voters -= 1  # it was none
            elif entry["status"] == "success":
                tally.add(await _digest(call, entry["data"]), entry["data"])
            wanted = voters // 2 + 1 if need is None else need
            end = tally.end(wanted, outstanding)
            if end is not None and voters:
                break
    finally:
        asked.cancel()
    if not voters:
        raise no_handler(step.key)
    return end


def _need(need: int | None, voters: int) -> int:
    if need is None:
        return voters // 2 + 1
    if not 1 <= need <= voters:
        raise InvalidPacket(f"need: expected 1 to {voters}, got {need}")
    return need


async def _digest(call: Call, choice: msgspec.Raw) -> bytes:
    """What equal JSON has in common."""

    def work(view: View) -> bytes:
        view.pay(3 * decoding_cost(bytes(choice)))
        plain = _plain(view.decode(choice))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()

    return await call.evaluate(work, {})


def _plain(value: Any) -> Any:
    """Equal JSON, equal text: 1 and 1.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value


ELEMENTS = (sync, broadcast, gather, vote)
