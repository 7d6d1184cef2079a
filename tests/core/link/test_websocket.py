"""The link: any stream of messages, however it is cut into fragments and writes, arrives whole and in order."""

from __future__ import annotations

import asyncio
from typing import Any

import picows
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packetflow.conformance.wire import Peer, frame
from pfcore.link.websocket import MessageLink


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
    server = await picows.ws_create_server(
        lambda request: MessageLink(on_message, loop=loop), "127.0.0.1", 0, enable_auto_pong=False
    )
    port = server.sockets[0].getsockname()[1]
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

    options: dict[str, Any] = {"enable_auto_pong": False}
    server = await picows.ws_create_server(lambda request: MessageLink(echo, loop=loop), "127.0.0.1", 0, **options)
    port = server.sockets[0].getsockname()[1]
    _, link = await picows.ws_connect(lambda: MessageLink(answer, loop=loop), f"ws://127.0.0.1:{port}/", **options)
    link.send(b"x" * size, False)
    assert await echoed == (b"x" * size, False)
    assert link.open
    link.close(1000, "done")
    await link.wait_closed()
    assert (link.open, link.close_code, link.close_reason) == (False, 1000, "done")
    server.close()
    await server.wait_closed()


async def _linked(on_message: Any) -> tuple[Any, Peer, MessageLink]:
    """A server whose links do this with messages; a peer, and the server's side of its connection."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[MessageLink] = loop.create_future()
    server = await picows.ws_create_server(
        lambda request: MessageLink(on_message, loop=loop, on_open=opened.set_result), "127.0.0.1", 0,
        enable_auto_pong=False,
    )  # fmt: skip
    peer = await Peer.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    return server, peer, await opened


async def _end(server: Any, peer: Peer) -> None:
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
