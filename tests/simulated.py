"""A whole gateway in simulated time, without sockets: links are engines that a script feeds bytes.

`SimulatedLoop` is an event loop without I/O whose clock is the core's, and
stands still but for `pass_time`. `Fabric` runs a real `Gateway` on it: switch,
dispatcher, elements, store, sessions and the gateway's own side are those of
production; only what listens, and the link below each engine, are replaced.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import json
import logging
import random
import re
import sys
import time as real_time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from multidict import CIMultiDict

import packetflow.gateway.admission as admission
from packetflow import Access, Gateway, Identity, Role
from packetflow.gateway.access import ANONYMOUS, hash_token
from pfcore.audit import audit, in_flight
from pfcore.link.engine import Engine
from pfcore.link.websocket import Link
from pfcore.memory import clock
from pfcore.simulate import deliver, pause, take_output

MS = 1_000_000
SECOND = 1000 * MS
ROUNDS = 20_000
"""Iterations of the loop without time passing, after which it counts as caught in a circle."""


class _NoSelector:
    """What `BaseEventLoop` waits with: nothing ever arrives from outside."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout != 0:
            self.loop.idle(timeout)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop without I/O; its time is the core's simulated one.

    `settle` runs all that is ready now. `run_until_complete` lets time pass as
    needed. Tasks are asyncio's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector(self)
        self.settling = False
        self.rounds = 0

    def time(self) -> float:
        return clock.now() / 1e9

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        self.rounds += 1
        if self.rounds > ROUNDS:
            raise AssertionError(f"after {ROUNDS} rounds without time passing there is still something to do")
        super()._run_once()  # type: ignore[misc]

    def idle(self, timeout: float | None) -> None:
        """Nothing is ready before `timeout` seconds."""
        self.rounds = 0
        if self.settling:
            self.stop()
        elif timeout is None:
            raise AssertionError("nothing will ever happen again, and something is waited for")
        else:
            clock.simulate(clock.now() + max(1, int(timeout * 1e9) + 1), STRIDE)

    def settle(self) -> None:
        """Runs until nothing is ready; time stands still."""
        self.settling = True
        self.rounds = 0
        try:
            self.run_forever()
        finally:
            self.settling = False

    def next_timer(self) -> float | None:
        """When the first timer is due, in seconds of `time`; None: there is none."""
        while self._scheduled and self._scheduled[0]._cancelled:  # type: ignore[attr-defined]
            handle = heapq.heappop(self._scheduled)  # type: ignore[attr-defined]
            handle._scheduled = False
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)  # type: ignore[attr-defined,has-type]
        return self._scheduled[0]._when if self._scheduled else None  # type: ignore[attr-defined]


STRIDE = 200
"""ns by which each look at the clock moves it on: slices of time run out in a simulation, too."""


class SimulatedTime:
    """In place of the module `time`: its clocks are the simulated one's."""

    @staticmethod
    def monotonic_ns() -> int:
        return clock.now()

    @staticmethod
    def monotonic() -> float:
        return clock.now() / 1e9

    perf_counter = monotonic

    @staticmethod
    def time_ns() -> int:
        return 1_700_000_000 * SECOND + clock.now()

    @staticmethod
    def time() -> float:
        return SimulatedTime.time_ns() / 1e9

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


@contextmanager
def simulated_time(start: int = 1000 * SECOND, stride: int = STRIDE) -> Iterator[None]:
    """Every clock that core and package read is a simulated one meanwhile."""
    changed = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("packetflow", "pfcore") and vars(module).get("time") is real_time
    ]
    state = random.getstate()
    for module in changed:
        module.time = SimulatedTime()  # type: ignore[attr-defined]
    clock.simulate(start, stride)
    random.seed(1)
    try:
        yield
    finally:
        clock.simulate(0)
        random.setstate(state)
        for module in changed:
            module.time = real_time  # type: ignore[attr-defined]


