"""Frames made once and sent a million times, and connections that keep no rule: what a stranger's program would have.

Knows the protocol as bytes; nothing of `packetflow`, whose checks would stand in the way.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

NUMBER = "@N@"
"""In a frame of `submits`: ten digits, others in each frame."""

PATH = "/packetflow/v1"
HIGH_WATER = 1 << 18
OUTCOME = re.compile(rb'"status":"(success)"|"code":"(PF\d{3})"')
LONGEST_OUTCOME = len('"status":"success"')
SUBMIT = re.compile(rb'^\{"type":"submit","seq":(\d+),"payload":\{"version":"[^"]*","id":"([^"]*)"')
numbers = itertools.count(1_000_000_000)
prefix = os.urandom(4).hex()


def header(length: int, opcode: int = 1, *, fin: bool = True) -> bytes:
    """A client's frame header: masked, with a key of zeros, so that the payload may be sent as it stands."""
    first = bytes([opcode | (0x80 if fin else 0)])
    if length < 126:
        return first + bytes([0x80 | length]) + bytes(4)
    if length < 65536:
        return first + b"\xfe" + length.to_bytes(2, "big") + bytes(4)
    return first + b"\xff" + length.to_bytes(8, "big") + bytes(4)


def frame(body: bytes | str, opcode: int = 1, *, fin: bool = True) -> bytes:
    """A whole frame around `body`."""
    raw = body.encode() if isinstance(body, str) else body
    return header(len(raw), opcode, fin=fin) + raw


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def message(kind: str, payload: Any, seq: Any = 1) -> bytes:
    return frame(compact({"type": kind, "seq": seq, "payload": payload}))


def heartbeat(**fields: Any) -> bytes:
    return message("heartbeat", {"timestamp": 1, **fields})


def body(key: str, data: Any = None, *, raw: str | None = None, id: str | None = None, seq: Any = None,
         priority: Any = 5, **fields: Any) -> str:  # fmt: skip
    """A submit in the canonical layout; `raw`: its data as JSON text. A fresh id and seq where none is given."""
    group, _, element = key.partition(":")
    number = next(numbers) if id is None or seq is None else 0
    extra = "".join(f',"{name}":{compact(value)}' for name, value in fields.items())
    return (
        f'{{"type":"submit","seq":{number if seq is None else seq},"payload":{{"version":"1.0",'
        f'"id":"{f"{prefix}-{number}" if id is None else id}","group":"{group}","element":"{element}",'
        f'"data":{compact(data) if raw is None else raw},"priority":{priority}{extra}}}}}'
    )


def submit(key: str, data: Any = None, **fields: Any) -> bytes:
    return frame(body(key, data, **fields))


def submits(key: str, data: Any = None, *, count: int | None = None, **fields: Any) -> Iterator[bytes]:
    """Frames that differ in id, seq and wherever `NUMBER` stands; without `count`, for ever."""
    fields = {"id": f"{prefix}-{NUMBER}", "seq": NUMBER} | fields
    text = body(key, data, **fields)
    parts = text.encode().split(NUMBER.encode())
    front = header(sum(map(len, parts)) + 10 * (len(parts) - 1))
    for _ in itertools.repeat(None) if count is None else itertools.repeat(None, count):
        yield front + (b"%d" % next(numbers)).join(parts)


def result(seq: Any, packet_id: bytes | str, rest: str = '"status":"success","data":1,"duration_ms":1') -> bytes:
    """An answer; `rest`: its other fields as JSON text."""
    name = packet_id.decode() if isinstance(packet_id, bytes) else packet_id
    number = seq.decode() if isinstance(seq, bytes) else seq
    return frame(f'{{"type":"result","seq":{number},"payload":{{"packet_id":"{name}",{rest}}}}}')


def refusal(seq: Any, packet_id: bytes | str, code: str = "PF429") -> bytes:
    return result(seq, packet_id, f'"status":"error","error":{{"code":"{code}","message":"no"}},"duration_ms":1')


