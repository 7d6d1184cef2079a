"""Sessions: who holds leases, reactions, timers and places, across a reactor's reconnects."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable
from typing import Any

from packetflow.state.alarms import Alarm, Alarms

__all__ = ["Session", "Sessions"]

AT_ONCE = 64
"""Things that end with sessions before the loop has had another turn: each may resume a handler."""


class Session:
    """A reactor that may hold things, for as long as it has a link, and 5 s beyond.

    `principal`: whose it is. `name`: what it is shown as, None for a link without
    a name. `held`: what ends with it, by key, each with a function that ends it.
    """

    __slots__ = ("_alarm", "_counts", "_sessions", "ended", "held", "key", "links", "name", "principal")

    def __init__(self, sessions: Sessions, key: Hashable, principal: Hashable, name: str | None) -> None:
        self.key = key
        self.principal = principal
        self.name = name
        self.links: set[Any] = set()
        self.held: dict[tuple[str, str], Callable[[], None]] = {}
        self.ended = False
        self._counts: dict[str, int] = {}
        self._sessions = sessions
        self._alarm: Alarm | None = None

    def hold(self, key: tuple[str, str], end: Callable[[], None]) -> None:
        """Calls `end` when the session ends, unless it is let go before. `key`: (kind, id).

        Where it has ended already, that is as soon as the loop gets to it: who
        holds it has then put it in order.
        """
        if key not in self.held:
            self._counts[key[0]] = self._counts.get(key[0], 0) + 1
        self.held[key] = end
        if self.ended:
            self._sessions.empty(self)

    def let_go(self, key: tuple[str, str]) -> None:
        """It has ended otherwise."""
        if self.held.pop(key, None) is not None:
            self._counts[key[0]] -= 1

    def count(self, kind: str) -> int:
        """How many of a kind it holds."""
        return self._counts.get(kind, 0)

    def end_some(self, most: int) -> int:
        """Ends so much of what it holds; how much it was."""
        ended = 0
        while self.held and ended < most:
            key, end = self.held.popitem()
            self._counts[key[0]] -= 1
            ended += 1
            end()
        return ended


class Sessions:
    """The sessions of a gateway: of a reactor where a link has a name, else of the link.

    A reactor is a principal, a name and its secret `instance`, or where it sends
    none principal and name alone: nobody comes into a session of another principal,
    and none that has an instance by knowing the name. `grace`: seconds that a
    session outlives its last link (default 5).
    """

    def __init__(self, alarms: Alarms, grace: float = 5.0) -> None:
        self._alarms = alarms
        self.grace = grace
        self._by_key: dict[Hashable, Session] = {}
        self._over: dict[Session, None] = {}  # those that have ended, and hold something yet
        self._emptying: Alarm | None = None
        self._by_link: dict[Any, list[Session]] = {}  # the last is the one in use
        self._names: dict[
            Any, tuple[Hashable, str | None]
        ] = {}  # of links that have told theirs: key, and what to show
        self.own = Session(self, "gateway", None, "gateway")
        """Of the gateway itself: it does not end while it runs."""

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, link: Any, principal: Hashable) -> Session:
        """The session of a link; made at its first use."""
        sessions = self._by_link.get(link)
        if sessions is not None:
            return sessions[-1]
        key, name = self._names.get(link, (link, None))
        session = self._by_key.get(key)
        if session is None:
            session = self._by_key[key] = Session(self, key, principal, name)
        self._join(session, link)
        return session

    def named(
        self, link: Any, principal: Hashable, name: str, instance: str | None = None, shown: str | None = None
    ) -> None:
        """A link has told its name, and whatever it tells later does not count. `shown`: what it is shown as.

        If that reactor has a session, it goes on, and is the link's from now on.
        What the link had before it told its name stays its own.
        """
        if link in self._names:
            return
        key = (principal, name, instance)
        self._names[link] = key, shown
        found = self._by_key.get(key)
        if found is not None:
            self._join(found, link)
        elif link in self._by_link:
            session = self._by_link[link][-1]
            del self._by_key[session.key]
            session.key, session.name = key, shown
            self._by_key[key] = session

    def orphan(self, principal: Hashable) -> Session:
        """For who has no link any more: what it holds ends after the grace."""
        session = Session(self, object(), principal, None)
        self._by_key[session.key] = session
        self._leave(session, None)
        return session

    def lost(self, link: Any) -> None:
        """A link has gone; its session ends after the grace, unless its reactor comes back."""
        self._names.pop(link, None)
        for session in self._by_link.pop(link, ()):
            self._leave(session, link)

    def end(self, session: Session) -> None:
        """Ends a session, and all that it holds: so much at once, the rest as the loop gets to it."""
        if not session.ended:
            self._part(session)
            session.end_some(AT_ONCE)
            self.empty(session)

    def _part(self, session: Session) -> None:
        """It is nobody's session any more."""
        session.ended = True
        self._by_key.pop(session.key, None)
        for link in session.links:
            sessions = self._by_link[link]
            sessions.remove(session)
            if not sessions:
                del self._by_link[link]
        session.links.clear()
        if session._alarm is not None:
            session._alarm.cancel()
            session._alarm = None

    def empty(self, session: Session) -> None:
        """One that has ended holds something: that ends as soon as the loop gets to it."""
        if session.held:
            self._over[session] = None
            if self._emptying is None:
                self._emptying = self._alarms.at(self._alarms.now(), self._end_more)

    def _end_more(self) -> None:
        left = AT_ONCE
        self._emptying = None
        while self._over and left > 0:
            session = next(iter(self._over))
            left -= session.end_some(left)
            if not session.held:
                del self._over[session]
        if self._over and self._emptying is None:
            self._emptying = self._alarms.at(self._alarms.now(), self._end_more)

    def end_principals(self, principals: Container[Hashable]) -> None:
        """Ends all sessions of principals that are no more."""
        for session in [one for one in self._by_key.values() if one.principal in principals]:
            self._part(session)
            self.empty(session)

    def close(self) -> None:
        """Ends all of them."""
        for session in (*self._by_key.values(), self.own):
            self._part(session)
            self._over[session] = None
        while self._over:
            session = next(iter(self._over))
            session.end_some(len(session.held))
            if not session.held:
                del self._over[session]

    def _join(self, session: Session, link: Any) -> None:
        session.links.add(link)
        self._by_link.setdefault(link, []).append(session)
        if session._alarm is not None:
            session._alarm.cancel()
            session._alarm = None

    def _leave(self, session: Session, link: Any) -> None:
        session.links.discard(link)
        if not session.links:
            session._alarm = self._alarms.at(self._alarms.now() + self.grace, lambda: self.end(session))
