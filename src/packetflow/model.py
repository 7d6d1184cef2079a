"""The nouns of the protocol: packets, results, groups and the standard elements."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pfcore.wire.packets import MAX_TIMEOUT_MS, Message, Packet, Result
from pfcore.wire.reader import GROUP_CODES

__all__ = [
    "DEFAULT_PRIORITY",
    "DEFAULT_TIMEOUT_MS",
    "GROUPS",
    "MAX_TIMEOUT_MS",
    "SHORT_ELEMENTS",
    "STANDARD_ELEMENTS",
    "Message",
    "Packet",
    "Result",
]

DEFAULT_PRIORITY: Final = 5
DEFAULT_TIMEOUT_MS: Final = 29_500
"""Where a packet names no timeout: reference reactors stop listening after 30,000 ms."""

GROUPS: Final[Mapping[str, str]] = MappingProxyType(
    dict(
        zip(
            GROUP_CODES,
            (
                "control flow",
                "data flow",
                "event driven",
                "collective",
                "meta-compute",
                "resource management",
            ),
            strict=True,
        )
    )
)
"""The six behavioural groups, code to name (specification section 3)."""

STANDARD_ELEMENTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cf": ("seq", "branch", "loop", "gate"),
        "df": ("produce", "consume", "transform", "reduce"),
        "ed": ("signal", "timer", "watch", "react"),
        "co": ("sync", "broadcast", "gather", "vote"),
        "mc": ("spawn", "migrate", "scale", "tune"),
        "rm": ("alloc", "free", "lock", "cache"),
    }
)
"""The 24 element names that the specification lists (section 4)."""

SHORT_ELEMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        f"{group}:{short}": f"{group}:{name}"
        for group, names in {
            "cf": {"br": "branch", "lp": "loop"},
            "df": {"pr": "produce", "cs": "consume", "tr": "transform", "ag": "reduce"},
            "ed": {"sg": "signal", "tm": "timer"},
            "co": {"ba": "sync", "bc": "broadcast", "ga": "gather"},
            "mc": {"sp": "spawn", "mg": "migrate"},
            "rm": {"al": "alloc", "rl": "free", "lk": "lock", "ca": "cache"},
        }.items()
        for short, name in names.items()
    }
)
"""Two-letter codes, as the specification's own example writes ``df:tr``, and what they stand for."""
