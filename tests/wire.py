"""A minimal WebSocket in plain Python, written from RFC 6455: what tests hold the core against."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import struct
from typing import Any


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
    return head + mask + bytes(b ^ mask[i & 3] for i, b in enumerate(payload))


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
        payload = bytes(b ^ mask[i & 3] for i, b in enumerate(data[at : at + length]))
        assert len(payload) == length, "the last frame is cut"
        at += length
        frames.append((opcode, payload))
    return frames


def messages(data: bytes) -> list[dict[str, Any]]:
    """The JSON of every text frame."""
    return [json.loads(payload) for opcode, payload in split(data) if opcode == 1]


async def accept_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server's half of a WebSocket handshake (RFC 6455, section 4.2.2)."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = dict(line.lower().split(": ", 1) for line in request.split("\r\n")[1:] if line)
    key = next(line.split(": ")[1] for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    assert lines["upgrade"] == "websocket"
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )


class Peer:
    """A raw WebSocket client over a socket: sends whatever bytes a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, endpoint: str, *, headers: str = "", path: str = "/packetflow/v1") -> Peer:
        host, port = endpoint.removeprefix("ws://").partition("/")[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n".encode()
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        peer = cls(reader, writer)
        peer.status = int(answer.split()[1])
        return peer

    status = 101

    async def send(self, message: Any, **options: Any) -> None:
        """One message: bytes as they are, anything else as JSON."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.writer.write(frame(payload, **options))
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next frame."""
        first, second = await self.reader.readexactly(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        return first & 15, await self.reader.readexactly(length)

    async def message(self, *kinds: str) -> dict[str, Any]:
        """The next text message, of one of these types if any are named."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 1:
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
