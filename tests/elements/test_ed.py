"""Event driven: signals, reactions, watching, timers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
import pytest

from packetflow import Access, Gateway, Identity, Packet, Reactor, Role
from packetflow.elements import Bounds, ref, step
from packetflow.errors import Forbidden
from packetflow.gateway import hash_token
from tests.helpers import refused, until


@pytest.fixture
def heard(hub: Gateway) -> list[Any]:
    """What steps have told the gateway's own df:hear."""
    heard: list[Any] = []
    hub.register("df", "hear", heard.append)
    return heard


HEAR = step("df", "hear", ref("event"))


# ---------------------------------------------------------------- ed:signal, ed:react


async def test_a_signal_reaches_every_reaction_that_matches(client: Reactor, heard: list[Any]) -> None:
    await client.react("order.new", HEAR)
    await client.react("order.*", HEAR)
    await client.react("*", HEAR)
    await client.react("order.newest", HEAR)
    assert await client.signal("order.new", {"id": 7}) == 3
    await until(lambda: len(heard) == 3)
    assert heard == [{"name": "order.new", "payload": {"id": 7}}] * 3
    assert await client.signal("nothing") == 1


async def test_a_signal_does_not_wait(client: Reactor) -> None:
    await client.react("e", step("cf", "gate", {"gate": "g", "action": "wait"}))
    assert await client.signal("e") == 1
    assert (await client.call("cf", "gate", {"gate": "g", "action": "open"}))["open"]  # what it waits for comes after


async def test_a_reaction_ends_when_it_is_cancelled(client: Reactor, heard: list[Any]) -> None:
    reaction = await client.react("e", HEAR, id="mine")
    assert reaction == "mine"
    # the same id again takes its place
    await client.react("e", step("df", "hear", "second"), id="mine")
    assert await client.signal("e") == 1
    await until(lambda: heard == ["second"])
    assert await client.unreact("mine") is True
    assert await client.unreact("mine") is False
    assert await client.signal("e") == 0


async def test_a_reaction_ends_with_its_link(hub: Gateway, client: Reactor, heard: list[Any]) -> None:
    hub.view.runtime().sessions.grace = 0.02  # type: ignore[union-attr]
    other = Reactor(hub.endpoint, name="other", reconnect=False)
    await other.start()
    await other.react("e", HEAR)
    assert await client.signal("e") == 1
    await other.stop()
    while await client.signal("e"):
        await asyncio.sleep(0.005)


async def test_a_reaction_that_signals_itself_comes_to_an_end(client: Reactor, hub: Gateway) -> None:
    await client.react("loop", step("ed", "signal", {"event": "loop"}))
    await client.signal("loop")
    await until(lambda: hub.switch.in_flight == 0 and not hub.view.runtime().nests)  # type: ignore[union-attr]
    assert hub.switch.elements["ed:signal"].succeeded <= 20


# ---------------------------------------------------------------- ed:watch


async def test_watching_misses_nothing_in_between(client: Reactor, hub: Gateway) -> None:
    first = asyncio.ensure_future(client.call("ed", "watch", {"event": "e.*"}))
    await until(lambda: hub.view.runtime().lines.waiting("event", "e.*") == 1)  # type: ignore[union-attr]
    assert await client.signal("e.a", 1) == 1
    found = await first
    assert (found["event"], found["payload"]) == ("e.a", 1)
    for n in range(5):
        await client.signal(f"e.{n}", n)
    seen = []
    for _ in range(5):
        found = await client.call("ed", "watch", {"event": "e.*", "after": found["cursor"]})
        seen.append(found["payload"])
    assert seen == list(range(5))
    assert (
        await refused(client.call("ed", "watch", {"event": "e.*", "after": found["cursor"], "wait_ms": 10}))
    ).code == "PF408"


async def test_a_cursor_that_is_too_old(client: Reactor, hub: Gateway) -> None:
    await client.cache.set("something", "has happened")
    error = await refused(client.call("ed", "watch", {"event": "never", "after": 0}))
    assert error.code == "PF409"
    start = hub.view.runtime().watched.keep("event", "e")  # type: ignore[union-attr]
    for n in range(1001):
        await client.signal("e", n)
    assert (await refused(client.call("ed", "watch", {"event": "e", "after": start}))).code == "PF409"


