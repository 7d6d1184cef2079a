"""Single faults, each with its figure: ``python -m benchmarks.faults [stalled,half_open,return,rolling,growth,frozen]``.

And what is no fault, though it may look like one: ``python -m benchmarks.faults busy --seconds 3600``, every core at its
limit, and no peer that lives may be taken for dead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.memory import resident_kib
from benchmarks.peers.__main__ import free_port
from benchmarks.routed import quantile
from packetflow import PacketFlowError, Reactor, run

HANDSHAKE = (
    b"GET /packetflow/v1?handles= HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def endpoint(port: int) -> str:
    return f"ws://127.0.0.1:{port}/packetflow/v1"


@contextlib.asynccontextmanager
async def processes():  # type: ignore[no-untyped-def]
    """A function that starts a process, all of which end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


async def reachable(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        except OSError:
            await asyncio.sleep(0.02)


async def served(client: Reactor, element: str = "transform", data: object = "x") -> None:
    while not (await client.submit({"group": "df", "element": element, "data": data})).ok:
        await asyncio.sleep(0.05)


async def latencies(client: Reactor, seconds: float) -> list[float]:
    samples = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        await client.call("df", "transform", "x")
        samples.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    return samples


async def stalled() -> None:
    """A peer submits a million packets and never reads."""
    async with processes() as start:
        port = free_port()
        gateway = start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        start("benchmarks.routed", "--worker", str(port))
        async with Reactor(endpoint(port)) as client:
            await served(client)
            before = await latencies(client, 3)
            memory = resident_kib(gateway.pid)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            sent = 0

            async def flood() -> None:
                nonlocal sent
                with contextlib.suppress(OSError):
                    while sent < 1_000_000:
                        packet = {"version": "1.0", "id": uuid.uuid4().hex, "group": "df", "element": "transform",
                                  "data": "x" * 200, "priority": 5}  # fmt: skip
                        body = json.dumps({"type": "submit", "seq": sent + 1, "payload": packet}).encode()
                        writer.write(b"\x81\xfe" + len(body).to_bytes(2, "big") + bytes(4) + body)
                        sent += 1
                        if sent % 50 == 0:
                            await writer.drain()

            task = asyncio.create_task(flood())
            most = memory
            during = []
            for _ in range(5):
                during += await latencies(client, 1)
                most = max(most, resident_kib(gateway.pid))
            task.cancel()
            writer.transport.abort()
        print(
            f"stalled reader: {sent:,} packets were taken before it was paused; {(most - memory) / 1024:.1f} MiB more "
            f"in the gateway at most (wanted: 64); others' p99 {quantile(before, 0.99) * 1e6:.0f} µs before, "
            f"{quantile(during, 0.99) * 1e6:.0f} µs meanwhile "
            f"({quantile(during, 0.99) / quantile(before, 0.99):.1f} times; wanted: 2)"
        )


async def half_open() -> None:
    """2,000 connections that never finish their handshake."""
    async with processes() as start:
        port = free_port()
        start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        began = time.perf_counter()
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2000)]
        for _, writer in pairs:
            writer.write(HANDSHAKE[:20])
        good = []
        while len(good) < 200:
            started = time.perf_counter()
            async with Reactor(endpoint(port)):
                good.append(time.perf_counter() - started)
        for reader, writer in pairs:
            with contextlib.suppress(OSError):
                await reader.read()
            writer.transport.abort()
        print(
            f"2,000 half-open handshakes: all reaped after {time.perf_counter() - began:.1f} s (wanted: 10); 200 good "
            f"handshakes meanwhile, p99 {quantile(good, 0.99) * 1e3:.1f} ms (wanted: 250)"
        )


async def return_() -> None:
    """500 clients whose gateway dies and comes back."""
    async with processes() as start:
        port = free_port()
        gateway = start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        reactors = [Reactor(endpoint(port)) for _ in range(500)]
        for reactor in reactors:
            await reactor.start()
        gateway.kill()
        gateway.wait()
        while any(reactor.connected for reactor in reactors):
            await asyncio.sleep(0.01)
        start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        began = time.perf_counter()
        while not all(reactor.connected for reactor in reactors):
            await asyncio.sleep(0.01)
        print(f"500 clients back {time.perf_counter() - began:.2f} s after their gateway (wanted: 10)")
        for reactor in reactors:
            await reactor.stop(0)


