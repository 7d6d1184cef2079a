"""The exceptions that the core raises of its own accord.

`PacketFlowError` is the root of the whole tree; ``packetflow.errors`` grows
the rest of it, one class for each code of the protocol.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EXCEPTIONS", "HandshakeRefused", "InvalidPacket", "PacketFlowError", "exception_for"]

EXCEPTIONS: dict[str, type[PacketFlowError]] = {}
"""Error code -> the class that stands for it; ``packetflow.errors`` fills it."""


def exception_for(
    code: str, message: str, details: dict[str, Any] | None = None, packet_id: str | None = None
) -> PacketFlowError:
    """The exception for an error on the wire; a plain `PacketFlowError` for an unknown code."""
    return EXCEPTIONS.get(code, PacketFlowError)(message, code=code, details=details, packet_id=packet_id)


class PacketFlowError(Exception):
    """Base of every error of the protocol.

    Attributes:
        code: the error code on the wire, ``"PF"`` and three digits.
        message: what went wrong, for people.
        details: an object with more, or None.
        packet_id: the packet's id where one is known, else None.
    """

    code: str = "PF500"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        packet_id: str | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.message = message
        self.details = details
        self.packet_id = packet_id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvalidPacket(PacketFlowError, ValueError):
    """A frame, packet or value that the protocol does not allow (PF400, PF426, PF413).

    Attributes:
        where: the field (``"payload.priority"``) or ``"byte 17"``.
        expected: what would have been right there.
        offset: byte offset in the frame where known, else None.
    """

    code = "PF400"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        details: dict[str, Any] | None = None,
        packet_id: str | None = None,
        where: str | None = None,
        expected: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details, packet_id=packet_id)
        self.where = where
        self.expected = expected
        self.offset = offset


class HandshakeRefused(ConnectionError):
    """The peer has answered the handshake with something else than 101.

    `status`: of its answer, None where that was no HTTP. `body`: bytes of it.
    """

    def __init__(self, message: str, status: int | None, body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
