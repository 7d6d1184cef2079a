"""Frames out of bytes: the same ones however they are cut, and those that picows finds."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import picows
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picows.picows import WSProtocol

from packetflow.conformance.wire import frame
from pfcore.link.inbox import Inbox, ReadBuffer

MOST = 300_000
SHARED = ReadBuffer()
BYTES = bytes(range(251)) * 600

# opcode, fin, payload or how many bytes of it, mask
made_of = st.tuples(
    st.sampled_from([0, 1, 2, 8, 9, 10]),
    st.booleans(),
    st.binary(max_size=20)
    | st.sampled_from([0, 124, 125, 126, 127, 1000, 16_370, 16_384, 32_768, 65_535, 65_536, 140_000]),
    st.binary(min_size=4, max_size=4),
)
Made = tuple[int, bool, bytes | int, bytes]


def payloads(made: list[Made]) -> list[tuple[int, bool, bytes, bytes]]:
    """Those that may be one frame (RFC 6455, section 5.5)."""
    full = [(opcode, fin, BYTES[:payload] if isinstance(payload, int) else payload, mask)
            for opcode, fin, payload, mask in made]  # fmt: skip
    return [one for one in full if one[0] < 8 or (one[1] and len(one[2]) < 126)]


def inbox(*, server: bool = True, most: int = MOST) -> Inbox:
    return Inbox(server=server, max_frame=most, shared=SHARED)


@given(st.lists(made_of, max_size=6), st.lists(st.integers(1, 70_000), min_size=1, max_size=6), st.integers(1, 131_072))
def test_frames_come_out_as_they_went_in(made: list[Made], cuts: list[int], most: int) -> None:
    sent = payloads(made)
    stream = b"".join(frame(payload, opcode, fin=fin, mask=mask) for opcode, fin, payload, mask in sent)
    box, found, at, turn = inbox(), [], 0, 0
    most = max(most, len(stream) // 500)
    cuts = [max(cut, len(stream) // 500) for cut in cuts]
    while at < len(stream):
        found += box.feed(stream[at : at + cuts[turn % len(cuts)]], most)
        at += cuts[turn % len(cuts)]
        turn += 1
    assert found == [one[:3] for one in sent]
    assert (box.held, box.code) == (0, 0)


@given(st.lists(made_of, max_size=4))
def test_a_clients_side(made: list[Made]) -> None:
    sent = payloads(made)
    stream = b"".join(frame(payload, opcode, fin=fin, mask=None) for opcode, fin, payload, _ in sent)
    assert inbox(server=False).feed(stream) == [one[:3] for one in sent]
    box = inbox(server=False)
    assert box.feed(frame(b"x", mask=b"abcd")) == []
    assert (box.code, box.reason) == (1002, "a frame of a server that is masked")


@given(st.binary(max_size=400), st.integers(1, 40))
def test_any_bytes_give_the_same_however_they_are_cut(data: bytes, cut: int) -> None:
    one, many = inbox(most=200), inbox(most=200)
    found = one.feed(data)
    assert [made for at in range(0, len(data), cut) for made in many.feed(data[at : at + cut])] == found
    assert (one.code, one.reason, one.held) == (many.code, many.reason, many.held)


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\xc1\x80", 1002, "reserved bits are set, and no extension was agreed"),
        (b"\x83\x80", 1002, "opcode 3: expected 0, 1, 2, 8, 9 or 10"),
        (b"\x81\x00", 1002, "a frame of a client that is not masked"),
        (b"\x09\x80", 1002, "a control frame in fragments"),
        (b"\x89\xfe", 1002, "a control frame of more than 125 bytes"),
        (b"\x81\xfe\x00\x7d", 1002, "125 bytes as a length of 16 bits: expected the shortest form"),
        (b"\x81\xff" + (65_535).to_bytes(8, "big"), 1002, "65535 bytes as a length of 64 bits: expected the shortest form"),
        (b"\x81\xff" + b"\xff" * 8, 1002, f"{2**64 - 1} bytes as a length of 64 bits: expected the shortest form"),
        (b"\x81\xfe\x01\x2d", 1009, "a frame of 301 bytes, the most is 300"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_its_header(data: bytes, code: int, reason: str) -> None:
    box = inbox(most=300)
    assert box.feed(frame(b"before", mask=b"abcd") + data) == [(1, True, b"before")]
    assert (box.code, box.reason) == (code, reason)
    assert box.feed(frame(b"after", mask=b"abcd")) == []
    assert box.held == 0


class _Recorder(picows.WSListener):
    """What picows finds."""

    def __init__(self) -> None:
        self.found: list[tuple[int, bool, bytes]] = []
        self.reserved = False

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        # reserved bits are its listener's to look at
        self.reserved |= bool(frame.rsv1 or frame.rsv2 or frame.rsv3)
        if not self.reserved:
            self.found.append((frame.msg_type, bool(frame.fin), frame.get_payload_as_bytes()))


class _Socket:
    """As much of a transport and its socket as picows needs; what it writes can be read at the other end."""

    def __init__(self) -> None:
        self.mine, self.other = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def fileno(self) -> int:
        return self.mine.fileno()

    def setsockopt(self, *_: Any) -> None:
        pass

    def getsockopt(self, *_: Any) -> int:
        return 0

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.mine.send(data)

    def close(self) -> None:
        pass


async def _by_picows(data: bytes, cut: int) -> tuple[_Recorder, int]:
    """Its frames, and the code of the close frame that it sends, 0 if none."""
    recorder, tcp = _Recorder(), _Socket()
    quiet = logging.getLogger("picows.oracle")
    quiet.disabled = True
    protocol = WSProtocol(
        None, None, False, lambda request: recorder, quiet, True, None, False, 20.0, 20.0,
        picows.WSAutoPingStrategy.PING_WHEN_IDLE, False, 200, None, 2048,
    )  # fmt: skip
    protocol.connection_made(tcp)
    request = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    for one in [request, *(data[at : at + cut] for at in range(0, len(data), cut))]:
        view = protocol.get_buffer(-1)
        view[: len(one)] = one
        protocol.buffer_updated(len(one))
        if protocol.transport.is_close_frame_sent:
            break
    answer = tcp.other.recv(65_536).partition(b"\r\n\r\n")[2]
    tcp.mine.close()
    tcp.other.close()
    return recorder, int.from_bytes(answer[2:4], "big") if answer[:1] == b"\x88" else 0


pieces = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 8, 9, 10]),
        st.booleans(),
        st.integers(0, 300),
        st.binary(min_size=4, max_size=4),
        st.integers(0, 9),
        st.integers(0, 2**16),
    ),
    max_size=5,
)


@given(pieces, st.integers(1, 300))
@settings(max_examples=200)
def test_picows_finds_the_same(made: list[tuple[int, bool, int, bytes, int, int]], cut: int) -> None:
    """Frames, some of them damaged by a bit of their first bytes."""
    stream = b""
    for opcode, fin, length, mask, damage, place in made:
        one = bytearray(frame(BYTES[:length], opcode, fin=fin, mask=mask))
        if damage < 3:
            one[place % min(len(one), 10)] ^= 1 << (place >> 8) % 8
        stream += one
    box = inbox(most=200)
    ours = box.feed(stream)
    theirs, code = asyncio.run(_by_picows(stream, cut))
    assert theirs.found == ours[: len(theirs.found)]
    if theirs.reserved or any(opcode == 8 for opcode, _, _ in ours):
        return  # it looks into close frames as well, and ends at some that are ours to look at
    # a valid frame right before one that is not valid it keeps to itself
    assert len(ours) - len(theirs.found) <= (1 if box.code else 0)
    assert code == box.code or "reserved" in (box.reason or "")
