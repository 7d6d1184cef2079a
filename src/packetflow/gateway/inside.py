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
from pfcore.engine import Engine
from pfcore.flights import Member, Principal
from pfcore.link import Link
from pfcore.loopback import Loopback
from pfcore.reply import Reply
from pfcore.switch import Switch

__all__ = ["Inside"]

_FOREVER = 1e6
"""Seconds: a loopback needs neither heartbeats nor signs of life."""


class _Way(Submitter):
    """Packets of one principal, over a loopback of their own: they are authorised, counted and routed as his."""

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self._bind(loopback)


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ways: dict[Principal, _Way] = {}
        self._direct: dict[Engine, Submitter] = {}
        self.gateway = Principal("gateway", 1, GATEWAY_ROLE)

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The gateway submits from now on."""
        self._loop = loop
        self._switch.set_inner(self._open_way(self.gateway).loopback.far)

    def close(self) -> None:
        """Ends what was submitted and is not answered."""
        for principal in list(self._ways):
            self._close_way(principal)
        self._direct.clear()
        self._loop = None

    def keep_only(self, alive: Iterable[Principal]) -> None:
        """Other principals have lost their credentials: what is under way for them ends."""
        kept = {*alive, self.gateway}
        for principal in [principal for principal in self._ways if principal not in kept]:
            self._close_way(principal)

    def forget(self, engine: Engine) -> None:
        """A link has gone."""
        self._direct.pop(engine, None)

    @property
    def own(self) -> Submitter:
        """Submits as the gateway."""
        return self._way(self.gateway)

    # -- as the elements' host

    def submit_as(self, principal: Principal, packet: Packet, retry: int = 0) -> Reply:
        """Routes a packet as if this principal had submitted it."""
        return self._way(principal).submit(packet, retry=retry)

    def may_submit(self, principal: Principal, key: str) -> bool:
        """May it submit to this ``group:element``?"""
        return bool(self._masks(key)[0] >> principal.role & 1)

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
        """Sends a packet to one reactor."""
        submitter = self._direct.get(member.engine)
        if submitter is None:
            link = self._link_of(member.engine)
            if link is None:
                raise ConnectionLost("the reactor has gone")
            submitter = self._direct[member.engine] = Submitter()
            submitter._bind(link)
        return submitter.submit(packet)

    # -- ways

    def _way(self, principal: Principal) -> _Way:
        way = self._ways.get(principal)
        if way is None:
            if self._loop is None:
                raise ConnectionLost("not started: use `async with`, or await start() first")
            if principal.role == NOBODY_ROLE:
                # a way would be opened again, and nobody would close it
                raise Forbidden(f"principal {principal.name!r} is no more")
            way = self._open_way(principal)
        return way

    def _open_way(self, principal: Principal) -> _Way:
        assert self._loop is not None
        near = Engine(client=False, max_pending=1 << 20, **self._settings)
        far = Engine(client=False, acceptor=self._switch, window=1 << 24, **self._settings)
        loopback = Loopback(near, far, loop=self._loop)
        self._switch.admit(far, principal, ())
        self._switch.join(far)
        loopback.open_up()
        way = self._ways[principal] = _Way(loopback)
        return way

    def _close_way(self, principal: Principal) -> None:
        loopback = self._ways.pop(principal).loopback
        loopback.shut("PF503", "the gateway was stopped")
        self._switch.leave(loopback.far, time.monotonic_ns())
