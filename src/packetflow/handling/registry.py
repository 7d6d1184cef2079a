"""What can be registered: handlers and middleware, by the API that Reactor and Gateway share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

from packetflow.handling.offload import Offload, Pools
from packetflow.handling.signatures import describe, make_handler
from packetflow.middleware import Middleware
from pfcore.work.dispatch import Dispatcher

__all__ = ["HandlerRegistry"]

F = TypeVar("F", bound=Callable[..., Any])
MiddlewareT = TypeVar("MiddlewareT", bound=Middleware)


class _Registry:
    """What was registered, as it was given."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str], tuple[Callable[..., Any], int, Offload | None]] = {}
        self.middlewares: list[Middleware] = []
        self.pools = Pools()


class HandlerRegistry:
    """`register` for whatever owns a dispatcher: reactors and gateways."""

    _dispatcher: Dispatcher

    @property
    def _registry(self) -> _Registry:
        found: _Registry | None = self.__dict__.get("_registrations")
        if found is None:
            found = self.__dict__["_registrations"] = _Registry()
        return found

    @overload
    def register(
        self, group: str, element: str, handler: F, *, concurrency: int = ..., offload: Offload | None = ...
    ) -> F: ...
    @overload
    def register(
        self,
        group: str,
        element: str,
        handler: None = None,
        *,
        concurrency: int = ...,
        offload: Offload | None = ...,
    ) -> Callable[[F], F]: ...
    def register(
        self,
        group: str,
        element: str,
        handler: F | None = None,
        *,
        concurrency: int = 0,
        offload: Offload | None = None,
    ) -> F | Callable[[F], F]:
        """Registers what handles ``group:element``; returns it. Without `handler`: a decorator.

        `handler`: ``def`` or ``async def``, taking ``(data)`` or ``(data, packet)``.
        `concurrency`: packets that may be in it at once (default 0: as many as
        the group and the reactor allow). `offload`: ``"thread"`` for a ``def``
        that blocks, ``"process"`` for one that computes; the latter takes
        ``(data)`` and must be importable by name. A later registration takes the
        place of an earlier one. Raises `InvalidPacket` for a bad group or
        element, TypeError for a signature that cannot work. Specification:
        "Register packet handler".
        """
        if concurrency < 0:
            raise ValueError(f"concurrency: expected 0 or more, got {concurrency}")
        if handler is None:

            def decorate(function: F) -> F:
                return self.register(group, element, function, concurrency=concurrency, offload=offload)

            make_handler(group, element, lambda data: data)  # a bad address fails here, not at the function
            return decorate
        self._put(group, element, handler, concurrency, offload)
        self._registry.functions[group, element] = (handler, concurrency, offload)
        self._handlers_changed()
        return handler

    def _put(
        self, group: str, element: str, handler: Callable[..., Any], concurrency: int, offload: Offload | None
    ) -> None:
        registry = self._registry
        self._dispatcher.register(
            make_handler(
                group,
                element,
                handler,
                concurrency=concurrency,
                offload=offload,
                pools=registry.pools,
                middlewares=registry.middlewares,
            )
        )

    def unregister(self, group: str, element: str) -> None:
        """Takes a handler out; KeyError if there is none."""
        self._dispatcher.unregister(f"{group}:{element}")
        self._registry.functions.pop((group, element), None)
        self._handlers_changed()

    def use(self, middleware: MiddlewareT) -> MiddlewareT:
        """Adds a `Middleware` around every handler, those already registered included; returns it.

        The one added first is the outermost.
        """
        if not inspect.iscoroutinefunction(middleware) and not inspect.iscoroutinefunction(
            getattr(middleware, "__call__", None)  # noqa: B004 - to see whether it is async
        ):
            raise TypeError(
                f"use: expected an async function (packet, call_next), got {describe(middleware)}, which is not"
            )
        registry = self._registry
        registry.middlewares.append(middleware)
        for (group, element), (handler, concurrency, offload) in registry.functions.items():
            self._put(group, element, handler, concurrency, offload)
        return middleware

    @property
    def handles(self) -> list[str]:
        """What has a handler here: ``["df:transform"]``."""
        return self._dispatcher.keys

    def _handlers_changed(self) -> None:
        """Announces the change, where there is someone to announce it to."""
