"""Scripts for a simulated gateway: any bytes are one. What the gateway does with it must hold, whatever it says.

The bytes are read as choices: which link joins, what it says (frames from a
grammar in which any field may hold any JSON value), what a handler does, how
much time passes. After each step every table is audited; in the end everything
has ended and nothing is left. `play` raises `Broken` with the steps so far.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from packetflow.elements import STANDARD
from packetflow.errors import Overloaded, PacketFlowError
from pfcore.memory import clock
from pfcore.work.handler import Handler
from tests.simulated import Fabric, simulated_time

__all__ = ["KNOWN", "Broken", "minimal", "play"]

KNOWN: frozenset[str] = frozenset()
"""Findings that stand, by name: the grammar keeps off them, or the checks pass over them. Empty it as they are mended."""


class Broken(AssertionError):
    """A promise was not kept. `steps`: what was done; `wrong`: what is wrong then; `cuts`: where steps begin."""

    def __init__(self, wrong: list[str], script: Script) -> None:
        super().__init__("\n".join([*wrong[:10], "after:", *(f"  {step[:600]}" for step in script.steps)]))
        self.wrong = wrong
        self.steps = script.steps
        self.cuts = script.cuts


class Choices:
    """Bytes, read as choices; where they end, the first choice is taken."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n

    def one(self, options: Sequence[Any]) -> Any:
        return options[self.byte() % len(options)]

    def often(self, n: int) -> bool:
        """True but for one in `n`."""
        return self.byte() % n != n - 1


WORDS = [
    "a",
    "b",
    "s",
    "",
    "cancel",
    "df:work",
    "work",
    "\u00e9",
    "e\u0301",
    "\x00",
    "a" * 300,
    "\ud800",
    "key",
    "$",
    "prev",
    "ev*",
]
NUMBERS = [0, 1, -1, 2, 5, 7.5, 1e308, 1e400, 10**400, 2**53, 2**63, 2**64, -(2**63), 0.1, 1e-9, 300_000, 300_001]


