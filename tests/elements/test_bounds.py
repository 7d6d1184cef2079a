"""Every bound is reached and held: the answer names it, and what was there before goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from packetflow import Gateway, Reactor
from packetflow.elements import Bounds, branch, case, loop, seq, step, transform
from tests.helpers import refused, until


@pytest.fixture
async def small() -> AsyncIterator[tuple[Gateway, Reactor]]:
    bounds = Bounds(steps=3, nesting=2, iterations=5, names=2, value=200, stream_bytes=1000)
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=bounds) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        gateway.register("df", "echo", lambda data: data)
        yield gateway, client


ECHO = step("df", "echo", 1)
ECHO_OF_ONE = step("df", "transform", {"input": 1, "expression": "@"})


@pytest.mark.parametrize(
    ("packet", "code", "names"),
    [
        (seq(ECHO, ECHO, ECHO, ECHO), "PF400", "3"),
        (seq(seq(seq(ECHO))), "PF400", "2"),
        (seq(seq(step("df", "tr", {"input": 1, "expression": "@"}))), "PF400", "2"),
        (branch(*[case("`1`", ECHO)] * 3), "PF400", "3"),
        (loop(ECHO, times=6), "PF400", "max_iterations"),
        (loop(ECHO, times=1, max_iterations=6), "PF400", "5"),
        (transform([1] * 6, map=ECHO), "PF400", "5"),
        (step("rm", "cache", {"op": "set", "key": "k", "value": "x" * 200}), "PF413", "200"),
        (step("ed", "signal", {"event": "e", "payload": "x" * 200}), "PF413", "200"),
        (step("co", "sync", {"barrier": "b", "parties": 2, "data": "x" * 200}), "PF413", "200"),
        (step("df", "produce", {"stream": "s", "items": ["x" * 200]}), "PF413", "200"),
        (step("df", "produce", {"stream": "s", "items": ["x" * 150] * 9}), "PF400", "1,000"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_packet_past_a_bound(small: Any, packet: dict[str, Any], code: str, names: str) -> None:
    _, client = small
    data = {"max_iterations": 5, **packet["data"]} if packet["element"] == "loop" else packet["data"]
    error = await refused(client.call(packet["group"], packet["element"], data))
    assert error.code == code
    assert names in error.message
    assert await client.call("df", "echo", "still here") == "still here"


NAMED: dict[str, Any] = {
    "gate": lambda name: ("cf", "gate", {"gate": name, "action": "open"}),
    "stream": lambda name: ("df", "produce", {"stream": name, "items": [1]}),
    "consumed stream": lambda name: ("df", "consume", {"stream": name, "max": 0}),
    "pool": lambda name: ("rm", "alloc", {"pool": name, "capacity": 1}),
    "lock": lambda name: ("rm", "lock", {"key": name}),
    "barrier": lambda name: ("co", "sync", {"barrier": name, "parties": 1}),
}


@pytest.mark.parametrize("kind", NAMED)
async def test_so_many_names_of_a_kind(small: Any, kind: str) -> None:
    _, client = small
    for name in ("a", "b"):
        await client.call(*NAMED[kind](name))
    error = await refused(client.call(*NAMED[kind]("c")))
    assert (error.code, "2" in error.message) == ("PF429", True)
    again = await client.submit(dict(zip(("group", "element", "data"), NAMED[kind]("a"), strict=True)))
    # one that is there goes on: a lock is held, a pool is used up, the rest takes it
    assert again.ok or again.error["code"] in ("PF409", "PF429")


async def test_so_many_watched_names(small: Any) -> None:
    gateway, client = small
    watching = [asyncio.ensure_future(client.call("ed", "watch", {"event": name})) for name in "ab"]
    await until(lambda: len(gateway.view.runtime().watched) == 2)
    assert (await refused(client.call("ed", "watch", {"event": "c"}))).code == "PF429"
    for name in "ab":
        await client.signal(name)
    await asyncio.gather(*watching)


async def test_undecided_ballots_count_as_names(small: Any) -> None:
    gateway, client = small
    voting = [asyncio.ensure_future(client.vote(name, 1, 2)) for name in "ab"]
    await until(lambda: gateway.view.runtime().store.names("ballot") == 2)
    assert (await refused(client.vote("c", 1, 2))).code == "PF429"
    for name in "ab":
        await client.vote(name, 1, 2)
    await asyncio.gather(*voting)


def test_bounds_are_positive_integers() -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="steps: expected an integer of at least 1"):
            Bounds(steps=bad)  # type: ignore[arg-type]


async def test_without_the_elements() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=False) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        assert (await refused(client.call("cf", "seq", {"steps": []}))).code == "PF001"


# ---------------------------------------------------------------- bytes


async def test_what_is_stored_is_its_principals_until_it_leaves() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", max_stored_principal_bytes=25_000) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        stored = gateway.view.principals.anonymous.stored
        assert stored is not None
        await client.stream("s").produce(*["x" * 1000] * 10)
        await client.call("df", "consume", {"stream": "s", "max": 0})
        gateway.view.runtime().watched.keep("event", "watched")  # type: ignore[union-attr]
        for group, element, data in (
            ("df", "produce", {"stream": "s", "items": ["x" * 1000] * 10, "wait_ms": 0}),
            ("rm", "cache", {"op": "set", "key": "k", "value": "x" * 15_000}),
            ("ed", "signal", {"event": "watched", "payload": "x" * 15_000}),
        ):
            error = await refused(client.call(group, element, data))
            assert (error.code, "max_stored_principal_bytes" in error.message) == ("PF429", True)
        # the cache makes room of its owner's own
        for n in range(100):
            await client.cache.set(f"k{n}", "x" * 100)
        assert 10_000 < stored.held <= 25_000
        # what another has stored is not in the way, nor is this in his
        await gateway.stream("own").produce(*["x" * 1000] * 10)
        items = (await client.call("df", "consume", {"stream": "s"}))["items"]
        await client.call("df", "consume", {"stream": "s", "max": 0, "ack": [item["id"] for item in items]})
        for n in range(100):
            await client.cache.delete(f"k{n}")
        assert stored.held < 9000, "a consumer's name is left, and a pattern that is watched"


async def test_what_is_held_is_the_links_until_it_ends() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", max_principal_bytes=1_000_000) as gateway:
        gateway.register("df", "echo", lambda data: data)
        async with Reactor(gateway.endpoint) as client, Reactor(gateway.endpoint) as other:
            react = {
                "group": "ed",
                "element": "react",
                "data": {"event": "e", "packet": step("df", "echo", "x" * 50_000)},
            }
            made = 0
            while (result := await client.submit(react)).ok:
                made += 1
            assert (result.error["code"], "max_principal_bytes" in result.error["message"]) == ("PF429", True)
            assert 5 < made < 25
            # nobody else notices
            assert await other.call("cf", "seq", seq(ECHO, ECHO)["data"]) == 1
            gateway.view.runtime().sessions.end_principals({gateway.view.principals.anonymous.number})  # type: ignore[union-attr]
            await until(lambda: not gateway.view.runtime().standing)  # type: ignore[union-attr]
            await client.react("e", step("df", "echo", "x" * 50_000))


async def test_so_many_leases_a_link() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(leases=2)) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        lease = await client.pool("p", capacity=9).alloc()
        await client.call("rm", "lock", {"key": "k"})
        for what in (client.call("rm", "lock", {"key": "l"}), client.pool("p").alloc()):
            error = await refused(what)
            assert (error.code, "2 leases" in error.message) == ("PF429", True)
        await lease.free()
        await client.call("rm", "lock", {"key": "l"})


async def test_a_page_of_the_cache_fits_an_answer() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(value=1000)) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        for name in "abc":
            await client.cache.set(name, name * 400)
        page = await client.call("rm", "cache", {"op": "list"})
        assert [entry["key"] for entry in page["value"]] == ["a"]
        assert [key async for key, _ in client.cache.list()] == ["a", "b", "c"]


async def test_items_of_one_answer_fit_it() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(value=1000)) as gateway,
        Reactor(gateway.endpoint) as client,
    ):
        await client.stream("s").produce(*(name * 400 for name in "abc"))
        taken = await client.call("df", "consume", {"stream": "s"})
        assert [item["data"][0] for item in taken["items"]] == ["a", "b"]
        taken = await client.call("df", "consume", {"stream": "s"})
        assert [item["data"][0] for item in taken["items"]] == ["c"]


async def test_what_one_may_hold_bounds_the_results_of_steps_and_what_is_sent_to_many() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", max_principal_bytes=1 << 20) as gateway,
        Reactor(gateway.endpoint, name="one") as one,
        Reactor(gateway.endpoint, name="two") as two,
    ):
        for reactor in (one, two):
            reactor.register("df", "hear", lambda data: None)
        gateway.register("df", "much", lambda data: "x" * 300_000)
        await until(lambda: len(gateway.switch.reactors_for("df:hear")) == 2)
        much = [step("df", "much", name=name) for name in "abcd"]
        error = await refused(one.call("cf", "seq", seq(*much)["data"]))
        assert error.code in ("PF429", "PF502")
        # what is not kept by name makes room for the next
        assert await one.call("cf", "seq", seq(*[step("df", "much")] * 3, ECHO_OF_ONE)["data"]) == 1
        error = await refused(one.broadcast("df", "hear", "x" * 400_000))
        assert error.code == "PF429"
