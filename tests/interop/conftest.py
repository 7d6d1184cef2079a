"""One world for each handling language: a gateway, a worker of that language, a client of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from packetflow import Gateway
from tests.interop.peers import LANGUAGES, PEERS

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.timeout(60))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """One loop: here the other side is what differs."""
    return {"asyncio": asyncio.new_event_loop}


@dataclass
class Cell:
    """A cell of the matrix: who submits and who handles, behind one gateway."""

    submits: str
    handles: str
    gateway: Gateway
    client: Any
    worker: Any


@dataclass
class World:
    gateway: Gateway
    worker: Any
    clients: dict[str, Any] = field(default_factory=dict)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def worlds() -> AsyncIterator[dict[str, World]]:
    worlds: dict[str, World] = {}
    try:
        for handles in LANGUAGES:
            gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
            await gateway.start()
            world = worlds[handles] = World(gateway, await PEERS[handles].start(gateway.endpoint, "worker"))
            for language in LANGUAGES:
                world.clients[language] = await PEERS[language].start(gateway.endpoint, "client")
        yield worlds
    finally:
        for world in worlds.values():
            for peer in (*world.clients.values(), world.worker):
                await peer.stop()
            await world.gateway.stop(grace=0.1)


@pytest.fixture(params=LANGUAGES, ids=lambda name: f"{name}-submits")
def submits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LANGUAGES, ids=lambda name: f"{name}-handles")
def handles(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cell(worlds: dict[str, World], submits: str, handles: str) -> Cell:
    world = worlds[handles]
    return Cell(submits, handles, world.gateway, world.clients[submits], world.worker)
