"""The conformance command passes what keeps to the protocol, and finds what does not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from packetflow import Access, ConnectionLost, Gateway, Identity, Reactor, Role
from packetflow.cli import main
from packetflow.conformance import Outcome, check_client, check_server
from packetflow.conformance.rules import Broken, Rules, Skipped, expect
from packetflow.conformance.wire import Peer, accept_handshake, frame, messages, split
from packetflow.gateway import hash_token
from tests.helpers import free_port, server_context


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


def urgent(message: dict[str, Any]) -> list[dict[str, Any]]:
    return with_payload(message, priority=9) if message["type"] == "submit" else [message]


def closes(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message["type"] in ("result", "error"):
        raise ConnectionError  # the proxy ends the connection with the way back
    return [message]


def in_every_wrong_way() -> Change:
    """The first refusal does not come, the second is of another code, all others close the connection."""
    refusals = itertools.count(1)

    def change(message: dict[str, Any]) -> list[dict[str, Any]]:
        match next(refusals) if message["type"] in ("result", "error") else None:
            case 1:
                return []
            case 2:
                return [{"type": "error", "seq": 1, "payload": {"code": "PF500", "message": "something"}}]
            case None:
                return [message]
            case _:
                raise ConnectionError

    return change


async def played(endpoint: str, name: str) -> Outcome:
    """What becomes of one rule at a server."""
    from packetflow.conformance.server import RULES, Session

    (rule,) = [rule for rule in RULES if rule.name == name]
    return await RULES.run(rule, Session(endpoint, None, None, None))


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
        (urgent, 1, "every valid packet is taken and arrives as it was meant"),
        (closes, 1, "a message of one byte more than fits is refused, not fatal"),
        (lambda message: [message], 2, "messages are text, and have type, seq and payload"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:40],
)
async def test_what_is_wrong_with_a_server_is_found(
    change: Change, opcode: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packetflow.conformance.rules.PATIENCE", 0.15)
    monkeypatch.setattr("packetflow.conformance.server.PATIENCE", 0.15)
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway,
        spoiled(gateway.endpoint, change, opcode) as endpoint,
    ):
        outcome = await played(endpoint, expected)
    assert outcome.passed is False
    assert outcome.note


async def test_each_invalid_frame_is_told_with_what_became_of_it(hub: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packetflow.conformance.server.PATIENCE", 0.5)
    async with spoiled(hub.endpoint, in_every_wrong_way()) as endpoint:
        outcome = await played(endpoint, "frames that are not valid are refused, and the connection lives")
    assert outcome.passed is False
    for what in ("(no answer)", "(the connection was closed)", "(PF500, expected PF400)"):
        assert what in outcome.note


async def test_a_server_that_answers_twice_is_asked_on(hub: Gateway) -> None:
    """The second answer to one packet is not taken for that to the next."""
    async with spoiled(hub.endpoint, answers_twice) as endpoint:
        outcome = await played(endpoint, "a peer that announces nothing is asked, and its PF001 sends the packet on")
    assert outcome.passed is True, outcome.note


async def test_a_server_that_lets_nobody_handle_is_told_so() -> None:
    access = Access.of([], [], anonymous=Role("submitter", submit=("*:*",)))
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as gateway:
        outcome = await played(gateway.endpoint, "data of every JSON type comes back as it went")
        assert outcome.passed is False
        assert "do not reach it: PF001" in outcome.note
        # its own df:transform will do
        outcome = await played(gateway.endpoint, "df:tr means df:transform where nothing has that exact name")
        assert outcome.passed is True, outcome.note


async def test_what_a_server_does_not_offer_is_not_held_against_it(hub: Gateway) -> None:
    def change(message: dict[str, Any]) -> list[dict[str, Any]]:
        message["payload"].pop("ext", None)
        return [message]

    async with spoiled(hub.endpoint, change) as endpoint:
        outcome = await played(endpoint, "cancelling: the worker is told, and no answer follows")
    assert (outcome.passed, outcome.note) == (None, "the server does not list the extension `cancel`")


async def test_who_is_asked_for_what_it_has_not_says_so_while_it_waits(hub: Gateway) -> None:
    peer = await Peer.connect(hub.endpoint)  # announces nothing, so it may be asked for anything
    packet = {"version": "1.0", "id": "p", "group": "df", "element": "nobodys", "data": None, "priority": 5}
    await peer.send({"type": "submit", "seq": 1, "payload": packet})
    assert (await expect(peer, "result", packet_id="p"))["payload"]["error"]["code"] == "PF001"
    assert json.loads(peer.seen[-2][1])["type"] == "submit"
    peer.close()


async def test_nothing_that_comes_is_told_as_what_was_waited_for(hub: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packetflow.conformance.rules.PATIENCE", 0.01)
    peer = await Peer.connect(hub.endpoint)
    with pytest.raises(Broken, match="no result or error for packet p came within 0.01 s"):
        await expect(peer, "result", "error", packet_id="p")
    peer.close()


@pytest.mark.parametrize(
    ("error", "passed", "note"),
    [
        (None, True, ""),
        (Skipped("not asked for"), None, "not asked for"),
        (Broken("it is not"), False, "it is not"),
        (TimeoutError(), False, "nothing came in time"),
        (asyncio.IncompleteReadError(b"", 2), False, "the connection was closed"),
        (ConnectionResetError("gone"), False, "ConnectionResetError: gone"),
        (ValueError("no JSON"), False, "ValueError: no JSON"),
    ],
    ids=str,
)
async def test_errors_of_the_connection_are_the_peers(error: Exception | None, passed: bool | None, note: str) -> None:
    rules: Rules[None] = Rules()

    @rules.rule("something holds", "somewhere", "should")
    async def _(session: None) -> None:
        if error is not None:
            raise error

    outcomes = [await rules.run(rule, None) for rule in rules]
    assert outcomes == [Outcome("something holds", "somewhere", "should", passed, note)]


@pytest.mark.parametrize("mask", [None, b"\x00\x00\x00\x00", b"\x01\x02\x03\x04"])
def test_frames_are_split_as_they_were_joined(mask: bytes | None) -> None:
    payloads = [b"", b"[]", b'{"data":"%s"}' % (b"x" * 200), b'"%s"' % (b"x" * 70_000)]
    data = b"".join(frame(payload, 1 if payload else 9, mask=mask) for payload in payloads)
    assert split(data) == [(9, b""), *((1, payload) for payload in payloads[1:])]
    assert messages(data) == [json.loads(payload) for payload in payloads[1:]]


async def test_a_peer_reads_frames_of_every_length(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        for length in (1, 1000, 100_000):
            packet = {"version": "1.0", "id": f"p{length}", "group": "df", "element": "echo", "priority": 5}
            await peer.send({"type": "submit", "seq": length, "payload": packet | {"data": "x" * length}})
            assert (await peer.message("result"))["payload"]["data"] == "x" * length
        await peer.send(b"\x03\xe8", opcode=8)
        assert await peer.close_code() == 1000
        peer.close()


async def test_a_close_without_a_code_is_1005() -> None:
    async def client(url: str) -> None:
        peer = await Peer.connect(url)
        await peer.send(b"", opcode=8)
        peer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer)
        peer = Peer(reader, writer, masks=False)
        closed.set_result(await peer.close_code())
        peer.close()

    closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    await client(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert await closed == 1005
    server.close()


async def test_a_peer_trusts_whom_the_system_trusts_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    async with Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=context) as gateway:
        with pytest.raises(ssl.SSLCertVerificationError):
            await Peer.connect(gateway.endpoint)
        trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        peer = await Peer.connect(gateway.endpoint, ssl=trusting)
        assert peer.status == 101
        peer.close()


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
        await ask_until_done(reactor)


async def ask_until_done(reactor: Reactor) -> None:
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
    if "reticent" in faults:
        del beat["capabilities"]
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
            data = "altered" if "alters" in faults else packet.get("data")
            result: dict[str, Any] = {"packet_id": packet["id"], "status": "success", "data": data}
            if packet["element"] != "conformance.echo" and "eager" not in faults:
                result = {"packet_id": packet["id"], "status": "error", "error": {"code": "PF001", "message": "none"}}
            await send("result", faults.get("seq", got["seq"]), result | {"duration_ms": faults.get("duration", 0)})
        elif got["type"] == "heartbeat" and "answers" in faults:
            await send("heartbeat", 3, beat)
        elif got["type"] == "heartbeat" and "complains" in faults:
            await send("error", 3, {"code": "PF400", "message": "who asked?"})


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ({"seq": 5}, "handles a packet: a result with its id, and the submit's seq or 0"),
        ({"duration": -1}, "every message was valid"),
        ({"duration": "soon"}, "every message was valid"),
        ({"eager": True}, "an element that it does not handle is PF001, as a result"),
        ({"deaf": True}, "answers a ping with its own payload"),
        ({"answers": True}, "heartbeats, with whatever they hold, are not answered"),
        ({"complains": True}, "heartbeats, with whatever they hold, are not answered"),
        ({"reticent": True}, "says what it handles, in heartbeats or in the URL"),
        ({"alters": True}, "takes packets however they are written"),
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


async def test_a_client_that_handles_nothing_is_held_against_the_rest() -> None:
    async def client(url: str) -> None:
        async with Reactor(url, reconnect=False) as reactor:
            await ask_until_done(reactor)

    outcomes = await outcomes_for(client)
    assert broken(outcomes) == set()
    notes = [outcome.note for outcome in outcomes if outcome.passed is None]
    assert notes == ["it handles nothing"] * len(notes)
    assert len(notes) >= 5


async def test_a_client_may_say_in_its_url_what_it_handles() -> None:
    async def client(url: str) -> None:
        peer = await Peer.connect(url, path="/packetflow/v1?handles=df:conformance.echo")
        await peer.send({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1.8e12}})
        await peer.send(b"a ping is none of its business", opcode=9)
        await peer.message("heartbeat")
        peer.close()

    outcomes = {outcome.name: outcome for outcome in await outcomes_for(client)}
    assert outcomes["says what it handles, in heartbeats or in the URL"].passed is True
    assert outcomes["submits a packet"].note == "the client closed the connection"


async def test_a_client_that_finds_its_submits_by_seq_alone_is_told_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the listings do."""
    monkeypatch.setattr("packetflow.conformance.client.PATIENCE", 0.25)

    async def client(url: str) -> None:
        peer = await Peer.connect(url)
        try:
            await ask(peer)
        finally:
            peer.close()

    async def ask(peer: Peer) -> None:
        told: Any = None
        await peer.send({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1.8e12, "capabilities": []}})
        for seq in itertools.count(2):
            packet = {"version": "1.0", "id": str(seq), "group": "df", "element": "conformance.next", "data": told}
            await peer.send({"type": "submit", "seq": seq, "payload": packet})
            while (got := await peer.message("result"))["seq"] != seq:
                pass
            told = got["payload"]["data"] if got["payload"]["status"] == "success" else got["payload"]["error"]["code"]

    outcomes = {outcome.name: outcome for outcome in await outcomes_for(client)}
    found = outcomes["an answer with seq 0 finds its submit by packet_id"]
    assert (found.passed, found.level) == (False, "should")
    assert found.note.startswith("it was not found")
    assert outcomes["takes an error for what it is"].passed is True


