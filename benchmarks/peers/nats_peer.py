"""nats-py with a real nats-server: requester and responder in a queue group."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import nats

from benchmarks.workload import PAYLOADS, closed_loop, work

encode = msgspec.json.encode
decode = msgspec.json.decode


async def serve(port: int, variant: str) -> None:
    connection = await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 * 1024 * 1024)

    async def handle(message: Any) -> None:
        await message.respond(encode(work(decode(message.data))))

    await connection.subscribe("df.transform", queue="workers", cb=handle)
    await connection.flush()
    await asyncio.get_running_loop().create_future()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    connection = await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 * 1024 * 1024)

    async def call(data: Any) -> Any:
        return decode((await connection.request("df.transform", encode(data), timeout=30)).data)

    try:
        return await closed_loop(call, PAYLOADS[payload], outstanding, seconds)
    finally:
        await connection.close()
