"""What a gateway is made of, for the rooms that show it and tune it: metrics, ``mc``, consoles, tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from packetflow.elements import Runtime
from packetflow.gateway.access import Budgets
from packetflow.gateway.admission import Admission
from packetflow.gateway.inside import Inside
from packetflow.gateway.links import Links
from packetflow.gateway.principals import Principals
from packetflow.gateway.processes import Supervisor
from packetflow.gateway.reactors import Reactors
from packetflow.settings import LinkSettings
from pfcore.route.switch import Switch
from pfcore.work.dispatch import Dispatcher

__all__ = ["View"]


@dataclass(frozen=True, eq=False)
class View:
    """The parts of one gateway, each with what it knows; they stay the same for all its life.

    `runtime`: the standard elements', None where it does not offer them, or is not
    started. `ready`: does it take new packets? `counts`: of links, handshakes and names.
    """

    switch: Switch
    dispatcher: Dispatcher
    principals: Principals
    budgets: Budgets
    reactors: Reactors
    links: Links
    inside: Inside
    admission: Admission
    supervisor: Supervisor
    settings: LinkSettings
    counts: dict[str, int]
    runtime: Callable[[], Runtime | None]
    ready: Callable[[], bool]
