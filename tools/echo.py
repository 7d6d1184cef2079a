"""An echo server and an echo client made of the link, for the Autobahn test suite."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import packetflow
from pfcore.link.handshake import Gate, accept, connect
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import MessageLink

log = logging.getLogger("echo")


def echo(link: MessageLink, payload: bytes, text: bool) -> None:
    link.send(payload, text)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    gate = Gate(
        lambda request, address, certificate: accept(MessageLink(echo, loop=loop)),
        lambda address: True,
        lambda address: None,
        may_begin=lambda under_way: True,
        on_cut=lambda: None,
        sharing=Sharing(loop),
        timeout=10,
        logger=log,
    )
    server = await gate.listen(host="127.0.0.1", port=port)
    await server.serve_forever()


async def session(url: str, on_message: Any) -> None:
    """One connection, until it is closed."""
    loop = asyncio.get_running_loop()
    link = MessageLink(on_message, loop=loop)
    try:
        await connect(link, url, headers=None, ssl=None, logger=log)
    except ConnectionError:
        return  # the case is a close frame that comes with the answer 101
    await link.wait_closed()


async def client(port: int) -> None:
    base = f"ws://127.0.0.1:{port}"
    counts: list[int] = []
    await session(f"{base}/getCaseCount", lambda link, payload, text: counts.append(int(payload)))
    for case in range(1, counts[0] + 1):
        await session(f"{base}/runCase?case={case}&agent=packetflow", echo)
    await session(f"{base}/updateReports?agent=packetflow", lambda *_: None)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # every refusal is one of the suite's cases
    packetflow.run((serve if sys.argv[1] == "serve" else client)(int(sys.argv[2])))
