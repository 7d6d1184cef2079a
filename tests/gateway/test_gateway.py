"""The listening side: admission, limits, and peers that do not behave."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import packetflow
from packetflow import Gateway, Reactor
from packetflow.conformance.wire import Peer, frame
from pfcore.link.engine import Engine
from tests.helpers import server_context, until

PACKET = {"version": "1.0", "id": "a", "group": "df", "element": "echo", "data": 1, "priority": 5}


def submit(seq: int = 1, **changes: Any) -> dict[str, Any]:
    return {"type": "submit", "seq": seq, "payload": PACKET | {"id": f"id-{seq}"} | changes}


async def healthy(gateway: Gateway) -> None:
    """Somebody else is served as ever."""
    async with Reactor(gateway.endpoint) as reactor:
        assert await reactor.call("df", "echo", "fine", timeout_ms=5000) == "fine"


# -- listening and admission


async def test_port_0_takes_a_free_port_and_endpoint_tells(gateway: Gateway) -> None:
    async with gateway:
        port = int(gateway.endpoint.split(":")[2].split("/")[0])
        assert port > 0
        with pytest.raises(OSError):
            await Gateway(f"ws://127.0.0.1:{port}/packetflow/v1").start()
        with pytest.raises(RuntimeError, match="started already"):
            await gateway.start()


async def test_a_gateway_that_could_not_listen_may_try_again(gateway: Gateway) -> None:
    async with gateway:
        second = Gateway(gateway.endpoint)
        for _ in range(2):
            with pytest.raises(OSError):
                await second.start()
    async with second, Reactor(second.endpoint) as reactor:
        assert await reactor.call("cf", "seq", {"steps": [], "input": 1}) == 1


@pytest.mark.parametrize("endpoint", ["ws://0.0.0.0:0/", "ws://192.0.2.1:0/", "ws://[::]:0/", "ws://example.org/"])
def test_an_address_that_others_reach_needs_tls_or_insecure(endpoint: str) -> None:
    with pytest.raises(ValueError, match="insecure=True"):
        Gateway(endpoint)
    Gateway(endpoint, insecure=True)


def test_a_secure_endpoint_needs_a_context() -> None:
    with pytest.raises(ValueError, match="SSLContext"):
        Gateway("wss://127.0.0.1:0/")


@pytest.mark.parametrize(
    ("options", "status"),
    [({"path": "/"}, 404), ({"path": "/packetflow/v2"}, 404), ({"headers": "Origin: https://evil.example\r\n"}, 403),
     ({"path": "/packetflow/v1?x=1"}, 101), ({"headers": "Origin: https://GOOD.example\r\n"}, 101)],
)  # fmt: skip
async def test_handshakes(options: dict[str, str], status: int) -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", allowed_origins=["https://good.example"]) as gateway:
        peer = await Peer.connect(gateway.endpoint, **options)
        assert peer.status == status
        peer.close()


async def test_no_more_connections_than_allowed() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", max_connections=2) as gateway:
        peers = [await Peer.connect(gateway.endpoint) for _ in range(3)]
        assert [peer.status for peer in peers] == [101, 101, 503]
        peers[0].close()
        async with asyncio.timeout(10):
            while gateway.connections == 2:
                await asyncio.sleep(0)
        again = await Peer.connect(gateway.endpoint)
        assert again.status == 101
        for peer in [*peers, again]:
            peer.close()


async def test_over_tls(tmp_path: Path, gateway: Gateway) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    secure = Gateway("packetflows://127.0.0.1:0/packetflow/v1", ssl=server)
    secure.register("df", "echo", lambda data: data)
    async with secure:
        assert secure.endpoint.startswith("wss://")
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert"))
        async with Reactor(secure.endpoint, ssl=trusting) as reactor:
            assert await reactor.call("df", "echo", "x" * 300_000) == "x" * 300_000
            assert len([r async for r in reactor.map("df", "echo", range(5000))]) == 5000
        with pytest.raises(packetflow.ConnectionLost, match="cannot connect"):
            await Reactor(secure.endpoint).start()


# -- the wire


async def test_a_message_in_any_pieces_is_the_same_message(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        whole = frame(json.dumps(submit(1, data="é" * 40)).encode(), mask=b"abcd")
        for at in range(len(whole)):  # every byte in a write of its own
            peer.writer.write(whole[at : at + 1])
            await peer.writer.drain()
            if at % 16 == 0:
                await asyncio.sleep(0)
        assert (await peer.message("result"))["payload"]["data"] == "é" * 40
        text = json.dumps(submit(2)).encode()
        await peer.send(text[:10], fin=False)
        await peer.send(b"ping inside", opcode=9)
        for piece in (text[10:11], b"", text[11:-1]):
            await peer.send(piece, opcode=0, fin=False)
        await peer.send(text[-1:], opcode=0)
        kinds = {}
        while 1 not in kinds:
            opcode, payload = await peer.frame()
            kinds[opcode] = payload
        assert kinds[10] == b"ping inside"
        assert json.loads(kinds[1])["payload"]["packet_id"] == "id-2"
        peer.close()


async def test_binary_messages_that_hold_json_are_accepted(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(5), opcode=2)
        assert (await peer.message("result"))["seq"] == 5
        peer.close()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frame(b"x", rsv=4), 1002),
        (frame(b"x", opcode=0), 1002),
        (frame(b"x", fin=False) + frame(b"y"), 1002),
        (frame(b"x" * 126, opcode=9), 1002),
        (frame(b"x", opcode=3), 1002),
        (frame(b"x", mask=None), 1002),
        (frame(b'"\xff"'), 1007),
        (frame(b'"\xed\xa0', fin=False) + frame(b'\x80"', opcode=0), 1007),
        (frame(b"\x03\xee", opcode=8), 1002),
        (frame(b"\x03\xe8", opcode=8), 1000),
        (frame(b"", opcode=8), 1005),
        (frame(b"x" * (4 * 1_048_576 + 1)), 1009),
        (frame(b"x" * 3_000_000, fin=False) + frame(b"x" * 3_000_000, opcode=0, fin=False), 1009),
    ],
    ids=["rsv", "stray continuation", "new inside", "long ping", "opcode", "unmasked", "utf-8", "utf-8 in fragments",
         "code 1006", "close", "empty close", "too big", "fragments too big"],
)  # fmt: skip
async def test_the_rules_of_websocket(gateway: Gateway, raw: bytes, code: int) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        peer.writer.write(raw)
        async with asyncio.timeout(10):
            assert await peer.close_code() == code
        await healthy(gateway)
        peer.close()


async def test_invalid_utf8_in_a_binary_message_is_pf400_and_the_link_stays(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(b'"\xff"', opcode=2)
        assert (await peer.message("error"))["payload"]["code"] == "PF400"
        await peer.send(submit(1))
        assert (await peer.message("result"))["seq"] == 1
        peer.close()


async def test_an_oversize_packet_is_pf413_and_the_link_stays(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(1, data="x" * 1_100_000))
        assert (await peer.message("result"))["payload"]["error"]["code"] == "PF413"
        await peer.send(submit(2))
        assert (await peer.message("result"))["payload"]["status"] == "success"
        peer.close()


async def test_an_id_that_is_in_flight_already_is_pf409(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(1, element="forever", id="same"))
        await peer.send(submit(2, id="same"))
        answer = await peer.message("result")
        assert (answer["seq"], answer["payload"]["error"]["code"]) == (2, "PF409")
        peer.close()


# -- faults


async def test_a_flood_of_garbage_ends_that_link_and_nobody_else_notices(gateway: Gateway) -> None:
    async with gateway, Reactor(gateway.endpoint) as good:
        peer = await Peer.connect(gateway.endpoint)
        calls = [good.call("df", "echo", n) for n in range(200)]
        peer.writer.write(frame(os.urandom(64).hex().encode()) * 2000)
        async with asyncio.timeout(10):
            assert await peer.close_code() == 1008
        assert await asyncio.gather(*calls) == list(range(200))
        peer.close()


async def test_raw_garbage_instead_of_a_handshake() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", handshake_timeout=0.5) as gateway:
        gateway.register("df", "echo", lambda data: data)
        host, port = gateway.endpoint[5:].split("/")[0].split(":")
        for raw in (
            os.urandom(5000),
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000,
            b"\r\n\r\n",
            b"POST /x HTTP/1.1\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(raw)
            async with asyncio.timeout(10):
                try:
                    await reader.read()
                except ConnectionError:
                    pass
            writer.transport.abort()
        await healthy(gateway)


async def test_half_open_handshakes_are_reaped() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", handshake_timeout=0.2) as gateway:
        gateway.register("df", "echo", lambda data: data)
        host, port = gateway.endpoint[5:].split("/")[0].split(":")
        connections = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        for _, writer in connections:
            writer.write(b"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\n")
        await healthy(gateway)
        async with asyncio.timeout(10):
            for reader, writer in connections:
                assert await reader.read() == b""
                writer.close()


async def test_a_peer_that_dies_fails_what_it_was_sent_at_once(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1, "reactor": "doomed"}})
        await gateway.wait_for_reactor("doomed")
        reply = gateway.call("df", "x", reactor="doomed")
        await peer.message("submit")
        peer.close()
        with pytest.raises(packetflow.ConnectionLost, match="answer is unknown"):
            await reply
        assert "doomed" not in gateway.reactors


async def test_a_caller_that_dies_leaves_its_handler_cancelled_and_nothing_else(gateway: Gateway) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    @gateway.register("df", "watched")
    async def watched(data: Any) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(1, element="watched"))
        await started.wait()
        peer.close()
        await ended.wait()
        await healthy(gateway)


async def test_a_silent_peer_is_pinged_and_then_cut() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", silence=0.1) as gateway:
        peer = await Peer.connect(gateway.endpoint)
        kinds = set()
        async with asyncio.timeout(10):
            while True:
                opcode, payload = await peer.frame()
                kinds.add(opcode)
                if opcode == 8:
                    break
        assert 9 in kinds
        assert int.from_bytes(payload[:2], "big") == 1001
        assert b"no sign of life" in payload
        peer.close()


async def test_a_peer_that_answers_pings_stays() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", silence=0.3) as gateway:
        peer = await Peer.connect(gateway.endpoint)
        pings = 0
        async with asyncio.timeout(10):
            while pings < 3:
                opcode, payload = await peer.frame()
                if opcode == 9:
                    pings += 1
                    await peer.send(payload, opcode=10)
        peer.close()


async def test_a_frozen_gateway_is_found_out_by_its_reactor() -> None:
    """A peer that accepts bytes and never answers: every submit ends within its deadline and a second."""
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        gateway.register("df", "stuck", lambda data: asyncio.get_running_loop().create_future())
        async with Reactor(gateway.endpoint) as reactor:
            with pytest.raises(packetflow.PacketTimeout):
                await reactor.call("df", "stuck", timeout_ms=50)


async def test_a_peer_that_never_reads_is_cut_and_nobody_else_notices(gateway: Gateway) -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", silence=0.5)
    gateway.register("df", "echo", lambda data: data)
    gateway.register("df", "big", lambda data: "x" * 1_000_000)
    async with gateway, Reactor(gateway.endpoint) as good:
        peer = await Peer.connect(gateway.endpoint)
        peer.writer.transport.set_write_buffer_limits(high=1 << 30)
        for seq in range(1, 200):  # answers of 200 MB that it never takes
            peer.writer.write(frame(json.dumps(submit(seq, element="big")).encode()))
        async with asyncio.timeout(20):
            while gateway.connections > 1:
                assert await good.call("df", "echo", "fine", timeout_ms=2000) == "fine"
        peer.close()


async def test_stopping_tells_everyone(gateway: Gateway) -> None:
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(1))
        await peer.message("result")
        await gateway.stop()
        assert await peer.close_code() == 1001
        assert gateway.connections == 0
        peer.close()


async def test_a_gateway_may_be_started_again(gateway: Gateway) -> None:
    for _ in range(3):
        async with gateway:
            await healthy(gateway)


async def test_a_hundred_connections_at_once(gateway: Gateway) -> None:
    async with gateway:
        reactors = [Reactor(gateway.endpoint, name=f"r{n}") for n in range(100)]
        await asyncio.gather(*(reactor.start() for reactor in reactors))
        answers = await asyncio.gather(*(reactor.call("df", "echo", n) for n, reactor in enumerate(reactors)))
        assert answers == list(range(100))
        await asyncio.gather(*(gateway.wait_for_reactor(f"r{n}") for n in range(100)))
        await asyncio.gather(*(reactor.stop() for reactor in reactors))


async def test_connections_that_end_wait_for_no_garbage_collector() -> None:
    """Each has buffers; a stranger opens and closes thousands in the minute until the next full collection."""

    def engines() -> int:
        return sum(type(one) is Engine for one in gc.get_objects())

    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        gateway.register("df", "echo", lambda data: data)
        gc.collect()
        gc.disable()
        try:
            before = engines()
            peers = [await Peer.connect(gateway.endpoint) for _ in range(20)]
            for peer in peers:
                await peer.send(submit())
                await peer.message("result")
            assert engines() >= before + 20
            for peer in peers:
                peer.close()
            async with asyncio.timeout(10):
                while engines() > before:
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


def test_an_endpoint_and_its_context_of_tls_go_together() -> None:
    with pytest.raises(ValueError, match="no user name or password"):
        Gateway("ws://name:token@127.0.0.1:0/")
    with pytest.raises(ValueError, match="expected wss://"):
        Gateway("ws://127.0.0.1:0/", ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


async def test_what_is_taken_out_has_to_be_there(gateway: Gateway) -> None:
    with pytest.raises(KeyError):
        gateway.unregister("df", "nothing")
    gateway.unregister("df", "echo")
    assert "df:echo" not in gateway.handles
    async with gateway:
        gateway.unregister("df", "fail")
        assert "df:fail" not in gateway.handles


async def test_serving_for_ever_goes_on_where_it_was_started(gateway: Gateway) -> None:
    await gateway.start()
    serving = asyncio.ensure_future(gateway.serve_forever())
    async with Reactor(gateway.endpoint) as reactor:
        assert await reactor.call("df", "echo", 1) == 1
        gateway.set_window(7)
        serving.cancel()
        await asyncio.wait({serving})
    assert not gateway.ready


async def test_packets_that_outlast_the_grace_are_a_line_in_the_log(
    gateway: Gateway, reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    reply = reactor.call("df", "forever")
    while not gateway.switch.in_flight:
        await asyncio.sleep(0)
    await gateway.stop(0)
    with pytest.raises(packetflow.PacketFlowError):
        await reply
    assert any(record.message.startswith("1 packets were still under way") for record in caplog.records)


async def test_access_may_not_be_loosened_where_others_reach_the_address() -> None:
    role = packetflow.Role("r", submit=("*:*",))
    closed = packetflow.Access.of([role], [])
    with pytest.raises(ValueError, match="needs TLS, or principals"):
        Gateway("ws://0.0.0.0:0", access=closed).set_access(packetflow.Access())
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", elements=False) as gateway:
        gateway.set_access(closed)
        peer = await Peer.connect(gateway.endpoint)
        assert peer.status == 401
        peer.close()


async def test_a_context_that_is_changed_before_the_start_is_the_one(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    gateway = Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    await gateway.set_ssl(context)
    async with gateway:
        peer = await Peer.connect(gateway.endpoint, ssl=ssl.create_default_context(cafile=tmp_path / "ca.pem"))
        assert peer.status == 101
        if sys.platform == "linux":  # no room for another socket: nothing is changed
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    await gateway.set_ssl(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            again = await Peer.connect(gateway.endpoint, ssl=ssl.create_default_context(cafile=tmp_path / "ca.pem"))
            again.close()
        peer.close()


async def test_a_named_reactor_is_submitted_packets_and_nothing_else(gateway: Gateway, reactor: Reactor) -> None:
    with pytest.raises((TypeError, packetflow.InvalidPacket)):
        await gateway.submit(5, reactor="r1")  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [0, -1, 1 << 40])
async def test_a_window_that_cannot_be_changes_nothing(hub: Gateway, window: int) -> None:
    with pytest.raises(ValueError, match="window"):
        hub.set_window(window)
    async with Reactor(hub.endpoint) as reactor:
        hub.register("df", "echo", lambda data: data)
        assert await reactor.call("df", "echo", 1) == 1


async def in_pieces(peer: Peer, count: int) -> None:
    """Pieces of a message that has no end, each so small that the buffer it is read into costs nothing."""
    for number in range(count):
        await peer.send(b" " * 10_000, opcode=1 if number == 0 else 0, fin=False)


async def test_a_message_in_pieces_is_paid_for_until_it_is_whole(hub: Gateway) -> None:
    held = hub.view.budgets.held
    peer = await Peer.connect(hub.endpoint)
    await in_pieces(peer, 20)
    await until(lambda: held.held >= 200_000)
    await peer.send(b"", opcode=0)
    await until(lambda: held.held < 100_000)
    await in_pieces(peer, 20)
    await until(lambda: held.held >= 200_000)
    peer.close()
    await until(lambda: held.held < 100_000)


async def test_messages_in_pieces_are_cut_at_the_budget() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", max_principal_bytes=100_000) as gateway:
        peer = await Peer.connect(gateway.endpoint)
        await in_pieces(peer, 15)
        async with asyncio.timeout(10):
            assert await peer.close_code() == 1008
        peer.close()
