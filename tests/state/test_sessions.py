"""Sessions: whose they are, who comes into them, and when what they hold ends."""

from __future__ import annotations

import pytest

from packetflow.state import Alarms, Lease, Leases, Session, Sessions
from tests.helpers import Loop


@pytest.fixture
def sessions(time: Loop) -> Sessions:
    return Sessions(Alarms(time.loop), grace=5.0)


def holding(session: Session, ended: list[str], *names: str) -> None:
    for name in names:
        session.hold(("lease", name), lambda name=name: ended.append(name))  # type: ignore[misc]


def test_a_session_outlives_its_link_for_the_grace(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    sessions.named("link 1", 7, "reactor", "secret")
    first = sessions.of("link 1", 7)
    holding(first, ended, "x")
    sessions.lost("link 1")
    time.pass_time(4.9)
    sessions.named("link 2", 7, "reactor", "secret")
    assert sessions.of("link 2", 7) is first
    time.pass_time(10)
    assert ended == []
    sessions.lost("link 2")
    time.pass_time(5)
    assert ended == ["x"]
    sessions.named("link 3", 7, "reactor", "secret")
    assert sessions.of("link 3", 7) is not first
    sessions.lost("link 3")
    time.pass_time(5)
    assert not sessions._by_key and not sessions._by_link and not sessions._names


def test_it_is_a_principals_a_names_and_an_instances(sessions: Sessions) -> None:
    links = {
        "one": (7, "reactor", "secret"),
        "another principal's": (8, "reactor", "secret"),
        "another instance": (7, "reactor", "other"),
        "without an instance": (7, "reactor", None),
        "another name": (7, "namesake", "secret"),
    }
    for link, (principal, name, instance) in links.items():
        sessions.named(link, principal, name, instance)
    assert len({id(sessions.of(link, links[link][0])) for link in links}) == len(links)
    sessions.named("again", 7, "reactor", None)
    assert sessions.of("again", 7) is sessions.of("without an instance", 7)


def test_a_link_keeps_the_session_that_it_began_with(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    sessions.named("link 1", 7, "one", None)
    sessions.named("link 2", 7, "two", None)
    holding(sessions.of("link 1", 7), ended, "one's")
    mine = sessions.of("link 2", 7)
    sessions.named("link 2", 7, "one", None)
    assert sessions.of("link 2", 7) is mine
    sessions.lost("link 1")
    time.pass_time(5)
    assert ended == ["one's"]


def test_what_a_link_had_before_it_told_its_name_becomes_that_reactors(sessions: Sessions) -> None:
    nameless = sessions.of("link 1", 7)
    assert nameless.name is None
    sessions.named("link 1", 7, "late", "secret", "late#2")
    assert sessions.of("link 1", 7) is nameless
    assert nameless.name == "late#2"
    sessions.lost("link 1")
    sessions.named("link 2", 7, "late", "secret")
    assert sessions.of("link 2", 7) is nameless


def test_and_stays_the_links_own_where_the_reactor_has_a_session_already(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    sessions.named("link 1", 7, "reactor", "secret")
    named = sessions.of("link 1", 7)
    holding(named, ended, "named's")
    sessions.lost("link 1")
    nameless = sessions.of("link 2", 7)
    holding(nameless, ended, "nameless")
    sessions.named("link 2", 7, "reactor", "secret")
    assert sessions.of("link 2", 7) is named
    time.pass_time(10)
    assert ended == []
    nameless.let_go(("lease", "nameless"))
    assert nameless.count("lease") == 0 and named.count("lease") == 1
    holding(nameless, ended, "nameless")
    sessions.lost("link 2")
    time.pass_time(5)
    assert sorted(ended) == ["named's", "nameless"]
    assert not len(sessions) and not sessions._by_link


def test_all_sessions_of_a_principal_end_with_it(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    sessions.named("link 1", 7, "reactor", "secret")
    holding(sessions.of("link 1", 7), ended, "named")
    holding(sessions.of("link 2", 7), ended, "nameless")
    holding(sessions.orphan(7), ended, "orphan")
    holding(sessions.of("link 3", 8), ended, "another's")
    sessions.end_principals({7})
    assert ended == []
    time.pass_time(0)
    assert sorted(ended) == ["named", "nameless", "orphan"]
    for link in ("link 1", "link 2", "link 3"):
        sessions.lost(link)
    time.pass_time(5)
    assert ended[-1] == "another's"
    assert not len(sessions) and not sessions._by_link and not sessions._names


def test_what_is_held_in_a_session_that_has_ended_ends_at_once(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    session = sessions.of("link", 7)
    sessions.end(session)
    holding(session, ended, "late")
    assert ended == [], "whoever holds it may not be ready yet"
    time.pass_time(0)
    assert ended == ["late"]
    assert session.count("lease") == 0


def test_an_orphan_lives_for_the_grace(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    holding(sessions.orphan(7), ended, "x")
    time.pass_time(4.9)
    assert ended == []
    time.pass_time(0.1)
    assert ended == ["x"] and not len(sessions)


def test_closing_ends_everything(sessions: Sessions) -> None:
    ended: list[str] = []
    holding(sessions.of("link", 7), ended, "x")
    holding(sessions.own, ended, "the gateway's own")
    sessions.close()
    assert sorted(ended) == ["the gateway's own", "x"]


def test_what_is_held_twice_under_one_key_is_held_once(sessions: Sessions) -> None:
    ended: list[str] = []
    session = sessions.of("link", 7)
    session.hold(("lease", "x"), lambda: ended.append("before"))
    session.hold(("lease", "x"), lambda: ended.append("after"))
    assert session.count("lease") == 1
    sessions.end(session)
    sessions.end(session)  # again is nothing
    assert ended == ["after"]


def test_two_links_of_one_instance_share_a_session_until_the_last_has_gone(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    for link in ("link 1", "link 2"):
        sessions.named(link, 7, "reactor", "secret")
    session = sessions.of("link 1", 7)
    assert sessions.of("link 2", 7) is session
    holding(session, ended, "x")
    sessions.lost("link 1")
    time.pass_time(10)
    assert ended == []
    sessions.lost("link 2")
    time.pass_time(5)
    assert ended == ["x"]


def test_a_lease_in_a_session_that_has_ended_ends_once(sessions: Sessions, time: Loop) -> None:
    """It is freed before the loop gets to its end, and nobody pays for it."""
    alarms, ended = Alarms(time.loop), []
    leases = Leases(alarms, lambda end, account: ended.append("late"))
    session = sessions.of("link", 7)
    sessions.end(session)

    async def end(lease: Lease) -> None:
        ended.append("freed")

    lease = leases.grant("lock", "k", 7, session, 60.0, end)
    assert time.loop.run_until_complete(leases.free(lease))
    assert not time.loop.run_until_complete(leases.free(lease))
    time.pass_time(100)
    assert ended == ["freed"]


def test_a_link_of_several_sessions_keeps_those_that_have_not_ended(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    before = sessions.of("link 1", 7)
    holding(before, ended, "before")
    sessions.named("link 2", 7, "reactor", "secret")
    holding(sessions.of("link 2", 7), ended, "the reactor's")
    sessions.named("link 1", 7, "reactor", "secret")  # it has a session already: the link keeps its own as well
    sessions.end(before)
    assert ended == ["before"]
    assert sessions.of("link 1", 7) is sessions.of("link 2", 7)


def test_thousands_that_one_holds_end_so_many_at_a_time(sessions: Sessions, time: Loop) -> None:
    ended: list[str] = []
    session = sessions.of("link", 7)
    holding(session, ended, *map(str, range(1000)))
    sessions.end(session)
    assert 0 < len(ended) < 100
    time.pass_time(0.001)
    assert sorted(map(int, ended)) == list(range(1000))
    assert session.count("lease") == 0


def test_closing_ends_all_at_once(sessions: Sessions) -> None:
    ended: list[str] = []
    holding(sessions.of("link", 7), ended, *map(str, range(1000)))
    sessions.close()
    assert len(ended) == 1000


def test_closing_ends_those_that_were_about_to_end(sessions: Sessions) -> None:
    ended: list[str] = []
    session = sessions.of("link", 7)
    holding(session, ended, *map(str, range(1000)))
    sessions.end(session)
    sessions.close()
    assert len(ended) == 1000
