"""Who is who across reloads: numbers, role bits, and what ends with a principal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packetflow import Access, Forbidden, Gateway, Identity, PacketFlowError, Reactor, Role
from packetflow.conformance.wire import Peer
from packetflow.gateway import hash_token, new_token
from packetflow.gateway.access import NOBODY_ROLE, Budgets
from packetflow.gateway.principals import Principals
from pfcore.memory.budget import Budget
from pfcore.route.flights import Principal
from tests.helpers import submit, until

TOKENS = {name: new_token() for name in ("ada", "bob", "eve")}
USER = Role("user", submit=("df:*", "ed:*", "rm:*"), handle=("df:*",))
ADMIN = Role("admin", submit=("*:*",), handle=("*:*",), admin=True)


def people(**roles: str) -> list[Identity]:
    return [Identity(name, role, (hash_token(TOKENS[name]),)) for name, role in roles.items()]


def budgets() -> Budgets:
    return Budgets(1 << 20, Budget(1 << 20), 1 << 20, Budget(1 << 20))


# ---------------------------------------------------------------- numbers and bits


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("uvwxyz"), max_size=6),
            st.booleans(),
            st.sets(st.sampled_from("uvwxyz")),
        ),
        max_size=12,
    )
)
def test_whatever_is_reloaded_nobody_becomes_another(reloads: list[tuple[dict[str, str], bool, set[str]]]) -> None:
    known = Principals(Access({}, ()), budgets())
    met: dict[int, Principal] = {0: known.anonymous}
    before: dict[str, Principal] = {}
    for who, anonymous, more in reloads:
        # each role may do what is called like it, so that a mask tells whose bit it is
        roles = [Role(name, submit=(f"df:{name}",), handle=(f"df:{name}",)) for name in {*who.values(), *more}]
        identities = [Identity(name, role) for name, role in who.items()]
        nobodys = Role("anonymous", submit=("df:anonymous",))
        gone = known.change(Access.of(roles, identities, anonymous=nobodys if anonymous else None))
        assert set(known.named) == set(who)
        for name, principal in known.named.items():
            if name in before:
                assert principal is before[name]
            else:
                assert principal.number not in met and principal.number > 1
            met[principal.number] = principal
        assert {one.name for one in gone} - {"anonymous"} == set(before) - set(who)
        before = dict(known.named)
        alive = {one.number for one in known.alive}
        assert alive == {one.number for one in known.named.values()} | ({0} if anonymous else set())
        for principal in met.values():
            may = {name for name in (*"uvwxyz", "anonymous") if known.masks(f"df:{name}")[0] >> principal.role & 1}
            if principal.number in alive:
                assert may == {who.get(principal.name, "anonymous")}
                assert known.may_handle(principal, f"df:{who.get(principal.name)}") == (principal.number > 0)
            else:
                assert may == set() and principal.role == NOBODY_ROLE
                assert not known.may_handle(principal, "df:u") and not known.may_name(principal, "x")


def test_a_bit_is_used_again_only_when_all_others_have_been() -> None:
    known = Principals(Access({}, ()), budgets())
    bits = []
    for n in range(61):
        known.change(Access.of([Role(f"role {n}")], [Identity("one", f"role {n}")]))
        bits.append(known.named["one"].role)
    assert sorted(bits) == list(range(1, 62))
    # and all sixty at once may be replaced by sixty others
    for generation in "ab":
        roles = [Role(f"{generation}{n}", submit=(f"df:{generation}{n}",)) for n in range(60)]
        known.change(Access.of(roles, [Identity(role.name, role.name) for role in roles]))
        for role in roles:
            mask = known.masks(f"df:{role.name}")[0]
            assert [p.name for p in known.named.values() if mask >> p.role & 1] == [role.name]


def test_a_principal_that_stays_has_its_new_role_and_rate_and_its_old_accounts() -> None:
    known = Principals(Access.of([USER, ADMIN], people(ada="user")), budgets())
    ada = known.named["ada"]
    account = ada.account
    known.change(Access.of([ADMIN, USER], [Identity("ada", "admin", rate=5)]))
    assert known.named["ada"] is ada and ada.account is account
    assert (ada.rate, ada.burst) == (5, 5)
    assert known.masks("mc:tune")[0] >> ada.role & 1


# ---------------------------------------------------------------- in a gateway


@pytest.fixture
async def guarded() -> AsyncIterator[Gateway]:
    access = Access.of([USER, ADMIN], people(ada="user", bob="user"))
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as gateway:
        gateway.register("df", "echo", lambda data: data)
        gateway.view.runtime().sessions.grace = 0.02  # type: ignore[union-attr]
        yield gateway


async def refused(waiting: Any) -> PacketFlowError:
    with pytest.raises(PacketFlowError) as caught:
        await waiting
    return caught.value


async def connect(gateway: Gateway, name: str) -> Peer:
    return await Peer.connect(gateway.endpoint, headers=f"Authorization: Bearer {TOKENS[name]}\r\n")


async def test_a_newcomer_of_a_reload_gets_nothing_of_who_stays(guarded: Gateway) -> None:
    async with Reactor(guarded.endpoint, token=TOKENS["bob"], name="b") as bob:
        lease = (await bob.call("rm", "lock", {"key": "k"}))["lease"]
        timer = (await bob.call("ed", "timer", {"packet": {"group": "df", "element": "echo"}, "after_ms": 60_000}))[
            "timer"
        ]
        peer = await connect(guarded, "bob")
        await peer.send(submit(1, id="same", element="echo", data="bob's"))
        assert (await peer.message("result"))["payload"]["data"] == "bob's"
        # bob was the second of two and is the first of two: the newcomer has his place
        guarded.set_access(Access.of([USER, ADMIN], people(bob="user", eve="user")))
        async with Reactor(guarded.endpoint, token=TOKENS["eve"], name="b") as eve:
            assert await eve.call("rm", "free", {"lease": lease}) == {"freed": False}
            assert (await refused(eve.call("rm", "lock", {"lease": lease}))).code == "PF409"
            assert await eve.call("ed", "timer", {"cancel": timer}) == {"cancelled": False}
            stranger = await connect(guarded, "eve")
            await stranger.send(submit(1, id="same", element="echo", data="eve's"))
            assert (await stranger.message("result"))["payload"]["data"] == "eve's", "not met by bob's id"
        assert await bob.call("rm", "free", {"lease": lease}) == {"freed": True}
        assert await bob.call("ed", "timer", {"cancel": timer}) == {"cancelled": True}
        peer.close()
        stranger.close()


async def test_everything_of_a_principal_ends_with_it(guarded: Gateway) -> None:
    fired: list[Any] = []
    guarded.register("df", "fired", fired.append)
    async with Reactor(guarded.endpoint, token=TOKENS["bob"]) as bob:
        ada = await connect(guarded, "ada")
        step = {"group": "df", "element": "fired", "data": "ada's"}
        for n, (group, element, data) in enumerate(
            (
                ("ed", "timer", {"packet": step, "every_ms": 10}),
                ("ed", "react", {"event": "e", "packet": step}),
                ("rm", "lock", {"key": "k"}),
            )
        ):
            await ada.send(submit(n + 1, id=f"p{n}", group=group, element=element, data=data))
            assert (await ada.message("result"))["payload"]["status"] == "success"
        await until(lambda: fired)
        waiting = bob.call("rm", "lock", {"key": "k", "wait_ms": 5000})
        # the one role that is left comes first now, where ada's was
        guarded.set_access(Access.of([ADMIN], people(bob="admin")))
        await waiting
        assert await ada.close_code() == 1008
        runtime = guarded.view.runtime()
        assert runtime is not None
        before = len(fired)
        assert await bob.call("ed", "signal", {"event": "e"}) == {"delivered": 0}
        assert len(fired) == before
        # and whoever gets her name again is another
        guarded.set_access(Access.of([ADMIN], people(bob="admin", ada="admin")))
        assert guarded.view.principals.named["ada"].number == 4
        ada.close()


async def test_what_a_principal_may_be_back_for_ends_with_it_too(guarded: Gateway) -> None:
    async with Reactor(guarded.endpoint, token=TOKENS["bob"]) as bob:
        bob.register("df", "work", lambda data: data)
        await until(lambda: guarded.switch.reactors_for("df:work"))
        ada = await connect(guarded, "ada")
        guarded.register("df", "never", lambda data: asyncio.get_running_loop().create_future())
        await ada.send(submit(1, id="first", element="never"))
        await ada.send(submit(2, id="second", dependencies=["first"], metadata={"retry": 3}))
        await until(lambda: guarded.switch.in_flight == 2)
        guarded.set_access(Access.of([USER, ADMIN], people(bob="user")))
        await until(lambda: guarded.connections == 1)
        assert guarded.switch.in_flight == 0
        ada.close()


async def test_who_is_no_more_can_submit_nothing_inside_either(guarded: Gateway) -> None:
    ada = guarded.view.principals.named["ada"]
    guarded.set_access(Access.of([USER, ADMIN], people(bob="user")))
    with pytest.raises(Forbidden, match="no longer valid"):
        guarded.view.inside.submit_as(ada, {"group": "df", "element": "echo"})  # type: ignore[arg-type]
    assert ada not in [principal for principal, _ in guarded.view.inside.ways]


async def test_anonymous_links_end_when_nobody_may_be_anonymous_any_more() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        gateway.register("df", "echo", lambda data: data)
        peer = await Peer.connect(gateway.endpoint)
        await peer.send(submit(1, group="rm", element="lock", data={"key": "k"}))
        assert (await peer.message("result"))["payload"]["status"] == "success"
        gateway.set_access(Access.of([USER, ADMIN], people(bob="user")))
        assert await peer.close_code() == 1008
        async with Reactor(gateway.endpoint, token=TOKENS["bob"]) as bob:
            await bob.call("rm", "lock", {"key": "k", "wait_ms": 5000})
        gateway.set_access(Access())
        async with Reactor(gateway.endpoint) as anyone:
            assert await anyone.call("df", "echo", 1) == 1
        peer.close()


async def test_a_link_whose_credentials_went_during_its_handshake_is_closed(guarded: Gateway) -> None:
    opened = guarded.view.admission.on_open

    def reload_first(link: Any) -> None:
        guarded.set_access(Access.of([USER, ADMIN], people(bob="user")))
        opened(link)

    guarded.view.admission.on_open = reload_first  # type: ignore[method-assign]
    peer = await connect(guarded, "ada")
    async with asyncio.timeout(10):
        assert await peer.close_code() == 1008
    peer.close()


def test_what_is_known_of_a_whole_group_is_what_each_element_would_be_told() -> None:
    roles = [
        Role("all", submit=("*:*",), handle=("*:*",), admin=True),
        Role("some", submit=("df:*", "ed:order.*"), handle=("cf:one",), replace=("rm:*",)),
    ]
    access = Access.of(
        roles, [Identity("ada", "all"), Identity("bob", "some")], anonymous=Role("guest", submit=("co:*",))
    )
    known = Principals(access, budgets())
    bits = {identity.role: known.named[identity.name].role for identity in access.identities}
    for key in (
        "df:x",
        "ed:order.x",
        "ed:x",
        "cf:one",
        "cf:two",
        "rm:x",
        "co:x",
        "mc:x",
        "xx:y",
        "df",
        "dfx:y",
        ":",
        "",
    ):
        assert known.masks(key) == access.masks(key, bits), key
