"""Gateway: listens, routes packets between the reactors that dial it, and runs handlers of its own."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl as ssl_module
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import picows

from packetflow.elements import STANDARD, Bounds, Runtime, Toolbox
from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost
from packetflow.gateway.access import GATEWAY_ROLE, Access, Budgets, principals
from packetflow.gateway.admin import Admin
from packetflow.gateway.inside import Inside
from packetflow.gateway.memory import share_of_memory
from packetflow.gateway.peer import Peer
from packetflow.gateway.processes import Supervisor, Template
from packetflow.gateway.web import respond
from packetflow.handlers import HandlerRegistry
from packetflow.logs import HandlerErrors, warn_slow
from packetflow.model import SHORT_ELEMENTS, Packet
from packetflow.tracing import trace_id_of
from pfcore.budget import Budget
from pfcore.dispatch import Dispatcher
from pfcore.engine import Engine
from pfcore.ledger import Ledger
from pfcore.link import Gate, Link
from pfcore.reply import Reply
from pfcore.switch import Switch

__all__ = ["Gateway"]

log = logging.getLogger("packetflow.gateway")


class Gateway(HandlerRegistry, Toolbox):
    """A gateway: ``async with Gateway("ws://127.0.0.1:8443/packetflow/v1") as gateway: ...``.

    `endpoint`: where to listen; port 0 takes any free one, `endpoint` then tells
    which. Only loopback addresses, unless `ssl` (an `ssl.SSLContext`) is given,
    `access` lets in nobody without credentials, or `insecure` is True.
    `access`: roles and principals (default: everyone may submit and handle
    everything but ``mc``). `concurrency`, `max_queue`, `window`, `max_frame`,
    `heartbeat`, `silence`, `expose_errors`: as for `Reactor`; limits on its own
    handlers hold for all links together, `window` for each. `max_pending`: own
    submits to one reactor unanswered (default 16,384). `max_waiting`: packets
    that may wait for room at the reactors of one element (default 16,384);
    `max_flights`: packets under way in all (default 262,144). `max_remembered`:
    outcomes kept for 5 minutes (default 100,000). `max_connections`: links at
    once (default 10,000), `max_per_address`: from one address (default: no bound
    but that). `handshake_timeout`: seconds from connection to upgrade (default 5).
    `allowed_origins`: web origins that browsers may connect from (default:
    none, so that no web page can use a visitor's gateway). `public_metrics`:
    ``/metrics`` asks for no credentials (default: it does where links must).
    `elements`: offer the standard elements (default True), within these `Bounds`.
    `templates`: processes that ``mc:spawn`` and ``mc:scale`` may start.
    `max_principal_bytes`: held for one principal, or one anonymous link: packets,
    results, output that it does not read (default 128 MiB), PF429 past it;
    `max_total_bytes`: for all of them together (default: a quarter of the machine's
    or cgroup's memory, at most 768 MiB); when that is short, who holds most is
    refused first. `max_stored_principal_bytes`, `max_stored_bytes`: of what
    outlives links (streams, the cache, pools) for a principal, all anonymous links
    being one (default 256 MiB), and in all (default as `max_total_bytes`).
    """

    def __init__(
        self,
        endpoint: str = "ws://127.0.0.1:8443/packetflow/v1",
        *,
        access: Access | None = None,
        concurrency: int = 1024,
        max_queue: int = 8192,
        window: int = 4096,
        max_pending: int = 16_384,
        max_waiting: int = 16_384,
        max_flights: int = 262_144,
        max_remembered: int = 100_000,
        max_frame: int = 1_048_576,
        max_principal_bytes: int = 134_217_728,
        max_total_bytes: int | None = None,
        max_stored_principal_bytes: int = 268_435_456,
        max_stored_bytes: int | None = None,
        max_connections: int = 10_000,
        max_per_address: int | None = None,
        heartbeat: float = 30.0,
        silence: float = 20.0,
        handshake_timeout: float = 5.0,
        allowed_origins: Iterable[str] = (),
        ssl: ssl_module.SSLContext | None = None,
        insecure: bool = False,
        expose_errors: bool = True,
        public_metrics: bool = False,
        elements: bool | Bounds = True,
        templates: Iterable[Template] = (),
    ) -> None:
        self._endpoint: Endpoint = parse_endpoint(endpoint)
        if self._endpoint.credentials is not None:
            raise ValueError("endpoint: expected no user name or password in a gateway's own URL")
        self._access = Access() if access is None else access
        if self._endpoint.secure and ssl is None:
            raise ValueError(f"endpoint {endpoint!r}: expected an ssl.SSLContext in ssl=, too")
        if ssl is not None and not self._endpoint.secure:
            raise ValueError(f"endpoint {endpoint!r}: expected wss:// where ssl= is given")
        if not self._endpoint.is_loopback and ssl is None and not self._access.authenticates and not insecure:
            raise ValueError(
                f"endpoint {endpoint!r}: anyone who reaches this address could submit packets; "
                "listen on 127.0.0.1, give ssl= or access=, or say insecure=True"
            )
        self._dispatcher = Dispatcher(
            concurrency=concurrency,
            max_queue=max_queue,
            expose_errors=expose_errors,
            on_slow=warn_slow,
            on_error=HandlerErrors(),
        )
        whole = share_of_memory()
        self._budgets = Budgets(
            max_principal_bytes,
            Budget(whole if max_total_bytes is None else max_total_bytes),
            max_stored_principal_bytes,
            Budget(whole if max_stored_bytes is None else max_stored_bytes, "max_stored_bytes"),
        )
        self._budgets.account("a principal")  # bad settings fail here
        self._budgets.store("a principal")
        self._switch = Switch(
            self._dispatcher,
            self._masks,
            aliases=SHORT_ELEMENTS,
            arm=self._arm,
            max_flights=max_flights,
            max_queue=max_waiting,
            ledger=Ledger(bound=max_remembered),
            on_failure=_log_failure if log.isEnabledFor(logging.INFO) else None,
            budget=self._budgets.held,
            link_bytes=max_principal_bytes,
            seed=random.getrandbits(63),
            now=time.monotonic_ns(),
        )
        self._settings: dict[str, Any] = {
            "window": window,
            "max_pending": max_pending,
            "max_frame": max_frame,
            "max_buffer": max(16 * 1024 * 1024, 4 * max_frame),
            "heartbeat": heartbeat,
            "silence": silence,
        }
        Engine(client=False, **self._settings)  # bad settings fail here, not at the first connection
        self._max_connections = max_connections
        self._max_per_address = 1 << 30 if max_per_address is None else max_per_address
        self._handshake_timeout = handshake_timeout
        self._allowed_origins = frozenset(origin.lower() for origin in allowed_origins)
        self._public_metrics = public_metrics
        self._ssl = ssl
        self._server: Any = None
        self._gate: Gate | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._links: dict[Engine, Link] = {}
        self._inside = Inside(self._switch, self._masks, self._links.get, max_frame)
        self._bounds = None if elements is False else Bounds() if elements is True else elements
        self._elements: Runtime | None = None
        self.supervisor = Supervisor(
            {template.name: template for template in templates}, lambda: self.endpoint, self.wait_for_reactor
        )
        self._addresses: dict[str, int] = {}
        self._arriving = 0
        self._peers: dict[str, Peer] = {}
        self._known: dict[str, None] = {}
        self._arrivals: list[asyncio.Future[None]] = []
        self._emptied: asyncio.Event = asyncio.Event()
        self._anonymous, self._principals = principals(self._access, self._budgets)
        self.counts: dict[str, int] = {
            "accepted": 0,
            "turned_away": 0,
            "unauthenticated": 0,
            "refused_origin": 0,
            "reconnects": 0,
        }
        # one bound method each for all links: a new one for every link would cost memory
        self._on_open_link = self._on_open
        self._on_closed_link = self._on_closed
        self._on_peer_heartbeat = self._on_heartbeat

    # -- life

    @property
    def endpoint(self) -> str:
        """Where it listens; the real port once it is started."""
        return self._endpoint.url

    @property
    def connections(self) -> int:
        """Links that are open."""
        return len(self._links)

    @property
    def ready(self) -> bool:
        """Does it listen, and take new packets?"""
        return self._server is not None and not self._switch.draining

    @property
    def reactors(self) -> Mapping[str, Peer]:
        """The connected reactors that have announced a name, by name."""
        return MappingProxyType(self._peers)

    @property
    def offers_elements(self) -> bool:
        """Does it offer the standard elements?"""
        return self._bounds is not None

    @property
    def switch(self) -> Switch:
        """The routing core: its counts are what ``/metrics`` shows."""
        return self._switch

    async def start(self) -> None:
        """Listens. Raises OSError where the address is taken or not this machine's."""
        if self._server is not None:
            raise RuntimeError("start: the gateway has been started already")
        loop = self._loop = asyncio.get_running_loop()
        self._dispatcher.start(loop)
        self._switch.start(time.monotonic_ns())
        self._inside.open(loop)
        self._open_elements(loop)
        self._gate = Gate(
            self._admit,
            self._arrived,
            self._departed,
            loop=loop,
            timeout=self._handshake_timeout,
            max_frame=4 * self._settings["max_frame"],
            logger=logging.LoggerAdapter(log, {}),
        )
        options: dict[str, Any] = {"backlog": 4096}
        if self._ssl is not None:
            options |= {"ssl": self._ssl, "ssl_handshake_timeout": self._handshake_timeout}
        try:
            self._server = await self._gate.listen(self._endpoint.host, self._endpoint.port, **options)
        except BaseException:
            self._close_elements()
            self._inside.close()
            self._dispatcher.stop()
            raise
        port = self._server.sockets[0].getsockname()[1]
        self._endpoint = Endpoint(self._endpoint.host, port, self._endpoint.path, self._endpoint.secure)
        self._switch.handlers_changed()
        log.info("listening on %s", self.endpoint)

    def _open_elements(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._bounds is None:
            return
        self._elements = Runtime(
            self._inside,
            STANDARD,
            loop=loop,
            bounds=self._bounds,
            gateway=self._inside.gateway,
            admin=Admin(self),
            orphans=self._budgets.account("links that have gone"),
        )
        for handler in self._elements.handlers():
            if handler.key not in self._dispatcher.keys:
                self._dispatcher.register(handler)

    def _close_elements(self) -> None:
        if self._elements is None:
            return
        self._elements.close()
        for key in set(STANDARD) - set(self.handles):
            self._dispatcher.unregister(key)
        self._elements = None

    @property
    def handles(self) -> list[str]:
        """What was registered here; the standard elements are not among them."""
        return sorted(f"{group}:{element}" for group, element in self._registry.functions)

    def unregister(self, group: str, element: str) -> None:
        """Takes a handler out, and puts the standard element of that name back; KeyError if there is none."""
        if (group, element) not in self._registry.functions:
            raise KeyError(f"{group}:{element}")
        super().unregister(group, element)
        if self._elements is not None and f"{group}:{element}" in STANDARD:
            for handler in self._elements.handlers():
                if handler.key == f"{group}:{element}":
                    self._dispatcher.register(handler)
            self._switch.handlers_changed()

    async def stop(self, grace: float = 5.0) -> None:
        """Stops: accepted packets may finish for `grace` seconds, new ones get PF503; then closes every link."""
        if self._server is None or self._loop is None:
            return
        server, self._server = self._server, None
        server.close()
        if self._elements is not None:
            self._elements.drain()
        stopping = asyncio.ensure_future(self.supervisor.close())
        ends = time.monotonic() + grace
        idle = self._loop.create_future()
        self._switch.drain(idle)
        try:
            async with asyncio.timeout(grace):
                await idle
        except TimeoutError:
            log.warning("%d packets were still under way after %g s", self._switch.in_flight, grace)
        await self._dispatcher.drain(max(0.0, ends - time.monotonic()))
        self._switch.fail_all("PF503", "the gateway is stopping", time.monotonic_ns())
        self._emptied.clear()
        for link in list(self._links.values()):
            link.close(1001, "the gateway is stopping")
        if self._links:
            try:
                async with asyncio.timeout(1.0):
                    await self._emptied.wait()
            except TimeoutError:
                for link in list(self._links.values()):
                    link.abort()
                await asyncio.sleep(0)
        await stopping
        self._close_elements()
        self._inside.close()
        await server.wait_closed()
        self._dispatcher.stop()
        self._registry.pools.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def serve_forever(self) -> None:
        """Runs until cancelled. Starts first, if need be, and stops at the end."""
        if self._server is None:
            await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.stop()

    # -- who comes in

    def _masks(self, key: str) -> tuple[int, int, int]:
        return self._access.masks(key)

    def set_access(self, access: Access) -> None:
        """Other roles and principals from now on; links of principals that are no more are closed."""
        if not self._endpoint.is_loopback and self._ssl is None and self._access.authenticates > access.authenticates:
            raise ValueError("access: this address needs TLS, or principals that prove who they are")
        before = self._principals
        self._access = access
        self._anonymous, self._principals = principals(access, self._budgets)
        for name, principal in self._principals.items():
            if name in before:  # links go on under the principal that they have
                old = before[name]
                old.role, old.rate, old.burst = principal.role, principal.rate, principal.burst
                self._principals[name] = old
        self._switch.roles_changed()
        alive = {id(principal) for principal in self._principals.values()}
        self._inside.keep_only([*self._principals.values(), self._anonymous])
        for member in self._switch.links:
            principal = member.principal
            if principal.role == GATEWAY_ROLE or id(principal) in alive:
                continue
            if principal.number == 0 and access.anonymous is not None:
                continue
            link = self._links.get(member.engine)
            if link is not None:
                link.close(1008, "these credentials are no longer valid")

    def set_limits(
        self,
        *,
        max_connections: int | None = None,
        max_per_address: int | None = None,
        allowed_origins: Iterable[str] | None = None,
    ) -> None:
        """Other limits for the connections to come."""
        if max_connections is not None:
            self._max_connections = max_connections
        if max_per_address is not None:
            self._max_per_address = max_per_address
        if allowed_origins is not None:
            self._allowed_origins = frozenset(origin.lower() for origin in allowed_origins)

    def set_window(self, window: int) -> None:
        """Packets that one connection may have in flight here, for all connections from now on."""
        self._settings["window"] = window
        for engine in self._links:
            engine.set_window(window)

    def _arrived(self, address: str) -> bool:
        """A connection was made; False turns it away."""
        count = self._addresses.get(address, 0)
        if self._server is None or count >= self._max_per_address or self._arriving >= 2 * self._max_connections:
            self.counts["turned_away"] += 1
            return False
        self._addresses[address] = count + 1
        self._arriving += 1
        return True

    def _departed(self, address: str) -> None:
        self._arriving -= 1
        count = self._addresses[address] - 1
        if count:
            self._addresses[address] = count
        else:
            del self._addresses[address]

    def _admit(self, request: Any, address: str, certificate: Any) -> Any:
        """Answers a handshake: a link for it, or why not."""
        target = urlsplit(request.path.decode("latin-1"))
        if target.path != self._endpoint.path.partition("?")[0]:
            return respond(self, target.path, request.headers, certificate)
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in self._allowed_origins:
            self.counts["refused_origin"] += 1
            return _refuse(403, "this origin is not allowed")
        try:
            identity = self._access.identify(request.headers, certificate)
        except PermissionError as error:
            self.counts["unauthenticated"] += 1
            log.warning("handshake from %s refused: %s", address, error)
            return _refuse(401, str(error), {"WWW-Authenticate": 'Basic realm="packetflow"'})
        if self._server is None or len(self._links) >= self._max_connections:
            self.counts["turned_away"] += 1
            return _refuse(503, "no more connections")
        # browsers may send "keep-alive, Upgrade"; picows compares the whole value
        connection = request.headers.get("connection", "")
        if "upgrade" in (token.strip().lower() for token in connection.split(",")):
            request.headers["Connection"] = "Upgrade"
        principal = self._anonymous if identity is None else self._principals[identity.name]
        engine = Engine(client=False, acceptor=self._switch, on_heartbeat=self._on_peer_heartbeat, **self._settings)
        engine.announce(self.handles)
        link = Link(engine, loop=self._loop, on_open=self._on_open_link, on_closed=self._on_closed_link)
        handles = parse_qs(target.query, keep_blank_values=True).get("handles")
        self._switch.admit(engine, principal, None if handles is None else ",".join(handles).split(","))
        # only what was offered may be chosen, and credentials are not to be echoed
        offered = [
            one.strip() for value in request.headers.getall("Sec-WebSocket-Protocol", []) for one in value.split(",")
        ]
        headers = {"Sec-WebSocket-Protocol": "packetflow"} if "packetflow" in offered else None
        return picows.WSUpgradeResponseWithListener(picows.WSUpgradeResponse.create_101_response(headers), link)

    # -- links

    def _on_open(self, link: Link) -> None:
        self._links[link.engine] = link
        self._switch.join(link.engine)
        self.counts["accepted"] += 1

    def _on_closed(self, link: Link) -> None:
        engine = link.engine
        self._links.pop(engine, None)
        name = engine.peer_name
        if name is not None and name in self._peers and self._peers[name]._engine is engine:
            del self._peers[name]
        self._inside.forget(engine)
        if self._elements is not None:
            self._elements.sessions.lost(engine)
        self._switch.leave(engine, time.monotonic_ns())
        engine.close("PF502", "the connection was lost; the answer is unknown")
        link.flush_ended()
        if not self._links:
            self._emptied.set()

    def _on_heartbeat(self, engine: Engine) -> None:
        name = engine.peer_name
        if name is not None:
            known = self._peers.get(name)
            link = self._links.get(engine)
            if link is not None and (known is None or known._engine is not engine):
                # the latest link of a name is the one that counts: a reactor that came back
                self._peers[name] = Peer(link)
                self._count_return(name)
                if self._elements is not None:
                    self._elements.sessions.joined(engine, engine.member.principal.number, name)
                arrivals, self._arrivals = self._arrivals, []
                for waiter in arrivals:
                    if not waiter.done():
                        waiter.set_result(None)
        self._switch.update(engine)

    def _count_return(self, name: str) -> None:
        if name in self._known:
            self.counts["reconnects"] += 1
        elif len(self._known) < 100_000:
            self._known[name] = None

    def _handlers_changed(self) -> None:
        self._switch.handlers_changed()
        for engine in self._links:
            engine.announce(self.handles)

    async def wait_for_reactor(self, name: str) -> Peer:
        """Returns the connected reactor of that name, once there is one."""
        while name not in self._peers:
            waiter = asyncio.get_running_loop().create_future()
            self._arrivals.append(waiter)
            await waiter
        return self._peers[name]

    # -- time

    def _arm(self, when: int) -> None:
        """The switch needs a look at `when` (ns), and not before."""
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, (when - time.monotonic_ns()) / 1e9), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._switch.advance(time.monotonic_ns())

    # -- submitting

    def _peer(self, name: str) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            raise ConnectionLost(f"no reactor named {name!r} is connected; connected: {sorted(self._peers) or 'none'}")
        return peer

    def submit(self, packet: Packet | Mapping[str, Any], *, reactor: str | None = None, retry: int | bool = 0) -> Reply:
        """As `Reactor.submit`: routed, or to the reactor named `reactor`, `ConnectionLost` if none is connected."""
        return (self._inside.own if reactor is None else self._peer(reactor)).submit(packet, retry=retry)

    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        reactor: str | None = None,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Reply:
        """As `Reactor.call`: routed, or to the reactor named `reactor`, `ConnectionLost` if none is connected."""
        to = self._inside.own if reactor is None else self._peer(reactor)
        return to.call(group, element, data, priority=priority, timeout_ms=timeout_ms, retry=retry)


def _log_failure(code: str, message: str, key: str, packet_id: str, principal: str | None, traceparent: object) -> None:
    log.info(
        "%s for %s: %s",
        code,
        key,
        message,
        extra={
            "packet_id": packet_id,
            "trace_id": trace_id_of(traceparent),
            "element": key,
            "code": code,
            "principal": principal,
        },
    )


def _refuse(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Any:
    response = picows.WSUpgradeResponse.create_error_response(status, reason.encode(), headers)
    return picows.WSUpgradeResponseWithListener(response, None)