def handshake(handles: str | None = "", *, token: str | None = None, headers: str = "") -> bytes:
    """An upgrade; `handles` None: announces nothing, and so may be tried for anything."""
    query = "" if handles is None else f"?handles={handles}"
    bearer = f"Authorization: Bearer {token}\r\n" if token is not None else ""
    return (
        f"GET {PATH}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{bearer}{headers}\r\n"
    ).encode()


class Stranger(asyncio.Protocol):
    """One connection. Counts in `tally` what comes back; `on_message` gets each text message, if given."""

    transport: asyncio.Transport

    def __init__(
        self, tally: Counter[str], *, upgrade: bytes = b"",
        on_message: Callable[[Stranger, bytes], object] | None = None,
    ) -> None:  # fmt: skip
        loop = asyncio.get_running_loop()
        self._tally = tally
        self._upgrade = upgrade
        self._on_message = on_message
        self._buffer = bytearray()
        self._tail = b""
        self._answered = not upgrade
        self._room = asyncio.Event()
        self._room.set()
        self.opened: asyncio.Future[bool] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.left = False
        self.outcomes = 0

    @classmethod
    async def dial(cls, port: int, tally: Counter[str], *, read: bool = True, **options: Any) -> Stranger:
        """Connects and, with `upgrade`, waits for the answer: ConnectionError where it is not 101."""
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(lambda: cls(tally, **options), "127.0.0.1", port)
        if options.get("upgrade") and not await stranger.opened:
            raise ConnectionError("not upgraded")
        tally["links"] += 1
        if not read:
            stranger.transport.pause_reading()
        return stranger

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._tally["open"] += 1
        self._tally["at once"] = max(self._tally["at once"], self._tally["open"])
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        if self._upgrade:
            self.transport.write(self._upgrade)

    def data_received(self, data: bytes) -> None:
        self._tally["bytes back"] += len(data)
        if not self._answered:
            self._buffer += data
            if b"\r\n\r\n" not in self._buffer:
                return
            head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            self._buffer.clear()
            self._answered = True
            accepted = head.startswith(b"HTTP/1.1 101")
            if not accepted:
                self._tally[f"HTTP {head[9:12].decode(errors='replace')}"] += 1
            if not self.opened.done():
                self.opened.set_result(accepted)
            data = rest
        elif not self._upgrade and data.startswith(b"HTTP/1.1 "):
            self._tally[f"HTTP {data[9:12].decode(errors='replace')}"] += 1
        seen = len(self._tail)
        whole = self._tail + data
        for found in OUTCOME.finditer(whole):
            if found.end() > seen:
                self.outcomes += 1
                self._tally[(found[1] or found[2]).decode()] += 1
        self._tail = whole[-LONGEST_OUTCOME:]
        if self._on_message is not None and self._upgrade:
            self._buffer += data
            self._read()

    def _read(self) -> None:
        buffer = self._buffer
        while len(buffer) >= 2:
            length, start = buffer[1] & 127, 2
            if length >= 126:
                start = 4 if length == 126 else 10
                if len(buffer) < start:
                    return
                length = int.from_bytes(buffer[2:start], "big")
            if len(buffer) < start + length:
                return
            opcode, body = buffer[0] & 15, bytes(buffer[start : start + length])
            del buffer[: start + length]
            if opcode == 1 and self._on_message is not None:
                self._on_message(self, body)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._tally["open"] -= 1
        if not self.left:
            self._tally["cut"] += 1
        if not self.opened.done():
            self.opened.set_result(False)
        if not self.closed.done():
            self.closed.set_result(None)
        self._room.set()

    def write(self, data: bytes) -> None:
        """Sends, however much waits already."""
        if not self.transport.is_closing():
            self._tally["bytes sent"] += len(data)
            self.transport.write(data)

    async def send(self, data: bytes) -> None:
        """Sends, and waits until there is room for more; ConnectionResetError once it is cut."""
        self.write(data)
        await self.room()

    async def room(self) -> None:
        await self._room.wait()
        if self.closed.done():
            raise ConnectionResetError("cut by the gateway")

    def abort(self) -> None:
        """Leaves without a word."""
        self.left = True
        self.transport.abort()
