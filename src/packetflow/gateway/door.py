"""What a request must look like before anyone asks who sent it: its target, its Host, its Origin, its upgrade.

A page in a visitor's browser can reach loopback, under its own name where that
name's address is changed to 127.0.0.1 meanwhile ("rebinding"). So a gateway on
loopback answers to loopback names only, and to those that it is told. Knows
headers; knows neither principals nor the gateway.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Door", "Refusal", "check_upgrade", "split_target"]

MOST_TARGET = 8192
"""Bytes of a request target (RFC 9112, section 3, asks for 8,000)."""

# RFC 3986, sections 3.3 and 3.4: what a path and a query are made of
_TARGET = re.compile(rb"/(?!/)(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{0,5}))?")


class Refusal(Exception):
    """A request that is not let in: the status, one line that says why, and headers of the answer."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


def split_target(raw: bytes) -> tuple[str, str]:
    """Path and query, as they stand, of a request target in origin form; any other is a `Refusal` (400)."""
    if len(raw) > MOST_TARGET:
        raise Refusal(400, f"expected a request target of at most {MOST_TARGET:,} bytes")
    if not _TARGET.fullmatch(raw):
        raise Refusal(400, "expected a request target such as /packetflow/v1")
    path, _, query = raw.decode("ascii").partition("?")
    return path, query


def check_upgrade(headers: Any) -> None:
    """Is it a WebSocket's opening handshake (RFC 6455, section 4.2.1)? `Refusal` (400, 426) if not.

    Leaves ``Connection: Upgrade`` alone in the headers: browsers may send
    "keep-alive, Upgrade", and picows compares the whole value.
    """
    if headers.get("Upgrade", "").lower() != "websocket":
        raise Refusal(400, "expected Upgrade: websocket")
    options = (one.strip().lower() for value in headers.getall("Connection", []) for one in value.split(","))
    if "upgrade" not in options:
        raise Refusal(400, "expected Connection: Upgrade")
    if headers.getall("Sec-WebSocket-Version", []) not in (["13"], ["8"], ["7"]):
        raise Refusal(426, "expected Sec-WebSocket-Version: 13", {"Sec-WebSocket-Version": "13"})
    keys = headers.getall("Sec-WebSocket-Key", [])
    try:
        good = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Refusal(400, "expected one Sec-WebSocket-Key: 16 bytes in base64")
    headers["Connection"] = "Upgrade"


def _split_host(text: str) -> tuple[str, str] | None:
    """(name, port) of a Host header or its like, in one spelling; None if it is none."""
    match = _HOST.fullmatch(text)
    if match is None or (match[3] and int(match[3]) > 65535):
        return None
    if match[1] is not None:
        try:
            return str(ipaddress.IPv6Address(match[1])), match[3] or ""
        except ValueError:
            return None
    return match[2].lower().removesuffix("."), match[3] or ""


def _is_loopback(name: str) -> bool:
    if name in ("localhost", "::1"):
        return True
    try:
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False


class Door:
    """Which Hosts and Origins a gateway answers to.

    `own`: the host that it listens on. `hosts`: other names, with a port where
    only that will do; ValueError for what is none. `origins`: of web pages that
    may connect, besides those that the gateway's own names serve.
    """

    def __init__(self, own: str, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._own = own.lower()
        self._hosts = self.read_hosts(hosts)
        self._origins = self.read_origins(origins)
        # elsewhere names are nobody's business but those of who names some
        self._looks = _is_loopback(self._own) or bool(self._hosts)

    @staticmethod
    def read_hosts(hosts: Iterable[str]) -> frozenset[tuple[str, str]]:
        """`allowed_hosts`, checked."""
        if isinstance(hosts, str):
            raise ValueError("allowed_hosts: expected a list of names such as ['packets.example']")
        found = []
        for host in hosts:
            parts = _split_host(host) if isinstance(host, str) else None
            if parts is None or not parts[0]:
                raise ValueError(
                    f"allowed_hosts: expected names such as 'packets.example', 'packets.example:8443' or '[::1]', "
                    f"found {host!r}"
                )
            found.append(parts)
        return frozenset(found)

    @staticmethod
    def read_origins(origins: Iterable[str]) -> frozenset[str]:
        """`allowed_origins`, checked."""
        if isinstance(origins, str):
            raise ValueError("allowed_origins: expected a list of origins such as ['https://app.example']")
        found = frozenset(origin.lower() for origin in origins)
        if "null" in found:
            # of sandboxed frames, files and redirects: of anyone's pages
            raise ValueError("allowed_origins: expected origins such as 'https://app.example', found 'null'")
        return found

    def knows(self, host: str) -> bool:
        """Is this Host a loopback name, the gateway's own, or one of `hosts`?"""
        parts = _split_host(host)
        if parts is None:
            return False
        return (
            _is_loopback(parts[0])
            or parts[0] == self._own
            or parts in self._hosts
            or (parts[0], "") in self._hosts
        )  # fmt: skip

    def check_host(self, headers: Any) -> None:
        """`Refusal`: 400 without exactly one Host, 421 for one that is not known, where Hosts are looked at."""
        hosts = headers.getall("Host", [])
        if len(hosts) != 1:
            raise Refusal(400, "expected one Host header")
        if self._looks and not self.knows(hosts[0]):
            raise Refusal(421, "this gateway does not answer to that Host; its allowed_hosts says which it does")

    def check_origin(self, headers: Any) -> None:
        """`Refusal` (403) for a web page that is neither allowed nor of a Host that is known."""
        origins = headers.getall("Origin", [])
        if not origins:
            return
        if len(origins) == 1:
            origin = origins[0].lower()
            if origin in self._origins:
                return
            host = headers.get("Host", "").lower()
            if origin in (f"http://{host}", f"https://{host}") and self.knows(host):
                return
        raise Refusal(403, "this origin is not allowed")
