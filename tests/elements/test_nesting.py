"""Nested packets are their submitter's: authorised, counted and ended as his. And all 24 from raw frames."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.conformance.wire import Peer
from packetflow.elements import STANDARD, gather, ref, seq, step, transform
from packetflow.gateway import hash_token
from packetflow.model import STANDARD_ELEMENTS
from tests.helpers import refused, until

FORBIDDEN = step("df", "secret")


@pytest.fixture
async def guarded() -> AsyncIterator[Gateway]:
    roles = [Role("user", submit=("cf:*", "df:echo", "df:transform", "df:reduce", "ed:*", "co:*", "rm:*"))]
    identities = [Identity("user", "user", tokens=(hash_token("token"),), rate=0)]
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(roles, identities)) as gateway:
        gateway.register("df", "secret", lambda data: "the secret")
        gateway.register("df", "echo", lambda data: data)
        yield gateway


@pytest.mark.parametrize(
    "packet",
    [
        seq(FORBIDDEN),
        seq(seq(FORBIDDEN)),
        seq(step("cf", "seq", {"steps": ref("input")}), input=[FORBIDDEN]),
        step("cf", "branch", {"cases": [], "else": FORBIDDEN}),
        step("cf", "loop", {"step": FORBIDDEN, "times": 1}),
        transform([1], map=FORBIDDEN),
        step("df", "reduce", {"input": [1, 2], "with": FORBIDDEN}),
        step("co", "broadcast", {"packet": FORBIDDEN}),
        step("co", "vote", {"packet": FORBIDDEN}),
        step("rm", "lock", {"key": "k", "step": FORBIDDEN}),
        step("rm", "cache", {"op": "fill", "key": "k", "step": FORBIDDEN}),
    ],
    ids=lambda packet: f"{packet['group']}:{packet['element']}",
)
async def test_a_nested_packet_that_its_submitter_may_not_submit(guarded: Gateway, packet: dict[str, Any]) -> None:
    async with Reactor(guarded.endpoint, token="token") as user:
        assert (await refused(user.call("df", "secret"))).code == "PF403"
        assert (await refused(user.call(packet["group"], packet["element"], packet["data"]))).code == "PF403"


async def test_nor_gathered_nor_later(guarded: Gateway) -> None:
    ran: list[Any] = []
    guarded.register("df", "secret", ran.append)
    async with Reactor(guarded.endpoint, token="token") as user:
        (entry,) = await user.call("co", "gather", gather(FORBIDDEN, need=0)["data"]) or [None]
        assert entry is None
        assert (await refused(user.call("co", "gather", gather(FORBIDDEN)["data"]))).code == "PF424"
        await user.react("e", FORBIDDEN)
        await user.timer(FORBIDDEN, after=0.0)
        await user.timer(step("ed", "signal", {"event": "done"}), after=0.01)
        async for _ in user.watch("done"):
            break
        await user.signal("e")
        await user.signal("e")
    assert ran == []


async def test_steps_count_against_their_submitters_rate() -> None:
    role = Role("user", submit=("*:*",))
    identity = Identity("user", "user", tokens=(hash_token("token"),), rate=1, burst=5)
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of([role], [identity])) as gateway:
        gateway.register("df", "echo", lambda data: data)
        async with Reactor(gateway.endpoint, token="token") as user:
            error = await refused(user.call("cf", "seq", seq(*[step("df", "echo")] * 10)["data"]))
            # some of it has run: it is not one that never began
            assert (error.code, error.details["code"]) == ("PF502", "PF429")  # type: ignore[index]


async def test_cancelling_the_packet_cancels_its_steps(hub: Gateway, client: Reactor) -> None:
    call = client.call("cf", "seq", seq(step("df", "sleep", 20))["data"])
    await until(lambda: hub.switch.in_flight >= 2)
    call.cancel()
    await until(lambda: hub.switch.in_flight == 0)
    assert not hub.view.runtime().nests  # type: ignore[union-attr]


async def test_a_lost_submitter_ends_its_steps(hub: Gateway, client: Reactor) -> None:
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    call = asyncio.ensure_future(other.call("cf", "seq", seq(step("df", "sleep", 20))["data"]))
    await until(lambda: hub.switch.in_flight >= 2)
    other._connection.abort()  # type: ignore[union-attr]
    assert (await refused(call)).code == "PF502"
    await until(lambda: hub.switch.in_flight == 0)
    await other.stop()


async def test_a_step_whose_worker_is_lost(hub: Gateway, client: Reactor) -> None:
    worker = Reactor(hub.endpoint, name="doomed", reconnect=False)

    async def never(data: Any) -> None:
        await asyncio.Event().wait()

    worker.register("df", "never", never)
    await worker.start()
    await until(lambda: hub.switch.reactors_for("df:never"))
    call = asyncio.ensure_future(client.call("cf", "seq", seq(step("df", "never"))["data"]))
    await until(lambda: any(member.outstanding for member in hub.switch.reactors_for("df:never")))
    worker._connection.abort()  # type: ignore[union-attr]
    error = await refused(call)
    assert (error.code, error.details) == ("PF502", {"step": 0, "element": "df:never"})
    await worker.stop()


RAW: dict[str, Any] = {
    "cf:seq": {"steps": [{"group": "df", "element": "echo", "data": {"$": "input"}}], "input": 1},
    "cf:branch": {"cases": [{"when": "`true`", "then": {"group": "df", "element": "echo", "data": 1}}]},
    "cf:loop": {"step": {"group": "df", "element": "echo", "data": {"$": "index"}}, "times": 2},
    "cf:gate": {"gate": "g", "action": "open"},
    "df:produce": {"stream": "s", "items": [1]},
    "df:consume": {"stream": "s"},
    "df:transform": {"input": [1], "expression": "[0]"},
    "df:reduce": {"input": [1, 2], "op": "sum"},
    "ed:signal": {"event": "e", "payload": 1},
    "ed:timer": {"packet": {"group": "df", "element": "echo"}, "after_ms": 60_000},
    "ed:watch": {"key": "k", "version": 7},
    "ed:react": {"event": "e", "packet": {"group": "df", "element": "echo"}},
    "co:sync": {"barrier": "b", "parties": 1},
    "co:broadcast": {"packet": {"group": "df", "element": "echo", "data": 1}},
    "co:gather": {"packets": [{"group": "df", "element": "echo", "data": 1}]},
    "co:vote": {"ballot": "v", "choice": 1, "voters": 1},
    "mc:spawn": {"reactor": "none"},
    "mc:migrate": {"from": "nobody"},
    "mc:scale": {"reactor": "none", "replicas": 0},
    "mc:tune": {},
    "rm:alloc": {"pool": "p", "capacity": 1},
    "rm:free": {"lease": "none"},
    "rm:lock": {"key": "k"},
    "rm:cache": {"op": "set", "key": "k", "value": 1},
}


def as_typescript(packet: dict[str, Any], seq_number: int) -> bytes:
    return json.dumps({"type": "submit", "seq": seq_number, "payload": packet}, separators=(",", ":")).encode()


def as_elixir(packet: dict[str, Any], seq_number: int) -> bytes:
    nulls = {"timeout_ms": None, "dependencies": None, "metadata": None}
    frame = {"payload": nulls | packet, "seq": seq_number, "type": "submit"}
    return json.dumps(frame, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("write", [as_typescript, as_elixir])
async def test_all_24_from_raw_frames(write: Any) -> None:
    role = Role("all", submit=("*:*",), handle=("*:*",), admin=True)
    access = Access.of([role], [Identity("peer", "all", tokens=(hash_token("token"),))])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as gateway:
        async with Reactor(gateway.endpoint, token="token", name="worker") as worker:
            worker.register("df", "echo", lambda data: data)
            await until(lambda: gateway.switch.reactors_for("df:echo"))
            peer = await Peer.connect(f"{gateway.endpoint}?handles=", headers="Authorization: Bearer token\r\n")
            for number, (key, data) in enumerate(RAW.items(), 1):
                group, _, element = key.partition(":")
                packet_id = str(uuid.uuid4())
                packet = {
                    "version": "1.0",
                    "id": packet_id,
                    "group": group,
                    "element": element,
                    "data": data,
                    "priority": 5,
                }
                await peer.send(write(packet, number))
                answer = await peer.message("result")
                assert (answer["seq"], answer["payload"]["packet_id"]) == (number, packet_id)
                if key in ("mc:spawn", "mc:migrate", "mc:scale"):
                    assert answer["payload"]["error"]["code"] == "PF400", key
                else:
                    assert answer["payload"]["status"] == "success", (key, answer)
            peer.close()


def test_the_standard_elements_are_the_specifications() -> None:
    assert (
        set(STANDARD) == set(RAW) == {f"{group}:{name}" for group, names in STANDARD_ELEMENTS.items() for name in names}
    )
