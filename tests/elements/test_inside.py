"""What the gateway submits for others: by whose role, out of whose account, and for how long."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from packetflow import Access, Forbidden, Gateway, Identity, Packet, PacketFlowError, Reactor, Role
from packetflow.elements import call, gather, seq, step
from packetflow.elements.call import step_failed
from packetflow.elements.turns import SLICE, Turns
from packetflow.gateway import hash_token, inside
from pfcore.memory.budget import Account
from tests.helpers import Slow, Stays, refused, until

ECHO = step("df", "echo", 1)


async def ask(client: Reactor, packet: dict[str, Any]) -> Any:
    return await client.call(packet["group"], packet["element"], packet["data"])


def ways(hub: Gateway) -> dict[Any, Any]:
    return hub.view.inside.ways


async def test_nested_packets_of_anonymous_links_are_paid_for_by_each(hub: Gateway) -> None:
    hub.register("df", "echo", lambda data: data)
    async with Reactor(hub.endpoint) as one, Reactor(hub.endpoint) as two:
        for client in (one, two):
            await ask(client, seq(ECHO, seq(ECHO)))
        members = [
            member for member in hub.switch.links if member.principal.number == 0 and member.engine in hub.view.links
        ]
        accounts = {member.account for member in members}
        assert len(accounts) == 2
        used = {key: way for key, way in ways(hub).items() if key[0].number == 0}
        assert {key[1] for key in used} == accounts
        for (_, account), way in used.items():
            assert way.loopback.far.member.account is account
    # their ways end with their links
    await until(lambda: not [key for key in ways(hub) if key[0].number == 0])
    assert all(account.held == 0 for account in accounts)


async def test_principals_have_one_way_whatever_their_links() -> None:
    access = Access.of([Role("user", submit=("*:*",))], [Identity("user", "user", tokens=(hash_token("token"),))])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub:
        hub.register("df", "echo", lambda data: data)
        for _ in range(2):
            async with Reactor(hub.endpoint, token="token") as one:
                await ask(one, seq(ECHO))
        assert [key[0].name for key in ways(hub)] == ["gateway", "user"]
        hub.set_access(Access.of([Role("user", submit=("*:*",))], [Identity("other", "user")]))
        assert [key[0].name for key in ways(hub)] == ["gateway"]


async def test_a_way_stays_until_what_is_under_way_has_ended(hub: Gateway, client: Reactor) -> None:
    other = Reactor(hub.endpoint, reconnect=False, name="other")
    await other.start()
    await other.react("e", step("df", "sleep", 0.3))
    await client.signal("e")
    key = next(key for key in ways(hub) if key[0].number == 0 and ways(hub)[key].loopback.engine.in_flight)
    way = ways(hub)[key]
    await other.stop()
    await until(lambda: way.leaving)
    await asyncio.sleep(0)
    assert ways(hub).get(key) is way
    await until(lambda: key not in ways(hub))
    assert hub.switch.elements["df:sleep"].succeeded == 1


async def test_a_way_that_is_made_after_its_link_has_gone_ends_too(
    hub: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "IDLE", 0.05)
    hub.register("df", "echo", lambda data: data)
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    await other.timer(step("df", "echo"), after=0.05)
    await other.stop()
    await until(lambda: hub.switch.elements.get("df:echo") is not None and hub.switch.elements["df:echo"].succeeded)
    await until(lambda: not [key for key in ways(hub) if key[0].number == 0])


async def test_steps_stay_json(hub: Gateway, client: Reactor) -> None:
    """Numbers that no float holds and the order of keys go through a workflow as they came."""
    big = {"z": 12345678901234567890123, "a": [1.0, 1e5], "é": "\u2028"}
    assert await ask(client, seq(step("df", "echo", big), step("df", "echo", {"$": "prev"}))) == big


async def test_metadata_reaches_the_steps(hub: Gateway, client: Reactor) -> None:
    seen: list[Any] = []
    hub.register("df", "meta", lambda data, packet: seen.append(packet.metadata))
    packet = {"group": "cf", "element": "seq", "metadata": {"key": "k"}, "data": seq(step("df", "meta"), step("df", "meta", metadata={"key": "l"}))["data"]}  # fmt: skip
    assert (await client.submit(packet)).ok
    assert seen == [{"key": "k"}, {"key": "l"}]
    wrong = seq({**step("df", "meta"), "metadata": [1]})
    assert (await refused(ask(client, wrong))).code == "PF400"


async def test_large_results_of_steps_that_come_together_are_taken_a_few_at_a_time(
    hub: Gateway, client: Reactor
) -> None:
    """A megabyte or so in an iteration of the loop, so that others get on in between; and all arrive."""
    release = asyncio.Event()

    async def big(data: int) -> str:
        await release.wait()
        return str(data % 10) * 500_000

    hub.register("df", "big", big)
    sequences = [asyncio.ensure_future(ask(client, seq(step("df", "big", n)))) for n in range(24)]
    elements = hub.view.runtime()
    assert elements is not None
    await until(lambda: len(elements.nests) == 24)
    release.set()
    left = [24]
    while elements.nests:
        await asyncio.sleep(0)
        left.append(len(elements.nests))
    assert max(before - after for before, after in itertools.pairwise(left)) <= 6
    assert [answer[0] for answer in await asyncio.gather(*sequences)] == [str(n % 10) for n in range(24)]


async def test_workflows_whose_steps_fail_together_end_in_their_turns(
    hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lets go of all of its steps then."""
    release = asyncio.Event()

    async def fails(data: int) -> None:
        await release.wait()
        raise ValueError("not so")

    ended = [0]

    def failed(*about: Any) -> PacketFlowError:
        ended[-1] += 1
        return step_failed(*about)

    monkeypatch.setattr(call, "step_failed", failed)
    hub.register("df", "fails", fails)
    elements = hub.view.runtime()
    assert elements is not None
    sequences = [asyncio.ensure_future(refused(ask(client, seq(step("df", "fails", n))))) for n in range(24)]
    await until(lambda: len(elements.nests) == 24)
    elements.turns = Turns(asyncio.get_running_loop(), Slow())
    release.set()
    while sum(ended) < 24:
        ended.append(0)
        await asyncio.sleep(0)
    assert max(ended) <= 2
    assert {error.code for error in await asyncio.gather(*sequences)} == {"PF500"}