async def rolling() -> None:
    """50 rolling restarts of two gateways under load, everything retry-safe."""
    async with processes() as start:
        ports = [free_port(), free_port()]
        gateways = [start("packetflow", "gateway", "--port", str(port)) for port in ports]
        for port in ports:
            await reachable(port)
        both = [endpoint(port) for port in ports]
        workers = [Reactor(both, name=f"w{n}") for n in range(2)]
        for worker in workers:
            worker.register("df", "transform", str.upper)
            await worker.start()
        client = Reactor(both)
        await client.start()
        await served(client)
        done = failed = 0
        slowest = 0.0
        running = True

        async def load() -> None:
            nonlocal done, failed, slowest
            while running:
                began = time.perf_counter()
                try:
                    await client.call("df", "transform", "x", retry=100)
                except PacketFlowError:
                    failed += 1
                slowest = max(slowest, time.perf_counter() - began)
                done += 1

        tasks = [asyncio.create_task(load()) for _ in range(64)]
        for number in range(50):
            turn = number % 2
            gateways[turn].send_signal(signal.SIGTERM)
            while gateways[turn].poll() is None:
                await asyncio.sleep(0.01)
            gateways[turn] = start("packetflow", "gateway", "--port", str(ports[turn]))
            await reachable(ports[turn])
            await asyncio.sleep(0.3)
        running = False
        await asyncio.gather(*tasks)
        print(
            f"50 rolling restarts: {done:,} retry-safe submits, {failed} lost (wanted: 0), the slowest took "
            f"{slowest:.1f} s"
        )
        for reactor in (client, *workers):
            await reactor.stop(0)


async def growth() -> None:
    """Ten million messages: the growth of every process for each."""
    async with processes() as start:
        port = free_port()
        gateway = start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        worker = start("benchmarks.routed", "--worker", str(port))
        async with Reactor(endpoint(port)) as client:
            await served(client)

            async def send(count: int) -> None:
                async for _ in client.map("df", "transform", ("x" for _ in range(count)), window=1024):
                    pass

            await send(2_000_000)
            before = [resident_kib(gateway.pid), resident_kib(worker.pid), resident_kib()]
            await send(5_000_000)  # a submit and a result each, on two links
            after = [resident_kib(gateway.pid), resident_kib(worker.pid), resident_kib()]
        grown = ", ".join(
            f"{name} {(b - a) * 1024 / 10e6:+.3f}"
            for name, a, b in zip(("gateway", "worker", "client"), before, after, strict=True)
        )
        print(f"bytes grown for each of 10 million messages: {grown} (wanted: below 1)")


async def frozen() -> None:
    """A worker stops for good, with the heartbeats of the default."""
    async with processes() as start:
        port = free_port()
        start("benchmarks.routed", "--gateway", str(port))
        await reachable(port)
        with tempfile.TemporaryDirectory() as directory:
            worker = start("benchmarks.chaos", "--frozen-worker", str(port), str(Path(directory) / "ids"))
            async with Reactor(endpoint(port)) as client:
                await served(client, "work", 1)
                await asyncio.sleep(1)
                worker.send_signal(signal.SIGSTOP)
                began = time.perf_counter()
                result = await client.submit({"group": "df", "element": "work", "data": 1, "timeout_ms": 100_000})
                print(
                    f"frozen peer: its packet ended in {result.error['code']} after "
                    f"{time.perf_counter() - began:.1f} s (wanted: 40)"
                )


async def figure(port: int, name: str) -> int:
    """One of a gateway's metrics."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read(-1)).decode()
    writer.close()
    return int(float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} "))))


async def busy(seconds: float = 60.0) -> None:
    """More load than the machine has cores for: a link that is cut then was cut for nothing."""
    async with processes() as start:
        port = free_port()
        gateway = start("packetflow", "gateway", "--port", str(port))
        await reachable(port)
        workers = 2 * (os.cpu_count() or 1)
        for _ in range(workers):
            start("benchmarks.routed", "--worker", str(port))
        clients = [Reactor(endpoint(port), name=f"busy{number}") for number in range(2)]
        for client in clients:
            await client.start()
        await served(clients[0])
        done = 0
        failed: dict[str, int] = {}
        ends = time.monotonic() + seconds

        async def load(client: Reactor) -> None:
            nonlocal done
            while time.monotonic() < ends:
                try:
                    await client.call("df", "transform", "x")
                    done += 1
                except PacketFlowError as error:
                    failed[error.code] = failed.get(error.code, 0) + 1

        async with asyncio.TaskGroup() as group:
            for number in range(512):
                group.create_task(load(clients[number % 2]))
        accepted = await figure(port, "packetflow_accepted_connections_total")
        for client in clients:
            await client.stop(0)
        died = gateway.poll() is not None
        print(
            f"busy: {done:,} packets in {seconds:,.0f} s on {os.cpu_count()} cores through {workers} workers, "
            f"{sum(failed.values())} failed {failed or ''}(wanted: 0); {accepted - workers - 2} of {workers + 2} links "
            f"were cut (wanted: 0){'; the gateway ended' if died else ''}"
        )


FAULTS: dict[str, Callable[[], Awaitable[None]]] = {
    "stalled": stalled, "half_open": half_open, "return": return_, "rolling": rolling, "growth": growth,
    "frozen": frozen,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("faults", nargs="?", default=",".join(FAULTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of `busy` (60)")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in options.faults.split(","):
        run(busy(options.seconds) if name == "busy" else FAULTS[name]())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
