"""Names of reactors: whose they are, and how the several of one name are told apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from packetflow import Access, ConnectionLost, Forbidden, Gateway, Identity, InvalidPacket, Reactor, Role
from packetflow.cli.top import Snapshot, fetch, render_top
from packetflow.conformance.wire import Peer
from packetflow.gateway import hash_token, new_token
from packetflow.gateway.config import ConfigError, load_config
from packetflow.gateway.peer import Instance
from packetflow.gateway.reactors import MOST_REMEMBERED, Reactors
from packetflow.gateway.web import metrics
from pfcore.link.engine import Engine
from pfcore.link.websocket import Link
from pfcore.route.flights import Principal
from pfcore.simulate import receive_message
from pfcore.work.handler import Handler
from tests.helpers import submit, until

TOKENS = {name: new_token() for name in ("billing", "other", "admin")}
ROLES = [
    Role("billing", submit=("*:*",), handle=("df:*",), names=("billing*", "ledger")),
    Role("any", submit=("*:*",), handle=("ed:*", "df:own")),
    Role("admin", submit=("*:*",), handle=("*:*",), admin=True),
]
PEOPLE = [
    Identity("billing", "billing", (hash_token(TOKENS["billing"]),)),
    Identity("other", "any", (hash_token(TOKENS["other"]),)),
    Identity("admin", "admin", (hash_token(TOKENS["admin"]),)),
]


@pytest.fixture
async def guarded() -> AsyncIterator[Gateway]:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(ROLES, PEOPLE)) as gateway:
        gateway.register("df", "echo", lambda data: data)
        yield gateway


@pytest.fixture
async def hub() -> AsyncIterator[Gateway]:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        gateway.register("df", "echo", lambda data: data)
        yield gateway


async def announce(gateway: Gateway, name: str, token: str | None = None, **payload: Any) -> Peer:
    """A bare reactor that has announced a name, and knows that it has arrived."""
    headers = f"Authorization: Bearer {TOKENS[token]}\r\n" if token is not None else ""
    peer = await Peer.connect(gateway.endpoint, headers=headers)
    await rename(peer, name, **payload)
    return peer


async def rename(peer: Peer, name: str, **payload: Any) -> None:
    await peer.send({"type": "heartbeat", "seq": 1, "payload": {"reactor": name, "capabilities": [], **payload}})
    await peer.send(submit(2, id="behind it", element="echo", data=name))
    await peer.message("result")


def labels(gateway: Gateway) -> list[str]:
    family = "packetflow_reactor_outstanding{"
    return sorted(
        line.partition('reactor="')[2].partition('"')[0]
        for line in metrics(gateway.view).splitlines()
        if family in line
    )


# ---------------------------------------------------------------- whose it is


async def test_a_name_is_whose_who_announced_it_first(guarded: Gateway) -> None:
    first = await announce(guarded, "billing", "billing")
    stranger = await announce(guarded, "billing", "other")
    assert guarded.counts["names_taken"] == 1
    assert guarded.connections == 2, "the stranger's link stays"
    await stranger.send(submit(3, element="echo", data="works"))
    assert (await stranger.message("result"))["payload"]["data"] == "works"
    reply = guarded.call("df", "invoice", "for billing's eyes", reactor="billing")
    assert (await first.message("submit"))["payload"]["data"] == "for billing's eyes"
    reply.cancel()
    assert labels(guarded) == ["billing"]
    assert guarded._reactors.find("billing").member.principal.name == "billing"  # type: ignore[union-attr]
    assert 'packetflow_names_refused_total{reason="taken"} 1.0' in metrics(guarded.view)
    # heartbeats repeat the claim, and it is counted once; it is heard once the name is free
    await rename(stranger, "billing")
    assert guarded.counts["names_taken"] == 1
    first.close()
    await until(lambda: "billing" not in guarded.reactors)
    await rename(stranger, "billing")
    assert guarded._reactors.find("billing").member.principal.name == "other"  # type: ignore[union-attr]
    stranger.close()


async def test_a_name_is_free_only_when_its_last_link_has_gone(guarded: Gateway) -> None:
    first, second = [await announce(guarded, "billing", "billing") for _ in range(2)]
    first.close()
    await until(lambda: guarded.connections == 1)
    stranger = await announce(guarded, "billing", "other")
    assert guarded.counts["names_taken"] == 1
    assert labels(guarded) == ["billing#2"]
    assert guarded.reactors["billing"].id == "billing#2"
    second.close()
    stranger.close()


async def test_names_are_compared_unescaped(guarded: Gateway) -> None:
    first = await announce(guarded, "billing", "billing")
    stranger = await Peer.connect(guarded.endpoint, headers=f"Authorization: Bearer {TOKENS['other']}\r\n")
    await stranger.send(b'{"type":"heartbeat","seq":1,"payload":{"reactor":"b\\u0069lling"}}')
    await until(lambda: guarded.counts["names_taken"] == 1)
    first.close()
    stranger.close()


async def test_a_role_says_which_names_may_be_taken(guarded: Gateway) -> None:
    for name, granted in (("billing-7", True), ("ledger", True), ("ledger-2", False), ("orders", False)):
        before = guarded.counts["names_forbidden"]
        peer = await announce(guarded, name, "billing")
        assert (name in guarded.reactors) == granted
        assert guarded.counts["names_forbidden"] - before == (not granted)
        peer.close()
    other = await announce(guarded, "orders", "other")
    assert "orders" in guarded.reactors, "by default a role may take any name"
    # and who may no longer have a name when the roles change has it no longer
    roles = [*ROLES[::2], Role("any", submit=("*:*",), names=("nothing",))]
    guarded.set_access(Access.of(roles, PEOPLE))
    assert "orders" not in guarded.reactors and labels(guarded) == []
    await rename(other, "orders")
    assert "orders" not in guarded.reactors
    guarded.set_access(Access.of(ROLES, PEOPLE))
    await rename(other, "orders")
    assert "orders" in guarded.reactors
    other.close()


def test_names_of_a_role_are_names_or_beginnings() -> None:
    role = Role("r", names=("exact", "start*"))
    assert [role.may_name(name) for name in ("exact", "exactly", "start", "started", "restart")] == [
        True, False, True, True, False,
    ]  # fmt: skip
    assert Role("r").may_name("anything")
    assert not Role("r", names=()).may_name("anything")
    for bad in ("billing", ("*billing",), ("",), (5,), ("a*b",)):
        with pytest.raises(ValueError, match="role 'r', names: expected a list of names"):
            Role("r", names=bad)  # type: ignore[arg-type]


def test_names_of_a_role_in_a_configuration(tmp_path: Any) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[roles.r]\nsubmit = ["df:*"]\nnames = ["billing*"]\n')
    assert load_config(path).access.roles["r"].names == ("billing*",)
    for bad in ('"billing"', "[1]", '["*x"]'):
        path.write_text(f"[roles.r]\nnames = {bad}\n")
        with pytest.raises(ConfigError, match="roles.r"):
            load_config(path)


async def test_the_first_name_of_a_link_is_its_name(hub: Gateway) -> None:
    peer = await announce(hub, "first")
    await rename(peer, "second")
    assert list(hub.reactors) == ["first"]
    assert hub.counts["names_changed"] == 1
    peer.close()
    await until(lambda: not hub.reactors)


async def test_who_takes_a_name_while_its_reactor_is_away_takes_nothing_else(guarded: Gateway) -> None:
    first = await announce(guarded, "billing", "billing", instance="secret")
    await first.send(submit(3, id="lock", group="rm", element="lock", data={"key": "k"}))
    lease = (await first.message("result"))["payload"]["data"]["lease"]
    first.close()
    await until(lambda: not guarded.reactors)
    stranger = await announce(guarded, "billing", "other", instance="secret")
    assert "billing" in guarded.reactors
    again = await announce(guarded, "billing", "billing", instance="secret")
    assert guarded.counts["names_taken"] == 1
    (session,) = [one for one in guarded.view.runtime().sessions._by_key.values() if one.held]  # type: ignore[union-attr]
    assert [link.member.principal.name for link in session.links] == ["billing"]
    for peer, freed in ((stranger, False), (again, True)):
        await peer.send(submit(4, id="free", group="rm", element="free", data={"lease": lease}))
        assert (await peer.message("result"))["payload"]["data"] == {"freed": freed}
        peer.close()


# ---------------------------------------------------------------- delivery by name


async def test_a_reactor_gets_by_name_only_what_its_principal_may_handle(guarded: Gateway) -> None:
    peer = await announce(guarded, "orders", "other")
    for send in (guarded.call, guarded.reactors["orders"].call):
        keywords = {"reactor": "orders"} if send == guarded.call else {}
        with pytest.raises(Forbidden, match="may not handle df:invoice"):
            send("df", "invoice", "secret", **keywords)
    with pytest.raises(Forbidden, match="may not handle mc:tune"):
        guarded.submit({"group": "mc", "element": "tune"}, reactor="orders")
    with pytest.raises(InvalidPacket):
        guarded.submit({"group": 5, "element": "tune"}, reactor="orders")
    reply = guarded.call("df", "own", "allowed", reactor="orders")
    assert (await peer.message("submit"))["payload"]["data"] == "allowed"
    reply.cancel()
    # and it is the role of now that counts
    guarded.set_access(Access.of([ROLES[0], Role("any"), ROLES[2]], PEOPLE))
    with pytest.raises(Forbidden):
        guarded.call("df", "own", "allowed", reactor="orders")
    peer.close()


# ---------------------------------------------------------------- instances


async def test_replicas_of_a_name_are_told_apart_everywhere(hub: Gateway) -> None:
    async with (
        Reactor(hub.endpoint, name="w") as one,
        Reactor(hub.endpoint, name="w") as two,
        Reactor(hub.endpoint, name="w") as three,
    ):
        for n, reactor in enumerate((one, two, three)):
            reactor.register("df", "who", lambda data, n=n: n)
        await until(lambda: len(hub.switch.reactors_for("df:who")) == 3)
        order = [await hub.call("df", "who", reactor=which) for which in ("w#1", "w#2", "w#3")]
        assert sorted(order) == [0, 1, 2]
        assert await hub.call("df", "who", reactor="w") == order[2], "the latest"
        assert hub.reactors["w"].id == "w#3" and hub.reactors["w"].name == "w"
        assert labels(hub) == ["w", "w#2", "w#3"]
        assert "packetflow_reactors 3.0" in metrics(hub.view)
        top = render_top(hub.endpoint, await asyncio.to_thread(fetch, hub.endpoint, None), None)
        assert {line.split()[0] for line in top.splitlines() if line.startswith(("w ", "w#"))} == {"w", "w#2", "w#3"}
        figures = hub.view.runtime().admin.tune({}, None)["figures"]  # type: ignore[union-attr]
        assert set(figures["reactors"]) == {"w", "w#2", "w#3"}
        assert hub.view.runtime().admin.tune({"window": 7}, "w#2")["settings"]["window"] == 7  # type: ignore[union-attr]
        assert [hub._reactors.find(which).member.window == 7 for which in ("w#1", "w#2", "w#3")] == [  # type: ignore[union-attr]
            False, True, False,
        ]  # fmt: skip
        replies = await one.broadcast("df", "who")
        assert sorted(entry["reactor"] for entry in replies) == ["w", "w#2", "w#3"]
        await three.stop()
        await until(lambda: hub.reactors["w"].id == "w#2")
        with pytest.raises(ConnectionLost, match="no reactor named 'w#3'"):
            hub.call("df", "who", reactor="w#3")


async def test_an_instance_that_comes_back_is_who_it_was(hub: Gateway) -> None:
    async with Reactor(hub.endpoint, name="w") as one:
        await hub.wait_for_reactor("w")
        async with Reactor(hub.endpoint, name="w") as two:
            await until(lambda: hub._reactors.find("w#2"))
            for reactor, which in ((one, "w#1"), (two, "w#2")):
                reactor.register("df", "who", lambda data, which=which: which)
            peer = hub._reactors.find("w#1")
            assert peer is not None
            peer.disconnect()
            await until(lambda: hub.counts["reconnects"] == 1)
            assert await hub.call("df", "who", reactor="w#1") == "w#1"
            assert await hub.call("df", "who", reactor="w#2") == "w#2"
            async with Reactor(hub.endpoint, name="w"):
                await until(lambda: hub._reactors.find("w#3"))
    assert hub.counts["reconnects"] == 1, "another of its name is not it"


async def test_one_that_is_back_before_its_old_link_is_lost_takes_its_place(hub: Gateway) -> None:
    old = await announce(hub, "w", instance="secret")
    new = await announce(hub, "w", instance="secret")
    assert hub.counts["reconnects"] == 1
    assert labels(hub) == ["w"]
    reply = hub.call("df", "x", reactor="w")
    await new.message("submit")
    reply.cancel()
    # whichever of the two goes, the other is it
    new.close()
    await until(lambda: hub.connections == 1)
    assert labels(hub) == ["w"]
    reply = hub.call("df", "x", reactor="w")
    await old.message("submit")
    reply.cancel()
    old.close()
    await until(lambda: not hub.reactors)
    assert labels(hub) == [] and len(hub._reactors) == 0


async def test_the_secret_of_an_instance_is_shown_to_nobody(hub: Gateway) -> None:
    async with Reactor(hub.endpoint, name="w") as reactor:
        reactor.register("df", "who", lambda data: data)
        await until(lambda: hub.switch.reactors_for("df:who"))
        secret = reactor._settings.instance
        assert hub.switch.links and secret == hub.reactors["w"]._engine.peer_instance
        seen = [metrics(hub.view), repr(hub.reactors["w"]), hub.reactors["w"].id, await hub.call("mc", "tune")]
        seen.append(await reactor.broadcast("df", "who"))
        await reactor.call("rm", "lock", {"key": "k"})
        seen.append(await hub.view.runtime().store.get("lock", "k"))  # type: ignore[union-attr]
        assert secret not in repr(seen)
        assert secret != Reactor(hub.endpoint, name="w")._settings.instance


async def test_an_id_is_no_name_for_another(guarded: Gateway) -> None:
    """Who is called like another's instance would get what is meant for it."""
    early = await announce(guarded, "billing#2", "other")
    links = [await announce(guarded, "billing", "billing") for _ in range(2)]
    assert labels(guarded) == ["billing", "billing#2", "billing#3"]
    for name in ("billing#3", "billing#9"):
        stranger = await announce(guarded, name, "other")
        assert name not in guarded.reactors
        stranger.close()
    assert guarded.counts["names_taken"] == 2
    for peer in (early, *links):
        peer.close()


