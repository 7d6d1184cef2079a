"""What comes to a gateway's port before anyone is let in: targets, Hosts, Origins, tokens, certificates, floods."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from packetflow import Access, Gateway, Identity, Reactor, Role, run
from packetflow.errors import PacketFlowError
from packetflow.gateway import hash_token, new_token
from packetflow.gateway.config import ConfigError, load_config
from packetflow.gateway.door import Door, Refusal, check_upgrade, split_target
from tests.helpers import certificate, free_port, get, served, until

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing."""

TOKEN = new_token()
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE = f"Upgrade: websocket\r\nConnection: Upgrade\r\n{KEY}"


def where(gateway: Gateway) -> tuple[str, int]:
    host, port = gateway.endpoint.partition("://")[2].partition("/")[0].rsplit(":", 1)
    return host, int(port)


async def ask(gateway: Gateway, request: bytes) -> bytes:
    """Sends these bytes and returns everything that comes back."""
    reader, writer = await asyncio.open_connection(*where(gateway))
    answer = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        answer = await reader.readline()
        if b" 101 " not in answer:
            answer += await reader.read()
    writer.transport.abort()
    return answer


async def status(gateway: Gateway, *, target: bytes = b"/packetflow/v1", host: str | None = "127.0.0.1:1",
                 headers: str = UPGRADE) -> int:  # fmt: skip
    """The status that answers a request with this target, Host and headers; 0: closed without one."""
    line = "" if host is None else f"Host: {host}\r\n"
    answer = await ask(gateway, b"GET " + target + b" HTTP/1.1\r\n" + f"{line}{headers}\r\n".encode("latin-1"))
    return int(answer.split()[1]) if answer else 0


@pytest.fixture
async def open_gateway() -> AsyncIterator[Gateway]:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        gateway.register("df", "echo", lambda data: data)
        yield gateway


@pytest.fixture
async def guarded() -> AsyncIterator[Gateway]:
    access = Access.of([Role("r", submit=("*:*",))], [Identity("someone", "r", (hash_token(TOKEN),))])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as gateway:
        gateway.register("df", "echo", lambda data: data)
        yield gateway


async def lives(gateway: Gateway) -> None:
    async with Reactor(
        gateway.endpoint, token=TOKEN if gateway.view.admission.access.authenticates else None
    ) as reactor:
        assert await reactor.call("df", "echo", 1) == 1


# ---------------------------------------------------------------- credentials


def test_a_digest_of_nothing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"principal 'billing', tokens\[1\]: .*empty"):
        Identity("billing", "r", (hash_token("x"), NOTHING))
    path = tmp_path / "gateway.toml"
    path.write_text(f'[roles.r]\nsubmit = ["*:*"]\n[principals.billing]\nrole = "r"\ntokens = ["{NOTHING}"]\n')
    with pytest.raises(ConfigError, match=r"principals\.billing: .*tokens\[0\]: .*empty"):
        load_config(path)
    with pytest.raises(ValueError, match="token"):
        hash_token("")


