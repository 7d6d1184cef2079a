"""How much memory this machine, or the container around this process, has."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["memory_of_machine", "resident", "share_of_memory"]

MOST = 768 * 1_048_576
UNKNOWN = 2 * 1024 * 1_048_576
"""What is assumed where the system does not say."""

_CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2, as a container sees its own
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_STATM = Path("/proc/self/statm")


def memory_of_machine() -> int:
    """Bytes: the machine's, or the cgroup's where that is less."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        found = UNKNOWN
    for path in _CGROUP:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit():  # "max" where there is no limit
            found = min(found, int(text))
    return max(found, 1)


def share_of_memory() -> int:
    """A quarter of it, at most 768 MiB: the default of what a gateway may hold for its peers."""
    return max(1_048_576, min(memory_of_machine() // 4, MOST))


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say (it is Linux that does)."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError, IndexError):
        return 0