async def test_what_nobody_waits_for_is_done_in_turns(hub: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    elements = hub.view.runtime()
    assert elements is not None
    now = [0.0]
    elements.turns = Turns(asyncio.get_running_loop(), lambda: now[0])
    done = [0]

    async def piece(fails: bool) -> None:
        done[-1] += 1
        now[0] += SLICE
        if fails:
            raise LookupError("nothing there")

    for n in range(50):
        elements.in_turn(lambda fails=n == 7: piece(fails), Account("one", 1))  # type: ignore[misc]
        elements.in_turn(lambda: piece(False), None)
    while sum(done) < 100:
        done.append(0)
        await asyncio.sleep(0)
    assert max(done) <= 2
    assert [record.message for record in caplog.records] == ["a background task of the elements failed"]


@pytest.mark.parametrize("packet", [seq(step("df", "stays")), gather(step("df", "stays"))], ids=["seq", "gather"])
async def test_steps_of_one_who_has_lost_his_credentials_end(packet: dict[str, Any]) -> None:
    role = Role("user", submit=("*:*",))
    stays = Stays()
    access = Access.of([role], [Identity("user", "user", tokens=(hash_token("token"),))])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub:
        hub.register("df", "stays", stays)
        async with Reactor(hub.endpoint, token="token", reconnect=False) as client:
            waiting = asyncio.ensure_future(ask(client, packet))
            await until(lambda: stays.begun)
            hub.set_access(Access.of([role], [Identity("other", "user", certificate="other")]))
            assert (await refused(waiting)).code in ("PF401", "PF403", "PF502", "PF503")
            await until(lambda: stays.ended)
        assert [key[0].name for key in ways(hub)] == ["gateway"]


async def test_a_background_task_that_fails_is_logged_and_one_that_runs_ends_with_the_gateway(
    hub: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise LookupError("nothing there")

    async def stays() -> None:
        await asyncio.get_running_loop().create_future()

    assert hub.view.runtime() is not None
    failing, staying = hub.view.runtime().spawn(fails()), hub.view.runtime().spawn(stays())
    await asyncio.wait({failing})
    await asyncio.sleep(0)
    assert "a background task of the elements failed" in [record.message for record in caplog.records]
    await hub.stop(0)
    await asyncio.wait({staying})
    assert staying.cancelled()


async def test_who_may_not_be_anonymous_submits_nothing() -> None:
    access = Access.of([Role("user", submit=("*:*",))], [Identity("user", "user", certificate="user")])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub:
        with pytest.raises(Forbidden, match="principal 'anonymous' is no more"):
            hub.view.inside.submit_as(hub.view.principals.anonymous, Packet("df", "echo"))
