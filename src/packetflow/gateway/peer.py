"""A connected reactor, as its gateway sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from packetflow.errors import Forbidden
from packetflow.model import Packet
from pfcore.client import Submitter
from pfcore.link.engine import Engine
from pfcore.link.reply import Reply
from pfcore.link.websocket import Link
from pfcore.route.flights import Member, Principal

__all__ = ["Instance", "Peer"]


class Instance:
    """One of the reactors of a name. `secret`: what proves that a link is its, None: nothing does.

    `peers`: its links, the latest last; more than one only while an old one is not known to be lost.
    """

    __slots__ = ("id", "name", "number", "peers", "secret")

    def __init__(self, name: str, number: int, secret: str | None) -> None:
        self.name = name
        self.number = number
        self.secret = secret
        self.id = self.shown(name, number)
        self.peers: dict[Engine, Peer] = {}

    @staticmethod
    def shown(name: str, number: int) -> str:
        """The id of the `number`-th instance of a name."""
        return name if number == 1 else f"{name}#{number}"

    @property
    def latest(self) -> Peer:
        """The link that stands for it."""
        return self.peers[next(reversed(self.peers))]


class Peer(Submitter):
    """A connected reactor: `submit` and `call` go to that reactor, whatever it announced.

    They raise `Forbidden` for what the reactor's principal may not handle.
    """

    def __init__(self, link: Link, instance: Instance, may_handle: Callable[[Principal, str], bool]) -> None:
        self._bind(link)
        self._link = link
        self._engine: Engine = link.engine
        self._instance = instance
        self.member: Member = link.engine.member
        self._may_handle = may_handle

    @property
    def name(self) -> str:
        """The name that it announced."""
        return self._instance.name

    @property
    def id(self) -> str:
        """What tells it from others of its name: the name for the first, ``name#2`` for the second."""
        return self._instance.id

    @property
    def handles(self) -> list[str]:
        """What it announced to handle: ``["df:transform"]``; empty if it announced nothing."""
        return list(self._engine.peer_capabilities or ())

    def submit(self, packet: Packet | Mapping[str, Any], *, retry: int | bool = 0, raw: bool = False) -> Reply:
        """As `Reactor.submit`, to this reactor. Raises `Forbidden`, too."""
        if isinstance(packet, Packet):
            self._check(packet.group, packet.element)
        elif isinstance(packet, Mapping):
            self._check(packet.get("group"), packet.get("element"))
        return super().submit(packet, retry=retry, raw=raw)

    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Reply:
        """As `Reactor.call`, to this reactor. Raises `Forbidden`, too."""
        self._check(group, element)
        return super().call(group, element, data, priority=priority, timeout_ms=timeout_ms, retry=retry)

    def disconnect(self, reason: str = "disconnected by the gateway") -> None:
        """Closes its connection; a `packetflow.Reactor` dials again."""
        self._link.close(1001, reason)

    def show(self) -> None:
        """It stands for its instance from now on: in metrics and in answers."""
        self.member.reactor = self.id

    def hide(self) -> None:
        """It no longer does."""
        self.member.reactor = None

    def _check(self, group: Any, element: Any) -> None:
        # what is not valid is refused below, by who knows what is
        if not (isinstance(group, str) and isinstance(element, str)):
            return
        if not self._may_handle(self.member.principal, f"{group}:{element}"):
            raise Forbidden(f"the principal of reactor {self.id!r} may not handle {group}:{element}")

    def __repr__(self) -> str:
        return f"<Peer {self.id!r} handles={self.handles}>"
