"""The conformance command passes what keeps to the protocol, and finds what does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from packetflow import Access, ConnectionLost, Gateway, Identity, Reactor, Role
from packetflow.cli import main
from packetflow.conformance import Outcome, check_client, check_server
from packetflow.conformance.wire import Peer, accept_handshake
from packetflow.gateway import hash_token


def broken(outcomes: list[Outcome]) -> set[str]:
    return {outcome.name for outcome in outcomes if outcome.passed is False}


# ---------------------------------------------------------------- servers


async def test_our_gateway_keeps_to_every_rule() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        outcomes = [outcome async for outcome in check_server(gateway.endpoint)]
    assert broken(outcomes) == set(), [outcome for outcome in outcomes if outcome.passed is False]
    assert [outcome.note for outcome in outcomes if outcome.passed is None] == ["no --token was given"]
    assert len(outcomes) >= 30


async def test_our_gateway_with_a_token() -> None:
    role = Role("peer", submit=("df:*",), handle=("df:*",))
    access = Access.of([role], [Identity("peer", "peer", tokens=(hash_token("a-token"),))])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as gateway:
        outcomes = [outcome async for outcome in check_server(gateway.endpoint, token="a-token")]
    assert [outcome for outcome in outcomes if outcome.passed is not True] == []


async def test_a_server_that_does_not_route_is_held_against_the_rest(gateway: Gateway) -> None:
    async with gateway:
        outcomes = [outcome async for outcome in check_server(gateway.endpoint, element="df:echo")]
    assert broken(outcomes) == set()
    assert sum(outcome.passed is None for outcome in outcomes) >= 15


async def test_nobody_there() -> None:
    with pytest.raises(ConnectionLost, match="cannot connect to ws://127.0.0.1:1/"):
        [outcome async for outcome in check_server("ws://127.0.0.1:1")]


Change = Callable[[dict[str, Any]], list[dict[str, Any]]]


@contextlib.asynccontextmanager
async def spoiled(endpoint: str, change: Change, opcode: int = 1) -> AsyncIterator[str]:
    """A proxy in front of a server: every message to the client is what `change` makes of it."""

    ways: list[asyncio.Future[None]] = []
    peers: list[Peer] = []

    async def out(near: Peer, far: Peer) -> None:
        while True:
            code, payload = await near.frame()
            await far.send(payload, opcode=code)

    async def back(near: Peer, far: Peer) -> None:
        while True:
            code, payload = await far.frame()
            for message in change(json.loads(payload)) if code == 1 else ():
                await near.send(json.dumps(message).encode(), opcode=opcode)
            if code != 1:
                await near.send(payload, opcode=code)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, _ = await accept_handshake(reader, writer)
        near = Peer(reader, writer, masks=False)
        far = await Peer.connect(endpoint, path=path)
        peers.extend((near, far))
        for way in (out(near, far), back(near, far)):
            ways.append(asyncio.ensure_future(way))
            ways[-1].add_done_callback(lambda _: (near.close(), far.close()))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/packetflow/v1"
    finally:
        server.close()
        for peer in peers:
            peer.close()
        # each ends with its connection
        await asyncio.gather(*ways, return_exceptions=True)


def with_payload(message: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [message | {"payload": message["payload"] | fields}]


def seq_zero(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [message | {"seq": 0}] if message["type"] == "result" else [message]


def no_duration(message: dict[str, Any]) -> list[dict[str, Any]]:
    message["payload"].pop("duration_ms", None)
    return [message]


def no_heartbeats(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [] if message["type"] == "heartbeat" else [message]


def answers_twice(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [message, message] if message["type"] == "result" else [message]


def another_code(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message["type"] == "result" and message["payload"]["status"] == "error":
        return with_payload(message, error={"code": "PF500", "message": "something"})
    return [message]


def doubles(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message["type"] == "result" and type(message["payload"].get("data")) is int:
        return with_payload(message, data=float(message["payload"]["data"]))
    return [message]


def error_frames(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message["type"] == "result" and message["payload"]["status"] == "error":
        return [message | {"type": "error", "payload": message["payload"]["error"]}]
    return [message]


@pytest.mark.parametrize(
    ("change", "opcode", "expected"),
    [
        (seq_zero, 1, "a packet ends in one result with its id, the submit's seq and a duration"),
        (no_duration, 1, "a packet ends in one result with its id, the submit's seq and a duration"),
        (no_heartbeats, 1, "a heartbeat comes at once, with a timestamp"),
        (answers_twice, 1, "of two answers the first counts, and only one is passed on"),
        (another_code, 1, "a version of another major is PF426"),
        (doubles, 1, "data of every JSON type comes back as it went"),
        (error_frames, 1, "an element that nobody handles is PF001, as a result"),
        (lambda message: [message], 2, "messages are text, and have type, seq and payload"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:40],
)
async def test_what_is_wrong_with_a_server_is_found(
    change: Change, opcode: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packetflow.conformance.rules.PATIENCE", 0.15)
    monkeypatch.setattr("packetflow.conformance.server.PATIENCE", 0.15)
    from packetflow.conformance.server import RULES, Session

    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway,
        spoiled(gateway.endpoint, change, opcode) as endpoint,
    ):
        session = Session(endpoint, None, None, None)
        (rule,) = [rule for rule in RULES if rule.name == expected]
        outcome = await RULES.run(rule, session)
    assert outcome.passed is False
    assert outcome.note


# ---------------------------------------------------------------- clients


async def outcomes_for(client: Callable[[str], Any]) -> list[Outcome]:
    """The outcomes for a client: a coroutine function of the URL to dial."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def dial() -> None:
        await client(await listening)

    task = asyncio.ensure_future(dial())
    try:
        return [outcome async for outcome in check_client(on_listening=listening.set_result, timeout=5)]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            await task


