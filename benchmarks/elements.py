"""The standard elements per second, and Redis beside the cache, the lock and the stream in the same run.

    python -m benchmarks.elements [--rounds 3] [--seconds 1.0] [--json FILE]

Client, gateway and worker are three processes over loopback; redis-server (Debian's)
and redis-py with hiredis take the place of the gateway and our client. Each thing is
done again and again by 1 and by 64 tasks of one client on one connection (redis-py: a
pool, as its asyncio client works); the figure is the median over the rounds, in which
ours and Redis take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.__main__ import free_port
from packetflow import Gateway, Reactor, run
from packetflow.elements import seq, step

Doing = Callable[[], Awaitable[Any]]
ROOT = Path(__file__).resolve().parents[1]


async def serve() -> None:
    """The gateway's process."""
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        print(gateway.endpoint, flush=True)
        await asyncio.get_running_loop().create_future()


async def work(endpoint: str) -> None:
    """The worker's process."""
    reactor = Reactor(endpoint, name="worker")
    reactor.register("df", "echo", lambda data: data)
    async with reactor:
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[str]:
    """One of the above; its first line."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.elements", *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@asynccontextmanager
async def redis_server() -> AsyncIterator[Any]:
    """A client of a fresh redis-server that keeps nothing on disk."""
    import redis.asyncio as redis

    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is missing: apt-get install redis-server")
    port = free_port()
    child = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(host="127.0.0.1", port=port)
    try:
        for _ in range(200):
            try:
                await client.ping()
                break
            except (OSError, redis.ConnectionError):
                await asyncio.sleep(0.02)
        yield client
    finally:
        await client.aclose()
        child.kill()
        child.wait()


async def rate(doing: Doing, tasks: int, seconds: float) -> float:
    """How often a second `tasks` of them do it."""
    count = 0
    ends = time.perf_counter() + seconds

    async def lane() -> None:
        nonlocal count
        while time.perf_counter() < ends:
            await doing()
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(tasks)))
    return count / (time.perf_counter() - began)


async def ours(client: Reactor) -> dict[str, Doing]:
    """What we do, by name."""
    numbers = itertools.count()
    ten = seq(*[step("df", "echo", n) for n in range(10)])["data"]
    await client.call("rm", "cache", {"op": "set", "key": "hello", "value": "hello world"})

    async def lock() -> None:
        granted = await client.call("rm", "lock", {"key": f"k{next(numbers) % 1000}", "wait_ms": 5000})
        await client.call("rm", "free", {"lease": granted["lease"]})

    async def stream() -> None:
        # a name for every lane's turn: what is produced is consumed and acknowledged
        name = f"s{next(numbers) % 64}"
        await client.call("df", "produce", {"stream": name, "items": ["hello world"]})
        found = await client.call("df", "consume", {"stream": name, "max": 1, "wait_ms": 5000})
        await client.call("df", "consume", {"stream": name, "max": 0, "ack": [one["id"] for one in found["items"]]})

    async def produce() -> None:
        await client.call("df", "produce", {"stream": f"p{next(numbers) // 50_000}", "items": ["hello world"]})

    return {
        "plain routed packet": lambda: client.call("df", "echo", 1),
        "rm:cache get": lambda: client.call("rm", "cache", {"op": "get", "key": "hello"}),
        "rm:cache set": lambda: client.call("rm", "cache", {"op": "set", "key": "hello", "value": "hello world"}),
        "rm:lock and rm:free": lock,
        "df:produce": produce,
        "df:produce, df:consume, acknowledge": stream,
        "cf:seq of 10 steps": lambda: client.call("cf", "seq", ten),
    }


async def theirs(client: Any) -> dict[str, Doing]:
    """The same with redis-py."""
    numbers = itertools.count()
    await client.set("hello", "hello world")
    for n in range(64):
        await client.xgroup_create(f"s{n}", "default", id="0", mkstream=True)

    async def lock() -> None:
        key = f"k{next(numbers) % 1000}"
        while not await client.set(key, "held", nx=True, px=30_000):
            await asyncio.sleep(0)
        await client.delete(key)

    async def stream() -> None:
        name = f"s{next(numbers) % 64}"
        await client.xadd(name, {"d": "hello world"})
        found = await client.xreadgroup("default", "me", {name: ">"}, count=1)
        for _, items in found:
            await client.xack(name, "default", *(item for item, _ in items))

    return {
        "rm:cache get": lambda: client.get("hello"),
        "rm:cache set": lambda: client.set("hello", "hello world"),
        "rm:lock and rm:free": lock,
        "df:produce": lambda: client.xadd(f"p{next(numbers) // 50_000}", {"d": "hello world"}),
        "df:produce, df:consume, acknowledge": stream,
    }


async def signals(client: Reactor, seconds: float) -> float:
    """Reactions a second: ed:signal to 1,000 of them, one signal after another."""
    for n in range(1000):
        await client.react("bench.signal", step("df", "echo", n), id=f"r{n}")
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += await client.signal("bench.signal", "x")
        # reactions are not waited for: a plain packet behind them is, so that they do not pile up
        await client.call("df", "echo", None, priority=1)
    took = time.perf_counter() - began
    for n in range(1000):
        await client.unreact(f"r{n}")
    return count / took


async def barriers(client: Reactor, seconds: float) -> float:
    """Generations a second of a barrier of 100 parties."""
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        await asyncio.gather(*(client.call("co", "sync", {"barrier": "bench", "parties": 100}) for _ in range(100)))
        count += 1
    return count / (time.perf_counter() - began)


async def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Every figure of every round."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    async with process("serve") as endpoint, process("work", endpoint), redis_server() as redis:
        async with Reactor(endpoint) as client:
            await client.call("df", "echo", 1)
            us, them = await ours(client), await theirs(redis)
            for _ in range(rounds):
                for name, doing in us.items():
                    for tasks in (1, 64):
                        note(f"{name}@{tasks}", await rate(doing, tasks, seconds))
                        if name in them:
                            note(f"redis {name}@{tasks}", await rate(them[name], tasks, seconds))
                note("ed:signal, reactions@1", await signals(client, seconds))
                note("co:sync of 100@100", await barriers(client, seconds))
    return {name: statistics.median(values) for name, values in found.items()}


def render(figures: dict[str, float]) -> str:
    """The table for docs/performance.md."""
    lines = [
        "| per second | 1 task | 64 tasks | redis-py, 64 tasks | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    names = dict.fromkeys(name.rpartition("@")[0] for name in figures if not name.startswith("redis "))
    for name in names:
        one, many = figures.get(f"{name}@1"), figures.get(f"{name}@64")
        redis = figures.get(f"redis {name}@64")
        cells = [f"{value:,.0f}" if value is not None else "" for value in (one, many, redis)]
        if name.startswith("co:sync"):
            cells = [f"{figures[f'{name}@100']:,.0f} generations", "", ""]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{many / redis:.1f}' if many and redis else ''} |")
    plain, ten = "plain routed packet", "cf:seq of 10 steps"
    steps = [figures[f"{plain}@{tasks}"] / (10 * figures[f"{ten}@{tasks}"]) for tasks in (1, 64)]
    lines += [
        "",
        f"A step of cf:seq takes {steps[0]:.2f} times a plain routed packet with 1 task, {steps[1]:.2f} with 64.",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["serve"]:
        return run(serve())
    if sys.argv[1:2] == ["work"]:
        return run(work(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = run(measure(arguments.rounds, arguments.seconds))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))
    print(render(figures))


if __name__ == "__main__":
    main()
