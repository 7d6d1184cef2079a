"""The error codes of the protocol, and what each says of the packet: once, for every module.

The exception that stands for a code is `packetflow.errors`'s.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CODES", "NEVER_RAN", "REFUSALS", "SENT_AGAIN", "TRY_AGAIN", "Code"]


class Code(NamedTuple):
    """A code.

    Attributes:
        text: ``"PF"`` and three digits.
        meaning: for people.
        ran: may the packet's handler have begun? Where not, the same id may come again.
        again: is the same packet, sent a moment later, worth trying?
    """

    text: str
    meaning: str
    ran: bool
    again: bool


CODES: dict[str, Code] = {
    text: Code(text, meaning, ran, again)
    for text, meaning, ran, again in (
        ("PF001", "nothing handles this group:element", False, False),
        ("PF400", "malformed frame, packet or data", False, False),
        ("PF401", "no credential, or a wrong one", False, False),
        ("PF403", "not allowed for this principal", False, False),
        ("PF408", "the deadline passed", True, True),
        ("PF409", "another packet of this id, or another version", False, False),
        ("PF413", "larger than may be", False, False),
        ("PF424", "a packet on which this one depends has failed", True, False),
        ("PF426", "a version of the protocol that is not spoken here", False, False),
        ("PF429", "over a limit: not begun", False, True),
        ("PF499", "cancelled by the submitter", True, False),
        ("PF500", "the handler failed", True, False),
        ("PF502", "the connection was lost: it may have run or not", True, False),
        ("PF503", "nobody takes it just now: not begun", False, True),
    )
}

NEVER_RAN = frozenset(code.text for code in CODES.values() if not code.ran)
"""What says nothing of the packet itself: it never ran, and the same id may come again."""

TRY_AGAIN = frozenset(code.text for code in CODES.values() if not code.ran and code.again)
"""Not begun, and worth sending again: what a handler that has begun must not claim."""

REFUSALS = TRY_AGAIN | {"PF001"}
"""One reactor does not take it: another may."""

SENT_AGAIN = TRY_AGAIN | {"PF502"}
"""What a submit with ``retry`` is sent again after: the same id, so that it runs once."""
