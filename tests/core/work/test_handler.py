"""What a handler may not be, and what becomes of the odd things that handlers and listeners do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from packetflow import HandlerError, InvalidPacket, PacketFlowError
from packetflow.testing import pair
from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler


def test_what_cannot_be_called_or_never_runs_is_no_handler() -> None:
    with pytest.raises(TypeError, match="handler for df:x: expected a function, got 'x'"):
        Handler("df", "x", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="handler for df:x: expected a concurrency of at least 1, got -1"):
        Handler("df", "x", str, limit=-1)


def test_limits_that_cannot_be_change_nothing() -> None:
    dispatcher = Dispatcher(concurrency=3, max_queue=4)
    for setting in ({"concurrency": 0, "max_queue": 9}, {"concurrency": 9, "max_queue": -1}):
        with pytest.raises(ValueError, match="expected"):
            dispatcher.tune(**setting)
        assert (dispatcher.concurrency, dispatcher.max_queue) == (3, 4)


@dataclass
class Order:
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise OSError("a type's own code")


async def test_what_a_types_own_code_raises_fails_its_packet_alone() -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "order")
        def order(data: Order) -> int:
            return data.count

        with pytest.raises(HandlerError):
            await reactor.call("df", "order", {"count": -1})
        assert await reactor.call("df", "order", {"count": 1}) == 1
        with pytest.raises(InvalidPacket):
            await reactor.call("df", "order", {"count": "1"})


class Unreadable(PacketFlowError):
    """Its attributes raise, and so does its text."""

    @property
    def code(self) -> str:  # type: ignore[override]
        raise LookupError("no code")

    @code.setter
    def code(self, value: str) -> None: ...


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize("error", [Unreadable("no"), Unspeakable()], ids=["attributes", "text"])
@pytest.mark.parametrize("suspends", [False, True])
async def test_errors_that_cannot_be_read_are_told_by_their_type(error: Exception, suspends: bool) -> None:
    async with pair() as (gateway, reactor):

        @gateway.register("df", "odd")
        async def odd(data: Any) -> None:
            if suspends:
                await asyncio.sleep(0)
            raise error

        gateway.register("df", "echo", lambda data: data)
        with pytest.raises(HandlerError, match=type(error).__name__):
            await reactor.call("df", "odd")
        assert await reactor.call("df", "echo", 2) == 2
