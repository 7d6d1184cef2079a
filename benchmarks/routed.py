"""Client, gateway and worker in three processes, beside NATS and a Node relay: ``python -m benchmarks.routed``.

Requests per second that the client saw answered, and the CPU of the process in
the middle per request. With ``--latency``: what events cost while df saturates
the worker, and who leaves a queue of 10,000 first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import Workshop, free_port, wait_for
from benchmarks.workload import PAYLOADS, work
from packetflow import Gateway, Reactor, run

ENTRANTS = ("packetflow call", "packetflow map", "nats-py + nats-server", "Node ws relay")


async def serve_gateway(port: int) -> None:
    await Gateway(f"ws://127.0.0.1:{port}/packetflow/v1").serve_forever()


async def serve_worker(port: int) -> None:
    worker = Reactor(f"ws://127.0.0.1:{port}/packetflow/v1", name="worker")

    @worker.register("df", "transform")
    async def transform(data: Any) -> Any:
        return work(data)

    @worker.register("ed", "ping")
    async def ping(data: Any) -> Any:
        return data

    async with worker:
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time of all its threads, exact: ticks miss a process that sleeps and wakes between them."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _mine(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.routed", *arguments]


def start(entrant: str, port: int, workshop: Workshop) -> list[subprocess.Popen[bytes]]:
    """The middle and the worker, in this order, once both are there."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if entrant.startswith("packetflow"):
        middle = subprocess.Popen(_mine("--gateway", str(port)))
        wait_for(port, middle)
        worker = subprocess.Popen(_mine("--worker", str(port)), stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
    elif entrant.startswith("nats"):
        middle = subprocess.Popen([workshop.nats_server, "-a", "127.0.0.1", "-p", str(port)], **quiet)
        wait_for(port, middle)
        worker = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.process", "serve", "nats", str(port), ""])
        time.sleep(1)
    else:
        middle = subprocess.Popen(["node", "relay.mjs", str(port)], cwd=workshop.node)
        wait_for(port, middle)
        worker = subprocess.Popen(["node", "worker.mjs", str(port)], cwd=workshop.node)
        time.sleep(0.7)
    return [middle, worker]


def measure(entrant: str, outstanding: int, seconds: float, workshop: Workshop) -> dict[str, float]:
    port = free_port()
    processes = start(entrant, port, workshop)
    try:
        if entrant.startswith("Node"):
            body = json.dumps(PAYLOADS["hello"])
            load = ["node", str(workshop.node / "client.mjs"), str(port), body, str(outstanding), str(seconds)]
        else:
            peer = "nats" if entrant.startswith("nats") else "packetflow"
            variant = "map" if entrant.endswith("map") else "call"
            load = [sys.executable, "-m", "benchmarks.peers.process", "load", peer, str(port), "hello",
                    str(outstanding), str(seconds), variant]  # fmt: skip
        before = cpu_seconds(processes[0])
        done = subprocess.run(load, capture_output=True, timeout=seconds + 60)
        used = cpu_seconds(processes[0]) - before
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        answer = json.loads(done.stdout.splitlines()[-1])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    warm = 1 + min(0.3, seconds / 4) / seconds  # its share of the middle's CPU
    return {
        "rate": answer["requests"] / answer["seconds"],
        "middle_us": 1e6 * used / warm / answer["requests"],
    }


def quantile(samples: list[float], share: float) -> float:
    samples = sorted(samples)
    return samples[min(len(samples) - 1, int(share * len(samples)))]


async def _latency(port: int, seconds: float) -> dict[str, float]:
    endpoint = f"ws://127.0.0.1:{port}/packetflow/v1"
    async with Reactor(endpoint) as events:

        async def probe() -> list[float]:
            samples = []
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                began = time.perf_counter()
                await events.call("ed", "ping", 1)
                samples.append(time.perf_counter() - began)
                await asyncio.sleep(0.001)
            return samples

        await events.call("ed", "ping", 1)
        idle = await probe()
        # from a process of its own: the prober's loop must not be what is measured
        load = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.peers.process", "load", "packetflow", str(port), "hello", "256",
            str(seconds + 1), "call", stdout=subprocess.PIPE,
        )  # fmt: skip
        await asyncio.sleep(1.2)
        loaded = await probe()
        out, _ = await load.communicate()
        answer = json.loads(out.splitlines()[-1])
        rate = answer["requests"] / answer["seconds"]
    return {
        "idle_p50": quantile(idle, 0.5), "idle_p99": quantile(idle, 0.99),
        "loaded_p50": quantile(loaded, 0.5), "loaded_p99": quantile(loaded, 0.99), "df_rate": rate,
    }  # fmt: skip


