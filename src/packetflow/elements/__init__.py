"""The 24 standard elements: what they do in a gateway, and builders and helpers that submit to them.

`step`, `seq` and the other builders give packets to submit or to nest; the helpers
are methods of reactors and gateways (`Toolbox`). Neither is needed: the elements
are there for whatever packet names them.
"""

from __future__ import annotations

from packetflow.client.builders import branch, case, gather, lit, loop, reduce, ref, seq, step, transform
from packetflow.client.toolbox import Toolbox
from packetflow.elements import cf, co, df, ed, mc, rm
from packetflow.elements.bounds import Bounds
from packetflow.elements.request import Element
from packetflow.elements.runtime import Host, Runtime, StoreFactory, in_memory

__all__ = [
    "STANDARD",
    "Bounds",
    "Element",
    "Host",
    "Runtime",
    "StoreFactory",
    "Toolbox",
    "branch",
    "case",
    "gather",
    "in_memory",
    "lit",
    "loop",
    "reduce",
    "ref",
    "seq",
    "step",
    "transform",
]

STANDARD: dict[str, Element] = {one.key: one for module in (cf, df, ed, co, mc, rm) for one in module.ELEMENTS}
"""``group:element`` to its `Element`."""
