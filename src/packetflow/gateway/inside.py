"""What the gateway submits itself: as itself, and as whoever the standard elements work for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from packetflow.errors import ConnectionLost, Forbidden
from packetflow.gateway.access import GATEWAY_ROLE, NOBODY_ROLE
from packetflow.model import Packet
from pfcore.client import Submitter
from pfcore.link.engine import Engine
from pfcore.link.loopback import Loopback
from pfcore.link.reply import Reply
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import Link
from pfcore.memory.budget import Account
from pfcore.route.flights import Member, Principal
from pfcore.route.switch import Switch

__all__ = ["Inside", "Way"]

_FOREVER = 1e6
"""Seconds: a loopback needs neither heartbeats nor signs of life."""


IDLE = 10.0
"""Seconds that an anonymous link's way is kept when nothing is under way on it."""


class Way(Submitter):
    """Packets of one principal that one account pays for, over a loopback of their own.

    So they are authorised, counted and routed as his, and held for that account.
    """

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self.timer: asyncio.TimerHandle | None = None
        self.used = 0.0  # loop time
        self.leaving = False  # its link has gone: it ends with what is under way
        self._bind(loopback)

    @property
    def idle(self) -> bool:
        """Is nothing under way on it?"""
        near = self.loopback.engine
        return near.in_flight == 0 and near.queued == 0