class SimulatedLink(Link):
    """A link without a socket: what it would write stays in the engine's output."""

    fabric: Fabric
    number = 0
    closing: str | None = None

    def _on_wake(self) -> None:
        super()._on_wake()  # type: ignore[misc]
        self.look()

    def _on_timer(self) -> None:
        super()._on_timer()  # type: ignore[misc]
        self.look()

    def look(self) -> None:
        """Closes the connection where the engine says so, as a link with a socket does in `flush`."""
        if self.engine.fatal and self.closing is None:
            self.fabric.closes(self, f"{self.engine.fatal} {self.engine.fatal_reason}")

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._run_batch()  # type: ignore[attr-defined]
        self.fabric.closes(self, f"{code} {reason}")

    def abort(self) -> None:
        self.fabric.closes(self, "aborted")

    def detach(self) -> None:
        self.fabric.closes(self, "detached")


class _Listening:
    """In place of `Gate` and `asyncio.Server`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.sockets = [self]

    async def listen(self, *_: Any, **__: Any) -> _Listening:
        return self

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8443)

    def close(self) -> None:
        pass

    async def start_serving(self) -> None:
        pass

    def abort_clients(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


class _Request:
    """A handshake."""

    def __init__(self, token: str | None, query: str) -> None:
        self.path = f"/packetflow/v1{query}".encode()
        self.method = b"GET"
        self.version = b"HTTP/1.1"
        self.headers: CIMultiDict[str] = CIMultiDict(
            {
                "Host": "127.0.0.1:8443",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }
        )
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"


TOKENS = {name: f"{name}-" + "0123456789abcdef" * 3 for name in ("alice", "bob", "carol")}
USER = Role("user", submit=("*:*",), handle=("*:*",))
ADMIN = Role("admin", submit=("*:*",), handle=("*:*",), replace=("*:*",), admin=True)
NARROW = Role("narrow", submit=("df:*", "ed:*"), handle=("df:work",))


def identity(name: str, role: str, rate: float = 0) -> Identity:
    return Identity(name, role, tokens=(hash_token(TOKENS[name]),), rate=rate)


ACCESS = [
    Access.of([USER, ADMIN], [identity("alice", "user", 200), identity("bob", "admin")], anonymous=ANONYMOUS),
    Access.of([USER, ADMIN], [identity("carol", "user"), identity("bob", "admin")], anonymous=ANONYMOUS),
    Access.of([NARROW, ADMIN], [identity("alice", "narrow", 2), identity("bob", "narrow")], anonymous=ANONYMOUS),
    Access.of([USER, ADMIN], [identity("alice", "admin"), identity("carol", "user", 1)], anonymous=None),
]
"""What a reload may bring; the first is what the gateway starts with."""


class _Failures(logging.Handler):
    """Notes what is logged as an error, but for handlers that are there to fail."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        if "failures of handlers" in record.msg or "the handler for" in record.msg:
            return
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self.failures.append(f"logged: {text}")


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole unmasked frames as (opcode, payload); much quicker than `packetflow.conformance.wire.split`."""
    at = 0
    while at < len(data):
        opcode, length = data[at] & 15, data[at + 1]
        at += 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield opcode, data[at : at + length]
        at += length


def _anonymous(message: dict[str, Any]) -> str:
    """A message without what is drawn at random."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "uuid", json.dumps(message))


