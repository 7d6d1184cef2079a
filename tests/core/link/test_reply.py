"""A reply as an asyncio.Future: what tasks, gather, and those who drive coroutines by hand ask of one."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Generator
from typing import Any

import pytest

from packetflow import InvalidPacket, Reactor
from packetflow.conformance.wire import messages
from pfcore.client import PacketMap
from pfcore.link.engine import Engine
from pfcore.link.reply import Reply
from pfcore.simulate import receive_message, submit_packet, take_output
from pfcore.wire.packets import Packet

START = 1_000_000_000_000


class Loop:
    """What was to be called soon."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_soon(self, callback: Any, *arguments: Any, context: Any = None) -> None:
        self.soon.append((callback, *arguments))


def engine(loop: Any = None) -> Engine:
    made = Engine(client=True, now=START, loop=loop)
    made.connected(START)
    take_output(made)
    return made


def answer(side: Engine, **changes: Any) -> None:
    (message,) = [one for one in messages(take_output(side)) if one["type"] == "submit"]
    payload = {"packet_id": message["payload"]["id"], "status": "success", "data": "done", "duration_ms": 1} | changes
    receive_message(side, json.dumps({"type": "result", "seq": message["seq"], "payload": payload}).encode(), START)


def test_they_are_made_by_submits_only() -> None:
    for kind in (Reply, PacketMap):
        with pytest.raises(TypeError, match="made by"):
            kind()


@pytest.mark.parametrize("step", [next, lambda reply: reply.send(None)])
def test_it_may_be_driven_by_hand(step: Any) -> None:
    side = engine()
    reply = submit_packet(side, Packet("df", "x"), START)

    def wait() -> Generator[Any, Any, Any]:
        return (yield from reply)

    waiting = wait()
    assert next(waiting) is reply
    assert step(reply) is reply
    assert reply._asyncio_future_blocking
    assert repr(reply).startswith("<Reply pending seq=")
    answer(side)
    for one in (lambda: step(reply), lambda: next(waiting)):
        with pytest.raises(StopIteration) as stop:
            one()
        assert stop.value.value.data == "done"
    assert repr(reply).startswith("<Reply done seq=")


@pytest.mark.parametrize("why", [None, "enough"])
def test_a_cancelled_one_says_why_to_everybody_who_asks(why: str | None) -> None:
    loop = Loop()
    reply = submit_packet(engine(loop), Packet("df", "x"), START)
    first, second = (lambda one: None), (lambda one: None)
    reply.add_done_callback(first)
    reply.add_done_callback(second)
    assert reply.cancel(why)
    assert loop.soon == [(first, reply), (second, reply)]
    wanted = () if why is None else (why,)
    for ask in (reply.result, reply.exception):
        with pytest.raises(asyncio.CancelledError) as caught:
            ask()
        assert caught.value.args == wanted
    assert reply._make_cancelled_error().args == wanted  # asyncio.gather's


def test_a_callback_whose_context_is_in_use_is_left_to_the_loop() -> None:
    """A callback that runs the loop of another connection may get there: a context cannot be entered twice."""
    loop = Loop()
    one, other = engine(loop), engine(loop)
    context = contextvars.copy_context()
    called: list[Any] = []
    first, second = (submit_packet(side, Packet("df", "x"), START) for side in (one, other))

    def nested(reply: Any) -> None:
        called.append(reply)
        answer(other)

    first.add_done_callback(nested, context=context)
    second.add_done_callback(called.append, context=context)
    answer(one)
    assert called == [first]
    assert loop.soon == [(called.append, second)]


async def test_a_setting_of_retry_that_cannot_be_is_refused(reactor: Reactor) -> None:
    assert await reactor.call("df", "echo", 1, retry=False) == 1
    assert (await reactor.submit(Packet("df", "echo", 1), retry=False)).data == 1
    for retry in (-1, 1000, "yes", 1.0):
        with pytest.raises((ValueError, InvalidPacket), match="retry"):
            reactor.call("df", "echo", 1, retry=retry)  # type: ignore[arg-type]
