"""Every pairing of submitting and handling language, through the gateway, with no change on their side.

The foreign peers say what the specification's listings say: their answers
carry seq 0, and they announce nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.interop.conftest import Cell, World
from tests.interop.peers import LANGUAGES, PEERS, Rejected

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1024 * 1024


async def sound(cell: Cell) -> None:
    """Both sides go on as if nothing had been."""
    assert (await cell.client.submit("df", "echo", data="sound"))["data"] == "sound"


async def heartbeat(cell: Cell) -> None:
    """The worker's heartbeat has reached the gateway: what it was passed over for is forgotten."""
    await cell.worker.write('{"type":"heartbeat","seq":7,"payload":{"timestamp":1}}')
    # what came behind it on the same socket
    assert (await cell.client.submit("df", "crooked.right"))["data"] == "right"


def code(result: dict[str, Any]) -> str:
    assert result["status"] == "error"
    return str(result["error"]["code"])


# ---------------------------------------------------------------- outcomes


async def test_success(cell: Cell) -> None:
    result = await cell.client.submit("df", "echo", data={"n": [1, 2, 3]})
    assert result["status"] == "success"
    assert result["data"] == {"n": [1, 2, 3]}
    assert uuid.UUID(result["packet_id"]).version == 4


async def test_a_handler_that_fails(cell: Cell) -> None:
    result = await cell.client.submit("df", "fail", data="out of beans")
    assert (code(result), result["error"]["message"]) == ("PF500", "out of beans")
    assert result.get("data") is None


async def test_a_handler_that_throws_what_is_no_exception(cell: Cell) -> None:
    await heartbeat(cell)
    result = await cell.client.submit("df", "throw", data="x", timeout_ms=300)
    # the Elixir listing rescues what is raised; what is thrown ends its process without an answer
    assert code(result) == ("PF408" if cell.handles == "elixir" else "PF500")
    await sound(cell)


async def test_a_handler_that_never_answers(cell: Cell) -> None:
    await heartbeat(cell)
    assert code(await cell.client.submit("df", "never", timeout_ms=200)) == "PF408"
    await sound(cell)


async def test_an_answer_after_the_timeout_is_nobodys(cell: Cell) -> None:
    await heartbeat(cell)
    late = cell.gateway.switch.late
    assert code(await cell.client.submit("df", "sleep", data=400, timeout_ms=150)) == "PF408"
    if cell.handles != "python":  # ours was told that nobody waits any more
        while cell.gateway.switch.late == late:
            await asyncio.sleep(0.01)
    await sound(cell)


async def test_no_handler_anywhere(cell: Cell) -> None:
    result = await cell.client.submit("df", "nobody.has.it", data=1)
    assert code(result) == "PF001"
    assert "df:nobody.has.it" in result["error"]["message"]


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        10**15,
        1e-300,
        0.1,
        -2.5,
        "",
        "x",
        [],
        {},
        [[], {}, None],
        {"a": {"b": [1, "2", None]}},
    ],
    ids=repr,
)
async def test_an_echo_of_every_json_type(cell: Cell, value: Any) -> None:
    result = await cell.client.submit("df", "echo", data=value)
    assert result["status"] == "success"
    assert result.get("data") == value
    assert type(result.get("data")) is type(value)


async def test_integers_that_a_double_cannot_hold_are_as_exact_as_the_peers(cell: Cell) -> None:
    value = 2**53 + 1
    packet_id = str(uuid.uuid4())
    packet = {"version": "1.0", "id": packet_id, "group": "df", "element": "echo", "data": value, "priority": 5}
    # as text: what goes through the gateway is exact, whatever the submitting language makes of it
    answer = await cell.client.raw(json.dumps({"type": "submit", "seq": 900001, "payload": packet}), packet_id)
    expected = 2**53 if cell.handles == "typescript" else value
    assert json.loads(answer)["payload"]["data"] == expected
    result = await cell.client.submit("df", "echo", data=value)
    assert result["data"] == (2**53 if "typescript" in (cell.submits, cell.handles) else value)


