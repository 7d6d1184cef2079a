"""Sessions: who holds leases, reactions, timers and places, across a reactor's reconnects."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from packetflow.state.alarms import Alarm, Alarms

__all__ = ["Session", "Sessions"]


class Session:
    """A reactor that may hold things, for as long as it has a link, and 5 s beyond.

    `held`: what ends with it, by key, each with a function that ends it.
    """

    __slots__ = ("_alarm", "_counts", "ended", "held", "key", "links", "name")

    def __init__(self, key: Hashable, name: str | None) -> None:
        self.key = key
        self.name = name
        self.links: set[Any] = set()
        self.held: dict[tuple[str, str], Callable[[], None]] = {}
        self.ended = False
        self._counts: dict[str, int] = {}
        self._alarm: Alarm | None = None

    def hold(self, key: tuple[str, str], end: Callable[[], None]) -> None:
        """Calls `end` when the session ends, unless it is let go before. `key`: (kind, id)."""
        if key not in self.held:
            self._counts[key[0]] = self._counts.get(key[0], 0) + 1
        self.held[key] = end

    def let_go(self, key: tuple[str, str]) -> None:
        """It has ended otherwise."""
        if self.held.pop(key, None) is not None:
            self._counts[key[0]] -= 1

    def count(self, kind: str) -> int:
        """How many of a kind it holds."""
        return self._counts.get(kind, 0)


class Sessions:
    """The sessions of a gateway: by principal and reactor id where a link has one, else a link's own.

    `grace`: seconds that a session outlives its last link (default 5).
    """

    def __init__(self, alarms: Alarms, grace: float = 5.0) -> None:
        self._alarms = alarms
        self._grace = grace
        self._by_key: dict[Hashable, Session] = {}
        self._by_link: dict[Any, Session] = {}
        self.own = Session("gateway", "gateway")
        """Of the gateway itself: it does not end while it runs."""

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, link: Any, principal: Hashable, name: str | None) -> Session:
        """The session of a link; made at its first use."""
        session = self._by_link.get(link)
        if session is not None and (name is None or session.name == name):
            return session
        key = (principal, name) if name is not None else link
        found = self._by_key.get(key)
        if found is None:
            if session is not None:
                # it has told its name since
                del self._by_key[session.key]
                session.key, session.name = key, name
                self._by_key[key] = session
                return session
            found = self._by_key[key] = Session(key, name)
        elif session is not None:
            for held, end in session.held.items():
                found.hold(held, end)
            session.held.clear()
            self._by_key.pop(session.key, None)
        self._join(found, link)
        return found

    def joined(self, link: Any, principal: Hashable, name: str) -> None:
        """A link has told its name: the session of that name goes on."""
        if (principal, name) in self._by_key or link in self._by_link:
            self.of(link, principal, name)

    def lost(self, link: Any) -> None:
        """A link has gone; its session ends after the grace, unless another of that name comes."""
        session = self._by_link.pop(link, None)
        if session is None:
            return
        session.links.discard(link)
        if not session.links:
            session._alarm = self._alarms.at(self._alarms.now() + self._grace, lambda: self.end(session))

    def end(self, session: Session) -> None:
        """Ends a session and all that it holds."""
        if session.ended:
            return
        session.ended = True
        self._by_key.pop(session.key, None)
        for link in session.links:
            self._by_link.pop(link, None)
        while session.held:
            session.held.popitem()[1]()

    def close(self) -> None:
        """Ends all of them."""
        for session in list(self._by_key.values()):
            self.end(session)
        self.end(self.own)

    def _join(self, session: Session, link: Any) -> None:
        session.links.add(link)
        self._by_link[link] = session
        if session._alarm is not None:
            session._alarm.cancel()
            session._alarm = None
