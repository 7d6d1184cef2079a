"""PacketFlow for Python: packets of work over WebSocket, fast.

>>> from packetflow import Gateway, Reactor

See the guide in ``docs/guide.md``; the protocol itself is in ``docs/protocol.md``.
"""

from packetflow._version import __version__ as __version__
from packetflow.client.reactor import Reactor
from packetflow.errors import (
    Cancelled,
    Conflict,
    ConnectionLost,
    DependencyFailed,
    Forbidden,
    HandlerError,
    InvalidPacket,
    NoHandler,
    Overloaded,
    PacketFlowError,
    PacketTimeout,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedVersion,
)
from packetflow.gateway import Access, Gateway, Identity, Role
from packetflow.loop import run
from packetflow.model import GROUPS, STANDARD_ELEMENTS, Packet, Result

__all__ = [
    "GROUPS",
    "STANDARD_ELEMENTS",
    "Access",
    "Cancelled",
    "Conflict",
    "ConnectionLost",
    "DependencyFailed",
    "Forbidden",
    "Gateway",
    "HandlerError",
    "Identity",
    "InvalidPacket",
    "NoHandler",
    "Overloaded",
    "Packet",
    "PacketFlowError",
    "PacketTimeout",
    "Reactor",
    "Result",
    "Role",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedVersion",
    "run",
]
