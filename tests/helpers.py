"""What several test modules use: waiting for what others do, frames, credentials, a gateway's process and its pages."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packetflow import Gateway, Identity, PacketFlowError, Role
from packetflow.elements.turns import SLICE
from packetflow.gateway import hash_token, new_token

TOKENS = {name: new_token() for name in ("client", "worker", "admin", "limited")}

ROLES = [
    Role("client", submit=("df:*", "ed:order.*", "cf:go")),
    Role("worker", submit=("df:*",), handle=("df:*", "ed:*", "cf:go", "rm:lock"), replace=("rm:lock",)),
    Role("admin", submit=("*:*",), handle=("*:*",), admin=True),
]


def identities() -> list[Identity]:
    return [
        Identity("client", "client", (hash_token(TOKENS["client"]),)),
        Identity("worker", "worker", (hash_token(TOKENS["worker"]),), certificate="worker.example"),
        Identity("admin", "admin", (hash_token(TOKENS["admin"]),)),
        Identity("limited", "client", (hash_token(TOKENS["limited"]),), rate=5),
    ]


class Loop:
    """A loop as far as alarms need one: time is what the test says."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.loop.time = lambda: self.now  # type: ignore[method-assign]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))


class Stays:
    """A handler that never returns: what has begun, and what has ended."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []

    async def __call__(self, data: Any) -> None:
        self.begun.append(data)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.append(data)


async def until(condition: Callable[[], Any]) -> None:
    """Waits for what another task or process does; the test's timeout is the bound."""
    while not condition():
        await asyncio.sleep(0.002)


def submit(seq: int, **fields: Any) -> dict[str, Any]:
    packet = {"version": "1.0", "id": f"p-{seq}", "group": "df", "element": "work", "data": "x", "priority": 5}
    return {"type": "submit", "seq": seq, "payload": packet | fields}


def server_context(directory: Path) -> ssl.SSLContext:
    """A gateway's TLS, by an authority whose certificate is ca.pem there."""
    certificate(directory, "ca")
    certificate(directory, "gateway", "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "gateway.pem", directory / "gateway.key")
    return context


def certificate(directory: Path, name: str, issuer: str | None = None) -> None:
    """A key and a certificate, that of an authority, or signed by `issuer`; strict readers want every extension."""
    usage = "keyCertSign, cRLSign" if issuer is None else "digitalSignature"
    config = directory / f"{name}.cnf"
    config.write_text(
        "[req]\ndistinguished_name = dn\nx509_extensions = extensions\n[dn]\n[extensions]\n"
        f"basicConstraints = critical, CA:{'TRUE' if issuer is None else 'FALSE'}\nkeyUsage = critical, {usage}\n"
        "subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\nsubjectAltName = IP:127.0.0.1, DNS:localhost\n"
    )
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", f"/CN={name}", "-keyout", str(directory / f"{name}.key"),
               "-out", str(directory / f"{name}.pem"), "-config", str(config)]  # fmt: skip
    if issuer is not None:
        command += ["-CA", str(directory / f"{issuer}.pem"), "-CAkey", str(directory / f"{issuer}.key")]
    subprocess.run(command, check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """``packetflow gateway`` in a process of its own, once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "packetflow", "gateway", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on")
        yield process
    finally:
        process.kill()
        process.communicate()


async def get(gateway: Gateway, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    url = gateway.endpoint.replace("ws://", "http://").removesuffix("/packetflow/v1") + path

    def fetch_now() -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(fetch_now)


class Slow:
    """A clock on which every piece of work takes a whole slice: whoever takes turns does one in an iteration."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += SLICE
        return self.now


async def refused(waiting: Any) -> PacketFlowError:
    """The error that a call ends in."""
    with pytest.raises(PacketFlowError) as caught:
        await waiting
    return caught.value
