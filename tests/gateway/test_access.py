"""Who gets in, what they may do there, and attacks on both."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from packetflow import (
    Access,
    Forbidden,
    Gateway,
    Identity,
    InvalidPacket,
    NoHandler,
    Packet,
    Reactor,
    Role,
    Unauthenticated,
)
from packetflow.conformance.wire import Peer
from tests.helpers import ROLES, TOKENS, certificate, identities, submit, until


@pytest.fixture
async def guarded() -> AsyncIterator[Gateway]:
    """A gateway that lets in nobody without credentials."""
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(ROLES, identities()))
    gateway.register("df", "echo", lambda data: data)
    gateway.register("rm", "lock", lambda data: "gateway")
    gateway.register("mc", "tune", lambda data: "tuned")
    async with gateway:
        yield gateway


def bearer(name: str) -> str:
    return f"Authorization: Bearer {TOKENS[name]}\r\n"


# ---------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Digest x\r\n",
        "Authorization: Basic !!!\r\n",
        "Authorization: Basic " + base64.b64encode(b"client:wrong").decode() + "\r\n",
        "Authorization: Basic " + base64.b64encode(f"admin:{TOKENS['client']}".encode()).decode() + "\r\n",
        f"Authorization: Bearer {TOKENS['client']}\r\nAuthorization: Bearer {TOKENS['admin']}\r\n",
        "Sec-WebSocket-Protocol: packetflow, bearer.wrong\r\n",
        "Sec-WebSocket-Protocol: bearer.\r\n",
        f"Cookie: token={TOKENS['client']}\r\n",
    ],
)
async def test_without_valid_credentials_nobody_comes_in(guarded: Gateway, headers: str) -> None:
    peer = await Peer.connect(guarded.endpoint, headers=headers)
    assert peer.status == 401
    peer.close()
    assert guarded.connections == 0


@pytest.mark.parametrize("name", ["client", "worker"])
async def test_a_token_in_each_place_that_a_client_can_put_it(guarded: Gateway, name: str) -> None:
    basic = base64.b64encode(f"{name}:{TOKENS[name]}".encode()).decode()
    anyone = base64.b64encode(f":{TOKENS[name]}".encode()).decode()
    for headers in (
        bearer(name),
        f"Authorization: bearer {TOKENS[name]}\r\n",
        f"Authorization: Basic {basic}\r\n",
        f"Authorization: Basic {anyone}\r\n",
        f"Sec-WebSocket-Protocol: packetflow, bearer.{TOKENS[name]}\r\n",
    ):
        peer = await Peer.connect(guarded.endpoint, headers=headers)
        assert peer.status == 101
        await peer.send(submit(1, id=headers, element="echo"))
        assert (await peer.message("result"))["payload"]["status"] == "success"
        peer.close()


async def test_a_reactor_with_credentials_in_its_url_or_a_token(guarded: Gateway) -> None:
    url = guarded.endpoint.replace("ws://", f"ws://client:{TOKENS['client']}@")
    async with Reactor(url) as one, Reactor(guarded.endpoint, token=TOKENS["client"]) as two:
        assert await one.call("df", "echo", 1) == 1
        assert await two.call("df", "echo", 2) == 2
        assert TOKENS["client"] not in one.endpoint + repr(one._endpoints)
    with pytest.raises(Unauthenticated, match="not valid here"):
        await Reactor(guarded.endpoint, token="wrong").start()


async def test_only_offered_subprotocols_are_chosen_and_tokens_never_echoed(guarded: Gateway) -> None:
    for offered, chosen in (
        (f"packetflow, bearer.{TOKENS['client']}", "packetflow"),
        (f"bearer.{TOKENS['client']}, other", None),
    ):
        host, port = guarded.endpoint.removeprefix("ws://").partition("/")[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: {offered}\r\n\r\n".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 101")
        assert ("sec-websocket-protocol: packetflow" in head) == (chosen is not None)
        assert "bearer" not in head
        assert "sec-websocket-extensions" not in head, "compression is declined"
        writer.transport.abort()


async def test_a_foreign_origin_is_refused_even_with_credentials(guarded: Gateway) -> None:
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client") + "Origin: https://evil.example\r\n")
    assert peer.status == 403
    peer.close()
    guarded.set_limits(allowed_origins=["https://good.example"])
    for origin, status in (("https://GOOD.example", 101), ("https://good.example.evil", 403), ("null", 403)):
        peer = await Peer.connect(guarded.endpoint, headers=bearer("client") + f"Origin: {origin}\r\n")
        assert peer.status == status, origin
        peer.close()


async def test_revoked_tokens_end_their_links_and_open_no_others(guarded: Gateway) -> None:
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))
    other = await Peer.connect(guarded.endpoint, headers=bearer("worker"))
    await until(lambda: guarded.connections == 2)
    guarded.set_access(Access.of(ROLES, [one for one in identities() if one.name != "client"]))
    assert await peer.close_code() == 1008
    again = await Peer.connect(guarded.endpoint, headers=bearer("client"))
    assert again.status == 401
    await other.send(submit(1, element="echo"))
    assert (await other.message("result"))["payload"]["status"] == "success"
    for one in (peer, other, again):
        one.close()


async def test_each_address_has_a_bound_of_connections() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", max_per_address=2) as gateway:
        peers = [await Peer.connect(gateway.endpoint) for _ in range(2)]
        host, port = gateway.endpoint.removeprefix("ws://").partition("/")[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()
        assert gateway.counts["turned_away"] == 1
        peers[0].close()
        await until(lambda: gateway.connections == 1)
        peers.append(await Peer.connect(gateway.endpoint))
        assert peers[-1].status == 101
        for peer in peers:
            peer.close()


async def test_half_open_handshakes_are_reaped_while_good_ones_go_through() -> None:
    """Slowloris: connections that send nothing, or their headers a byte at a time."""
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", handshake_timeout=0.3) as gateway:
        host, port = gateway.endpoint.removeprefix("ws://").partition("/")[0].rsplit(":", 1)
        half = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        for _, writer in half[::2]:
            writer.write(b"GET /packetflow/v1 HTTP/1.1\r\nHost")
        async with Reactor(gateway.endpoint) as reactor:
            assert reactor.connected
            for reader, writer in half:
                with contextlib.suppress(ConnectionError):
                    await reader.read()  # to the end
                writer.transport.abort()
            assert reactor.connected


@pytest.mark.parametrize("endpoint", ["ws://0.0.0.0:0", "ws://192.0.2.1:0", "ws://example.org"])
def test_an_open_address_needs_tls_or_authentication(endpoint: str) -> None:
    """CVE-2023-48022 (Ray): a control plane that anyone who reaches the port can use."""
    with pytest.raises(ValueError, match="anyone who reaches this address"):
        Gateway(endpoint)
    with pytest.raises(ValueError, match="anyone who reaches this address"):
        Gateway(endpoint, access=Access.of(ROLES, identities(), anonymous=ROLES[0]))
    Gateway(endpoint, insecure=True)
    Gateway(endpoint, access=Access.of(ROLES, identities()))


# ---------------------------------------------------------------- what they may do


async def test_the_full_matrix_of_principals_and_elements(guarded: Gateway) -> None:
    """Nothing is allowed that was not granted."""
    keys = [("df", "echo"), ("df", "x"), ("ed", "order.new"), ("ed", "orders"), ("cf", "go"), ("cf", "gone"),
            ("co", "sync"), ("rm", "lock"), ("mc", "tune"), ("mc", "spawn")]  # fmt: skip
    allowed = {
        "client": {("df", "echo"), ("df", "x"), ("ed", "order.new"), ("cf", "go")},
        "worker": {("df", "echo"), ("df", "x")},
        "admin": set(keys),
    }
    for name, may in allowed.items():
        async with Reactor(guarded.endpoint, token=TOKENS[name]) as reactor:
            for group, element in keys:
                result = await reactor.submit({"group": group, "element": element})
                refused = not result.ok and result.error["code"] == "PF403"
                assert refused == ((group, element) not in may), (name, group, element, result)


@pytest.mark.parametrize(
    "payload",
    [
        b'"group":"m\\u0063","element":"tune"',
        b'"gr\\u006fup":"mc","element":"tune"',
        b'"group":"df","group":"mc","element":"tune"',
        b'"group":"df","gr\\u006fup":"mc","element":"tune"',
        b'"group":"mc","element":"tune","group":"df"',
        b'"group":"MC","element":"tune"',
        b'"Group":"df","group":"mc","element":"tune"',
        b'"group":"mc","element":"tune\\u0000"',
        b'"group":" mc","element":"tune"',
    ],
)
async def test_forbidden_elements_by_every_spelling(guarded: Gateway, payload: bytes) -> None:
    """CVE-2017-12635 (CouchDB): a key that two parsers read differently."""
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))
    await peer.send(
        b'{"type":"submit","seq":1,"payload":{"version":"1.0","id":"a",%s,"data":1,"priority":5}}' % payload
    )
    answer = await peer.message("result", "error")
    code = answer["payload"].get("code") or answer["payload"]["error"]["code"]
    assert code in ("PF400", "PF403")
    peer.close()


async def test_reactors_handle_only_what_their_role_allows(guarded: Gateway) -> None:
    mine = ["df:echo", "ed:order.new", "co:sync", "mc:tune", "rm:lock"]
    async with Reactor(guarded.endpoint, token=TOKENS["worker"], name="w") as worker:
        for key in mine:
            group, _, element = key.partition(":")
            worker.register(group, element, lambda data: "worker")
        await until(lambda: guarded.switch.reactors_for("rm:lock"))
        async with Reactor(guarded.endpoint, token=TOKENS["admin"]) as admin:
            assert await admin.call("df", "echo") == "worker"
            assert await admin.call("ed", "order.new") == "worker"
            assert await admin.call("rm", "lock") == "worker", "its role may replace the gateway's own"
            assert await admin.call("mc", "tune") == "tuned"
            with pytest.raises(InvalidPacket, match="barrier"):  # the gateway's own
                await admin.call("co", "sync", {})


async def test_a_reactor_that_announces_nothing_gets_only_what_its_role_allows(guarded: Gateway) -> None:
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))  # handles nothing
    await until(lambda: guarded.connections == 1)
    async with Reactor(guarded.endpoint, token=TOKENS["admin"]) as admin:
        with pytest.raises(NoHandler):
            await admin.call("df", "secret", {"password": 1})
    peer.close()


async def test_submits_per_second_of_a_principal_are_bounded(guarded: Gateway) -> None:
    async with Reactor(guarded.endpoint, token=TOKENS["limited"]) as one:
        async with Reactor(guarded.endpoint, token=TOKENS["limited"]) as two:
            results = await asyncio.gather(
                *(r.submit({"group": "df", "element": "echo"}) for r in (one, two) for _ in range(10))
            )
    codes = [None if result.ok else result.error["code"] for result in results]
    assert 5 <= codes.count(None) <= 7
    assert codes.count("PF429") == 20 - codes.count(None)


async def test_principals_do_not_see_one_anothers_ids(guarded: Gateway) -> None:
    """Id collisions: each gets its own answer, and neither learns of the other."""
    worker = await Peer.connect(guarded.endpoint, headers=bearer("worker"), path="/packetflow/v1?handles=df:work")
    await until(lambda: guarded.switch.reactors_for("df:work"))
    peers = [await Peer.connect(guarded.endpoint, headers=bearer(name)) for name in ("client", "admin")]
    for peer, data in zip(peers, ("mine", "yours"), strict=True):
        await peer.send(submit(1, id="same", data=data))
    got = {}
    for _ in range(2):
        packet = (await worker.message("submit"))["payload"]
        got[packet["id"]] = packet["data"]
    assert len(got) == 2, "the two were told apart by their ids"
    for packet_id, data in got.items():
        # as a reference reactor answers: with seq 0
        result = {"packet_id": packet_id, "status": "success", "data": data, "duration_ms": 0}
        await worker.send({"type": "result", "seq": 0, "payload": result})
    for peer, data in zip(peers, ("mine", "yours"), strict=True):
        payload = (await peer.message("result"))["payload"]
        assert (payload["packet_id"], payload["data"]) == ("same", data)
    # and what one remembers, the other does not depend on
    await peers[0].send(submit(2, id="after", element="echo", dependencies=["same"]))
    assert (await peers[0].message("result"))["payload"]["status"] == "success"
    await peers[0].send(submit(3, id="only-mine", element="echo"))
    await peers[0].message("result")
    await peers[1].send(submit(4, id="x", element="echo", dependencies=["only-mine"], timeout_ms=30))
    assert (await peers[1].message("result"))["payload"]["error"]["code"] == "PF424"
    for peer in (worker, *peers):
        peer.close()


# ---------------------------------------------------------------- floods and monsters


async def test_a_million_unknown_elements_leave_nothing_behind(guarded: Gateway) -> None:
    """The table of learned elements stays bounded; here 20,000 and a bound of 16,384."""
    tester = await Peer.connect(guarded.endpoint, headers=bearer("worker"))  # announces nothing: could handle any
    await until(lambda: guarded.connections == 1)
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))

    async def refuse() -> None:
        while True:
            packet = (await tester.message("submit"))["payload"]
            error = {"code": "PF001", "message": "no"}
            payload = {"packet_id": packet["id"], "status": "error", "error": error, "duration_ms": 0}
            await tester.send({"type": "result", "seq": 0, "payload": payload})

    task = asyncio.create_task(refuse())
    for start in range(0, 20_000, 1000):
        for n in range(start, start + 1000):
            await peer.send(submit(n + 1, id=f"u{n}", element=f"e{n}"))
        for _ in range(1000):
            assert (await peer.message("result"))["payload"]["error"]["code"] == "PF001"
    assert len(guarded.switch.elements) <= 16_384
    assert guarded.switch.in_flight == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    peer.close()
    tester.close()


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"[" * 100_000, "CVE-2024-27454, CVE-2025-67221 (orjson): unbounded recursion"),
        (b'{"a":' * 50_000, "CVE-2024-27454 (orjson): recursion through objects"),
        (b"1" * 200_000, "CVE-2023-26819 (cJSON): numbers without end"),
        (b"1e99999999", "CVE-2023-26819 (cJSON): exponents"),
        (b'"\\ud800"', "CVE-2022-31116 (ujson): lone surrogates"),
        (b'"' + b"\\ud83d\\ude00" * 20_000 + b"\\udc00" + b'"', "CVE-2022-31117 (ujson): reallocation in decoding"),
        (b'"\xff\xfe"', "invalid UTF-8"),
        (b'"\x00"', "a control character"),
    ],
)
async def test_monsters_in_data_are_refused_and_harm_nobody(guarded: Gateway, data: bytes, where: str) -> None:
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))
    await peer.send(
        b'{"type":"submit","seq":1,"payload":{"version":"1.0","id":"m","group":"df","element":"echo","data":%s,'
        b'"priority":5}}' % data
    )
    answer = await peer.message("result", "error")
    code = answer["payload"].get("code") or answer["payload"]["error"]["code"]
    assert code == "PF400", where
    peer.close()
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        assert await reactor.call("df", "echo", "still here") == "still here"


@pytest.mark.parametrize(
    "headers",
    [
        "".join(f"X-{n}: y\r\n" for n in range(5000)),
        "X: " + "a" * 100_000 + "\r\n",
        "Sec-WebSocket-Protocol: " + " " * 15_000 + "x\r\n",
        "Sec-WebSocket-Extensions: " + "a;" * 7_000 + "\r\n",
        "X: y\r\n folded\r\n",
        "Transfer-Encoding: chunked\r\n",
    ],
)
async def test_header_floods_and_slow_patterns(guarded: Gateway, headers: str) -> None:
    """CVE-2024-37890, CVE-2021-32640 (ws): headers without end, and patterns slow to match."""
    try:
        peer = await Peer.connect(guarded.endpoint, headers=bearer("client") + headers)
        assert peer.status in (101, 400, 401)
        peer.close()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        assert await reactor.call("df", "echo", 1) == 1


async def test_one_clients_failure_never_ends_the_gateway(guarded: Gateway) -> None:
    """CVE-2022-41940 (engine.io), CVE-2023-32695 (socket.io-parser), CVE-2018-1000518 (websockets)."""
    for message in (b"", b"\x00" * 10, b'{"type":"heartbeat","seq":1,"payload":{"capabilities":"x","window":-1}}',
                    b'{"type":"heartbeat","seq":1,"payload":{"capabilities":["no:such","df:","df:\\n",":",""]}}',
                    b'{"type":"result","seq":1099511627777,"payload":{"packet_id":"x","status":"success"}}',
                    b'{"type":"error","seq":1099511627777,"payload":{"code":"PF499","packet_id":"x"}}',
                    b'{"type":"error","seq":0,"payload":{"code":7}}'):  # fmt: skip
        peer = await Peer.connect(guarded.endpoint, headers=bearer("worker"))
        await peer.send(message)
        await peer.send(message, rsv=4)  # compressed, though nobody agreed to it
        assert await peer.close_code() in (1002, 1006)
        peer.close()
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        assert await reactor.call("df", "echo", 1) == 1


async def test_floods_of_pings_and_heartbeats_keep_nobody_waiting(guarded: Gateway) -> None:
    flood = await Peer.connect(guarded.endpoint, headers=bearer("worker"))
    beat = b'{"type":"heartbeat","seq":1,"payload":{"timestamp":1,"capabilities":["df:a"]}}'
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        for _ in range(200):
            await flood.send(b"x", opcode=9)
            for _ in range(20):
                await flood.send(beat)
        assert await reactor.call("df", "echo", 1) == 1
    flood.close()


async def test_names_cannot_forge_log_lines(guarded: Gateway) -> None:
    import logging

    from packetflow.logs import JsonFormatter

    record = logging.LogRecord("x", 20, "", 0, "reactor %s", ('evil\n{"level":"error"}',), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"].startswith("reactor evil")


# ---------------------------------------------------------------- TLS


async def test_tls_with_client_certificates_and_tokens(tmp_path: Path) -> None:
    for name, issuer in (("ca", None), ("gateway", "ca"), ("worker.example", "ca"), ("stranger", None)):
        certificate(tmp_path, name, issuer)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "gateway.pem", tmp_path / "gateway.key")
    server.load_verify_locations(tmp_path / "ca.pem")
    server.verify_mode = ssl.CERT_OPTIONAL

    def trust(name: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        if name is not None:
            context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        return context

    gateway = Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=server, access=Access.of(ROLES, identities()))
    gateway.register("df", "echo", lambda data: data)
    async with gateway:
        async with Reactor(gateway.endpoint, ssl=trust("worker.example")) as worker:
            assert await worker.call("df", "echo", 1) == 1
            assert gateway.switch.links[-1].principal.name == "worker"
        async with Reactor(gateway.endpoint, ssl=trust(), token=TOKENS["client"]) as client:
            assert await client.call("df", "echo", "x" * 300_000) == "x" * 300_000
        with pytest.raises(Unauthenticated):
            await Reactor(gateway.endpoint, ssl=trust()).start()
        with pytest.raises(Exception, match="connect"):
            await Reactor(gateway.endpoint, ssl=trust("stranger"), token=TOKENS["client"]).start()
        with pytest.raises(Exception, match="connect"):
            await Reactor(gateway.endpoint, token=TOKENS["client"]).start()  # trusts nobody we know


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("pattern", ["df", "df:", "xx:*", "df:a*b", "df:**", "DF:*", "df:a b", "*"])
def test_bad_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected patterns such as"):
        Role("r", submit=(pattern,))


def test_bad_identities_are_refused() -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Identity("i", "r", ("a-plain-token",))
    with pytest.raises(ValueError, match="stands there twice"):
        Access.of([Role("r")], [Identity("i", "r"), Identity("i", "r")])
    with pytest.raises(ValueError, match="role: expected one of"):
        Access.of([Role("r")], [Identity("i", "other")])


async def test_forbidden_raises_its_own_exception(guarded: Gateway) -> None:
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        with pytest.raises(Forbidden, match="mc:tune"):
            await reactor.call("mc", "tune")
        result: Any = await reactor.submit(Packet("mc", "tune"))
        assert result.error["code"] == "PF403"


async def test_dripped_fragments_cost_their_own_link_only(guarded: Gateway) -> None:
    """A message in a thousand pieces of a byte is read; one without end closes its connection at the bound."""
    peer = await Peer.connect(guarded.endpoint, headers=bearer("client"))
    message = json.dumps(submit(1, element="echo", data="x" * 800)).encode()
    await peer.send(message[:1], fin=False)
    for place in range(1, len(message) - 1):
        await peer.send(message[place : place + 1], opcode=0, fin=False)
    await peer.send(message[-1:], opcode=0)
    assert (await peer.message("result"))["payload"]["data"] == "x" * 800
    await peer.send(b'{"type":"', fin=False)
    with contextlib.suppress(ConnectionError):
        for _ in range(80):
            await peer.send(b"x" * 60_000, opcode=0, fin=False)
    assert await peer.close_code() in (1009, 1006)
    peer.close()
    async with Reactor(guarded.endpoint, token=TOKENS["client"]) as reactor:
        assert await reactor.call("df", "echo", 1) == 1


def test_every_digest_is_compared_whatever_the_ones_before_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials by timing: how long a refusal takes tells nothing of how near it was."""
    import hmac

    from multidict import CIMultiDict

    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def count(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("packetflow.gateway.access.hmac.compare_digest", count)
    access = Access.of(ROLES, identities())
    for token in (TOKENS["client"], TOKENS["limited"], "wrong"):
        compared.clear()
        with contextlib.suppress(PermissionError):
            access.identify(CIMultiDict({"Authorization": f"Bearer {token}"}), None)
        assert len(compared) == 4
        assert all(len(a) == len(b) == 64 for a, b in compared), "digests, not tokens"


def test_a_role_has_lists_of_patterns() -> None:
    for patterns in ("df:*", (5,)):
        with pytest.raises(ValueError, match="role 'r', submit: expected a list of patterns"):
            Role("r", submit=patterns)  # type: ignore[arg-type]


def test_a_principal_is_refused_a_certificate_or_rate_that_is_none() -> None:
    with pytest.raises(ValueError, match="certificate: expected a common name"):
        Identity("i", "r", certificate="")
    for rate in (-1, float("nan")):
        with pytest.raises(ValueError, match="rate, burst: expected 0 or more"):
            Identity("i", "r", rate=rate)


def test_what_is_in_no_group_is_the_gateways_own() -> None:
    assert len(set(Access.of(ROLES, identities()).masks("xx:y", {}))) == 1


def test_a_certificate_of_nobody_here_is_as_good_as_none() -> None:
    from multidict import CIMultiDict

    certificate = {"subject": ((("commonName", "stranger.example"),),)}
    with pytest.raises(PermissionError, match="expected credentials"):
        Access.of(ROLES, identities()).identify(CIMultiDict(), certificate)
    open_to_all = Access.of(ROLES, identities(), anonymous=ROLES[0])
    assert open_to_all.identify(CIMultiDict(), certificate) is None
