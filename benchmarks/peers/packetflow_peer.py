"""packetflow: Gateway and Reactor as the README shows them."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from benchmarks.workload import PAYLOADS, closed_loop, expected, work
from packetflow import Gateway, Reactor


async def serve(port: int, variant: str) -> None:
    gateway = Gateway(f"ws://127.0.0.1:{port}/packetflow/v1")
    if "def" in variant:

        @gateway.register("df", "transform")
        def transform(data: Any) -> Any:
            return work(data)

    elif "suspend" in variant:

        @gateway.register("df", "transform")
        async def transform_suspending(data: Any) -> Any:
            await asyncio.sleep(0)
            return work(data)

    else:

        @gateway.register("df", "transform")
        async def transform_async(data: Any) -> Any:
            return work(data)

    await gateway.serve_forever()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    data = PAYLOADS[payload]
    async with Reactor(f"ws://127.0.0.1:{port}/packetflow/v1") as reactor:
        if "map" in variant:
            return await _load_map(reactor, data, outstanding, seconds)
        return await closed_loop(partial(reactor.call, "df", "transform"), data, outstanding, seconds)


async def _load_map(reactor: Reactor, data: Any, window: int, seconds: float) -> dict[str, float]:
    wanted = expected(data)
    ends = 0.0

    def items() -> Any:
        while time.perf_counter() < ends:
            for _ in range(256):
                yield data

    for stretch in (min(0.3, seconds / 4), seconds):
        done = 0
        started, cpu = time.perf_counter(), time.process_time()
        ends = started + stretch
        _last = None
        async for _last in reactor.map("df", "transform", items(), window=window):
            done += 1
        took, used = time.perf_counter() - started, time.process_time() - cpu
    assert _last is not None
    assert _last.data == wanted, _last
    return {"requests": done, "seconds": took, "cpu": used}
