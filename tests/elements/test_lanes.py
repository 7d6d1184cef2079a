"""Lanes: so many pieces at a time, and what is under way when one has failed."""

from __future__ import annotations

import asyncio

import pytest

from packetflow import Gateway, Reactor
from packetflow.elements import step
from packetflow.elements.lanes import in_parallel
from tests.helpers import Stays, refused, until


async def test_the_first_failure_ends_all_that_is_under_way(hub: Gateway, client: Reactor) -> None:
    stays = Stays()
    hub.register("df", "stays", stays)
    slow = step("df", "stays", {"$": "item"})
    data = {"input": list(range(40)), "map": slow, "concurrency": 40}
    waiting = client.call("df", "transform", data, timeout_ms=300)
    await until(lambda: len(stays.begun) == 40)
    assert (await refused(waiting)).code == "PF408"
    await until(lambda: len(stays.ended) == 40)


class Call:
    """As much of a call as lanes need: its turn comes until it does not any more."""

    def __init__(self) -> None:
        self.over = False

    def hold(self, size: int) -> None:
        pass

    async def turn(self) -> None:
        if self.over:
            raise asyncio.CancelledError


async def test_all_end_even_where_no_turn_comes_any_more() -> None:
    """As when the gateway ends while those of a packet that has failed are being cancelled."""
    call, under_way, ended = Call(), asyncio.Event(), []

    async def one(place: int) -> None:
        if place == 39:
            under_way.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(place)

    running = asyncio.ensure_future(in_parallel(call, 40, one, 40))  # type: ignore[arg-type]
    await under_way.wait()
    call.over = True
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: len(ended) == 40)
