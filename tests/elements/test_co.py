"""Collective: barriers, broadcasts, gathering, votes; with parties that are late or lost."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.conformance.wire import Peer
from packetflow.elements import Bounds, co, gather, in_memory, step
from packetflow.errors import Overloaded
from packetflow.gateway import hash_token
from tests.helpers import refused, until


def waiting(hub: Gateway, kind: str) -> int:
    assert hub.view.runtime() is not None
    return sum(len(line) for (found, _), line in hub.view.runtime().lines._lines.items() if found == kind)


# ---------------------------------------------------------------- co:sync


async def test_all_parties_return_together_with_everyones_data(client: Reactor) -> None:
    for generation in range(3):
        results = await asyncio.gather(
            *(client.call("co", "sync", {"barrier": "b", "parties": 4, "data": {"n": n}}) for n in range(4))
        )
        assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
        assert {result["generation"] for result in results} == {generation}
        for result in results:
            assert result["data"] == results[0]["data"]
            assert result["data"][result["index"]] in [{"n": n} for n in range(4)]


async def test_a_party_that_does_not_come_in_time_breaks_it_for_all(hub: Gateway, client: Reactor) -> None:
    patient = asyncio.ensure_future(client.barrier("b", 3).wait())
    await until(lambda: waiting(hub, "barrier") == 1)
    hasty = asyncio.ensure_future(client.barrier("b", 3).wait(timeout=0.02))
    assert (await refused(hasty)).code == "PF408"
    assert (await refused(patient)).code == "PF408"
    # the next generation is whole
    results = await asyncio.gather(*(client.call("co", "sync", {"barrier": "b", "parties": 3}) for _ in range(3)))
    assert {result["generation"] for result in results} == {1}


async def test_a_deadline_breaks_it_too(hub: Gateway, client: Reactor) -> None:
    patient = asyncio.ensure_future(client.barrier("b", 2 + 1).wait())
    await until(lambda: waiting(hub, "barrier") == 1)
    assert (await refused(client.call("co", "sync", {"barrier": "b", "parties": 3}, timeout_ms=30))).code == "PF408"
    assert (await refused(patient)).code == "PF408"


async def test_a_party_that_is_lost_breaks_it_for_all(hub: Gateway, client: Reactor) -> None:
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    lost = asyncio.ensure_future(other.barrier("b", 3).wait())
    staying = asyncio.ensure_future(client.barrier("b", 3).wait())
    await until(lambda: waiting(hub, "barrier") == 2)
    other._connection.abort()  # type: ignore[union-attr]
    assert (await refused(staying)).code == "PF502"
    assert (await refused(lost)).code == "PF502"
    await other.stop()


async def test_a_hundred_parties(client: Reactor) -> None:
    results = await asyncio.gather(*(client.barrier("b", 100).wait(n) for n in range(100)))
    assert all(sorted(result) == list(range(100)) for result in results)


async def test_one_party_alone(client: Reactor) -> None:
    assert await client.barrier("b", 1).wait("x") == ["x"]


async def test_parties_must_agree_on_their_number(hub: Gateway, client: Reactor) -> None:
    first = asyncio.ensure_future(client.barrier("b", 2).wait())
    await until(lambda: waiting(hub, "barrier") == 1)
    assert (await refused(client.barrier("b", 3).wait())).code == "PF400"
    await client.barrier("b", 2).wait()
    await first


# ---------------------------------------------------------------- co:broadcast


async def test_broadcast_reaches_every_reactor_and_failures_are_entries(hub: Gateway, client: Reactor) -> None:
    async with Reactor(hub.endpoint, name="b1") as one, Reactor(hub.endpoint, name="b2") as two:
        one.register("df", "where", lambda data: f"one {data}")

        def fail(data: Any) -> None:
            raise ValueError("two is out")

        two.register("df", "where", fail)
        await until(lambda: len(hub.switch.reactors_for("df:where")) == 2)
        results = sorted(await client.broadcast("df", "where", 5), key=lambda entry: entry["reactor"])
        assert results == [
            {"reactor": "b1", "status": "success", "data": "one 5"},
            {"reactor": "b2", "status": "error", "error": {"code": "PF500", "message": "two is out"}},
        ]
        sent = await client.call("co", "broadcast", {"packet": step("df", "where", 5), "wait": False})
        assert sent == {"delivered": 2, "results": []}
    await until(lambda: not hub.switch.reactors_for("df:where"))
    assert (await refused(client.broadcast("df", "where"))).code == "PF001"


# ---------------------------------------------------------------- co:gather


async def run(client: Reactor, packet: dict[str, Any]) -> Any:
    return await client.call(packet["group"], packet["element"], packet["data"])


async def test_gather_in_order(client: Reactor) -> None:
    packets = [step("df", "sleep", delay) for delay in (0.03, 0.01, 0.02)]
    assert await run(client, gather(*packets)) == [{"status": "success", "data": delay} for delay in (0.03, 0.01, 0.02)]
    assert await run(client, gather()) == []


async def test_gather_returns_once_enough_have_succeeded(hub: Gateway, client: Reactor) -> None:
    packets = [step("df", "double", 1), step("df", "fail", "x"), step("df", "sleep", 20), step("df", "double", 2)]
    found = await run(client, gather(*packets, need=2))
    assert found[0] == {"status": "success", "data": 2}
    assert found[2] is None
    assert found[3] == {"status": "success", "data": 4}
    assert found[1]["error"]["code"] == "PF500"
    # the rest is cancelled
    await until(lambda: hub.switch.in_flight == 0)


async def test_gather_fails_once_too_many_have_failed(client: Reactor) -> None:
    packets = [step("df", "fail", "x"), step("df", "sleep", 20), step("df", "fail", "y")]
    error = await refused(run(client, gather(*packets, need=2)))
    assert error.code == "PF424"
    assert [one["code"] for one in error.details["errors"]] == ["PF500", "PF500"]  # type: ignore[index]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"packets": [], "need": 1},
        {"packets": [step("df", "echo")], "need": -1},
        {"packets": [step("df", "echo")], "concurrency": 0},
    ],
)
async def test_gather_refuses_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("co", "gather", data))).code == "PF400"


# ---------------------------------------------------------------- co:vote


async def votes(client: Reactor, ballot: str, choices: list[Any], **more: Any) -> list[dict[str, Any]]:
    voters = more.pop("voters", len(choices))
    return await asyncio.gather(*(client.vote(ballot, choice, voters, **more) for choice in choices))


async def test_a_majority_decides(client: Reactor) -> None:
    results = await votes(client, "v", ["a", "b", "a"])
    assert results[0]["decision"] == "a"
    assert all(result["decided"] for result in results)
    # the same name again is another ballot
    assert [result["decision"] for result in await votes(client, "v", ["b", "b", "b"])] == ["b"] * 3


async def test_no_decision_where_none_is_possible(client: Reactor) -> None:
    results = await votes(client, "v", ["a", "b", "c", "d"], need=3)
    assert {result["decided"] for result in results} == {False}
    assert {result["decision"] for result in results} == {None}


async def test_equality_is_that_of_json(client: Reactor) -> None:
    (decided, *_) = await votes(client, "v", [{"a": 1, "b": 2}, {"b": 2.0, "a": 1}, 3], need=2)
    assert decided["decided"] is True
    (decided, *_) = await votes(client, "w", [1, True], need=2)
    assert decided["decided"] is False


async def test_a_voter_who_comes_after_the_decision_is_told_it(hub: Gateway, client: Reactor) -> None:
    first = asyncio.ensure_future(client.vote("v", "a", 3))
    await until(lambda: waiting(hub, "ballot") == 1)
    assert (await client.vote("v", "a", 3))["decision"] == "a"
    await first
    late = await client.vote("v", "z", 3)
    assert (late["decision"], late["decided"]) == ("a", True)


async def test_a_voter_who_waits_no_more_has_not_voted(hub: Gateway, client: Reactor) -> None:
    assert (await refused(client.vote("v", "a", 2, wait=0.02))).code == "PF408"
    other = Reactor(hub.endpoint, reconnect=False)
    await other.start()
    lost = asyncio.ensure_future(other.vote("v", "b", 2))
    await until(lambda: waiting(hub, "ballot") == 1)
    other._connection.abort()  # type: ignore[union-attr]
    assert (await refused(lost)).code == "PF502"
    await other.stop()
    await until(lambda: waiting(hub, "ballot") == 0)
    assert [result["decision"] for result in await votes(client, "v", ["c", "c"])] == ["c", "c"]


async def test_a_poll_of_every_handler(hub: Gateway, client: Reactor) -> None:
    reactors = [Reactor(hub.endpoint, name=f"q{n}") for n in range(3)]
    for n, reactor in enumerate(reactors):
        reactor.register("df", "value", lambda data, n=n: {"v": 1} if n else 1 / 0)
        await reactor.start()
    await until(lambda: len(hub.switch.reactors_for("df:value")) == 3)
    decided = await client.poll("df", "value")
    assert decided == {"decision": {"v": 1}, "tally": [[{"v": 1}, 2]], "decided": True}
    assert (await client.poll("df", "value", need=3))["decided"] is False
    for reactor in reactors:
        await reactor.stop()
    await until(lambda: not hub.switch.reactors_for("df:value"))
    assert (await refused(client.poll("df", "value"))).code == "PF001"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"ballot": "v", "choice": 1},
        {"ballot": "v", "choice": 1, "voters": 0},
        {"ballot": "v", "choice": 1, "voters": 2, "need": 3},
        {"ballot": "v", "choice": 1, "voters": 2, "packet": step("df", "echo")},
    ],
)
async def test_votes_refuse_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("co", "vote", data))).code == "PF400"


async def test_so_many_may_wait_for_a_name() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(waiters=2)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        held = [asyncio.ensure_future(client.gate("g").wait()) for _ in range(2)]
        await until(lambda: waiting(hub, "gate") == 2)
        error = await refused(client.gate("g").wait())
        assert (error.code, "2 wait" in error.message) == ("PF429", True)
        await client.gate("g").open()
        await asyncio.gather(*held)


# ---------------------------------------------------------------- reactors that announce nothing


async def unlisted(hub: Gateway, answers: Any) -> Peer:
    """A reactor that announces nothing, and answers what `answers` makes of a packet."""
    peer = await Peer.connect(hub.endpoint)
    peer.answering = asyncio.ensure_future(_answer(peer, answers))  # type: ignore[attr-defined]
    return peer


async def _answer(peer: Peer, answers: Any) -> None:
    while True:
        submit = await peer.message("submit")
        packet = submit["payload"]
        result = {"packet_id": packet["id"], "duration_ms": 0, **answers(packet)}
        await peer.send({"type": "result", "seq": submit["seq"], "payload": result})


def refuses(packet: dict[str, Any]) -> dict[str, Any]:
    return {"status": "error", "error": {"code": "PF001", "message": "no handler"}}


async def test_those_who_announce_nothing_are_asked_and_one_who_refuses_is_no_entry(
    hub: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Reactor(hub.endpoint, name="client") as client, Reactor(hub.endpoint, name="listed") as listed:
        listed.register("df", "where", lambda data: "listed")
        await until(lambda: hub.switch.reactors_for("df:where"))
        yes = await unlisted(hub, lambda packet: {"status": "success", "data": "unlisted"})
        no = await unlisted(hub, refuses)
        asked = [one for one in hub.switch.links if not one.listed and one.principal.number == 0]
        assert len(asked) == 2
        monkeypatch.setattr(hub.view.inside, "reactors_for", lambda key: [*hub.switch.reactors_for(key), *asked])
        told = await client.call("co", "broadcast", {"packet": step("df", "where")})
        assert told["delivered"] == 2
        assert sorted(entry["data"] for entry in told["results"]) == ["listed", "unlisted"]
        # three were asked: the majority is one of the two who handle it
        decided = await client.poll("df", "where", need=1)
        assert decided["decided"] is True
        same = await client.call("co", "vote", {"packet": step("df", "where"), "need": 2})
        assert (same["decided"], sum(count for _, count in same["tally"])) == (False, 2)
        monkeypatch.setattr(hub.view.inside, "reactors_for", lambda key: [asked[1]])
        for element in ("broadcast", "vote"):
            assert (await refused(client.call("co", element, {"packet": step("df", "where")}))).code == "PF001"
        for peer in (yes, no):
            peer.answering.cancel()  # type: ignore[attr-defined]
            peer.close()


# ---------------------------------------------------------------- much of it


async def test_votes_are_each_read_once(hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    plain = co._plain
    monkeypatch.setattr(co, "_plain", lambda value: read.append(value) or plain(value))
    results = await votes(client, "v", [f"choice {n % 7}" for n in range(100)], need=90)
    assert results[0]["decided"] is False
    assert len(read) == 100


async def test_the_choices_of_a_ballot_fit_an_answer() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(value=1000)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        first = asyncio.ensure_future(client.vote("v", "a" * 600, 3))
        await until(lambda: waiting(hub, "ballot") == 1)
        error = await refused(client.vote("v", "b" * 600, 3))
        assert (error.code, "1,000" in error.message) == ("PF413", True)
        assert (await client.vote("v", "a" * 600, 3))["decided"] is True
        await first
        party = asyncio.ensure_future(client.barrier("b", 3).wait("a" * 600))
        await until(lambda: waiting(hub, "barrier") == 1)
        error = await refused(client.barrier("b", 3).wait("a" * 600))
        assert (error.code, "1,000" in error.message) == ("PF413", True)
        await asyncio.gather(client.barrier("b", 3).wait("b"), client.barrier("b", 3).wait("c"))
        await party


async def test_what_was_read_by_all_is_kept_no_more(hub: Gateway, client: Reactor) -> None:
    await asyncio.gather(*(client.barrier("b", 5).wait(n) for n in range(5)))
    await votes(client, "v", ["a", "a", "a"], need=3)
    store: Any = hub.view.runtime().store  # type: ignore[union-attr]
    await until(lambda: not store.names("barrier end") and not store.names("ballot end"))


async def test_two_principals_may_vote_with_packets_of_one_id() -> None:
    role = Role("user", submit=("*:*",))
    identities = [Identity(name, "user", tokens=(hash_token(name),)) for name in ("a", "b")]
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of([role], identities)) as hub,
        Reactor(hub.endpoint, token="a") as one,
        Reactor(hub.endpoint, token="b") as two,
    ):
        packet = {"group": "co", "element": "vote", "id": "mine", "data": {"ballot": "v", "choice": 1, "voters": 2}}
        results = await asyncio.gather(one.submit(packet), two.submit(packet))
        assert [result.data["tally"] for result in results] == [[[1, 2]], [[1, 2]]]


# ---------------------------------------------------------------- who comes and does not stay


@pytest.mark.parametrize("parties", [0, 10_001])
async def test_a_barrier_has_so_many_parties(client: Reactor, parties: int) -> None:
    error = await refused(client.call("co", "sync", {"barrier": "b", "parties": parties}))
    assert (error.code, "parties: expected 1 to 10,000" in error.message) == ("PF400", True)


async def test_who_finds_no_room_to_wait_has_not_come() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(waiters=1)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        first = asyncio.ensure_future(client.barrier("b", 3).wait("first"))
        await until(lambda: waiting(hub, "barrier") == 1)
        assert (await refused(client.barrier("b", 3).wait("second"))).code == "PF429"
        assert hub.view.runtime() is not None
        kept = await hub.view.runtime().store.get("barrier", "b")
        assert kept is not None
        assert co.BARRIERS.decode("b", kept.value).data == [msgspec.Raw(b'"first"')]
        voting = asyncio.ensure_future(client.vote("v", "yes", 3))
        await until(lambda: waiting(hub, "ballot") == 1)
        assert (await refused(client.vote("v", "no", 3))).code == "PF429"
        kept = await hub.view.runtime().store.get("ballot", "v")
        assert kept is not None
        assert len(co.BALLOTS.decode("v", kept.value).votes) == 1
        await hub.stop(0)
        for waits in (first, voting):
            assert (await refused(waits)).code in ("PF502", "PF503")


async def test_a_party_that_goes_while_it_comes_breaks_it() -> None:
    """Nobody knows whether it has come: the store is far, and has not said yet."""
    said = asyncio.Event()

    class Far:
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.puts = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        async def put(self, kind: str, *arguments: Any, **options: Any) -> Any:
            entry = await self.inner.put(kind, *arguments, **options)
            self.puts += kind == "barrier"
            if kind == "barrier" and self.puts == 1:
                await said.wait()
            return entry

    stores: list[Far] = []

    def far(alarms: Any, bounds: Bounds) -> Any:
        stores.append(Far(in_memory(alarms, bounds)))
        return stores[-1]

    async with Gateway("ws://127.0.0.1:0/packetflow/v1", store=far) as hub, Reactor(hub.endpoint) as client:
        lost = client.call("co", "sync", {"barrier": "b", "parties": 2}, timeout_ms=50)
        assert (await refused(lost)).code == "PF408"
        said.set()  # only now is it known whether it has come
        await until(lambda: stores[0].puts == 2)
        kept = await stores[0].get("barrier", "b")
        assert co.BARRIERS.decode("b", kept.value).generation == 1
        assert sorted(await asyncio.gather(*(client.barrier("b", 2).wait(n) for n in range(2)))) == [[0, 1], [0, 1]]


async def test_a_vote_that_is_taken_back_leaves_those_that_agreed_with_it(hub: Gateway, client: Reactor) -> None:
    staying = asyncio.ensure_future(client.vote("v", "a", 5))
    await until(lambda: waiting(hub, "ballot") == 1)
    assert (await refused(client.vote("v", "a", 5, wait=0.02))).code == "PF408"
    others = [asyncio.ensure_future(client.vote("v", choice, 5)) for choice in ("b", "a")]
    await until(lambda: waiting(hub, "ballot") == 3)
    decided = await client.vote("v", "a", 5)
    assert decided == {"decision": "a", "tally": [["a", 3], ["b", 1]], "decided": True}
    assert await asyncio.gather(staying, *others) == [decided] * 3


async def test_a_ballot_is_of_so_many_voters(hub: Gateway, client: Reactor) -> None:
    waits = asyncio.ensure_future(client.vote("v", ["a"], 3))
    await until(lambda: waiting(hub, "ballot") == 1)
    error = await refused(client.vote("v", ["a"], 4))
    assert (error.code, "it is of 3 voters of whom 2 have to agree" in error.message) == ("PF400", True)
    assert (await client.vote("v", ["a"], 3))["tally"] == [[["a"], 2]]
    await waits


async def test_one_that_has_gone_is_an_entry_of_its_own(
    hub: Gateway, client: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Reactor(hub.endpoint, name="gone", reconnect=False) as gone:
        gone.register("df", "echo", lambda data: data)
        await until(lambda: len(hub.switch.reactors_for("df:echo")) == 2)
        members = list(hub.switch.reactors_for("df:echo"))
    await until(lambda: "gone" not in hub.reactors)
    monkeypatch.setattr(hub.view.inside, "reactors_for", lambda key: members)
    told = await client.broadcast("df", "echo", 1)
    assert sorted(entry["status"] for entry in told) == ["error", "success"]
    assert [entry["error"]["code"] for entry in told if entry["status"] == "error"] == ["PF502"]


async def test_steps_that_were_refused_and_steps_with_much_data(hub: Gateway, client: Reactor) -> None:
    def full(data: Any) -> None:
        raise Overloaded("later")

    hub.register("df", "full", full)
    hub.register("df", "much", lambda data: "x" * 100_000)
    packet = gather(step("df", "full"), step("df", "much"), need=1)
    entries = await client.call(packet["group"], packet["element"], packet["data"])
    assert len(entries[1]["data"]) == 100_000
    packet = gather(step("df", "full"))
    assert (await refused(client.call(packet["group"], packet["element"], packet["data"]))).code == "PF424"


async def test_a_generation_ends_however_many_names_there_are(client: Reactor, hub: Gateway) -> None:
    """It has ended: what it ended in is kept for those who wait, past the bound of names."""
    store = hub.view.runtime().store  # type: ignore[union-attr]
    one = asyncio.ensure_future(client.barrier("b", 2).wait(1))
    await until(lambda: waiting(hub, "barrier") == 1)
    getattr(store, "inner", store)._max_names = 0
    assert await client.barrier("b", 2).wait(2) == [1, 2]
    assert await one == [1, 2]
