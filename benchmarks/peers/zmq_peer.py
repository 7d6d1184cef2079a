"""pyzmq: DEALER and ROUTER over TCP, JSON by msgspec."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from benchmarks.workload import PAYLOADS, closed_loop, work

encode = msgspec.json.encode
decode = msgspec.json.decode


async def serve(port: int, variant: str) -> None:
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(f"tcp://127.0.0.1:{port}")
    while True:
        peer, seq, body = await socket.recv_multipart()
        await socket.send_multipart((peer, seq, encode(work(decode(body)))))


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    socket = zmq.asyncio.Context().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    pending: dict[bytes, asyncio.Future[Any]] = {}
    loop = asyncio.get_running_loop()
    seq = 0

    async def read() -> None:
        while True:
            key, body = await socket.recv_multipart()
            pending.pop(key).set_result(decode(body))

    async def call(data: Any) -> Any:
        nonlocal seq
        seq += 1
        key = seq.to_bytes(8, "big")
        future = pending[key] = loop.create_future()
        await socket.send_multipart((key, encode(data)))
        return await future

    reader = asyncio.create_task(read())
    try:
        return await closed_loop(call, PAYLOADS[payload], outstanding, seconds)
    finally:
        reader.cancel()
        socket.close(0)
