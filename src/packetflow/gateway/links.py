"""The open links of a gateway: from the handshake's end to the connection's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from packetflow.elements import Runtime
from packetflow.gateway.access import NOBODY_ROLE
from packetflow.gateway.inside import Inside
from packetflow.gateway.reactors import Reactors
from packetflow.settings import LinkSettings
from pfcore.link.engine import Engine
from pfcore.link.websocket import Link
from pfcore.route.switch import Switch

__all__ = ["Links"]

GONE = "these credentials are no longer valid"


class Links:
    """Tells everyone who has to know that a link has come, has announced something, or has gone.

    `links`: where they stand, by engine. `runtime`: the elements', None where
    there are none. `counts`: ``accepted``.
    """

    def __init__(
        self,
        links: dict[Engine, Link],
        switch: Switch,
        reactors: Reactors,
        inside: Inside,
        settings: LinkSettings,
        runtime: Callable[[], Runtime | None],
        counts: dict[str, int],
    ) -> None:
        self._links = links
        self._switch = switch
        self._reactors = reactors
        self._inside = inside
        self._settings = settings
        self._runtime = runtime
        self._counts = counts
        self._emptied = asyncio.Event()
        self._ending = 0  # links that have gone and are yet to end
        self.refused_charges = 0
        """Charges that anonymous links which have gone were refused: their accounts went with them."""

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, engine: Engine) -> bool:
        return engine in self._links

    def of(self, engine: Engine) -> Link | None:
        """The link of an engine, while it is open."""
        return self._links.get(engine)

    # -- what happens to them

    def opened(self, link: Link) -> None:
        """A handshake has succeeded."""
        self._links[link.engine] = link
        self._switch.join(link.engine)
        self._counts["accepted"] += 1
        if link.engine.member.principal.role == NOBODY_ROLE:
            # its credentials were valid when the handshake began
            link.close(1008, GONE)

    def closed(self, link: Link) -> None:
        """Its connection has gone."""
        engine = link.engine
        self._links.pop(engine, None)
        if engine.member is not None and engine.member.principal.number == 0:
            self.refused_charges += engine.member.account.refused
        self._reactors.lost(engine)
        self._inside.forget(engine)
        runtime = self._runtime()
        if runtime is not None:
            runtime.sessions.lost(engine)
        self._switch.leave(engine, time.monotonic_ns())
        self._ending += 1
        self._end(link)

    def _end(self, link: Link) -> None:
        """What was sent to it ends: thousands of broadcasts, maybe, so others get on in between."""
        done = link.engine.close("PF502", "the connection was lost; the answer is unknown", all=False)
        link.flush_ended()
        if not done:
            asyncio.get_running_loop().call_soon(self._end, link)
            return
        self._ending -= 1
        if not self._links and not self._ending:
            self._emptied.set()

    def heard(self, engine: Engine) -> None:
        """A heartbeat came: what it says of its reactor holds from now on."""
        link = self._links.get(engine)
        if link is not None:
            self._reactors.announced(link)
            runtime = self._runtime()
            if runtime is not None and engine.peer_name is not None:
                # even where the name is not granted: what a reactor holds is within its principal, and who takes its
                # name while it is away takes nothing else
                member = engine.member
                runtime.sessions.named(
                    engine, member.principal.number, engine.peer_name, engine.peer_instance, member.reactor
                )
        self._switch.update(engine)

    # -- what is done to all of them

    def announce(self, handles: list[str]) -> None:
        """Tells every peer what the gateway itself handles."""
        for engine in self._links:
            engine.announce(handles)

    def set_window(self, window: int) -> None:
        """Packets that one link may have in flight here, those to come included."""
        replace(self._settings, window=window)  # a bad one fails here
        self._settings.window = window
        for engine in self._links:
            engine.set_window(window)

    def turn_out(self) -> None:
        """Closes those whose principals are no more."""
        for member in self._switch.links:
            if member.principal.role == NOBODY_ROLE:
                link = self._links.get(member.engine)
                if link is not None:
                    link.close(1008, GONE)

    def close(self, reason: str) -> None:
        """Says good-bye to all."""
        self._emptied.clear()
        for link in list(self._links.values()):
            link.close(1001, reason)

    async def gone(self) -> None:
        """Returns when all have gone."""
        if self._links or self._ending:
            await self._emptied.wait()

    def detach(self) -> None:
        """Cuts off who is still there."""
        for link in list(self._links.values()):
            link.detach()