async def our_client(url: str) -> None:
    def fail(data: Any) -> None:
        raise ValueError("on purpose")

    reactor = Reactor(url, reconnect=False)
    reactor.register("df", "conformance.echo", lambda data: data)
    reactor.register("df", "conformance.fail", fail)
    async with reactor:
        told: Any = None
        while told != "done":
            result = await reactor.submit({"group": "df", "element": "conformance.next", "data": told})
            told = result.data if result.ok else result.error["code"]


async def test_our_reactor_keeps_to_every_rule() -> None:
    outcomes = await outcomes_for(our_client)
    assert [outcome for outcome in outcomes if outcome.passed is not True] == []
    assert len(outcomes) >= 20


async def bare_client(url: str, **faults: Any) -> None:
    """A client by hand, with what a test wants to be wrong."""
    peer = await Peer.connect(url)
    try:
        await faulty(peer, faults)
    finally:
        peer.close()


async def faulty(peer: Peer, faults: dict[str, Any]) -> None:
    seq = 1

    async def send(kind: str, at: int, payload: dict[str, Any]) -> None:
        await peer.send({"type": kind, "seq": at, "payload": payload}, **faults.get("frame", {}))

    beat = {"timestamp": 0 if "timestamp" in faults else 1.8e12, "capabilities": ["df:conformance.echo"]}
    await send("heartbeat", seq, beat)
    packet_id = "first"
    question = {
        "version": "1.0",
        "id": packet_id,
        "group": "df",
        "element": "conformance.next",
        "data": None,
        "priority": 5,
    }
    await send("submit", 2, question)
    while True:
        opcode, payload = await peer.frame()
        if opcode == 9 and "deaf" not in faults:
            await peer.send(payload, opcode=10)
        if opcode != 1:
            continue
        try:
            got = json.loads(payload)
        except ValueError:
            continue  # a fragment
        if got["type"] == "submit":
            packet = got["payload"]
            result: dict[str, Any] = {"packet_id": packet["id"], "status": "success", "data": packet.get("data")}
            if packet["element"] != "conformance.echo" and "eager" not in faults:
                result = {"packet_id": packet["id"], "status": "error", "error": {"code": "PF001", "message": "none"}}
            await send("result", faults.get("seq", got["seq"]), result | {"duration_ms": faults.get("duration", 0)})
        elif got["type"] == "heartbeat" and "answers" in faults:
            await send("heartbeat", 3, beat)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({"seq": 5}, "handles a packet: a result with its id, and the submit's seq or 0"),
        ({"duration": -1}, "every message was valid"),
        ({"duration": "soon"}, "every message was valid"),
        ({"eager": True}, "an element that it does not handle is PF001, as a result"),
        ({"deaf": True}, "answers a ping with its own payload"),
        ({"answers": True}, "heartbeats, with whatever they hold, are not answered"),
        ({"timestamp": True}, "sends a heartbeat at once, with a timestamp"),
        ({"frame": {"mask": None}}, "masks what it sends"),
        ({"frame": {"opcode": 2}}, "every message was valid"),
        ({}, "takes a result that is written otherwise"),
    ],
    ids=str,
)
async def test_what_is_wrong_with_a_client_is_found(
    faults: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packetflow.conformance.client.PATIENCE", 0.02)
    outcomes = await outcomes_for(lambda url: bare_client(url, **faults))
    assert expected in broken(outcomes)


async def test_no_client_comes() -> None:
    with pytest.raises(TimeoutError):
        [outcome async for outcome in check_client(timeout=0.05)]


# ---------------------------------------------------------------- the command


@pytest.fixture
def log_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets up the log of all of it."""
    handlers = logging.getLogger().handlers
    before = [(handler, list(handler.filters), handler.formatter) for handler in handlers]
    yield
    for handler, filters, formatter in before:
        handler.filters[:] = filters
        handler.setFormatter(formatter)


def test_the_command_says_that_nobody_is_there(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["conformance", "ws://127.0.0.1:1"])
    assert done.exit_code == 2
    assert "cannot connect to ws://127.0.0.1:1/" in done.output


def test_the_command_says_that_no_client_came(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["conformance", "--listen", "ws://127.0.0.1:0", "--wait", "0.05"])
    assert done.exit_code == 2
    assert "no client came within 0.05 s" in done.output
