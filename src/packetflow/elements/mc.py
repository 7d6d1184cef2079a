"""Meta-computation: processes, migrations, settings. For the `admin` role only, as all of ``mc``."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from packetflow.elements.call import Call
from packetflow.elements.request import Request, check_name, element
from packetflow.errors import InvalidPacket

__all__ = ["ELEMENTS", "Administration"]

MAX_REPLICAS = 1000


class Administration(Protocol):
    """What these elements do to the gateway that they run in."""

    async def spawn(self, template: str, count: int) -> dict[str, Any]: ...
    async def scale(self, template: str, replicas: int, until: float) -> dict[str, Any]: ...
    async def migrate(self, source: str, target: str | None, until: float) -> dict[str, Any]: ...
    def tune(self, changes: dict[str, Any], reactor: str | None) -> dict[str, Any]: ...


class Spawn(Request):
    """mc:spawn"""

    reactor: str
    count: int = 1


@element("mc", "spawn")
async def spawn(call: Call, request: Spawn) -> Any:
    """Starts processes from a template."""
    if not 1 <= request.count <= MAX_REPLICAS:
        raise InvalidPacket(f"count: expected 1 to {MAX_REPLICAS:,}, got {request.count:,}")
    return await call.runtime.admin.spawn(check_name("reactor", request.reactor), request.count)


class Migrate(Request):
    """mc:migrate"""

    from_: str = msgspec.field(name="from")
    to: str | None = None


@element("mc", "migrate")
async def migrate(call: Call, request: Migrate) -> Any:
    """Drains a reactor."""
    # a little before the deadline: what is left then is said, rather than PF408 alone
    return await call.runtime.admin.migrate(request.from_, request.to, call.deadline - 0.05)


class Scale(Request):
    """mc:scale"""

    reactor: str
    replicas: int


@element("mc", "scale")
async def scale(call: Call, request: Scale) -> Any:
    """Starts or stops until that many run."""
    if not 0 <= request.replicas <= MAX_REPLICAS:
        raise InvalidPacket(f"replicas: expected 0 to {MAX_REPLICAS:,}, got {request.replicas:,}")
    return await call.runtime.admin.scale(
        check_name("reactor", request.reactor), request.replicas, call.deadline - 0.05
    )


class Tune(Request):
    """mc:tune"""

    set: dict[str, Any] = {}  # noqa: RUF012 - msgspec copies it
    reactor: str | None = None


@element("mc", "tune")
async def tune(call: Call, request: Tune) -> Any:
    """Changes settings, all or none, and gives them with the live figures."""
    return call.runtime.admin.tune(request.set, request.reactor)


ELEMENTS = (spawn, migrate, scale, tune)
