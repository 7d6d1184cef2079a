"""Middleware: users' own code around every handler."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from packetflow.model import Packet

__all__ = ["CallNext", "Middleware", "compose"]

CallNext = Callable[[Packet], Awaitable[Any]]
"""What runs the rest: the next middleware, in the end the handler. Gives what the handler returned."""


class Middleware(Protocol):
    """``async def middleware(packet, call_next)``: returns what the submitter gets.

    `packet.data` is what the handler would get, already of its annotated type.
    It may change the packet, call the rest never, once or again, change what
    comes back, or raise: a `PacketFlowError` answers with its code.
    """

    def __call__(self, packet: Packet, call_next: CallNext) -> Awaitable[Any]: ...


def compose(
    function: Callable[..., Any],
    wants_packet: bool,
    check: Callable[[Any], Any] | None,
    middlewares: Sequence[Middleware],
) -> Callable[[Any, Packet], Awaitable[Any]]:
    """The handler, its value checked, inside its middlewares, the first outermost; takes ``(data, packet)``."""

    async def innermost(packet: Packet) -> Any:
        value = function(packet.data, packet) if wants_packet else function(packet.data)
        value = await value if inspect.isawaitable(value) else value
        return value if check is None else check(value)

    call: CallNext = innermost
    for middleware in reversed(middlewares):
        call = _around(middleware, call)

    async def composed(data: Any, packet: Packet) -> Any:
        return await call(packet)

    return composed


def _around(middleware: Middleware, call_next: CallNext) -> CallNext:
    async def call(packet: Packet) -> Any:
        return await middleware(packet, call_next)

    return call
