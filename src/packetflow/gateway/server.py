"""Gateway: listens, routes packets between the reactors that dial it, and runs handlers of its own."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl as ssl_module
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from types import MappingProxyType, TracebackType
from typing import Any, Self

from packetflow.client.toolbox import Toolbox
from packetflow.elements import STANDARD, Bounds, Runtime, StoreFactory, in_memory
from packetflow.endings import Ending, within
from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost, Unavailable
from packetflow.gateway.access import Access, Budgets
from packetflow.gateway.admin import Admin
from packetflow.gateway.admission import Admission
from packetflow.gateway.inside import Inside
from packetflow.gateway.links import Links
from packetflow.gateway.listener import Listener
from packetflow.gateway.memory import share_of_memory
from packetflow.gateway.peer import Peer
from packetflow.gateway.principals import Principals
from packetflow.gateway.processes import Supervisor, Template
from packetflow.gateway.reactors import Reactors
from packetflow.gateway.view import View
from packetflow.gateway.web import Web, prepare
from packetflow.handling.registry import HandlerRegistry
from packetflow.logs import HandlerErrors, warn_slow
from packetflow.model import SHORT_ELEMENTS, Packet
from packetflow.settings import MOST_ANNOUNCED, LinkSettings
from packetflow.tracing import trace_id_of
from pfcore.link.engine import Engine
from pfcore.link.reply import Reply
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import Link
from pfcore.memory.budget import Budget
from pfcore.route.switch import Switch
from pfcore.work.dispatch import Dispatcher

__all__ = ["Gateway"]

log = logging.getLogger("packetflow.gateway")

_CLOSING = 0.5
"""Seconds that peers have to take what is left when we close, and processes after the grace."""
_REAPING = 0.2
"""Seconds for what was cut off and killed to be gone."""


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
    `allowed_hosts`: names besides the loopback ones that clients on this machine,
    or a proxy here, may know it by (``"packets.example"``, with ``:port`` where only
    that will do): the Host of a request that names another is refused; on an address
    that others can reach any will do unless some are named. `allowed_origins`: web
    origins that browsers may connect from, besides pages of such a Host itself
    (default: none, so that no web page can use a visitor's gateway). `public_metrics`:
    ``/metrics`` asks for no credentials (default: it does where links must).
    `elements`: offer the standard elements (default True), within these `Bounds`.
    `store`: makes what they keep state in, called with `packetflow.state.Alarms` and
    `Bounds` (default: memory of this process; `packetflow.state.Store` says what it
    has to do). `templates`: processes that ``mc:spawn`` and ``mc:scale`` may start.
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
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        ssl: ssl_module.SSLContext | None = None,
        insecure: bool = False,
        expose_errors: bool = True,
        public_metrics: bool = False,
        elements: bool | Bounds = True,
        store: StoreFactory = in_memory,
        templates: Iterable[Template] = (),
    ) -> None:
        self._endpoint: Endpoint = parse_endpoint(endpoint)
        self._access = Access() if access is None else access
        _check_endpoint(self._endpoint, endpoint, self._access, ssl, insecure)
        if not callable(store):
            raise ValueError(f"store: expected a function that returns a Store, found {type(store).__name__}")
        settings = LinkSettings(window, max_pending, max_frame, heartbeat, silence)
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
        self._principals = Principals(self._access, self._budgets)
        self._switch = Switch(
            self._dispatcher,
            self._principals.masks,
            aliases=SHORT_ELEMENTS,
            arm=self._arm,
            max_flights=max_flights,
            max_queue=max_waiting,
            max_remembered=max_remembered,
            on_failure=_log_failure if log.isEnabledFor(logging.INFO) else None,
            budget=self._budgets.held,
            link_bytes=max_principal_bytes,
            seed=random.getrandbits(63),
            now=time.monotonic_ns(),
        )
        self._switch.set_principals(len(self._principals.alive))
        self.counts: dict[str, int] = {"accepted": 0}
        self._reactors = Reactors(self._principals.may_name, self._principals.may_handle, self.counts)
        links: dict[Engine, Link] = {}
        self._inside = Inside(self._switch, self._principals.masks, links.get, max_frame)
        self._links = Links(
            links, self._switch, self._reactors, self._inside, settings, lambda: self._elements, self.counts
        )
        self._admission = Admission(
            self._endpoint,
            self._access,
            self._principals,
            self._switch,
            self._links,
            settings,
            lambda *request: self._web.respond(*request),
            self._announced,
            self.counts,
            max_connections=max_connections,
            max_per_address=max_per_address,
            handshake_timeout=handshake_timeout,
            allowed_hosts=allowed_hosts,
            allowed_origins=allowed_origins,
        )
        self.supervisor = Supervisor(
            {template.name: template for template in templates}, lambda: self.endpoint, self.wait_for_reactor
        )
        self._view = View(
            self._switch,
            self._dispatcher,
            self._principals,
            self._budgets,
            self._reactors,
            self._links,
            self._inside,
            self._admission,
            self.supervisor,
            settings,
            self.counts,
            lambda: self._elements,
            lambda: self.ready,
        )
        self._web = Web(self._view, self._endpoint, public_metrics)
        self._handshake_timeout = handshake_timeout
        self._ssl = ssl
        self._bounds = None if elements is False else Bounds() if elements is True else elements
        self._make_store = store
        self._elements: Runtime | None = None
        self._server: Listener | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ending: Ending | None = None
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

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
        return self._server is not None and self._starting is None and not self._switch.draining

    @property
    def reactors(self) -> Mapping[str, Peer]:
        """The connected reactors that have announced a name, by name: of several of one, the latest."""
        return MappingProxyType(self._reactors.by_name)

    @property
    def offers_elements(self) -> bool:
        """Does it offer the standard elements?"""
        return self._bounds is not None

    @property
    def switch(self) -> Switch:
        """The routing core: its counts are what ``/metrics`` shows."""
        return self._switch

    @property
    def view(self) -> View:
        """What it is made of, for this package's own rooms and tests: no part of the API, it changes at any time."""
        return self._view

    async def start(self) -> None:
        """Listens. Raises OSError where the address is taken or not this machine's.

        Where it raises, or is cancelled, nothing is left of it, and it may be called again.
        """
        if self._ending is not None:
            raise RuntimeError("start: the gateway is stopping; await stop() first")
        if self._server is not None or self._starting is not None:
            raise RuntimeError("start: the gateway has been started already")
        prepare()
        loop = self._loop = asyncio.get_running_loop()
        sharing = Sharing(loop)
        # a task of its own, so that `stop` can end it without touching the caller's
        starting = self._starting = loop.create_task(self._listen(loop, sharing))
        try:
            self._dispatcher.start(loop, sharing.later)
            self._switch.start(time.monotonic_ns())
            self._inside.open(loop, sharing)
            self._open_elements(loop, sharing)
            self.supervisor.open()
            await asyncio.wait({starting})
            if starting.cancelled():
                raise Unavailable("the gateway was stopped while it started")
            starting.result()
        except BaseException:
            starting.cancel()
            try:
                await asyncio.wait({starting})
            finally:
                server, self._server = self._server, None
                self._clear(server, "the gateway could not be started")
            raise
        finally:
            self._starting = None
        log.info("listening on %s", self.endpoint)

    async def _listen(self, loop: asyncio.AbstractEventLoop, sharing: Sharing) -> None:
        gate = self._admission.gate(loop, sharing)
        options: dict[str, Any] = {"start_serving": False}
        if self._ssl is not None:
            options |= {"ssl": self._ssl, "ssl_handshake_timeout": self._handshake_timeout}
        server = await Listener.open(gate, self._endpoint.host, self._endpoint.port, **options)
        self._server = server  # in the same step: whoever is cancelled after this takes it down
        self._admission.open()
        port = server.sockets[0].getsockname()[1]
        await server.start_serving()
        self._endpoint = Endpoint(self._endpoint.host, port, self._endpoint.path, self._endpoint.secure)
        self._switch.handlers_changed()

    def _open_elements(self, loop: asyncio.AbstractEventLoop, sharing: Sharing) -> None:
        if self._bounds is None:
            return
        self._elements = Runtime(
            self._inside,
            STANDARD,
            loop=loop,
            later=sharing.later,
            bounds=self._bounds,
            store=self._make_store,
            gateway=self._inside.gateway,
            admin=Admin(self._view),
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
        """Stops: accepted packets may finish for `grace` seconds, new ones get PF503; then closes every link.

        Processes that it has started get SIGTERM once nothing is under way any more, or the grace is over,
        and SIGKILL half a second after the grace, or after their template's, whichever is sooner. Returns
        within the grace and a second, whatever peers and processes do. Called again while it stops, it waits
        for the same ending, with the shorter grace of the two. Cancelled, it ends at once what is left.
        """
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
            while self._starting is starting:  # `start` takes down what it has put up
                await asyncio.sleep(0)
        if self._ending is None:
            server, self._server = self._server, None
            if server is None:
                return
            self._admission.close()
            server.close()
            drained = asyncio.get_running_loop().create_future()
            self._switch.drain(drained)
            if self._elements is not None:
                self._elements.drain()
            self.supervisor.refuse()
            self._ending = Ending(lambda ending: self._end(ending, server, drained), grace)
        await self._ending.wait(grace)

    async def _end(self, ending: Ending, server: Any, drained: asyncio.Future[None]) -> None:
        closing = None
        try:
            # what is under way; then those who wait are let go, what is left fails, its answers are written
            if not await ending.allow(drained):
                log.warning("%d packets were still under way when the grace was over", self._switch.in_flight)
            await ending.allow(self._dispatcher.drain(None))
            closing = asyncio.ensure_future(self.supervisor.close())
            self._switch.fail_all("PF503", "the gateway is stopping", time.monotonic_ns())
            await asyncio.sleep(0)  # cancelled handlers end, and their links take the answers along
            self._links.close("the gateway is stopping")
            await within(_CLOSING, self._links.gone())
            self._abort(server)
            await asyncio.wait({closing}, timeout=max(0.0, ending.deadline + _CLOSING - ending.now))
            self.supervisor.kill()
            await asyncio.wait({closing}, timeout=_REAPING)
            await within(_REAPING, server.wait_closed())
        finally:
            if closing is not None:
                closing.cancel()
            self._clear(server, "the gateway was stopped")
            self._ending = None

    def _abort(self, server: Any) -> None:
        """Cuts off who has not gone: links, and connections in the middle of a handshake or before it."""
        self._links.detach()
        if hasattr(server, "abort_clients"):  # pragma: no branch - asyncio's own before 3.13, on Windows only
            server.abort_clients()

    def _clear(self, server: Any, message: str) -> None:
        """Takes down all that `start` has put up; nothing here waits."""
        self._admission.close()
        if server is not None:
            server.close()
            self._abort(server)
        self.supervisor.kill()
        self._switch.fail_all("PF503", message, time.monotonic_ns())
        self._close_elements()
        self._inside.close()
        self._dispatcher.stop()
        self._registry.pools.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._over.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def serve_forever(self) -> None:
        """Runs until it is cancelled, or stopped. Starts first, if need be, and stops at the end."""
        if self._server is None:
            await self.start()
        self._over.clear()
        try:
            await self._over.wait()
        finally:
            await self.stop()

    # -- changes while it runs

    def set_access(self, access: Access) -> None:
        """Other roles and principals from now on.

        Of principals that are no more everything ends: their links are closed,
        their leases, timers, reactions and waits are over. Who has a name that
        stays is who he was, with the role that he has now.
        """
        if not self._endpoint.is_loopback and self._ssl is None and self._access.authenticates > access.authenticates:
            raise ValueError("access: this address needs TLS, or principals that prove who they are")
        gone = self._principals.change(access)
        self._access = self._admission.access = access
        self._switch.set_principals(len(self._principals.alive))
        self._switch.forget_principals(gone)
        self._switch.roles_changed()
        self._reactors.check()
        if self._elements is not None:
            self._elements.sessions.end_principals({principal.number for principal in gone})
        self._inside.keep_only(self._principals.alive)
        self._links.turn_out()

    def set_limits(
        self,
        *,
        max_connections: int | None = None,
        max_per_address: int | None = None,
        allowed_hosts: Iterable[str] | None = None,
        allowed_origins: Iterable[str] | None = None,
    ) -> None:
        """Other limits for the connections to come. Raises ValueError, and changes nothing, for what is none."""
        self._admission.set_limits(max_connections, max_per_address, allowed_hosts, allowed_origins)

    async def set_ssl(self, ssl: ssl_module.SSLContext) -> None:
        """Other certificates, and other authorities of clients', for every handshake that is not over yet.

        Takes a fresh context: one that is in use cannot forget an authority. Links that
        are open stay until their principal is taken out (`set_access`). ValueError where
        the gateway does not listen with TLS; OSError, and nothing is changed, where the
        system has no room for another listening socket.
        """
        if self._ssl is None:
            raise ValueError("ssl: this gateway listens without TLS")
        if self._server is not None:
            await self._server.renew(ssl)
        self._ssl = ssl

    def set_window(self, window: int) -> None:
        """Packets that one connection may have in flight here, for all connections from now on."""
        self._links.set_window(window)

    def _announced(self) -> list[str]:
        return self.handles[:MOST_ANNOUNCED]

    def _handlers_changed(self) -> None:
        self._switch.handlers_changed()
        self._links.announce(self._announced())

    async def wait_for_reactor(self, name: str) -> Peer:
        """Returns the connected reactor of that name, once there is one; of several, the latest."""
        return await self._reactors.wait(name)

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
        peer = self._reactors.find(name)
        if peer is None:
            some = sorted(islice(self._reactors.by_name, 20))
            raise ConnectionLost(f"no reactor named {name!r} is connected; connected: {some or 'none'}")
        return peer

    def submit(self, packet: Packet | Mapping[str, Any], *, reactor: str | None = None, retry: int | bool = 0) -> Reply:
        """As `Reactor.submit`: routed, or to one reactor.

        `reactor`: a name, for the latest of that name, or an id such as ``name#2``.
        `ConnectionLost` if none is connected, `Forbidden` where its principal may
        not handle this element.
        """
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
        """As `Reactor.call`: routed, or to one reactor; see `submit` for `reactor`."""
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


def _check_endpoint(
    endpoint: Endpoint, given: str, access: Access, ssl: ssl_module.SSLContext | None, insecure: bool
) -> None:
    """Raises ValueError where it is not one to listen on like this."""
    if endpoint.credentials is not None:
        raise ValueError("endpoint: expected no user name or password in a gateway's own URL")
    if endpoint.secure and ssl is None:
        raise ValueError(f"endpoint {given!r}: expected an ssl.SSLContext in ssl=, too")
    if ssl is not None and not endpoint.secure:
        raise ValueError(f"endpoint {given!r}: expected wss:// where ssl= is given")
    if not endpoint.is_loopback and ssl is None and not access.authenticates and not insecure:
        raise ValueError(
            f"endpoint {given!r}: anyone who reaches this address could submit packets; "
            "listen on 127.0.0.1, give ssl= or access=, or say insecure=True"
        )
