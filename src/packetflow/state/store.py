"""The store: named values with versions, logs, and word of what changes.

Every operation is one that a distributed engine offers: get, put if the version
matches, delete, list by prefix, append to a log in order, read it from a place,
time to live, watch. Values are what JSON can say. `MemoryStore` never suspends:
between a get and a put nothing else runs, so its compare-and-set never loses.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from packetflow.state.alarms import Alarm, Alarms
from packetflow.state.patterns import Patterns

__all__ = ["Change", "Entry", "MemoryStore", "Store", "StoreFull", "Subscription", "VersionMismatch"]


class Entry(NamedTuple):
    """A value and its version: greater than all versions before it, of whatever name."""

    value: Any
    version: int


class Change(NamedTuple):
    """What became of a name: `entry` is None where it is gone; `version` grows with every change."""

    name: str
    entry: Entry | None
    version: int


class VersionMismatch(Exception):
    """The entry is not of the version that was asked for; `entry` is what is there."""

    def __init__(self, entry: Entry | None) -> None:
        super().__init__(f"version {entry.version if entry is not None else 0} is there")
        self.entry = entry


class StoreFull(Exception):
    """A bound was reached; the text names it."""


class Subscription(Protocol):
    """Word of changes, until it is closed."""

    def close(self) -> None: ...


class Store(Protocol):
    """What gateways can share."""

    async def get(self, kind: str, name: str) -> Entry | None:
        """The entry of a name, None where there is none."""

    async def put(
        self, kind: str, name: str, value: Any, *, version: int | None = None, ttl: float | None = None, size: int = 0
    ) -> Entry:
        """Sets a value, for `ttl` seconds where given; returns the new entry.

        `version`: only if that is the present one, 0 only if there is none, else
        `VersionMismatch`. `size`: bytes that count against the kind's bound, which
        makes the least recently used leave. `StoreFull` where names run out.
        """

    async def delete(self, kind: str, name: str, *, version: int | None = None) -> bool:
        """Takes a name away; False where there was none. `version`: as for `put`."""

    async def scan(self, kind: str, prefix: str, after: str, limit: int) -> list[tuple[str, Entry]]:
        """Entries whose names begin with `prefix` and come after `after`, in order, at most `limit`."""

    async def append(self, kind: str, name: str, items: Sequence[tuple[Any, int]]) -> tuple[int, int]:
        """Appends (value, bytes) pairs to a log; the first and the last id. Ids grow over all logs."""

    async def read(self, kind: str, name: str, after: int, limit: int) -> list[tuple[int, Any]]:
        """Items of a log with ids beyond `after`, oldest first."""

    async def trim(self, kind: str, name: str, through: int) -> int:
        """Drops items with ids up to `through`; how many."""

    async def extent(self, kind: str, name: str) -> tuple[int, int, int]:
        """Of a log: how many items, how many bytes, and the last id that was dropped."""

    async def forget(self, kind: str, name: str) -> None:
        """Drops a log whole."""

    def watch(self, kind: str, pattern: str, callback: Callable[[Change], None]) -> Subscription:
        """Calls back at every change of a name, or with a trailing ``*`` of names that begin so."""

    def revision(self) -> int:
        """The latest version or id that was given."""


class _Slot:
    __slots__ = ("alarm", "entry", "size")

    def __init__(self, entry: Entry, size: int) -> None:
        self.entry = entry
        self.size = size
        self.alarm: Alarm | None = None


class _Log:
    __slots__ = ("bytes", "dropped", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[int, Any, int]] = deque()
        self.bytes = 0
        self.dropped = 0


class _Names:
    """One kind: its names in order of use, and sorted where someone lists them."""

    __slots__ = ("added", "bytes", "bytes_bound", "removed", "slots", "sorted")

    def __init__(self, bytes_bound: int | None) -> None:
        self.slots: OrderedDict[str, _Slot] = OrderedDict()
        self.bytes = 0
        self.bytes_bound = bytes_bound
        self.sorted: list[str] | None = None
        self.added: list[str] = []
        self.removed = False

    def in_order(self) -> list[str]:
        # nearly sorted already: one pass of the sort
        if self.sorted is None:
            self.sorted = sorted(self.slots)
        else:
            if self.removed:
                self.sorted = [name for name in self.sorted if name in self.slots]
            if self.added:
                self.sorted.extend(name for name in self.added if name in self.slots)
                self.sorted = sorted(set(self.sorted))
        self.added = []
        self.removed = False
        return self.sorted


class _Watch:
    __slots__ = ("callback", "kind", "pattern", "store")

    def __init__(self, store: MemoryStore, kind: str, pattern: str, callback: Callable[[Change], None]) -> None:
        self.store = store
        self.kind = kind
        self.pattern = pattern
        self.callback = callback

    def close(self) -> None:
        self.store._watches[self.kind].remove(self.pattern, self)


class MemoryStore:
    """A `Store` in this process.

    `max_names`: of a kind (default 100,000). `max_bytes`: kind -> bytes, beyond
    which the least recently used names leave; other kinds have no bound in bytes.
    `log_items`, `log_bytes`: kind -> of one log, beyond which the oldest leave
    (a kind without one is the caller's to bound).
    """

    def __init__(
        self,
        alarms: Alarms,
        *,
        max_names: int = 100_000,
        max_bytes: dict[str, int] | None = None,
        log_items: dict[str, int] | None = None,
        log_bytes: dict[str, int] | None = None,
    ) -> None:
        self._alarms = alarms
        self._max_names = max_names
        self._max_bytes = max_bytes or {}
        self._log_items = log_items or {}
        self._log_bytes = log_bytes or {}
        self._kinds: dict[str, _Names] = {}
        self._logs: dict[str, OrderedDict[str, _Log]] = {}
        self._watches: dict[str, Patterns[_Watch]] = {}
        self._revision = 0

    def revision(self) -> int:
        return self._revision

    def names(self, kind: str) -> int:
        """How many names of a kind there are."""
        names = self._kinds.get(kind)
        return len(names.slots) if names is not None else 0

    def bytes(self, kind: str) -> int:
        """How many bytes the values of a kind take."""
        names = self._kinds.get(kind)
        return names.bytes if names is not None else 0

    # -- names

    async def get(self, kind: str, name: str) -> Entry | None:
        names = self._kinds.get(kind)
        slot = names.slots.get(name) if names is not None else None
        if names is None or slot is None:
            return None
        if names.bytes_bound is not None:
            names.slots.move_to_end(name)
        return slot.entry

    async def put(
        self, kind: str, name: str, value: Any, *, version: int | None = None, ttl: float | None = None, size: int = 0
    ) -> Entry:
        names = self._kinds.get(kind)
        if names is None:
            names = self._kinds[kind] = _Names(self._max_bytes.get(kind))
        slot = names.slots.get(name)
        if version is not None and version != (slot.entry.version if slot is not None else 0):
            raise VersionMismatch(slot.entry if slot is not None else None)
        self._revision += 1
        entry = Entry(value, self._revision)
        if slot is None:
            if len(names.slots) >= self._max_names:
                if names.bytes_bound is None:
                    raise StoreFull(f"{self._max_names:,} names of this kind are in use, the most that may")
                self._evict(kind, names)
            slot = names.slots[name] = _Slot(entry, size)
            if names.sorted is not None:
                names.added.append(name)
            names.bytes += size
        else:
            names.bytes += size - slot.size
            slot.entry = entry
            slot.size = size
            if slot.alarm is not None:
                slot.alarm.cancel()
                slot.alarm = None
            if names.bytes_bound is not None:
                names.slots.move_to_end(name)
        if ttl is not None:
            slot.alarm = self._alarms.at(self._alarms.now() + ttl, lambda: self._take(kind, names, name))
        while names.bytes_bound is not None and names.bytes > names.bytes_bound and len(names.slots) > 1:
            self._evict(kind, names)
        self._publish(kind, Change(name, entry, entry.version))
        return entry

    async def delete(self, kind: str, name: str, *, version: int | None = None) -> bool:
        names = self._kinds.get(kind)
        slot = names.slots.get(name) if names is not None else None
        if version is not None and version != (slot.entry.version if slot is not None else 0):
            raise VersionMismatch(slot.entry if slot is not None else None)
        if names is None or slot is None:
            return False
        self._take(kind, names, name)
        return True

    async def scan(self, kind: str, prefix: str, after: str, limit: int) -> list[tuple[str, Entry]]:
        names = self._kinds.get(kind)
        found: list[tuple[str, Entry]] = []
        if names is None:
            return found
        ordered = names.in_order()
        place = _bisect(ordered, max(prefix, after))
        while place < len(ordered) and len(found) < limit:
            name = ordered[place]
            place += 1
            if not name.startswith(prefix):
                if name > prefix:
                    break
                continue
            if name > after or (not after and name == prefix):
                found.append((name, names.slots[name].entry))
        return found

    def _evict(self, kind: str, names: _Names) -> None:
        self._take(kind, names, next(iter(names.slots)))

    def _take(self, kind: str, names: _Names, name: str) -> None:
        slot = names.slots.pop(name)
        names.bytes -= slot.size
        names.removed = True
        if slot.alarm is not None:
            slot.alarm.cancel()
        self._revision += 1
        self._publish(kind, Change(name, None, self._revision))

    # -- logs

    async def append(self, kind: str, name: str, items: Sequence[tuple[Any, int]]) -> tuple[int, int]:
        logs = self._logs.setdefault(kind, OrderedDict())
        log = logs.get(name)
        bounded = kind in self._log_items
        if log is None:
            if len(logs) >= self._max_names:
                if not bounded:
                    raise StoreFull(f"{self._max_names:,} names of this kind are in use, the most that may")
                logs.popitem(last=False)  # the one that was quiet for longest
            log = logs[name] = _Log()
        elif bounded:
            logs.move_to_end(name)
        first = self._revision + 1
        for value, size in items:
            self._revision += 1
            log.items.append((self._revision, value, size))
            log.bytes += size
        if bounded:
            most, most_bytes = self._log_items[kind], self._log_bytes.get(kind, 1 << 62)
            while len(log.items) > most or (log.bytes > most_bytes and len(log.items) > 1):
                self._drop_first(log)
        self._publish(kind, Change(name, None, self._revision))
        return first, self._revision

    async def read(self, kind: str, name: str, after: int, limit: int) -> list[tuple[int, Any]]:
        log = self._find(kind, name)
        found: list[tuple[int, Any]] = []
        if log is None or not log.items or log.items[-1][0] <= after:
            return found
        place = 0 if log.items[0][0] > after else _bisect_log(log.items, after)
        end = min(len(log.items), place + limit)
        # a deque is quick at its ends only: rotate to the place, not past every item
        if place < 64:
            return [(item, value) for item, value, _ in _slice(log.items, place, end)]
        log.items.rotate(-place)
        found = [(item, value) for item, value, _ in _slice(log.items, 0, end - place)]
        log.items.rotate(place)
        return found

    async def trim(self, kind: str, name: str, through: int) -> int:
        log = self._find(kind, name)
        count = 0
        while log is not None and log.items and log.items[0][0] <= through:
            self._drop_first(log)
            count += 1
        if count:
            self._publish(kind, Change(name, None, self._revision))
        return count

    async def extent(self, kind: str, name: str) -> tuple[int, int, int]:
        log = self._find(kind, name)
        return (len(log.items), log.bytes, log.dropped) if log is not None else (0, 0, 0)

    async def forget(self, kind: str, name: str) -> None:
        logs = self._logs.get(kind)
        if logs is not None:
            logs.pop(name, None)

    def _find(self, kind: str, name: str) -> _Log | None:
        logs = self._logs.get(kind)
        return logs.get(name) if logs is not None else None

    def _drop_first(self, log: _Log) -> None:
        item, _, size = log.items.popleft()
        log.bytes -= size
        log.dropped = item

    # -- watching

    def watch(self, kind: str, pattern: str, callback: Callable[[Change], None]) -> Subscription:
        watch = _Watch(self, kind, pattern, callback)
        self._watches.setdefault(kind, Patterns()).add(pattern, watch)
        return watch

    def _publish(self, kind: str, change: Change) -> None:
        watches = self._watches.get(kind)
        if watches:
            for watch in watches.match(change.name):
                watch.callback(change)


def _bisect(ordered: list[str], wanted: str) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


def _bisect_log(items: deque[tuple[int, Any, int]], after: int) -> int:
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if items[middle][0] <= after:
            low = middle + 1
        else:
            high = middle
    return low


def _slice(items: deque[tuple[int, Any, int]], start: int, end: int) -> list[tuple[int, Any, int]]:
    return [items[place] for place in range(start, end)]
