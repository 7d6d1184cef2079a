"""Reactor: dials a gateway, submits packets and handles packets, over one socket."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import random
import secrets
import ssl as ssl_module
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from packetflow.client.toolbox import Toolbox
from packetflow.endings import Ending, within
from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost, Forbidden, PacketFlowError, Unauthenticated
from packetflow.handling.registry import HandlerRegistry
from packetflow.logs import HandlerErrors, warn_slow
from packetflow.model import Result
from packetflow.settings import MOST_ANNOUNCED, LinkSettings
from pfcore.client import Submitter
from pfcore.link.engine import Engine
from pfcore.link.handshake import HandshakeRefused, connect
from pfcore.link.websocket import Link
from pfcore.work.dispatch import Dispatcher

__all__ = ["Reactor"]

log = logging.getLogger("packetflow.reactor")

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
_SETTLED = 1.0
"""Seconds after which a connection that heard a heartbeat counts as a good one: the next delay is the first again."""
_CLOSING = 0.5
"""Seconds that the peer has to take what is left when we close."""


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
    `reconnect`: dial again after a loss, after 0.05 s and later and later, up to 5 s,
    while connections do not last (default True). `handshake_timeout`: seconds that one
    dialling may take, name, TLS and upgrade included (default 5). `ssl`: an `ssl.SSLContext` for ``wss``.
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
        self._settings = LinkSettings(
            window,
            max_pending,
            max_frame,
            heartbeat,
            silence,
            name=os.environ.get("PACKETFLOW_REACTOR") if name is None else name,
            instance=secrets.token_urlsafe(24),  # kept over reconnects: what it held is still its own
        )
        self._reconnect = reconnect
        self._handshake_timeout = handshake_timeout
        self._ssl = ssl
        self._engine: Engine | None = None
        self._connection: Link | None = None
        self._starting: asyncio.Task[None] | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._ending: Ending | None = None
        self._delay = _FIRST_DELAY
        self._opened = 0.0
        self._heard = False

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

        Later losses are made good by dialling again. Where it raises, or is cancelled,
        nothing is left of it, and it may be called again.
        """
        if self._ending is not None:
            raise RuntimeError("start: the reactor is stopping; await stop() first")
        if self._engine is not None or self._starting is not None:
            raise RuntimeError("start: the reactor has been started already")
        loop = asyncio.get_running_loop()
        self._dispatcher.start(loop)
        engine = self._settings.engine(client=True, sink=self._dispatcher, on_heartbeat=self._on_heartbeat)
        engine.announce(self._announced())
        link = Link(engine, loop=loop, on_open=self._on_open, on_closed=self._on_closed)
        # a task of its own, so that `stop` can end it without touching the caller's
        starting = self._starting = loop.create_task(self._begin(link))
        try:
            await asyncio.wait({starting})
            if starting.cancelled():
                raise ConnectionLost("the reactor was stopped while it connected")
            starting.result()
        except BaseException:
            starting.cancel()
            try:
                await asyncio.wait({starting})
            finally:
                self._clear(engine, link, "PF502", "the connection could not be made")
            raise
        finally:
            self._starting = None

    async def _begin(self, link: Link) -> None:
        await self._dial_any(link)
        self._delay = _FIRST_DELAY
        # here, in the same step: a loss from now on is `_on_closed`'s
        self._engine, self._connection = link.engine, link
        self._bind(link)

    async def stop(self, grace: float = 5.0) -> None:
        """Stops: accepted packets may finish for `grace` seconds, new ones get PF503; then closes.

        Returns within the grace and a second. Called again while it stops, it waits for
        the same ending, with the shorter grace of the two. Cancelled, it ends at once what is left.
        """
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
            while self._starting is starting:  # `start` takes down what it has put up
                await asyncio.sleep(0)
        if self._engine is None:
            return
        if self._ending is None:
            self._ending = Ending(self._end, grace)
        await self._ending.wait(grace)

    async def _end(self, ending: Ending) -> None:
        engine, link, dialling = self._engine, self._connection, self._dialling
        assert engine is not None and link is not None
        try:
            if dialling is not None:
                dialling.cancel()
                await asyncio.wait({dialling})
            if link.open:
                engine.announce([])  # the gateway has others for what comes now
                await ending.allow(self._dispatcher.drain(None))
                link.close(1000, "stopping")
                await within(_CLOSING, link.wait_closed())
        finally:
            self._clear(engine, link, "PF503", "the reactor was stopped")
            self._ending = None

    def _clear(self, engine: Engine, link: Link, code: str, message: str) -> None:
        """Takes down all that `start` has put up; what is unanswered ends with `code`."""
        self._bind(None)
        self._engine = self._connection = None  # first: this loss is nobody's to make good
        link.detach()
        engine.close(code, message)
        link.flush_ended()
        self._dispatcher.stop()
        self._registry.pools.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _dial_any(self, link: Link) -> None:
        """Connects to the first gateway that answers, from the present one on."""
        for attempt in range(len(self._endpoints)):  # pragma: no branch - the last returns or raises
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
            async with asyncio.timeout(self._handshake_timeout):
                await connect(link, endpoint.url, headers=headers or None, ssl=self._ssl, logger=log)
        except HandshakeRefused as error:
            body = error.body.decode("utf-8", "replace").strip()[:200]
            if error.status in (401, 403):
                kind = Unauthenticated if error.status == 401 else Forbidden
                raise kind(f"{endpoint.url} refused the connection: {body or error.status}") from None
            raise ConnectionLost(f"cannot connect to {endpoint.url}: {body or error}") from error
        except TimeoutError as error:
            reason = f"no answer within {self._handshake_timeout:g} s"
            raise ConnectionLost(f"cannot connect to {endpoint.url}: {reason}") from error
        except OSError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionLost(f"cannot connect to {endpoint.url}: {reason}") from error

    def _on_open(self, link: Link) -> None:
        self._opened = time.monotonic()
        self._heard = False

    def _on_heartbeat(self, engine: Engine) -> None:
        self._heard = True

    def _on_closed(self, link: Link) -> None:
        engine = self._engine
        if engine is None or link is not self._connection or self._ending is not None:
            return  # `start` and `stop` see to it
        if not self._reconnect:
            engine.close("PF502", "the connection was lost, and reconnect is off")
            link.flush_ended()
            return
        lived = time.monotonic() - self._opened
        if lived > _LONGEST_DELAY or (lived > _SETTLED and self._heard):
            self._delay = _FIRST_DELAY
        if self._dialling is None:  # else this connection went while it was made, and the dialling goes on
            log.warning("connection to %s lost (close code %d); dialling again", self.endpoint, link.close_code)
            self._dialling = asyncio.get_running_loop().create_task(self._dial_again(link))

    async def _dial_again(self, link: Link) -> None:
        """Dials until there is a connection. At most one of these exists."""
        try:
            while True:
                # jitter: a thousand reactors must not come back in the same millisecond
                await asyncio.sleep(self._delay * random.uniform(0.2, 1.0))
                self._delay = min(self._delay * 2, _LONGEST_DELAY)
                # another gateway, if there is one: the one that was lost may take its time
                self._current = (self._current + 1) % len(self._endpoints)
                try:
                    await self._dial_any(link)
                    return
                except PacketFlowError as error:
                    log.info("%s", error.message)
                except Exception:
                    log.exception("cannot connect to %s", self.endpoint)
        finally:
            self._dialling = None  # in the same step as the connection: its loss begins another

    def _handlers_changed(self) -> None:
        if self._engine is not None:
            self._engine.announce(self._announced())

    def _announced(self) -> list[str]:
        handles = self.handles
        if len(handles) > MOST_ANNOUNCED:
            log.warning("%d handlers: only the first %d can be announced", len(handles), MOST_ANNOUNCED)
        return handles[:MOST_ANNOUNCED]

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
