"""Lines: who waits for a name has it in turn, or hears that nobody will."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from packetflow.errors import Unavailable
from packetflow.state import Alarms, Lines, Sessions

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
    session = Sessions(Alarms(asyncio.get_running_loop())).of("link", 7)
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


async def test_waits_that_end_together_all_end_and_whoever_comes_then_finds_no_line(lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.01
    many = [asyncio.ensure_future(lines.wait("lock", "k", nothing, priority=5, until=until)) for _ in range(3000)]
    ended = await asyncio.gather(*many, return_exceptions=True)
    assert {type(one) for one in ended} == {TimeoutError}
    assert lines.waiting("lock", "k") == 0


async def test_who_is_woken_as_his_time_ends_is_asked_once_more(lines: Lines) -> None:
    found: list[str] = []

    async def attempt() -> str | None:
        return found[0] if found else None

    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(lines.wait("lock", "k", attempt, priority=5, until=loop.time() + 0.01))
    await asyncio.sleep(0)
    loop.call_at(loop.time() + 0.01, found.append, "it")
    assert await waiting == "it"


async def test_who_is_woken_looks_when_it_is_his_turn(lines: Lines) -> None:
    found: list[int] = []
    asked: list[asyncio.Future[None]] = []

    async def attempt() -> int | None:
        return found[-1] if found else None

    async def turn() -> None:
        asked.append(asyncio.get_running_loop().create_future())
        await asked[-1]

    first, second = waits(lines, attempt, turn=turn), waits(lines, attempt, turn=turn)
    await asyncio.sleep(0)
    assert asked == []
    found.append(7)
    lines.wake("lock", "k")
    await asyncio.sleep(0)
    assert len(asked) == 1
    assert not first.done()
    first.cancel()  # whoever goes while he waits for it keeps nobody
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[-1].set_result(None)
    assert await second == 7


async def test_who_is_served_as_all_is_closed_leaves_no_failure_behind(lines: Lines) -> None:
    found: list[int] = []
    asked = asyncio.get_running_loop().create_future()
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    async def attempt() -> int | None:
        return found[-1] if found else None

    waiting = waits(lines, attempt, turn=lambda: asked)
    await asyncio.sleep(0)
    lines.wake("lock", "k")
    await asyncio.sleep(0)
    lines.close()
    found.append(7)
    asked.set_result(None)
    assert await waiting == 7
    del waiting
    gc.collect()
    await asyncio.sleep(0)
    assert failures == []


async def test_nobody_waits_for_the_turn_of_who_stands_before_him(lines: Lines) -> None:
    """The first is called and it is not his turn to work: those behind him try, but for his own others."""
    loop = asyncio.get_running_loop()
    his_turn: asyncio.Future[None] = loop.create_future()
    there: list[str] = []
    order: list[str] = []

    def attempt(name: str) -> Any:
        async def take() -> str | None:
            order.append(name)
            return there.pop() if there else None

        return take

    def turn() -> Any:
        return asyncio.shield(his_turn)

    first = waits(lines, attempt("first"), turn=turn, owner="loud")
    his_other = waits(lines, attempt("his other"), turn=turn, owner="loud")
    second = waits(lines, attempt("second"), turn=lambda: None, owner="quiet")
    third = waits(lines, attempt("third"), owner="another")
    await asyncio.sleep(0)
    order.clear()
    there.append("a thing")
    lines.wake("lock", "k")
    assert await second == "a thing"
    there.append("another thing")
    lines.wake("lock", "k")
    assert await third == "another thing"
    assert order == ["second", "third", "third"] or order == ["second", "third"]
    assert not first.done()
    there += ["one", "two"]
    his_turn.set_result(None)
    assert await first == "two"
    assert await his_other == "one"
    assert lines.waiting("lock", "k") == 0


async def test_who_leaves_while_it_is_not_his_turn_keeps_nobody(lines: Lines) -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    there: list[int] = []

    async def attempt() -> int | None:
        return there.pop() if there else None

    first = waits(lines, attempt, turn=lambda: never, owner="one")
    his_other = waits(lines, attempt, owner="one")
    await asyncio.sleep(0)
    lines.wake("lock", "k")
    await asyncio.sleep(0)
    there.append(7)
    lines.wake("lock", "k")
    await asyncio.sleep(0)
    assert not his_other.done()
    first.cancel()
    assert await his_other == 7
