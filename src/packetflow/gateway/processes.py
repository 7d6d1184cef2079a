"""Processes that a gateway starts from templates, keeps running, and takes with it when it stops."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packetflow.endings import within
from packetflow.errors import HandlerError, InvalidPacket, Overloaded, Unavailable

__all__ = ["Supervisor", "Template", "kill_all"]

log = logging.getLogger("packetflow.processes")

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
SETTLED = 30.0
"""Seconds after which a process that dies counts as having run well: the next delay is the first again."""
LOOK = 0.02
"""Seconds between two looks at a process group whose leader has ended."""

_groups: dict[int, int] = {}
"""What must not outlive this process: process groups (processes, where there are no groups), and who started them."""


def kill_all() -> None:
    """Kills every process that the gateways of this process have started, and what those have started. Waits for none.

    Runs at the interpreter's exit; whoever ends the process in another way calls it before.
    """
    for group, owner in list(_groups.items()):
        if owner == os.getpid():  # a forked copy of this process owns none
            _signal(group, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


atexit.register(kill_all)


def _signal(group: int, number: int) -> bool:
    """Sends a signal to a process group; False if nobody is left there."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(group, number)
        else:
            os.kill(group, number)  # pragma: no cover - Windows
    except PermissionError:
        return True  # pragma: no cover - macOS says so of zombies; and of what changed its user
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Template:
    """A kind of reactor process.

    `command`: the command line; nothing from a packet ever reaches it. The process
    finds its id in ``PACKETFLOW_REACTOR`` and the gateway in ``PACKETFLOW_ENDPOINT``,
    and must announce itself by that id, as `packetflow.Reactor` does by itself.
    It is the leader of a session and process group of its own: Ctrl-C in a terminal
    reaches the gateway only, and signals of the gateway reach what it has started, too.
    `environment`: more variables. `most`: processes of it at once (default 64).
    `grace`: seconds between SIGTERM and SIGKILL (default 10), fewer where the gateway
    itself stops with a shorter grace.
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
        self.group: int | None = None
        """The process group, as long as somebody may be left in it."""
        self.launching: asyncio.Task[None] | None = None
        self.watching: asyncio.Task[None] | None = None
        self.refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.stopping = False


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
        self._living: set[_Child] = set()
        self._closed = False

    def open(self) -> None:
        """Processes may be started, from now on or again."""
        self._closed = False

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
        if self._closed:
            raise Unavailable("the gateway is stopping")
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
                if self._closed:
                    raise Unavailable("the gateway is stopping")
                child.watching = asyncio.ensure_future(self._watch(child))
                waits.append(asyncio.ensure_future(self._ready(child)))
            await asyncio.gather(*waits)
        except BaseException:
            # who asked gets an error or is gone: what did not come up is not left behind
            for wait in waits:
                wait.cancel()
            for child in born:
                if child in children:
                    children.remove(child)
            ends = [self._end(child) for child in born]
            await asyncio.shield(asyncio.gather(*waits, *ends, return_exceptions=True))
            raise
        return [child.id for child in born]

    async def stop(self, reactor: str) -> None:
        """Ends a replica: SIGTERM, and SIGKILL after its grace."""
        for children in self._children.values():
            for child in [child for child in children if child.id == reactor]:
                children.remove(child)
                await self._end(child)

    def refuse(self) -> None:
        """Starts no more of them, and whoever waits for one to announce itself gets PF503."""
        self._closed = True
        for child in self._living:
            if not child.refused.done():
                child.refused.set_result(None)

    async def close(self) -> None:
        """Ends all of them, and starts no more."""
        self.refuse()
        self._children.clear()
        await asyncio.gather(*(self._end(child) for child in list(self._living)))

    def kill(self) -> None:
        """SIGKILL to all of them, those whose grace is not over included. Waits for none."""
        self._closed = True
        for child in self._living:
            child.stopping = True
            self._kill(child)

    async def _ready(self, child: _Child) -> None:
        assert child.process is not None
        arrived: asyncio.Future[Any] = asyncio.ensure_future(self._arrived(child.id))
        died: asyncio.Future[Any] = asyncio.ensure_future(child.process.wait())
        try:
            await asyncio.wait({arrived, died, child.refused}, return_when=asyncio.FIRST_COMPLETED)
            if child.refused.done():
                raise Unavailable("the gateway is stopping")
            if not arrived.done():
                raise HandlerError(
                    f"a process of {child.template.name!r} ended with {died.result()} before it had announced itself"
                )
        finally:
            arrived.cancel()
            died.cancel()

    async def _start(self, child: _Child) -> None:
        # shielded: a process that is made while nobody wants it any more has to be known, to be ended
        self._living.add(child)
        child.launching = asyncio.ensure_future(self._launch(child))
        await asyncio.shield(child.launching)

    async def _launch(self, child: _Child) -> None:
        template = child.template
        environment = {
            **os.environ,
            **template.environment,
            "PACKETFLOW_REACTOR": child.id,
            "PACKETFLOW_ENDPOINT": self._endpoint(),
        }
        try:
            child.process = await asyncio.create_subprocess_exec(
                *template.command,
                env=environment,
                cwd=template.directory,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=os.name == "posix",
            )
        except OSError as error:
            raise HandlerError(f"{template.command[0]!r} cannot be started: {error.strerror}") from None
        child.group = child.process.pid
        _groups[child.group] = os.getpid()
        log.info("started %s as process %d", child.id, child.process.pid)
        if self._closed:
            self._kill(child)

    async def _watch(self, child: _Child) -> None:
        """Starts it again whenever it dies, later and later while it keeps dying."""
        delay = FIRST_DELAY
        while not child.stopping:
            assert child.process is not None
            began = time.monotonic()
            status = await child.process.wait()
            if child.stopping:
                return
            self._kill(child)  # what it has started goes with it
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
        if child.watching is not None:
            child.watching.cancel()
        try:
            if child.launching is not None:
                await asyncio.wait({child.launching})
            if child.group is not None:
                _signal(child.group, signal.SIGTERM)
                if not await within(child.template.grace, self._gone(child)):
                    log.warning("%s did not end within %g s of SIGTERM", child.id, child.template.grace)
        finally:
            self._kill(child)
        if child.process is not None:
            await child.process.wait()
        self._living.discard(child)

    async def _gone(self, child: _Child) -> None:
        """Returns when nobody is left of its process group: a shell ends before what it has started."""
        assert child.process is not None
        await child.process.wait()
        while hasattr(os, "killpg") and child.group is not None and _signal(child.group, 0):
            await asyncio.sleep(LOOK)

    def _kill(self, child: _Child) -> None:
        """SIGKILL to whoever is left of its process group."""
        group = child.group
        if group is None:
            return
        if hasattr(os, "killpg"):
            _signal(group, signal.SIGKILL)
        elif child.process is not None and child.process.returncode is None:  # pragma: no cover - Windows
            child.process.kill()  # pragma: no cover - Windows
        child.group = None  # once its leader is reaped, the number may be given to others
        _groups.pop(group, None)
