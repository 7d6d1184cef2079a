"""What the helpers do when an answer is late or a refusal: calls are scripted here, an answer each."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from packetflow.client.toolbox import Item, Toolbox
from packetflow.errors import Conflict, ConnectionLost, PacketTimeout

ONE_LOOP = "asyncio"


class Scripted(Toolbox):
    """Whatever can `call`: this one gives the next of its answers to each."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    def call(self, group: str, element: str, data: Any = None, **options: Any) -> Any:
        self.asked.append(data)
        return self._answer(self.answers.pop(0))

    async def _answer(self, answer: Any) -> Any:
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_whatever_it_is_mixed_into_has_to_call() -> None:
    with pytest.raises(NotImplementedError):
        Toolbox().call("df", "x")


async def test_watching_goes_on_where_nothing_has_happened_for_long() -> None:
    late = PacketTimeout("the wait is over")
    event = {"event": "e", "payload": 1, "cursor": 7}
    script = Scripted(late, event, late, event | {"payload": 2, "cursor": 8})
    async with aclosing(script.watch("e")) as events:
        assert [await anext(events), await anext(events)] == [("e", 1), ("e", 2)]
    assert [asked.get("after") for asked in script.asked] == [None, None, 7, 7]


async def test_consuming_goes_on_and_acknowledges_with_what_comes_next() -> None:
    item = {"id": 1, "data": "x", "deliveries": 1}
    script = Scripted(
        PacketTimeout("late"), {"items": [item]}, PacketTimeout("late"), {"items": [item | {"id": 2}]}, {}
    )
    async with aclosing(script.stream("s").consume()) as items:
        assert await anext(items) == Item(1, "x", 1)
        assert (await anext(items)).id == 2
    assert [asked["ack"] for asked in script.asked] == [[], [], [1], []]


async def test_a_lock_that_could_not_be_renewed_says_so_and_a_gateway_that_is_away_is_asked_again() -> None:
    granted = {"lease": "l", "expires_at": 0, "fence": 3}
    script = Scripted(granted, ConnectionLost("away"), granted, Conflict("it has ended"), {"freed": False})
    async with script.lock("k", ttl=0.003) as lock:
        assert lock.fence == 3
        await lock.lost.wait()
    assert script.answers == []