# ---------------------------------------------------------------- nothing is kept for ever


async def test_what_a_link_calls_itself_is_not_kept(hub: Gateway) -> None:
    """A name in each of its heartbeats: 200,000 of them were 230 MB, even after the link had closed."""
    peer = await Peer.connect(hub.endpoint)
    for n in range(5000):
        await peer.send({"type": "heartbeat", "seq": n + 1, "payload": {"reactor": f"name {n}"}})
    await rename(peer, "last")
    assert list(hub.reactors) == ["name 0"]
    assert hub.counts["names_changed"] == 5000
    peer.close()
    await until(lambda: not hub.reactors)
    kept = hub._reactors
    assert len(kept._left) == 1 and not kept._names and not kept._of and not kept._refused


async def test_more_handlers_than_a_heartbeat_may_list(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    for n in range(1100):
        gateway.register("df", f"own{n}", lambda data: data)
    async with gateway, Reactor(gateway.endpoint, name="w") as reactor:
        for n in range(1100):
            reactor._dispatcher.register(Handler("df", f"e{n}", lambda data: data))
        reactor.register("df", "last", lambda data: data)
        await reactor.call("df", "own0")
        assert len(gateway.reactors["w"].handles) == 1024
        assert "1101 handlers: only the first 1024 can be announced" in caplog.text
        # others' heartbeats are refused whole, and the connection stays
        peer = await announce(gateway, "other")
        await peer.send({"type": "heartbeat", "seq": 9, "payload": {"capabilities": [f"df:e{n}" for n in range(1025)]}})
        error = (await peer.message("error"))["payload"]
        assert error["code"] == "PF400" and "at most 1024" in error["message"]
        assert gateway.reactors["other"].handles == []
        peer.close()


def link_of(principal: Principal, name: str, instance: str | None, gateway: Gateway) -> Link:
    """A link without a socket, that has told its name."""
    link = Link(Engine(client=False), loop=None)
    link.engine.connected(0)
    gateway.switch.admit(link.engine, principal, ())
    tell(link, name, instance)
    return link


def tell(link: Link, name: str, instance: str | None) -> None:
    beat = {"type": "heartbeat", "seq": 1, "payload": {"reactor": name, "instance": instance}}
    receive_message(link.engine, json.dumps(beat).encode(), 0)


class Names(RuleBasedStateMachine):
    """Links come, go and call themselves anything; principals may lose and get back what they may be called."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
        self.people = [Principal(f"p{n}", n, 1) for n in range(3)]
        self.barred: set[tuple[int, str]] = set()
        self.counts: dict[str, int] = {}
        self.reactors = Reactors(
            lambda principal, name: (principal.number, name) not in self.barred, lambda *_: True, self.counts
        )
        self.links: list[Link] = []
        self.ids: dict[tuple[str, int], tuple[int, str]] = {}

    names = st.sampled_from(["a", "b", "a#2", "a#3", "b#1"])

    @rule(who=st.integers(0, 2), name=names, instance=st.sampled_from([None, "x", "y"]))
    def come(self, who: int, name: str, instance: str | None) -> None:
        link = link_of(self.people[who], name, instance, self.gateway)
        self.links.append(link)
        self.reactors.announced(link)

    @rule(at=st.integers(0, 20), name=names, instance=st.sampled_from([None, "x", "y"]))
    def tell(self, at: int, name: str, instance: str | None) -> None:
        if self.links:
            link = self.links[at % len(self.links)]
            tell(link, name, instance)
            self.reactors.announced(link)

    @rule(at=st.integers(0, 20))
    def go(self, at: int) -> None:
        if self.links:
            self.reactors.lost(self.links.pop(at % len(self.links)).engine)

    @rule(who=st.integers(0, 2), name=names)
    def bar(self, who: int, name: str) -> None:
        self.barred ^= {(who, name)}
        self.reactors.check()

    @invariant()
    def ids_and_names_are_one_ones_each(self) -> None:
        reactors = self.reactors
        held: dict[str, set[int]] = {}
        for instance in reactors._by_id.values():
            assert isinstance(instance, Instance) and instance.peers
            for engine, peer in instance.peers.items():
                assert reactors._of[engine] is instance
                assert (peer.member.principal.number, instance.name) not in self.barred
                assert peer.member.reactor == (instance.id if peer is instance.latest else None)
                held.setdefault(instance.name, set()).add(peer.member.principal.number)
        assert all(len(owners) == 1 for owners in held.values())
        assert set(held) == set(reactors.by_name) == set(reactors._names)
        engines = {link.engine for link in self.links}
        assert set(reactors._of) | reactors._refused <= engines
        shown = [link.engine.member.reactor for link in self.links if link.engine.member.reactor is not None]
        assert len(shown) == len(set(shown)) == len(reactors)
        for name, peer in reactors.by_name.items():
            assert peer.name == name and reactors.find(name) is peer
        assert len(reactors._left) <= MOST_REMEMBERED

    @invariant()
    def a_number_is_one_instances_while_the_name_lives(self) -> None:
        self.ids = {shown: whose for shown, whose in self.ids.items() if shown[0] in self.reactors._names}
        for instance in self.reactors._by_id.values():
            if instance.secret is not None:
                whose = (instance.latest.member.principal.number, instance.secret)
                assert self.ids.setdefault((instance.name, instance.number), whose) == whose


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_of_those_that_left_a_bounded_number_is_remembered() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    reactors = Reactors(lambda *_: True, lambda *_: True, {})
    for n in range(MOST_REMEMBERED + 100):
        link = link_of(gateway.view.principals.anonymous, f"name {n}", "x", gateway)
        reactors.announced(link)
        reactors.lost(link.engine)
    assert len(reactors._left) == MOST_REMEMBERED


def test_an_id_is_found_soon_however_many_reactors_are_called_like_it() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    counts: dict[str, int] = {}
    reactors = Reactors(lambda *_: True, lambda *_: True, counts)
    one, other = Principal("one", 2, 1), Principal("other", 3, 1)
    for n in range(2, 500):
        reactors.announced(link_of(other, f"w#{n}", None, gateway))
    for _ in range(3):
        reactors.announced(link_of(one, "w", None, gateway))
    shown = [peer.id for peer in reactors if peer.name == "w"]
    assert len(set(shown)) == 3 and len(reactors) == 501
    assert all(int(which.partition("#")[2]) > 500 for which in shown[1:])


def test_top_tells_long_names_apart() -> None:
    name = "a-name-that-is-longer-than-the-column-for-it"
    values = {"packetflow_reactor_outstanding": {(f"{name}#{n}",): 1.0 for n in (2, 3)}}
    shown = render_top("ws://127.0.0.1:1", Snapshot(0.0, values), None)
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith("a-name")]
    assert len(set(rows)) == 2


async def test_codes_that_peers_choose_are_no_labels() -> None:
    from packetflow.gateway.web import _by_code

    assert _by_code({"PF001": 2, "evil": 1, "PF999": 3, "other": 4}) == {"PF001": 2, "other": 8}
