"""Handlers that must not run on the event loop: in threads if they block, in processes if they compute."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

__all__ = ["Offload", "Pools"]

Offload = Literal["thread", "process"]

_THREADS = 32


class Pools:
    """The executors of one reactor or gateway, made when first needed."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._processes: ProcessPoolExecutor | None = None

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
        from concurrent.futures import ThreadPoolExecutor  # what few need is imported when they do

        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="packetflow-handler")
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, function, *args)

    async def _in_process(self, function: Callable[..., Any], data: Any, *rest: Any) -> Any:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        if self._processes is None:
            # not fork: the loop, its sockets and its threads must not be there twice
            self._processes = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
        pool = self._processes
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function, data)
        except BrokenProcessPool:
            # a worker process died; the next packet gets new ones
            if self._processes is pool:
                self._processes = None
            raise RuntimeError("the process that ran the handler has died") from None

    def close(self) -> None:
        """Lets go of all threads and processes; what still runs there is not waited for."""
        pools: list[Executor | None] = [self._threads, self._processes]
        self._threads = self._processes = None
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
