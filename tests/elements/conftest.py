"""A gateway with the standard elements, a worker with handlers to build on, and a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from packetflow import Gateway, PacketFlowError, Reactor


@pytest.fixture
async def client(hub: Gateway) -> AsyncIterator[Reactor]:
    """A client of a gateway that has a worker, too."""
    worker = Reactor(hub.endpoint, name="worker")

    def fail(data: Any) -> None:
        raise ValueError(f"no {data}")

    async def sleep(data: float) -> float:
        await asyncio.sleep(data)
        return data

    worker.register("df", "echo", lambda data: data)
    worker.register("df", "double", lambda data: 2 * data)
    worker.register("df", "add", lambda data: data[0] + data[1])
    worker.register("df", "fail", fail)
    worker.register("df", "sleep", sleep)
    async with worker, Reactor(hub.endpoint, name="client") as client:
        await hub.wait_for_reactor("worker")
        await hub.wait_for_reactor("client")
        while not hub.switch.reactors_for("df:echo"):
            await asyncio.sleep(0.001)
        yield client


async def refused(waiting: Any) -> PacketFlowError:
    """The error that a call ends in."""
    with pytest.raises(PacketFlowError) as caught:
        await waiting
    return caught.value
