"""Helpers: the stateful elements as Python knows them, for whatever can `call`.

Times are seconds here, as everywhere in Python; on the wire they are milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from packetflow.client.builders import Packet, step
from packetflow.errors import Conflict, PacketFlowError, PacketTimeout
from pfcore.link.reply import Reply

__all__ = ["Barrier", "Cache", "Cached", "Gate", "Item", "Lease", "Lock", "Pool", "Stream", "Timer", "Toolbox"]


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, round(seconds * 1000))


def _some(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class Toolbox:
    """The standard elements as methods; what it is mixed into has `call`."""

    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Reply:
        """Submits a packet; see `packetflow.Reactor.call`."""
        raise NotImplementedError

    # -- control flow, data flow

    def gate(self, name: str) -> Gate:
        """cf:gate: something to wait for until it is open."""
        return Gate(self, name)

    def stream(self, name: str) -> Stream:
        """df:produce and df:consume: a queue of items that are acknowledged."""
        return Stream(self, name)

    # -- events

    async def signal(self, event: str, payload: Any = None) -> int:
        """ed:signal: to every reaction and watcher of the event; how many there were."""
        delivered: int = (await self.call("ed", "signal", {"event": event, "payload": payload}))["delivered"]
        return delivered

    async def react(self, event: str, packet: Packet, *, id: str | None = None) -> str:
        """ed:react: submits a step at every match of the event (``"order.*"``); returns the reaction's id.

        The step sees `event`, ``{"name", "payload"}``. Ends with this reactor's
        connection (5 s after it is lost), or by `unreact`.
        """
        made: str = (await self.call("ed", "react", _some(event=event, packet=packet, id=id)))["reaction"]
        return made

    async def unreact(self, reaction: str) -> bool:
        """Ends a reaction; False where there was none."""
        ended: bool = (await self.call("ed", "react", {"cancel": reaction}))["cancelled"]
        return ended

    async def watch(self, event: str) -> AsyncIterator[tuple[str, Any]]:
        """ed:watch: (event, payload) of every signal that matches, none missed in between; for ever."""
        async for found in self._watch({"event": event}):  # pragma: no branch - it goes on for ever
            yield found["event"], found["payload"]

    async def _watch(self, what: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        while True:
            try:
                found = await self.call("ed", "watch", what)
            except PacketTimeout:
                continue
            what = {**what, "after": found["cursor"]}
            what.pop("version", None)
            yield found

    async def timer(
        self,
        packet: Packet,
        *,
        after: float | None = None,
        every: float | None = None,
        at: float | None = None,
        count: int | None = None,
        id: str | None = None,
    ) -> Timer:
        """ed:timer: submits a step `after` seconds, `at` a time (as `time.time`), or `every` so many seconds."""
        data = _some(packet=packet, after_ms=_ms(after), every_ms=_ms(every), at=_ms(at), count=count, id=id)
        made = await self.call("ed", "timer", data)
        return Timer(self, made["timer"], made["next_at"] / 1000)

    # -- collective

    def barrier(self, name: str, parties: int) -> Barrier:
        """co:sync: all parties go on together."""
        return Barrier(self, name, parties)

    async def broadcast(self, group: str, element: str, data: Any = None, *, wait: bool = True) -> list[dict[str, Any]]:
        """co:broadcast: to every reactor that handles it; ``[{"reactor", "status", "data" or "error"}]``."""
        results: list[dict[str, Any]] = (
            await self.call("co", "broadcast", {"packet": step(group, element, data), "wait": wait})
        )["results"]
        return results

    async def vote(
        self, ballot: str, choice: Any, voters: int, *, need: int | None = None, wait: float | None = None
    ) -> dict[str, Any]:
        """co:vote: ``{"decision", "tally", "decided"}`` once enough agree, or cannot any more."""
        data = _some(ballot=ballot, voters=voters, need=need, wait_ms=_ms(wait))
        decided: dict[str, Any] = await self.call("co", "vote", {**data, "choice": choice})
        return decided

    async def poll(self, group: str, element: str, data: Any = None, *, need: int | None = None) -> dict[str, Any]:
        """co:vote by the answers of every reactor that handles this."""
        decided: dict[str, Any] = await self.call("co", "vote", _some(packet=step(group, element, data), need=need))
        return decided

    # -- resources

    @property
    def cache(self) -> Cache:
        """rm:cache: values by key, with versions and times to live."""
        return Cache(self)

    def lock(self, key: str, *, ttl: float = 30.0, wait: float | None = None) -> Lock:
        """rm:lock: ``async with reactor.lock("name") as lock``; `lock.fence` grows with every grant.

        It is renewed while it is held. `ttl`: seconds until it ends by itself if this
        process stops (default 30). `wait`: seconds to wait for it (default: until the
        packet's deadline of 29.5 s), 0 to try once; `Conflict` when that is over.
        """
        return Lock(self, key, ttl, wait)

    def pool(self, name: str, *, capacity: int | None = None) -> Pool:
        """rm:alloc: units of something that there is only so much of."""
        return Pool(self, name, capacity)


class Gate:
    """A gate: closed until somebody opens it, or enough have arrived."""

    def __init__(self, through: Toolbox, name: str) -> None:
        self._through = through
        self.name = name

    async def wait(self, timeout: float | None = None) -> None:
        """Returns once it is open; `PacketTimeout` after `timeout` seconds."""
        await self._do("wait", wait_ms=_ms(timeout))

    async def open(self) -> None:
        """Lets everyone through."""
        await self._do("open")

    async def close(self) -> None:
        """Lets nobody through, and forgets arrivals."""
        await self._do("close")

    async def arrive(self, count: int) -> bool:
        """One more has arrived; the gate opens at the `count`-th. Is it open?"""
        return bool((await self._do("arrive", count=count))["open"])

    async def _do(self, action: str, **fields: Any) -> dict[str, Any]:
        done: dict[str, Any] = await self._through.call(
            "cf", "gate", {"gate": self.name, "action": action, **_some(**fields)}
        )
        return done


class Item(NamedTuple):
    """An item of a stream. `deliveries`: how often it was given out, this time included."""

    id: int
    data: Any
    deliveries: int


class Stream:
    """A stream: appended to, and consumed at least once by each consumer name."""

    def __init__(self, through: Toolbox, name: str) -> None:
        self._through = through
        self.name = name

    async def produce(self, *items: Any, wait: float | None = None) -> int:
        """Appends items; the id of the last. Waits for room in a full stream, `Overloaded` after `wait` seconds."""
        data = {"stream": self.name, "items": list(items), **_some(wait_ms=_ms(wait))}
        last: int = (await self._through.call("df", "produce", data))["last"]
        return last

    async def consume(
        self, consumer: str = "default", *, max: int = 100, redeliver_after: float = 30.0
    ) -> AsyncIterator[Item]:
        """Items, for ever; each is acknowledged when the loop comes back for the next.

        An item whose turn of the loop raised, or was the last before a `break`, is
        not acknowledged: it comes again after `redeliver_after` seconds, to
        whoever asks then, five times in all before it goes to ``<stream>.dead``.
        """
        done: list[int] = []
        base = {"stream": self.name, "consumer": consumer, "redeliver_after_ms": _ms(redeliver_after)}
        try:
            while True:
                # what cannot be sent is acknowledged with the next batch, at the latest when it is given out again
                try:
                    batch = await self._through.call("df", "consume", {**base, "max": max, "ack": done})
                except PacketTimeout:
                    done = []
                    continue
                done = []
                for item in batch["items"]:
                    yield Item(item["id"], item["data"], item["deliveries"])
                    done.append(item["id"])
        finally:
            if done:
                await self._through.call("df", "consume", {**base, "max": 0, "ack": done})


class Timer:
    """A timer that was set. `next_at`: seconds since the epoch of its first firing."""

    def __init__(self, through: Toolbox, id: str, next_at: float) -> None:
        self._through = through
        self.id = id
        self.next_at = next_at

    async def cancel(self) -> bool:
        """Ends it; False where it had ended."""
        ended: bool = (await self._through.call("ed", "timer", {"cancel": self.id}))["cancelled"]
        return ended


class Barrier:
    """A barrier of a number of parties."""

    def __init__(self, through: Toolbox, name: str, parties: int) -> None:
        self._through = through
        self.name = name
        self.parties = parties

    async def wait(self, data: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Returns once all have come, with everyone's data; `PacketTimeout` or `ConnectionLost` breaks it for all."""
        packet = {"barrier": self.name, "parties": self.parties, "data": data, **_some(wait_ms=_ms(timeout))}
        everyone: list[Any] = (await self._through.call("co", "sync", packet))["data"]
        return everyone


class Cached(NamedTuple):
    """What the cache has of a key. `version`: 0 where it is not `found`."""

    value: Any
    version: int
    found: bool


class Cache:
    """The gateway's cache."""

    def __init__(self, through: Toolbox) -> None:
        self._through = through

    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default`."""
        entry = await self.entry(key)
        return entry.value if entry.found else default

    async def entry(self, key: str) -> Cached:
        """The value with its version."""
        return await self._do("get", key)

    async def set(self, key: str, value: Any, *, ttl: float | None = None, version: int | None = None) -> int:
        """Sets a value, for `ttl` seconds where given; its new version.

        `version`: only if that is the present one, 0 only if there is none; else `Conflict`.
        """
        return (await self._do("set", key, value=value, ttl_ms=_ms(ttl), version=version)).version

    async def delete(self, key: str, *, version: int | None = None) -> bool:
        """Takes a key away; False where there was none."""
        return (await self._do("delete", key, version=version)).found

    async def incr(self, key: str, by: float = 1, *, ttl: float | None = None) -> Any:
        """Adds to a number, 0 where there is none; the new value."""
        return (await self._do("incr", key, by=by, ttl_ms=_ms(ttl))).value

    async def fill(self, key: str, packet: Packet, *, ttl: float | None = None) -> Any:
        """The value, or the data of a step that computes it once however many ask."""
        return (await self._do("fill", key, step=packet, ttl_ms=_ms(ttl))).value

    async def list(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """(key, value) of all keys that begin with `prefix`, in order."""
        after = ""
        while True:
            page = await self._through.call("rm", "cache", {"op": "list", "key": prefix, "after": after})
            for entry in page["value"]:
                yield entry["key"], entry["value"]
            if page["after"] is None:
                return
            after = page["after"]

    async def watch(self, key: str) -> AsyncIterator[Cached]:
        """ed:watch: every change of a key, or with a trailing ``*`` of keys; for ever."""
        async for change in self._through._watch({"key": key}):  # pragma: no branch - it goes on for ever
            yield Cached(change["value"], change["version"], change["value"] is not None)

    async def _do(self, op: str, key: str, *, value: Any = ..., **fields: Any) -> Cached:
        data = {"op": op, "key": key, **_some(**fields)}
        if value is not ...:
            data["value"] = value
        done = await self._through.call("rm", "cache", data)
        return Cached(done["value"], done["version"], done["found"])


class Lease:
    """What was granted, renewed while it is held, and freed at the end."""

    def __init__(self, through: Toolbox, granted: Mapping[str, Any]) -> None:
        self._through = through
        self.id: str = granted["lease"]
        self.granted = dict(granted)

    async def free(self) -> bool:
        """Ends it; False where it had ended."""
        freed: bool = (await self._through.call("rm", "free", {"lease": self.id}))["freed"]
        return freed


class Lock:
    """A lock, held inside ``async with``. `lost`: set when it could not be renewed: somebody else may have it."""

    def __init__(self, through: Toolbox, key: str, ttl: float, wait: float | None) -> None:
        self._through = through
        self._ttl = ttl
        self._wait = wait
        self._lease: Lease | None = None
        self._renewing: asyncio.Task[None] | None = None
        self.key = key
        self.fence = 0
        self.lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        wait_ms = 29_000 if self._wait is None else _ms(self._wait)
        data = {"key": self.key, "ttl_ms": _ms(self._ttl), "wait_ms": wait_ms}
        granted = await self._through.call("rm", "lock", data)
        self._lease = Lease(self._through, granted)
        self.fence = granted["fence"]
        self.lost.clear()
        self._renewing = asyncio.get_running_loop().create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lease is not None and self._renewing is not None
        self._renewing.cancel()
        await self._lease.free()

    async def _renew(self) -> None:
        assert self._lease is not None
        while True:
            await asyncio.sleep(self._ttl / 3)
            try:
                await self._through.call("rm", "lock", {"lease": self._lease.id, "ttl_ms": _ms(self._ttl)})
            except Conflict:
                self.lost.set()
                return
            except PacketFlowError:
                continue  # the gateway is away: the next try is in time, or the lock has ended


class Pool:
    """A pool of units."""

    def __init__(self, through: Toolbox, name: str, capacity: int | None) -> None:
        self._through = through
        self.name = name
        self.capacity = capacity

    async def alloc(self, units: int = 1, *, ttl: float = 30.0, wait: float = 0.0) -> Lease:
        """Units, until they are freed or `ttl` seconds have passed; `Overloaded` after `wait` seconds without."""
        data = {"pool": self.name, "units": units, "ttl_ms": _ms(ttl), "wait_ms": _ms(wait)}
        return Lease(self._through, await self._through.call("rm", "alloc", {**data, **_some(capacity=self.capacity)}))
