"""The code table of the protocol and the exceptions that stand for it.

::

    PacketFlowError                 root; also for codes that are not in the table
    ├── NoHandler          PF001    no handler for group:element
    ├── InvalidPacket      PF400    malformed frame, packet or data (also a ValueError)
    │   └── UnsupportedVersion PF426
    ├── Unauthenticated    PF401
    ├── Forbidden          PF403
    ├── PacketTimeout      PF408    deadline passed (also a TimeoutError); worth retrying
    ├── Conflict           PF409    duplicate id in flight; version conflict
    ├── TooLarge           PF413
    ├── DependencyFailed   PF424
    ├── Overloaded         PF429    over a limit, details["retry_after_ms"]; worth retrying
    ├── Cancelled          PF499    cancelled by the submitter
    ├── HandlerError       PF500    the handler raised; the message is the exception's own
    ├── ConnectionLost     PF502    connection lost, answer unknown (also a ConnectionError)
    └── Unavailable        PF503    draining or shutting down; worth retrying

A handler that raises one of these answers with its code, message and details.
"""

from __future__ import annotations

from pfcore.errors import EXCEPTIONS, InvalidPacket, PacketFlowError, exception_for

__all__ = [
    "Cancelled",
    "Conflict",
    "ConnectionLost",
    "DependencyFailed",
    "Forbidden",
    "HandlerError",
    "InvalidPacket",
    "NoHandler",
    "Overloaded",
    "PacketFlowError",
    "PacketTimeout",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedVersion",
    "exception_for",
]


class NoHandler(PacketFlowError):
    """Nothing handles this group:element (PF001)."""

    code = "PF001"


class UnsupportedVersion(InvalidPacket):
    """The packet's version is not 1.x (PF426)."""

    code = "PF426"


class Unauthenticated(PacketFlowError):
    """Who are you? (PF401)"""

    code = "PF401"


class Forbidden(PacketFlowError):
    """Not allowed for this principal (PF403)."""

    code = "PF403"


class PacketTimeout(PacketFlowError, TimeoutError):
    """The packet's deadline has passed (PF408)."""

    code = "PF408"


class Conflict(PacketFlowError):
    """A packet with this id is in flight, or a version does not match (PF409)."""

    code = "PF409"


class TooLarge(PacketFlowError):
    """The packet or its result makes too large a frame (PF413)."""

    code = "PF413"


class DependencyFailed(PacketFlowError):
    """A packet that this one depends on failed or never came (PF424)."""

    code = "PF424"


class Overloaded(PacketFlowError):
    """A bound was reached (PF429); `details["retry_after_ms"]` says when to try again."""

    code = "PF429"


class Cancelled(PacketFlowError):
    """The submitter has cancelled the packet (PF499)."""

    code = "PF499"


class HandlerError(PacketFlowError):
    """The handler raised (PF500); the message is its exception's own."""

    code = "PF500"


class ConnectionLost(PacketFlowError, ConnectionError):
    """The connection went and the answer with it (PF502): the packet may have run or not."""

    code = "PF502"


class Unavailable(PacketFlowError):
    """The other side is draining or shutting down (PF503)."""

    code = "PF503"


EXCEPTIONS.update(
    {
        kind.code: kind
        for kind in (
            NoHandler,
            InvalidPacket,
            UnsupportedVersion,
            Unauthenticated,
            Forbidden,
            PacketTimeout,
            Conflict,
            TooLarge,
            DependencyFailed,
            Overloaded,
            Cancelled,
            HandlerError,
            ConnectionLost,
            Unavailable,
        )
    }
)
