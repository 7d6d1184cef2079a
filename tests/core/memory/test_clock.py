"""The core's clock: the machine's, but where a simulation sets it."""

from __future__ import annotations

import asyncio
import time

import pytest

from pfcore.memory import clock
from tests.simulated import SimulatedLoop, simulated_time


def test_it_is_the_clock_that_event_loops_use() -> None:
    before = time.monotonic_ns()
    assert before <= clock.now() <= time.monotonic_ns()


def test_a_simulation_sets_it_and_gives_it_back() -> None:
    try:
        clock.simulate(5, 2)
        assert (clock.now(), clock.now()) == (7, 9)
    finally:
        clock.simulate(0)
    assert clock.now() > 1000


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected nanoseconds of 0 or more, got -1 and 0"):
        clock.simulate(-1)


def test_a_simulated_loop_waits_in_no_time() -> None:
    async def wait() -> float:
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(7200):
            await asyncio.sleep(3600)
        return asyncio.get_running_loop().time() - began

    began = time.monotonic()
    with simulated_time():
        loop = SimulatedLoop()
        assert 3600 <= loop.run_until_complete(wait()) < 3601
        loop.close()
    assert time.monotonic() - began < 60


def test_a_simulated_loop_says_when_nothing_will_ever_happen() -> None:
    with simulated_time():
        loop = SimulatedLoop()
        future = loop.create_future()
        with pytest.raises(AssertionError, match="nothing will ever happen again"):
            loop.run_until_complete(future)
        loop.close()