async def test_a_name_is_kept_while_somebody_may_come_back_with_a_cursor_of_it(client: Reactor, hub: Gateway) -> None:
    watched = hub.view.runtime().watched  # type: ignore[union-attr]
    for part in ({"event": "over"}, {"key": "over"}, {"key": "over", "version": 0}):
        assert (await refused(client.call("ed", "watch", part | {"wait_ms": 1}))).code == "PF408"
        assert len(watched) == 0, "nobody has a cursor, and nothing was noted"
    waiting = [asyncio.ensure_future(client.call("ed", "watch", {"event": "e"})) for _ in range(2)]
    await until(lambda: hub.view.runtime().lines.waiting("event", "e") == 2)  # type: ignore[union-attr]
    waiting[0].cancel()
    await until(lambda: hub.view.runtime().lines.waiting("event", "e") == 1)  # type: ignore[union-attr]
    assert len(watched) == 1
    await client.signal("e", 1)
    cursor = (await waiting[1])["cursor"]
    await client.signal("e", 2)
    assert (await client.call("ed", "watch", {"event": "e", "after": cursor}))["payload"] == 2
    assert (await client.call("ed", "watch", {"key": "k", "version": 7}))["version"] == 0
    oldest = (await refused(client.call("ed", "watch", {"event": "f", "after": 0}))).details["oldest"]
    await client.signal("f", 3)
    assert (await client.call("ed", "watch", {"event": "f", "after": oldest}))["payload"] == 3
    assert len(watched) == 3


async def test_watching_a_key(client: Reactor, hub: Gateway) -> None:
    waiting = asyncio.ensure_future(client.call("ed", "watch", {"key": "k"}))
    await until(lambda: hub.view.runtime().lines.waiting("key", "k") == 1)  # type: ignore[union-attr]
    version = await client.cache.set("k", {"a": 1})
    change = await waiting
    assert change == {"key": "k", "value": {"a": 1}, "version": version, "cursor": change["cursor"]}
    # what has another version than this is told at once
    assert (await client.call("ed", "watch", {"key": "k", "version": 0}))["version"] == version
    await client.cache.delete("k")
    gone = await client.call("ed", "watch", {"key": "k", "after": change["cursor"]})
    assert gone["value"] is None


async def test_iterating_over_events_and_changes(client: Reactor, hub: Gateway) -> None:
    async def collect() -> list[Any]:
        found = []
        async for event, payload in client.watch("tick.*"):
            found.append((event, payload))
            if len(found) == 3:
                return found
        raise AssertionError

    collecting = asyncio.ensure_future(collect())
    await until(lambda: hub.view.runtime().lines.waiting("event", "tick.*") == 1)  # type: ignore[union-attr]
    for n in range(3):
        await client.signal(f"tick.{n}", n)
    assert await collecting == [("tick.0", 0), ("tick.1", 1), ("tick.2", 2)]


@pytest.mark.parametrize(
    ("element", "data"),
    [
        ("watch", {}),
        ("watch", {"event": "e", "key": "k"}),
        ("watch", {"event": "e", "version": 1}),
        ("watch", {"key": "k*", "version": 1}),
        ("react", {"event": "e"}),
        ("react", {"packet": step("df", "echo")}),
        ("react", {"cancel": "x", "event": "e"}),
        ("signal", {"event": ""}),
        ("timer", {"packet": step("df", "echo")}),
        ("timer", {"after_ms": 1}),
        ("timer", {"packet": step("df", "echo"), "after_ms": -1}),
        ("timer", {"packet": step("df", "echo"), "every_ms": 9}),
        ("timer", {"packet": step("df", "echo"), "after_ms": 1, "at": 5}),
        ("timer", {"packet": step("df", "echo"), "after_ms": 1, "count": 2}),
    ],
)
async def test_events_refuse_what_is_not_valid(client: Reactor, element: str, data: dict[str, Any]) -> None:
    assert (await refused(client.call("ed", element, data))).code == "PF400"


# ---------------------------------------------------------------- ed:timer


async def test_a_timer_fires_once_after_a_while(client: Reactor, heard: list[Any]) -> None:
    timer = await client.timer(step("df", "hear", ref("event.name")), after=0.02, id="t")
    assert abs(timer.next_at - time.time()) < 5
    await until(lambda: heard == ["t"])
    assert await timer.cancel() is False


async def test_a_timer_at_a_time(client: Reactor, heard: list[Any]) -> None:
    await client.timer(step("df", "hear", 1), at=time.time() + 0.02)
    await client.timer(step("df", "hear", 2), at=time.time() - 100)  # gone by: at once
    await until(lambda: heard == [2, 1])


async def test_a_timer_is_cancelled(client: Reactor, heard: list[Any]) -> None:
    timer = await client.timer(HEAR, every=0.01)
    await until(lambda: len(heard) >= 3)
    assert await timer.cancel() is True
    count = len(heard)
    await asyncio.sleep(0.03)
    assert len(heard) <= count + 1


