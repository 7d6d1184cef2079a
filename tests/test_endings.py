"""Endings: whatever is cancelled, stopped, killed or lost leaves nothing behind, and is over in time."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shlex
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import packetflow
from packetflow import Gateway, Reactor
from packetflow.conformance.wire import Peer, accept_of
from packetflow.endings import Ending, within
from packetflow.endpoint import parse_endpoint
from packetflow.gateway import Template, processes

CLOSE = b"\x88\x02" + struct.pack(">H", 1001)


class Listener:
    """A server of bare TCP: what comes after a connection is up to `play`; it counts, and knows who is connected."""

    def __init__(self, play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self.play = play
        self.made = 0
        self.open = 0
        self.changed = asyncio.Condition()
        self.endpoint = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        self.open += 1
        await self._tell()
        try:
            await self.play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self.open -= 1
            await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)


@asynccontextmanager
async def listening(
    play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], **options: Any
) -> AsyncIterator[Listener]:
    listener = Listener(play)
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0, **options)
    scheme = "wss" if options else "ws"
    listener.endpoint = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/packetflow/v1"
    try:
        yield listener
    finally:
        server.close()
        await listener.until(lambda: listener.open == 0)


async def accept_handshake(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, then: bytes = b"", when: asyncio.Event | None = None
) -> None:
    """Answers 101, with `then` in the same segment, after `when`."""
    head = await reader.readuntil(b"\r\n\r\n")
    key = head.lower().partition(b"sec-websocket-key:")[0]
    asked = head[len(key) :].partition(b":")[2].partition(b"\r\n")[0].strip().decode()
    if when is not None:
        await when.wait()
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_of(asked)}\r\n\r\n".encode()
        + then
    )
    await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing."""
    while await reader.read(65536):
        pass


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends 101, and nothing after it."""
    await accept_handshake(reader, writer)
    await silent(reader, writer)


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    return server, ssl.create_default_context(cafile=str(tmp_path / "cert"))


@pytest.fixture
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop was told that nobody handled; none, at the end."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context))
    yield told
    loop.set_exception_handler(None)
    # a gateway's own TLS says that a client left, before anybody could ask it not to
    assert [context for context in told if context["message"] != "SSL handshake failed"] == []


async def turns(number: int) -> None:
    """So many turns of the loop."""
    for _ in range(number):
        await asyncio.sleep(0)


# -- a start that is cancelled


@pytest.mark.parametrize("play", [silent, mute])
async def test_a_start_cancelled_at_any_moment_leaves_no_connection(
    play: Any, complaints: list[dict[str, Any]]
) -> None:
    async with listening(play) as listener:
        reactor = Reactor(listener.endpoint)
        for number in range(30):
            starting = asyncio.create_task(reactor.start())
            await turns(number)
            starting.cancel()
            try:
                await starting
            except asyncio.CancelledError:
                pass
            else:
                await reactor.stop()
            assert not reactor.connected
            assert reactor._dialling is None
            await listener.until(lambda: listener.open == 0)


async def test_an_answer_that_comes_after_the_cancelling_connects_nothing(complaints: list[dict[str, Any]]) -> None:
    answer = asyncio.Event()
    after: list[bytes] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer, when=answer)
        after.append(await reader.read())

    async with listening(late) as listener:
        reactor = Reactor(listener.endpoint, name="late")
        reactor.register("df", "echo", lambda data: data)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reactor.start()
        answer.set()
        await listener.until(lambda: listener.open == 0)
        assert after in ([], [b""])  # it announced nothing there
        assert not reactor.connected


async def test_a_cancelled_start_may_be_made_up_for(gateway: Gateway, complaints: list[dict[str, Any]]) -> None:
    async with gateway:
        reactor = Reactor(gateway.endpoint, name="r")
        reactor.register("df", "mine", lambda data: data)
        for number in range(20):
            starting = asyncio.create_task(reactor.start())
            await turns(number)
            starting.cancel()
            try:
                await starting
            except asyncio.CancelledError:
                await reactor.start()
            async with asyncio.timeout(10):
                while gateway.connections > 1:  # the gateway has yet to hear that the first has gone
                    await asyncio.sleep(0)
            assert await reactor.call("df", "mine", number) == number
            assert await reactor.call("df", "echo", number) == number
            await reactor.stop()
        async with asyncio.timeout(10):
            while gateway.connections:
                await asyncio.sleep(0)


async def test_a_start_cancelled_in_the_tls_handshake_leaves_no_connection(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], complaints: list[dict[str, Any]]
) -> None:
    async with listening(silent) as listener:  # it never answers the ClientHello
        reactor = Reactor(listener.endpoint.replace("ws:", "wss:"), ssl=contexts[1])
        for number in range(20):
            starting = asyncio.create_task(reactor.start())
            await turns(number)
            if number > 10:
                await listener.until(lambda: listener.open == 1)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await listener.until(lambda: listener.open == 0)


async def test_a_start_under_tls_cancelled_at_any_moment_leaves_no_connection(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], complaints: list[dict[str, Any]]
) -> None:
    gateway = Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=contexts[0])
    async with gateway:
        reactor = Reactor(gateway.endpoint, ssl=contexts[1])
        for number in range(30):
            starting = asyncio.create_task(reactor.start())
            await turns(number)
            starting.cancel()
            try:
                await starting
            except asyncio.CancelledError:
                await reactor.start()
            await reactor.stop()
        async with asyncio.timeout(10):
            while gateway.connections:
                await asyncio.sleep(0)


async def test_the_handshake_timeout_holds_for_the_whole_dialling(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with listening(silent) as listener:
        for scheme in ("ws", "wss"):
            reactor = Reactor(listener.endpoint.replace("ws:", f"{scheme}:"), ssl=contexts[1], handshake_timeout=0.05)
            with pytest.raises(packetflow.ConnectionLost, match=r"no answer within 0\.05 s"):
                await reactor.start()
            await listener.until(lambda: listener.open == 0)


async def test_a_reactor_cannot_be_started_while_it_starts() -> None:
    async with listening(silent) as listener:
        reactor = Reactor(listener.endpoint)
        starting = asyncio.create_task(reactor.start())
        await listener.until(lambda: listener.open == 1)
        with pytest.raises(RuntimeError, match="started already"):
            await reactor.start()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


# -- one dialling at a time


async def test_a_gateway_that_closes_at_once_is_dialled_later_and_later() -> None:
    """A 101 and a Close in one segment, again and again: one dialling at a time, with growing delays."""
    closing = False

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if closing:
            await accept_handshake(reader, writer, CLOSE)
        else:
            await accept_handshake(reader, writer)
            await gone.wait()

    gone = asyncio.Event()
    async with listening(closes) as listener, Reactor(listener.endpoint) as reactor:
        closing = True
        gone.set()
        began = time.monotonic()
        await listener.until(lambda: listener.made >= 5)
        assert time.monotonic() - began > 0.2 * (0.05 + 0.1 + 0.2 + 0.4)
        assert listener.open <= 1
        assert not reactor.connected


async def test_a_connection_that_goes_right_after_it_was_made_counts_as_not_made() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer, CLOSE)

    async with listening(closes) as listener:
        with pytest.raises(packetflow.ConnectionLost, match="closed during the handshake"):
            await Reactor(listener.endpoint).start()
        assert listener.made == 1


async def test_connections_that_do_not_last_are_dialled_later_and_later() -> None:
    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer)
        await reader.read(1)  # its first heartbeat: it counts as connected

    async with listening(drops) as listener, Reactor(listener.endpoint):
        began = time.monotonic()
        await listener.until(lambda: listener.made >= 6)
        assert time.monotonic() - began > 0.2 * (0.05 + 0.1 + 0.2 + 0.4 + 0.8)


# -- a reactor that stops


async def test_stopping_while_it_connects_ends_the_start(complaints: list[dict[str, Any]]) -> None:
    async with listening(silent) as listener:
        reactor = Reactor(listener.endpoint)
        starting = asyncio.create_task(reactor.start())
        await listener.until(lambda: listener.open == 1)
        await reactor.stop(grace=0)
        with pytest.raises(packetflow.ConnectionLost, match="stopped while it connected"):
            await starting
        await listener.until(lambda: listener.open == 0)


async def test_stopping_while_it_dials_again_ends_the_dialling(complaints: list[dict[str, Any]]) -> None:
    first = True

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            await accept_handshake(reader, writer)
            await gone.wait()
        else:
            await silent(reader, writer)

    gone = asyncio.Event()
    async with listening(once) as listener:
        reactor = Reactor(listener.endpoint)
        await reactor.start()
        waits = reactor.call("df", "x")
        gone.set()
        await listener.until(lambda: listener.made == 2)
        queued = reactor.call("df", "x")
        await reactor.stop()
        with pytest.raises(packetflow.ConnectionLost):
            await waits
        with pytest.raises(packetflow.Unavailable):
            await queued
        await listener.until(lambda: listener.open == 0)
        assert listener.made == 2


async def test_a_peer_that_does_not_read_does_not_hold_up_the_stop() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_handshake(reader, writer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()

    gone = asyncio.Event()
    async with listening(deaf) as listener:
        reactor = Reactor(listener.endpoint)
        await reactor.start()
        calls = [reactor.call("df", "x", "x" * 100_000) for _ in range(200)]
        await turns(3)
        began = time.monotonic()
        await reactor.stop(grace=0)
        assert time.monotonic() - began < 1
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {packetflow.ConnectionLost, packetflow.Unavailable}
        gone.set()


async def test_two_that_stop_it_wait_for_one_ending(gateway: Gateway, reactor: Reactor) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @reactor.register("df", "slow")
    async def slow(data: Any) -> str:
        entered.set()
        await leave.wait()
        return "finished"

    call = gateway.call("df", "slow", reactor="r1")
    await entered.wait()
    first, second = (asyncio.create_task(reactor.stop(10)) for _ in range(2))
    await turns(3)
    with pytest.raises(RuntimeError, match="is stopping"):
        await reactor.start()
    assert not first.done()
    leave.set()
    assert await call == "finished"
    await asyncio.gather(first, second)
    await reactor.stop()
    await reactor.start()
    assert await reactor.call("df", "echo", 1) == 1


async def test_whoever_is_in_more_of_a_hurry_shortens_the_grace(gateway: Gateway, reactor: Reactor) -> None:
    entered = asyncio.Event()

    @reactor.register("df", "ever")
    async def ever(data: Any) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    call = gateway.call("df", "ever", reactor="r1")
    await entered.wait()
    patient = asyncio.create_task(reactor.stop(600))
    await turns(3)
    await reactor.stop(0)
    await patient
    with pytest.raises(packetflow.ConnectionLost):
        await call


async def test_a_cancelled_stop_ends_at_once_what_is_left(gateway: Gateway, reactor: Reactor) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    @reactor.register("df", "slow")
    async def slow(data: Any) -> None:
        entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    call = gateway.call("df", "slow", reactor="r1")
    await entered.wait()
    stopping = asyncio.create_task(reactor.stop(600))
    await turns(3)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    with pytest.raises(packetflow.ConnectionLost):
        await call
    await cancelled.wait()
    await reactor.stop(600)
    assert not reactor.connected
    await reactor.start()
    assert await reactor.call("df", "echo", 1) == 1


async def test_a_handler_may_stop_its_own_reactor(gateway: Gateway, reactor: Reactor) -> None:
    stopped = asyncio.Event()

    @reactor.register("df", "last")
    async def last(data: Any) -> None:
        try:
            await reactor.stop(grace=0.05)
        finally:
            stopped.set()

    with pytest.raises(packetflow.ConnectionLost):
        await gateway.call("df", "last", reactor="r1")
    await stopped.wait()
    await reactor.stop()
    assert not reactor.connected


# -- a gateway that stops, and one that does not get to start

STUBBORN = """
import asyncio, os, signal, subprocess
from packetflow import Reactor, run

signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen(["sleep", "1000"])  # it inherits the deaf ear

async def main():
    reactor = Reactor(os.environ["PACKETFLOW_ENDPOINT"])
    reactor.register("df", "pids", lambda data: [os.getpid(), below.pid])
    await reactor.start()
    await asyncio.Event().wait()

run(main())
"""
TEMPLATE = Template("stubborn", (sys.executable, "-P", "-c", STUBBORN))


def alive(pid: int) -> bool:
    """Does the process run? One that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def address(endpoint: str) -> tuple[str, int]:
    parsed = parse_endpoint(endpoint)
    return parsed.host, parsed.port


async def ended(readers: list[asyncio.StreamReader]) -> None:
    """All of these connections have come to their end."""
    for reader in readers:
        with contextlib.suppress(ConnectionError):
            await reader.read()


@contextlib.contextmanager
def within_grace_and_a_second(grace: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < grace + 1


@pytest.mark.parametrize("begun", [b"", b"GET /packetflow/v1 HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("tls", [False, True])
async def test_connections_without_a_handshake_do_not_hold_up_the_stop(
    begun: bytes, tls: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    gateway = Gateway(
        f"{'wss' if tls else 'ws'}://127.0.0.1:0/packetflow/v1", ssl=contexts[0] if tls else None, handshake_timeout=50
    )
    await gateway.start()
    pairs = [await asyncio.open_connection(*address(gateway.endpoint)) for _ in range(20)]
    for _, writer in pairs:
        writer.write(begun)
    if tls:  # these have come further, and say no more
        pairs += [await asyncio.open_connection(*address(gateway.endpoint), ssl=contexts[1]) for _ in range(3)]
    with within_grace_and_a_second(0):
        await gateway.stop(grace=0)
    await ended([reader for reader, _ in pairs])
    for _, writer in pairs:
        writer.close()
    await gateway.start()
    await gateway.stop()


async def test_a_peer_that_does_not_read_does_not_hold_up_the_gateways_stop(gateway: Gateway) -> None:
    gateway.register("df", "large", lambda data: "x" * 900_000)
    await gateway.start()
    peer = await Peer.connect(gateway.endpoint)
    peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
    answered = gateway.view.dispatcher.completed
    for number in range(30):
        packet = {"version": "1.0", "id": f"{number}", "group": "df", "element": "large", "data": None, "priority": 5}
        await peer.send({"type": "submit", "seq": number + 1, "payload": packet})
    async with asyncio.timeout(10):
        while gateway.view.dispatcher.completed < answered + 1:
            await asyncio.sleep(0)
    with within_grace_and_a_second(0):
        await gateway.stop(grace=0)
    assert gateway.connections == 0
    peer.close()


async def test_processes_that_ignore_sigterm_do_not_hold_up_the_stop() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", templates=[TEMPLATE])
    await gateway.start()
    (reactor,) = (await gateway.call("mc", "spawn", {"reactor": "stubborn"}))["spawned"]
    pids = await gateway.call("df", "pids", reactor=reactor)
    assert all(alive(pid) for pid in pids)
    with within_grace_and_a_second(0):
        await gateway.stop(grace=0)
    assert not any(alive(pid) for pid in pids)


async def test_processes_that_are_being_started_go_with_the_gateway() -> None:
    silent = Template("silent", ("sleep", "1000"), grace=600)
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", templates=[silent])
    for number in range(0, 40, 4):
        await gateway.start()
        spawning = gateway.call("mc", "spawn", {"reactor": "silent", "count": 3})
        await turns(number)
        with within_grace_and_a_second(0):
            await gateway.stop(grace=0)
        with pytest.raises(packetflow.PacketFlowError):
            await spawning
        assert not processes._groups
        assert not gateway.supervisor._living


async def test_a_process_whose_shell_ends_first_has_its_grace(tmp_path: Path) -> None:
    script = f"trap 'sleep 0.1; echo done > {tmp_path}/done; exit' TERM; touch {tmp_path}/ready; sleep 1000 & wait"
    template = Template("shell", ("sh", "-c", f"sh -c {shlex.quote(script)} & wait"), grace=20)
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", templates=[template])
    await gateway.start()
    spawning = gateway.call("mc", "spawn", {"reactor": "shell"})
    async with asyncio.timeout(10):
        while not (tmp_path / "ready").exists():
            await asyncio.sleep(0.01)
    await gateway.stop(grace=20)
    with pytest.raises(packetflow.PacketFlowError):
        await spawning
    assert (tmp_path / "done").exists()


async def test_a_start_cancelled_at_any_moment_leaves_no_gateway(complaints: list[dict[str, Any]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gateway = Gateway(f"ws://127.0.0.1:{port}/packetflow/v1")
    for number in range(10):
        starting = asyncio.create_task(gateway.start())
        await turns(number)
        starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            assert not gateway.ready
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(packetflow.ConnectionLost, match="not started"):
                gateway.call("df", "x")
            await gateway.start()
        async with Reactor(gateway.endpoint) as reactor:
            assert reactor.connected
        await gateway.stop()


async def test_stopping_a_gateway_while_it_starts_ends_the_start() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    for number in range(1, 6):
        starting = asyncio.create_task(gateway.start())
        await turns(number)
        await gateway.stop()
        with contextlib.suppress(packetflow.Unavailable):
            await starting
        assert not gateway.ready
    async with gateway:
        with pytest.raises(RuntimeError, match="started already"):
            await gateway.start()


async def test_two_that_stop_a_gateway_wait_for_one_ending(gateway: Gateway) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @gateway.register("df", "slow")
    async def slow(data: Any) -> str:
        entered.set()
        await leave.wait()
        return "finished"

    await gateway.start()
    async with Reactor(gateway.endpoint) as reactor:
        call = reactor.call("df", "slow")
        await entered.wait()
        first, second = (asyncio.create_task(gateway.stop(10)) for _ in range(2))
        await turns(3)
        with pytest.raises(RuntimeError, match="is stopping"):
            await gateway.start()
        with pytest.raises(packetflow.Unavailable):
            await reactor.call("df", "echo")
        assert not first.done()
        leave.set()
        assert await call == "finished"
        await asyncio.gather(first, second)
    await gateway.stop()
    async with gateway, Reactor(gateway.endpoint) as reactor:
        assert await reactor.call("df", "echo", 1) == 1


async def test_a_cancelled_stop_ends_a_gateway_at_once(gateway: Gateway) -> None:
    entered = asyncio.Event()

    @gateway.register("df", "slow")
    async def slow(data: Any) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    for hurry in (False, True):
        entered.clear()
        await gateway.start()
        async with Reactor(gateway.endpoint, reconnect=False) as reactor:
            call = reactor.call("df", "slow")
            await entered.wait()
            stopping = asyncio.create_task(gateway.stop(600))
            await turns(3)
            if hurry:
                await gateway.stop(0)
                await stopping
            else:
                stopping.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await stopping
                await gateway.stop(600)
            with pytest.raises(packetflow.ConnectionLost):
                await call
        assert gateway.connections == 0


async def test_a_handler_may_stop_its_own_gateway(gateway: Gateway) -> None:
    stopped = asyncio.Event()

    @gateway.register("df", "last")
    async def last(data: Any) -> None:
        try:
            await gateway.stop(grace=0.05)
        finally:
            stopped.set()

    await gateway.start()
    async with Reactor(gateway.endpoint, reconnect=False) as reactor:
        with pytest.raises(packetflow.PacketFlowError):
            await reactor.call("df", "last")
        await stopped.wait()
        await gateway.stop()
        assert not gateway.ready


async def test_serving_for_ever_ends_with_the_gateway(gateway: Gateway) -> None:
    serving = asyncio.create_task(gateway.serve_forever())
    async with asyncio.timeout(10):
        while not gateway.ready:
            await asyncio.sleep(0)
    await gateway.stop()
    await serving
    serving = asyncio.create_task(gateway.serve_forever())
    async with asyncio.timeout(10):
        while not gateway.ready:
            await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not gateway.ready


@pytest.mark.parametrize("group", ["df", "cf", "rm"])
async def test_what_never_began_is_unavailable_and_what_began_is_lost(group: str) -> None:
    """At the end of the grace: PF502 for what began, PF503 for what waited, in the dispatcher or for a nested step."""
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", concurrency=1)
    began: list[str] = []
    entered = asyncio.Event()

    @gateway.register(group, "work")
    async def work(data: str) -> None:
        began.append(data)
        entered.set()
        await asyncio.get_running_loop().create_future()

    await gateway.start()
    async with Reactor(gateway.endpoint, reconnect=False) as reactor:
        packets = [{"group": group, "element": "work", "data": name, "metadata": {"key": "k"}} for name in "abc"]
        replies = [reactor.submit(packet) for packet in packets]
        await entered.wait()
        own = gateway.submit({"group": group, "element": "work", "data": "own", "metadata": {"key": "k"}})
        await gateway.stop(grace=0.05)
        outcomes = await asyncio.gather(*replies, own, return_exceptions=True)
    codes = [outcome.error["code"] if isinstance(outcome, packetflow.Result) else outcome.code for outcome in outcomes]
    assert began == ["a"]
    assert codes == ["PF502", "PF503", "PF503", "PF503"]


# -- offloaded handlers


OFFLOADED = """
import os, sys, time

def compute(data):
    open(data, "w").write(str(os.getpid()))
    time.sleep(1000)

def identify(data):
    return os.getpid()
"""


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def written(path: Path) -> str:
    async with asyncio.timeout(20):
        while not content(path):
            await asyncio.sleep(0.01)
    return content(path)


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_a_process_that_computes_beyond_the_grace_is_killed(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless_functions.py").write_text(OFFLOADED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("endless_functions")
    gateway.register("df", "compute", module.compute, offload="process")
    gateway.register("df", "identify", module.identify, offload="process")
    await gateway.start()
    call = gateway.call("df", "compute", str(tmp_path / "pid"))
    pid = int(await written(tmp_path / "pid"))
    await gateway.stop(grace=0)
    with pytest.raises(packetflow.PacketFlowError):
        await call
    await gone(pid)
    async with gateway:  # the next start has processes of its own, and an idle one ends with its gateway, too
        other = await gateway.call("df", "identify")
        assert other != pid
    await gone(other)


ENDLESS = """
import os, sys, threading, time
from packetflow import Gateway

def block(data):
    open(data, "w").write(str(os.getpid()))
    time.sleep(1000)

def stall(data):
    open(data, "w").write("stalled")
    time.sleep(1000)  # in the event loop itself

def setup(gateway):
    gateway.register("df", "block", block, offload="thread")
    gateway.register("df", "compute", block, offload="process")
    gateway.register("df", "stall", stall)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway in a process of its own, with a template and handlers that do not end; and its endpoint."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "gateway.toml").write_text(
        f"""
        [gateway]
        endpoint = "ws://127.0.0.1:0/packetflow/v1"
        handlers = "endless:setup"
        drain = 600.0

        [roles.all]
        submit = ["*:*"]
        handle = ["*:*"]
        admin = true

        [anonymous]
        role = "all"

        [templates.stubborn]
        command = ["{sys.executable}", "-P", "{tmp_path}/stubborn.py"]
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "packetflow", "gateway", "--config", "gateway.toml"],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    yield process, line.split()[2].rstrip(",")
    process.kill()
    process.communicate()


async def over(process: subprocess.Popen[str]) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_ends_the_command_and_all_its_processes(
    served: tuple[subprocess.Popen[str], str], tmp_path: Path, number: signal.Signals
) -> None:
    process, endpoint = served
    async with Reactor(endpoint, reconnect=False) as reactor:
        await reactor.call("mc", "spawn", {"reactor": "stubborn"})
        pids = await reactor.call("df", "pids")
        call = reactor.call("df", "compute", str(tmp_path / "pid"))
        pids.append(int(await written(tmp_path / "pid")))
        process.send_signal(number)
        with contextlib.suppress(packetflow.PacketFlowError):
            while True:  # the first has begun the drain once this is refused
                await reactor.call("df", "pids")
        assert process.poll() is None
        process.send_signal(number)
        assert await over(process) == -number
        for pid in pids:
            await gone(pid)
        with pytest.raises(packetflow.ConnectionLost):
            await call


async def test_the_second_signal_helps_where_the_loop_is_stuck(
    served: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, endpoint = served
    async with Reactor(endpoint, reconnect=False) as reactor:
        call = reactor.call("df", "stall", str(tmp_path / "stalled"))
        await written(tmp_path / "stalled")
        process.send_signal(signal.SIGTERM)
        assert process.poll() is None
        async with asyncio.timeout(20):
            while process.poll() is None:  # two that come together are one to the system
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.05)
        assert process.returncode == -signal.SIGTERM
        with pytest.raises(packetflow.ConnectionLost):
            await call


async def test_a_thread_that_blocks_for_ever_does_not_keep_the_command(
    served: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, endpoint = served
    async with Reactor(endpoint, reconnect=False) as reactor:
        call = reactor.call("df", "block", str(tmp_path / "pid"), timeout_ms=1000)
        await written(tmp_path / "pid")
        with pytest.raises(packetflow.PacketTimeout):
            await call
        process.send_signal(signal.SIGTERM)
        assert await over(process) == 0


LEFT = """
import asyncio, sys
from packetflow import Gateway, run
from packetflow.gateway import Template

async def main():
    template = Template("s", (sys.executable, "-P", "-c", sys.argv[1]))
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", templates=[template])
    await gateway.start()
    (reactor,) = (await gateway.call("mc", "spawn", {"reactor": "s"}))["spawned"]
    print(*await gateway.call("df", "pids", reactor=reactor), flush=True)
    raise ValueError("in the middle of it")

run(main())
"""


async def test_processes_do_not_outlive_a_gateway_that_nobody_stopped() -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-P", "-c", LEFT, STUBBORN], capture_output=True, text=True, timeout=30
    )
    assert "in the middle of it" in done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        await gone(pid)


async def test_an_ending_is_brought_nearer_whatever_it_is_about() -> None:
    over = asyncio.Event()

    async def work(ending: Ending) -> None:
        await over.wait()

    ending = Ending(work, 60.0)
    waiting = asyncio.ensure_future(ending.wait(1.0))
    await asyncio.sleep(0)
    assert ending.deadline <= ending.now + 1.0
    over.set()
    await waiting


async def test_an_ending_that_its_last_waiter_gave_up_is_over_for_who_asks_meanwhile() -> None:
    async def work(ending: Ending) -> None:
        await asyncio.get_running_loop().create_future()

    ending = Ending(work, 60.0)
    first = asyncio.ensure_future(ending.wait(60.0))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await ending.wait(60.0)


async def test_within_its_time_or_not() -> None:
    assert await within(5.0, asyncio.sleep(0))
    assert not await within(0.001, asyncio.get_running_loop().create_future())
