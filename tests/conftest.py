"""Shared fixtures. No test sleeps to wait: they wait for events, under pytest-timeout."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from packetflow import Gateway, Reactor
from tests.helpers import Loop

settings.register_profile(
    "default", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("long", settings.get_profile("default"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Every asynchronous test runs on both loops, but for those of a module that names `ONE_LOOP`."""
    factories: dict[str, Any] = {"asyncio": asyncio.new_event_loop}
    if hasattr(item.getparent(pytest.Module).obj, "ONE_LOOP"):
        return factories
    try:
        import uvloop
    except ImportError:
        return factories
    return {"uvloop": uvloop.new_event_loop, **factories}


@pytest.fixture
def gateway() -> Gateway:
    """A gateway for a free port, not yet started, with a few handlers."""
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")

    @gateway.register("df", "transform")
    async def transform(data: str) -> str:
        return data.upper()

    @gateway.register("df", "echo")
    def echo(data: Any) -> Any:
        return data

    @gateway.register("df", "fail")
    def fail(data: Any) -> None:
        raise ValueError(data)

    @gateway.register("df", "forever")
    async def forever(data: Any) -> None:
        await asyncio.get_running_loop().create_future()

    return gateway


@pytest.fixture
async def reactor(gateway: Gateway) -> AsyncIterator[Reactor]:
    """A reactor named "r1" that is connected to `gateway`."""
    async with gateway, Reactor(gateway.endpoint, name="r1") as reactor:
        await gateway.wait_for_reactor("r1")
        yield reactor


@pytest.fixture
def time() -> Iterator[Loop]:
    """A loop whose time a test passes."""
    loop = Loop()
    yield loop
    loop.loop.close()


@pytest.fixture
async def hub() -> AsyncIterator[Gateway]:
    """A gateway without handlers of its own, which listens."""
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        yield gateway


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


@pytest.fixture
def log_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets up the log of all of it."""
    handlers = logging.getLogger().handlers
    before = [(handler, list(handler.filters), handler.formatter) for handler in handlers]
    yield
    for handler, filters, formatter in before:
        handler.filters[:] = filters
        handler.setFormatter(formatter)
