"""A store as one across the network is: every operation suspends, and what was begun first need not be done first."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from packetflow.elements import Bounds, in_memory
from packetflow.state import Alarms

__all__ = ["FarStore", "SuspendingStore", "far_away", "suspending"]


class SuspendingStore:
    """What `in_memory` makes, behind a way of random length there and back, of at most `steps` iterations each."""

    OPERATIONS = ("get", "put", "delete", "scan", "append", "read", "trim", "extent", "forget")

    def __init__(self, alarms: Alarms, bounds: Bounds, *, seed: int = 1, steps: int = 3) -> None:
        self.inner = in_memory(alarms, bounds)
        self.random = random.Random(seed)
        self.steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in self.OPERATIONS:
            return found

        async def far(*arguments: Any, **options: Any) -> Any:
            await self._way()
            try:
                return await found(*arguments, **options)
            finally:
                await self._way()

        return far

    async def _way(self) -> None:
        for _ in range(self.random.randrange(self.steps)):
            await asyncio.sleep(0)


def suspending(alarms: Alarms, bounds: Bounds) -> Any:
    """For `Gateway(store=)`."""
    return SuspendingStore(alarms, bounds)


class FarStore(SuspendingStore):
    """One that is `seconds` away, there as back: what is asked meanwhile sees what it was told and has not answered."""

    def __init__(self, alarms: Alarms, bounds: Bounds, *, seconds: float = 0.01) -> None:
        super().__init__(alarms, bounds)
        self.seconds = seconds

    async def _way(self) -> None:
        await asyncio.sleep(self.seconds)


def far_away(alarms: Alarms, bounds: Bounds) -> Any:
    """For `Gateway(store=)`."""
    return FarStore(alarms, bounds)
