"""Workers of all three languages behind one gateway, for one element."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from packetflow import Gateway
from tests.interop.peers import PEERS

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_learned_routes_and_load_over_three_languages() -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway("ws://127.0.0.1:0/packetflow/v1"))

        async def start(language: str, role: str) -> Any:
            peer = await PEERS[language].start(gateway.endpoint, role)
            stack.push_async_callback(peer.stop)
            return peer

        async def who(count: int) -> Counter[str]:
            packet = {"group": "df", "element": "who"}
            results = await asyncio.gather(*(client.reactor.submit(packet) for _ in range(count)))
            return Counter(result.data for result in results)

        client = await start("python", "client")
        # four reactors that announce nothing, and two of them have it
        for language in ("typescript", "elixir"):
            await start(language, "client")
            await start(language, "worker")

        # the first finds its way: who has not got it says so, and the next is asked
        assert (await client.submit("df", "who"))["data"] in ("typescript", "elixir")
        # each is tried once it has said a word: the elixir one, which says none by itself, once it was asked
        while set(await who(200)) != {"typescript", "elixir"}:
            await asyncio.sleep(0.01)
        # by now it is known who has it: as many sends as packets
        before = gateway.switch.routed
        await who(100)
        assert gateway.switch.routed - before == 100

        # one that announces it joins them, and does not take their place
        await start("python", "worker")
        while not any(member.listed for member in gateway.switch.reactors_for("df:who")):
            await asyncio.sleep(0.01)
        seen = await who(600)
        assert set(seen) == {"python", "typescript", "elixir"}
        assert min(seen.values()) >= 60, seen
