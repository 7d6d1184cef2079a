"""For users' tests: a gateway and a reactor, connected over a real socket in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from packetflow.client.reactor import Reactor
from packetflow.gateway import Gateway

__all__ = ["pair"]


@asynccontextmanager
async def pair(
    gateway: Gateway | None = None, *, name: str = "reactor", **settings: Any
) -> AsyncIterator[tuple[Gateway, Reactor]]:
    """``async with pair() as (gateway, reactor): ...`` on a free loopback port.

    `gateway`: one of yours, not yet started (default: a fresh one). `name`: the
    reactor's, for ``gateway.call(..., reactor=name)``; the gateway knows it when
    this returns. `settings`: further arguments of the `Reactor`.
    """
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1") if gateway is None else gateway
    async with gateway, Reactor(gateway.endpoint, name=name, **settings) as reactor:
        await gateway.wait_for_reactor(name)
        yield gateway, reactor
