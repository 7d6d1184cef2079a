"""Reactor: dials a gateway, submits packets and handles packets, over one socket."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import secrets
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import picows

from packetflow.elements.helpers import Toolbox
from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost, Forbidden, PacketFlowError, Unauthenticated
from packetflow.handlers import HandlerRegistry
from packetflow.logs import HandlerErrors, warn_slow
from packetflow.model import Result
from pfcore.client import Submitter
from pfcore.dispatch import Dispatcher
from pfcore.engine import Engine
from pfcore.link import Link

__all__ = ["Reactor"]

log = logging.getLogger("packetflow.reactor")

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
_MOST_ANNOUNCED = 1024
"""Handlers in a heartbeat; a gateway refuses more."""


class Reactor(Submitter, HandlerRegistry, Toolbox):
    """A reactor: ``async with Reactor("ws://127.0.0.1:8443/packetflow/v1") as reactor: ...``.

    `endpoint`: the gateway's URL (``ws``, ``wss``, ``packetflow``, ``packetflows``),
    with credentials as ``ws://name:token@host`` where it asks for them; or several,
    of gateways that serve the same: it connects to the first that answers, and to
    the next when it loses that one. `token`: a bearer token for all of them.
    `name`: what a gateway can address it by (default: that of
    ``PACKETFLOW_REACTOR``, which a gateway sets for the processes it starts, else
    none); 1 to 128 bytes without control characters. Several of one name are
    replicas, each with what it holds for itself.
    `concurrency`: own async handlers suspended at once (default 1,024);
    `max_queue`: packets that may wait beyond that (default 8,192).
    `window`: packets that the gateway may have in flight here (default 4,096).
    `max_pending`: own submits unanswered (default 131,072), `Overloaded` past it.
    `max_frame`: bytes of a frame, both ways (default 1 MiB). `heartbeat`: seconds
    between heartbeats (default 30); `silence`: seconds without a byte before a
    ping, and again before the gateway counts as dead (default 20).
    `reconnect`: dial again after a loss (default True). `handshake_timeout`:
    seconds (default 5). `ssl`: an `ssl.SSLContext` for ``wss``.
    `expose_errors`: texts of handlers' exceptions go to submitters (default True).

    Not thread-safe: it belongs to the loop that started it; from other threads
    use `packetflow.sync.Reactor`.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        name: str | None = None,
        token: str | None = None,
        concurrency: int = 1024,
        max_queue: int = 8192,
        window: int = 4096,
        max_pending: int = 131_072,
        max_frame: int = 1_048_576,
        heartbeat: float = 30.0,
        silence: float = 20.0,
        reconnect: bool = True,
        handshake_timeout: float = 5.0,
        ssl: ssl_module.SSLContext | None = None,
        expose_errors: bool = True,
    ) -> None:
        urls = [endpoint] if isinstance(endpoint, str) or not isinstance(endpoint, Sequence) else list(endpoint)
        if not urls:
            raise ValueError("endpoint: expected at least one URL")
        self._endpoints: list[Endpoint] = [parse_endpoint(url) for url in urls]
        self._current = 0
        self._token = token
        self._dispatcher = Dispatcher(
            concurrency=concurrency,
            max_queue=max_queue,
            expose_errors=expose_errors,
            on_slow=warn_slow,
            on_error=HandlerErrors(),
        )
        self._settings: dict[str, Any] = {
            "name": os.environ.get("PACKETFLOW_REACTOR") if name is None else name,
            "instance": secrets.token_urlsafe(24),  # kept over reconnects: what it held is still its own
            "window": window,
            "max_pending": max_pending,
            "max_frame": max_frame,
            "max_buffer": max(16 * 1024 * 1024, 4 * max_frame),
            "heartbeat": heartbeat,
            "silence": silence,
        }
        Engine(client=True, **self._settings)  # bad settings fail here, not at the start
        self._reconnect = reconnect
        self._handshake_timeout = handshake_timeout
        self._ssl = ssl
        self._engine: Engine | None = None
        self._connection: Link | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._stopping = False

    # -- life

    @property
    def endpoint(self) -> str:
        """The URL of the gateway that it is connected to, or was last."""
        return self._endpoints[self._current].url

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._connection is not None and self._connection.open

    async def start(self) -> None:
        """Connects. Raises `ConnectionLost` if nobody answers, `Unauthenticated` if the credentials are refused.

        Later losses are made good by dialling again.
        """
        if self._engine is not None:
            raise RuntimeError("start: the reactor has been started already")
        loop = asyncio.get_running_loop()
        self._stopping = False
        self._dispatcher.start(loop)
        engine = Engine(client=True, acceptor=self._dispatcher, **self._settings)
        engine.announce(self._announced())
        link = Link(engine, loop=loop, on_closed=self._on_closed)
        try:
            await self._dial_any(link)
        except BaseException:
            engine.close("PF502", "the connection could not be made")
            self._dispatcher.stop()
            raise
        self._engine, self._connection = engine, link
        self._bind(link)

    async def stop(self, grace: float = 5.0) -> None:
        """Stops: accepted packets may finish for `grace` seconds, new ones get PF503; then closes."""
        if self._engine is None or self._connection is None:
            return
        self._stopping = True
        engine, link = self._engine, self._connection
        if self._dialling is not None:
            self._dialling.cancel()
        if link.open:
            engine.announce([])  # the gateway has others for what comes now
            await self._dispatcher.drain(grace)
            link.close(1000, "stopping")
            await link.wait_closed()
        engine.close("PF503", "the reactor was stopped")
        link.flush_ended()
        self._dispatcher.stop()
        self._registry.pools.close()
        self._bind(None)
        self._engine = self._connection = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _dial_any(self, link: Link) -> None:
        """Connects to the first gateway that answers, from the present one on."""
        for attempt in range(len(self._endpoints)):
            try:
                await self._dial(link)
                return
            except PacketFlowError:
                if attempt == len(self._endpoints) - 1:
                    raise
                self._current = (self._current + 1) % len(self._endpoints)

    async def _dial(self, link: Link) -> None:
        endpoint = self._endpoints[self._current]
        headers = {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        elif endpoint.credentials is not None:
            joined = ":".join(endpoint.credentials).encode()
            headers["Authorization"] = f"Basic {base64.b64encode(joined).decode()}"
        try:
            await picows.ws_connect(
                lambda: link,
                endpoint.url,
                ssl_context=self._ssl,
                websocket_handshake_timeout=self._handshake_timeout,
                enable_auto_pong=False,  # the link answers pings itself, in the same write as everything else
                max_frame_size=4 * self._settings["max_frame"],
                max_redirects=0,
                extra_headers=headers or None,
                logger_name=log,
            )
        except picows.WSHandshakeError as error:
            status = getattr(error.response, "status", None)
            body = (error.raw_body or b"").decode("utf-8", "replace").strip()[:200]
            if status in (401, 403):
                kind = Unauthenticated if status == 401 else Forbidden
                raise kind(f"{endpoint.url} refused the connection: {body or status}") from None
            raise ConnectionLost(f"cannot connect to {endpoint.url}: {body or error}") from error
        except (OSError, TimeoutError, picows.WSError) as error:
            reason = str(error) or type(error).__name__
            raise ConnectionLost(f"cannot connect to {endpoint.url}: {reason}") from error
        if not link.open:
            # picows counts a connection that goes in the middle of the handshake as made
            raise ConnectionLost(f"cannot connect to {endpoint.url}: the connection was closed during the handshake")

    def _on_closed(self, link: Link) -> None:
        if self._stopping or not self._reconnect or self._engine is None:
            if not self._stopping and self._engine is not None:
                self._engine.close("PF502", "the connection was lost, and reconnect is off")
                link.flush_ended()
            return
        log.warning("connection to %s lost (close code %d); dialling again", self.endpoint, link.close_code)
        self._dialling = asyncio.get_running_loop().create_task(self._dial_again(link))

    async def _dial_again(self, link: Link) -> None:
        delay = _FIRST_DELAY
        while True:
            # jitter: a thousand reactors must not come back in the same millisecond
            await asyncio.sleep(delay * random.uniform(0.2, 1.0))
            # another gateway, if there is one: the one that was lost may take its time
            self._current = (self._current + 1) % len(self._endpoints)
            try:
                await self._dial_any(link)
                return
            except PacketFlowError as error:
                log.info("%s", error.message)
                delay = min(delay * 2, _LONGEST_DELAY)

    def _handlers_changed(self) -> None:
        if self._engine is not None:
            self._engine.announce(self._announced())

    def _announced(self) -> list[str]:
        handles = self.handles
        if len(handles) > _MOST_ANNOUNCED:
            log.warning("%d handlers: only the first %d can be announced", len(handles), _MOST_ANNOUNCED)
        return handles[:_MOST_ANNOUNCED]

    # -- submitting: `submit` and `call` come compiled, from Submitter

    def map(
        self,
        group: str,
        element: str,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        window: int = 1024,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> AsyncIterator[Result]:
        """Submits a packet for each item; iterate for the `Result`s, in the order of the items.

        `items`: any iterable or async iterable, pulled as there is room.
        `window`: packets in flight at once, 1 to 65,536 (default 1,024). A failed
        packet is a `Result` like any other; iterating raises only where there is
        no answer (`PacketTimeout`, `ConnectionLost`), as `submit` does. `retry`: as
        for `submit`. Leaving
        the loop early cancels what is in flight.
        """
        if isinstance(items, AsyncIterable):
            return self._map_async(group, element, items, window, priority, timeout_ms, retry)
        return self._map(group, element, items, window=window, priority=priority, timeout_ms=timeout_ms, retry=retry)

    async def _map_async(
        self,
        group: str,
        element: str,
        items: AsyncIterable[Any],
        window: int,
        priority: int,
        timeout_ms: int | None,
        retry: int | bool,
    ) -> AsyncIterator[Result]:
        # A task pulls items and submits them while the results are consumed here.
        if not 1 <= window <= 65536:
            raise ValueError(f"window: expected 1 to 65536, got {window}")
        replies: deque[Any] = deque()
        room = asyncio.Semaphore(window)
        arrived = asyncio.Event()

        async def feed() -> None:
            try:
                async for item in items:
                    await room.acquire()
                    replies.append(
                        self.submit(
                            {
                                "group": group,
                                "element": element,
                                "data": item,
                                "priority": priority,
                                "timeout_ms": timeout_ms,
                            },
                            retry=retry,
                        )
                    )
                    arrived.set()
            finally:
                arrived.set()

        feeder = asyncio.get_running_loop().create_task(feed())
        try:
            while True:
                while replies:
                    result = await replies.popleft()
                    room.release()
                    yield result
                if feeder.done():
                    feeder.result()
                    if not replies:
                        return
                arrived.clear()
                if not feeder.done() and not replies:
                    await arrived.wait()
        finally:
            feeder.cancel()
            for reply in replies:
                reply.cancel()