async def test_firings_do_not_drift(hub: Gateway, client: Reactor) -> None:
    times: list[tuple[int, float]] = []
    loop = asyncio.get_running_loop()
    hub.register("df", "mark", lambda data: times.append((data, loop.time())))
    await client.timer(step("df", "mark", ref("index")), every=0.01, count=100)
    (timer,) = hub.view.runtime().standing.values()  # type: ignore[union-attr]
    await until(lambda: len(times) == 100)
    # the n-th is due at start + n times every: none is early, however late the others were
    assert min(at - timer.start - n * 0.01 for n, at in times) > -0.001
    assert [n for n, _ in times] == sorted({n for n, _ in times})
    # and one that is late is late by less than the next: what has gone by is dropped
    late = sorted(at - timer.start - n * 0.01 for n, at in times)
    assert late[50] < 0.5


async def test_timers_end_with_their_link(hub: Gateway, client: Reactor, heard: list[Any]) -> None:
    hub.view.runtime().sessions.grace = 0.02  # type: ignore[union-attr]
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    await other.timer(HEAR, every=0.01)
    await until(lambda: heard)
    await other.stop()
    await until(lambda: not hub.view.runtime().standing)  # type: ignore[union-attr]


async def test_so_many_timers_and_reactions_a_link() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(timers=3)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        timer = await client.timer(HEAR, after=100)
        await client.timer(HEAR, after=100)
        await client.react("e", HEAR)
        assert (await refused(client.timer(HEAR, after=100))).code == "PF429"
        assert (await refused(client.react("e", HEAR))).code == "PF429"
        await timer.cancel()
        await client.react("e", HEAR)


async def test_firings_that_were_missed_are_dropped(client: Reactor, hub: Gateway) -> None:
    fired: list[int] = []
    hub.register("df", "mark", fired.append)
    await client.timer(step("df", "mark", ref("index")), every=0.01, count=3)
    (timer,) = hub.view.runtime().standing.values()  # type: ignore[union-attr]
    timer.start -= 100  # as if the loop had stood still so long
    await until(lambda: len(fired) == 3)
    # not made up: after the first, which was due, come those of now
    assert fired[0] == 0
    assert fired[1] >= 10_000
    assert fired[2] > fired[1]


async def test_a_firing_that_has_not_had_its_turn_is_not_there_twice(client: Reactor, hub: Gateway) -> None:
    runtime = hub.view.runtime()
    assert runtime is not None
    queued: list[Any] = []
    real = runtime.turns.when
    runtime.turns.when = lambda account, work: queued.append((account, work))  # type: ignore[method-assign]
    await client.timer(HEAR, every=0.01)
    await until(lambda: queued)
    await asyncio.sleep(0.05)
    assert len(queued) == 1
    runtime.turns.when = real  # type: ignore[method-assign]
    queued[0][1]()


@pytest.mark.parametrize(
    ("group", "element", "data", "name"),
    [
        ("ed", "timer", {"packet": step("df", "echo"), "every_ms": 9}, "every_ms"),
        ("ed", "timer", {"packet": step("df", "echo"), "after_ms": 0, "every_ms": 1, "count": 5}, "every_ms"),
        ("ed", "timer", {"packet": step("df", "echo"), "every_ms": 10**400}, "every_ms"),
        ("ed", "timer", {"packet": step("df", "echo"), "at": 10**400}, "at"),
        ("ed", "timer", {"packet": step("df", "echo"), "every_ms": 10, "count": 10**400}, "count"),
        ("ed", "watch", {"event": "e", "after": 10**400}, "after"),
        ("cf", "gate", {"gate": "g", "action": "wait", "wait_ms": 10**400}, "wait_ms"),
        ("cf", "gate", {"gate": "g", "action": "arrive", "count": 10**400}, "count"),
        ("cf", "loop", {"step": step("df", "echo"), "times": 10**400}, "times"),
        ("cf", "loop", {"step": step("df", "echo"), "times": 1, "max_iterations": 10**4000}, "max_iterations"),
        ("cf", "seq", {"steps": [{**step("df", "echo"), "timeout_ms": 10**400}]}, "timeout_ms"),
        ("cf", "seq", {"steps": [{**step("df", "echo"), "priority": 10**400}]}, "priority"),
        ("df", "consume", {"stream": "s", "ack": [10**400]}, "ack"),
        ("df", "consume", {"stream": "s", "redeliver_after_ms": 10**400}, "redeliver_after_ms"),
        ("co", "sync", {"barrier": "b", "parties": 10**400}, "parties"),
        ("co", "vote", {"ballot": "b", "choice": 1, "voters": 10**400}, "voters"),
        ("co", "gather", {"packets": [], "need": 10**400}, "need"),
        ("rm", "alloc", {"pool": "p", "capacity": 10**400}, "capacity"),
        ("rm", "alloc", {"pool": "p", "capacity": 1, "wait_ms": 10**400}, "wait_ms"),
        ("rm", "lock", {"key": "k", "ttl_ms": 10**400}, "ttl_ms"),
        ("rm", "cache", {"op": "set", "key": "k", "value": 1, "ttl_ms": 10**400}, "ttl_ms"),
        ("rm", "cache", {"op": "incr", "key": "k", "by": 10**400}, "by"),
        ("rm", "cache", {"op": "set", "key": "k", "value": 1, "version": 10**400}, "version"),
    ],
)
async def test_numbers_beyond_all_measure(client: Reactor, group: str, element: str, data: Any, name: str) -> None:
    error = await refused(client.call(group, element, msgspec.Raw(json.dumps(data).encode())))
    assert (error.code, name in error.message) == ("PF400", True)
    assert await client.signal("still there") == 0


