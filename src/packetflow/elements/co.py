"""Collective: barriers, broadcasts, gathering, votes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from packetflow.elements.call import RESULT_BYTES, SENT_BYTES, Call
from packetflow.elements.expressions import View, decoding_cost
from packetflow.elements.kept import Kind
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
from packetflow.state import StoreFull
from pfcore.memory.ids import new_id
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


class _Barrier(msgspec.Struct):
    """What is kept of a barrier: its present generation."""

    generation: int
    parties: int = 0
    data: list[msgspec.Raw] = []
    size: int = 0  # bytes of it


class _End(msgspec.Struct, omit_defaults=True):
    """How a generation or a ballot ended: its outcome, or the code of what broke it."""

    outcome: msgspec.Raw = msgspec.Raw(b"null")
    code: str = ""


BARRIERS = Kind("barrier", _Barrier, BARRIER_BYTES)
BARRIER_ENDS = Kind("barrier end", _End, 0)
BALLOT_ENDS = Kind("ballot end", _End, 0)


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
    runtime = call.runtime
    index = generation = 0
    everyone: list[msgspec.Raw] = []
    gone = False

    def join(barrier: _Barrier | None) -> _Barrier:
        nonlocal index, generation, everyone
        if gone:
            raise ConnectionLost(f"barrier {name!r}: it went before it had come")  # nobody is told, and nothing broken
        if barrier is None:
            barrier = _Barrier(0)
        if barrier.data and barrier.parties != request.parties:
            raise InvalidPacket(f"barrier {name!r}: {barrier.parties} parties were announced, not {request.parties}")
        total = barrier.size + len(data)
        if total > call.bounds.value:
            raise TooLarge(
                f"barrier {name!r}: {total:,} bytes of all parties' data, at most {call.bounds.value:,} may be"
            )
        index, generation, everyone = len(barrier.data), barrier.generation, [*barrier.data, data]
        if len(everyone) < request.parties:
            return _Barrier(generation, request.parties, everyone, total)
        _check_stored(call, total)
        return _Barrier(generation + 1)

    async def come() -> msgspec.Raw | None:
        nonlocal everyone
        await call.update(BARRIERS, name, join, ttl=_idle)
        came, everyone = everyone, []  # while it waits, the store has it
        if len(came) < request.parties:
            return None
        outcome = msgspec.Raw(msgspec.json.encode(came))
        await _end(call, BARRIER_ENDS, key_of(name, str(generation)), _End(outcome), request.parties - 1)
        return outcome

    def lost(outcome: msgspec.Raw | None) -> None:
        # it has come, and is gone; where it was the last, all others have their end
        if outcome is None:
            runtime.in_turn(lambda: _break(call, name, generation, "PF502"), call.account)

    try:
        outcome = await runtime.whole(come(), lost)
    except asyncio.CancelledError:
        gone = True
        raise
    if outcome is not None:
        return {"index": index, "generation": generation, "data": outcome}
    key = key_of(name, str(generation))
    try:
        end = await _wait_for_end(call, "barrier", BARRIER_ENDS, key, name, request.wait_ms)
    except asyncio.CancelledError:
        code = "PF408" if runtime.alarms.now() >= call.deadline - 0.001 else "PF502"
        runtime.in_turn(lambda: _break(call, name, generation, code), call.account)
        raise
    except PacketTimeout:
        await runtime.whole(_break(call, name, generation, "PF408"))
        raise PacketTimeout(f"barrier {name!r}: not all of {request.parties} parties came") from None
    except Overloaded:
        # it never waited: it is as if it had not come, if nobody has come since
        def leave(barrier: _Barrier | None) -> _Barrier | None:
            if barrier is None or barrier.generation != generation or len(barrier.data) != index + 1:
                return barrier
            return _Barrier(generation, barrier.parties, barrier.data[:-1], barrier.size - len(data))

        await runtime.whole(call.update(BARRIERS, name, leave, ttl=_idle))
        raise
    except PacketFlowError:
        await runtime.whole(_break(call, name, generation, "PF502"))
        raise
    if end.code:
        kind = PacketTimeout if end.code == "PF408" else ConnectionLost
        what = "did not come in time" if end.code == "PF408" else "was lost"
        raise kind(f"barrier {name!r}: a party {what}, generation {generation} is broken")
    await call.turn()
    return {"index": index, "generation": generation, "data": end.outcome}


def _idle(barrier: _Barrier) -> float | None:
    return None if barrier.data else IDLE_S


async def _break(call: Call, name: str, generation: int, code: str) -> None:
    """Ends a generation for all of its parties, and begins the next."""
    left = -1

    def begin(barrier: _Barrier | None) -> _Barrier | None:
        nonlocal left
        left = -1
        if barrier is None or barrier.generation != generation:
            return barrier
        left = len(barrier.data) - 1
        return _Barrier(generation + 1)

    await call.update(BARRIERS, name, begin, ttl=_idle)
    if left >= 0:
        await _end(call, BARRIER_ENDS, key_of(name, str(generation)), _End(code=code), left)


def _check_stored(call: Call, size: int) -> None:
    """Raises `StoreFull` where so much cannot be stored: before anything has happened."""
    if call.stored is not None and not call.stored.may(size + 2 * BARRIER_BYTES):
        raise StoreFull(call.stored.refusal(size + 2 * BARRIER_BYTES))


async def _end(call: Call, kind: Kind[_End], key: str, end: _End, left: int) -> None:
    """How something ended, for those who wait for it. It has ended: nothing refuses that."""
    if left > 0:
        call.runtime.rooms.setdefault(kind.name, {})[key] = left
        size = len(end.outcome)
        await call.store.put(kind.name, key, kind.encode(end), ttl=ENDED_S, size=size, owner=call.stored, must=True)


async def _wait_for_end(call: Call, line: str, kind: Kind[_End], key: str, name: str, wait_ms: int | None) -> _End:
    """The end, once there is one; the last who reads it takes it away."""

    async def attempt() -> _End | None:
        kept = await call.read(kind, key)
        return kept.record if kept is not None else None

    end = await call.wait(line, key, attempt, wait_ms=wait_ms, shown=name)
    # who ended it here knows how many wait; elsewhere it goes with its time
    readers: dict[str, int] = call.runtime.rooms.get(kind.name, {})
    if key in readers:
        readers[key] -= 1
        if readers[key] <= 0:
            del readers[key]
            await call.store.delete(kind.name, key)
    return end


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
        if asked.absent == len(asked.members):
            raise no_handler(request.packet.key)
        return {"delivered": len(asked.members) - asked.absent, "results": []}
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

    def __init__(self, call: Call, key: str, members: list[Member], packet: Callable[[], Packet], size: int) -> None:
        self.members = members
        self.absent = 0  # of them, by when it was their turn
        self._key = key
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
        return cls(call, step.key, members, lambda: call.packet(ready, raw), size)

    async def send(self, *, listen: bool = True) -> None:
        """Sends all of them. `listen`: what they answer is wanted."""
        call = self._call
        host, turns = call.runtime.host, call.runtime.turns
        self._over = not listen
        present: set[Member] | None = None
        try:
            for place, member in enumerate(self.members):
                if turns.spent(call.account):
                    await turns.next(call.account)
                    present = None
                if present is None:
                    # it took its time: who handles it may have gone, or may no longer have it, nor he send it
                    check_may(call, self._key)
                    present = set(host.reactors_for(self._key))
                if member not in present:
                    self.absent += 1
                    self._unsent -= 1
                    self._account.release(self._size)
                    if listen:
                        self._came.append((place, None))
                    continue
                try:
                    reply: Any = host.submit_to(member, self._packet())
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
            await call.turn()  # a thousand steps and their results are let go of next
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


class _Choice(msgspec.Struct, array_like=True):
    """A choice, and how many chose it."""

    choice: msgspec.Raw
    count: int


def _decide(counts: Iterable[_Choice], need: int, outstanding: int) -> dict[str, Any] | None:
    """The end, once `need` agree, or cannot any more with so many who have yet to vote; None while it is open."""
    best = max((entry.count for entry in counts), default=0)
    if best < need <= best + outstanding:
        return None
    tally = [[entry.choice, entry.count] for entry in sorted(counts, key=lambda entry: -entry.count)]
    return {"decision": tally[0][0] if best >= need else None, "tally": tally, "decided": best >= need}


class _Vote(msgspec.Struct, array_like=True):
    """Whose choice, by its digest, and which packet of his waits."""

    digest: str
    waits: str


OPEN = msgspec.Raw(b"")


class _Ballot(msgspec.Struct, omit_defaults=True):
    """What is kept of a ballot: once it has ended, that alone, and how many have come."""

    voters: int
    need: int
    born: int
    came: int = 0
    votes: dict[str, _Vote] = {}
    choices: dict[str, _Choice] = {}
    end: msgspec.Raw = OPEN

    def without(self, voter: str) -> _Ballot:
        """As if he had not voted."""
        votes = {who: vote for who, vote in self.votes.items() if who != voter}
        digest = self.votes[voter].digest
        before = self.choices[digest]
        choices = {key: choice for key, choice in self.choices.items() if key != digest or before.count > 1}
        if before.count > 1:
            choices[digest] = _Choice(before.choice, before.count - 1)
        return _Ballot(self.voters, self.need, self.born, self.came - 1, votes, choices)

    def with_vote(self, voter: str, vote: _Vote, choice: msgspec.Raw) -> _Ballot:
        """And one vote more."""
        before = self.choices.get(vote.digest)
        counted = _Choice(choice, 1) if before is None else _Choice(before.choice, before.count + 1)
        choices = {**self.choices, vote.digest: counted}
        return _Ballot(self.voters, self.need, self.born, self.came + 1, {**self.votes, voter: vote}, choices)

    @property
    def size(self) -> int:
        """Bytes of all choices."""
        return sum(len(entry.choice) for entry in self.choices.values())


BALLOTS = Kind("ballot", _Ballot, BARRIER_BYTES)


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
    vote = _Vote(await _digest(call, choice), new_id()[:13])
    voter = _short(key_of(call.principal.name, call.id))
    runtime = call.runtime
    born = left = 0
    ended = known = OPEN  # by this vote, and before it

    def cast(ballot: _Ballot | None) -> _Ballot | None:
        nonlocal born, left, ended, known
        ended = known = OPEN
        if ballot is None:
            ballot = _Ballot(voters, need, call.store.revision())
        if (ballot.voters, ballot.need) != (voters, need):
            raise InvalidPacket(
                f"ballot {name!r}: it is of {ballot.voters} voters of whom {ballot.need} have to agree, "
                f"not {voters} and {need}"
            )
        born = ballot.born
        if ballot.end:
            known = ballot.end
            came = ballot.came + 1
            return _Ballot(voters, need, born, came, end=known) if came < voters else None
        if voter in ballot.votes:
            ballot = ballot.without(voter)  # the same packet again
        ballot = ballot.with_vote(voter, vote, choice)
        size = ballot.size
        if size > call.bounds.value:
            raise TooLarge(f"ballot {name!r}: {size:,} bytes of choices, at most {call.bounds.value:,} may be")
        end = _decide(ballot.choices.values(), need, voters - len(ballot.votes))
        if end is None:
            return ballot
        _check_stored(call, size)
        ended = msgspec.Raw(msgspec.json.encode(end))
        left = len(ballot.votes) - 1
        return _Ballot(voters, need, born, ballot.came, end=ended) if ballot.came < voters else None

    async def come() -> msgspec.Raw:
        # once it has ended its outcome is kept for who comes late
        await call.update(
            BALLOTS,
            name,
            cast,
            more=lambda ballot: len(ballot.end),
            ttl=lambda ballot: BALLOT_S if ballot.end else None,
        )
        if ended:
            await _end(call, BALLOT_ENDS, key_of(name, str(born)), _End(ended), left)
        return known or ended

    def lost(end: msgspec.Raw) -> None:
        # in their turns: thousands of voters may go with one link, and the whole ballot is written for each
        if not end:
            runtime.in_turn(lambda: _withdraw(call, name, born, voter, vote), call.account)

    outcome = await runtime.whole(come(), lost)
    if outcome:
        return outcome
    end_key = key_of(name, str(born))
    try:
        end = await _wait_for_end(call, "ballot", BALLOT_ENDS, end_key, name, request.wait_ms)
        await call.turn()
        return end.outcome
    except asyncio.CancelledError:
        lost(OPEN)
        raise
    except PacketFlowError as error:
        try:
            await call.turn()
        finally:
            await runtime.whole(_withdraw(call, name, born, voter, vote))
        if isinstance(error, PacketTimeout):
            raise PacketTimeout(f"ballot {name!r}: no decision in time") from None
        raise


def _short(text: str) -> str:
    """A name of 16 characters that nobody finds another text for."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:12]).decode()


