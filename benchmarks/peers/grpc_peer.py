"""grpc.aio: a generic unary method, JSON bodies by msgspec."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import msgspec

from benchmarks.workload import PAYLOADS, closed_loop, work

encode = msgspec.json.encode
decode = msgspec.json.decode


async def serve(port: int, variant: str) -> None:
    async def transform(request: bytes, context: Any) -> bytes:
        return encode(work(decode(request)))

    handler = grpc.method_handlers_generic_handler("df", {"transform": grpc.unary_unary_rpc_method_handler(transform)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        # bodies are made here: grpc's own hook would turn a str into bytes before it serialises it
        call = channel.unary_unary("/df/transform")
        await channel.channel_ready()

        async def request(data: Any) -> Any:
            return decode(await call(encode(data)))

        return await closed_loop(request, PAYLOADS[payload], outstanding, seconds)
