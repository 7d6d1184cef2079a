"""Resource management: pools, leases, locks, the cache."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.conformance.wire import Peer
from packetflow.elements import Bounds, step
from packetflow.gateway import hash_token
from tests.helpers import refused, submit, until


async def cache(client: Reactor, op: str, **data: Any) -> dict[str, Any]:
    found: dict[str, Any] = await client.call("rm", "cache", {"op": op, **data})
    return found


# ---------------------------------------------------------------- rm:alloc, rm:free


async def test_units_of_a_pool_are_leased_and_come_back(client: Reactor) -> None:
    pool = client.pool("p", capacity=5)
    first = await pool.alloc(3)
    assert (first.granted["units"], first.granted["available"]) == (3, 2)
    assert abs(first.granted["expires_at"] / 1000 - time.time() - 30) < 5
    second = await client.pool("p").alloc(2)
    assert second.granted["available"] == 0
    error = await refused(pool.alloc(1))
    assert (error.code, error.details) == ("PF429", {"retry_after_ms": 1000})
    assert await first.free()
    assert not await first.free()
    assert (await pool.alloc(3)).granted["available"] == 0


async def test_waiters_of_a_pool_are_served_in_order(hub: Gateway, client: Reactor) -> None:
    pool = client.pool("p", capacity=2)
    held = await pool.alloc(2)
    large = asyncio.ensure_future(pool.alloc(2, wait=5))
    lines = hub.view.runtime().lines  # type: ignore[union-attr]
    await until(lambda: lines.waiting("pool", "p") == 1)
    small = asyncio.ensure_future(pool.alloc(1, wait=5))
    await until(lambda: lines.waiting("pool", "p") == 2)
    # none overtakes, even where it would fit
    assert (await refused(pool.alloc(1))).code == "PF429"
    await held.free()
    got = await large
    assert not small.done()
    await got.free()
    await small


@pytest.mark.parametrize(
    "data",
    [
        {"pool": "new"},
        {"pool": "p", "units": 0, "capacity": 1},
        {"pool": "p", "capacity": 2, "units": 3},
        {"pool": "p", "capacity": 0},
        {"pool": "p", "capacity": 1, "ttl_ms": 0},
        {"pool": "p", "capacity": 1, "ttl_ms": 86_400_001},
    ],
)
async def test_pools_refuse_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("rm", "alloc", data))).code == "PF400"


async def test_a_lease_ends_when_its_time_is_over(client: Reactor) -> None:
    await client.pool("p", capacity=1).alloc(ttl=0.02)
    await client.pool("p").alloc(wait=5)


async def test_a_lease_ends_some_time_after_its_holder_is_lost(hub: Gateway, client: Reactor) -> None:
    hub.view.runtime().sessions.grace = 0.05  # type: ignore[union-attr]
    holder = Reactor(hub.endpoint, name="holder", reconnect=False)
    await holder.start()
    await holder.pool("p", capacity=1).alloc()
    await holder.stop()
    began = time.monotonic()
    await client.pool("p").alloc(wait=5)
    assert time.monotonic() - began >= 0.04


async def test_a_holder_that_comes_back_keeps_its_leases(hub: Gateway, client: Reactor) -> None:
    sessions = hub.view.runtime().sessions  # type: ignore[union-attr]
    async with Reactor(hub.endpoint, name="holder") as holder:
        lease = await holder.pool("p", capacity=1).alloc()
        (session,) = [session for session in sessions._by_key.values() if session.held]
        hub.reactors["holder"].disconnect()
        await until(lambda: not session.links)
        await until(lambda: session.links)
        assert not session.ended
        assert (await refused(client.pool("p").alloc())).code == "PF429"
        assert await holder.call("rm", "free", {"lease": lease.id}) == {"freed": True}


async def test_a_stopped_replica_keeps_nothing_because_its_namesake_lives(hub: Gateway, client: Reactor) -> None:
    hub.view.runtime().sessions.grace = 0.02  # type: ignore[union-attr]
    async with Reactor(hub.endpoint, name="holder"):
        one = Reactor(hub.endpoint, name="holder")
        await one.start()
        await until(lambda: hub._reactors.find("holder#2"))
        await one.call("rm", "lock", {"key": "k"})
        await one.stop()
        assert (await client.call("rm", "lock", {"key": "k", "wait_ms": 5000}))["fence"] > 0


async def test_a_link_that_changes_its_name_takes_no_leases_with_it(hub: Gateway, client: Reactor) -> None:
    """As reactors of other languages, which tell no instance: the name is all that they are."""
    hub.view.runtime().sessions.grace = 0.02  # type: ignore[union-attr]
    peers = {}
    for name in ("one", "two"):
        peers[name] = await Peer.connect(hub.endpoint)
        await peers[name].send({"type": "heartbeat", "seq": 1, "payload": {"reactor": name}})
        await peers[name].send(submit(2, id=name, group="rm", element="lock", data={"key": name}))
        assert (await peers[name].message("result"))["payload"]["status"] == "success"
    await peers["two"].send({"type": "heartbeat", "seq": 3, "payload": {"reactor": "one"}})
    await until(lambda: hub.counts["names_changed"] == 1)
    await peers["two"].send(submit(4, id="three", group="rm", element="lock", data={"key": "three"}))
    await peers["two"].message("result")
    peers["one"].close()
    await client.call("rm", "lock", {"key": "one", "wait_ms": 5000})
    for key in ("two", "three"):
        assert (await refused(client.call("rm", "lock", {"key": key}))).code == "PF409"
    peers["two"].close()
    for key in ("two", "three"):
        await client.call("rm", "lock", {"key": key, "wait_ms": 5000})


async def test_what_goes_on_after_its_link_holds_things_for_the_grace_only(hub: Gateway, client: Reactor) -> None:
    sessions = hub.view.runtime().sessions  # type: ignore[union-attr]
    sessions.grace = 0.02
    release = asyncio.Event()
    hub.register("df", "first", lambda data: release.wait())
    peer = await Peer.connect(hub.endpoint)
    await peer.send(submit(1, id="first", element="first", metadata={"retry": 3}))
    await peer.send(submit(2, id="second", group="rm", element="lock", data={"key": "k"}, dependencies=["first"],
                           metadata={"retry": 3}))  # fmt: skip
    await until(lambda: hub.switch.in_flight == 2)
    peer.close()
    await until(lambda: hub.connections == 2)
    release.set()
    await until(lambda: hub.switch.in_flight == 0)
    assert not sessions.own.held
    await client.call("rm", "lock", {"key": "k", "wait_ms": 5000})


# ---------------------------------------------------------------- rm:lock


async def test_a_lock_is_one_holders_and_its_fence_only_grows(client: Reactor) -> None:
    fences = []
    for _ in range(5):
        granted = await client.call("rm", "lock", {"key": "k"})
        fences.append(granted["fence"])
        error = await refused(client.call("rm", "lock", {"key": "k"}))
        assert error.code == "PF409"
        assert await client.call("rm", "free", {"lease": granted["lease"]}) == {"freed": True}
    assert fences == sorted(set(fences))


async def test_waiting_for_a_lock_by_priority(hub: Gateway, client: Reactor) -> None:
    held = await client.call("rm", "lock", {"key": "k"})
    order: list[int] = []

    async def wait(priority: int) -> None:
        granted = await client.call("rm", "lock", {"key": "k", "wait_ms": 5000}, priority=priority)
        order.append(priority)
        await client.call("rm", "free", {"lease": granted["lease"]})

    waiting = [asyncio.ensure_future(wait(priority)) for priority in (2, 9, 5)]
    await until(lambda: hub.view.runtime().lines.waiting("lock", "k") == 3)  # type: ignore[union-attr]
    assert (await refused(client.call("rm", "lock", {"key": "k", "wait_ms": 10}))).code == "PF409"
    await client.call("rm", "free", {"lease": held["lease"]})
    await asyncio.gather(*waiting)
    assert order == [9, 5, 2]


async def test_a_lock_is_renewed_while_it_is_held(client: Reactor) -> None:
    async with client.lock("k", ttl=0.06) as lock:
        await asyncio.sleep(0.15)
        assert not lock.lost.is_set()
        assert (await refused(client.call("rm", "lock", {"key": "k"}))).code == "PF409"
    async with client.lock("k", wait=0) as again:
        assert again.fence > lock.fence


async def test_renewing(client: Reactor) -> None:
    granted = await client.call("rm", "lock", {"key": "k", "ttl_ms": 1000})
    renewed = await client.call("rm", "lock", {"lease": granted["lease"], "ttl_ms": 60_000})
    assert (renewed["lease"], renewed["fence"]) == (granted["lease"], granted["fence"])
    assert renewed["expires_at"] > granted["expires_at"]
    await client.call("rm", "free", {"lease": granted["lease"]})
    assert (await refused(client.call("rm", "lock", {"lease": granted["lease"]}))).code == "PF409"
    assert (await refused(client.call("rm", "lock", {"lease": "nobody's"}))).code == "PF409"


async def test_a_step_under_a_lock(client: Reactor) -> None:
    assert await client.call("rm", "lock", {"key": "k", "step": step("df", "double", 4)}) == 8
    error = await refused(client.call("rm", "lock", {"key": "k", "step": step("df", "fail", "luck")}))
    assert (error.code, error.details) == ("PF500", {"step": 0, "element": "df:fail"})
    # released in either case
    running = asyncio.ensure_future(client.call("rm", "lock", {"key": "k", "step": step("df", "sleep", 0.05)}))
    while (await client.call("rm", "lock", {"key": "probe"}))["fence"] and not running.done():
        if (await client.submit({"group": "rm", "element": "lock", "data": {"key": "k"}})).error is not None:
            break
    assert await running == 0.05
    slow = {"key": "k", "ttl_ms": 30, "step": step("df", "sleep", 10)}
    assert (await refused(client.call("rm", "lock", slow))).code == "PF409"
    async with client.lock("k", wait=0):
        pass


@pytest.mark.parametrize("data", [{}, {"key": ""}, {"key": "k", "lease": "x"}, {"key": "k", "wait_ms": -1}, {"key": 5}])
async def test_locks_refuse_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("rm", "lock", data))).code == "PF400"


async def test_a_lease_is_its_principals_only() -> None:
    role = Role("user", submit=("rm:*",))
    tokens = {name: f"token-of-{name}" for name in ("ada", "bob")}
    access = Access.of([role], [Identity(name, "user", tokens=(hash_token(tokens[name]),)) for name in tokens])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub:
        async with Reactor(hub.endpoint, token=tokens["ada"]) as ada, Reactor(hub.endpoint, token=tokens["bob"]) as bob:
            granted = await ada.call("rm", "lock", {"key": "k"})
            assert await bob.call("rm", "free", {"lease": granted["lease"]}) == {"freed": False}
            assert (await refused(bob.call("rm", "lock", {"lease": granted["lease"]}))).code == "PF409"
            assert await ada.call("rm", "free", {"lease": granted["lease"]}) == {"freed": True}


async def test_the_same_packet_again_changes_nothing(client: Reactor) -> None:
    packet = {"group": "rm", "element": "cache", "data": {"op": "incr", "key": "n"}, "id": "once"}
    first, second = await client.submit(packet), await client.submit(packet)
    assert first.data == second.data
    assert (await cache(client, "get", key="n"))["value"] == 1


# ---------------------------------------------------------------- rm:cache


async def test_set_get_delete(client: Reactor) -> None:
    assert await cache(client, "get", key="k") == {"value": None, "version": 0, "found": False}
    made = await cache(client, "set", key="k", value={"a": [1, None]})
    assert made == {"value": {"a": [1, None]}, "version": made["version"], "found": True}
    assert await cache(client, "get", key="k") == made
    assert (await cache(client, "set", key="k", value=None))["version"] > made["version"]
    assert (await cache(client, "get", key="k"))["found"] is True
    assert (await cache(client, "delete", key="k"))["found"] is True
    assert (await cache(client, "delete", key="k"))["found"] is False


async def test_versions(client: Reactor) -> None:
    version = (await cache(client, "set", key="k", value=1, version=0))["version"]
    error = await refused(cache(client, "set", key="k", value=2, version=0))
    assert (error.code, error.details) == ("PF409", {"version": version})
    later = (await cache(client, "set", key="k", value=2, version=version))["version"]
    assert (await refused(cache(client, "delete", key="k", version=version))).code == "PF409"
    assert (await cache(client, "delete", key="k", version=later))["found"] is True


async def test_a_value_ends_with_its_time(client: Reactor) -> None:
    await cache(client, "set", key="k", value=1, ttl_ms=20)
    while (await cache(client, "get", key="k"))["found"]:
        await asyncio.sleep(0.005)
    await cache(client, "set", key="k", value=1, ttl_ms=20)
    await cache(client, "set", key="k", value=2)  # for good
    await asyncio.sleep(0.05)
    assert (await cache(client, "get", key="k"))["value"] == 2


async def test_incr(client: Reactor) -> None:
    assert (await cache(client, "incr", key="n"))["value"] == 1
    assert (await cache(client, "incr", key="n", by=-2.5))["value"] == -1.5
    await asyncio.gather(*(cache(client, "incr", key="m") for _ in range(200)))
    assert await client.cache.get("m") == 200
    await cache(client, "set", key="t", value="text")
    assert (await refused(cache(client, "incr", key="t"))).code == "PF400"


async def test_list_by_prefix_in_pages(client: Reactor) -> None:
    await asyncio.gather(*(cache(client, "set", key=f"a:{n:04}", value=n) for n in range(1500)))
    await cache(client, "set", key="b", value=0)
    page = await cache(client, "list", key="a:")
    assert [entry["key"] for entry in page["value"]] == [f"a:{n:04}" for n in range(1000)]
    assert page["after"] == "a:0999"
    assert [value async for _, value in client.cache.list("a:")] == list(range(1500))
    await cache(client, "delete", key="a:0001")
    assert [key async for key, _ in client.cache.list("a:000")][:2] == ["a:0000", "a:0002"]
    assert await cache(client, "list", key="zz") | {"version": 0} == {
        "value": [],
        "version": 0,
        "found": False,
        "after": None,
    }


async def test_fill_computes_once_however_many_ask(hub: Gateway, client: Reactor) -> None:
    runs = []

    async def costly(data: Any) -> Any:
        runs.append(data)
        await asyncio.sleep(0.02)
        return {"computed": data}

    hub.register("df", "costly", costly)
    values = await asyncio.gather(*(client.cache.fill("k", step("df", "costly", 5), ttl=10) for _ in range(50)))
    assert values == [{"computed": 5}] * 50
    assert runs == [5]
    assert await client.cache.fill("k", step("df", "costly", 6)) == {"computed": 5}


async def test_who_waits_for_a_fill_gets_it_even_when_it_has_expired(hub: Gateway, client: Reactor) -> None:
    runs = []
    made = asyncio.Event()

    async def costly(data: Any) -> Any:
        runs.append(data)
        await made.wait()
        return "x" * 500_000

    hub.register("df", "costly", costly)
    fills = [asyncio.ensure_future(client.cache.fill("k", step("df", "costly"), ttl=0.001)) for _ in range(40)]
    elements = hub.view.runtime()
    assert elements is not None
    await until(lambda: elements.lines.waiting("fill", "k") == 39)
    made.set()
    assert [len(value) for value in await asyncio.gather(*fills)] == [500_000] * 40
    assert len(runs) == 1


async def test_large_values_that_many_wait_for_leave_one_by_one(hub: Gateway, client: Reactor) -> None:
    """Others get on between two of them."""
    made = asyncio.Event()

    async def costly(data: Any) -> Any:
        await made.wait()
        return "x" * 500_000

    hub.register("df", "costly", costly)
    fills = [asyncio.ensure_future(client.cache.fill("k", step("df", "costly"))) for _ in range(40)]
    elements = hub.view.runtime()
    assert elements is not None
    while elements.lines.waiting("fill", "k") < 39:
        await asyncio.sleep(0)
    made.set()
    left = []
    while not all(fill.done() for fill in fills):
        await asyncio.sleep(0)
        left.append(elements.lines.waiting("fill", "k"))
    assert max(before - after for before, after in itertools.pairwise([39, *left])) <= 2


async def test_a_fill_that_fails_is_tried_by_the_next(hub: Gateway, client: Reactor) -> None:
    outcomes = iter([ValueError("first"), 7])

    async def fickle(data: Any) -> Any:
        await asyncio.sleep(0.01)
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    hub.register("df", "fickle", fickle)
    calls = [client.cache.fill("k", step("df", "fickle")) for _ in range(3)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(str(one) for one in found) == ["7", "7", "PF500: first"]


async def test_the_least_recently_used_leave_at_the_bound() -> None:
    bounds = Bounds(cache=100_000)
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", elements=bounds) as hub, Reactor(hub.endpoint) as client:
        for n in range(8):
            await client.cache.set(f"k{n}", "x" * 10_000)
        await client.cache.get("k0")
        for n in range(8, 12):
            await client.cache.set(f"k{n}", "x" * 10_000)
        found = [n for n in range(12) if (await client.cache.entry(f"k{n}")).found]
        assert 0 in found
        assert 1 not in found
        assert hub.view.runtime().store.size("cache") <= 100_000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        {"op": "get"},
        {"op": "set", "key": "k"},
        {"op": "fill", "key": "k"},
        {"op": "grow", "key": "k"},
        {"op": "set", "key": "k", "value": 1, "ttl_ms": -1},
        {"op": "get", "key": "k" * 257},
    ],
)
async def test_the_cache_refuses_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("rm", "cache", data))).code == "PF400"


async def test_a_value_too_large(client: Reactor) -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(value=1000)) as hub,
        Reactor(hub.endpoint) as small,
    ):
        assert (await refused(small.cache.set("k", "x" * 1000))).code == "PF413"


async def test_watching_the_cache(hub: Gateway, client: Reactor) -> None:
    async def two() -> list[Any]:
        found = []
        async for change in client.cache.watch("user:*"):
            found.append((change.value, change.found))
            if len(found) == 2:
                return found
        raise AssertionError

    watching = asyncio.ensure_future(two())
    await until(lambda: hub.view.runtime().lines.waiting("key", "user:*") == 1)  # type: ignore[union-attr]
    await client.cache.set("user:7", "Ada")
    await client.cache.set("other", "not this one")
    await client.cache.delete("user:7")
    assert await watching == [("Ada", True), (None, False)]


@pytest.mark.parametrize(("value", "by"), [(1e308, 1e308), (-1.7e308, -1e308), (1e308, 2**53)])
async def test_a_sum_that_is_no_number_any_more(client: Reactor, value: Any, by: Any) -> None:
    version = await client.cache.set("n", value)
    found = await client.submit({"group": "rm", "element": "cache", "data": {"op": "incr", "key": "n", "by": by}})
    if by == 2**53:
        assert found.data["value"] == 1e308
        return
    assert found.error["code"] == "PF400"
    assert (await client.cache.entry("n")) == (value, version, True)


async def test_integers_stay_exact(client: Reactor) -> None:
    await client.cache.set("n", 2**64)
    assert await client.cache.incr("n", 1) == 2**64 + 1


async def test_a_fence_grows_when_the_gateway_starts_anew() -> None:
    fences = []
    for _ in range(2):
        async with Gateway("ws://127.0.0.1:0/packetflow/v1") as hub:
            fences.append((await hub.call("rm", "lock", {"key": "k"}))["fence"])
    assert fences[1] > fences[0] > 1.6e15


async def test_a_step_under_a_lock_ends_with_its_packet_and_frees_it(client: Reactor) -> None:
    packet = {"key": "k", "step": step("df", "sleep", 60)}
    assert (await refused(client.call("rm", "lock", packet, timeout_ms=50))).code == "PF408"
    async with client.lock("k"):
        pass


async def test_a_lock_that_is_another_s_by_now_is_not_freed(hub: Gateway, client: Reactor) -> None:
    first = await client.call("rm", "lock", {"key": "k"})
    assert hub.view.runtime() is not None
    await hub.view.runtime().store.delete("lock", "k")  # by another gateway, whose clock was ahead
    second = await client.call("rm", "lock", {"key": "k"})
    assert second["fence"] > first["fence"]
    await client.call("rm", "free", {"lease": first["lease"]})
    assert (await refused(client.call("rm", "lock", {"key": "k"}))).code == "PF409"


async def test_adding_to_another_version_or_beyond_all_measure(client: Reactor) -> None:
    version = await client.cache.set("n", 10**350)
    error = await refused(cache(client, "incr", key="n", version=version + 1))
    assert (error.code, error.details) == ("PF409", {"version": version})
    error = await refused(cache(client, "incr", key="n", by=0.5))
    assert (error.code, "larger than a number may be" in error.message) == ("PF400", True)


async def test_a_step_under_a_lock_ends_when_it_is_cancelled(hub: Gateway, client: Reactor) -> None:
    begun = []
    hub.register("df", "stays", lambda data: begun.append(data) or asyncio.get_running_loop().create_future())
    waiting = client.call("rm", "lock", {"key": "k", "step": step("df", "stays")})
    await until(lambda: begun)
    waiting.cancel()
    async with client.lock("k"):
        pass
