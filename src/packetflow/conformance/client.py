"""The rules for a client: a scripted gateway that it dials.

The client does three things. It handles ``df:conformance.echo``, which answers
with its data, and ``df:conformance.fail``, which fails with the message "on
purpose". And it submits ``df:conformance.next`` with null as data, and again with
what it was answered (the code, where it was an error), until that is "done".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from packetflow.conformance.rules import (
    PATIENCE,
    Broken,
    Outcome,
    Rules,
    Skipped,
    check_message,
    check_result,
    need,
    vectors,
)
from packetflow.conformance.server import VALUES, failure, message, new, now, success
from packetflow.conformance.wire import Peer, accept_handshake
from packetflow.endpoint import parse_endpoint

__all__ = ["check_client"]

ECHO, FAIL, NEXT = "conformance.echo", "conformance.fail", "conformance.next"


class Session:
    """A client on its connection: what it sends is sorted as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = Peer(reader, writer, masks=False)
        self.path = ""
        self.headers: dict[str, str] = {}
        self.heartbeats: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.faults: list[str] = []
        self.submits: list[dict[str, Any]] = []
        self.beat = asyncio.Event()
        self.seq = 0
        self.expected_next: Any = None

    async def read(self) -> None:
        """Sorts what comes until the connection ends."""
        try:
            while True:
                opcode, payload = await self.peer.frame()
                if opcode == 10:
                    self.pongs.put_nowait(payload)
                elif opcode in (1, 2):
                    if opcode == 2:
                        self.faults.append("a binary message: text is what the specification's listings take")
                    self.sort(payload)
                elif opcode == 8:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended.set()

    def sort(self, payload: bytes) -> None:
        try:
            got = json.loads(payload)
            check_message(got)
            if got["type"] == "result":
                check_result(got["payload"])
        except (ValueError, Broken) as error:
            self.faults.append(str(error))
            return
        match got["type"]:
            case "heartbeat":
                self.heartbeats.append(got)
                self.beat.set()
            case "error":
                self.errors.append(got)
            case "submit":
                self.submits.append(got)
                self.asked.put_nowait(got)
            case _:  # a result
                answer = self.answers.pop(got["payload"]["packet_id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(got)

    async def submit(self, packet: dict[str, Any], text: bytes | None = None) -> dict[str, Any]:
        """The client's answer to a packet; `text`: the frame as it shall stand."""
        answer = self.answers[packet["id"]] = asyncio.get_running_loop().create_future()
        self.seq += 1
        await self.peer.send(message("submit", self.seq, packet) if text is None else text)
        got: dict[str, Any] = await self.within(answer, f"an answer to {packet['group']}:{packet['element']}")
        return got

    async def within(self, waiting: Any, what: str) -> Any:
        """What comes, or `Broken`."""
        ended = asyncio.ensure_future(self.ended.wait())
        wanted = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({wanted, ended}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            raise Broken(
                "the client closed the connection"
                if self.ended.is_set()
                else f"{what} did not come within {PATIENCE:g} s"
            )
        finally:
            wanted.cancel()
            ended.cancel()

    async def next(self) -> dict[str, Any]:
        """The client's next question; it must tell what it was answered last."""
        asked: dict[str, Any] = await self.within(
            self.asked.get(), f"df:{NEXT} with {json.dumps(self.expected_next)} as data"
        )
        packet = asked["payload"]
        address = f"{packet.get('group')}:{packet.get('element')}"
        need(address == f"df:{NEXT}", f"expected a submit of df:{NEXT}, got {address}")
        got = packet.get("data")
        need(got == self.expected_next, f"expected {json.dumps(self.expected_next)} to be told, got {json.dumps(got)}")
        return asked

    async def answer(self, asked: dict[str, Any], data: Any, *, seq: int | None = None) -> None:
        """Answers a question."""
        self.expected_next = data
        at = asked["seq"] if seq is None else seq
        await self.peer.send(message("result", at, success(asked["payload"]["id"], data)))

    def handles_nothing(self) -> bool:
        """Has it said so?"""
        return bool(self.heartbeats) and self.heartbeats[0]["payload"].get("capabilities") == []


RULES: Rules[Session] = Rules()
rule = RULES.rule


# ---------------------------------------------------------------- the connection


@rule("dials /packetflow/v1", "spec, usage example")
async def _(session: Session) -> None:
    path = session.path.partition("?")[0]
    need(path == "/packetflow/v1", f"expected /packetflow/v1, got {path}")


@rule("does without compression", "docs/protocol.md, compression")
async def _(session: Session) -> None:
    # it may offer it; declined, it must go on without, which every rule below shows
    need(not session.ended.is_set(), "it closed the connection when compression was not accepted")


@rule("sends a heartbeat at once, with a timestamp", "spec, TypeScript listing", "should")
async def _(session: Session) -> None:
    await session.within(session.beat.wait(), "a heartbeat")
    stamp = session.heartbeats[0]["payload"].get("timestamp")
    need(isinstance(stamp, int | float), f"expected a timestamp in ms, got {stamp!r}")
    need(abs(stamp - now()) < 86_400_000, f"expected ms since 1970, got {stamp}")


@rule("says what it handles, in heartbeats or in the URL", "docs/protocol.md, heartbeat", "should")
async def _(session: Session) -> None:
    keys = session.heartbeats[0]["payload"].get("capabilities") if session.heartbeats else None
    if keys is None and "handles=" not in session.path:
        raise Broken("it does neither: a gateway has to try it")
    if keys is not None:
        need(
            isinstance(keys, list) and all(isinstance(key, str) for key in keys), f"expected a list of keys, got {keys}"
        )


@rule("answers a ping with its own payload", "RFC 6455, 5.5.3")
async def _(session: Session) -> None:
    await session.peer.send(b"are you there?", opcode=9)
    got = await session.within(session.pongs.get(), "a pong")
    need(got == b"are you there?", f"expected the ping's payload, got {got!r}")


# ---------------------------------------------------------------- handling


@rule("handles a packet: a result with its id, and the submit's seq or 0", "spec, core types")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    got = await session.submit(new(ECHO, "hello"))
    payload = got["payload"]
    need(payload["status"] == "success", f"expected a success, got {payload.get('error')}")
    need(payload.get("data") == "hello", f"expected the data of the packet, got {payload.get('data')!r}")
    need(got["seq"] in (0, session.seq), f"expected the seq {session.seq} of the submit, or 0, got {got['seq']}")


@rule("data of every JSON type comes back as it went", "spec 1, packet wire format")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    for value in VALUES:
        got = (await session.submit(new(ECHO, value)))["payload"].get("data")
        exact = json.dumps(got) == json.dumps(value)
        # a language whose numbers are doubles is right in its own terms
        need(exact or (value == 2**53 + 1 and got == 2**53), f"{value!r} came back as {got!r}")


@rule("takes packets however they are written", "spec 1, packet wire format")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    wrong = []
    for vector in vectors("valid"):
        expected = vector["decodes"]["payload"]
        if vector["decodes"]["type"] != "submit" or expected["group"] != "df" or len(expected["id"]) < 36:
            continue
        packet_id = str(uuid.uuid4())
        text = vector["frame"]
        for name, value in (("id", packet_id), ("element", ECHO)):
            text = text.replace(json.dumps(expected[name], ensure_ascii=False), json.dumps(value), 1)
        got = (await session.submit(new(ECHO, id=packet_id), text.encode()))["payload"]
        if got["status"] != "success" or not _same(got.get("data"), expected.get("data")):
            wrong.append(vector["name"])
    need(not wrong, f"{len(wrong)} were answered with something else than their data: {'; '.join(wrong[:4])}")


def _same(got: Any, expected: Any) -> bool:
    if isinstance(expected, int) and abs(expected) > 2**53:
        return isinstance(got, int | float) and float(got) == float(expected)
    return bool(got == expected)


@rule("an element that it does not handle is PF001, as a result", "spec, both listings")
async def _(session: Session) -> None:
    payload = (await session.submit(new("nobody.has.this")))["payload"]
    need(payload["status"] == "error", "expected PF001, got a success")
    need(payload["error"]["code"] == "PF001", f"expected PF001, got {payload['error']}")


@rule("a handler's failure is PF500, with its message", "spec, both listings")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    payload = (await session.submit(new(FAIL)))["payload"]
    need(payload["status"] == "error", "expected PF500, got a success")
    need(payload["error"]["code"] == "PF500", f"expected PF500, got {payload['error']}")
    need("on purpose" in payload["error"]["message"], f'expected the message "on purpose", got {payload["error"]}')


@rule("many packets at once are all answered", "spec, protocol guarantees: backpressure")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    packets = [new(ECHO, n) for n in range(200)]
    answers = await asyncio.gather(*(session.submit(packet) for packet in packets))
    wrong = [n for n, got in enumerate(answers) if got["payload"].get("data") != n]
    need(not wrong, f"{len(wrong)} of 200 came back with another's data")


@rule("a message in fragments is one message", "RFC 6455, 5.4")
async def _(session: Session) -> None:
    if session.handles_nothing():
        raise Skipped("it handles nothing")
    packet = new(ECHO, "in pieces")
    answer = session.answers[packet["id"]] = asyncio.get_running_loop().create_future()
    whole = message("submit", 900, packet)
    send = session.peer.send
    await send(whole[:9], fin=False)
    await send(b"", opcode=9)
    await send(whole[9:30], opcode=0, fin=False)
    await send(whole[30:], opcode=0)
    got = await session.within(answer, "an answer to a packet in three fragments")
    need(got["payload"].get("data") == "in pieces", f"expected the data of the packet, got {got['payload']}")


@rule("heartbeats, with whatever they hold, are not answered", "spec, protocol guarantees: heartbeats")
async def _(session: Session) -> None:
    beats, errors = len(session.heartbeats), len(session.errors)
    extended = {
        "timestamp": now(),
        "reactor": "gateway",
        "capabilities": [],
        "window": 64,
        "load": 0.5,
        "ext": ["cancel"],
    }
    for payload in ({"timestamp": now()}, extended, extended | {"mood": ["fine"]}):
        session.seq += 1
        await session.peer.send(message("heartbeat", session.seq, payload))
    await session.submit(new("nobody.has.this"))
    need(len(session.heartbeats) == beats, "a heartbeat was answered with a heartbeat")
    need(len(session.errors) == errors, f"a heartbeat was answered with an error: {session.errors[-1:]}")


# ---------------------------------------------------------------- submitting


@rule("submits a packet", "spec 1, packet wire format")
async def _(session: Session) -> None:
    asked = await session.next()
    packet = asked["payload"]
    need(asked["seq"] >= 1, f"expected a seq of 1 or more in a submit, got {asked['seq']}")
    need(str(packet.get("version", "")).startswith("1."), f"expected the version 1.0, got {packet.get('version')!r}")
    need(isinstance(packet.get("id"), str) and packet["id"], f"expected an id, got {packet.get('id')!r}")
    priority = packet.get("priority")
    need(priority in (None, *range(1, 11)), f"expected a priority of 1 to 10, got {priority!r}")
    await session.answer(asked, "with its seq")


@rule("takes a result that is written otherwise", "spec 2, message frame")
async def _(session: Session) -> None:
    asked = await session.next()
    session.expected_next = "in another order"
    payload = {"status": "success", "duration_ms": 1, "colour": ["red"], "error": None, "data": "in another order"}
    text = {
        "more": 1,
        "payload": payload | {"packet_id": asked["payload"]["id"]},
        "seq": asked["seq"],
        "type": "result",
    }
    await session.peer.send(json.dumps(text, indent=2).encode())


@rule("takes an error for what it is", "spec, core types")
async def _(session: Session) -> None:
    asked = await session.next()
    session.expected_next = "PF418"
    refusal = failure(asked["payload"]["id"], "PF418", "of a code that nobody knows")
    refusal["error"]["details"] = {"kettle": True}
    await session.peer.send(message("result", asked["seq"], refusal))


@rule("a result that it did not ask for does no harm", "docs/protocol.md, late and unasked results")
async def _(session: Session) -> None:
    asked = await session.next()
    await session.peer.send(message("result", 987_654, success(str(uuid.uuid4()), "nobody's")))
    await session.peer.send(message("error", 987_655, {"code": "PF400", "message": "nobody's"}))
    await session.answer(asked, "after a stray one")


@rule("a heartbeat with the seq of its submit is not an answer", "spec, Elixir listing")
async def _(session: Session) -> None:
    asked = await session.next()
    await session.peer.send(message("heartbeat", asked["seq"], {"timestamp": now()}))
    await session.answer(asked, "after a heartbeat")


@rule("of two answers the first counts", "spec, core types")
async def _(session: Session) -> None:
    asked = await session.next()
    await session.answer(asked, "first")
    await session.peer.send(message("result", asked["seq"], success(asked["payload"]["id"], "second")))


@rule("a packet of its own comes back to it while it waits", "spec, usage examples", "should")
async def _(session: Session) -> None:
    asked = await session.next()
    if not session.handles_nothing():
        got = await session.submit(new(ECHO, "meanwhile"))
        need(got["payload"].get("data") == "meanwhile", f"expected an answer meanwhile, got {got['payload']}")
    await session.answer(asked, "meanwhile")


@rule("an answer with seq 0 finds its submit by packet_id", "docs/protocol.md, which submit", "should")
async def _(session: Session) -> None:
    asked = await session.next()
    await session.answer(asked, "with seq 0", seq=0)
    try:
        asked = await session.next()
    except Broken:
        # a listing looks up by seq alone; what follows must not hang on it
        await session.answer(asked, "with seq 0")
        raise Broken("it was not found: the listings behave so, and need a gateway that repeats their seq") from None
    await session.answer(asked, "done")


@rule("ids and seqs of submits are not used twice", "spec, TypeScript listing")
async def _(session: Session) -> None:
    ids = [asked["payload"].get("id") for asked in session.submits]
    seqs = [asked["seq"] for asked in session.submits]
    need(len(set(ids)) == len(ids), f"an id came twice among {len(ids)} submits")
    need(seqs == sorted(set(seqs)), f"expected growing seqs, got {seqs[:12]}")


@rule("every message was valid", "spec 2, message frame")
async def _(session: Session) -> None:
    need(not session.faults, f"{len(session.faults)} were not: {'; '.join(session.faults[:3])}")


@rule("masks what it sends", "RFC 6455, 5.3")
async def _(session: Session) -> None:
    need(session.peer.masked, "a frame came without a mask")


async def check_client(
    endpoint: str = "ws://127.0.0.1:0/packetflow/v1",
    *,
    timeout: float = 60.0,
    on_listening: Any = None,
) -> AsyncIterator[Outcome]:
    """Listens at `endpoint`, and gives what became of each rule with the first client that comes.

    `on_listening(url)` is called once it listens; `timeout`: seconds to wait for
    the client. The client's part is in this module's docstring. Raises TimeoutError
    if none comes.
    """
    target = parse_endpoint(endpoint)
    if target.secure:
        raise ValueError(f"endpoint {endpoint!r}: expected ws://")
    arrived: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
    reading: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(reader, writer)
        try:
            session.path, session.headers = await accept_handshake(reader, writer)
        except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.close()
            return
        if arrived.done():
            writer.close()
            return
        reading.append(asyncio.ensure_future(session.read()))
        await session.peer.send(message("heartbeat", 1, {"timestamp": now()}))
        session.seq = 1
        arrived.set_result(session)

    server = await asyncio.start_server(serve, target.host, target.port)
    try:
        port = server.sockets[0].getsockname()[1]
        if on_listening is not None:
            on_listening(f"ws://{target.host}:{port}/packetflow/v1")
        async with asyncio.timeout(timeout):
            session = await arrived
        # handlers may be announced a moment later
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await session.beat.wait()
        for one in RULES:
            yield await RULES.run(one, session)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await session.peer.send((1000).to_bytes(2, "big"), opcode=8)
            async with asyncio.timeout(1.0):
                await session.ended.wait()
    finally:
        server.close()
        for task in reading:
            task.cancel()
        if arrived.done() and not arrived.cancelled():
            arrived.result().peer.close()
