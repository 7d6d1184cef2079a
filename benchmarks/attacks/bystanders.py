"""The gateway's own handlers, a worker, and a victim who keeps every rule.

``python -m benchmarks.attacks.bystanders worker|victim PORT [TOKEN]``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from benchmarks.routed import quantile
from packetflow import Gateway, PacketFlowError, Reactor, run

RATE = 20_000
"""Packets a second of the victim."""

TIMEOUT_MS = 10_000
WARM = 110_000
"""Packets before all: what a gateway remembers of him is full by then, and grows no more."""

MOST_OUTSTANDING = 100_000


def setup(gateway: Gateway) -> None:
    """Registers what victim and strangers submit to the gateway itself."""
    big = "x" * 900_000

    async def slow(data: Any) -> Any:
        await asyncio.sleep(0.05)
        return data

    async def hold(data: Any) -> Any:
        return await asyncio.get_running_loop().create_future()

    gateway.register("df", "local", lambda data: data)
    gateway.register("df", "echo", lambda data: data)
    gateway.register("df", "big", lambda data: big)
    gateway.register("df", "slow", slow)
    gateway.register("df", "hold", hold)
    gateway.register("ed", "own", lambda data: data)
    gateway.register("cf", "own", slow)
    gateway.register("rm", "own", slow)


async def connected(reactor: Reactor) -> None:
    while True:
        try:
            return await reactor.start()
        except PacketFlowError:
            await asyncio.sleep(0.02)


async def serve_worker(port: int, token: str | None) -> None:
    worker = Reactor(f"ws://127.0.0.1:{port}/packetflow/v1", name="worker", token=token)
    worker.register("df", "work", lambda data: data)
    await connected(worker)
    await asyncio.get_running_loop().create_future()


class Victim:
    """Packets at an even pace, each with its latency; a line on standard input asks for what came of them."""

    def __init__(self, port: int) -> None:
        self.reactor = Reactor(f"ws://127.0.0.1:{port}/packetflow/v1", name="victim")
        self.reactor.register("ed", "heard", self._hear)
        self.latencies: list[float] = []
        self.failures: Counter[str] = Counter()
        self.outstanding: dict[int, float] = {}
        self.sent = 0
        self.expected: dict[int, asyncio.Future[None]] = {}

    def _hear(self, data: Any) -> None:
        waiter = self.expected.get(data)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _submit(self, number: int) -> None:
        began = time.perf_counter()

        def ended(reply: Any) -> None:
            self.latencies.append(time.perf_counter() - began)
            self.outstanding.pop(number, None)
            error = reply.exception()
            if error is not None:
                self.failures[f"{element}: {getattr(error, 'code', error)}"] += 1
            elif reply.result() != number:
                self.failures[f"{element}: another's answer"] += 1

        element = "work" if number & 1 else "local"
        try:
            reply = self.reactor.call("df", element, number, timeout_ms=TIMEOUT_MS)
        except PacketFlowError as error:
            self.failures[f"{element}: {error.code} at once"] += 1
            return
        self.outstanding[number] = began
        reply.add_done_callback(ended)

    async def pace(self) -> None:
        began, done = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - began) * RATE) - done
            done += due  # what could not be sent in its time, for want of CPU here, is left out
            if len(self.outstanding) < MOST_OUTSTANDING:
                for _ in range(min(due, 400)):
                    self.sent += 1
                    self._submit(self.sent)
            await asyncio.sleep(0.001)

    async def _heard(self, number: int) -> None:
        waiter = self.expected[number] = asyncio.get_running_loop().create_future()
        try:
            await self.reactor.call("ed", "signal", {"event": "victim.tick", "payload": number}, timeout_ms=TIMEOUT_MS)
            await asyncio.wait_for(waiter, TIMEOUT_MS / 1000)
        finally:
            del self.expected[number]

    async def elements(self) -> None:
        """A lock, a workflow, a signal that he hears, a sum: one after another, twenty rounds a second at most."""
        call = self.reactor.call
        await call("ed", "react", {"event": "victim.*", "packet": {"group": "ed", "element": "heard",
                                                                   "data": {"$": "event.payload"}}})  # fmt: skip
        steps = [{"group": "df", "element": "work", "data": {"$": "input"}},
                 {"group": "df", "element": "local", "data": {"$": "prev"}}]  # fmt: skip

        async def lock(number: int) -> None:
            lease = await call("rm", "lock", {"key": "victim", "wait_ms": TIMEOUT_MS}, timeout_ms=TIMEOUT_MS)
            freed = await call("rm", "free", {"lease": lease["lease"]}, timeout_ms=TIMEOUT_MS)
            assert freed == {"freed": True}, f"the lock was lost: {freed}"

        async def workflow(number: int) -> None:
            same = await call("cf", "seq", {"input": number, "steps": steps}, timeout_ms=TIMEOUT_MS)
            assert same == number, "another's answer"

        async def total(number: int) -> None:
            summed = {"input": [number, 2, 3], "op": "sum"}
            assert await call("df", "reduce", summed, timeout_ms=TIMEOUT_MS) == number + 5, "another's answer"

        number = 0
        while True:
            for part in (lock, workflow, self._heard, total):
                number += 1
                began = self.outstanding[-number] = time.perf_counter()
                try:
                    await part(number)
                except PacketFlowError as error:
                    self.failures[f"{part.__name__.strip('_')}: {error.code} {str(error)[:60]}"] += 1
                except (AssertionError, TimeoutError) as error:
                    self.failures[f"{part.__name__.strip('_')}: {str(error)[:60] or 'never heard'}"] += 1
                del self.outstanding[-number]
                self.latencies.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    def report(self) -> dict[str, Any]:
        """Since the last report; what is still under way counts with its age."""
        now = time.perf_counter()
        latencies = self.latencies + [now - began for began in self.outstanding.values()]
        failures = dict(self.failures)
        self.latencies = []
        self.failures.clear()
        return {"packets": len(latencies), "p99": quantile(latencies, 0.99) if latencies else 0.0,
                "slowest": max(latencies, default=0.0), "failures": failures}  # fmt: skip

    async def warm(self) -> None:
        while True:  # until the worker is there
            try:
                await self.reactor.call("df", "work", 0)
                break
            except PacketFlowError:
                await asyncio.sleep(0.02)
        for element in ("work", "local"):
            async for _ in self.reactor.map("df", element, range(WARM // 2), window=1024):
                pass

    async def serve(self) -> None:
        await connected(self.reactor)
        await self.warm()
        loop = asyncio.get_running_loop()
        parts = [loop.create_task(self.pace()), loop.create_task(self.elements())]
        asked: asyncio.Queue[str] = asyncio.Queue()
        loop.add_reader(0, lambda: asked.put_nowait(sys.stdin.readline()))
        print("ready", flush=True)
        while await asked.get():
            for part in parts:
                if part.done():
                    part.result()
            print(json.dumps(self.report()), flush=True)


def main() -> None:
    role, port, *token = sys.argv[1:]
    if role == "worker":
        run(serve_worker(int(port), token[0] if token else None))
    else:
        run(Victim(int(port)).serve())


if __name__ == "__main__":
    main()
