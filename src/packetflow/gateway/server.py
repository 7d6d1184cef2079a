"""Gateway: listens, runs its own handlers, and submits to the reactors that are connected."""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import picows

from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost
from packetflow.handlers import HandlerRegistry
from packetflow.model import Packet
from packetflow.reactor import warn_slow
from pfcore.client import Submitter
from pfcore.dispatch import Dispatcher
from pfcore.engine import Engine
from pfcore.link import Link
from pfcore.reply import Reply

__all__ = ["Gateway", "Peer"]

log = logging.getLogger("packetflow.gateway")


class Peer(Submitter):
    """A connected reactor, as its gateway sees it: `submit` and `call` go to that reactor."""

    def __init__(self, link: Link) -> None:
        self._bind(link)
        self._link = link
        self._engine = link.engine

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


class Gateway(HandlerRegistry):
    """A gateway: ``async with Gateway("ws://127.0.0.1:8443/packetflow/v1") as gateway: ...``.

    `endpoint`: where to listen; port 0 takes any free one, `endpoint` then tells
    which. Only loopback addresses, unless `ssl` (an `ssl.SSLContext`) is given
    or `insecure` is True: there is no authentication yet.
    `concurrency`, `max_queue`, `window`, `max_frame`, `heartbeat`, `silence`,
    `expose_errors`: as for `Reactor`, limits on handlers hold for all links
    together. `max_pending`: own submits unanswered per reactor (default 16,384).
    `max_connections`: links at once (default 10,000). `handshake_timeout`:
    seconds (default 5). `allowed_origins`: web origins that browsers may
    connect from (default: none, so that no web page can use a visitor's gateway).
    """

    def __init__(
        self,
        endpoint: str = "ws://127.0.0.1:8443/packetflow/v1",
        *,
        concurrency: int = 1024,
        max_queue: int = 8192,
        window: int = 4096,
        max_pending: int = 16_384,
        max_frame: int = 1_048_576,
        max_connections: int = 10_000,
        heartbeat: float = 30.0,
        silence: float = 20.0,
        handshake_timeout: float = 5.0,
        allowed_origins: Iterable[str] = (),
        ssl: ssl_module.SSLContext | None = None,
        insecure: bool = False,
        expose_errors: bool = True,
    ) -> None:
        self._endpoint: Endpoint = parse_endpoint(endpoint)
        if self._endpoint.secure and ssl is None:
            raise ValueError(f"endpoint {endpoint!r}: expected an ssl.SSLContext in ssl=, too")
        if not self._endpoint.is_loopback and ssl is None and not insecure:
            raise ValueError(
                f"endpoint {endpoint!r}: anyone who reaches this address could submit packets; "
                "listen on 127.0.0.1, give ssl=, or say insecure=True"
            )
        self._dispatcher = Dispatcher(
            concurrency=concurrency, max_queue=max_queue, expose_errors=expose_errors, on_slow=warn_slow
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
        self._handshake_timeout = handshake_timeout
        self._allowed_origins = frozenset(origin.lower() for origin in allowed_origins)
        self._ssl = ssl
        self._server: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[Engine, Link] = {}
        self._peers: dict[str, Peer] = {}
        self._arrivals: list[asyncio.Future[None]] = []
        self._emptied: asyncio.Event = asyncio.Event()
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
    def reactors(self) -> Mapping[str, Peer]:
        """The connected reactors that have announced a name, by name."""
        return MappingProxyType(self._peers)

    async def start(self) -> None:
        """Listens. Raises OSError where the address is taken or not this machine's."""
        if self._server is not None:
            raise RuntimeError("start: the gateway has been started already")
        self._loop = asyncio.get_running_loop()
        self._dispatcher.start(self._loop)
        self._server = await picows.ws_create_server(
            self._admit,
            self._endpoint.host,
            self._endpoint.port,
            ssl=self._ssl,
            websocket_handshake_timeout=self._handshake_timeout,
            enable_auto_pong=False,  # the link answers pings itself, in the same write as everything else
            max_frame_size=4 * self._settings["max_frame"],
            read_buffer_init_size=2048,  # grows with the load; an idle connection stays small
            backlog=1024,
            logger_name=log,
        )
        port = self._server.sockets[0].getsockname()[1]
        self._endpoint = Endpoint(self._endpoint.host, port, self._endpoint.path, self._endpoint.secure)
        log.info("listening on %s", self.endpoint)

    async def stop(self, grace: float = 5.0) -> None:
        """Stops: accepted packets may finish for `grace` seconds, new ones get PF503; then closes every link."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        await self._dispatcher.drain(grace)
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
        await server.wait_closed()
        self._dispatcher.stop()

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

    # -- links

    def _admit(self, request: Any) -> Any:
        """Answers a handshake: a link for it, or why not."""
        path = request.path.decode("latin-1").partition("?")[0]
        if path != self._endpoint.path.partition("?")[0]:
            return _refuse(404, f"no such path here; expected {self._endpoint.path}")
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in self._allowed_origins:
            return _refuse(403, "this origin is not allowed")
        if self._server is None or len(self._links) >= self._max_connections:
            return _refuse(503, "no more connections")
        engine = Engine(client=False, acceptor=self._dispatcher, on_heartbeat=self._on_peer_heartbeat, **self._settings)
        engine.announce(self.handles)
        return Link(
            engine,
            loop=self._loop,
            on_open=self._on_open_link,
            on_closed=self._on_closed_link,
        )

    def _on_open(self, link: Link) -> None:
        self._links[link.engine] = link

    def _on_closed(self, link: Link) -> None:
        engine = link.engine
        self._links.pop(engine, None)
        name = engine.peer_name
        if name is not None and name in self._peers and self._peers[name]._engine is engine:
            del self._peers[name]
        engine.close("PF502", "the connection was lost; the answer is unknown")
        link.flush_ended()
        if not self._links:
            self._emptied.set()

    def _on_heartbeat(self, engine: Engine) -> None:
        name = engine.peer_name
        if name is None:
            return
        known = self._peers.get(name)
        if known is None or known._engine is not engine:
            # the latest link of a name is the one that counts: a reactor that came back
            link = self._links.get(engine)
            if link is not None:
                self._peers[name] = Peer(link)
                arrivals, self._arrivals = self._arrivals, []
                for waiter in arrivals:
                    if not waiter.done():
                        waiter.set_result(None)

    def _handlers_changed(self) -> None:
        for engine in self._links:
            engine.announce(self.handles)

    async def wait_for_reactor(self, name: str) -> Peer:
        """Returns the connected reactor of that name, once there is one."""
        while name not in self._peers:
            waiter = asyncio.get_running_loop().create_future()
            self._arrivals.append(waiter)
            await waiter
        return self._peers[name]

    # -- submitting

    def _peer(self, name: str) -> Peer:
        peer = self._peers.get(name)
        if peer is None:
            raise ConnectionLost(f"no reactor named {name!r} is connected; connected: {sorted(self._peers) or 'none'}")
        return peer

    def submit(self, packet: Packet | Mapping[str, Any], *, reactor: str) -> Reply:
        """As `Reactor.submit`, to the connected reactor named `reactor`. `ConnectionLost` if there is none."""
        return self._peer(reactor).submit(packet)

    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        reactor: str,
        priority: int = 5,
        timeout_ms: int | None = None,
    ) -> Reply:
        """As `Reactor.call`, to the connected reactor named `reactor`. `ConnectionLost` if there is none."""
        return self._peer(reactor).call(group, element, data, priority=priority, timeout_ms=timeout_ms)


def _refuse(status: int, reason: str) -> Any:
    response = picows.WSUpgradeResponse.create_error_response(status, reason.encode())
    return picows.WSUpgradeResponseWithListener(response, None)