async def test_data_absent_is_null(cell: Cell) -> None:
    result = await cell.client.submit("df", "echo")
    assert result["status"] == "success"
    assert result.get("data") is None


async def test_text_of_every_kind(cell: Cell) -> None:
    text = "".join(map(chr, range(32))) + '\x7f"\\/ \u00e9\u2028\u2029\ufeff\uffff 日本語 \U0001f9ea\U0010ffff'
    assert (await cell.client.submit("df", "echo", data=text))["data"] == text
    assert (await cell.client.submit("df", "echo", data={text: [text]}))["data"] == {text: [text]}


@pytest.mark.parametrize("length", [1, 64 * 1024])
async def test_sizes(cell: Cell, length: int) -> None:
    data = "x" * length
    assert (await cell.client.submit("df", "echo", data=data))["data"] == data


async def test_the_largest_frame_but_a_byte(cell: Cell) -> None:
    result = await cell.client.submit_frame("df", "echo", MIB - 1)
    assert (result["status"], result["data"]) == ("success", True), result.get("error")


# ---------------------------------------------------------------- many


async def test_a_thousand_packets_at_64_outstanding(cell: Cell) -> None:
    assert await cell.client.flood("df", "echo", 1000, 64) == 1000


async def test_the_urgent_leave_the_queue_first(cell: Cell) -> None:
    switch = cell.gateway.switch

    def submit(element: str, data: int | None, priority: int, count: int) -> list[asyncio.Future[Any]]:
        return [
            asyncio.ensure_future(cell.client.submit("df", element, data=data, priority=priority)) for _ in range(count)
        ]

    # On a busy machine the first of what was queued may have left before the last has come: then once more, for longer.
    for held_ms in (400, 2_000, 10_000):
        # 256 fill the window of a peer that names none, but for the sixteenth kept for events: the rest has to queue
        holds = submit("sleep", held_ms, 10, 256)
        notes = [submit("note", None, 1, 30)]
        while switch.queued < 16 + 30 and not any(hold.done() for hold in holds):
            await asyncio.sleep(0.005)
        notes.append(submit("note", None, 10, 30))
        while switch.queued < 16 + 60 and not any(hold.done() for hold in holds):
            await asyncio.sleep(0.005)
        all_queued = switch.queued == 16 + 60
        low, high = [[result["data"] for result in await asyncio.gather(*each)] for each in notes]
        await asyncio.gather(*holds)
        if all_queued:
            break
    assert all_queued
    assert sum(high) < sum(low)


# ---------------------------------------------------------------- dependencies


async def test_a_dependency_that_has_finished(cell: Cell) -> None:
    first = await cell.client.submit("df", "echo", data=1)
    result = await cell.client.submit("df", "echo", data=2, dependencies=[first["packet_id"]])
    assert (result["status"], result["data"]) == ("success", 2)


async def test_a_dependency_that_has_failed(cell: Cell) -> None:
    first = await cell.client.submit("df", "fail", data="x")
    assert code(await cell.client.submit("df", "echo", data=2, dependencies=[first["packet_id"]])) == "PF424"


async def test_a_dependency_that_never_comes(cell: Cell) -> None:
    unknown = str(uuid.uuid4())
    assert code(await cell.client.submit("df", "echo", data=2, dependencies=[unknown], timeout_ms=200)) == "PF424"


# ---------------------------------------------------------------- odd answers


@pytest.mark.parametrize(
    ("how", "data"),
    [("right", "right"), ("wrong", "wrong seq"), ("twice", "first"), ("beat", "after a heartbeat")],
)
async def test_an_answer_is_known_by_its_packet_id(cell: Cell, how: str, data: str) -> None:
    """With the submit's seq, with some other, twice, or behind a heartbeat of the same seq."""
    result = await cell.client.submit("df", f"crooked.{how}")
    assert (result["status"], result["data"]) == ("success", data)
    await sound(cell)


