"""A cause: what one outermost packet has set off, and how much of it there may be.

One object goes through all packets that are nested in one another, and through
signals to the reactions that they meet: so what one packet sets off is bounded
as a whole, in width as well as in depth. Who pays for the bytes is another
matter: his account, which all of his packets share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packetflow.elements.expressions import MAX_STEPS, Meter
from packetflow.errors import InvalidPacket

if TYPE_CHECKING:
    from packetflow.elements.bounds import Bounds

__all__ = ["Cause"]


class Cause:
    """What counts against the bounds of one outermost packet."""

    __slots__ = ("bounds", "evaluated", "iterations", "kept", "steps")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.steps = 0
        self.iterations = 0
        self.kept = 0  # bytes
        self.evaluated = 0

    def step(self, count: int) -> None:
        """So many steps more."""
        if self.steps + count > self.bounds.steps:
            raise InvalidPacket(
                f"steps: {self.steps + count:,} in one packet, with all that it set off, "
                f"at most {self.bounds.steps:,} may be"
            )
        self.steps += count

    def iterate(self, count: int) -> None:
        """So many turns of loops, items of maps and folds more."""
        if self.iterations + count > self.bounds.iterations:
            raise InvalidPacket(
                f"iterations: {self.iterations + count:,} in one packet, with all that it set off, "
                f"at most {self.bounds.iterations:,} may be"
            )
        self.iterations += count

    def keep(self, size: int) -> None:
        """So many bytes of results more are kept, until `give_back`."""
        if self.kept + size > self.bounds.result_bytes:
            raise InvalidPacket(
                f"result_bytes: {self.kept + size:,} bytes of results are kept for one packet, "
                f"at most {self.bounds.result_bytes:,} may be"
            )
        self.kept += size

    def give_back(self, size: int) -> None:
        """They are kept no more."""
        self.kept -= size

    def meter(self, most: int = MAX_STEPS) -> Meter:
        """For one piece of evaluation; give it to `settle`."""
        left = self.bounds.evaluation_steps - self.evaluated
        if left < most:
            return Meter(left, f"evaluation_steps: more than {self.bounds.evaluation_steps:,} in one packet")
        return Meter(most)

    def settle(self, meter: Meter) -> None:
        """What was evaluated counts, however it ended."""
        self.evaluated += meter.spent
