"""Processes that a gateway starts from templates, keeps running, and takes with it when it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from packetflow.errors import HandlerError, InvalidPacket, Overloaded

__all__ = ["Supervisor", "Template"]

log = logging.getLogger("packetflow.processes")

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
SETTLED = 30.0
"""Seconds after which a process that dies counts as having run well: the next delay is the first again."""


@dataclass(frozen=True)
class Template:
    """A kind of reactor process.

    `command`: the command line; nothing from a packet ever reaches it. The process
    finds its id in ``PACKETFLOW_REACTOR`` and the gateway in ``PACKETFLOW_ENDPOINT``,
    and must announce itself by that id, as `packetflow.Reactor` does by itself.
    `environment`: more variables. `most`: processes of it at once (default 64).
    `grace`: seconds between SIGTERM and SIGKILL (default 10).
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = None
    most: int = 64
    grace: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", tuple(self.command))
        if not self.command or not all(isinstance(word, str) and word for word in self.command):
            raise ValueError(f"template {self.name!r}, command: expected a list of at least one word")
        if self.most < 1:
            raise ValueError(f"template {self.name!r}, most: expected at least 1, got {self.most}")


class _Child:
    """One replica: a process, and its successors when it dies."""

    def __init__(self, template: Template) -> None:
        self.id = f"{template.name}-{uuid.uuid4().hex[:12]}"
        self.template = template
        self.process: asyncio.subprocess.Process | None = None
        self.watching: asyncio.Task[None] | None = None
        self.stopping = False
        self.starts = 0


class Supervisor:
    """The processes of a gateway. `endpoint`: what they dial; `arrived`: waits for a reactor of that id."""

    def __init__(
        self,
        templates: Mapping[str, Template],
        endpoint: Callable[[], str],
        arrived: Callable[[str], Awaitable[object]],
    ) -> None:
        self.templates = dict(templates)
        self._endpoint = endpoint
        self._arrived = arrived
        self._children: dict[str, list[_Child]] = {}

    def running(self, name: str) -> list[str]:
        """The ids of a template's replicas."""
        return [child.id for child in self._children.get(name, ())]

    def template(self, name: str) -> Template:
        """The template of that name."""
        if name not in self.templates:
            known = ", ".join(sorted(self.templates)) or "none"
            raise InvalidPacket(f"reactor: expected one of the templates of this gateway ({known}), got {name!r}")
        return self.templates[name]

    async def spawn(self, name: str, count: int) -> list[str]:
        """Starts that many, and returns their ids once they have announced themselves."""
        template = self.template(name)
        children = self._children.setdefault(name, [])
        if len(children) + count > template.most:
            raise Overloaded(f"reactor {name!r}: {len(children)} run, at most {template.most} may")
        born = [_Child(template) for _ in range(count)]
        children.extend(born)
        waits = []
        try:
            for child in born:
                await self._start(child)
                child.watching = asyncio.ensure_future(self._watch(child))
                waits.append(asyncio.ensure_future(self._ready(child)))
            await asyncio.gather(*waits)
        except BaseException:
            # who asked gets an error or is gone: what did not come up is not left behind
            for wait in waits:
                wait.cancel()
            await asyncio.shield(asyncio.gather(*(self.stop(child.id) for child in born)))
            raise
        return [child.id for child in born]

    async def stop(self, reactor: str) -> None:
        """Ends a replica: SIGTERM, and SIGKILL after its grace."""
        for children in self._children.values():
            for child in [child for child in children if child.id == reactor]:
                children.remove(child)
                await self._end(child)

    async def close(self) -> None:
        """Ends all of them."""
        ids = [child.id for children in self._children.values() for child in children]
        await asyncio.gather(*(self.stop(one) for one in ids))

    async def _ready(self, child: _Child) -> None:
        assert child.process is not None
        arrived = asyncio.ensure_future(self._arrived(child.id))
        died = asyncio.ensure_future(child.process.wait())
        try:
            await asyncio.wait({arrived, died}, return_when=asyncio.FIRST_COMPLETED)
            if not arrived.done():
                raise HandlerError(
                    f"a process of {child.template.name!r} ended with {died.result()} before it had announced itself"
                )
        finally:
            arrived.cancel()
            died.cancel()

    async def _start(self, child: _Child) -> None:
        template = child.template
        environment = {
            **os.environ,
            **template.environment,
            "PACKETFLOW_REACTOR": child.id,
            "PACKETFLOW_ENDPOINT": self._endpoint(),
        }
        try:
            child.process = await asyncio.create_subprocess_exec(
                *template.command, env=environment, cwd=template.directory, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise HandlerError(f"{template.command[0]!r} cannot be started: {error.strerror}") from None
        child.starts += 1
        log.info("started %s as process %d", child.id, child.process.pid)

    async def _watch(self, child: _Child) -> None:
        """Starts it again whenever it dies, later and later while it keeps dying."""
        delay = FIRST_DELAY
        while not child.stopping:
            assert child.process is not None
            began = time.monotonic()
            status = await child.process.wait()
            if child.stopping:
                return
            if time.monotonic() - began > SETTLED:
                delay = FIRST_DELAY
            log.warning("%s ended with %d; starting it again in %.1f s", child.id, status, delay)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LONGEST_DELAY)
            if child.stopping:
                return
            try:
                await self._start(child)
            except HandlerError as error:
                log.error("%s: %s", child.id, error.message)

    async def _end(self, child: _Child) -> None:
        child.stopping = True
        process = child.process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(child.template.grace):
                    await process.wait()
            except TimeoutError:
                log.warning("%s did not end within %g s of SIGTERM", child.id, child.template.grace)
                process.kill()
                await process.wait()
        if child.watching is not None:
            child.watching.cancel()
