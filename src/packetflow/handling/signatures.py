"""What a handler's signature promises, checked when it is registered.

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
from typing import Any

import msgspec

from packetflow.errors import InvalidPacket
from packetflow.handling.offload import Offload, Pools
from packetflow.middleware import Middleware, compose
from packetflow.model import GROUPS
from pfcore.work.handler import Handler

__all__ = ["describe", "make_handler"]

_UNTYPED = (inspect.Parameter.empty, Any, object)
_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine, collections.abc.Generator)


def describe(function: Any) -> str:
    """Its name, for messages."""
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
            f"handler for {name}: expected {describe(function)} to take (data) or (data, packet), "
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
            f"handler for {name}: the annotations of {describe(function)} cannot be read: {error}"
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
        raise TypeError(f"handler for {name}: expected a function that returns its result, {describe(function)} yields")
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
