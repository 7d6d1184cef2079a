"""Work in turns: a slice in each iteration of the loop, shared by measured time between accounts."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import Any

import pytest

from packetflow.elements.turns import MAX_DEBTS, SLICE, Turn, Turns
from pfcore.memory.budget import Account


class Clock:
    """Moved by hand: what a piece of work takes is what a test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def accounts(*names: str) -> list[Account]:
    return [Account(name, 1000) for name in names]


async def worker(turns: Turns, clock: Clock, account: Account, takes: float, pieces: int, done: list[Any]) -> None:
    for _ in range(pieces):
        if turns.spent(account):
            await turns.next(account)
        clock.now += takes
        done.append(account.name)


async def test_nobody_waits_while_the_slice_is_not_used_up(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    assert not turns.spent(one)
    clock.now += SLICE / 2
    assert not turns.spent(one)
    clock.now += SLICE / 2
    assert turns.spent(one)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not turns.spent(one)


async def test_a_round_is_one_slice_long(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    done: list[Any] = []
    tasks = [asyncio.ensure_future(worker(turns, clock, one, SLICE / 4, 10, done)) for _ in range(10)]
    before = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        # what began before the slice was used up, and what the last piece takes
        assert len(done) - before <= 5
        before = len(done)
    assert len(done) == 100


async def test_who_has_many_waiting_has_no_more_time_than_who_has_one(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    many, few = accounts("many", "few")
    done: list[Any] = []
    tasks = [asyncio.ensure_future(worker(turns, clock, many, SLICE / 4, 50, done)) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    start = len(done)
    await worker(turns, clock, few, SLICE / 4, 50, done)
    assert len(done) - start <= 2 * 50 + 10
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_time_is_measured_not_pieces(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    long, short = accounts("long", "short")
    done: list[Any] = []
    tasks = [asyncio.ensure_future(worker(turns, clock, long, 25 * SLICE, 100, done)) for _ in range(5)]
    await asyncio.sleep(0)
    await worker(turns, clock, short, SLICE / 4, 400, done)
    # 400 quarters of a slice: four pieces of 25 slices, and what was under way
    assert done.count("long") <= 4 + 5 + 2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_debt_is_remembered_while_others_wait(clock: Clock) -> None:
    """One who asks for a turn only when it has had the one before has no more of them than one who waits all the time."""
    turns = Turns(asyncio.get_running_loop(), clock)
    long, short = accounts("long", "short")
    done: list[Any] = []
    one = asyncio.ensure_future(worker(turns, clock, long, 25 * SLICE, 100, done))
    others = [asyncio.ensure_future(worker(turns, clock, short, SLICE / 4, 100, done)) for _ in range(4)]
    await asyncio.wait(others)
    last = len(done) - done[::-1].index("short")
    assert done[:last].count("long") <= 4 + 2
    one.cancel()


async def test_what_ran_without_waiting_is_owed(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    heavy, light = accounts("heavy", "light")
    order: list[str] = []
    assert not turns.spent(heavy)
    clock.now += 10 * SLICE
    turns.took(heavy, 10 * SLICE)
    for account in (heavy, light, light, light):
        turns.when(account, lambda account=account: order.append(account.name))
    while len(order) < 4:
        await asyncio.sleep(0)
    assert order == ["light", "light", "light", "heavy"]


async def test_who_had_a_long_piece_rests_while_others_get_on(clock: Clock) -> None:
    """One whose work comes piece by piece, one an iteration, is not behind a long piece of another's each time."""
    turns = Turns(asyncio.get_running_loop(), clock)
    long, short = accounts("long", "short")
    done: list[Any] = []
    tasks = [asyncio.ensure_future(worker(turns, clock, long, 10 * SLICE, 100, done)) for _ in range(5)]
    await asyncio.sleep(0)
    began = clock.now
    for _ in range(40):
        await worker(turns, clock, short, SLICE / 100, 1, done)
        await asyncio.sleep(0)  # an answer that comes with the next iteration
    assert clock.now - began < 12 * 10 * SLICE
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_waiters_are_resumed_in_their_own_context(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    seen: list[int] = []

    async def work(n: int) -> None:
        variable.set(n)
        await turns.next(one)
        seen.append(variable.get())

    await asyncio.gather(*(work(n) for n in range(5)))
    assert seen == list(range(5))


async def test_one_that_is_cancelled_gives_its_turn_away(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    came: list[int] = []

    async def work(n: int) -> None:
        await turns.next(one)
        came.append(n)

    tasks = [asyncio.ensure_future(work(n)) for n in range(3)]
    for _ in range(1):
        await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert came in ([0, 2], [0, 1, 2])
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0):
            await turns.next(one)


async def test_a_piece_that_fails_harms_no_other(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    came: list[int] = []

    def fail() -> None:
        raise ValueError("this one")

    turns.when(one, fail)
    turns.when(one, lambda: came.append(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert came == [1]


async def test_closing_ends_those_who_wait(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    (one,) = accounts("one")
    task = asyncio.ensure_future(turns.next(one))
    clock.now += 1
    turns.spent(one)
    await asyncio.sleep(0)
    turns.when(one, lambda: None)
    turns.close()
    await asyncio.wait({task})
    assert len(turns) == 0


async def test_what_is_in_the_middle_goes_on_before_others_of_its_account(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    one, other = accounts("one", "other")
    done: list[str] = []

    async def wait(name: str, account: Account, *, first: bool = False) -> None:
        await turns.next(account, first=first)
        clock.now += SLICE / 10
        done.append(name)

    tasks = [asyncio.ensure_future(wait(name, one)) for name in ("a", "b")]
    tasks.append(asyncio.ensure_future(wait("other", other)))
    tasks.append(asyncio.ensure_future(wait("middle", one, first=True)))
    await asyncio.gather(*tasks)
    assert [name for name in done if name != "other"] == ["middle", "a", "b"]


async def test_rounds_come_when_whoever_shares_the_loop_says_so(clock: Clock) -> None:
    put_off: list[Any] = []
    turns = Turns(asyncio.get_running_loop(), clock, put_off.append)
    (one,) = accounts("one")
    waiting = asyncio.ensure_future(turns.next(one))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    asyncio.get_running_loop().call_soon(put_off.pop(0))
    await waiting


async def test_a_turn_is_as_much_of_a_future_as_a_task_needs() -> None:
    loop = asyncio.get_running_loop()
    turn, told = Turn(loop), []
    assert turn.get_loop() is loop
    with pytest.raises(asyncio.InvalidStateError):
        turn.result()
    turn.add_done_callback(told.append)
    assert turn.remove_done_callback(print) == 0
    assert turn.remove_done_callback(told.append) == 1
    turn.come()
    assert (turn.done(), turn.cancelled(), turn.exception()) == (True, False, None)
    await turn  # at once
    assert told == []
    turn.add_done_callback(told.append)
    await asyncio.sleep(0)
    assert told == [turn]


async def test_what_is_owed_is_remembered_of_so_many_only(clock: Clock) -> None:
    """Those who owe least are forgotten first."""
    turns = Turns(asyncio.get_running_loop(), clock)
    most, least = accounts("most", "least")
    turns.took(most, 1.0)
    turns.took(least, SLICE / 1000)
    for account in accounts(*map(str, range(MAX_DEBTS))):
        turns.took(account, SLICE / 2)
    assert len(turns._debts) <= MAX_DEBTS
    assert most in turns._debts
    assert least not in turns._debts


async def test_a_piece_may_close_all(clock: Clock) -> None:
    turns = Turns(asyncio.get_running_loop(), clock)
    one, other = accounts("one", "other")
    did: list[Any] = []
    turns.when(one, lambda: (did.append("one"), turns.close()))
    turns.when(other, lambda: did.append("other"))
    for _ in range(5):
        await asyncio.sleep(0)
    turns.when(other, lambda: did.append("late"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert did == ["one"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
async def test_whatever_a_piece_raises_those_that_rest_work_again(clock: Clock, kind: type[BaseException]) -> None:
    rounds: list[Any] = []
    turns = Turns(asyncio.get_running_loop(), clock, rounds.append)
    tired, other = accounts("tired", "other")
    did: list[Any] = []

    def piece() -> None:
        raise kind

    turns.took(tired, 2 * SLICE)  # so it rests
    turns.when(tired, lambda: did.append("tired"))
    for _ in range(5):
        turns.took(other, 0.9 * SLICE)  # it has had more, so the one that rests would be before it
    turns.when(other, piece)
    turns.when(other, lambda: did.append("other"))
    for _ in range(10):
        if not rounds:
            break
        with contextlib.suppress(kind):
            rounds.pop(0)()
    assert sorted(did) == ["other", "tired"]
    assert len(turns) == 0