async def test_an_answer_without_a_packet_id_is_none(cell: Cell) -> None:
    await heartbeat(cell)
    result = await cell.client.submit("df", "crooked.noid", timeout_ms=300)
    assert code(result) in ("PF408", "PF502")
    await sound(cell)


async def test_a_heartbeat_with_the_seq_of_a_submit(cell: Cell) -> None:
    packet_id = str(uuid.uuid4())
    packet = {"version": "1.0", "id": packet_id, "group": "df", "element": "sleep", "data": 50, "priority": 5}
    beat = '{"type":"heartbeat","seq":900002,"payload":{"timestamp":1}}'
    await cell.client.write(beat)
    answer = asyncio.ensure_future(
        cell.client.raw(json.dumps({"type": "submit", "seq": 900002, "payload": packet}), packet_id)
    )
    await asyncio.sleep(0)
    await cell.client.write(beat)
    message = json.loads(await answer)
    assert (message["type"], message["seq"]) == ("result", 900002)
    assert message["payload"]["data"] == 50


# ---------------------------------------------------------------- routes


async def test_a_reactor_may_handle_what_it_submits(cell: Cell) -> None:
    result = await cell.client.submit("df", f"self.{cell.submits}", data=5)
    assert result["data"] == {"self": 5}


async def test_the_two_letter_code_of_the_specifications_example(cell: Cell) -> None:
    assert (await cell.client.submit("df", "tr", data="hello world"))["data"] == "HELLO WORLD"


# ---------------------------------------------------------------- losses


async def test_a_worker_killed_midway(submits: str, handles: str, worlds: dict[str, World]) -> None:
    world = worlds[submits]
    worker = await PEERS[handles].start(world.gateway.endpoint, "doomed")
    client = world.clients[submits]
    try:
        flight = asyncio.ensure_future(client.submit("df", f"doomed.{handles}"))
        await worker.started.wait()
        worker.kill()
        assert code(await flight) == "PF502"
        assert (await client.submit("df", "echo", data=1))["data"] == 1
    finally:
        await worker.stop()


@contextlib.asynccontextmanager
async def gateway_process(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "packetflow", "gateway", "--port", str(port), env=os.environ
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                assert process.returncode is None
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_gateway_killed_midway_and_started_again(submits: str, handles: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"ws://127.0.0.1:{port}/packetflow/v1"
    client: Any = None
    worker: Any = None
    try:
        async with gateway_process(port) as process:
            worker = await PEERS[handles].start(endpoint, "worker")
            client = await PEERS[submits].start(endpoint, "client")
            assert (await client.submit("df", "echo", data=1))["data"] == 1
            flight = asyncio.ensure_future(client.submit("df", "sleep", data=1000))
            await asyncio.sleep(0.2)
            process.kill()
            if submits == "python":
                with pytest.raises(Rejected, match="PF502"):
                    await flight
            else:
                await client.closed.wait()
        async with gateway_process(port):
            await worker.restart()
            await client.restart()
            # an announcement may still be on its way
            while (result := await client.submit("df", "echo", data=2))["status"] == "error":
                assert code(result) == "PF001"
                await asyncio.sleep(0.05)
            assert result["data"] == 2
            if submits != "python":
                assert not flight.done(), "an answer came for a packet that was lost"
                flight.cancel()
    finally:
        for peer in (client, worker):
            if peer is not None:
                await peer.stop()


@pytest.mark.timeout(90)
async def test_the_gateway_answers_before_a_listing_stops_to_listen(worlds: dict[str, World]) -> None:
    """PF408 after 29.5 s where no timeout is named: at 30 s the listings' submits end without an answer."""
    flights = {
        (submits, handles): worlds[handles].clients[submits].submit("df", "never")
        for submits in LANGUAGES
        for handles in LANGUAGES
    }
    for handles in LANGUAGES:
        await heartbeat(
            Cell("python", handles, worlds[handles].gateway, worlds[handles].clients["python"], worlds[handles].worker)
        )
    results = await asyncio.gather(*flights.values())
    assert {pair: code(result) for pair, result in zip(flights, results, strict=True)} == dict.fromkeys(
        flights, "PF408"
    )
