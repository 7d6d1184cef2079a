"""picows with msgspec in pure Python: what a careful user would write on the same libraries."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

from benchmarks.workload import PAYLOADS, closed_loop, work


class Packet(msgspec.Struct):
    version: str
    id: str
    group: str
    element: str
    data: Any
    priority: int


class Submit(msgspec.Struct):
    type: str
    seq: int
    payload: Packet


class Outcome(msgspec.Struct):
    packet_id: str
    status: str
    data: Any
    duration_ms: int


class Result(msgspec.Struct):
    type: str
    seq: int
    payload: Outcome


encode = msgspec.json.Encoder().encode
decode_submit = msgspec.json.Decoder(Submit).decode
decode_result = msgspec.json.Decoder(Result).decode


HANDLERS = {("df", "transform"): work}


class Server(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        submit = decode_submit(frame.get_payload_as_memoryview())
        packet = submit.payload
        data = HANDLERS[packet.group, packet.element](packet.data)
        transport.send(WSMsgType.TEXT, encode(Result("result", submit.seq, Outcome(packet.id, "success", data, 0))))


class Client(WSListener):
    def __init__(self) -> None:
        self.pending: dict[int, asyncio.Future[Any]] = {}
        self.seq = 0
        self.loop = asyncio.get_running_loop()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        result = decode_result(frame.get_payload_as_memoryview())
        future = self.pending.pop(result.seq)
        if not future.done():
            future.set_result(result.payload.data)

    def call(self, data: Any) -> asyncio.Future[Any]:
        self.seq += 1
        future = self.pending[self.seq] = self.loop.create_future()
        packet = Packet("1.0", str(uuid.uuid4()), "df", "transform", data, 5)
        self.transport.send(WSMsgType.TEXT, encode(Submit("submit", self.seq, packet)))
        return future


async def serve(port: int, variant: str) -> None:
    server = await ws_create_server(lambda request: Server(), "127.0.0.1", port)
    await server.serve_forever()


async def load(port: int, payload: str, outstanding: int, seconds: float, variant: str) -> dict[str, float]:
    transport, client = await ws_connect(Client, f"ws://127.0.0.1:{port}/")
    try:
        return await closed_loop(client.call, PAYLOADS[payload], outstanding, seconds)  # type: ignore[attr-defined]
    finally:
        transport.disconnect()
