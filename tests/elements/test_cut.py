"""Work that does not await, a slice at a time."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from packetflow import Gateway, Reactor
from packetflow.elements import cut
from packetflow.elements.cut import Cut
from packetflow.elements.expressions import BETWEEN, Expression, Meter
from tests.helpers import until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def piecewise(clock: Clock, log: list[Any], pieces: int) -> Cut[str]:
    def work() -> str:
        try:
            for n in range(pieces):
                log.append(n)
                clock.now += cut.SLICE / 2
                part.look()
            return "done"
        finally:
            log.append("end")

    part: Cut[str] = Cut(work, clock)
    return part


def test_it_is_left_where_its_slice_ends() -> None:
    log: list[Any] = []
    part = piecewise(Clock(), log, 5)
    assert not part.go_on()
    assert log == [0, 1]
    assert not part.go_on()
    assert log == [0, 1, 2, 3]
    assert part.go_on()
    assert part.result == "done"
    part.drop()


def test_what_is_dropped_ends_where_it_is() -> None:
    log: list[Any] = []
    part = piecewise(Clock(), log, 5)
    part.go_on()
    part.drop()
    assert log == [0, 1, "end"]
    part.drop()


def test_what_has_not_begun_never_begins() -> None:
    log: list[Any] = []
    piecewise(Clock(), log, 5).drop()
    assert log == []


def test_its_failure_is_who_goes_on_with_it() -> None:
    clock = Clock()

    def work() -> None:
        clock.now += 1
        part.look()
        raise ValueError("late")

    part: Cut[None] = Cut(work, clock)
    assert not part.go_on()
    with pytest.raises(ValueError, match="late"):
        part.go_on()


def test_an_evaluation_looks_at_the_clock_now_and_then() -> None:
    looks: list[int] = []
    meter = Meter()
    meter.cut(lambda: looks.append(meter.spent))
    Expression("map(&[@, @], @)").of(list(range(1000)), meter)
    assert len(looks) > 4
    assert all(later - sooner >= BETWEEN for sooner, later in itertools.pairwise(looks))


LONG = {"input": list(range(1000)), "expression": "map(&[@, @, @], @)"}


async def test_others_go_on_while_an_expression_is_computed(
    hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SLICE", 0.0)  # each look is the end of a slice
    slices = 0

    class Counting(Cut[Any]):
        def go_on(self) -> bool:
            nonlocal slices
            slices += 1
            return super().go_on()

    monkeypatch.setattr("packetflow.elements.call.Cut", Counting)
    long = asyncio.ensure_future(client.call("df", "transform", LONG))
    assert await client.call("df", "transform", {"input": 1, "expression": "@"}) == 1
    assert await long == [[n, n, n] for n in range(1000)]
    assert slices > 10


async def test_one_of_an_account_is_in_the_middle(
    hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SLICE", 0.0)
    most = under_way = 0

    class Counting(Cut[Any]):
        def go_on(self) -> bool:
            nonlocal most, under_way
            if self._ends == 0.0:
                under_way += 1
                most = max(most, under_way)
            done = super().go_on()
            under_way -= done
            return done

    monkeypatch.setattr("packetflow.elements.call.Cut", Counting)
    await asyncio.gather(*(client.call("df", "transform", LONG) for _ in range(10)))
    assert under_way == 0
    assert most <= 2  # a second may have begun in the slice in which the first was left


async def test_an_evaluation_ends_with_its_packet(
    hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "SLICE", 0.0)
    middle: list[Cut[Any]] = []  # those that were left in the middle
    ended: list[bool] = []  # of those that are over: were they still in the middle?

    class Endless(Cut[Any]):
        """Stays in the middle."""

        def go_on(self) -> bool:
            if self not in middle:
                assert not super().go_on()
                middle.append(self)
            return False

        def drop(self) -> None:
            left = not self._greenlet.dead
            super().drop()
            ended.append(left)
            assert self._greenlet.dead

    with monkeypatch.context() as patched:
        patched.setattr("packetflow.elements.call.Cut", Endless)
        replies = [asyncio.ensure_future(client.call("df", "transform", LONG)) for _ in range(20)]
        await until(lambda: middle)
        for reply in replies:
            reply.cancel()
        await until(lambda: hub.switch.in_flight == 0)
        await until(lambda: len(ended) == len(middle))
        assert all(ended)
    assert await client.call("df", "transform", LONG) == [[n, n, n] for n in range(1000)]