def test_the_documentation_has_no_digest_that_could_be_copied() -> None:
    import re

    for page in (Path(__file__).parents[2] / "docs").rglob("*.md"):
        assert not re.search(r"\b[0-9a-f]{64}\b", page.read_text()), page


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[2J", "a\x7f", "a\x85", "a\u2028b", "a\u202eb", 5, "anonymous"])
def test_names_of_principals_are_plain_text(name: Any) -> None:
    with pytest.raises(ValueError, match="principal"):
        Identity(name, "r", (hash_token("x"),))


def test_an_empty_common_name_is_nobodys() -> None:
    with pytest.raises(ValueError, match="certificate"):
        Identity("i", "r", certificate="")
    identity = Identity("i", "r", certificate="worker")
    object.__setattr__(identity, "certificate", "")  # as if it had got past
    access = Access.of([Role("r")], [identity])
    with pytest.raises(PermissionError):
        access.identify(CIMultiDict(), {"subject": ((("commonName", ""),),)})
    two = {"subject": ((("commonName", "worker"),), (("commonName", "other"),))}
    with pytest.raises(PermissionError):
        Access.of([Role("r")], [Identity("i", "r", certificate="worker")]).identify(CIMultiDict(), two)


EMPTY = [
    "Authorization: Bearer \r\n",
    "Authorization: Bearer\r\n",
    "Authorization: \r\n",
    "Authorization: Basic \r\n",
    "Authorization: Basic " + base64.b64encode(b"someone:").decode() + "\r\n",
    "Authorization: Basic " + base64.b64encode(b":").decode() + "\r\n",
    "Authorization: Basic " + base64.b64encode(b"someone").decode() + "\r\n",
    "Sec-WebSocket-Protocol: bearer.\r\n",
    "Sec-WebSocket-Protocol: packetflow, bearer.\r\n",
]


@pytest.mark.parametrize("headers", EMPTY)
async def test_empty_credentials_are_never_accepted(guarded: Gateway, open_gateway: Gateway, headers: str) -> None:
    assert await status(guarded, headers=UPGRADE + headers) == 401
    assert await status(open_gateway, headers=UPGRADE + headers) == 401, "not even where nobody needs any"
    identity = Identity("someone", "r", (hash_token("x"),))
    object.__setattr__(identity, "tokens", (NOTHING,))  # as if it had got past
    guarded.set_access(Access.of([Role("r")], [identity]))
    assert await status(guarded, headers=UPGRADE + headers) == 401


@pytest.mark.parametrize(
    "headers",
    [
        "Authorization: Bearer \xe9\r\n",
        "Authorization: Bearer \xff\xfe\r\n",
        "Authorization: Basic \xff\xfe\r\n",
        "Authorization: Basic =\r\n",
        "Authorization: Basic " + base64.b64encode(b"\xff\xfe:\xff").decode() + "\r\n",
        "Authorization: Basic " + base64.b64encode(b"\x00:\x00").decode() + "\r\n",
        "Authorization: Basic " + base64.b64encode("é:é".encode()).decode() + "\r\n",
        "Authorization: Basic " + base64.b64encode(f"other:{TOKEN}".encode()).decode() + "\r\n",
        "Sec-WebSocket-Protocol: bearer.\xff\r\n",
        f"Sec-WebSocket-Protocol: bearer.{TOKEN}, bearer.other\r\n",
        "Authorization: Bearer " + "x" * 12_000 + "\r\n",
    ],
)
async def test_odd_tokens_are_401(guarded: Gateway, headers: str) -> None:
    assert await status(guarded, headers=UPGRADE + headers) == 401
    assert (await ask(guarded, f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode("latin-1"))).split()[
        1
    ] == b"401"
    await lives(guarded)


async def test_a_token_beyond_ascii_is_compared_by_its_bytes(guarded: Gateway) -> None:
    token = "sesam-öffne-dich" * 3
    guarded.set_access(Access.of([Role("r")], [Identity("someone", "r", (hash_token(token),))]))
    header = f"Authorization: Bearer {token}\r\n".encode().decode("latin-1")
    assert await status(guarded, headers=UPGRADE + header) == 101


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    "target",
    [
        b"http://127.0.0.1/packetflow/v1", b"127.0.0.1:80", b"*", b"//host/packetflow/v1", b"//[", b"/[", b"/]",
        b"http://[", b"/packetflow/v1#x", b"/%", b"/%zz", b"/\xc3\xa9", b"/\xff", b"/\x00", b"/\x07", b"/\t", b"/\x7f",
        b"/a\nb", b"/a\rb", b"?x", b"packetflow/v1", b"/\\", b"/<script>", b"/" + b"x" * 9000,
        b"/packetflow/v1?" + b"x" * 9000,
    ],
    ids=lambda target: repr(target[:24]),
)  # fmt: skip
async def test_odd_request_targets_are_400(open_gateway: Gateway, target: bytes) -> None:
    assert await status(open_gateway, target=target) == 400
    await lives(open_gateway)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/packetflow/v1", 101), (b"/packetflow/v1?", 101), (b"/packetflow/v1?handles=", 101),
        (b"/packetflow/v1?handles=df%3Aa,%00,%ff,:,df:&handles=%5B", 101), (b"/packetflow/v1?&&&=&;=%26", 101),
        (b"/packetflow%2fv1", 404), (b"/packetflow/v1/", 404), (b"/./packetflow/v1", 404), (b"/%00", 404),
    ],
)  # fmt: skip
async def test_plain_targets_are_found_or_not(open_gateway: Gateway, target: bytes, expected: int) -> None:
    assert await status(open_gateway, target=target) == expected
    await lives(open_gateway)


