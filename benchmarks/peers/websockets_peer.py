"""websockets: asyncio server and client, JSON by the standard library."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as ws_serve

from benchmarks.workload import PAYLOADS, closed_loop, work


async def handle(connection: Any) -> None:
    async for message in connection:
        frame = json.loads(message)
        packet = frame["payload"]
        outcome = {"packet_id": packet["id"], "status": "success", "data": work(packet["data"]), "duration_ms": 0}
        await connection.send(json.dumps({"type": "result", "seq": frame["seq"], "payload": outcome}))


async def serve(port: int, variant: str) -> None:
    async with ws_serve(handle, "127.0.0.1", port, compression=None) as server:
        await server.serve_forever()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    pending: dict[int, asyncio.Future[Any]] = {}
    loop = asyncio.get_running_loop()
    seq = 0
    async with connect(f"ws://127.0.0.1:{port}/", compression=None) as connection:

        async def read() -> None:
            async for message in connection:
                frame = json.loads(message)
                pending.pop(frame["seq"]).set_result(frame["payload"]["data"])

        async def call(data: Any) -> Any:
            nonlocal seq
            seq += 1
            future = pending[seq] = loop.create_future()
            packet = {
                "version": "1.0",
                "id": str(uuid.uuid4()),
                "group": "df",
                "element": "transform",
                "data": data,
                "priority": 5,
            }
            await connection.send(json.dumps({"type": "submit", "seq": seq, "payload": packet}))
            return await future

        reader = asyncio.create_task(read())
        try:
            return await closed_loop(call, PAYLOADS[payload], outstanding, seconds)
        finally:
            reader.cancel()
