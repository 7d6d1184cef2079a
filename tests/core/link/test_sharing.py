"""How the links of a gateway share an iteration of the loop: what is put off, and how much of it is done at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from pfcore.link.sharing import Sharing


def takes(milliseconds: float) -> None:
    ends = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < ends:
        pass


async def test_what_is_put_off_is_done_in_its_order_in_later_iterations() -> None:
    sharing = Sharing(asyncio.get_running_loop())
    done: list[int] = []
    for n in range(5):
        sharing.later(lambda n=n: done.append(n))  # type: ignore[misc]
    assert done == []
    while len(done) < 5:
        await asyncio.sleep(0)
    assert done == list(range(5))


async def test_what_takes_long_has_an_iteration_for_itself() -> None:
    loop = asyncio.get_running_loop()
    sharing = Sharing(loop)
    log: list[Any] = []

    def tick() -> None:
        log.append("tick")
        if log.count("long") < 3:
            loop.call_soon(tick)

    def long() -> None:
        log.append("long")
        takes(2)

    for _ in range(3):
        sharing.later(long)
    loop.call_soon(tick)
    while log.count("long") < 3:
        await asyncio.sleep(0)
    # however long each of them takes, and whatever the machine does meanwhile: never two at once
    assert all(one != "long" or next_one != "long" for one, next_one in itertools.pairwise(log))


async def test_what_is_put_off_again_meanwhile_waits_for_the_next_iteration() -> None:
    sharing = Sharing(asyncio.get_running_loop())
    log: list[str] = []

    def again() -> None:
        log.append("again")
        if len(log) < 3:
            sharing.later(again)

    sharing.later(again)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(log) <= 2
    while len(log) < 3:
        await asyncio.sleep(0)


async def test_a_failure_is_reported_and_keeps_nothing_else() -> None:
    loop = asyncio.get_running_loop()
    sharing = Sharing(loop)
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: reported.append(context))
    done: list[bool] = []

    def fail() -> None:
        raise ValueError("here")

    sharing.later(fail)
    sharing.later(lambda: done.append(True))
    while not done:
        await asyncio.sleep(0)
    assert [type(one["exception"]) for one in reported] == [ValueError]
