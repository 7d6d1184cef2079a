"""The link: any stream of messages, however it is cut into fragments and writes, arrives whole and in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packetflow.conformance.wire import Peer, frame
from pfcore.link.handshake import Gate, accept, connect
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import MessageLink

log = logging.getLogger("test")


async def listen(make: Callable[[], MessageLink]) -> tuple[asyncio.Server, int]:
    """A server that makes a link for each connection; its port."""
    gate = Gate(
        lambda request, address, certificate: accept(make()),
        lambda address: True,
        lambda address: None,
        may_begin=lambda under_way: True,
        on_cut=lambda: None,
        sharing=Sharing(asyncio.get_running_loop()),
        timeout=10,
        logger=log,
    )
    server = await gate.listen(host="127.0.0.1", port=0)
    return server, server.sockets[0].getsockname()[1]


async def deliver(
    messages: list[tuple[bool, bytes]], fragments: list[int], cuts: list[int]
) -> list[tuple[bool, bytes]]:
    """Sends the messages in fragments of these sizes and writes of those; what the link hands over."""
    received: list[tuple[bool, bytes]] = []
    done = asyncio.get_running_loop().create_future()

    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        received.append((text, payload))
        if len(received) == len(messages):
            done.set_result(None)

    loop = asyncio.get_running_loop()
    server, port = await listen(lambda: MessageLink(on_message, loop=loop))
    peer = await Peer.connect(f"ws://127.0.0.1:{port}")
    stream = b""
    turn = 0
    for text, payload in messages:
        opcode, at = (1 if text else 2), 0
        while True:
            size = fragments[turn % len(fragments)]
            turn += 1
            final = at + size >= len(payload)
            stream += frame(payload[at : at + size], opcode, fin=final, mask=bytes([turn % 256, 7, turn % 251, 0]))
            if turn % 3 == 0:
                stream += frame(b"between", opcode=9)
            at += size
            opcode = 0
            if final:
                break
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        peer.writer.write(stream[at : at + size])
        await asyncio.sleep(0)
        at += size
        turn += 1
    if messages:
        await asyncio.wait_for(done, 20)
    peer.close()
    server.close()
    await server.wait_closed()
    return received


@given(
    st.lists(
        st.tuples(st.just(True), st.text(max_size=200).filter(str.isprintable).map(str.encode))
        | st.tuples(st.just(False), st.binary(max_size=70_000)),
        max_size=8,
    ),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=5),
    st.lists(st.integers(1, 3000), min_size=1, max_size=5),
)
@settings(max_examples=40)
def test_random_fragments_in_random_pieces(
    messages: list[tuple[bool, bytes]], fragments: list[int], cuts: list[int]
) -> None:
    cuts = [max(cut, sum(len(payload) for _, payload in messages) // 2000) for cut in cuts]
    fragments = [max(size, sum(len(payload) for _, payload in messages) // 2000 + 1) for size in fragments]
    assert asyncio.run(deliver(messages, fragments, cuts)) == messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 500_000])
async def test_messages_go_both_ways(size: int) -> None:
    loop = asyncio.get_running_loop()
    echoed: asyncio.Future[tuple[bytes, bool]] = loop.create_future()

    def echo(link: MessageLink, payload: bytes, text: bool) -> None:
        link.send(payload, text)

    def answer(link: MessageLink, payload: bytes, text: bool) -> None:
        echoed.set_result((payload, text))

    server, port = await listen(lambda: MessageLink(echo, loop=loop))
    link = MessageLink(answer, loop=loop)
    await connect(link, f"ws://127.0.0.1:{port}/", headers=None, ssl=None, logger=log)
    link.send(b"x" * size, False)
    assert await echoed == (b"x" * size, False)
    assert link.open
    link.close(1000, "done")
    await link.wait_closed()
    assert (link.open, link.close_code, link.close_reason) == (False, 1000, "done")
    server.close()
    await server.wait_closed()


async def _linked(on_message: Any) -> tuple[asyncio.Server, Peer, MessageLink]:
    """A server whose links do this with messages; a peer, and the server's side of its connection."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[MessageLink] = loop.create_future()
    server, port = await listen(lambda: MessageLink(on_message, loop=loop, on_open=opened.set_result))
    peer = await Peer.connect(f"ws://127.0.0.1:{port}")
    return server, peer, await opened


async def _end(server: asyncio.Server, peer: Peer) -> None:
    peer.close()
    server.close()
    await server.wait_closed()


async def test_text_that_is_none_ends_the_connection() -> None:
    messages: list[bytes] = []
    server, peer, link = await _linked(lambda link, payload, text: messages.append(payload))
    peer.writer.write(frame(b"\xff", 2, mask=b"abcd") + frame(b"\xff", 1, mask=b"abcd") + frame(b"x", 1, mask=b"abcd"))
    await link.wait_closed()
    assert messages == [b"\xff"]
    assert (link.close_code, link.close_reason) == (1007, "invalid UTF-8")
    await _end(server, peer)


async def test_what_a_message_may_not_raise_ends_its_connection_and_is_told() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        raise OSError("a user's code")

    server, peer, link = await _linked(on_message)
    peer.writer.write(frame(b"x", 1, mask=b"abcd"))
    await link.wait_closed()
    assert [str(error) for error in told] == ["a user's code"]
    assert (link.close_code, link.close_reason) == (1011, "internal error")
    await _end(server, peer)


