"""The 24 standard elements: what they do in a gateway, and builders and helpers that submit to them."""

from __future__ import annotations

from packetflow.elements import cf, co, df, ed, mc, rm
from packetflow.elements.runtime import Bounds, Element, Host, Runtime

__all__ = ["STANDARD", "Bounds", "Element", "Host", "Runtime"]

STANDARD: dict[str, Element] = {one.key: one for module in (cf, df, ed, co, mc, rm) for one in module.ELEMENTS}
"""``group:element`` to its `Element`."""
