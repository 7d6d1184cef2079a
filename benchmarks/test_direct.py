"""The direct path end to end, both sides in one process: ``pytest --benchmark-only``.

For two processes, and for our peers beside, see ``python -m benchmarks.peers``.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from packetflow import Gateway, Reactor
from packetflow.loop import loop_factory


async def _calls(window: int, count: int) -> int:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")

    @gateway.register("df", "transform")
    async def transform(data: str) -> str:
        return data.upper()

    async with gateway, Reactor(gateway.endpoint) as reactor:

        async def worker() -> int:
            right = 0
            for _ in range(count // window):
                right += await reactor.call("df", "transform", "hello world") == "HELLO WORLD"
            return right

        return sum(await asyncio.gather(*(worker() for _ in range(window))))


async def _map(count: int) -> int:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    gateway.register("df", "transform", str.upper)
    async with gateway, Reactor(gateway.endpoint) as reactor:
        right = 0
        async for result in reactor.map("df", "transform", ["hello world"] * count):
            right += result.data == "HELLO WORLD"
        return right


def _run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(work)


@pytest.mark.benchmark(group="direct path, one process, 10,240 calls")
@pytest.mark.parametrize("window", [1, 64, 1024])
def test_calls(benchmark: Any, window: int) -> None:
    assert benchmark.pedantic(lambda: _run(_calls(window, 10_240)), rounds=3) == 10_240


@pytest.mark.benchmark(group="direct path, one process, 10,240 calls")
def test_map(benchmark: Any) -> None:
    assert benchmark.pedantic(lambda: _run(_map(10_240)), rounds=3) == 10_240


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize("program", ["import packetflow", "pass"])
def test_import(benchmark: Any, program: str) -> None:
    done = benchmark.pedantic(lambda: subprocess.run([sys.executable, "-P", "-c", program]), rounds=5)
    assert done.returncode == 0
