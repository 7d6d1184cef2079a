"""How much memory this machine, or the container around this process, has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["choose_allocator", "memory_of_machine", "resident", "share_of_memory"]

MOST = 768 * 1_048_576
UNKNOWN = 2 * 1024 * 1_048_576
"""What is assumed where the system does not say."""

_CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2, as a container sees its own
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_CHOSEN = "PACKETFLOW_ALLOCATOR_CHOSEN"
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


def choose_allocator() -> None:
    """Begins this process again with glibc's allocator for Python's objects; elsewhere, and the second time, nothing.

    For a process that is a gateway and nothing else, before it has done
    anything. Python's own gives a megabyte back to the system only once nothing
    in it is used any more, so what a burst leaves behind here and there keeps
    all of what the burst took; glibc's gives back each page. A `PYTHONMALLOC`
    that is set already stays.
    """
    if os.environ.pop(_CHOSEN, None) is not None:
        os.environ.pop("PYTHONMALLOC", None)  # what this process starts has its own
        return
    try:
        known = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        known = None
    if known is None or "PYTHONMALLOC" in os.environ or not sys.executable:
        return
    # by its full name: where the interpreter is decides which environment it is
    os.execve(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONMALLOC": "malloc", _CHOSEN: "1"}
    )