def any_json(c: Choices, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = c.below(10 if depth < 3 else 6)
    if kind == 0:
        return None
    if kind == 1:
        return c.below(2) == 0
    if kind <= 3:
        return c.one(NUMBERS)
    if kind <= 5:
        return c.one(WORDS)
    if kind == 6:
        return [any_json(c, depth + 1) for _ in range(c.below(4))]
    if kind == 7:
        return {c.one(WORDS): any_json(c, depth + 1) for _ in range(c.below(4))}
    if kind == 8:
        return {"code": any_json(c, depth + 1), "message": any_json(c, depth + 1), "details": any_json(c, depth + 1)}
    return c.one([[[[[]]]], {"key": {"key": {}}}, ["a"] * 70, {"retry": True, "key": "a"}, "x" * 3000])


def damage(c: Choices, value: dict[str, Any], rare: int) -> bool:
    """Any field may hold anything, be missing, or be joined by another; True if it was."""
    changed = False
    for name in list(value):
        if c.often(rare):
            continue
        changed = True
        if c.below(5) == 0:
            del value[name]
        else:
            value[name] = any_json(c)
    return changed


# ---------------------------------------------------------------- the grammar

WORK = ["cf:work", "co:work", "df:work", "ed:work", "rm:work"]
OWN = ["own", "fails", "odd", "value", "later", "submits", "awaits", "cancels", "dies", "keeps", "stubborn", "stale"]
GROUPS = ["df", "cf", "rm", "ed", "mc", "co"]
NAMES = ["a", "b", "ev1", "s"]
EXPRESSIONS = [
    "input",
    "prev",
    "results.a",
    "`true`",
    "`false`",
    "index",
    "item",
    "event",
    "@",
    "[",
    "length(@)",
    "keys(@)",
    "join(',', @)",
]


def step(c: Choices, depth: int) -> dict[str, Any]:
    """A nested packet."""
    kind = c.below(6)
    if kind == 0 and depth < 3:
        key = c.one(sorted(STANDARD))
        made = {"group": key[:2], "element": key[3:], "data": element_data(c, key, depth + 1)}
    elif kind <= 3:
        made = {"group": c.one(GROUPS[:3]), "element": c.one(OWN), "data": c.one([1, "x", None, {"$": "prev"}, 3])}
    else:
        made = {
            "group": "df",
            "element": c.one(["work", "nobody", "own"]),
            "data": c.one([0, {"$": "input"}, {"$lit": 1}]),
        }
    if c.below(4) == 0:
        made |= c.one(
            [{"as": "a"}, {"timeout_ms": 50}, {"priority": 10}, {"metadata": {"key": "a"}}, {"metadata": {"retry": 2}}]
        )
    if not c.often(12):
        damage(c, made, 3)
    return made


def steps(c: Choices, depth: int) -> list[Any]:
    return [step(c, depth) for _ in range(c.below(4))]


def element_data(c: Choices, key: str, depth: int = 0) -> Any:
    """Data for a standard element: mostly as it should be."""
    name: Callable[[], str] = lambda: c.one(NAMES)  # noqa: E731
    wait = {"wait_ms": c.one([0, 0, 20, 2000])} if c.below(2) else {}
    ttl = {"ttl_ms": c.one([10, 1000, 30_000])} if c.below(2) else {}
    made: dict[str, Any]
    match key:
        case "cf:seq":
            made = {"steps": steps(c, depth), "input": c.one([1, [1, 2]])}
        case "cf:branch":
            made = {
                "cases": [{"when": c.one(EXPRESSIONS), "then": step(c, depth)} for _ in range(c.below(3))],
                "else": step(c, depth),
            }
        case "cf:loop":
            made = {
                "step": step(c, depth),
                **c.one([{"times": 3}, {"items": [1, 2]}, {"until": "`true`"}, {"while": "index < `2`"}]),
            }
            made |= {"collect": True} if c.below(2) else {}
        case "cf:gate":
            made = {
                "gate": name(),
                **c.one(
                    [{"action": "wait"}, {"action": "open"}, {"action": "close"}, {"action": "arrive", "count": 2}]
                ),
            }
            made |= wait
        case "df:produce":
            made = {"stream": name(), "items": [c.byte() for _ in range(c.below(4))], **wait}
        case "df:consume":
            made = {
                "stream": name(),
                "consumer": name(),
                "max": c.one([1, 5, 0]),
                "ack": [c.below(5)] if c.below(2) else [],
                **wait,
            }
            made |= {"redeliver_after_ms": c.one([10, 500])} if c.below(2) else {}
        case "df:transform":
            made = {
                "input": [1, 2, 3],
                **c.one(
                    [{"expression": c.one(EXPRESSIONS)}, {"map": step(c, depth), "concurrency": c.one([1, 2, 64])}]
                ),
            }
        case "df:reduce":
            made = {
                "input": [1, 2],
                **c.one([{"op": "sum"}, {"op": "merge"}, {"op": "concat"}, {"with": step(c, depth), "initial": 0}]),
            }
        case "ed:signal":
            made = {"event": name(), "payload": c.one([1, {"a": 1}])}
        case "ed:timer":
            made = {
                "packet": step(c, depth),
                "id": name(),
                **c.one(
                    [{"after_ms": 20}, {"every_ms": 400, "count": 5}, {"every_ms": 300}, {"every_ms": 10, "count": 3}]
                ),
            }
            made = made if c.below(4) else {"cancel": name()}
        case "ed:watch":
            made = {
                **c.one([{"event": name()}, {"event": "ev*"}, {"key": name()}, {"key": name(), "version": 0}]),
                **wait,
            }
            made |= {"after": c.one([0, 1])} if c.below(2) else {}
        case "ed:react":
            made = (
                {"event": c.one(["ev*", "ev1", "a"]), "packet": step(c, depth), "id": name()}
                if c.below(4)
                else {"cancel": name()}
            )
        case "co:sync":
            made = {"barrier": name(), "parties": c.one([2, 1, 3]), "data": 1, **wait}
        case "co:broadcast":
            made = {"packet": step(c, depth), "wait": c.below(2) == 0}
        case "co:gather":
            made = {"packets": steps(c, depth), **({"need": c.below(3)} if c.below(2) else {})}
        case "co:vote":
            made = c.one(
                [
                    {"ballot": name(), "choice": c.below(2), "voters": 2},
                    {"packet": step(c, depth)},
                    {"ballot": name(), "choice": "x", "voters": 1},
                ]
            )
        case "mc:migrate":
            made = {"from": c.one(["r1", "r2"]), **({"to": "r2"} if c.below(2) else {})}
        case "mc:spawn" | "mc:scale":
            made = {"reactor": name(), **({"replicas": 1} if key == "mc:scale" else {})}
        case "mc:tune":
            made = {"set": c.one([{}, {"concurrency": 1}, {"concurrency": 100}, {"window": 4}, {"max_queue": 1}, {"policy.df": "keyed"},
                                  {"max_waiting": 2}, {"window": 64, "max_queue": 50}])}  # fmt: skip
            made |= {"reactor": c.one(["r1", "r2"]), "set": {"window": c.one([1, 0, 9])}} if c.below(3) == 0 else {}
        case "rm:alloc":
            made = {"pool": name(), "units": c.one([1, 2]), "capacity": 2, **ttl, **wait}
        case "rm:free":
            made = {"lease": {"lease": True}}
        case "rm:lock":
            made = (
                c.one([{"key": name()}, {"key": name(), "step": step(c, depth)}, {"lease": {"lease": True}}])
                | ttl
                | wait
            )
        case _:
            made = c.one([{"op": "get"}, {"op": "set", "value": 1}, {"op": "incr", "by": c.one([1, 1e308])}, {"op": "delete"}, {"op": "list"},
                          {"op": "fill", "step": step(c, depth)}]) | {"key": name()} | ttl  # fmt: skip
    if not c.often(8):
        damage(c, made, 3)
    return made


class Script:
    """One script at a gateway."""

    def __init__(self, data: bytes, fabric: Fabric, known: frozenset[str]) -> None:
        self.c = Choices(data)
        self.fabric = fabric
        self.known = known
        self.steps: list[str] = []
        self.cuts = [0]
        self.held: list[tuple[asyncio.Future[Any], Any]] = []
        self.kept: list[Any] = []
        self.seq = 10_000
        self.ids = list(IDS)
        self.ids_of: dict[int, list[str]] = {}
        self.together: list[bytes] | None = None
        self.sent: list[dict[str, Any]] = []
        self.asked: dict[int, set[int]] = {}
        self.excused: dict[int, set[int]] = {}
        self.stopping: Any = None
        self.over = False
        # as `register` does, but all at once: it is a fifth of a script's time
        gateway = fabric.gateway
        for group in GROUPS:
            for name in OWN:
                gateway._registry.functions[group, name] = (getattr(self, f"on_{name}"), 0, None)
                gateway.view.dispatcher.register(Handler(group, name, self.noted(name), wants_packet=True))
        fabric.do(gateway._handlers_changed)

    # -- handlers

    def noted(self, name: str) -> Callable[[Any, Any], Any]:
        """A handler, which notes whose packet has begun."""
        function = getattr(self, f"on_{name}")

        def handle(data: Any, packet: Any) -> Any:
            self.fabric.begun.setdefault(packet.id, set()).add("here")
            return function(data)

        return handle

    def on_own(self, data: Any) -> Any:
        return data

    def on_fails(self, data: Any) -> Any:
        raise ValueError(data)

    def on_odd(self, data: Any) -> Any:
        odd = ODD[:3] if "odd exceptions" in self.known else ODD
        raise odd[data % len(odd) if type(data) is int else 0]()

    def on_value(self, data: Any) -> Any:
        return self.value(data if type(data) is int else 0)

    def value(self, which: int) -> Any:
        """Something to return."""
        return VALUES[which % (len(VALUES) - HOOKS if "hooks" in self.known else len(VALUES))](self)

    def suspended(self, task: Any) -> asyncio.Future[Any]:
        """What the script ends at some time."""
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.held.append((future, task))
        return future

    async def on_later(self, data: Any) -> Any:
        """Suspends until the script says how it goes on."""
        return await self.suspended(asyncio.current_task())

    async def on_stubborn(self, data: Any) -> Any:
        """Does not end when it is cancelled."""
        future = self.suspended(None)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            return await asyncio.wait_for(asyncio.shield(future), 7)

    def on_submits(self, data: Any) -> Any:
        """Submits, and lets go of the answer or keeps it."""
        reply = self.fabric.gateway.call("df", data if isinstance(data, str) else "later", 1, timeout_ms=900)
        reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        if data == "x":
            reply.cancel()
        return None

    async def on_awaits(self, data: Any) -> Any:
        peers = list(self.fabric.gateway.reactors)
        if peers and data == 1:
            return await self.fabric.gateway.call("df", "work", 1, reactor=peers[0], timeout_ms=700)
        return await self.fabric.gateway.call(
            "df", "later" if data is None else "own", data, timeout_ms=800, retry=data == 3
        )

    async def on_cancels(self, data: Any) -> Any:
        """Cancels the task that it runs in."""
        task = asyncio.current_task()
        assert task is not None
        if "own task" not in self.known:
            task.cancel()
        if data == 1:
            return data
        await asyncio.sleep(0)
        return data

    def on_dies(self, data: Any) -> Any:
        """Its value submits when it dies."""
        return {"a": 1, "b": Dying(self)} if data == 1 else Dying(self)

    def on_keeps(self, data: Any) -> Any:
        """Keeps its task, sets a context variable."""
        self.kept.append(asyncio.current_task())
        VARIABLE.set(data)
        if data == 3 and "own task" not in self.known:
            self.kept[0].cancel()
        return data

    async def on_stale(self, data: Any) -> Any:
        """Sleeps for as long as the packet says, and lives within a timeout of its own."""
        try:
            async with asyncio.timeout(0.3):
                await asyncio.sleep(data if type(data) is int and data < 5 else 0.2)
        except TimeoutError:
            raise Overloaded("no") from None
        return data

    # -- steps

    def note(self, text: str) -> None:
        self.steps.append(text)

    def link(self) -> int | None:
        links = sorted(self.fabric.links)
        return links[self.c.below(len(links))] if links else None

    def join(self) -> None:
        c = self.c
        name = c.one([None, "alice", "bob", "carol"])
        handles = c.one([None, None, None, "df:work", "df:work,df:transform,rm:lock", ""])
        number = self.fabric.join(name, handles)
        self.note(f"join {name} handles={handles!r}: link {number}")
        if number is not None:
            self.asked[number], self.excused[number] = set(), set()
            if c.below(3):
                self.heartbeat(number)

    def leave(self) -> None:
        number = self.link()
        if number is not None:
            self.note(f"leave {number}")
            self.fabric.leave(number)

    def send(self, number: int, message: dict[str, Any], untouched: bool = False) -> None:
        c = self.c
        if not c.often(24) and not (message["type"] == "result" and "codes of answers" in self.known):
            damage(c, message, 3)
            untouched = False
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=c.below(2) == 0)
        payload = text.encode("utf-8", "surrogatepass")
        if not c.often(40):
            at = c.byte() * 7 % max(1, len(payload))
            payload = payload[:at] + bytes([c.byte()]) + payload[at + 1 :]
            untouched = False
        if untouched and "\\ud" not in text and "\ud800" not in text and "Infinity" not in text:
            self.asked[number].add(message["seq"])
        self.note(f"say {number} {payload.decode('utf-8', 'backslashreplace')}")
        if self.together is None:
            self.fabric.say(number, payload)
        else:
            self.together.append(payload)

    def heartbeat(self, number: int | None = None) -> None:
        c = self.c
        number = self.link() if number is None else number
        if number is None:
            return
        payload: dict[str, Any] = {"timestamp": 1}
        if c.below(4):
            payload["reactor"] = c.one(["r1", "r2", "r3"])
        if c.below(4):
            payload["capabilities"] = c.one(
                [["df:work"], ["df:work", "df:transform", "ed:work", "rm:lock"], [], ["cf:work", "rm:work", "df:own"]]
            )
        if c.below(4):
            payload["window"] = c.one([1, 2, 16, 100, 3])
        if c.below(3):
            payload["ext"] = ["cancel"]
        if not c.often(6):
            damage(c, payload, 3)
        self.seq += 1
        self.send(number, {"type": "heartbeat", "seq": self.seq, "payload": payload})

    def submit(self) -> None:
        """A packet or a few, mostly for work that reactors have, or handlers here; or one again that was sent before."""
        number = self.link()
        if number is None:
            return
        self.together = []
        for _ in range(self.c.one([1, 1, 1, 2, 6])):
            if self.sent and not self.c.often(6):
                packet, untouched = self.c.one(self.sent[-6:]), True
                if "two principals" in self.known and not packet["id"].endswith(self.principal(number)):
                    continue
            else:
                packet, untouched = self.packet(number)
            self.seq += 1
            self.send(number, {"type": "submit", "seq": self.seq, "payload": packet}, untouched)
        payloads, self.together = self.together, None
        self.fabric.say(number, *payloads)

    def principal(self, number: int) -> str:
        """Whose a link is."""
        member = self.fabric.links[number].engine.member
        return "" if member is None else str(member.principal.name)

    def packet(self, number: int) -> tuple[dict[str, Any], bool]:
        """A packet, and whether it is as it should be."""
        c = self.c
        kind = c.below(12)
        if kind <= 1:
            key = c.one(sorted(STANDARD))
            group, element, data = key[:2], key[3:], self.leased(element_data(c, key))
        elif kind <= 6:
            group, element = c.one(["df", "df", "cf", "rm", "ed", "co", "mc"]), c.one([*OWN, *["later"] * 6])
            data = c.byte() if element in ("value", "odd") else c.one([1, 2, 3, None, "x", "own", 0, {"key": "a"}])
        else:
            group, element = (
                c.one(["df", "df", "df", "ed", "cf", "rm", "co"]),
                c.one(["work", "work", "work", "work", "nobody", "tr"]),
            )
            data = c.one([1, {"key": "a"}, {"key": "b"}, "x" * 2000])
        packet: dict[str, Any] = {
            "version": "1.0", "id": c.one(IDS) if c.below(4) == 0 else f"new{len(self.ids)}",
            "group": group, "element": element, "data": data, "priority": c.one([5, 5, 1, 10]),
        }  # fmt: skip
        if c.below(3) == 0:
            packet["timeout_ms"] = c.one([50, 1000, 5000, 1])
        if c.below(5) == 0 and not (group == "ed" and element in OWN and "events after others" in self.known):
            packet["dependencies"] = [c.one(self.ids[-8:]) for _ in range(c.below(3))]
        if c.below(3) == 0:
            packet["metadata"] = c.one(
                [{"retry": 2}, {"retry": True}, {"key": "a"}, {"key": "b", "retry": 1}, {"traceparent": []}]
            )
        if "two principals" in self.known:
            packet["id"] += self.principal(number)
        self.ids.append(packet["id"])
        self.ids_of.setdefault(number, []).append(packet["id"])
        if not c.often(8) and damage(c, packet, 4):
            return packet, False
        self.sent.append(packet)
        return packet, True

    def leased(self, data: Any) -> Any:
        """A lease that was granted, where one is meant."""
        if isinstance(data, dict) and data.get("lease") == {"lease": True}:
            known = [one["lease"] for one in self.fabric.seen if isinstance(one.get("lease"), str)]
            data["lease"] = known[self.c.below(len(known))] if known else "none"
        return data

    def answer(self) -> None:
        """A reactor answers: rightly, wrongly, twice, late, or another's packet."""
        c, fabric = self.c, self.fabric
        number = self.link()
        if number is None:
            return
        busy = [link for link in sorted(fabric.links) if fabric.work[link]]
        if busy and c.often(6):
            number = busy[c.below(len(busy))]
        source = number if c.often(8) else self.link()
        work = fabric.work.get(source or 0) or []
        if not work:
            # one that nobody asked for
            packet_id, seq = c.one(IDS), c.one([0, 1, 1 << 40, (1 << 40) + 1])
        else:
            place = c.below(len(work))
            packet_id, seq = work[place]["payload"]["id"], work[place]["seq"]
            if c.often(6):
                work.pop(place)
        payload: dict[str, Any] = {"packet_id": packet_id}
        kind = c.below(8)
        if kind <= 4:
            payload |= {"status": "success", "data": c.one(["done", None, {"a": [1]}, 2])}
        else:
            code = c.one(["PF001", "PF500", "PF429", "PF503", "PF400", "X", "PF502", "PF408"])
            payload |= {"status": "error", "error": {"code": code, "message": "no"}}
            if c.below(3) == 0:
                payload["error"]["details"] = c.one([{"retry_after_ms": 10}, {"retry_after_ms": 10**400}, [], {"a": 1}])
            if not c.often(4):
                damage(c, payload["error"], 2)
        payload["duration_ms"] = c.one([0, 1.5, -1])
        if not c.often(8):
            damage(c, payload, 3)
        if "codes of answers" in self.known and isinstance(payload.get("error"), dict):
            payload["error"]["code"] = str(payload["error"].get("code", "X")).replace("\ud800", "")
        if not c.often(5):
            seq = c.one([0, seq + 1, 7, 10_001])
        if kind > 4:
            # whatever it says by it: that it began there is no longer sure
            fabric.begun.get(packet_id, set()).discard(f"link {number}")
        if c.often(16):
            self.send(number, {"type": "result", "seq": seq, "payload": payload})
        else:
            self.send(
                number,
                {"type": "error", "seq": seq, "payload": {"code": "PF500", "message": "m", "packet_id": packet_id}},
            )

    def cancel(self) -> None:
        c = self.c
        number = self.link()
        if number is None:
            return
        self.excused[number] |= self.asked[number] - set(self.fabric.answers[number])
        payload = {"code": "PF499", "message": "m", "packet_id": c.one(self.ids_of.get(number, self.ids)[-8:])}
        if not c.often(6):
            damage(c, payload, 2)
        self.send(number, {"type": "error", "seq": c.one([0, self.seq, self.seq - 1]), "payload": payload})

    def resume(self) -> None:
        """A suspended handler goes on."""
        c = self.c
        if not self.held:
            return
        future, task = self.held.pop(c.below(len(self.held)))
        how = c.below(6)
        self.note(f"resume {how}")

        def go_on() -> None:
            if future.done():
                return
            if how == 0:
                future.set_result(1)
            elif how == 1:
                future.set_result(self.value(c.byte()))
            elif how == 2:
                future.set_exception(KeyError("late"))
            elif how == 3:
                future.cancel()
            elif how == 4 and task is not None:
                task.cancel()
            else:
                future.set_exception(PacketFlowError("m", code=c.one(["PF429", "PF503", "PF400"])))

        self.fabric.do(go_on)

    def stall(self) -> None:
        number = self.link()
        if number is not None:
            stalled = number not in self.fabric.stalled
            self.note(f"stall {number}: {stalled}")
            self.fabric.stall(number, stalled)

    def time(self) -> None:
        seconds = self.c.one([0.01, 0.1, 0.5, 2, 7, 30])
        self.note(f"time {seconds}")
        self.fabric.pass_time(seconds, looks=30)

    def reload(self) -> None:
        which = self.c.below(4)
        self.note(f"reload {which}")
        self.fabric.reload(which)

    def gateways(self) -> None:
        """Something that the gateway's own side does."""
        c, gateway = self.c, self.fabric.gateway
        switch = gateway.switch
        links = switch.links
        if not links:
            return
        member = links[c.below(len(links))]
        what = c.below(7)
        if member.principal is gateway.view.inside.gateway or member.engine not in gateway.view.links:
            what = max(what, 3)
        names = sorted(gateway.reactors)
        self.note(f"gateway {what}, link {member.number}")
        if what == 0:
            self.fabric.do(switch.drain_member, member, c.below(2) == 0)
        elif what == 1:
            self.fabric.do(switch.set_window, member, c.one([0, 1, 3, 50]))
        elif what == 2:
            self.fabric.do(switch.migrate, member, c.one([None, *links]), clock.now())
        elif what == 3 and names:
            reactor = c.one(names)
            self.fabric.do(self.drop, gateway.call, "df", "work", 1, reactor)
        elif what == 4:
            self.fabric.do(self.drop, gateway.call, "df", c.one(["work", "own", "later", "nobody"]), 1, None)
        elif what == 5 and self.kept:
            self.kept.pop(c.below(len(self.kept)))
        elif what == 6:
            key = c.one(OWN[:5])
            self.fabric.do(
                gateway.unregister if ("df", key) in gateway._registry.functions else self.register, "df", key
            )

    def register(self, group: str, name: str) -> None:
        handle = self.noted(name)
        self.fabric.gateway.register(group, name, lambda data, packet: handle(data, packet))

    def drop(self, call: Any, group: str, element: str, data: Any, reactor: str | None) -> None:
        """A submit of the gateway's own, cancelled at once now and then."""
        try:
            reply = call(
                group, element, data, reactor=reactor, timeout_ms=self.c.one([1000, 60, 5000]), retry=self.c.below(3)
            )
        except PacketFlowError:
            return
        reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        if self.c.below(3) == 0:
            asyncio.get_running_loop().call_soon(reply.cancel)

    def stop(self) -> None:
        """The gateway begins to stop, in the middle of everything."""
        if self.stopping is None:
            self.note("stop")
            self.stopping = self.fabric.begin_stop()

    # -- the whole

    def play(self) -> None:
        c = self.c
        doing = [
            self.submit, self.submit, self.submit, self.submit, self.submit, self.submit, self.answer, self.answer, self.answer,
            self.answer, self.heartbeat, self.join, self.leave, self.cancel, self.resume, self.resume, self.stall, self.time,
            self.time, self.reload, self.gateways, self.gateways,
        ]  # fmt: skip
        self.join()
        self.join()
        self.join()
        while c.more and len(self.steps) < 150:
            self.cuts.append(c.at)
            if c.byte() == 255:
                self.stop()
            c.one(doing)()
            self.audit()
        self.end()

    def audit(self, at_rest: bool = False) -> None:
        wrong = [one for one in self.fabric.check(at_rest=at_rest) if not self.is_known(one)]
        if wrong:
            raise Broken(wrong, self)

    def is_known(self, wrong: str) -> bool:
        return (
            ("ran and refused" in self.known and "never ran" in wrong)
            or ("window" in self.known and wrong.startswith("window: "))
            or ("sent again" in self.known and "one of those that sent it again has gone" in wrong)
            or ("names" in self.known and wrong.startswith("the reactor "))
        )  # fmt: skip

    def end(self) -> None:
        """Links go, deadlines come, the gateway stops: nothing is left."""
        fabric = self.fabric
        self.note("end")
        for number in list(fabric.stalled):
            if number in fabric.links:
                fabric.stall(number, False)
        self.audit()
        fabric.pass_time(40, looks=60)
        self.audit()
        for future, _ in self.held:
            if not future.done():
                fabric.do(future.cancel)
        self.held.clear()
        self.kept.clear()
        fabric.pass_time(310, looks=60)
        self.audit()
        self.unanswered()
        for number in list(fabric.links):
            fabric.leave(number)
        self.audit()
        # sessions outlive their links for a while; what they set up ends with them
        fabric.pass_time(10, looks=60)
        fabric.pass_time(310, looks=20)
        self.audit(at_rest=True)
        elements = fabric.gateway.view.runtime()
        if elements is not None:
            left = [
                len(elements.sessions),
                len(elements.nests),
                len(elements.tasks),
                len(elements.lines._lines),
                len(elements.leases),
            ]
            if "callers that have gone" in self.known:
                left[0] = 0
            rooms = {name: len(elements.rooms.get(name, ())) for name in ("reactions by id", "timers", "filling")}
            if any(left) or any(elements.sessions.own.held) or any(rooms.values()):
                raise Broken([f"sessions, nests, tasks, lines, leases: {left}; {rooms}"], self)
        if self.stopping is None:
            self.stop()
        fabric.finish_stop(self.stopping)
        self.audit(at_rest=True)
        left_tasks = [task for task in asyncio.all_tasks(fabric.loop) if not task.done()]
        if left_tasks:
            raise Broken([f"tasks are left: {left_tasks}"], self)

    def unanswered(self) -> None:
        """Every submit in good order of a link that stayed was answered, or taken back."""
        fabric = self.fabric
        wrong = [
            f"link {number}: the submit {seq} was never answered"
            for number in fabric.links
            for seq in sorted(
                self.asked[number] - self.excused[number] - set(fabric.answers[number]) - fabric.refused[number]
            )
        ]
        if wrong and self.stopping is None:
            raise Broken(wrong, self)