@pytest.mark.parametrize(
    "headers",
    [
        "", "Upgrade: websocket\r\n" + KEY, "Connection: Upgrade\r\n" + KEY, UPGRADE + KEY,
        UPGRADE.replace("13", "\xff"), UPGRADE.replace("13", "12"), UPGRADE.replace("websocket", "h2c"),
        UPGRADE.replace("dGhl", "\xff\xff\xff\xff"), UPGRADE.replace("dGhl", ""), UPGRADE.replace("dGhl", "é"),
    ],
)  # fmt: skip
async def test_what_is_not_an_upgrade_leaves_nothing_behind(
    open_gateway: Gateway, headers: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await status(open_gateway, headers=headers) in (400, 426)
    assert open_gateway.connections == 0
    await lives(open_gateway)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


async def test_the_request_line_and_headers_are_bounded(open_gateway: Gateway) -> None:
    for request in (
        b"G" * 70_000,
        b"GET /" + b"x" * 70_000,
        b"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000,
        b"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 16_384 + b"\r\n" + UPGRADE.encode() + b"\r\n",
    ):
        assert b" 101 " not in await ask(open_gateway, request)
    await until(lambda: open_gateway.view.admission.arriving == 0)
    await lives(open_gateway)


async def test_a_fault_of_ours_at_the_door_costs_one_connection_and_one_line(
    open_gateway: Gateway, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("nobody foresaw this\x1b")

    with monkeypatch.context() as patch:
        patch.setattr(Access, "identify", broken)
        for _ in range(30):
            assert await status(open_gateway) == 500
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert 1 <= len(records) <= 20, "bounded"
    assert "KeyError" in records[0].getMessage()
    assert records[0].exc_info is None
    await lives(open_gateway)


async def test_refused_attempts_are_logged_within_a_bound(guarded: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        assert await status(guarded) == 401
    assert guarded.counts["unauthenticated"] == 100
    assert 1 <= len(caplog.records) <= 40, "ten a second"


# ---------------------------------------------------------------- Host and Origin

NAMES = ["127.0.0.1:{port}", "127.0.0.1", "127.9.8.7:5", "localhost:{port}", "LocalHost", "localhost.:{port}",
         "[::1]:{port}", "[::1]", "localhost:"]  # fmt: skip
STRANGERS = ["evil.example", "evil.example:{port}", "localhost.evil.example:{port}", "127.0.0.1.evil.example",
             "192.0.2.1:{port}", "[::2]", "0.0.0.0:{port}", "localhost@evil.example", "x", "127.0.0.1:{port}, x",
             "[::ffff:127.0.0.1]"]  # fmt: skip


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/packetflow/v1"])
async def test_on_loopback_only_loopback_names_are_answered(open_gateway: Gateway, path: str) -> None:
    """A page that rebinds its name to 127.0.0.1 sends that name as Host."""
    port = where(open_gateway)[1]
    good = 101 if path == "/packetflow/v1" else 200
    headers = UPGRADE if good == 101 else ""
    for host in NAMES:
        shown = host.format(port=port)
        assert await status(open_gateway, target=path.encode(), host=shown, headers=headers) == good, shown
    for host in STRANGERS:
        shown = host.format(port=port)
        assert await status(open_gateway, target=path.encode(), host=shown, headers=headers) in (400, 421), shown
    for lines in ("", "Host: localhost\r\nHost: localhost\r\n"):
        assert await status(open_gateway, target=path.encode(), host=None, headers=lines + headers) == 400
    assert await status(open_gateway, target=path.encode(), host="", headers=headers) in (400, 421)
    assert open_gateway.counts["refused_host"] >= len(STRANGERS)


async def test_the_refusal_of_a_host_says_what_to_do(open_gateway: Gateway) -> None:
    code, text = await get(open_gateway, "/metrics", {"Host": "evil.example"})
    assert code == 421
    assert "allowed_hosts" in text
    assert text.count("\n") == 1
    assert "evil" not in text


async def test_other_hosts_are_let_in_by_name() -> None:
    hosts = ["Packets.example", "other.example:81", "[2001:DB8::1]"]
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", allowed_hosts=hosts) as gateway:
        for host, expected in (("packets.example", 101), ("packets.EXAMPLE:99", 101), ("other.example:81", 101),
                               ("other.example", 421), ("other.example:82", 421), ("[2001:db8:0::1]:5", 101),
                               ("localhost:7", 101), ("evil.example", 421)):  # fmt: skip
            assert await status(gateway, host=host) == expected, host
        gateway.set_limits(allowed_hosts=["new.example"])
        assert await status(gateway, host="packets.example") == 421
        assert await status(gateway, host="new.example") == 101


@pytest.mark.parametrize("bad", ["", "http://x", "a b", "x/y", "*", "a:b", "x:99999999", "\u202e", 5])
def test_hosts_that_are_none_are_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        Gateway(allowed_hosts=[bad])
    if isinstance(bad, str):
        path = tmp_path / "gateway.toml"
        path.write_text(f"[gateway]\nallowed_hosts = [{bad!r}]\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"gateway\.allowed_hosts"):
            load_config(path)


def test_elsewhere_hosts_are_looked_at_where_some_are_named() -> None:
    def headers(host: str) -> CIMultiDict[str]:
        return CIMultiDict({"Host": host})

    Door("192.0.2.1").check_host(headers("anything.example"))
    named = Door("192.0.2.1", hosts=["packets.example"])
    for host in ("packets.example", "192.0.2.1:8443", "localhost"):
        named.check_host(headers(host))
    with pytest.raises(Refusal, match="allowed_hosts"):
        named.check_host(headers("evil.example"))
    with pytest.raises(Refusal, match="one Host"):
        Door("192.0.2.1").check_host(CIMultiDict())


async def test_the_same_origin_is_no_stranger() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", allowed_hosts=["packets.example"],
                       allowed_origins=["https://good.example"]) as gateway:  # fmt: skip
        for host, origin, expected in (
            ("localhost:8443", "http://localhost:8443", 101),
            ("localhost:8443", "https://LOCALHOST:8443", 101),
            ("packets.example", "https://packets.example", 101),
            ("localhost:8443", "https://good.example", 101),
            ("localhost:8443", "http://localhost:3000", 403),
            ("localhost:8443", "http://localhost", 403),
            ("localhost:8443", "http://127.0.0.1:8443", 403),
            ("localhost:8443", "ftp://localhost:8443", 403),
            ("localhost:8443", "null", 403),
            ("localhost:8443", "", 403),
            ("evil.example", "http://evil.example", 421),
        ):
            assert await status(gateway, host=host, headers=f"{UPGRADE}Origin: {origin}\r\n") == expected, origin
        twice = "Origin: https://good.example\r\n" * 2
        assert await status(gateway, headers=UPGRADE + twice) == 403
    with pytest.raises(ValueError, match="allowed_origins"):
        Gateway(allowed_origins=["null"])


def test_splitting_a_target() -> None:
    assert split_target(b"/a/b?c=d?e") == ("/a/b", "c=d?e")
    assert split_target(b"/") == ("/", "")
    with pytest.raises(Refusal):
        split_target(b"")


def test_an_upgrade_among_other_connection_options() -> None:
    headers = CIMultiDict([("Upgrade", "WebSocket"), ("Connection", "keep-alive, Upgrade"), ("Connection", "x"),
                           ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Version", "13")])  # fmt: skip
    check_upgrade(headers)
    assert headers.getall("Connection") == ["Upgrade"]


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, a gateway's certificate, and a worker's of each authority."""
    directory = tmp_path_factory.mktemp("certificates")
    for name, issuer in (("ca", None), ("old-ca", None), ("gateway", "ca"), ("worker", "ca")):
        certificate(directory, name, issuer)
    old = directory / "old"
    old.mkdir()
    for kind in ("pem", "key"):
        (old / f"old-ca.{kind}").write_text((directory / f"old-ca.{kind}").read_text())
    certificate(old, "worker", "old-ca")
    return directory


def trust(certificates: Path, who: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if who is not None:
        context.load_cert_chain(certificates / f"{who}.pem", certificates / f"{who}.key")
    return context


CONFIG = """
[gateway]
endpoint = "wss://127.0.0.1:{port}/packetflow/v1"
[tls]
certificate = "{directory}/gateway.pem"
key = "{directory}/gateway.key"
client_ca = "{ca}"
[roles.worker]
submit = ["*:*"]
[principals.worker]
role = "worker"
certificate = "worker"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP")
def test_client_authorities_that_were_taken_out_are_not_trusted_after_sighup(
    certificates: Path, tmp_path: Path
) -> None:
    port = free_port()
    endpoint = f"wss://127.0.0.1:{port}/packetflow/v1"
    both = tmp_path / "both.pem"
    both.write_text((certificates / "ca.pem").read_text() + (certificates / "old-ca.pem").read_text())
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(port=port, directory=certificates, ca=both))

    async def enters(who: str) -> bool:
        try:
            async with Reactor(endpoint, ssl=trust(certificates, who), reconnect=False):
                return True
        except PacketFlowError:
            return False

    def logged(text: str) -> None:
        while text not in (line := stderr.readline()):
            assert line, text

    async def across() -> None:
        """A link that is open goes on, and whoever comes later is held to the new file."""
        async with Reactor(endpoint, ssl=trust(certificates, "old/worker"), reconnect=False) as link:
            config.write_text(CONFIG.format(port=port, directory=certificates, ca=certificates / "ca.pem"))
            process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(logged, "was read again")
            assert not await enters("old/worker"), "taken out"
            assert await enters("worker")
            assert link.connected
            assert (await link.submit({"group": "df", "element": "transform"})).status is not None
            config.write_text(CONFIG.format(port=port, directory=certificates, ca=tmp_path / "missing"))
            process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(logged, "stays as it was")
            assert await enters("worker")

    with served("--config", "gateway.toml", cwd=tmp_path) as process:
        assert process.stderr is not None
        stderr = process.stderr
        assert run(enters("worker"))
        assert run(enters("old/worker"))
        run(across())
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def _server(certificates: Path, ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "gateway.pem", certificates / "gateway.key")
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def test_a_new_context_is_used_at_once_and_no_connection_is_lost(certificates: Path) -> None:
    access = Access.of([Role("worker", submit=("*:*",))], [Identity("worker", "worker", certificate="worker")])
    old = certificates / "old/old-ca.pem"
    async with Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=_server(certificates, old), access=access) as gateway:
        gateway.register("df", "echo", lambda data: data)
        async with Reactor(gateway.endpoint, ssl=trust(certificates, "old/worker")) as link:
            # a handshake of TLS that is over, of HTTP that is not
            reader, writer = await asyncio.open_connection(*where(gateway), ssl=trust(certificates, "old/worker"))
            await until(lambda: gateway.view.admission.arriving == 2)
            endpoint = gateway.endpoint
            await asyncio.gather(*(gateway.set_ssl(_server(certificates, certificates / "ca.pem")) for _ in range(3)))
            assert gateway.endpoint == endpoint
            writer.write(f"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode())
            assert b" 503 " in await reader.readline(), "its certificate was checked by the old authorities"
            writer.transport.abort()
            for _ in range(20):
                with pytest.raises(Exception, match="connect|lost"):
                    await Reactor(gateway.endpoint, ssl=trust(certificates, "old/worker"), reconnect=False).start()
                async with Reactor(gateway.endpoint, ssl=trust(certificates, "worker")) as worker:
                    assert await worker.call("df", "echo", 1) == 1
            assert await link.call("df", "echo", 2) == 2
            await gateway.set_ssl(_server(certificates, None))
            with pytest.raises(Exception, match="credentials"):
                await Reactor(gateway.endpoint, ssl=trust(certificates, "worker"), reconnect=False).start()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*where(gateway))  # nobody listens any more
    with pytest.raises(ValueError, match="ssl"):
        await Gateway().set_ssl(_server(certificates, None))


async def test_handshakes_that_are_cut_are_a_line_each_and_no_traceback(
    certificates: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=_server(certificates, None),
                       handshake_timeout=0.5) as gateway:  # fmt: skip
        gateway.register("df", "echo", lambda data: data)
        host, port = where(gateway)

        async def cut(what: bytes, reset: bool) -> None:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(what)
            with contextlib.suppress(ConnectionError):
                if reset:
                    writer.transport.abort()
                else:
                    writer.write_eof()
                    await reader.read()
            writer.close()

        hello = bytes.fromhex("160301020001000" + "1fc0303") + b"x" * 20
        for n in range(200):
            await cut((hello, b"GET / HTTP/1.1\r\n\r\n", b"", b"\x00\xff")[n % 4], n % 8 >= 4)
        slow = await asyncio.open_connection(host, port)
        assert await slow[0].read() == b""
        slow[1].close()
        await until(lambda: gateway.counts["tls"] >= 150)
        async with Reactor(gateway.endpoint, ssl=trust(certificates)) as reactor:
            assert await reactor.call("df", "echo", 1) == 1
        assert not gateway._server._gate.shaking  # type: ignore[union-attr]
    assert not [record for record in caplog.records if record.exc_info is not None]
    assert len(caplog.records) <= 100
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert "Logging error" not in shown


async def test_unfinished_handshakes_of_tls_are_bounded(certificates: Path) -> None:
    async with Gateway("wss://127.0.0.1:0/packetflow/v1", ssl=_server(certificates, None), max_connections=5,
                       handshake_timeout=30) as gateway:  # fmt: skip
        held = [await asyncio.open_connection(*where(gateway)) for _ in range(30)]
        await until(lambda: gateway.counts["turned_away"] >= 20)
        assert len(gateway._server._gate.shaking) == 10  # type: ignore[union-attr]
        for _, writer in held:
            writer.transport.abort()
        await until(lambda: not gateway._server._gate.shaking)  # type: ignore[union-attr]
        async with Reactor(gateway.endpoint, ssl=trust(certificates)) as reactor:
            assert reactor.connected


def test_a_flood_of_cut_handshakes_stays_within_the_bound_of_the_log(certificates: Path, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(port=port, directory=certificates, ca=certificates / "ca.pem"))

    async def flood() -> None:
        for n in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n")[n % 2])
            with contextlib.suppress(ConnectionError):
                writer.write_eof()
                await reader.read()
            writer.close()
        async with Reactor(f"wss://127.0.0.1:{port}", ssl=trust(certificates, "worker")) as reactor:
            assert reactor.connected

    with served("--config", "gateway.toml", cwd=tmp_path) as process:
        run(flood())
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert process.wait(10) == 0
    assert 1 <= len(lines) <= 100
    assert not [line for line in lines if "Traceback" in line or line.startswith(" ")]


def test_names_at_the_door_are_lists() -> None:
    with pytest.raises(ValueError, match="allowed_hosts: expected a list"):
        Door("127.0.0.1", hosts="packets.example")
    with pytest.raises(ValueError, match="allowed_origins: expected a list"):
        Door("127.0.0.1", origins="https://app.example")
    with pytest.raises(ValueError, match="allowed_hosts: expected names such as"):
        Door("127.0.0.1", hosts=["[1::2::3]"])
