"""The store of one process: it never suspends, so nothing else runs between a get and a put."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import cast

from packetflow.state.alarms import Alarm, Alarms
from packetflow.state.patterns import Patterns
from packetflow.state.store import SAME, Change, Entry, LogBounds, LogFull, StoreFull, Subscription, VersionMismatch
from pfcore.memory.budget import Account

__all__ = ["MemoryStore"]

log = logging.getLogger("packetflow.state")

NAME_BYTES = 640
"""What a name takes besides its text and value, bytes: entry, slot, its places in tables, an alarm."""
LOG_BYTES = 1100
"""What a log takes besides its items: its list, its places in tables."""
ITEM_BYTES = 180
"""What an item of a log takes besides what its writer counts."""


class _Slot:
    __slots__ = ("alarm", "cost", "entry", "owner", "size")

    def __init__(self, entry: Entry, size: int) -> None:
        self.entry = entry
        self.size = size
        self.owner: Account | None = None
        self.cost = 0  # what the owner pays
        self.alarm: Alarm | None = None


class _Log:
    __slots__ = ("bytes", "cost", "dropped", "items", "owner", "rolling")

    def __init__(self, owner: Account | None, cost: int, rolling: bool) -> None:
        self.items = _Items()
        self.bytes = 0
        self.dropped = 0
        self.owner = owner  # who pays for the name
        self.cost = cost
        self.rolling = rolling  # its oldest items leave at its bounds


Item = tuple[int, bytes, int, Account | None]
"""Its version, value, cost, and who pays."""


class _Items:
    """Items in the order of their versions: new ones at the end, old ones go from the front, any can be read at once.

    A deque is quick at its ends only: to read in the middle of a hundred thousand took as many steps.
    """

    __slots__ = ("_all", "_start")

    def __init__(self) -> None:
        self._all: list[Item | None] = []
        self._start = 0  # what is before it has gone

    def __len__(self) -> int:
        return len(self._all) - self._start

    def __iter__(self) -> Iterator[Item]:
        return iter(self.slice(0, len(self)))

    @property
    def first(self) -> Item:
        """The oldest; there is one."""
        return cast(Item, self._all[self._start])

    @property
    def last(self) -> Item:
        """The newest; there is one."""
        return cast(Item, self._all[-1])

    def extend(self, items: Iterable[Item]) -> None:
        """These, which are newer."""
        self._all.extend(items)

    def pop_first(self) -> Item:
        """Takes the oldest away; there is one."""
        item = cast(Item, self._all[self._start])
        self._all[self._start] = None
        self._start += 1
        if self._start >= 64 and 2 * self._start >= len(self._all):
            del self._all[: self._start]
            self._start = 0
        return item

    def after(self, version: int) -> int:
        """The place of the first that is newer than this."""
        return bisect_right(self._all, version, self._start, key=lambda item: cast(Item, item)[0]) - self._start

    def slice(self, place: int, end: int) -> list[Item]:
        """Those from a place on, up to another."""
        return cast("list[Item]", self._all[self._start + place : self._start + end])


class _Sorted:
    """Texts in order, in chunks: adding and removing move few of them."""

    CHUNK = 1024

    __slots__ = ("_chunks", "_lasts")

    def __init__(self) -> None:
        self._chunks: list[list[str]] = []
        self._lasts: list[str] = []

    def add(self, text: str) -> None:
        if not self._chunks:
            self._chunks.append([text])
            self._lasts.append(text)
            return
        place = min(bisect_left(self._lasts, text), len(self._chunks) - 1)
        chunk = self._chunks[place]
        insort(chunk, text)
        self._lasts[place] = chunk[-1]
        if len(chunk) > 2 * self.CHUNK:
            self._chunks.insert(place + 1, chunk[self.CHUNK :])
            del chunk[self.CHUNK :]
            self._lasts[place] = chunk[-1]
            self._lasts.insert(place + 1, self._chunks[place + 1][-1])

    def remove(self, text: str) -> None:
        place = bisect_left(self._lasts, text)
        chunk = self._chunks[place]
        del chunk[bisect_left(chunk, text)]
        if chunk:
            self._lasts[place] = chunk[-1]
        else:
            del self._chunks[place], self._lasts[place]

    def after(self, text: str, *, itself: bool) -> Iterator[str]:
        """Those beyond a text, in order; with it, if `itself`."""
        place = bisect_left(self._lasts, text)
        if place == len(self._chunks):
            return
        chunk = self._chunks[place]
        yield from chunk[(bisect_left if itself else bisect_right)(chunk, text) :]
        for chunk in self._chunks[place + 1 :]:
            yield from chunk


class _Share:
    """What one owner has of a kind, in order of use."""

    __slots__ = ("bytes", "names")

    def __init__(self) -> None:
        self.names: OrderedDict[str, None] = OrderedDict()
        self.bytes = 0


class _Names:
    """One kind: its names, in order, and by owner."""

    __slots__ = ("bytes", "bytes_bound", "order", "shares", "slots")

    def __init__(self, bytes_bound: int | None) -> None:
        self.slots: dict[str, _Slot] = {}
        self.bytes = 0
        self.bytes_bound = bytes_bound
        self.order = _Sorted()
        self.shares: dict[Account | None, _Share] = {}

    @property
    def evicts(self) -> bool:
        """Do names leave at a bound? Else it refuses."""
        return self.bytes_bound is not None

    def enter(self, name: str, slot: _Slot) -> None:
        share = self.shares.get(slot.owner)
        if share is None:
            share = self.shares[slot.owner] = _Share()
        share.names[name] = None
        share.bytes += slot.size
        self.bytes += slot.size

    def leave(self, name: str, slot: _Slot) -> None:
        share = self.shares[slot.owner]
        del share.names[name]
        share.bytes -= slot.size
        self.bytes -= slot.size
        if not share.names:
            del self.shares[slot.owner]

    def used(self, name: str, slot: _Slot) -> None:
        self.shares[slot.owner].names.move_to_end(name)


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

    `max_names`: of a kind (default 100,000); who has more than half of them cannot
    have the last eighth. `max_bytes`: kind -> bytes, beyond which the least
    recently used names of who has most of that kind leave; other kinds have no
    bound in bytes but their owners'. Where names of logs run out, the one whose
    oldest items leave and that was quiet for longest makes room for another such.
    Versions begin at the clock's microseconds, so that they grow over restarts.
    """

    def __init__(
        self,
        alarms: Alarms,
        *,
        max_names: int = 100_000,
        max_bytes: dict[str, int] | None = None,
    ) -> None:
        self._alarms = alarms
        self._max_names = max_names
        self._max_bytes = max_bytes or {}
        self._kinds: dict[str, _Names] = {}
        self._logs: dict[str, OrderedDict[str, _Log]] = {}
        self._log_names: dict[str, dict[Account | None, int]] = {}  # kind -> owner -> names of logs
        self._watches: dict[str, Patterns[_Watch]] = {}
        self._revision = time.time_ns() // 1000

    def revision(self) -> int:
        return self._revision

    def names(self, kind: str) -> int:
        """How many names of a kind there are."""
        names = self._kinds.get(kind)
        return len(names.slots) if names is not None else 0

    def size(self, kind: str) -> int:
        """How many bytes the values of a kind take."""
        names = self._kinds.get(kind)
        return names.bytes if names is not None else 0

    def close(self) -> None:
        for names in self._kinds.values():
            for slot in names.slots.values():
                if slot.alarm is not None:
                    slot.alarm.cancel()
                if slot.owner is not None:
                    slot.owner.release(slot.cost)
        self._kinds.clear()
        for kind, logs in self._logs.items():
            for name in list(logs):
                self._drop_log(kind, logs, name)

    # -- names

    async def get(self, kind: str, name: str) -> Entry | None:
        names = self._kinds.get(kind)
        slot = names.slots.get(name) if names is not None else None
        if names is None or slot is None:
            return None
        if names.bytes_bound is not None:
            names.used(name, slot)
        return slot.entry

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
        names = self._kinds.get(kind)
        if names is None:
            names = self._kinds[kind] = _Names(self._max_bytes.get(kind))
        slot = names.slots.get(name)
        if version is not None and version != (slot.entry.version if slot is not None else 0):
            raise VersionMismatch(slot.entry if slot is not None else None)
        if owner is SAME:
            owner, must = slot.owner if slot is not None else None, True
        if slot is None:
            self._make_room_for_name(kind, names, owner, must)
        cost = 0 if owner is None else NAME_BYTES + 2 * len(name) + size
        self._charge(kind, names, name, slot, owner, cost, must)
        # from here on nothing is refused
        self._revision += 1
        entry = Entry(value, self._revision)
        if slot is None:
            slot = names.slots[name] = _Slot(entry, size)
            names.order.add(name)
        else:
            names.leave(name, slot)
            if slot.owner is not None and slot.owner is not owner:
                slot.owner.release(slot.cost)
            slot.entry = entry
            slot.size = size
            if slot.alarm is not None:
                slot.alarm.cancel()
                slot.alarm = None
        slot.owner = owner
        slot.cost = cost
        names.enter(name, slot)
        if ttl is not None:
            # not a closure: a hundred thousand names may have one each
            slot.alarm = self._alarms.at(self._alarms.now() + ttl, partial(self._take, kind, names, name))
        while names.bytes_bound is not None and names.bytes > names.bytes_bound and len(names.slots) > 1:
            self._evict(kind, names, name)
        self._publish(kind, Change(name, entry, entry.version))
        return entry

    def _make_room_for_name(self, kind: str, names: _Names, owner: Account | None, must: bool) -> None:
        most = self._max_names
        share = names.shares.get(owner)
        if share is not None and owner is not None and 2 * len(share.names) > len(names.slots):
            most -= self._max_names >> 3
        if len(names.slots) >= most:
            if not names.evicts:
                if must:
                    return
                raise StoreFull(f"{len(names.slots):,} names of this kind are in use, the most that may")
            self._evict(kind, names, None)

    def _charge(
        self, kind: str, names: _Names, name: str, slot: _Slot | None, owner: Account | None, cost: int, must: bool
    ) -> None:
        """The owner pays, or `StoreFull`; of a kind that evicts, his least recently used names leave before that."""
        if owner is None:
            return
        more = cost - (slot.cost if slot is not None and slot.owner is owner else 0)
        if must or more <= 0:
            owner.insist(more)
            return
        if more > owner.limit:
            raise StoreFull(owner.refusal(more))
        while not owner.charge(more):
            share = names.shares.get(owner) if names.evicts else None
            oldest = next((one for one in share.names if one != name), None) if share is not None else None
            if oldest is None:
                raise StoreFull(owner.refusal(more))
            self._take(kind, names, oldest)

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
        start = max(prefix, after)
        for name in names.order.after(start, itself=not after or after < prefix):
            if len(found) >= limit or not name.startswith(prefix):
                break
            found.append((name, names.slots[name].entry))
        return found

    def _evict(self, kind: str, names: _Names, but: str | None) -> None:
        """Whoever has most loses what he has not used for longest."""
        share = max(names.shares.values(), key=lambda share: (share.bytes, len(share.names)))
        name = next((one for one in share.names if one != but), None)
        if name is None:  # he has one only, and that has just come
            name = next(one for one in names.slots if one != but)
        self._take(kind, names, name)

    def _take(self, kind: str, names: _Names, name: str) -> None:
        slot = names.slots.pop(name)
        names.order.remove(name)
        names.leave(name, slot)
        if slot.owner is not None:
            slot.owner.release(slot.cost)
        if slot.alarm is not None:
            slot.alarm.cancel()
        self._revision += 1
        self._publish(kind, Change(name, None, self._revision))

    # -- logs

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
        logs = self._logs.setdefault(kind, OrderedDict())
        log = logs.get(name)
        rolling = bounds is not None and bounds.oldest_leave
        size = sum(cost for _, cost in items)
        name_cost = 0 if owner is None or log is not None else LOG_BYTES + 2 * len(name)
        if bounds is not None and not rolling:
            length, used = (len(log.items), log.bytes) if log is not None else (0, 0)
            if length + len(items) > bounds.items or used + size > bounds.bytes:
                raise LogFull(
                    f"{length:,} items and {used:,} bytes, at most {bounds.items:,} and {bounds.bytes:,} may be"
                )
        if not items:
            return self._revision + 1, self._revision
        if log is None:
            self._make_room_for_log(kind, logs, owner, rolling, must)
        if owner is not None:
            more = name_cost + size + ITEM_BYTES * len(items)
            if must:
                owner.insist(more)
            elif not owner.charge(more):
                raise StoreFull(owner.refusal(more))
        # from here on nothing is refused
        if log is None:
            log = logs[name] = _Log(owner, name_cost, rolling)
            counts = self._log_names.setdefault(kind, {})
            counts[owner] = counts.get(owner, 0) + 1
        elif rolling:
            logs.move_to_end(name)
        first = self._revision + 1
        self._revision += len(items)
        log.items.extend(
            zip(
                range(first, self._revision + 1),
                [value for value, _ in items],
                [cost for _, cost in items],
                repeat(owner),
                strict=False,
            )
        )
        log.bytes += size
        if bounds is not None and rolling:
            while len(log.items) > bounds.items or (log.bytes > bounds.bytes and len(log.items) > 1):
                self._drop_first(log)
        self._publish(kind, Change(name, None, self._revision))
        return first, self._revision

    def _make_room_for_log(
        self, kind: str, logs: OrderedDict[str, _Log], owner: Account | None, rolling: bool, must: bool
    ) -> None:
        most = self._max_names
        mine = self._log_names.get(kind, {}).get(owner, 0)
        if owner is not None and 2 * mine > len(logs):
            most -= self._max_names >> 3
        if len(logs) < most:
            return
        if not rolling or not logs[next(iter(logs))].rolling:
            if must:
                return
            raise StoreFull(f"{len(logs):,} names of this kind are in use, the most that may")
        self._drop_log(kind, logs, next(iter(logs)))  # the one that was quiet for longest

    async def read(self, kind: str, name: str, after: int, limit: int) -> list[tuple[int, bytes]]:
        log = self._find(kind, name)
        found: list[tuple[int, bytes]] = []
        if log is None or not log.items or log.items.last[0] <= after:
            return found
        place = log.items.after(after)
        return [(item[0], item[1]) for item in log.items.slice(place, place + limit)]

    async def trim(self, kind: str, name: str, through: int, limit: int | None = None) -> int:
        log = self._find(kind, name)
        count = 0
        while log is not None and log.items and log.items.first[0] <= through and count != limit:
            self._drop_first(log)
            count += 1
        if count:
            if log is not None and not log.items and not log.rolling:
                self._drop_log(kind, self._logs[kind], name)  # as every log is that nobody has written to
            self._publish(kind, Change(name, None, self._revision))
        return count

    async def extent(self, kind: str, name: str) -> tuple[int, int, int]:
        log = self._find(kind, name)
        return (len(log.items), log.bytes, log.dropped) if log is not None else (0, 0, 0)

    async def forget(self, kind: str, name: str) -> None:
        logs = self._logs.get(kind)
        if logs is not None and name in logs:
            self._drop_log(kind, logs, name)

    def _find(self, kind: str, name: str) -> _Log | None:
        logs = self._logs.get(kind)
        return logs.get(name) if logs is not None else None

    def _drop_first(self, log: _Log) -> None:
        item, _, size, owner = log.items.pop_first()
        log.bytes -= size
        log.dropped = item
        if owner is not None:
            owner.release(size + ITEM_BYTES)

    def _drop_log(self, kind: str, logs: OrderedDict[str, _Log], name: str) -> None:
        log = logs.pop(name)
        counts = self._log_names[kind]
        counts[log.owner] -= 1
        if not counts[log.owner]:
            del counts[log.owner]
        if log.owner is not None:
            log.owner.release(log.cost)
        for _, _, size, owner in log.items:
            if owner is not None:
                owner.release(size + ITEM_BYTES)

    # -- watching

    def watch(self, kind: str, pattern: str, callback: Callable[[Change], None]) -> Subscription:
        watch = _Watch(self, kind, pattern, callback)
        self._watches.setdefault(kind, Patterns()).add(pattern, watch)
        return watch

    def _publish(self, kind: str, change: Change) -> None:
        watches = self._watches.get(kind)
        if watches:
            for watch in watches.match(change.name):
                try:
                    watch.callback(change)
                except Exception:
                    log.exception("one who watches the store failed")
