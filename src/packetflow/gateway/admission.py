"""Who is let in: connections, handshakes, requests, until there is a link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from packetflow.endpoint import Endpoint
from packetflow.gateway.access import Access
from packetflow.gateway.door import Door, Refusal, check_upgrade, split_target
from packetflow.gateway.links import Links
from packetflow.gateway.principals import Principals
from packetflow.logs import Complaints
from packetflow.settings import LinkSettings
from pfcore.link.handshake import Gate, accept, answer
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import Link
from pfcore.route.switch import Switch

__all__ = ["Admission"]

log = logging.getLogger("packetflow.gateway")

_REASONS = {421: "refused_host", 403: "refused_origin", 401: "unauthenticated", 503: "turned_away"}
"""What counts a request that was refused with this status; ``malformed`` any other."""


class Admission:
    """Answers connections and requests.

    `respond`: answers a request for another path than the endpoint's. `announced`:
    what the gateway itself handles. `counts`: how many were turned away, and why.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        access: Access,
        principals: Principals,
        switch: Switch,
        links: Links,
        settings: LinkSettings,
        respond: Callable[[str, Any, Any], Any],
        announced: Callable[[], list[str]],
        counts: dict[str, int],
        *,
        max_connections: int,
        max_per_address: int | None,
        handshake_timeout: float,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
    ) -> None:
        self._endpoint = endpoint
        self.access = access
        self._principals = principals
        self._switch = switch
        self._links = links
        self._settings = settings
        self._respond = respond
        self._announced = announced
        self._counts = counts
        counts.update(turned_away=0, unauthenticated=0, refused_host=0, refused_origin=0, malformed=0, tls=0, failed=0)
        self._max_connections = max_connections
        self._max_per_address = 1 << 30 if max_per_address is None else max_per_address
        self._handshake_timeout = handshake_timeout
        self._allowed_hosts = tuple(allowed_hosts)
        self._allowed_origins = tuple(allowed_origins)
        self._door = Door(endpoint.host, self._allowed_hosts, self._allowed_origins)
        self._complain = Complaints(log)
        self._addresses: dict[str, int] = {}
        self.arriving = 0
        """Connections that are not links yet."""
        self._opened = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sharing: Sharing | None = None
        # one bound method each for all links: a new one for every link would cost memory
        self.on_open = links.opened
        self._on_closed = links.closed
        self._on_heartbeat = links.heard

    # -- life

    def gate(self, loop: asyncio.AbstractEventLoop, sharing: Sharing) -> Gate:
        """What accepts connections for it; lets in nobody before `open`."""
        self._loop = loop
        self._sharing = sharing
        return Gate(
            self.admit,
            self._arrived,
            self._departed,
            may_begin=self._may_begin,
            on_cut=self._cut,
            sharing=sharing,
            timeout=self._handshake_timeout,
            logger=logging.LoggerAdapter(log, {}),
        )

    def open(self) -> None:
        """Lets in who may come."""
        self._opened = True

    def close(self) -> None:
        """Lets in nobody any more."""
        self._opened = False

    # -- limits

    def set_limits(
        self,
        max_connections: int | None,
        max_per_address: int | None,
        allowed_hosts: Iterable[str] | None,
        allowed_origins: Iterable[str] | None,
    ) -> None:
        """Other limits for the connections to come; None: as before. ValueError, and nothing changes, for bad ones."""
        hosts = self._allowed_hosts if allowed_hosts is None else tuple(allowed_hosts)
        origins = self._allowed_origins if allowed_origins is None else tuple(allowed_origins)
        self._door = Door(self._endpoint.host, hosts, origins)
        self._allowed_hosts, self._allowed_origins = hosts, origins
        if max_connections is not None:
            self._max_connections = max_connections
        if max_per_address is not None:
            self._max_per_address = max_per_address

    # -- connections

    def _arrived(self, address: str) -> bool:
        """A connection was made; False turns it away."""
        count = self._addresses.get(address, 0)
        if not self._opened or count >= self._max_per_address or self.arriving >= 2 * self._max_connections:
            self._counts["turned_away"] += 1
            return False
        self._addresses[address] = count + 1
        self.arriving += 1
        return True

    def _departed(self, address: str) -> None:
        self.arriving -= 1
        count = self._addresses[address] - 1
        if count:
            self._addresses[address] = count
        else:
            del self._addresses[address]

    def _may_begin(self, under_way: int) -> bool:
        """May one more handshake of TLS begin beside so many?"""
        if not self._opened or under_way >= 2 * self._max_connections:
            self._counts["turned_away"] += 1
            return False
        return True

    def _cut(self) -> None:
        """A handshake of TLS did not come to its end."""
        self._counts["tls"] += 1
        self._complain(logging.WARNING, "a handshake of TLS did not come to its end (%d so far)", self._counts["tls"])

    # -- requests

    def admit(self, request: Any, address: str, certificate: Any) -> Any:
        """Answers a request: a link for it, or why not."""
        try:
            return self._answer(request, certificate)
        except Refusal as refusal:
            self._counts[_REASONS.get(refusal.status, "malformed")] += 1
            self._complain(logging.WARNING, "handshake from %s refused: %s", address, refusal.reason)
            return _refuse(refusal.status, refusal.reason, refusal.headers)
        except Exception as error:  # noqa: BLE001  # it is logged, without a traceback
            # nothing that a peer sends may get here; if it does, this connection ends and nothing else
            self._counts["failed"] += 1
            self._complain(logging.ERROR, "handshake from %s failed: %r", address, error)
            return _refuse(500, "internal error")

    def _answer(self, request: Any, certificate: Any) -> Any:
        path, query = split_target(request.path)
        self._door.check_host(request.headers)
        if path != self._endpoint.path.partition("?")[0]:
            return self._respond(path, request.headers, certificate)
        self._door.check_origin(request.headers)
        try:
            identity = self.access.identify(request.headers, certificate)
        except PermissionError as error:
            raise Refusal(401, str(error), {"WWW-Authenticate": 'Basic realm="packetflow"'}) from None
        if not self._opened or len(self._links) >= self._max_connections:
            raise Refusal(503, "no more connections")
        check_upgrade(request.headers)
        # from here on the handshake can only succeed: nothing is left behind of one that does not
        principal = self._principals.of(identity)
        engine = self._settings.engine(client=False, sink=self._switch, on_heartbeat=self._on_heartbeat)
        engine.announce(self._announced())
        link = Link(engine, loop=self._loop, on_open=self.on_open, on_closed=self._on_closed, sharing=self._sharing)
        handles = parse_qs(query, keep_blank_values=True).get("handles")
        self._switch.admit(engine, principal, None if handles is None else ",".join(handles).split(","))
        # only what was offered may be chosen, and credentials are not to be echoed
        offered = [
            one.strip() for value in request.headers.getall("Sec-WebSocket-Protocol", []) for one in value.split(",")
        ]
        headers = {"Sec-WebSocket-Protocol": "packetflow"} if "packetflow" in offered else None
        return accept(link, headers)


def _refuse(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Any:
    shown = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    return answer(status, f"{reason}\n".encode(), shown)
