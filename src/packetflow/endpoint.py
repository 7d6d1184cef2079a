"""Endpoints: where a gateway listens and a reactor dials.

``ws://host[:port][/path]`` and ``packetflow://`` are the same but for their
default port, and so are ``wss://`` and ``packetflows://``, over TLS.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

__all__ = ["DEFAULT_PATH", "DEFAULT_PORT", "Endpoint", "parse_endpoint"]

DEFAULT_PORT = 8443
DEFAULT_PATH = "/packetflow/v1"

_SCHEMES = {"ws": (False, 80), "wss": (True, 443), "packetflow": (False, 8443), "packetflows": (True, 8443)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint. `url` is its ``ws://`` or ``wss://`` form, without credentials.

    `credentials`: (name, token) of ``ws://name:token@host``, None where there are none.
    """

    host: str
    port: int
    path: str
    secure: bool
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The URL to dial."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Does the host name this machine only?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_endpoint(url: str) -> Endpoint:
    """The `Endpoint` of a URL; ValueError says what is wrong with it."""
    if not isinstance(url, str):
        raise TypeError(f"endpoint: expected a URL such as ws://127.0.0.1:8443{DEFAULT_PATH}, got {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"endpoint {url!r}: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"endpoint {url!r}: expected ws://, wss://, packetflow:// or packetflows://")
    if not parts.hostname:
        raise ValueError(f"endpoint {url!r}: expected a host after {parts.scheme}://")
    if parts.fragment:
        raise ValueError(f"endpoint {url!r}: expected no fragment (#{parts.fragment})")
    credentials = None
    if parts.username is not None or parts.password is not None:
        if not parts.password:
            raise ValueError("endpoint: expected name:token before the @, found no token")
        credentials = (unquote(parts.username or ""), unquote(parts.password))
    secure, default_port = _SCHEMES[parts.scheme]
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    if parts.query:
        path += f"?{parts.query}"
    return Endpoint(parts.hostname, default_port if port is None else port, path, secure, credentials)
