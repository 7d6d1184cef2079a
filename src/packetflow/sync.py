"""A reactor for scripts and threads: the same, blocking.

>>> from packetflow.sync import Reactor
>>> with Reactor("ws://127.0.0.1:8443/packetflow/v1") as reactor:   # doctest: +SKIP
...     reactor.call("df", "transform", "hello world")
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from packetflow.loop import loop_factory
from packetflow.model import Packet, Result
from packetflow.reactor import Reactor as AsyncReactor

__all__ = ["Reactor"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Reactor:
    """`packetflow.Reactor` on a thread of its own. Its methods may be called from any thread.

    Takes the same arguments. Handlers that are registered here run on that
    thread, so they must not call this reactor's blocking methods.
    """

    def __init__(self, endpoint: str | Sequence[str], **settings: Any) -> None:
        self._reactor = AsyncReactor(endpoint, **settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """The gateway's URL."""
        return self._reactor.endpoint

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._reactor.connected

    def register(self, group: str, element: str, handler: F | None = None, **options: Any) -> Any:
        """As `packetflow.Reactor.register`; also before `start`."""
        if handler is None:
            return lambda function: self.register(group, element, function, **options)
        if self._loop is None:
            return self._reactor.register(group, element, handler, **options)

        async def register() -> Any:
            return self._reactor.register(group, element, handler, **options)

        return self._run(register())

    def start(self) -> None:
        """Connects. Raises `ConnectionLost` if nobody answers there."""
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("start: the reactor has been started already")
            factory = loop_factory() or asyncio.new_event_loop
            loop = self._loop = factory()
            self._thread = threading.Thread(target=self._serve, args=(loop,), name="packetflow", daemon=True)
            self._thread.start()
        try:
            self._run(self._reactor.start())
        except BaseException:
            self._end()
            raise

    def stop(self, grace: float = 5.0) -> None:
        """As `packetflow.Reactor.stop`; returns once the thread has ended."""
        if self._thread is None:
            return
        try:
            self._run(self._reactor.stop(grace))
        finally:
            self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, packet: Packet | Mapping[str, Any], *, retry: int | bool = 0) -> Result:
        """Submits a packet and waits for its `Result`. Raises as `packetflow.Reactor.submit`."""

        async def submit() -> Result:
            result: Result = await self._reactor.submit(packet, retry=retry)
            return result

        return self._run(submit())

    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Any:
        """Submits a packet and waits for what its handler returned. Raises as `packetflow.Reactor.call`."""

        async def call() -> Any:
            return await self._reactor.call(group, element, data, priority=priority, timeout_ms=timeout_ms, retry=retry)

        return self._run(call())

    def map(
        self,
        group: str,
        element: str,
        items: Iterable[Any],
        *,
        window: int = 1024,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Iterator[Result]:
        """As `packetflow.Reactor.map`. `items` is iterated on the reactor's thread."""

        async def begin() -> AsyncIterator[Result]:
            return self._reactor.map(
                group, element, items, window=window, priority=priority, timeout_ms=timeout_ms, retry=retry
            )

        results = self._run(begin())

        async def take(most: int) -> list[Result]:
            taken: list[Result] = []
            async for result in results:
                taken.append(result)
                if len(taken) == most:
                    break
            return taken

        async def close() -> None:
            await results.aclose()  # type: ignore[attr-defined]

        most = min(window, 1024)  # one crossing between the threads for many results
        try:
            while True:
                batch = self._run(take(most))
                yield from batch
                if len(batch) < most:
                    return
        finally:
            if self._thread is not None:
                self._run(close())

    # -- the thread

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        if loop is None:
            work.close()
            raise RuntimeError("not started: use `with`, or call start() first")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a handler cannot wait for its own reactor's thread; use packetflow.Reactor")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: the packet is cancelled, too
            raise

    def _end(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop = self._thread = None
