"""The store: named values with versions, logs, and word of what changes.

Every operation is one that a distributed engine offers: get, put if the version
matches, delete, list by prefix, append to a log in order and within its bounds,
read it from a place, time to live, watch. Values are bytes, in and out: what
they mean is their owner's affair. `packetflow.state.contract` is what every store
must do, as checks that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from pfcore.memory.budget import Account

__all__ = [
    "SAME",
    "Change",
    "Entry",
    "LogBounds",
    "LogFull",
    "Payment",
    "Store",
    "StoreFull",
    "Subscription",
    "VersionMismatch",
    "update",
]

SAME: Any = object()
"""As `owner`: whoever pays for the name already; that cannot be refused."""


class Entry(NamedTuple):
    """A value and its version: greater than all versions before it, of whatever name."""

    value: bytes
    version: int


class Change(NamedTuple):
    """What became of a name: `entry` is None where it is gone; `version` grows with every change."""

    name: str
    entry: Entry | None
    version: int


class LogBounds(NamedTuple):
    """How much one log may hold: items and bytes. `oldest_leave`: at the bound; else what is new is refused."""

    items: int
    bytes: int
    oldest_leave: bool = False


class VersionMismatch(Exception):
    """The entry is not of the version that was asked for; `entry` is what is there."""

    def __init__(self, entry: Entry | None) -> None:
        super().__init__(f"version {entry.version if entry is not None else 0} is there")
        self.entry = entry


class StoreFull(Exception):
    """A bound was reached; the text names it."""


class LogFull(StoreFull):
    """A log has no room for so much just now."""


class Subscription(Protocol):
    """Word of changes, until it is closed."""

    def close(self) -> None: ...


class Store(Protocol):
    """What gateways can share.

    Every operation may suspend, and those of one gateway may overtake one another:
    what must hold together is one operation, or a `put` of the version that was read.
    One that raises has changed nothing. One that is cancelled may have: those of which
    somebody has to know are not, and answer when nobody waits for them any more.

    `owner`: the account of who puts something, which pays for it until it leaves,
    whatever the way; None: nobody pays. `must`: it has happened, and is kept; the owner
    pays even past his bound, and there is a name for it even past theirs. A log's own
    bounds hold.
    """

    async def get(self, kind: str, name: str) -> Entry | None:
        """The entry of a name, None where there is none."""

    async def put(
        self,
        kind: str,
        name: str,
        value: bytes,
        *,
        version: int | None = None,
        ttl: float | None = None,
        size: int = 0,
        owner: Account | None = None,
        must: bool = False,
    ) -> Entry:
        """Sets a value, for `ttl` seconds where given; returns the new entry.

        `version`: only if that is the present one, 0 only if there is none, else
        `VersionMismatch`. `size`: bytes that count against the kind's bound, which
        makes the least recently used leave, and for the owner. `StoreFull` where
        names run out, or the owner's bound is reached.
        """

    async def delete(self, kind: str, name: str, *, version: int | None = None) -> bool:
        """Takes a name away; False where there was none. `version`: as for `put`."""

    async def scan(self, kind: str, prefix: str, after: str, limit: int) -> list[tuple[str, Entry]]:
        """Entries whose names begin with `prefix` and come after `after`, in order, at most `limit`."""

    async def append(
        self,
        kind: str,
        name: str,
        items: Sequence[tuple[bytes, int]],
        *,
        bounds: LogBounds | None = None,
        owner: Account | None = None,
        must: bool = False,
    ) -> tuple[int, int]:
        """Appends (value, bytes that it counts) pairs to a log, all or none; the first and the last id.

        Ids grow over all logs. `bounds`: of this log; `LogFull` where they leave no
        room. `StoreFull` where names run out, or the owner's bound is reached.
        """

    async def read(self, kind: str, name: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Items of a log with ids beyond `after`, oldest first."""

    async def trim(self, kind: str, name: str, through: int, limit: int | None = None) -> int:
        """Drops items with ids up to `through`, at most `limit`; how many."""

    async def extent(self, kind: str, name: str) -> tuple[int, int, int]:
        """Of a log: how many items, how many bytes, and the last id that was dropped."""

    async def forget(self, kind: str, name: str) -> None:
        """Drops a log whole."""

    def watch(self, kind: str, pattern: str, callback: Callable[[Change], None]) -> Subscription:
        """Calls back at every change of a name, or with a trailing ``*`` of names that begin so."""

    def revision(self) -> int:
        """The latest version or id that was given."""

    def close(self) -> None:
        """The gateway has ended: nobody pays any more for what it alone had."""


class Payment(NamedTuple):
    """What a value takes, in bytes, who pays for it, and for how many seconds it stays (None: for good)."""

    size: int = 0
    owner: Account | None = None
    ttl: float | None = None


async def update(
    store: Store,
    kind: str,
    name: str,
    change: Callable[[bytes | None], tuple[bytes | None, Payment]],
) -> Entry | None:
    """Changes a value, whoever else does so meanwhile: the new entry, None where there is none then.

    `change`: from the present value (None: there is none) to the new one (None:
    the name is deleted) and what that costs; the very object that it was given
    means that all stays as it is. It may raise, is called again when another came
    first, and must have no effect of its own. Raises `StoreFull`.
    """
    while True:
        entry = await store.get(kind, name)
        before = entry.value if entry is not None else None
        version = entry.version if entry is not None else 0
        value, payment = change(before)
        if value is before:
            return entry
        try:
            if value is None:
                await store.delete(kind, name, version=version)
                return None
            return await store.put(
                kind, name, value, version=version, ttl=payment.ttl, size=payment.size, owner=payment.owner
            )
        except VersionMismatch:
            continue
