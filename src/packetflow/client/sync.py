"""A reactor for scripts and threads: the same, blocking.

>>> from packetflow.sync import Reactor
>>> with Reactor("ws://127.0.0.1:8443/packetflow/v1") as reactor:   # doctest: +SKIP
...     reactor.call("df", "transform", "hello world")
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from packetflow.client.reactor import Reactor as AsyncReactor
from packetflow.endings import within
from packetflow.errors import ConnectionLost, Unavailable
from packetflow.loop import loop_factory
from packetflow.model import Packet, Result

__all__ = ["Reactor"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LINGER = 1.0
"""Seconds that tasks of handlers have to end when their loop does."""

_running: weakref.WeakSet[Reactor] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """The interpreter ends: no thread may be in a loop by then."""
    for reactor in list(_running):
        with suppress(Exception):
            reactor.stop(grace=0)


class Reactor:
    """`packetflow.Reactor` on a thread of its own. Its methods may be called from any thread.

    Takes the same arguments. Handlers that are registered here run on that
    thread, so they must not call this reactor's blocking methods. Once another
    thread has begun to stop it, calls raise `Unavailable`, and those that are
    unanswered at the end `ConnectionLost`. A process that was forked while it ran has
    no part in it: every use there raises RuntimeError. Where the interpreter ends,
    it is stopped without a grace.
    """

    def __init__(self, endpoint: str | Sequence[str], **settings: Any) -> None:
        self._reactor = AsyncReactor(endpoint, **settings)
        self._lock = threading.Lock()
        """Held where `_loop` changes and where work is given to it: none is given to a loop that has ended."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._stopping = False
        self._stopped = False

    @property
    def endpoint(self) -> str:
        """The gateway's URL."""
        return self._reactor.endpoint

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        self._check_process()
        return self._reactor.connected

    def register(self, group: str, element: str, handler: F | None = None, **options: Any) -> Any:
        """As `packetflow.Reactor.register`; also before `start`."""
        if handler is None:
            return lambda function: self.register(group, element, function, **options)
        self._check_process()
        if self._loop is None:
            return self._reactor.register(group, element, handler, **options)

        async def register() -> Any:
            return self._reactor.register(group, element, handler, **options)

        return self._run(register())

    def start(self) -> None:
        """Connects. Raises `ConnectionLost` if nobody answers there. Where it raises, nothing is left of it."""
        self._check_process()
        with self._lock:
            if self._thread is not None:
                ending = "is stopping" if self._stopping else "has been started already"
                raise RuntimeError(f"start: the reactor {ending}")
            factory = loop_factory() or asyncio.new_event_loop
            loop = self._loop = factory()
            self._process = os.getpid()
            self._stopping = self._stopped = False
            self._thread = threading.Thread(target=self._serve, args=(loop,), name="packetflow", daemon=True)
            _running.add(self)
            self._thread.start()
        try:
            self._run(self._reactor.start())
        except BaseException:
            self._end()
            self._stopped = False
            raise

    def stop(self, grace: float = 5.0) -> None:
        """As `packetflow.Reactor.stop`; returns once the thread has ended, whoever of several threads stops it."""
        self._check_process()
        self._check_thread()
        with self._lock:
            if self._thread is None:
                return
            self._stopping = True
        try:
            self._run(self._reactor.stop(grace), ending=True)
        except (Unavailable, ConnectionLost):
            pass  # the stop of another thread came to its end before
        finally:
            self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process == os.getpid():  # a forked process that leaves the block has nothing to stop
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

        results, loop = self._run(begin()), self._loop

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
                batch = self._run(take(most), loop)
                yield from batch
                if len(batch) < most:
                    return
        finally:
            with suppress(Unavailable, ConnectionLost, RuntimeError):  # stopped, or forked: nothing is left to cancel
                self._run(close(), loop)

    # -- the thread

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            with self._lock:  # from here on nothing is given to the loop; what was given before, ends
                self._loop = None
                self._stopped = True
            try:
                loop.run_until_complete(self._wind_up())
            finally:
                loop.close()

    async def _wind_up(self) -> None:
        """Ends whatever runs in the loop still, the reactor itself where nobody has stopped it."""
        await within(_LINGER, self._reactor.stop(grace=0))
        await asyncio.sleep(0)  # who was told of an end hears of that, not of being cancelled
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LINGER)
        await asyncio.get_running_loop().shutdown_asyncgens()

    def _check_process(self) -> None:
        if self._thread is not None and self._process != os.getpid():
            raise RuntimeError(
                f"this process was forked from {self._process} after the reactor had been started there, and threads"
                " do not come along: make a new Reactor after the fork"
            )

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("a handler cannot wait for its own reactor's thread; use packetflow.Reactor")

    def _run(
        self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None, *, ending: bool = False
    ) -> T:
        """The outcome of `work` on the reactor's loop; on that of an iteration that was begun there, `loop`."""
        try:
            self._check_process()
            self._check_thread()
            with self._lock:
                if self._loop is None or (loop is not None and loop is not self._loop):
                    if self._stopped or loop is not None:
                        raise Unavailable("the reactor was stopped")
                    raise RuntimeError("not started: use `with`, or call start() first")
                if self._stopping and not ending:
                    raise Unavailable("the reactor is stopping")
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise ConnectionLost("the reactor was stopped; the answer is unknown") from None
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: the packet is cancelled, too
            raise

    def _end(self) -> None:
        with self._lock:
            thread = self._thread
            if self._loop is not None:  # once: a second would stop the loop in the middle of winding up
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None
                self._stopping = self._stopped = True
        if thread is not None:
            thread.join()
        with self._lock:
            if self._thread is thread:
                self._thread = None
                self._stopping = False
                _running.discard(self)
