"""An echo server and an echo client made of the link, for the Autobahn test suite."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import picows

import packetflow
from pfcore.link.websocket import MessageLink

LARGEST = 64 * 1024 * 1024


def echo(link: MessageLink, payload: bytes, text: bool) -> None:
    link.send(payload, text)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await picows.ws_create_server(
        lambda request: MessageLink(echo, loop=loop),
        "127.0.0.1",
        port,
        enable_auto_pong=False,
        max_frame_size=LARGEST,
        logger_name="echo",
    )
    await server.serve_forever()


async def session(url: str, on_message: Any) -> None:
    """One connection, until it is closed."""
    loop = asyncio.get_running_loop()
    closed = loop.create_future()

    def on_closed(link: Any) -> None:
        if not closed.done():
            closed.set_result(None)

    class Session(MessageLink):
        def on_ws_disconnected(self, transport: Any) -> None:
            super().on_ws_disconnected(transport)
            on_closed(self)

    transport, _ = await picows.ws_connect(
        lambda: Session(on_message, loop=loop), url, enable_auto_pong=False, max_frame_size=LARGEST, logger_name="echo"
    )
    await closed
    try:
        await transport.wait_disconnected()
    except picows.WSError:
        pass


async def client(port: int) -> None:
    base = f"ws://127.0.0.1:{port}"
    counts: list[int] = []
    await session(f"{base}/getCaseCount", lambda link, payload, text: counts.append(int(payload)))
    for case in range(1, counts[0] + 1):
        await session(f"{base}/runCase?case={case}&agent=packetflow", echo)
    await session(f"{base}/updateReports?agent=packetflow", lambda *_: None)


if __name__ == "__main__":
    logging.getLogger("picows").setLevel(logging.CRITICAL)  # every refusal is one of the suite's cases
    packetflow.run((serve if sys.argv[1] == "serve" else client)(int(sys.argv[2])))
