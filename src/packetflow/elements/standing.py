"""Steps that outlive the packet that set them up: those of timers and reactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from packetflow.elements.call import Call
from packetflow.elements.request import Step
from packetflow.errors import Overloaded, Unavailable
from packetflow.model import DEFAULT_TIMEOUT_MS

if TYPE_CHECKING:
    from packetflow.elements.cause import Cause

__all__ = ["Standing"]

STANDING_BYTES = 1024
"""What a timer or reaction takes besides its step."""


class Standing:
    """A step that outlives the packet that set it up: a timer's, or a reaction's.

    Its bytes are charged to the account of who set it up, until it ends: with
    `end`, or with its session or principal.
    """

    __slots__ = ("_size", "account", "id", "kind", "metadata", "principal", "priority", "runtime", "session", "step")

    def __init__(self, call: Call, kind: str, standing_id: str, step: Step) -> None:
        runtime = call.runtime
        # a copy: what came borrows the frame that it came in
        self.step = msgspec.structs.replace(
            step, data=msgspec.Raw(bytes(step.data)), metadata=msgspec.Raw(bytes(step.metadata))
        )
        self.runtime = runtime
        self.kind = kind
        self.id = standing_id
        self.principal = call.principal
        self.session = call.session
        self.account = call.account
        self.priority = call.priority
        self.metadata = call.metadata
        self._size = STANDING_BYTES + len(step.data) + len(step.metadata) + (len(call.metadata or b""))
        most = runtime.bounds.timers
        before = runtime.standing.get(self.key)
        count = call.session.count("timer") + call.session.count("reaction")
        if count - (before is not None and before.session is call.session) >= most:
            raise Overloaded(f"{most:,} timers and reactions are this reactor's, the most that may")
        if not self.account.charge(self._size):
            raise Overloaded(self.account.refusal(self._size), details={"retry_after_ms": 1000})
        # the same id again takes its place
        if before is not None:
            before.end()
        runtime.standing[self.key] = self
        self.session.hold((kind, standing_id), self.end)

    @property
    def key(self) -> tuple[int, str, str]:
        return self.principal.number, self.kind, self.id

    @property
    def ended(self) -> bool:
        return self.runtime.standing.get(self.key) is not self

    def end(self) -> None:
        """It does nothing any more; again is nothing."""
        if self.ended:
            return
        del self.runtime.standing[self.key]
        self.session.let_go((self.kind, self.id))
        self.account.release(self._size)

    def send(self, context: Mapping[str, Any], depth: int, cause: Cause) -> None:
        """Submits the step as who set it up, `depth` deep. Raises `Unavailable` once the gateway is stopping."""
        if self.runtime.draining:
            raise Unavailable("the gateway is stopping")
        Call.of(self, depth, cause).send(self.step, context, self.step.timeout_ms or DEFAULT_TIMEOUT_MS)
