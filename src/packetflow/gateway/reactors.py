"""Which reactors are connected, and under which names.

A **name** is what a reactor calls itself in its heartbeats. It belongs to the
principal that announced it first, for as long as one link of it lives. Links of
one name are **instances** of it, told apart by the secret ``instance`` of their
heartbeats, and where they send none by the link. Each is shown under an id of
its own: ``billing`` the first, ``billing#2`` the second; a number is not given to
another instance while the name lives, and an instance that comes back has the
number that it had. A link has one name at most, the first that it was granted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

from packetflow.gateway.peer import Instance, Peer
from pfcore.link.engine import Engine
from pfcore.link.websocket import Link
from pfcore.route.flights import Principal

__all__ = ["Reactors"]

MOST_REMEMBERED = 4096
"""Instances that have left, for their numbers and for the count of those that come back."""


class _Name:
    """A name that is taken: whose it is, its instances in order of arrival, the number of the next."""

    __slots__ = ("instances", "next", "principal")

    def __init__(self, principal: int) -> None:
        self.principal = principal
        self.instances: dict[Hashable, Instance] = {}
        self.next = 1

    def latest(self) -> Peer:
        return self.instances[next(reversed(self.instances))].latest


class Reactors:
    """The connected reactors that have a name.

    `by_name`: the latest instance of each. `may_name`: of a principal and a name.
    `may_handle`: of a principal and a key, for what is sent to one by name.
    `counts`: ``names_taken``, ``names_forbidden`` and ``names_changed`` (claims that
    were ignored) and ``reconnects``.
    """

    def __init__(
        self,
        may_name: Callable[[Principal, str], bool],
        may_handle: Callable[[Principal, str], bool],
        counts: dict[str, int],
    ) -> None:
        self._may_name = may_name
        self._may_handle = may_handle
        self._counts = counts
        counts.update(names_taken=0, names_forbidden=0, names_changed=0, reconnects=0)
        self.by_name: dict[str, Peer] = {}
        self._names: dict[str, _Name] = {}
        self._by_id: dict[str, Instance] = {}
        self._of: dict[Engine, Instance] = {}
        self._refused: set[Engine] = set()
        self._left: OrderedDict[tuple[int, str, str | None], int] = OrderedDict()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Peer]:
        """The latest link of every instance."""
        return (instance.latest for instance in self._by_id.values())

    def find(self, which: str) -> Peer | None:
        """The reactor of that name, the latest instance; or of that id, ``name#1`` being the first's, too."""
        peer = self.by_name.get(which)
        if peer is not None:
            return peer
        instance = self._by_id.get(which)
        if instance is None and which.endswith("#1"):
            instance = self._by_id.get(which[:-2])
        return None if instance is None else instance.latest

    async def wait(self, name: str) -> Peer:
        """The reactor of that name, once there is one."""
        while (peer := self.by_name.get(name)) is None:
            waiter = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(name, [])
            waiting.append(waiter)
            try:
                await waiter
            finally:
                waiting.remove(waiter)
                if not waiting and self._waiting.get(name) is waiting:
                    del self._waiting[name]
        return peer

    # -- links

    def announced(self, link: Link) -> None:
        """A link's heartbeat came: it has the name that it announces from now on, if it may and has none."""
        engine = link.engine
        name = engine.peer_name
        if name is None:
            return
        known = self._of.get(engine)
        if known is not None:
            self._counts["names_changed"] += known.name != name
            return
        principal = engine.member.principal
        reason = self._objection(principal, name)
        if reason is None:
            self._grant(link, principal, name)
        elif engine not in self._refused:
            # once a link: heartbeats repeat it, and it may be granted yet
            self._refused.add(engine)
            self._counts[reason] += 1

    def lost(self, engine: Engine) -> None:
        """A link has gone."""
        self._refused.discard(engine)
        self._take_back(engine)

    def check(self) -> None:
        """Roles have changed: links lose the names that they may no longer have."""
        for engine, instance in list(self._of.items()):
            if not self._may_name(instance.peers[engine].member.principal, instance.name):
                self._take_back(engine)

    def _objection(self, principal: Principal, name: str) -> str | None:
        """Why it may not have this name: what counts that."""
        if not self._may_name(principal, name):
            return "names_forbidden"
        known = self._names.get(name)
        if known is not None:
            return None if known.principal == principal.number else "names_taken"
        if name in self._by_id:
            return "names_taken"  # another's second instance is shown under it
        family, mark, number = name.rpartition("#")
        if mark and number.isdecimal() and family in self._names:
            # `family#9` is what one looks for an instance of it under
            return None if self._names[family].principal == principal.number else "names_taken"
        return None

    def _grant(self, link: Link, principal: Principal, name: str) -> None:
        engine = link.engine
        known = self._names.get(name)
        if known is None:
            known = _Name(principal.number)
        secret = engine.peer_instance
        key: Hashable = engine if secret is None else secret
        instance = known.instances.get(key)
        returns = instance is not None
        if instance is None:
            before = self._left.pop((principal.number, name, secret), None)
            returns = before is not None
            number = self._number(known, name, before)
            instance = Instance(name, number, secret)
        peer = Peer(link, instance, self._may_handle)
        self._counts["reconnects"] += returns
        if instance.peers:
            # it is back before its old link is known to be lost: the latest stands for it
            known.instances.pop(key)
            instance.latest.hide()
        self._names[name] = known
        known.instances[key] = self._by_id[instance.id] = self._of[engine] = instance
        instance.peers[engine] = peer
        peer.show()
        self._refused.discard(engine)
        self.by_name[name] = peer
        for waiter in self._waiting.pop(name, ()):
            if not waiter.done():  # pragma: no branch - it was cancelled in this very iteration
                waiter.set_result(None)

    def _number(self, known: _Name, name: str, before: int | None) -> int:
        """Of a new instance; `before`: what it had when it was here last."""
        number = known.next if before is None else before
        tries = 0
        while (shown := Instance.shown(name, number)) in self._by_id or (number > 1 and shown in self._names):
            tries += 1
            # by leaps in the end: somebody may have called thousands of reactors like the next ids
            number = max(known.next, number + 1) if tries < 16 else 2 * number
        known.next = max(known.next, number + 1)
        return number

    def _take_back(self, engine: Engine) -> None:
        """Takes its name from a link that has one."""
        instance = self._of.pop(engine, None)
        if instance is None:
            return
        peer = instance.peers.pop(engine)
        peer.hide()
        name = instance.name
        known = self._names[name]
        if instance.peers:
            instance.latest.show()
        else:
            del known.instances[engine if instance.secret is None else instance.secret]
            del self._by_id[instance.id]
            self._left[known.principal, name, instance.secret] = instance.number
            if len(self._left) > MOST_REMEMBERED:
                self._left.popitem(last=False)
        if known.instances:
            self.by_name[name] = known.latest()
        else:
            del self._names[name], self.by_name[name]
