"""Lines: who waits for a name has it in turn, or hears that nobody will."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packetflow.errors import Unavailable
from packetflow.state import Alarms, Lines, Session

ONE_LOOP = "asyncio"


@pytest.fixture
async def lines() -> Lines:
    loop = asyncio.get_running_loop()
    return Lines(loop, Alarms(loop))


async def nothing() -> None:
    return None


def waits(lines: Lines, attempt: Any, **options: Any) -> asyncio.Task[Any]:
    until = asyncio.get_running_loop().time() + 60
    return asyncio.ensure_future(lines.wait("lock", "k", attempt, priority=5, until=until, **options))


async def test_who_waits_without_a_session_waits_as_well(lines: Lines) -> None:
    found: list[int] = []

    async def attempt() -> int | None:
        return found[-1] if found else None

    waiting = waits(lines, attempt)
    await asyncio.sleep(0)
    assert lines.waiting("lock", "k") == 1
    found.append(7)
    lines.wake("lock", "k")
    assert await waiting == 7
    assert lines.waiting("lock", "k") == 0


async def test_a_wait_ends_with_its_session(lines: Lines) -> None:
    session = Session(Alarms(asyncio.get_running_loop()), "key", 7, None)
    waiting = waits(lines, nothing, session=lambda: session)
    await asyncio.sleep(0)
    assert session.count("wait") == 1
    for end in list(session.held.values()):
        end()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert session.count("wait") == 0


async def test_once_they_are_closed_nobody_waits(lines: Lines) -> None:
    first, second = waits(lines, nothing), waits(lines, nothing)
    await asyncio.sleep(0)
    lines.wake("lock", "k")
    lines.close()  # before the first has looked
    for waiting in (first, second, waits(lines, nothing)):
        with pytest.raises(Unavailable):
            await waiting