class Inside:
    """The gateway's own side of the switch. `masks`: of a key, as `Access.masks`; `link_of`: of an engine."""

    def __init__(
        self,
        switch: Switch,
        masks: Callable[[str], tuple[int, int, int]],
        link_of: Callable[[Engine], Link | None],
        max_frame: int,
    ) -> None:
        self._switch = switch
        self._masks = masks
        self._link_of = link_of
        self._settings: dict[str, Any] = {
            "heartbeat": _FOREVER,
            "silence": _FOREVER,
            "max_frame": max_frame,
            "max_buffer": 1 << 28,
        }
        self._orphanage: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sharing: Sharing | None = None
        self.ways: dict[tuple[Principal, Account | None], Way] = {}
        """By whose packets they carry, and who pays."""
        self._kept: frozenset[Principal] | None = None
        self._direct: dict[Engine, Submitter] = {}
        self.gateway = Principal("gateway", 1, GATEWAY_ROLE)

    def open(self, loop: asyncio.AbstractEventLoop, sharing: Sharing) -> None:
        """The gateway submits from now on."""
        self._loop = loop
        self._sharing = sharing
        self._way(self.gateway, None)
        self._orphanage = Engine(client=False, sink=self._switch, window=1 << 24, **self._settings)
        self._switch.admit(self._orphanage, self.gateway, ())
        self._orphanage.connected(time.monotonic_ns())
        self._switch.join(self._orphanage)
        self._switch.set_inner(self._orphanage)

    def close(self) -> None:
        """Ends what was submitted and is not answered."""
        for key in list(self.ways):
            self._close_way(key)
        self._direct.clear()
        self._loop = None
        if self._orphanage is not None:
            self._orphanage.disconnected("the gateway has stopped", time.monotonic_ns())
            self._switch.leave(self._orphanage, time.monotonic_ns())
            self._orphanage = None

    def keep_only(self, alive: Iterable[Principal]) -> None:
        """Other principals have lost their credentials: what is under way for them ends, and nothing more begins."""
        self._kept = frozenset((*alive, self.gateway))
        for key in [key for key in self.ways if not self._is_kept(key[0])]:
            self._close_way(key)

    def _is_kept(self, principal: Principal) -> bool:
        """Has it its credentials still? Links without any are one principal, whatever object stands for it."""
        if self._kept is None or principal in self._kept:
            return True
        return principal.number == 0 and any(one.number == 0 for one in self._kept)

    def forget(self, engine: Engine) -> None:
        """A link has gone. An anonymous one's way ends once nothing is under way on it."""
        self._direct.pop(engine, None)
        member = engine.member
        if member is None or member.principal.account is not None:
            return
        key = (member.principal, member.account)
        way = self.ways.get(key)
        if way is not None:
            way.leaving = True
            self._look_soon(key, way, 0.0)

    @property
    def own(self) -> Submitter:
        """Submits as the gateway."""
        return self._way(self.gateway, None)

    # -- as the elements' host

    def submit_as(self, principal: Principal, packet: Packet, account: Account | None = None) -> Reply:
        """Routes a packet as if this principal had submitted it; `account` pays for it. Its `Result` holds JSON.

        `Forbidden` where the principal has lost its credentials.
        """
        if not self._is_kept(principal):
            raise Forbidden("these credentials are no longer valid")
        # a principal with an account of its own pays out of that, whoever asks
        account = principal.account if principal.account is not None or principal is self.gateway else account
        return self._way(principal, account).submit(packet, raw=True)

    def may_submit(self, principal: Principal, key: str) -> bool:
        """May it submit to this ``group:element``?"""
        if not self._is_kept(principal):
            return False
        return bool(self._masks(key)[0] >> principal.role & 1)

    def spend(self, principal: Principal, count: int) -> bool:
        """Counts packets against a principal's rate; False, and nothing is counted, where they are too many."""
        return principal.spend_many(count, time.monotonic_ns())

    def reactors_for(self, key: str) -> list[Member]:
        """Who handles it, and takes new work."""
        may_handle = self._masks(key)[1]
        return [
            member
            for member in self._switch.reactors_for(key)
            # what one was seen to handle, it may have been allowed to then
            if not member.draining and may_handle >> member.principal.role & 1
        ]

    def submit_to(self, member: Member, packet: Packet) -> Reply:
        """Sends a packet to one reactor. Its `Result` holds JSON."""
        submitter = self._direct.get(member.engine)
        if submitter is None:
            link = self._link_of(member.engine)
            if link is None:
                raise ConnectionLost("the reactor has gone")
            submitter = self._direct[member.engine] = Submitter()
            submitter._bind(link)
        return submitter.submit(packet, raw=True)

    # -- ways

    def _way(self, principal: Principal, account: Account | None) -> Way:
        key = (principal, account)
        way = self.ways.get(key)
        if way is None:
            if self._loop is None:
                raise ConnectionLost("not started: use `async with`, or await start() first")
            if principal.role == NOBODY_ROLE:
                # a way would be opened again, and nobody would close it
                raise Forbidden(f"principal {principal.name!r} is no more")
            way = self.ways[key] = self._open_way(principal, account)
        if principal.account is None and principal is not self.gateway:
            way.used = self._loop.time() if self._loop is not None else 0.0
            if way.timer is None:
                self._look_soon(key, way, IDLE)
        return way

    def _open_way(self, principal: Principal, account: Account | None) -> Way:
        assert self._loop is not None
        near = Engine(client=False, max_pending=1 << 20, **self._settings)
        far = Engine(client=False, sink=self._switch, window=1 << 24, **self._settings)
        loopback = Loopback(near, far, loop=self._loop, sharing=self._sharing)
        self._switch.admit(far, principal, (), account, inside=True)
        self._switch.join(far)
        loopback.open_up()
        return Way(loopback)

    def _look_soon(self, key: tuple[Principal, Account | None], way: Way, delay: float) -> None:
        if self._loop is None:
            return  # pragma: no cover - a way that was opened by what ended while all were closed
        if way.timer is not None:
            way.timer.cancel()
        way.timer = self._loop.call_later(delay, self._look, key, way)

    def _look(self, key: tuple[Principal, Account | None], way: Way) -> None:
        """Ends an anonymous link's way that is not needed any more."""
        way.timer = None
        if self._loop is None or self.ways.get(key) is not way:
            return  # pragma: no cover - the same
        unused = self._loop.time() - way.used
        if way.idle and (way.leaving or unused >= IDLE):
            self._close_way(key)
        else:
            # what is under way ends by its deadline at the latest, and looks are cheap
            self._look_soon(key, way, 0.1 if way.leaving else IDLE)

    def _close_way(self, key: tuple[Principal, Account | None]) -> None:
        way = self.ways.pop(key)
        if way.timer is not None:
            way.timer.cancel()
        loopback = way.loopback
        loopback.shut("PF503", "the gateway was stopped")
        self._switch.leave(loopback.far, time.monotonic_ns())