async def test_a_removed_principals_timers_reactions_and_leases_end(hub: Gateway, client: Reactor) -> None:
    runtime = hub.view.runtime()
    assert runtime is not None
    await client.timer(HEAR, every=100)
    await client.react("e", HEAR)
    await client.call("rm", "lock", {"key": "k"})
    await hub.call("rm", "lock", {"key": "other"})
    await hub.react("e", HEAR)
    runtime.sessions.end_principals({hub.view.principals.anonymous.number})
    await until(lambda: [standing.principal.name for standing in runtime.standing.values()] == ["gateway"])
    await until(lambda: len(runtime.leases) == 1)
    assert (await hub.call("rm", "lock", {"key": "k", "wait_ms": 5000}))["fence"] > 0


async def test_a_timer_of_one_who_has_lost_his_credentials_does_nothing(heard: list[Any]) -> None:
    role = Role("user", submit=("*:*",))
    leaving, staying = (Identity(name, "user", tokens=(hash_token(name),)) for name in ("leaving", "staying"))
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of([role], [leaving, staying])) as hub:
        ran: list[Any] = []
        hub.register("df", "hear", ran.append)
        async with Reactor(hub.endpoint, token="staying") as user:
            left = Reactor(hub.endpoint, token="leaving", reconnect=False)
            await left.start()
            await left.react("e", step("df", "hear", "left"))
            await user.react("e", step("df", "hear", "stayed"))
            principal = hub.view.principals.named["leaving"]
            hub.set_access(Access.of([Role("admin", submit=("*:*",), admin=True), role], [staying]))
            # even before anyone has ended what it set up
            with pytest.raises(Forbidden):
                hub.view.inside.submit_as(principal, Packet("df", "hear", "again"), principal.account)
            assert not hub.view.inside.may_submit(principal, "df:hear")
            await user.signal("e")
            await until(lambda: ran)
            assert ran == ["stayed"]
            await left.stop()


async def test_ending_a_reaction_or_timer_again_is_nothing(hub: Gateway, client: Reactor) -> None:
    await client.react("e", HEAR)
    timer = await client.timer(HEAR, after=100)
    assert hub.view.runtime() is not None
    standing = list(hub.view.runtime().standing.values())
    for one in standing * 2:
        one.end()
    assert len(standing) == 2
    assert hub.view.runtime().standing == {}
    assert not await timer.cancel()
    assert await client.signal("e") == 0


async def test_a_firing_that_fails_is_logged(client: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "packetflow.elements")
    timer = await client.timer(step("df", "echo", {"$": "length(`1`)"}), after=0)
    await until(lambda: any(record.message.startswith(f"timer {timer.id}: ") for record in caplog.records))


async def test_a_step_that_nobody_waits_for_and_that_comes_to_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "packetflow.elements")
    role = Role("user", submit=("*:*",))
    access = Access.of([role], [Identity("user", "user", tokens=(hash_token("token"),))])
    begun = []
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub:
        hub.register("df", "stays", lambda data: begun.append(data) or asyncio.get_running_loop().create_future())
        async with Reactor(hub.endpoint, token="token", reconnect=False) as client:
            await client.timer(step("df", "stays"), after=0)
            await until(lambda: begun)
            hub.set_access(Access.of([role], [Identity("other", "user", certificate="other")]))
            await until(lambda: any("df:stays, which nobody waits for" in one.message for one in caplog.records))


async def test_a_timer_is_within_a_year(client: Reactor) -> None:
    at = int((time.time() + 400 * 86_400) * 1000)
    assert (await refused(client.call("ed", "timer", {"packet": HEAR, "at": at}))).code == "PF400"
