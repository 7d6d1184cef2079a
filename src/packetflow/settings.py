"""How a link behaves, whoever has it: what reactors and gateways say of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pfcore.link.engine import Engine

__all__ = ["MOST_ANNOUNCED", "LinkSettings"]

MOST_ANNOUNCED = 1024
"""Handlers in a heartbeat; more are refused."""


@dataclass
class LinkSettings:
    """Of links to be. Raises ValueError or TypeError, as `Engine` does, for what cannot be.

    `window`: packets that the peer may have in flight here. `max_pending`: own
    submits unanswered. `max_frame`: bytes of a frame, both ways. `heartbeat`:
    seconds between heartbeats. `silence`: seconds without a byte before a ping,
    and again before the peer counts as dead. `name`, `instance`: what a reactor
    calls itself, and what proves that it is the same one again.
    """

    window: int
    max_pending: int
    max_frame: int
    heartbeat: float
    silence: float
    name: str | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        self.engine(client=True)  # bad settings fail here, not at the first connection

    def engine(self, *, client: bool, **more: Any) -> Engine:
        """The rules of a link with these settings. `client`: is it ours to dial?"""
        return Engine(
            client=client,
            window=self.window,
            max_pending=self.max_pending,
            max_frame=self.max_frame,
            max_buffer=max(16 * 1024 * 1024, 4 * self.max_frame),
            heartbeat=self.heartbeat,
            silence=self.silence,
            name=self.name,
            instance=self.instance,
            **more,
        )
