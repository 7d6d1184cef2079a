"""Reactor: dials a gateway, submits packets and handles packets, over one socket."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

import picows

from packetflow.endpoint import Endpoint, parse_endpoint
from packetflow.errors import ConnectionLost
from packetflow.handlers import HandlerRegistry
from packetflow.model import Result
from pfcore.client import Submitter
from pfcore.dispatch import Dispatcher
from pfcore.engine import Engine
from pfcore.link import Link

__all__ = ["Reactor"]

log = logging.getLogger("packetflow.reactor")

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0


def warn_slow(key: str, milliseconds: int) -> None:
    """The warning for a handler that kept the loop from everything else."""
    log.warning(
        "the handler for %s kept the event loop for %d ms: make it async, or move its work to a thread",
        key,
        milliseconds,
    )


class Reactor(Submitter, HandlerRegistry):
    """A reactor: ``async with Reactor("ws://127.0.0.1:8443/packetflow/v1") as reactor: ...``.

    `endpoint`: the gateway's URL (``ws``, ``wss``, ``packetflow``, ``packetflows``).
    `name`: this reactor's id, by which a gateway can address it (default: none).
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
        endpoint: str,
        *,
        name: str | None = None,
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
        self._endpoint: Endpoint = parse_endpoint(endpoint)
        self._dispatcher = Dispatcher(
            concurrency=concurrency, max_queue=max_queue, expose_errors=expose_errors, on_slow=warn_slow
        )
        self._settings: dict[str, Any] = {
            "name": name,
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
        """The gateway's URL."""
        return self._endpoint.url

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._connection is not None and self._connection.open

    async def start(self) -> None:
        """Connects. Raises `ConnectionLost` if nobody answers there; later losses are made good by dialling again."""
        if self._engine is not None:
            raise RuntimeError("start: the reactor has been started already")
        loop = asyncio.get_running_loop()
        self._stopping = False
        self._dispatcher.start(loop)
        engine = Engine(client=True, acceptor=self._dispatcher, **self._settings)
        engine.announce(self.handles)
        link = Link(engine, loop=loop, on_closed=self._on_closed)
        try:
            await self._dial(link)
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
            await self._dispatcher.drain(grace)
            link.close(1000, "stopping")
            await link.wait_closed()
        engine.close("PF503", "the reactor was stopped")
        link.flush_ended()
        self._dispatcher.stop()
        self._bind(None)
        self._engine = self._connection = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _dial(self, link: Link) -> None:
        url = self._endpoint.url
        try:
            await picows.ws_connect(
                lambda: link,
                url,
                ssl_context=self._ssl,
                websocket_handshake_timeout=self._handshake_timeout,
                enable_auto_pong=False,  # the link answers pings itself, in the same write as everything else
                max_frame_size=4 * self._settings["max_frame"],
                max_redirects=0,
                logger_name=log,
            )
        except (OSError, TimeoutError, picows.WSError) as error:
            reason = str(error) or type(error).__name__
            raise ConnectionLost(f"cannot connect to {url}: {reason}") from error

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
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            try:
                await self._dial(link)
                return
            except ConnectionLost as error:
                log.info("%s", error.message)
                delay = min(delay * 2, _LONGEST_DELAY)

    def _handlers_changed(self) -> None:
        if self._engine is not None:
            self._engine.announce(self.handles)

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
    ) -> AsyncIterator[Result]:
        """Submits a packet for each item; iterate for the `Result`s, in the order of the items.

        `items`: any iterable or async iterable, pulled as there is room.
        `window`: packets in flight at once, 1 to 65,536 (default 1,024). A failed
        packet is a `Result` like any other; iterating raises only where there is
        no answer (`PacketTimeout`, `ConnectionLost`), as `submit` does. Leaving
        the loop early cancels what is in flight.
        """
        if isinstance(items, AsyncIterable):
            return self._map_async(group, element, items, window, priority, timeout_ms)
        return self._map(group, element, items, window=window, priority=priority, timeout_ms=timeout_ms)

    async def _map_async(
        self, group: str, element: str, items: AsyncIterable[Any], window: int, priority: int, timeout_ms: int | None
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
                            }
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
