"""Faults under load, and what they cost: ``python -m benchmarks.chaos --faults 200``.

A gateway, workers and extra clients in processes of their own; three clients
here keep thousands of packets under way, half of them with ``retry``. Faults
come one after another in random order. In the end every submit must have ended
once and in time, those with ``retry`` in success, and no packet without it may
have been handled twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import free_port
from packetflow import Gateway, Packet, PacketFlowError, Reactor, run

HEARTBEAT, SILENCE = 1.0, 1.0
TIMEOUT_MS = 15_000
ALLOWED = {"PF001", "PF408", "PF429", "PF502", "PF503"}
"""What a packet without retry may end in while things break; PF001 while a gateway that came back knows nobody yet."""


async def serve_gateway(port: int) -> None:
    gateway = Gateway(
        f"ws://127.0.0.1:{port}/packetflow/v1", heartbeat=HEARTBEAT, silence=SILENCE, handshake_timeout=2.0
    )
    await gateway.serve_forever()


async def serve_worker(port: int, log: str, heartbeat: float = HEARTBEAT, silence: float = SILENCE) -> None:
    """Handles df:work, and notes the id of every packet that it ran."""
    worker = Reactor(
        f"ws://127.0.0.1:{port}/packetflow/v1", name=f"w{os.getpid()}", heartbeat=heartbeat, silence=silence
    )
    # unbuffered: a killed process must not take its notes with it
    with open(log, "ab", buffering=0) as notes:  # noqa: ASYNC230 - notes of 1 KiB
        pending: list[bytes] = []

        @worker.register("df", "work")
        async def work(data: Any, packet: Packet) -> Any:
            pending.append(uuid.UUID(packet.id).bytes)
            if len(pending) >= 64:
                notes.write(b"".join(pending))
                pending.clear()
            if data % 16 == 0:
                await asyncio.sleep(0.001)
            return data

        while True:
            try:
                await worker.start()
                break
            except PacketFlowError:
                await asyncio.sleep(0.1)
        while True:
            await asyncio.sleep(0.05)
            if pending:
                notes.write(b"".join(pending))
                pending.clear()


async def run_client(port: int) -> None:
    """An extra client, to be killed."""
    async with Reactor(f"ws://127.0.0.1:{port}/packetflow/v1") as client:
        while True:
            await asyncio.gather(*(client.call("df", "work", 1) for _ in range(64)), return_exceptions=True)


@dataclass
class Proxy:
    """Forwards to the gateway; `cut` makes it a network that delivers nothing."""

    port: int
    target: int
    cut: bool = False
    server: Any = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not self.cut:
                    sink.write(data)
                    await sink.drain()
        sink.transport.abort()

    async def stop(self) -> None:
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Chaos:
    """The load, the faults and the books."""

    def __init__(self, *, workers: int = 2, clients: int = 3, outstanding: int = 256, burst: int = 1000,
                 seed: int | None = None) -> None:  # fmt: skip
        self.port = free_port()
        self.directory = tempfile.TemporaryDirectory()
        self.random = random.Random(seed)
        self.wanted_workers, self.clients, self.outstanding, self.burst = workers, clients, outstanding, burst
        self.gateway: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.proxy = Proxy(free_port(), self.port)
        self.codes: Counter[str] = Counter()
        self.late: list[float] = []
        self.unsafe_failures: Counter[str] = Counter()
        self.retry_failures: list[str] = []
        self.done = 0
        self.slowest = 0.0
        self.running = True
        self.once: set[bytes] = set()
        self.log_number = 0

    # -- processes

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos", *arguments],
            stderr=None if os.environ.get("CHAOS_LOG") else subprocess.DEVNULL,
        )

    async def start_gateway(self) -> None:
        self.gateway = self._spawn("--gateway", str(self.port))
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.02)

    def start_worker(self, port: int | None = None) -> None:
        self.log_number += 1
        log = str(Path(self.directory.name) / f"{self.log_number}.ids")
        self.workers.append(self._spawn("--worker", str(port or self.port), log))

    # -- load

    async def _submit(self, client: Reactor, number: int) -> None:
        retry = number % 2 == 0
        packet_id = uuid.UUID(int=self.random.getrandbits(128))
        packet = Packet("df", "work", number, id=packet_id.hex, timeout_ms=TIMEOUT_MS, priority=1 + number % 10)
        if not retry:
            self.once.add(packet_id.bytes)
        began = time.monotonic()
        try:
            result = await client.submit(packet, retry=100 if retry else 0)
            code = "success" if result.ok else result.error["code"]
            assert not result.ok or result.data == number
        except PacketFlowError as error:
            code = error.code
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if took > TIMEOUT_MS / 1000 + 1.0:
            self.late.append(took)
        self.done += 1
        self.codes[code] += 1
        if retry and code != "success":
            self.retry_failures.append(code)
        elif not retry and code != "success":
            self.unsafe_failures[code] += 1

    async def _load(self, client: Reactor, start: int) -> None:
        number = start
        while self.running:
            await self._submit(client, number)
            number += 1

    # -- faults

    async def kill_worker(self) -> None:
        victim = self.workers.pop(self.random.randrange(len(self.workers)))
        victim.kill()
        victim.wait()
        self.start_worker()

    async def stop_worker(self) -> None:
        victim = self.random.choice(self.workers)
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * SILENCE + 0.5)
        victim.send_signal(signal.SIGCONT)

    async def kill_gateway(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()
        await self.start_gateway()

    async def kill_client(self) -> None:
        client = self._spawn("--client", str(self.port))
        await asyncio.sleep(0.8)
        client.kill()
        client.wait()

    async def partition(self) -> None:
        self.proxy.cut = True
        await asyncio.sleep(2 * SILENCE + 0.5)
        self.proxy.cut = False

    async def _raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            b"GET /packetflow/v1?handles= HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def slow_reader(self) -> None:
        """Asks for much, and reads nothing."""
        _, writer = await self._raw()
        with contextlib.suppress(OSError):
            for number in range(2000):
                packet = {"version": "1.0", "id": uuid.uuid4().hex, "group": "df", "element": "none",
                          "data": number, "priority": 5}  # fmt: skip
                body = json.dumps({"type": "submit", "seq": number + 1, "payload": packet}).encode()
                writer.write(b"\x81\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body)
                if number % 100 == 0:
                    await asyncio.wait_for(writer.drain(), 1)
        await asyncio.sleep(0.2)
        writer.transport.abort()

    async def garbage(self) -> None:
        _, writer = await self._raw()
        with contextlib.suppress(OSError, TimeoutError):
            for _ in range(200):
                writer.write(self.random.randbytes(4096))
            await asyncio.wait_for(writer.drain(), 1)
        writer.transport.abort()

    async def oversize(self) -> None:
        _, writer = await self._raw()
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + bytes(1 << 20))
            await asyncio.wait_for(writer.drain(), 1)
        writer.transport.abort()

    async def many_connections(self) -> None:
        opened = await asyncio.gather(*(self._raw() for _ in range(self.burst)), return_exceptions=True)
        for pair in opened:
            if not isinstance(pair, BaseException):
                pair[1].transport.abort()

    # -- all together

    @property
    def faults(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "worker killed": self.kill_worker,
            "worker stopped": self.stop_worker,
            "gateway killed": self.kill_gateway,
            "client killed": self.kill_client,
            "partition": self.partition,
            "slow reader": self.slow_reader,
            "garbage flood": self.garbage,
            "oversize flood": self.oversize,
            f"{self.burst} connections": self.many_connections,
        }

    async def run(self, count: int, only: tuple[str, ...] = (), say: Callable[[str], object] = print) -> None:
        await self.start_gateway()
        await self.proxy.start()
        for _ in range(self.wanted_workers):
            self.start_worker()
        self.start_worker(self.proxy.port)
        clients = [
            Reactor(f"ws://127.0.0.1:{self.port}/packetflow/v1", heartbeat=HEARTBEAT, silence=SILENCE)
            for _ in range(self.clients)
        ]
        for client in clients:
            await client.start()
        try:
            while not (await clients[0].submit({"group": "df", "element": "work", "data": 1})).ok:
                await asyncio.sleep(0.05)
            began = time.monotonic()
            loads = [
                asyncio.create_task(self._load(client, 1_000_000_000 * (place * self.outstanding + lane)))
                for place, client in enumerate(clients)
                for lane in range(self.outstanding)
            ]
            faults = {name: fault for name, fault in self.faults.items() if not only or name in only}
            names = list(faults)
            for number in range(count):
                name = names[number] if number < len(names) else self.random.choice(names)
                before, started = self.done, time.monotonic()
                await faults[name]()
                await asyncio.sleep(0.1)
                say(f"{number + 1:4} {name:20} {(self.done - before) / (time.monotonic() - started):9,.0f}/s meanwhile")
            self.running = False
            await asyncio.wait_for(asyncio.gather(*loads), TIMEOUT_MS / 1000 + 5)
            self.seconds = time.monotonic() - began
        finally:
            for client in clients:
                await client.stop(0)
            await self.proxy.stop()
            for process in [*self.workers, self.gateway]:
                if process is not None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                    process.wait()

    def handled_twice(self) -> int:
        """Packets without retry that were handled more than once."""
        seen: Counter[bytes] = Counter()
        for log in Path(self.directory.name).glob("*.ids"):
            notes = log.read_bytes()
            seen.update(notes[at : at + 16] for at in range(0, len(notes) - 15, 16))
        return sum(1 for packet_id, times in seen.items() if times > 1 and packet_id in self.once)

    def report(self) -> dict[str, Any]:
        return {
            "submits": self.done,
            "per_second": round(self.done / self.seconds),
            "codes": dict(self.codes),
            "slowest_s": round(self.slowest, 3),
            "after_deadline_plus_1_s": len(self.late),
            "retry_failed": len(self.retry_failures),
            "retry_failed_codes": dict(Counter(self.retry_failures)),
            "unexpected_codes": {code: n for code, n in self.unsafe_failures.items() if code not in ALLOWED},
            "handled_twice_without_retry": self.handled_twice(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--only", default="", help="names of faults, comma-separated")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--outstanding", type=int, default=256, help="packets under way for each of three clients")
    parser.add_argument("--gateway", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--frozen-worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        if options.gateway:
            run(serve_gateway(options.gateway))
            return
        if options.worker:
            run(serve_worker(int(options.worker[0]), options.worker[1]))
            return
        if options.frozen_worker:
            run(serve_worker(int(options.frozen_worker[0]), options.frozen_worker[1], 30.0, 20.0))
            return
        if options.client:
            run(run_client(options.client))
            return
    chaos = Chaos(seed=options.seed, outstanding=options.outstanding)
    run(chaos.run(options.faults, tuple(part for part in options.only.split(",") if part)))
    report = chaos.report()
    print(json.dumps(report, indent=1))
    bad = ("after_deadline_plus_1_s", "retry_failed", "unexpected_codes", "handled_twice_without_retry")
    sys.exit(1 if any(report[name] for name in bad) else 0)


if __name__ == "__main__":
    main()
