"""The rules for a server, played by two peers: one submits, one handles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl as ssl_module
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from packetflow.conformance.rules import (
    PATIENCE,
    Broken,
    Outcome,
    Rules,
    Skipped,
    check_message,
    expect,
    need,
    vectors,
)
from packetflow.conformance.wire import Peer
from packetflow.endpoint import parse_endpoint
from packetflow.errors import ConnectionLost

__all__ = ["check_server"]

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    10**15,
    2**53 + 1,
    1e-300,
    0.1,
    "",
    "".join(map(chr, range(32))) + '\x7f"\\/ é\u2028\ufeff日本\U0001f9ea\U0010ffff',
    [],
    {},
    [[], {"a": [None, {"b": {}}]}],
)


@dataclass
class Session:
    """What a check may use."""

    endpoint: str
    token: str | None
    element: str | None
    ssl: ssl_module.SSLContext | None

    async def connect(self, *, headers: str = "", handles: str | None = None, token: bool = True) -> Peer:
        """A connection. `handles`: announced in the URL, "" for nothing."""
        if token and self.token is not None:
            headers += f"Authorization: Bearer {self.token}\r\n"
        target = parse_endpoint(self.endpoint)
        path = target.path
        if handles is not None:
            path += ("&" if "?" in path else "?") + f"handles={handles}"
        async with asyncio.timeout(PATIENCE):
            return await Peer.connect(self.endpoint, headers=headers, path=path, ssl=self.ssl)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Peer]:
        """A peer that submits."""
        peer = await self.connect(handles="")
        try:
            need(peer.status == 101, f"the handshake was answered {peer.status}")
            yield peer
        finally:
            peer.close()

    @asynccontextmanager
    async def pair(self, window: int = 64) -> AsyncIterator[tuple[Peer, Peer, str]]:
        """A peer that submits, one that handles, at most `window` at once, and the element that only that one has."""
        if self.element is not None:
            raise Skipped("the peer that handles is the server's own: run without --element")
        element = f"conformance.{uuid.uuid4().hex[:12]}"
        worker = await self.connect(handles=f"df:{element}")
        try:
            need(worker.status == 101, f"the handshake was answered {worker.status}")
            capabilities = [f"df:{element}"]
            beat = {"timestamp": now(), "capabilities": capabilities, "window": window}
            await worker.send(message("heartbeat", 1, beat))
            async with self.client() as client:
                await self.until_routed(client, worker, element)
                yield client, worker, element
        finally:
            worker.close()

    async def until_routed(self, client: Peer, worker: Peer, element: str) -> None:
        """Returns once packets for the element reach the worker: its announcement may be on its way."""
        for attempt in range(20):
            packet = new(element)
            await client.send(message("submit", 1000 + attempt, packet))
            taken = asyncio.ensure_future(expect(worker, "submit", packet_id=packet["id"]))
            answered = asyncio.ensure_future(expect(client, "result", packet_id=packet["id"]))
            try:
                await asyncio.wait({taken, answered}, return_when=asyncio.FIRST_COMPLETED)
                if taken.done():
                    await worker.send(message("result", taken.result()["seq"], success(packet["id"], "ready")))
                    await answered
                    return
            finally:
                taken.cancel()
                answered.cancel()
            need(
                answered.result()["payload"]["error"]["code"] == "PF001",
                "a packet for an announced element was refused",
            )
            await asyncio.sleep(0.05)
        raise Broken(f"packets for an element that a peer announced (df:{element}) do not reach it: PF001")


RULES: Rules[Session] = Rules()
rule = RULES.rule

SPEC_PACKET = "spec 1, packet wire format"
SPEC_FRAME = "spec 2, message frame"
SPEC_ELEMENTS = "spec 4, standard elements"
SPEC_TYPES = "spec, core types"
SPEC_CODES = "spec, protocol guarantees: error codes"
SPEC_TIMEOUT = "spec, protocol guarantees: timeouts"
SPEC_BEAT = "spec, protocol guarantees: heartbeats"
SPEC_PRESSURE = "spec, protocol guarantees: backpressure"
LISTINGS = "spec, both listings"


def now() -> int:
    return int(time.time() * 1000)


def message(kind: str, seq: int, payload: Any) -> bytes:
    return json.dumps({"type": kind, "seq": seq, "payload": payload}).encode()


def new(element: str, data: Any = None, **fields: Any) -> dict[str, Any]:
    packet = {"version": "1.0", "id": str(uuid.uuid4()), "group": "df", "element": element, "data": data, "priority": 5}
    return packet | fields


def success(packet_id: str, data: Any = None) -> dict[str, Any]:
    return {"packet_id": packet_id, "status": "success", "data": data, "duration_ms": 0}


def failure(packet_id: str, code: str, text: str) -> dict[str, Any]:
    return {"packet_id": packet_id, "status": "error", "error": {"code": code, "message": text}, "duration_ms": 0}


async def outcome(client: Peer, packet: dict[str, Any], seq: int = 1) -> dict[str, Any]:
    """Submits, and gives the result."""
    await client.send(message("submit", seq, packet))
    payload: dict[str, Any] = (await expect(client, "result", packet_id=packet["id"]))["payload"]
    return payload


async def echo(client: Peer, worker: Peer, packet: dict[str, Any], seq: int = 1) -> dict[str, Any]:
    """Submits, answers with the data as it came, and gives the result."""
    await client.send(message("submit", seq, packet))
    taken = await expect(worker, "submit", packet_id=packet["id"])
    await worker.send(message("result", taken["seq"], success(packet["id"], taken["payload"].get("data"))))
    payload: dict[str, Any] = (await expect(client, "result", packet_id=packet["id"]))["payload"]
    return payload


def refused(payload: dict[str, Any], *codes: str) -> None:
    need(payload["status"] == "error", f"expected {' or '.join(codes)}, got a success")
    code = payload["error"]["code"]
    need(code in codes, f"expected {' or '.join(codes)}, got {code}: {payload['error']['message']}")


# ---------------------------------------------------------------- the connection


@rule("the handshake is that of RFC 6455", "RFC 6455, 4.2.2")
async def _(session: Session) -> None:
    peer = await session.connect()
    peer.close()
    need(peer.status == 101, f"expected 101 Switching Protocols, got {peer.status}")
    need(peer.accepted, "Sec-WebSocket-Accept does not answer Sec-WebSocket-Key")
    need("sec-websocket-extensions" not in peer.headers, "an extension was accepted that nobody offered")
    need("sec-websocket-protocol" not in peer.headers, "a subprotocol was chosen that nobody offered")


@rule("compression is declined", "docs/protocol.md, compression", "should")
async def _(session: Session) -> None:
    peer = await session.connect(headers="Sec-WebSocket-Extensions: permessage-deflate\r\n")
    peer.close()
    need("sec-websocket-extensions" not in peer.headers, "compression was accepted: a small bomb grows large")


@rule("a web page of another origin is kept out", "RFC 6455, 10.2", "should")
async def _(session: Session) -> None:
    peer = await session.connect(headers="Origin: https://attacker.example\r\n")
    peer.close()
    need(peer.status in (401, 403), f"expected 403, got {peer.status}: any page could use its visitor's gateway")


@rule("without its token a connection is refused", "docs/protocol.md, credentials")
async def _(session: Session) -> None:
    if session.token is None:
        raise Skipped("no --token was given")
    peer = await session.connect(token=False)
    peer.close()
    need(peer.status == 401, f"expected 401, got {peer.status}")


@rule("a ping is answered with its own payload", "RFC 6455, 5.5.3")
async def _(session: Session) -> None:
    async with session.client() as client:
        await client.send(b"are you there?", opcode=9)
        async with asyncio.timeout(PATIENCE):
            while (got := await client.frame())[0] != 10:
                pass
        need(got[1] == b"are you there?", f"expected the ping's payload, got {got[1]!r}")


@rule("a close is answered", "RFC 6455, 5.5.1")
async def _(session: Session) -> None:
    async with session.client() as client:
        await client.send((1000).to_bytes(2, "big"), opcode=8)
        async with asyncio.timeout(PATIENCE):
            code = await client.close_code()
        need(code in (1000, 1005), f"expected a close frame of 1000, got {code}")


@rule("a message in fragments is one message", "RFC 6455, 5.4")
async def _(session: Session) -> None:
    async with session.client() as client:
        packet = new("nobody.has.this")
        whole = message("submit", 1, packet)
        await client.send(whole[:20], fin=False)
        await client.send(whole[20:50], opcode=0, fin=False)
        await client.send(b"", opcode=9)
        await client.send(whole[50:], opcode=0)
        refused((await expect(client, "result", packet_id=packet["id"]))["payload"], "PF001", "PF403")


# ---------------------------------------------------------------- frames


@rule("a heartbeat comes at once, with a timestamp", SPEC_BEAT)
async def _(session: Session) -> None:
    async with session.client() as client:
        beat = await expect(client, "heartbeat")
        stamp = beat["payload"].get("timestamp")
        need(isinstance(stamp, int | float), f"expected a timestamp in ms, got {stamp!r}")
        need(abs(stamp - now()) < 86_400_000, f"expected ms since 1970, got {stamp}")


@rule("messages are text, and have type, seq and payload", SPEC_FRAME)
async def _(session: Session) -> None:
    async with session.client() as client:
        await outcome(client, new("nobody.has.this"))
        await client.send(b"not JSON")
        await expect(client, "error")
        for opcode, payload in client.seen:
            need(
                opcode == 1, "a message was sent as binary: the TypeScript listing may take it, the Elixir one does not"
            )
            check_message(json.loads(payload))


@rule("a heartbeat is not answered", SPEC_BEAT)
async def _(session: Session) -> None:
    async with session.client() as client:
        await expect(client, "heartbeat")
        await client.send(message("heartbeat", 1, {"timestamp": now()}))
        await client.send(message("heartbeat", 2, {"timestamp": now(), "what": ["nobody", "knows"]}))
        packet = new("nobody.has.this")
        await client.send(message("submit", 3, packet))
        got = await expect(client, "result", "heartbeat", "error")
        need(got["type"] == "result", f"a heartbeat was answered with {got['type']}")


@rule("frames that are not valid are refused, and the connection lives", SPEC_FRAME)
async def _(session: Session) -> None:
    plain = [vector for vector in vectors("invalid") if "strict" not in vector]
    await _refuses(session, plain)


@rule(
    "a key twice and lone surrogates are refused: two parsers could read two packets", "docs/protocol.md, a key twice"
)
async def _(session: Session) -> None:
    await _refuses(session, [vector for vector in vectors("invalid") if "strict" in vector])


async def _refuses(session: Session, frames: list[dict[str, Any]]) -> None:
    wrong = []
    for vector in frames:
        sent = bytes.fromhex(vector["hex"]) if "hex" in vector else vector["frame"].encode()
        async with session.client() as client:
            await expect(client, "heartbeat")
            is_answer = b'"type":"result"' in sent
            await client.send(sent)
            try:
                async with asyncio.timeout(PATIENCE):
                    if is_answer:  # to nobody's submit: what counts is that the connection lives
                        await outcome(client, new("nobody.has.this"), 9)
                        continue
                    got = await client.message("result", "error")
            except asyncio.IncompleteReadError:
                if "hex" not in vector:  # RFC 6455, 8.1: text that is not UTF-8 ends the connection
                    wrong.append(f"{vector['name']} (the connection was closed)")
                continue
            except TimeoutError:
                wrong.append(f"{vector['name']} (no answer)")
                continue
            payload = got["payload"]
            code = payload.get("code") if got["type"] == "error" else (payload.get("error") or {}).get("code")
            if code != vector["code"]:
                wrong.append(f"{vector['name']} ({code or 'taken'}, expected {vector['code']})")
    need(not wrong, f"{len(wrong)} of {len(frames)}: {'; '.join(wrong[:4])}{' ...' if len(wrong) > 4 else ''}")


@rule("every valid packet is taken and arrives as it was meant", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        wrong = []
        for place, vector in enumerate(vectors("valid")):
            if vector["decodes"]["type"] != "submit":
                continue
            expected = vector["decodes"]["payload"]
            if expected["group"] != "df" or expected.get("dependencies"):
                continue
            # the vector's own id and element would meet others' packets
            packet_id = str(uuid.uuid4())
            text = vector["frame"]
            for name, value in (("id", packet_id), ("element", element)):
                text = text.replace(json.dumps(expected[name], ensure_ascii=False), json.dumps(value), 1)
            if packet_id not in text or element not in text:
                continue
            await client.send(text.encode())
            got = (await expect(worker, "submit", "result", packet_id=packet_id))["payload"]
            # a timeout may shrink while the packet waits
            same = all(
                got.get(name) == value
                for name, value in expected.items()
                if name not in ("id", "element", "timeout_ms")
            )
            if not same:
                wrong.append(vector["name"])
            await worker.send(message("result", 0, success(packet_id, place)))
            await expect(client, "result", packet_id=packet_id)
        need(not wrong, f"{len(wrong)} arrive as other than what was sent: {'; '.join(wrong[:4])}")


@rule("a message of one byte more than fits is refused, not fatal", "docs/protocol.md, size", "should")
async def _(session: Session) -> None:
    async with session.client() as client:
        packet = new("nobody.has.this", "x" * (2 * 1024 * 1024))
        await client.send(message("submit", 1, packet))
        try:
            got = await expect(client, "result", "error")
        except asyncio.IncompleteReadError:
            raise Broken("the connection was closed") from None
        payload = got["payload"]
        code = payload.get("code") if got["type"] == "error" else (payload.get("error") or {}).get("code")
        need(code in ("PF413", "PF001"), f"expected PF413, got {code}")


# ---------------------------------------------------------------- outcomes


@rule("a packet ends in one result with its id, the submit's seq and a duration", SPEC_TYPES)
async def _(session: Session) -> None:
    if session.element is not None:
        group, _, element = session.element.partition(":")
        async with session.client() as client:
            packet = new(element, "hello", group=group)
            await client.send(message("submit", 77, packet))
            got = await expect(client, "result", packet_id=packet["id"])
            need(got["seq"] == 77, f"expected seq 77, got {got['seq']}")
            need(got["payload"]["status"] == "success", f"expected a success: {got['payload'].get('error')}")
        return
    async with session.pair() as (client, worker, element):
        packet = new(element, "hello")
        await client.send(message("submit", 77, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        await worker.send(message("result", taken["seq"], success(packet["id"], "HELLO")))
        got = await expect(client, "result", packet_id=packet["id"])
        need(
            got["seq"] == 77,
            f"expected the submit's seq 77, got {got['seq']}: the listings look a result up by its seq",
        )
        need(got["payload"].get("data") == "HELLO", f"expected the handler's data, got {got['payload'].get('data')!r}")


@rule("an element that nobody handles is PF001, as a result", SPEC_CODES)
async def _(session: Session) -> None:
    async with session.client() as client:
        refused(await outcome(client, new("nobody.has.this")), "PF001")


@rule("data of every JSON type comes back as it went", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        for value in VALUES:
            got = (await echo(client, worker, new(element, value))).get("data")
            need(json.dumps(got) == json.dumps(value), f"{value!r} came back as {got!r}")


@rule("a packet without data has null", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element)
        del packet["data"]
        got = await echo(client, worker, packet)
        need(got["status"] == "success" and got.get("data") is None, f"expected null, got {got}")


@rule("a handler's failure reaches the submitter, code and message", LISTINGS)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element)
        await client.send(message("submit", 1, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        await worker.send(message("result", taken["seq"], failure(packet["id"], "PF500", "out of beans")))
        got = (await expect(client, "result", packet_id=packet["id"]))["payload"]
        refused(got, "PF500")
        need(
            "out of beans" in got["error"]["message"],
            f"expected the handler's message, got {got['error']['message']!r}",
        )


@rule("an answer with seq 0 finds its submit by packet_id", LISTINGS)
async def _(session: Session) -> None:
    await _answered_with(session, lambda seq: 0)


@rule("an answer with another seq finds its submit by packet_id", LISTINGS, "should")
async def _(session: Session) -> None:
    await _answered_with(session, lambda seq: 123_456_789)


async def _answered_with(session: Session, seq_of: Any) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element)
        await client.send(message("submit", 5, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        await worker.send(message("result", seq_of(taken["seq"]), success(packet["id"], "found")))
        got = await expect(client, "result", packet_id=packet["id"])
        need(got["payload"].get("data") == "found", f"expected the answer, got {got['payload']}")
        need(got["seq"] == 5, f"expected the submit's seq 5, got {got['seq']}")


@rule("of two answers the first counts, and only one is passed on", SPEC_TYPES)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet, after = new(element), new(element)
        await client.send(message("submit", 1, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        for data in ("first", "second"):
            await worker.send(message("result", taken["seq"], success(packet["id"], data)))
        got = await expect(client, "result")
        need(got["payload"].get("data") == "first", f"expected the first answer, got {got['payload'].get('data')!r}")
        await client.send(message("submit", 2, after))
        taken = await expect(worker, "submit", packet_id=after["id"])
        await worker.send(message("result", taken["seq"], success(after["id"])))
        got = await expect(client, "result", "error")
        need(got["payload"].get("packet_id") == after["id"], "the second answer was passed on, too")


@rule("an answer to somebody else's packet counts for nothing", "docs/protocol.md, late and unasked results")
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element), session.client() as stranger:
        packet = new(element)
        await client.send(message("submit", 1, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        for seq in (taken["seq"], 0, 1):
            await stranger.send(message("result", seq, success(packet["id"], "forged")))
        await expect(stranger, "heartbeat")
        await outcome(stranger, new("nobody.has.this"), 2)  # the forged ones were read before this
        await worker.send(message("result", taken["seq"], success(packet["id"], "true")))
        got = (await expect(client, "result", packet_id=packet["id"]))["payload"]
        need(got.get("data") == "true", f"expected the answer of the peer that had it, got {got.get('data')!r}")


@rule("a packet whose worker is lost ends in PF502", "docs/protocol.md, error codes")
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element)
        await client.send(message("submit", 1, packet))
        await expect(worker, "submit", packet_id=packet["id"])
        worker.close()
        refused((await expect(client, "result", packet_id=packet["id"]))["payload"], "PF502", "PF503")


# ---------------------------------------------------------------- time, ids, dependencies


@rule("a packet that is not answered in time ends in PF408; a late answer is nobody's", SPEC_TIMEOUT)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element, timeout_ms=200)
        began = time.monotonic()
        await client.send(message("submit", 1, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        refused((await expect(client, "result", packet_id=packet["id"]))["payload"], "PF408")
        took = time.monotonic() - began
        need(0.15 <= took <= 1.5, f"expected PF408 after 0.2 s, it came after {took:.2f} s")
        await worker.send(message("result", taken["seq"], success(packet["id"], "late")))
        after = new(element)
        await echo(client, worker, after, 2)
        late = [payload for _, payload in client.seen if packet["id"].encode() in payload]
        need(len(late) == 1, f"expected one answer to the packet, got {len(late)}")


@rule("a version of another major is PF426", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.client() as client:
        refused(await outcome(client, new("nobody.has.this", version="2.0")), "PF426")


@rule("the same packet again is not run again; the same id for another is PF409", "docs/protocol.md, id")
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        packet = new(element, "once")
        await client.send(message("submit", 1, packet))
        taken = await expect(worker, "submit", packet_id=packet["id"])
        await client.send(message("submit", 2, packet))
        refused(await outcome(client, packet | {"data": "other"}, 3), "PF409")
        await worker.send(message("result", taken["seq"], success(packet["id"], "ran")))
        seqs = {(await expect(client, "result", packet_id=packet["id"]))["seq"] for _ in range(2)}
        need(seqs == {1, 2}, f"expected an answer to each of the two submits, got seqs {sorted(seqs)}")
        again = await outcome(client, packet, 4)
        need(again.get("data") == "ran", f"expected the remembered answer, got {again}")
        runs = sum(packet["id"].encode() in payload for _, payload in worker.seen)
        need(runs == 1, f"the packet was run {runs} times")


@rule("dependencies: after a success; PF424 after a failure, and at the deadline where one never came", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        first = new(element, "first")
        await echo(client, worker, first)
        got = await echo(client, worker, new(element, "second", dependencies=[first["id"]]), 2)
        need(got["status"] == "success", f"expected a success after a success, got {got}")
        failing = new(element)
        await client.send(message("submit", 3, failing))
        taken = await expect(worker, "submit", packet_id=failing["id"])
        await worker.send(message("result", taken["seq"], failure(failing["id"], "PF500", "no")))
        await expect(client, "result", packet_id=failing["id"])
        refused(await outcome(client, new(element, dependencies=[failing["id"]]), 4), "PF424")
        unknown = new(element, dependencies=[str(uuid.uuid4())], timeout_ms=200)
        refused(await outcome(client, unknown, 5), "PF424", "PF408")


@rule("a dependency is waited for", SPEC_PACKET)
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        first = new(element, "first")
        second = new(element, "second", dependencies=[first["id"]])
        await client.send(message("submit", 1, second))
        await client.send(message("submit", 2, first))
        taken = await expect(worker, "submit")
        need(taken["payload"]["id"] == first["id"], "a packet ran before what it depends on")
        await worker.send(message("result", taken["seq"], success(first["id"])))
        taken = await expect(worker, "submit")
        need(taken["payload"]["id"] == second["id"], "a packet did not run after what it depends on")


# ---------------------------------------------------------------- routing


@rule("a peer that announces nothing is asked, and its PF001 sends the packet on", LISTINGS)
async def _(session: Session) -> None:
    if session.element is not None:
        raise Skipped("the peer that handles is the server's own: run without --element")
    element = f"conformance.{uuid.uuid4().hex[:12]}"
    peers = [await session.connect() for _ in range(3)]
    try:
        client, lacking, having = peers
        asked = []

        async def answer(peer: Peer, has: bool) -> None:
            while True:
                taken = await peer.message("submit")
                packet_id = taken["payload"]["id"]
                if taken["payload"]["element"] != element:
                    has_it = False
                else:
                    has_it = has
                    asked.append(peer)
                payload = success(packet_id, "here") if has_it else failure(packet_id, "PF001", "No handler")
                await peer.send(message("result", 0, payload))

        async def first(peer: Peer, packet: dict[str, Any]) -> dict[str, Any]:
            # the submitter announces nothing either, so it may be asked as well
            await peer.send(message("submit", 1, packet))
            while True:
                got = await peer.message("result", "submit")
                if got["type"] == "submit":
                    await peer.send(message("result", 0, failure(got["payload"]["id"], "PF001", "No handler")))
                elif got["payload"]["packet_id"] == packet["id"]:
                    payload: dict[str, Any] = got["payload"]
                    return payload

        tasks = [asyncio.ensure_future(answer(lacking, False)), asyncio.ensure_future(answer(having, True))]
        try:
            for _ in range(4):
                async with asyncio.timeout(PATIENCE):
                    got = await first(client, new(element))
                need(got.get("data") == "here", f"expected the answer of the peer that has it, got {got}")
            need(asked.count(lacking) <= 1, "a peer that answered PF001 was asked again at once")
        finally:
            for task in tasks:
                task.cancel()
    finally:
        for peer in peers:
            peer.close()


@rule("a peer may handle what it submits", "spec, usage examples")
async def _(session: Session) -> None:
    if session.element is not None:
        raise Skipped("the peer that handles is the server's own: run without --element")
    element = f"conformance.{uuid.uuid4().hex[:12]}"
    peer = await session.connect(handles=f"df:{element}")
    try:
        packet = new(element, "self")
        await peer.send(message("heartbeat", 1, {"timestamp": now(), "capabilities": [f"df:{element}"]}))
        await peer.send(message("submit", 2, packet))
        taken = await expect(peer, "submit", "result", packet_id=packet["id"])
        need(taken["type"] == "submit", f"expected the packet back, got {taken['payload'].get('error')}")
        await peer.send(message("result", taken["seq"], success(packet["id"], "self")))
        got = (await expect(peer, "result", packet_id=packet["id"]))["payload"]
        need(got.get("data") == "self", f"expected its own answer, got {got}")
    finally:
        peer.close()


@rule("df:tr means df:transform where nothing has that exact name", SPEC_ELEMENTS, "should")
async def _(session: Session) -> None:
    if session.element is not None:
        raise Skipped("the peer that handles is the server's own: run without --element")
    worker = await session.connect(handles="df:transform")
    try:
        await worker.send(message("heartbeat", 1, {"timestamp": now(), "capabilities": ["df:transform"]}))
        async with session.client() as client:
            packet = new("tr", {"input": 1, "expression": "@"})
            await client.send(message("submit", 1, packet))
            taken = asyncio.ensure_future(expect(worker, "submit", packet_id=packet["id"]))
            answered = asyncio.ensure_future(expect(client, "result", packet_id=packet["id"]))
            try:
                await asyncio.wait({taken, answered}, return_when=asyncio.FIRST_COMPLETED)
                if taken.done():
                    await worker.send(message("result", taken.result()["seq"], success(packet["id"], "ok")))
                payload = (await answered)["payload"]
            finally:
                taken.cancel()
                answered.cancel()
            need(payload["status"] == "success", f"expected a success, got {payload.get('error')}")
    finally:
        worker.close()


@rule("the more urgent of two queued packets runs first", "spec 1, priority", "should")
async def _(session: Session) -> None:
    async with session.pair(window=1) as (client, worker, element):
        packets = [new(element, priority=priority) for priority in (5, 1, 10)]
        for seq, packet in enumerate(packets, 1):
            await client.send(message("submit", seq, packet))
        order = []
        for _ in packets:
            taken = await expect(worker, "submit")
            order.append(taken["payload"]["priority"])
            await asyncio.sleep(0.02)  # a second one may be on its way, if the window is not kept to
            await worker.send(message("result", taken["seq"], success(taken["payload"]["id"])))
        need(order == [5, 10, 1], f"expected the priorities 5, 10, 1 in this order, got {order}")


@rule("a peer is given no more packets at once than its window", SPEC_PRESSURE, "should")
async def _(session: Session) -> None:
    async with session.pair(window=4) as (client, worker, element):
        for seq in range(1, 21):
            await client.send(message("submit", seq, new(element)))
        done = 0
        while done < 20:
            held: list[dict[str, Any]] = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    while True:
                        held.append(await expect(worker, "submit"))
            need(held, f"only {done} of 20 packets came")
            need(len(held) <= 4, f"{len(held)} packets at once, the window is 4")
            for taken in held:
                await worker.send(message("result", taken["seq"], success(taken["payload"]["id"])))
            done += len(held)


@rule("cancelling: the worker is told, and no answer follows", "docs/protocol.md, ext cancel", "should")
async def _(session: Session) -> None:
    async with session.pair() as (client, worker, element):
        beat = await expect(client, "heartbeat") if not client.seen else json.loads(client.seen[0][1])
        extensions = beat["payload"].get("ext") or [] if beat["type"] == "heartbeat" else []
        if "cancel" not in extensions:
            raise Skipped("the server does not list the extension `cancel`")
        for peer, capabilities in ((client, []), (worker, [f"df:{element}"])):
            extended = {"timestamp": now(), "capabilities": capabilities, "ext": ["cancel"]}
            await peer.send(message("heartbeat", 50, extended))
        await echo(client, worker, new(element), 51)
        packet = new(element)
        await client.send(message("submit", 52, packet))
        await expect(worker, "submit", packet_id=packet["id"])
        withdrawal = {"code": "PF499", "message": "cancelled", "packet_id": packet["id"]}
        await client.send(message("error", 52, withdrawal))
        told = await expect(worker, "error")
        need(told["payload"].get("code") == "PF499", f"expected PF499, got {told['payload']}")
        await echo(client, worker, new(element), 53)
        answers = [payload for _, payload in client.seen if packet["id"].encode() in payload]
        need(not answers, f"a cancelled packet was answered: {answers[:1]}")


async def check_server(
    endpoint: str,
    *,
    token: str | None = None,
    element: str | None = None,
    ssl: ssl_module.SSLContext | None = None,
) -> AsyncIterator[Outcome]:
    """Plays clients and workers against the server at `endpoint`, and gives what became of each rule.

    `element`: a ``group:element`` of the server's own that answers with success, for
    servers that do not route between their peers: what needs a handling peer is
    left out then. `token`: a bearer token. Raises `ConnectionLost` if nobody answers.
    """
    session = Session(endpoint, token, element, ssl)
    try:
        (await session.connect()).close()
    except (OSError, asyncio.IncompleteReadError) as error:
        raise ConnectionLost(f"cannot connect to {parse_endpoint(endpoint).url}: {error}") from error
    for one in RULES:
        yield await RULES.run(one, session)
