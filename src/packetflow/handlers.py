"""Handlers: what their signatures promise, checked when they are registered.

A handler is a function, plain or ``async``, of one parameter (``data``) or two
(``data, packet``). If ``data`` is annotated, the JSON is decoded straight into
that type and validated by msgspec; if the return type is, what the handler
returns is checked against it.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import msgspec

from packetflow.errors import InvalidPacket
from packetflow.middleware import Middleware, compose
from packetflow.model import GROUPS
from packetflow.offload import Offload, Pools
from pfcore.work.dispatch import Dispatcher
from pfcore.work.handler import Handler

__all__ = ["HandlerRegistry", "make_handler"]

F = TypeVar("F", bound=Callable[..., Any])
MiddlewareT = TypeVar("MiddlewareT", bound=Middleware)

_UNTYPED = (inspect.Parameter.empty, Any, object)
_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine, collections.abc.Generator)


def _describe(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _parameters(name: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # built-ins such as str.upper have no readable signature; they take one argument
        return [inspect.Parameter("data", inspect.Parameter.POSITIONAL_ONLY)]
    positional = [
        p for p in parameters if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [p for p in positional if p.default is inspect.Parameter.empty]
    keyword_only = [
        p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    ]
    variadic = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if keyword_only or len(required) > 2 or (not positional and not variadic):
        raise TypeError(
            f"handler for {name}: expected {_describe(function)} to take (data) or (data, packet), "
            f"it takes {inspect.signature(function)}"
        )
    if not positional:
        return [inspect.Parameter("data", inspect.Parameter.POSITIONAL_ONLY)]
    # a second parameter with a default is the handler's own business, unless it is named for the packet
    if len(required) < 2 and (len(positional) < 2 or positional[1].name != "packet"):
        return positional[:1]
    return positional[:2]


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError) as error:
        raise TypeError(
            f"handler for {name}: the annotations of {_describe(function)} cannot be read: {error}"
        ) from None


def _return_check(name: str, annotation: Any) -> Callable[[Any], Any]:
    kind = annotation if isinstance(annotation, type) else None
    is_class = kind is not None and not typing.is_typeddict(kind) and typing.get_origin(annotation) is None

    def check(value: Any) -> Any:
        if is_class and isinstance(value, annotation):
            return value
        try:
            msgspec.convert(value, annotation, from_attributes=True)
        except (msgspec.ValidationError, TypeError) as error:
            raise TypeError(f"the handler for {name} returned what its annotation does not allow: {error}") from None
        return value

    return check


def make_handler(
    group: str,
    element: str,
    function: Callable[..., Any],
    *,
    concurrency: int = 0,
    offload: Offload | None = None,
    pools: Pools | None = None,
    middlewares: Sequence[Middleware] = (),
) -> Handler:
    """The compiled `Handler` of a function.

    Raises `InvalidPacket` for a bad group or element and TypeError for a
    signature or annotation that cannot work, each saying what was expected.
    """
    name = f"{group}:{element}"
    if not isinstance(group, str) or group not in GROUPS:
        raise InvalidPacket(f"group: expected one of {', '.join(GROUPS)}, found {group!r}", where="group")
    if not callable(function):
        raise TypeError(f"handler for {name}: expected a function, got {function!r}")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"handler for {name}: expected a function that returns its result, {_describe(function)} yields"
        )
    parameters = _parameters(name, function)
    hints = _hints(name, function)
    annotation = hints.get(parameters[0].name, Any)
    decoder = None
    if annotation not in _UNTYPED:
        try:
            decoder = msgspec.json.Decoder(annotation).decode
        except TypeError as error:
            raise TypeError(f"handler for {name}: data cannot be decoded as {annotation}: {error}") from None
    returned = hints.get("return", Any)
    if typing.get_origin(returned) in _AWAITABLES:
        returned = (typing.get_args(returned) or (Any,))[-1]
    check = exact = None
    if returned not in _UNTYPED and returned is not typing.NoReturn:
        check = _return_check(name, returned)
        exact = returned if isinstance(returned, type) else None
    wants_packet = len(parameters) == 2
    if offload is not None:
        pools = Pools() if pools is None else pools
        function, concurrency = pools.wrap(name, function, offload, wants_packet, concurrency)
    if middlewares:
        # what the handler returns is checked inside: a middleware may make something else of it
        function = compose(function, wants_packet, check, middlewares)
        wants_packet = True
        check = exact = None
    return Handler(
        group,
        element,
        function,
        limit=concurrency,
        wants_packet=wants_packet,
        decoder=decoder,
        plain_str=annotation is str,
        returns=exact,
        check=check,
    )


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

            make_handler(group, element, _any_handler)  # a bad address fails here, not at the function
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
                f"use: expected an async function (packet, call_next), got {_describe(middleware)}, which is not"
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


def _any_handler(data: Any) -> Any:
    return data
