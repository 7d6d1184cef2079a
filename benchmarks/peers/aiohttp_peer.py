"""aiohttp: WebSocket server and client, JSON by the standard library."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from aiohttp import ClientSession, WSMsgType, web

from benchmarks.workload import PAYLOADS, closed_loop, work


async def handle(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse(compress=False)
    await response.prepare(request)
    async for message in response:
        if message.type != WSMsgType.TEXT:
            break
        frame = json.loads(message.data)
        packet = frame["payload"]
        outcome = {"packet_id": packet["id"], "status": "success", "data": work(packet["data"]), "duration_ms": 0}
        await response.send_str(json.dumps({"type": "result", "seq": frame["seq"], "payload": outcome}))
    return response


async def serve(port: int, variant: str) -> None:
    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.get_running_loop().create_future()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    pending: dict[int, asyncio.Future[Any]] = {}
    loop = asyncio.get_running_loop()
    seq = 0
    async with ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/", compress=0) as connection:

        async def read() -> None:
            async for message in connection:
                frame = json.loads(message.data)
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
            await connection.send_str(json.dumps({"type": "submit", "seq": seq, "payload": packet}))
            return await future

        reader = asyncio.create_task(read())
        try:
            return await closed_loop(call, PAYLOADS[payload], outstanding, seconds)
        finally:
            reader.cancel()