async def test_the_first_who_shakes_hands_is_the_client() -> None:
    async def client(url: str) -> None:
        host, port = url.removeprefix("ws://").partition("/")[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /packetflow/v1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        peer = await Peer.connect(url)
        await peer.message("heartbeat")
        late = await Peer.connect(url)
        assert await late.close_code() == 1006
        late.close()
        visited.set()
        peer.close()

    visited = asyncio.Event()
    outcomes = await outcomes_for(client)
    assert visited.is_set()
    assert [outcome.passed for outcome in outcomes if outcome.name == "dials /packetflow/v1"] == [True]


async def test_a_client_is_waited_for_without_tls() -> None:
    with pytest.raises(ValueError, match="expected ws://"):
        [outcome async for outcome in check_client("wss://127.0.0.1:0")]


async def test_no_client_comes() -> None:
    with pytest.raises(TimeoutError):
        [outcome async for outcome in check_client(timeout=0.05)]


# ---------------------------------------------------------------- the command


def test_the_command_says_that_nobody_is_there(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["conformance", "ws://127.0.0.1:1"])
    assert done.exit_code == 2
    assert "cannot connect to ws://127.0.0.1:1/" in done.output


def test_the_command_says_that_no_client_came(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["conformance", "--listen", "ws://127.0.0.1:0", "--wait", "0.05"])
    assert done.exit_code == 2
    assert "no client came within 0.05 s" in done.output


def listened(client: Callable[[str], Any], *options: str) -> tuple[int, list[str]]:
    """The exit code and lines of the command that listens for this client."""
    url = f"ws://127.0.0.1:{free_port()}"

    async def dial() -> None:
        while True:
            try:
                return await client(url)
            except ConnectionError:  # it does not listen yet
                await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        dialling = pool.submit(asyncio.run, dial())
        done = CliRunner().invoke(main, ["conformance", "--listen", url, *options])
        dialling.result()
    return done.exit_code, done.output.splitlines()


async def goes_at_once(url: str) -> None:
    peer = await Peer.connect(url)
    await peer.message("heartbeat")
    peer.close()


def test_the_command_prints_a_table_and_a_verdict(log_as_it_was: None) -> None:
    code, lines = listened(goes_at_once)
    assert code == 1
    assert lines[0].startswith("listening on ws://127.0.0.1:")
    assert any(line.startswith("pass  dials /packetflow/v1") for line in lines)
    assert any(line.startswith("FAIL  answers a ping with its own payload") for line in lines)
    assert any(line.startswith("weak  sends a heartbeat at once") for line in lines)
    assert "      the client closed the connection" in lines
    assert lines[-1].startswith("does not keep to the protocol: ")


def test_the_command_prints_json_for_machines(log_as_it_was: None) -> None:
    async def client(url: str) -> None:
        async with Reactor(url, reconnect=False) as reactor:
            await ask_until_done(reactor)

    code, lines = listened(client, "--json")
    assert code == 0
    outcomes = [json.loads(line) for line in lines[1:]]
    assert all(outcome["passed"] in (True, None) for outcome in outcomes)
    assert sum(outcome["note"] == "it handles nothing" for outcome in outcomes) >= 5


def test_the_command_wants_an_element_with_its_group(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["conformance", "--element", "echo"])
    assert done.exit_code == 2
    assert "expected group:element" in done.output
