"""What the meta-computation elements do to a gateway: processes, migrations, settings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from packetflow.errors import InvalidPacket, PacketTimeout
from packetflow.gateway.view import View
from packetflow.model import GROUPS
from pfcore.route.flights import Member, Route

__all__ = ["Admin"]

POLICIES = ("least", "sticky", "fastest", "keyed")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
MOST = 1 << 24
SHOWN = 1000


class Admin:
    """Changes a running gateway."""

    def __init__(self, view: View) -> None:
        self._view = view

    # -- processes

    async def spawn(self, template: str, count: int) -> dict[str, Any]:
        """mc:spawn"""
        return {"spawned": await self._view.supervisor.spawn(template, count)}

    async def scale(self, template: str, replicas: int, until: float) -> dict[str, Any]:
        """mc:scale: `until` is the loop time by which those that are to go must have drained."""
        supervisor = self._view.supervisor
        supervisor.template(template)
        running = supervisor.running(template)
        if replicas > len(running):
            await supervisor.spawn(template, replicas - len(running))
        for reactor in running[replicas:]:
            member = self._find(reactor)
            if member is not None:
                await self._drain(member, None, until)
            await supervisor.stop(reactor)
        return {"before": len(running), "after": len(supervisor.running(template))}

    async def migrate(self, source: str, target: str | None, until: float) -> dict[str, Any]:
        """mc:migrate"""
        member = self._find(source)
        if member is None:
            raise InvalidPacket(f"from: no reactor {source!r} is connected")
        other = None
        if target is not None:
            other = self._find(target)
            if other is None or other is member:
                raise InvalidPacket(f"to: expected another connected reactor, got {target!r}")
        moved, finished = await self._drain(member, other, until)
        return {"moved": moved, "finished": finished}

    async def _drain(self, member: Member, target: Member | None, until: float) -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        moved = self._view.switch.migrate(member, target, time.monotonic_ns())
        finished = member.outstanding
        # the switch tells nobody when a reactor has done its last; this is rare, and looks are cheap
        while member.outstanding > 0 and member in self._view.switch.links:
            if loop.time() >= until:
                raise PacketTimeout(f"{member.outstanding} packets are still under way there; it gets no new ones")
            await asyncio.sleep(0.01)
        return moved, finished

    def _find(self, reactor: str) -> Member | None:
        peer = self._view.reactors.find(reactor)
        return None if peer is None else peer.member

    # -- settings

    def tune(self, changes: dict[str, Any], reactor: str | None) -> dict[str, Any]:
        """mc:tune: all changes or none; the settings and figures."""
        member = None
        if reactor is not None:
            member = self._find(reactor)
            if member is None:
                raise InvalidPacket(f"reactor: no reactor {reactor!r} is connected")
        settings = self._settings(member)
        apply: list[Callable[[], None]] = []
        for name, value in changes.items():
            if name not in settings:
                raise InvalidPacket(f"set: expected one of {', '.join(settings)}, got {name!r}")
            apply.append(self._change(name, value, member))
        for change in apply:
            change()
        return {"settings": self._settings(member), "figures": self._figures(member)}

    def _settings(self, member: Member | None) -> dict[str, Any]:
        if member is not None:
            return {"window": member.window, "draining": member.draining}
        view = self._view
        return {
            "window": view.settings.window,
            "concurrency": view.dispatcher.concurrency,
            "max_queue": view.dispatcher.max_queue,
            "max_waiting": view.switch.max_queue,
            **{f"policy.{group}": view.switch.policy(group) for group in GROUPS},
            "log_level": logging.getLevelName(logging.getLogger("packetflow").getEffectiveLevel()),
        }

    def _change(self, name: str, value: Any, member: Member | None) -> Callable[[], None]:
        """What makes a change that has been checked."""
        view = self._view
        switch, dispatcher = view.switch, view.dispatcher
        if member is not None:
            if name == "draining":
                flag = _expect(name, value, isinstance(value, bool), "true or false")
                return lambda: switch.drain_member(member, flag)
            window = _number(name, value, 1)
            return lambda: switch.set_window(member, window)
        if name.startswith("policy."):
            policy = _expect(name, value, value in POLICIES, f"one of {', '.join(POLICIES)}")
            return lambda: switch.set_policy(name.partition(".")[2], policy)
        if name == "log_level":
            level = _expect(name, value, value in LEVELS, f"one of {', '.join(LEVELS)}")
            return lambda: logging.getLogger("packetflow").setLevel(level)
        number = _number(name, value, 0 if name == "max_queue" else 1)
        match name:
            case "concurrency":
                return lambda: dispatcher.tune(concurrency=number)
            case "max_queue":
                return lambda: dispatcher.tune(max_queue=number)
            case "max_waiting":
                return lambda: switch.set_max_queue(number)
        return lambda: view.links.set_window(number)

    def _figures(self, member: Member | None) -> dict[str, Any]:
        view = self._view
        switch = view.switch
        if member is not None:
            return _reactor(member)
        busiest = sorted(switch.elements.items(), key=lambda item: -(item[1].succeeded + item[1].failed))[:SHOWN]
        return {
            "connections": len(view.links),
            "in_flight": switch.in_flight,
            "queued": switch.queued,
            "routed": switch.routed,
            "refusals": dict(switch.refusals),
            "elements": {key: _element(route) for key, route in sorted(busiest) if _lives(route)},
            "reactors": {peer.id: _reactor(peer.member) for peer in islice(view.reactors, SHOWN)},
            "processes": {name: view.supervisor.running(name) for name in view.supervisor.templates},
        }


def _lives(route: Route) -> bool:
    """Has anyone to do with it?"""
    return bool(route.succeeded or route.failed or route.in_flight or route.queue_length or route.reactors)


def _element(route: Route) -> dict[str, Any]:
    counts, _ = route.latencies
    return {
        "succeeded": route.succeeded,
        "failed": route.failed,
        "in_flight": route.in_flight,
        "queued": route.queue_length,
        "reactors": route.reactors,
        "latency_ms": {f"p{share}": _quantile(counts, share / 100) for share in (50, 90, 99)},
    }


def _quantile(counts: list[int], share: float) -> float | None:
    """Milliseconds below which that share lies: the upper bound of its bucket."""
    wanted = share * sum(counts)
    seen = 0
    for place, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return (1 << (14 + place)) / 1e6
    return None


def _reactor(member: Member) -> dict[str, Any]:
    return {
        "handles": list(member.handles),
        "window": member.window,
        "outstanding": member.outstanding,
        "latency_ms": round(member.latency_ms, 3),
        "draining": member.draining,
    }


def _expect(name: str, value: Any, good: bool, wanted: str) -> Any:
    if not good:
        raise InvalidPacket(f"set.{name}: expected {wanted}, got {value!r}")
    return value


def _number(name: str, value: Any, least: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST
    return int(_expect(name, value, good, f"an integer from {least} to {MOST:,}"))