async def test_a_link_that_is_detached_has_ended_when_that_returns() -> None:
    server, peer, link = await _linked(lambda link, payload, text: None)
    link.detach()
    assert not link.open
    link.detach()
    link.abort()
    await link.wait_closed()
    assert await peer.reader.read() == b""
    await _end(server, peer)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_link_may_be_detached_while_its_frames_are_handled(cut: bool) -> None:
    """What is read stays readable to its end, and nothing behind it is handed over."""
    messages: list[bytes] = []

    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        messages.append(payload)
        link.detach()

    server, peer, _link = await _linked(on_message)
    large = frame(b"y" * 100_000, 2, mask=b"abcd")
    peer.writer.write(
        large if cut else frame(b"x", 1, mask=b"abcd") + frame(b"y", 1, mask=b"abcd") + large[:50_000]
    )  # fmt: skip
    with contextlib.suppress(ConnectionResetError):  # what the kernel had and nobody read
        assert await peer.reader.read() == b""
    assert messages == [b"y" * 100_000 if cut else b"x"]
    await _end(server, peer)


async def test_what_comes_with_the_handshake_is_the_links() -> None:
    """A peer need not wait for the answer 101 to send more, and a server may send more with it."""
    messages: list[bytes] = []
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        messages.append(payload)
        if len(messages) == 3:
            closed.set_result(None)

    loop = asyncio.get_running_loop()
    server, port = await listen(lambda: MessageLink(on_message, loop=loop))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    large = frame(b"z" * 30_000, 2, mask=b"abcd")
    writer.write(head + frame(b"x", 1, mask=b"abcd") + frame(b"y", 1, mask=b"abcd") + large[:100])
    await reader.readuntil(b"\r\n\r\n")
    writer.write(large[100:])
    await closed
    assert messages == [b"x", b"y", b"z" * 30_000]
    writer.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x", 3, mask=b"abcd"), 1002),
        (frame(b"x", 1, mask=None), 1002),
        (bytes([0xC1]) + frame(b"x", 1, mask=b"abcd")[1:], 1002),
        (frame(b"x" * 126, 9, mask=b"abcd"), 1002),
        (frame(b"x", 9, fin=False, mask=b"abcd"), 1002),
        (frame(b"x", 0, mask=b"abcd"), 1002),
        (frame(b"x", 1, fin=False, mask=b"abcd") + frame(b"x", 1, mask=b"abcd"), 1002),
        (bytes([0x81, 0xFE, 0, 125]) + b"abcd", 1002),
        (bytes([0x81, 0xFF]) + (65_535).to_bytes(8, "big") + b"abcd", 1002),
        (bytes([0x81, 0xFF]) + (1 << 63).to_bytes(8, "big") + b"abcd", 1002),
        (bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8, "big") + b"abcd", 1009),
        (frame(b"\x03", 8, mask=b"abcd"), 1002),
        (frame(b"\x03\xed", 8, mask=b"abcd"), 1002),  # 1005
        (frame(b"\x0b\xb7", 8, mask=b"abcd"), 1002),  # 2999
        (frame(b"\x03\xe8\xff", 8, mask=b"abcd"), 1007),
        (frame(b"\x03\xe8bye", 8, mask=b"abcd"), 1000),
        (frame(b"\x0b\xb8", 8, mask=b"abcd"), 3000),
        (frame(b"", 8, mask=b"abcd"), None),
        # RFC 6455, section 5.5.1: nothing that comes behind a close frame counts
        (frame(b"\x03\xe8", 8, mask=b"abcd") * 2 + b"\xff\xff", 1000),
    ],
)
async def test_how_a_connection_ends(sent: bytes, code: int | None) -> None:
    """The close frame that the peer gets, and nothing behind it."""
    server, peer, link = await _linked(lambda link, payload, text: None)
    peer.writer.write(sent)
    answer = await peer.reader.read()
    assert answer[0] == 0x88
    assert answer[1] == len(answer) - 2
    assert (int.from_bytes(answer[2:4], "big") if len(answer) > 2 else None) == code
    await link.wait_closed()
    assert link.close_code == (1005 if code is None else code)
    await _end(server, peer)


async def test_a_peer_that_says_good_bye_and_reads_nothing_is_cut_off() -> None:
    """A transport that is closed waits for the peer to take what is left, for as long as he likes."""
    opened: asyncio.Future[MessageLink] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        link.send(b"x" * 6_000_000, False)

    server, port = await listen(lambda: MessageLink(on_message, loop=loop, on_open=opened.set_result))
    peer = await Peer.connect(f"ws://127.0.0.1:{port}")
    peer.writer.transport.pause_reading()
    peer.writer.write(frame(b"go on", 1, mask=b"abcd"))
    link = await opened
    while not link.unsent:
        await asyncio.sleep(0)
    peer.writer.write(frame(b"\x03\xe8", 8, mask=b"abcd"))
    async with asyncio.timeout(20):
        await link.wait_closed()
    assert link.close_code == 1000
    peer.writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_nothing_comes_behind_a_close_frame() -> None:
    def on_message(link: MessageLink, payload: bytes, text: bool) -> None:
        link.send(b"before", False)
        link.close(1000, "enough")
        link.send(b"behind", False)

    server, peer, link = await _linked(on_message)
    peer.writer.write(frame(b"x", 1, mask=b"abcd"))
    assert await peer.reader.read() == frame(b"before", 2, mask=None) + frame(b"\x03\xe8enough", 8, mask=None)
    await link.wait_closed()
    await _end(server, peer)