async def _priority() -> tuple[int, int]:
    """Behind a worker that takes one at a time: the place of a packet of priority 10 behind 10,000 of priority 1."""
    order: list[int] = []
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        async with Reactor(gateway.endpoint, name="w", window=1) as worker, Reactor(gateway.endpoint) as client:
            gate = asyncio.Event()

            @worker.register("df", "work")
            async def task(data: int) -> None:
                await gate.wait()
                order.append(data)

            while not gateway.switch.reactors_for("df:work"):
                await asyncio.sleep(0.01)
            low = [client.call("df", "work", 1, priority=1) for _ in range(10_000)]
            while gateway.switch.in_flight < 4096:  # the client holds the rest back: its window
                await asyncio.sleep(0.01)
            high = client.call("df", "work", 10, priority=10)
            await asyncio.sleep(0.05)
            gate.set()
            await asyncio.gather(high, *low)
    return order.index(10), len(order)


def latency(seconds: float, workshop: Workshop) -> None:
    port = free_port()
    processes = start("packetflow call", port, workshop)
    try:
        # in a process of its own, as the other loads
        figures = json.loads(
            subprocess.run(_mine("--probe", str(port), str(seconds)), capture_output=True, check=True).stdout
        )
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(
        f"ed idle: p50 {figures['idle_p50'] * 1e6:.0f} µs, p99 {figures['idle_p99'] * 1e6:.0f} µs; while df runs at "
        f"{figures['df_rate']:,.0f}/s: p50 {figures['loaded_p50'] * 1e6:.0f} µs, p99 "
        f"{figures['loaded_p99'] * 1e6:.0f} µs ({figures['loaded_p99'] / figures['idle_p99']:.1f} times; wanted: 5)"
    )
    place, among = run(_priority())
    print(f"priority 10 behind a queue of 10,000 of priority 1 ran as number {place + 1} of {among}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--outstanding", default="1,64,1024")
    parser.add_argument("--latency", action="store_true", help="measure events under load and priorities, too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gateway", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway or options.worker:
        try:
            run(serve_gateway(options.gateway) if options.gateway else serve_worker(options.worker))
        except KeyboardInterrupt:
            pass
        return
    if options.probe:
        print(json.dumps(run(_latency(int(options.probe[0]), float(options.probe[1])))))
        return
    levels = [int(part) for part in options.outstanding.split(",")]
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        workshop = Workshop(Path(directory))
        for _ in range(options.rounds):
            for level in levels:
                for entrant in ENTRANTS:
                    if entrant.endswith("map") and level != max(levels):
                        continue
                    figures = measure(entrant, level, options.seconds, workshop)
                    samples.setdefault((entrant, level), []).append(figures)
                    print(f"{level:5} {entrant:24} {figures['rate']:12,.0f}/s {figures['middle_us']:7.2f} µs",
                          file=sys.stderr)  # fmt: skip
        median = {
            key: {name: statistics.median(one[name] for one in many) for name in many[0]}
            for key, many in samples.items()
        }
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, median of {options.rounds}\n")
        print("| routed requests per second (CPU of the middle per request) | "
              + " | ".join(f"{level:,} outstanding" for level in levels) + " |\n|---|" + "---:|" * len(levels))  # fmt: skip
        for entrant in ENTRANTS:
            cells = [
                f"{median[entrant, level]['rate']:,.0f} ({median[entrant, level]['middle_us']:.2f} µs)"
                if (entrant, level) in median
                else ""
                for level in levels
            ]
            print(f"| {entrant} | " + " | ".join(cells) + " |")
        ours, nats, node = (ENTRANTS[0], ENTRANTS[2], ENTRANTS[3])
        print("\n| target | reached | wanted |\n|---|---:|---:|")
        for level, wanted in ((max(levels), 6), (min(levels), 2)):
            print(f"| call at {level:,} / NATS | {median[ours, level]['rate'] / median[nats, level]['rate']:.1f} | "
                  f"{wanted} |")  # fmt: skip
        top = max(levels)
        print(f"| call at {top:,} / Node relay | {median[ours, top]['rate'] / median[node, top]['rate']:.1f} | 6 |")
        print(f"| NATS's CPU in the middle / ours | "
              f"{median[nats, top]['middle_us'] / median[ours, top]['middle_us']:.1f} | 8 |")  # fmt: skip
        if options.latency:
            print()
            latency(options.seconds, workshop)
        if options.json:
            table = {f"{entrant} {level}": figures for (entrant, level), figures in median.items()}
            options.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
