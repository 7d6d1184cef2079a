"""Handlers that must not run on the event loop: in threads if they block, in processes if they compute."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = ["Offload", "Pools"]

Offload = Literal["thread", "process"]

_THREADS = 32


_Work = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


def _work(waiting: queue.SimpleQueue[_Work | None], idle: threading.Semaphore) -> None:
    """What a thread does."""
    while True:
        try:
            work = waiting.get_nowait()
        except queue.Empty:
            idle.release()
            work = waiting.get()
        if work is None:
            waiting.put(None)  # for the next thread
            return
        future, function, args = work
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it, whatever it is
                future.set_exception(error)
        del work, future, function, args  # nothing of the last packet is kept while it waits for the next


class _Threads(Executor):
    """At most `most` threads, made as needed.

    The standard library's ThreadPoolExecutor keeps the interpreter from ending until all of its
    threads have come to an end; a handler that blocks for ever must not: its packet had its grace.
    """

    def __init__(self, most: int) -> None:
        self._room = most
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self._waiting.put((future, function, args))
        if not self._idle.acquire(blocking=False) and self._room > 0:
            self._room -= 1
            threading.Thread(
                target=_work, args=(self._waiting, self._idle), name="packetflow-handler", daemon=True
            ).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Each thread ends with what it does, which is not waited for; what has not begun is cancelled."""
        while True:
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                break
            if work is not None:
                work[0].cancel()
        self._waiting.put(None)

    def __del__(self) -> None:
        self._waiting.put(None)


def _follow() -> None:
    """In a worker process: it does not outlive the one that it works for, however that one ends."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # pragma: no cover - whoever traces it has gone as well

    threading.Thread(target=follow, daemon=True).start()


class Pools:
    """The executors of one reactor or gateway, made when first needed."""

    def __init__(self) -> None:
        self._threads: _Threads | None = None
        self._processes: ProcessPoolExecutor | None = None
        self._computing: set[Future[Any]] = set()

    def wrap(
        self, name: str, function: Callable[..., Any], offload: Offload, wants_packet: bool, concurrency: int
    ) -> tuple[Callable[..., Any], int]:
        """An async handler that runs `function` elsewhere, and how many packets may be in it at once."""
        if offload not in ("thread", "process"):
            raise ValueError(f'handler for {name}: offload: expected "thread" or "process", got {offload!r}')
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"handler for {name}: only a plain def can be offloaded, {function!r} is async")
        if offload == "thread":
            return functools.partial(self._in_thread, function), concurrency or _THREADS
        if wants_packet:
            raise TypeError(f"handler for {name}: in a process it gets (data) only, not the packet")
        if "<" in getattr(function, "__qualname__", "<"):
            raise TypeError(
                f"handler for {name}: a process finds it by its name, so it must be a function at the top of a module"
            )
        return functools.partial(self._in_process, function), concurrency or os.cpu_count() or 1

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._threads is None:
            self._threads = _Threads(_THREADS)
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, *args)

    async def _in_process(self, function: Callable[..., Any], data: Any, *rest: Any) -> Any:
        import multiprocessing  # what few need is imported when they do
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        if self._processes is None:
            # not fork: the loop, its sockets and its threads must not be there twice
            self._processes = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), initializer=_follow)
        pool = self._processes
        try:
            future = pool.submit(function, data)
            self._computing.add(future)
            future.add_done_callback(self._computing.discard)
            return await asyncio.wrap_future(future)
        except BrokenProcessPool:
            # a worker process died; the next packet gets new ones
            if self._processes is pool:
                self._processes = None
            raise RuntimeError("the process that ran the handler has died") from None

    def close(self) -> None:
        """Lets go of all threads and processes at once.

        A thread ends when what it runs returns; a process that has not done so by now is killed.
        """
        threads, self._threads = self._threads, None
        processes, self._processes = self._processes, None
        if threads is not None:
            threads.shutdown()
        if processes is not None:
            workers = list((processes._processes or {}).values())
            processes.shutdown(wait=False, cancel_futures=True)
            if any(not future.done() for future in list(self._computing)):
                for worker in workers:
                    worker.kill()