class Fabric:
    """A gateway in simulated time and the links to it. `failures`: what went wrong, in words."""

    def __init__(self, **settings: Any) -> None:
        self.failures: list[str] = []
        self.links: dict[int, SimulatedLink] = {}
        self.stalled: set[int] = set()
        self.count = 0
        self.work: dict[int, list[dict[str, Any]]] = {}
        self.answers: dict[int, dict[int, int]] = {}
        self.said: dict[int, dict[int, int]] = {}
        self.begun: dict[str, set[str]] = {}
        """Ids of packets: where each has begun, and not been refused."""
        self.ids: dict[str, int] = {}
        self.refused: dict[int, set[int]] = {}
        self.seen: list[Any] = []
        self.heard: list[str] | None = None
        self.everyones: list[Any] = []
        self.before: dict[Engine, tuple[int, int, int, bool]] = {}
        self.loop = SimulatedLoop()
        self.loop.set_exception_handler(self._on_exception)
        self._log = _Failures(self.failures)
        self._logger = logging.getLogger("packetflow")
        self._unraisable = sys.unraisablehook
        self.gateway = Gateway(access=ACCESS[0], **settings)
        self.gateway.switch.leave_at_once = 2  # so that links take several goes to end

    def __enter__(self) -> Fabric:
        self._patches = [
            mock.patch.object(admission, "Gate", _Listening),
            mock.patch.object(admission, "Link", SimulatedLink),
            mock.patch("packetflow.gateway.listener._lengthen"),
        ]
        for patch in self._patches:
            patch.start()
        self._logger.addHandler(self._log)
        self._propagates, self._logger.propagate = self._logger.propagate, False
        sys.unraisablehook = self._on_unraisable
        self.do(self.loop.create_task, self.gateway.start())
        return self

    def __exit__(self, *_: Any) -> None:
        sys.unraisablehook = self._unraisable
        self._logger.removeHandler(self._log)
        self._logger.propagate = self._propagates
        for patch in self._patches:
            patch.stop()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        with suppress(BaseException):
            self.loop.settle()
        self.loop.close()
        for link in self.links.values():
            del link.fabric
        self.links.clear()

    # -- what must not happen

    def _on_exception(self, loop: Any, context: dict[str, Any]) -> None:
        self.failures.append(f"the loop's exception handler: {context.get('message')}: {context.get('exception')!r}")

    def _on_unraisable(self, unraisable: Any) -> None:
        self.failures.append(f"unraisable in {unraisable.object!r}: {unraisable.exc_value!r}")

    @property
    def engines(self) -> list[Engine]:
        """The near sides of the gateway's loopbacks."""
        return [way.loopback.engine for way in self.gateway.view.inside.ways.values()]

    @property
    def accounts(self) -> list[Any]:
        """Of the principals, and of all links that there ever were."""
        gateway = self.gateway
        known = gateway.view.principals
        everyone = [known.anonymous, *known.named.values(), gateway.view.inside.gateway]
        return [*self.everyones, *(one.account for one in everyone if one.account is not None)]

    def check(self, *, at_rest: bool = False) -> list[str]:
        """Everything that is wrong so far."""
        wrong = list(self.failures)
        wrong += audit(
            self.gateway.switch,
            engines=self.engines,
            tasks=asyncio.all_tasks(self.loop),
            accounts=self.accounts,
            at_rest=at_rest,
        )
        for name, peer in self.gateway.reactors.items():
            if peer.member.engine not in self.gateway.view.links:
                wrong.append(f"the reactor {name!r} is listed, and its link has gone")
        now = in_flight(self.gateway.switch)
        for engine, (routed, direct, window, bounds_direct) in now.items():
            routed_before, direct_before, allowed, _ = self.before.get(engine, (0, 0, 256, False))
            count, earlier = routed, routed_before
            if bounds_direct:
                count, earlier = routed + direct, routed_before + direct_before
            if count > max(window, allowed) and count > earlier:
                wrong.append(f"window: {count} packets are at a link with a window of {window}, {earlier} were before")
        self.before = now
        for number, answers in self.answers.items():
            for seq, times in answers.items():
                if times > max(1, self.said[number].get(seq, 0)):
                    wrong.append(f"link {number}: the submit {seq} was answered {times} times")
        return wrong

    # -- steps

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function inside the loop, as the transport's callbacks are, and runs what follows from it."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append(function(*arguments))
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it should not have come out
                self.failures.append(f"{getattr(function, '__name__', function)} raised {error!r}")

        self.loop.call_soon(run, context=contextvars.Context())
        self.settle()
        return outcome[0] if outcome else None

    def settle(self) -> None:
        while True:
            self.loop.settle()
            self.collect()
            for link in self.links.values():
                link.look()
            if not any(link.closing for link in self.links.values()):
                return

    def join(self, name: str | None = None, handles: str | None = None) -> int | None:
        """A link of a principal; its number, None if it was refused."""
        return self.do(self._join, name, handles)  # type: ignore[no-any-return]

    def _join(self, name: str | None, handles: str | None) -> int | None:
        request = _Request(TOKENS[name] if name is not None else None, f"?handles={handles}" if handles else "")
        made = self.gateway.view.admission.admit(request, "127.0.0.1", None)
        link = getattr(getattr(made, "listener", None), "link", None)
        if link is None:
            return None
        self.count += 1
        number = self.count
        link.fabric = self
        link.number = number
        self.links[number] = link
        self.work[number], self.answers[number], self.said[number], self.refused[number] = [], {}, {}, set()
        self.everyones.append(link.engine.member.account)
        link.engine.connected(clock.now())
        self.gateway.view.links.opened(link)
        link._run_batch()
        return number

    def closes(self, link: SimulatedLink, reason: str) -> None:
        """The gateway closes a connection: a moment later it has gone."""
        if link.closing is None:
            link.closing = reason
            self.loop.call_soon(self._lose, link)

    def leave(self, number: int) -> None:
        """A connection is lost."""
        self.do(self._lose, self.links[number])

    def _lose(self, link: SimulatedLink) -> None:
        if self.links.pop(link.number, None) is None:
            return
        self.stalled.discard(link.number)
        link.lost(None)

    def say(self, number: int, *payloads: bytes) -> None:
        """A link sends messages, which arrive together."""
        self.do(self._say, self.links[number], payloads)

    def _say(self, link: SimulatedLink, payloads: tuple[bytes, ...]) -> None:
        for packet_id in re.findall(r'"id":"([^"]*)"', b"".join(payloads).decode("utf-8", "replace")):
            self.ids[packet_id] = self.ids.get(packet_id, 0) + 1
        for seq in re.findall(rb'"seq":(\d{1,16})', b"".join(payloads)):
            said = self.said[link.number]
            said[int(seq)] = said.get(int(seq), 0) + 1
        if link.closing is None and link.engine.state_name == "open":
            deliver(link.engine, payloads, clock.now())
        if link.engine.state_name == "open":
            link._run_batch()  # type: ignore[attr-defined]

    def stall(self, number: int, stalled: bool) -> None:
        """A link's peer reads no more, or again."""
        link = self.links[number]
        if stalled:
            self.stalled.add(number)
            pause(link.engine, True)
        else:
            self.stalled.discard(number)
            self.do(link.go_on)

    def collect(self) -> None:
        """Takes what the links that read have been told."""
        for number, link in self.links.items():
            if number in self.stalled:
                continue
            for opcode, payload in _frames(take_output(link.engine)):
                if opcode == 1:
                    self.hear(number, json.loads(payload))

    def hear(self, number: int, message: dict[str, Any]) -> None:
        """A link was told something."""
        kind, payload, seq = message["type"], message["payload"], message["seq"]
        if self.heard is not None:
            self.heard.append(f"{clock.now()} {number} {_anonymous(message)}")
        if kind == "submit":
            self.begun.setdefault(payload["id"], set()).add(f"link {number}")
            self.work[number].append(message)
        elif kind == "result":
            answers = self.answers[number]
            answers[seq] = answers.get(seq, 0) + 1
            packet_id = payload["packet_id"]
            code = (payload.get("error") or {}).get("code")
            if code in ("PF429", "PF503") and self.begun.get(packet_id) and self.ids.get(packet_id, 0) <= 1:
                self.failures.append(
                    f"{code} says that {packet_id} never ran, it began: {sorted(self.begun[packet_id])}; {payload['error']}"
                )
            if isinstance(payload.get("data"), dict):
                self.seen.append(payload["data"])
                del self.seen[:-16]
        elif kind == "error":
            if payload.get("code") == "PF499":
                self.work[number] = [one for one in self.work[number] if one["seq"] != seq]
            else:
                self.refused[number].add(seq)

    def pass_time(self, seconds: float, looks: int = 60) -> None:
        """Time passes, timer by timer (the first `looks` of them); peers that are not stalled show signs of life."""
        end = clock.now() + int(seconds * SECOND)
        while clock.now() < end:
            due = self.loop.next_timer()
            at = min(end, clock.now() + 10 * SECOND)
            if looks > 0 and due is not None:
                at = min(at, max(clock.now() + 1, int(due * 1e9) + 1))
                looks -= 1
            clock.simulate(at, STRIDE)
            for number, link in list(self.links.items()):
                if number not in self.stalled:
                    link.engine.heard(at)
            self.settle()

    def reload(self, which: int) -> None:
        """Other roles and principals."""
        self.do(self.gateway.set_access, ACCESS[which % len(ACCESS)])

    def begin_stop(self) -> Any:
        """The gateway begins to stop; `finish_stop` the task."""
        return self.do(self.loop.create_task, self.gateway.stop(grace=4.0))

    def finish_stop(self, task: Any) -> None:
        """Until it has stopped."""
        for _ in range(50):
            if task.done():
                break
            self.pass_time(1)
        else:
            self.failures.append("the gateway does not stop")
            return
        if task.exception() is not None:
            self.failures.append(f"stop raised {task.exception()!r}")
