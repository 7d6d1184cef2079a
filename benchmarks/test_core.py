"""The core's parts beside what a user would take instead: ``pytest --benchmark-only``.

Groups hold what belongs side by side; the first of each group is ours.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import time
from typing import Any

import msgspec
import orjson
import pytest

from benchmarks.workload import OBJECT
from pfcore.link.pending import PendingTable
from pfcore.memory.heap import PriorityHeap
from pfcore.wire.frames import decode_message, encode_message, scan_repeatedly
from pfcore.wire.packets import Packet

ID = "550e8400-e29b-41d4-a716-446655440000"


class RawPacket(msgspec.Struct):
    version: str
    id: str
    group: str
    element: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    priority: int = 5
    timeout_ms: int | None = None
    dependencies: list[str] | None = None
    metadata: dict[str, Any] | None = None


class RawSubmit(msgspec.Struct):
    type: str
    seq: int
    payload: RawPacket


class FullPacket(msgspec.Struct, omit_defaults=True):
    version: str
    id: str
    group: str
    element: str
    data: Any = None
    priority: int = 5
    timeout_ms: int | None = None
    dependencies: list[str] | None = None
    metadata: dict[str, Any] | None = None


class FullSubmit(msgspec.Struct):
    type: str
    seq: int
    payload: FullPacket


PACKET = Packet("df", "transform", "hello world", id=ID, priority=6)
FRAME = encode_message("submit", 12345, PACKET)
STRUCT = FullSubmit("submit", 12345, FullPacket("1.0", ID, "df", "transform", "hello world", 6))
LARGE = encode_message("submit", 12345, Packet("df", "transform", OBJECT, id=ID))
ELIXIR = json.dumps(
    {"payload": {"data": "hello world", "dependencies": None, "element": "transform", "group": "df", "id": ID,
                 "metadata": None, "priority": 6, "timeout_ms": None, "version": "1.0"}, "seq": 12345, "type": "submit"},
    separators=(",", ":"),
).encode()  # fmt: skip
MANY = 1000


# -- decoding as the link does: validated, `data` left as a span; a thousand at a time


@pytest.mark.benchmark(group="decode a submit frame, data as it is (1,000)")
@pytest.mark.parametrize("frame", [FRAME, ELIXIR], ids=["usual layout", "another layout"])
def test_core_scan(benchmark: Any, frame: bytes) -> None:
    assert benchmark(scan_repeatedly, frame, MANY) == 12345


@pytest.mark.benchmark(group="decode a submit frame, data as it is (1,000)")
@pytest.mark.parametrize("frame", [FRAME, ELIXIR], ids=["usual layout", "another layout"])
def test_msgspec_raw(benchmark: Any, frame: bytes) -> None:
    decode = msgspec.json.Decoder(RawSubmit).decode

    def many() -> Any:
        for _ in range(MANY):
            submit = decode(frame)
        return submit

    assert benchmark(many).seq == 12345


# -- decoding through the Python face, every field read


def read(message: Any) -> tuple[Any, ...]:
    packet = message.payload
    return (message.type, message.seq, packet.version, packet.id, packet.group, packet.element, packet.data,
            packet.priority, packet.timeout_ms, packet.dependencies, packet.metadata)  # fmt: skip


@pytest.mark.benchmark(group="decode a submit frame, every field read")
def test_core_decode(benchmark: Any) -> None:
    assert benchmark(lambda: read(decode_message(FRAME)))[6] == "hello world"


@pytest.mark.benchmark(group="decode a submit frame, every field read")
def test_msgspec_decode(benchmark: Any) -> None:
    decode = msgspec.json.Decoder(FullSubmit).decode
    assert benchmark(lambda: read(decode(FRAME)))[6] == "hello world"


@pytest.mark.benchmark(group="decode a submit frame, every field read")
def test_orjson_decode(benchmark: Any) -> None:
    assert benchmark(lambda: orjson.loads(FRAME))["payload"]["data"] == "hello world"


@pytest.mark.benchmark(group="decode a submit frame, every field read")
def test_json_decode(benchmark: Any) -> None:
    assert benchmark(lambda: json.loads(FRAME))["payload"]["data"] == "hello world"


# -- encoding


@pytest.mark.benchmark(group="encode a submit frame (1,000)")
def test_core_encode(benchmark: Any) -> None:
    def many() -> bytes:
        for _ in range(MANY):
            frame = encode_message("submit", 12345, PACKET)
        return frame

    assert benchmark(many) == FRAME


@pytest.mark.benchmark(group="encode a submit frame (1,000)")
def test_msgspec_encode(benchmark: Any) -> None:
    encode = msgspec.json.Encoder().encode

    def many() -> bytes:
        for _ in range(MANY):
            frame = encode(STRUCT)
        return frame

    assert json.loads(benchmark(many)) == json.loads(FRAME)


@pytest.mark.benchmark(group="encode a submit frame (1,000)")
@pytest.mark.parametrize("encode", [orjson.dumps, json.dumps], ids=["orjson", "json"])
def test_dict_encode(benchmark: Any, encode: Any) -> None:
    frame = json.loads(FRAME)

    def many() -> Any:
        for _ in range(MANY):
            encoded = encode(frame)
        return encoded

    assert json.loads(benchmark(many)) == frame


@pytest.mark.benchmark(group="1 KiB object, decode")
@pytest.mark.parametrize(
    "decode", [decode_message, msgspec.json.Decoder(FullSubmit).decode, orjson.loads], ids=["core", "msgspec", "orjson"]
)
def test_large_decode(benchmark: Any, decode: Any) -> None:
    benchmark(decode, LARGE)


# -- the heap: 100,000 random pushes, then pops

_generator = random.Random(7)
PRIORITIES = [_generator.randint(1, 10) for _ in range(100_000)]


@pytest.mark.benchmark(group="priority queue, 100,000 pushes and pops")
def test_core_heap(benchmark: Any) -> None:
    def work() -> Any:
        heap = PriorityHeap()
        push, pop = heap.push, heap.pop
        for priority in PRIORITIES:
            push(priority, priority)
        for _ in PRIORITIES:
            last = pop()
        return last

    assert benchmark(work) == 1


@pytest.mark.benchmark(group="priority queue, 100,000 pushes and pops")
def test_heapq(benchmark: Any) -> None:
    def work() -> Any:
        heap: list[tuple[int, int, int]] = []
        push, pop = heapq.heappush, heapq.heappop
        for arrival, priority in enumerate(PRIORITIES):
            push(heap, (-priority, arrival, priority))
        for _ in PRIORITIES:
            last = pop(heap)
        return last[2]

    assert benchmark(work) == 1


# -- pending requests: 100,000 outstanding, each with a deadline, then answered

IDS = [f"{number:036d}" for number in range(100_000)]


@pytest.mark.benchmark(group="pending table, 100,000 outstanding")
def test_core_pending(benchmark: Any) -> None:
    def work() -> int:
        table = PendingTable()
        add, take = table.add, table.take
        deadline = time.monotonic_ns() + 30_000_000_000
        seqs = [add(packet_id, packet_id, deadline) for packet_id in IDS]
        return sum(take(seq) is not None for seq in seqs)

    assert benchmark(work) == len(IDS)


@pytest.mark.benchmark(group="pending table, 100,000 outstanding")
def test_dict_and_call_later(benchmark: Any) -> None:
    loop = asyncio.new_event_loop()

    def work() -> int:
        pending: dict[int, tuple[Any, str, Any]] = {}
        by_id: dict[str, int] = {}
        seq = 0
        for packet_id in IDS:
            seq += 1
            pending[seq] = (loop.create_future(), packet_id, loop.call_later(30, pending.pop, seq))
            by_id[packet_id] = seq
        done = 0
        for answered in range(1, seq + 1):
            future, packet_id, timer = pending.pop(answered)
            timer.cancel()
            del by_id[packet_id]
            future.set_result(None)
            done += 1
        return done

    assert benchmark.pedantic(work, rounds=3) == len(IDS)
    loop.close()