IDS = [f"id{n}" for n in range(6)]
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE", default=None)


class OddError(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


class Interrupted(BaseException):
    """Neither an Exception nor one that ends programs."""


def with_code(code: Any, message: Any = "m", details: Any = None) -> Callable[[], PacketFlowError]:
    def make() -> PacketFlowError:
        error = PacketFlowError("m")
        error.code, error.message, error.details = code, message, details
        return error

    return make


ODD: list[Callable[[], BaseException]] = [
    lambda: ValueError("\ud800"),
    with_code("PF429"),
    with_code("PF400", "x" * 100_000),
    with_code([]),
    with_code(None),
    with_code("PF500", None),
    with_code("PF500", {1: 2}),
    with_code("PF500", "m", {"a": float("nan")}),
    with_code("PF500", "m", object()),
    with_code("\ud800"),
    OddError,
    Interrupted,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    lambda: BaseExceptionGroup("g", [Interrupted()]),
    RecursionError,
    MemoryError,
]
"""What a handler may raise."""


class Dying:
    """Submits as it dies, in whatever is under way then."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def __del__(self) -> None:
        try:
            if not self.script.over and not self.script.fabric.loop.is_closed():
                self.script.on_submits("own")
        except PacketFlowError:
            pass


@dataclass
class Hook:
    """A value that runs code when it is encoded."""

    a: int

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            object.__getattribute__(self, "action")()
        return object.__getattribute__(self, name)


class Zone(datetime.tzinfo):
    """A time zone that runs code when it is asked."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action = action

    def utcoffset(self, when: Any) -> datetime.timedelta:
        self.action()
        return datetime.timedelta(hours=1)


def hook(action: Callable[[], Any]) -> Hook:
    made = Hook(1)
    made.action = action  # type: ignore[attr-defined]
    return made


def submits(script: Script) -> Callable[[], Any]:
    return lambda: script.over or script.on_submits("own")


def raises(error: BaseException) -> Callable[[], Any]:
    def action() -> None:
        raise error

    return action


class Key(str):
    """A key that runs code when it is hashed."""

    def __hash__(self) -> int:
        return 1


def changing(script: Script) -> Any:
    """A dictionary that changes while it is encoded."""
    value: dict[str, Any] = {"a": 1, "n": None}

    def change() -> None:
        value.clear()
        value.update({str(n): [n] for n in range(50)})

    value["h"] = hook(change)
    value["f"] = 1.5
    return value


def deep(script: Script) -> Any:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    return value


def circular(script: Script) -> Any:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: list[Callable[[Script], Any]] = [
    lambda script: "fine",
    lambda script: object(),
    lambda script: float("nan"),
    lambda script: {"a": [float("inf")]},
    lambda script: "\ud800",
    lambda script: {1: 2, None: 3},
    lambda script: {(1, 2): 3},
    lambda script: b"bytes",
    lambda script: {"a", "b"},
    lambda script: 10**400,
    lambda script: {Key("a"): 1},
    lambda script: hook(submits(script)),
    lambda script: [None, hook(submits(script)), {"x": 1.5}],
    lambda script: datetime.datetime(2020, 1, 1, tzinfo=Zone(submits(script))),
    lambda script: {"a": Dying(script)},
    lambda script: "x" * 1_100_000,
    lambda script: (n for n in range(3)),
    lambda script: asyncio.get_running_loop().create_future(),
    deep,
    circular,
    changing,  # a list that shrinks would be next, but msgspec itself does not survive it
    lambda script: hook(raises(KeyError("hook"))),
    lambda script: [None, hook(raises(Interrupted()))],
    lambda script: {"a": hook(raises(PacketFlowError("m", code="PF429")))},
    # -- those that fail today
    lambda script: datetime.datetime(2020, 1, 1, tzinfo=Zone(raises(KeyError("hook")))),
    lambda script: [None, datetime.datetime(2020, 1, 1, tzinfo=Zone(raises(Interrupted())))],
]
"""What a handler may return."""

HOOKS = 2
"""Of these, how many are known to fail."""


SETTINGS: list[dict[str, Any]] = [
    {"concurrency": 4, "max_queue": 6, "max_waiting": 4},
    {"concurrency": 1, "max_queue": 50, "max_waiting": 50, "max_frame": 16_384, "max_pending": 3},
    {
        "window": 3,
        "max_flights": 4,
        "max_remembered": 5,
        "max_frame": 65_536,
        "max_principal_bytes": 300_000,
        "max_total_bytes": 1_000_000,
    },
    {},
]
"""Of the gateway; bounds that are soon reached, mostly."""


def play(data: bytes, known: frozenset[str] = KNOWN, heard: list[str] | None = None) -> None:
    """Plays one script; raises `Broken` where a promise was not kept. `heard`: gets what the links were told."""
    settings = dict(SETTINGS[data[0] % len(SETTINGS)] if data else {})
    if "no flight" in known:
        settings.pop("max_flights", None)
    with simulated_time(), Fabric(**settings) as fabric:
        fabric.heard = heard
        gc.disable()  # what dies when is part of the script
        script = Script(data[1:], fabric, known)
        try:
            script.play()
        except Broken:
            raise
        except Exception as error:
            raise Broken([*fabric.failures, f"the simulation: {error!r}"], script) from error
        finally:
            gc.enable()
            script.over = True
            script.held.clear()
            script.kept.clear()
    gc.collect()


def minimal(data: bytes, known: frozenset[str] = KNOWN, tries: int = 400) -> tuple[bytes, Broken]:
    """A shorter script that fails as this one does, and its failure."""

    def kind(broken: Broken) -> str:
        return "".join(ch for ch in broken.wrong[0][:60] if not ch.isdigit())

    def fails(candidate: bytes) -> Broken | None:
        try:
            play(candidate, known)
        except Broken as broken:
            return broken
        return None

    best = fails(data)
    if best is None:
        raise AssertionError("this script does not fail")
    wanted = kind(best)
    size = max(1, len(best.cuts) // 2)
    while size and tries > 0:
        at = 1
        while at < len(best.cuts) and tries > 0:
            tries -= 1
            after = best.cuts[at + size] if at + size < len(best.cuts) else len(data) - 1
            candidate = data[: 1 + best.cuts[at]] + data[1 + after :]
            broken = fails(candidate)
            if broken is not None and kind(broken) == wanted:
                data, best = candidate, broken
            else:
                at += size
        size //= 2
    return data, best
