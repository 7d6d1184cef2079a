"""Many connected reactors: memory, and what routing costs among them: ``python -m benchmarks.connections``.

A gateway in a process of its own; thousands of reactors, ten announced
handlers each, in one other process; a client that calls ten of the reactors.
With ``--shared`` all announce the same element, and every packet goes to one
of thousands of sockets: then each costs a write of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.memory import resident_kib
from benchmarks.peers.__main__ import free_port
from packetflow import Gateway, Reactor, run

HANDLERS = 10


async def serve(port: int) -> None:
    """Answers each line on standard input with a line of JSON: connections, KiB, packets in time."""
    gateway = Gateway(f"ws://127.0.0.1:{port}/packetflow/v1", max_connections=100_000)
    async with gateway:
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            gc.collect()
            print(json.dumps([gateway.connections, resident_kib(), len(gateway.switch.elements)]), flush=True)


async def hold(port: int, count: int, handlers: int, shared: int) -> None:
    """Connects `count` reactors, says so, and handles until killed."""
    reactors = []
    for number in range(count):
        reactor = Reactor(f"ws://127.0.0.1:{port}/packetflow/v1", name=f"r{number}")
        for place in range(handlers):
            reactor.register("df", f"work{place}" if shared else f"r{number}.work{place}", lambda data: data)
        reactors.append(reactor)
    for start in range(0, count, 100):
        await asyncio.gather(*(reactor.start() for reactor in reactors[start : start + 100]))
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(sum(reactor.connected for reactor in reactors), flush=True)


class Process:
    """One of the above, asked by lines."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.connections", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == "ready"

    def ask(self) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def cpu(self) -> float:
        with open(f"/proc/{self.process.pid}/schedstat") as file:
            return int(file.read().split()[0]) / 1e9

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


async def load(port: int, seconds: float, shared: bool) -> float:
    async with Reactor(f"ws://127.0.0.1:{port}/packetflow/v1") as client:
        done = 0
        ends = time.perf_counter() + seconds

        async def worker(element: str) -> None:
            nonlocal done
            while time.perf_counter() < ends:
                await client.call("df", element, "hello world")
                done += 1

        elements = ["work0"] if shared else [f"r{number}.work0" for number in range(10)]
        await asyncio.gather(*(worker(elements[lane % len(elements)]) for lane in range(256)))
    return done


def measure(count: int, seconds: float, settle: float, shared: bool) -> dict[str, float]:
    port = free_port()
    gateway = Process("--serve", str(port))
    holder = None
    try:
        before = gateway.ask()
        began = time.perf_counter()
        holder = Process("--hold", str(port), str(count), str(HANDLERS), str(int(shared)))
        took = time.perf_counter() - began
        after = gateway.ask()
        run(load(port, 0.5, shared))
        cpu = gateway.cpu()
        requests = run(load(port, seconds, shared))
        cost = (gateway.cpu() - cpu) / requests
        if settle:
            time.sleep(settle)
        return {
            "connections": after[0], "connect_s": took, "kib_each": (after[1] - before[1]) / count,
            "rate": requests / seconds, "gateway_us": 1e6 * cost, "still_connected": holder.ask(),
        }  # fmt: skip
    finally:
        gateway.kill()
        if holder is not None:
            holder.kill()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connections", description=__doc__)
    parser.add_argument("--reactors", default="10,5000")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--idle", type=int, default=0, help="also hold this many idle connections")
    parser.add_argument("--settle", type=float, default=70, help="seconds for which they are held")
    parser.add_argument("--shared", action="store_true", help="all announce the same element")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hold", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        run(serve(options.serve))
        return
    if options.hold:
        run(hold(*map(int, options.hold)))
        return
    figures = {}
    for count in map(int, options.reactors.split(",")):
        figures[count] = measure(count, options.seconds, 0, options.shared)
        row = figures[count]
        print(
            f"{count:6,} reactors, {HANDLERS} handlers each: {row['kib_each']:6.1f} KiB each, connected in "
            f"{row['connect_s']:.1f} s; {row['rate']:,.0f} routed/s at {row['gateway_us']:.2f} µs of gateway CPU"
        )
    if len(figures) > 1:
        few, many = min(figures), max(figures)
        print(f"gateway CPU per packet, {many:,} / {few:,}: "
              f"{figures[many]['gateway_us'] / figures[few]['gateway_us']:.2f} (wanted: 1.10)")  # fmt: skip
    if options.idle:
        row = measure(options.idle, 0.5, options.settle, options.shared)
        print(f"{options.idle:,} connections held for {options.settle:g} s: {row['still_connected']:,.0f} still "
              f"connected, {row['kib_each']:.1f} KiB each")  # fmt: skip


if __name__ == "__main__":
    main()
