"""The data of an element: its shape, and what is checked of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from packetflow.elements.expressions import View
from packetflow.errors import Forbidden, InvalidPacket, NoHandler, Overloaded, TooLarge
from packetflow.state import StoreFull
from pfcore.wire.scan import array_length

if TYPE_CHECKING:
    from packetflow.elements.call import Call

__all__ = [
    "DEFAULT_TTL_MS",
    "MAX_NAME",
    "STEP_BYTES",
    "Element",
    "Int",
    "Request",
    "Step",
    "check_may",
    "check_name",
    "check_size",
    "check_ttl",
    "element",
    "error_of",
    "full",
    "key_of",
    "list_of",
    "no_handler",
    "prefix_of",
]

Int = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""An integer of a packet: what is larger is refused by its name before anything is reckoned with it."""

MAX_NAME = 256
MAX_TTL_MS = 86_400_000
DEFAULT_TTL_MS = 30_000
STEP_BYTES = 256
"""What a step in a packet's data takes besides its text."""


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """The data of an element: unknown keys are mistakes, and refused."""


class Step(Request, kw_only=True):
    """A nested packet."""

    group: str
    element: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    priority: Int | float | None = None
    timeout_ms: Int | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    as_: str | None = msgspec.field(name="as", default=None)

    @property
    def key(self) -> str:
        """Its ``group:element``."""
        return f"{self.group}:{self.element}"


Function = Callable[["Call", Any], Awaitable[Any]]


@dataclass(frozen=True)
class Element:
    """A standard element: its address, the shape of its data, and what it does."""

    group: str
    name: str
    request: type[Request]
    function: Function

    @property
    def key(self) -> str:
        return f"{self.group}:{self.name}"


def element(group: str, name: str) -> Callable[[Function], Element]:
    """Makes an `Element` of a function ``(call, request)``; the annotation of `request` is its data's shape."""

    def make(function: Function) -> Element:
        import typing

        request = typing.get_type_hints(function)["request"]
        return Element(group, name, request, function)

    return make


def key_of(*names: str) -> str:
    """One name for the store of several, whatever is in them; those with the same first ones have one prefix."""
    return "".join([f"{len(name)}:{name}:" for name in names[:-1]]) + names[-1]


def prefix_of(*names: str) -> str:
    """What all keys begin with whose first names these are."""
    return key_of(*names, "")


def list_of(view: View, data: msgspec.Raw, what: str) -> list[msgspec.Raw]:
    """The items of a list, each JSON still."""
    text = bytes(data)
    if not text.startswith(b"["):
        raise InvalidPacket(f"{what}: expected a list")
    view.pay((text.count(b",") >> 2) + (len(text) >> 7))
    return _decode_list(text)


def items_of(data: msgspec.Raw, what: str, most: int) -> list[msgspec.Raw]:
    """The items of a list, each JSON still; more than so many are refused before there is an object for each."""
    text = bytes(data)
    if text.count(b",") >= most and array_length(text, most) > most:
        raise InvalidPacket(f"{what}: expected at most {most:,} in one packet, got more")
    try:
        return _decode_list(text)
    except msgspec.ValidationError as error:
        raise InvalidPacket(f"{what}: {error}") from None


_decode_list: Callable[[bytes], list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw]).decode


def error_of(code: str, message: str, details: Any = None) -> msgspec.Raw:
    """An error as a result has it."""
    error = {"code": code, "message": message}
    return msgspec.Raw(msgspec.json.encode(error | {"details": details} if details else error))


def check_name(what: str, name: str) -> str:
    """A name of 1 to 256 bytes."""
    if not 1 <= (len(name) if name.isascii() else len(name.encode())) <= MAX_NAME:
        raise InvalidPacket(f"{what}: expected a name of 1 to {MAX_NAME} bytes, got {len(name.encode())}")
    return name


def check_ttl(ttl_ms: int | None, default: int | None = DEFAULT_TTL_MS) -> float | None:
    """Seconds of a ``ttl_ms`` of 1 ms to 24 h."""
    if ttl_ms is None:
        return default / 1000 if default is not None else None
    if not 1 <= ttl_ms <= MAX_TTL_MS:
        raise InvalidPacket(f"ttl_ms: expected 1 to {MAX_TTL_MS:,}, got {ttl_ms:,}")
    return ttl_ms / 1000


def check_size(call: Call, what: str, value: msgspec.Raw) -> None:
    """A value within the bound."""
    if len(value) > call.bounds.value:
        raise TooLarge(f"{what}: {len(value):,} bytes, at most {call.bounds.value:,} may be")


def full(error: StoreFull) -> Overloaded:
    """A bound of the store as an answer."""
    return Overloaded(str(error), details={"retry_after_ms": 1000})


def check_may(call: Call, key: str) -> None:
    """Raises `Forbidden` unless the submitter may submit to this element."""
    if not call.runtime.host.may_submit(call.principal, key):
        raise Forbidden(f"not allowed for this principal: {key}")


def no_handler(key: str) -> NoHandler:
    """Nobody handles it."""
    return NoHandler(f"no handler for {key}")
