"""A gateway's process collects garbage when that harms least."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from packetflow.gateway import collector
from packetflow.gateway.collector import Collector


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """Generations of the collections that began."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


async def test_full_collections_wait_until_little_is_held(
    collections: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "EVERY", 0.01)
    held = 100
    paced = Collector(lambda: held, little=50)
    paced.start(asyncio.get_running_loop())
    try:
        collections.clear()
        kept = [[n] for n in range(300_000)]  # a quarter more than there was: Python would collect everything
        await asyncio.sleep(0.05)
        assert 2 not in collections
        assert not gc.isenabled()
        held = 0
        async with asyncio.timeout(10):
            while 2 not in collections:
                await asyncio.sleep(0.001)
        assert len(kept) == 300_000
    finally:
        paced.stop()
    assert gc.isenabled()


async def test_young_objects_are_looked_at_by_the_clock(collections: list[int]) -> None:
    """However many were freed meanwhile."""
    paced = Collector(lambda: 0)
    paced.start(asyncio.get_running_loop())
    try:
        collections.clear()
        async with asyncio.timeout(10):
            while collections.count(0) < 3:
                [[n] for n in range(10_000)]
                await asyncio.sleep(0.001)
    finally:
        paced.stop()


async def test_what_was_there_when_it_began_is_not_looked_at_again() -> None:
    paced = Collector(lambda: 0)
    paced.start(asyncio.get_running_loop())
    assert gc.get_freeze_count() > 0
    paced.stop()
    paced.stop()
    assert gc.get_freeze_count() == 0


async def test_what_a_burst_took_is_given_back_in_several_looks_then_it_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first look may come in the middle of the burst; what does not shrink is not tried for ever."""
    monkeypatch.setattr(collector, "EVERY", 0.006)
    size, given_back = 100 << 20, 0

    def give_back() -> None:
        nonlocal given_back
        given_back += 1

    monkeypatch.setattr(collector, "resident", lambda: size)
    monkeypatch.setattr(collector, "give_back", give_back)
    let_go: list[bool] = []
    paced = Collector(lambda: 0, let_go=lambda: let_go.append(True))
    paced.start(asyncio.get_running_loop())
    try:
        await asyncio.sleep(0.01)
        assert given_back == 0
        size += 50 << 20
        async with asyncio.timeout(10):
            while given_back < collector.TRIES:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert given_back == len(let_go) == collector.TRIES
        size += collector.MORE + 1
        async with asyncio.timeout(10):
            while given_back == collector.TRIES:
                await asyncio.sleep(0.001)
    finally:
        paced.stop()