async def _withdraw(call: Call, name: str, born: int, voter: str, vote: _Vote) -> None:
    """A voter who waits no more has not voted: he may again."""

    def withdraw(ballot: _Ballot | None) -> _Ballot | None:
        if ballot is None or ballot.born != born or ballot.votes.get(voter) != vote:
            return ballot
        return ballot.without(voter) if len(ballot.votes) > 1 else None

    await call.update(BALLOTS, name, withdraw)


async def _poll(call: Call, step: Step, need: int | None) -> Any:
    """Every handler's data is its vote; one that fails abstains."""
    asked = await _Asked.everyone(call, step)
    voters = len(asked.members)
    try:
        _need(need, voters)
        await asked.send()
        choices: dict[str, _Choice] = {}
        outstanding = voters
        end = None
        async for _, entry in asked:
            outstanding -= 1
            if entry is None:
                voters -= 1  # it was none
            elif entry["status"] == "success":
                digest = await _digest(call, entry["data"])
                choices.setdefault(digest, _Choice(entry["data"], 0)).count += 1
            wanted = voters // 2 + 1 if need is None else need
            end = _decide(choices.values(), wanted, outstanding)
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


async def _digest(call: Call, choice: msgspec.Raw) -> str:
    """What equal JSON has in common."""

    def work(view: View) -> str:
        view.pay(3 * decoding_cost(bytes(choice)))
        plain = _plain(view.decode(choice))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return base64.b64encode(hashlib.sha256(text.encode()).digest()[:18]).decode()

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
