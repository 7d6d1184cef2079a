"""A connected reactor, as its gateway sees it."""

from __future__ import annotations

from pfcore.client import Submitter
from pfcore.engine import Engine
from pfcore.link import Link

__all__ = ["Peer"]


class Peer(Submitter):
    """A connected reactor: `submit` and `call` go to that reactor, whatever it announced."""

    def __init__(self, link: Link) -> None:
        self._bind(link)
        self._link = link
        self._engine: Engine = link.engine

    @property
    def name(self) -> str | None:
        """The id that it announced."""
        return self._engine.peer_name

    @property
    def handles(self) -> list[str]:
        """What it announced to handle: ``["df:transform"]``; empty if it announced nothing."""
        return list(self._engine.peer_capabilities or ())

    def disconnect(self, reason: str = "disconnected by the gateway") -> None:
        """Closes its connection; a `packetflow.Reactor` dials again."""
        self._link.close(1001, reason)

    def __repr__(self) -> str:
        return f"<Peer {self.name!r} handles={self.handles}>"
