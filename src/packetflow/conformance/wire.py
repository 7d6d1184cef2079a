"""A minimal WebSocket in plain Python, written from RFC 6455.

It sends whatever bytes it is told to: what a server or a client is held
against, our own core in its tests included. Nothing here is fast.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl as ssl_module
import struct
from typing import Any

from packetflow.endpoint import parse_endpoint

__all__ = ["Peer", "accept_handshake", "frame", "messages", "split"]


def frame(
    payload: bytes, opcode: int = 1, *, fin: bool = True, mask: bytes | None = b"\x00\x00\x00\x00", rsv: int = 0
) -> bytes:
    """One WebSocket frame; `mask` None for a server's."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask is not None else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", len(payload))
    if mask is None:
        return head + payload
    return head + mask + apply_mask(payload, mask)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Masks, or unmasks (RFC 6455, section 5.3)."""
    if mask == b"\x00\x00\x00\x00":
        return payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Whole frames as (opcode, unmasked payload); the data must hold nothing else."""
    frames = []
    at = 0
    while at < len(data):
        opcode, length = data[at] & 15, data[at + 1] & 127
        assert data[at] & 0x70 == 0, "reserved bits are set"
        masked = data[at + 1] & 0x80
        at += 2
        if length == 126:
            (length,) = struct.unpack_from(">H", data, at)
            assert length >= 126, "not the shortest length"
            at += 2
        elif length == 127:
            (length,) = struct.unpack_from(">Q", data, at)
            assert length >= 65536, "not the shortest length"
            at += 8
        mask = b"\x00\x00\x00\x00"
        if masked:
            mask = data[at : at + 4]
            at += 4
        payload = apply_mask(data[at : at + length], mask)
        assert len(payload) == length, "the last frame is cut"
        at += length
        frames.append((opcode, payload))
    return frames


def messages(data: bytes) -> list[dict[str, Any]]:
    """The JSON of every text frame."""
    return [json.loads(payload) for opcode, payload in split(data) if opcode == 1]


async def accept_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, dict[str, str]]:
    """The server's half of a WebSocket handshake (RFC 6455, section 4.2.2): the path and the headers asked for.

    ValueError says what is wrong with the request.
    """
    request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = request.split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }
    method, _, path = first.partition(" ")
    if method != "GET" or headers.get("upgrade", "").lower() != "websocket" or "sec-websocket-key" not in headers:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        raise ValueError(f"expected a WebSocket handshake, got {first!r}")
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_of(headers['sec-websocket-key'])}\r\n\r\n".encode()
    )
    return path.partition(" ")[0], headers


def accept_of(key: str) -> str:
    """What answers a Sec-WebSocket-Key (RFC 6455, section 1.3)."""
    return base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()


class Peer:
    """One end of a bare WebSocket: sends whatever bytes it is told to.

    `status`, `headers` and `body`: the server's answer to the handshake;
    `accepted`: whether its Sec-WebSocket-Accept is right. `seen`: the messages read;
    `masked`: whether every frame read was.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, masks: bool = True) -> None:
        self.reader, self.writer = reader, writer
        self.status = 101
        self.headers: dict[str, str] = {}
        self.accepted = True
        self.masked = True
        self.seen: list[tuple[int, bytes]] = []
        self._mask = b"\x00\x00\x00\x00" if masks else None

    @classmethod
    async def connect(
        cls, endpoint: str, *, headers: str = "", path: str | None = None, ssl: ssl_module.SSLContext | None = None
    ) -> Peer:
        """Dials and shakes hands; `headers`: lines of the request, each with its CRLF."""
        target = parse_endpoint(endpoint)
        if target.secure and ssl is None:
            ssl = ssl_module.create_default_context()
        reader, writer = await asyncio.open_connection(target.host, target.port, ssl=ssl if target.secure else None)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET {target.path if path is None else path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Version: 13\r\n{headers}\r\n".encode()
        )
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        peer = cls(reader, writer)
        peer.status = int(first.split()[1])
        peer.headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        peer.accepted = peer.headers.get("sec-websocket-accept") == accept_of(key)
        return peer

    async def send(self, message: Any, **options: Any) -> None:
        """One message, or a part: bytes as they are, anything else as JSON. ConnectionError once it is closed."""
        if self.writer.is_closing():
            raise ConnectionResetError("the connection is closed")  # uvloop's transports raise RuntimeError
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.writer.write(frame(payload, **{"mask": self._mask, **options}))
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame."""
        first, second = await self.reader.readexactly(2)
        length = second & 127
        self.masked &= second > 127
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        mask = await self.reader.readexactly(4) if second & 128 else b"\x00\x00\x00\x00"
        payload = await self.reader.readexactly(length)
        return first & 15, apply_mask(payload, mask)

    async def message(self, *kinds: str) -> dict[str, Any]:
        """The next text message, of one of these types if any are named."""
        while True:
            opcode, payload = await self.frame()
            if opcode in (1, 2):
                self.seen.append((opcode, payload))
                message: dict[str, Any] = json.loads(payload)
                if not kinds or message["type"] in kinds:
                    return message

    async def close_code(self) -> int:
        """Reads until the peer closes: its close code, 1006 without one."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == 8:
                    return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
        except (asyncio.IncompleteReadError, ConnectionError):
            return 1006

    def close(self) -> None:
        self.writer.transport.abort()
