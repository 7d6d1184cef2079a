"""What an attack is, and the process that it runs in: ``python -m benchmarks.attacks.attacker NAME PORT SECONDS``.

An attack is an async function of an `Assault`; it may go on for ever, for it is cancelled when its time is over, and
then all its connections end at once. Its docstring says in a sentence what it stands for.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import itertools
import json
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.attacks.wire import PATH, Stranger, handshake, heartbeat
from packetflow import run

CHUNK = 1 << 16
HANDLERS = "benchmarks.attacks.bystanders:setup"
MODULES = ("frames", "sockets", "answers", "routing", "elements", "names")


@dataclass(frozen=True)
class Attack:
    """A row of the table. `config`: what a
    ``gateway.toml`` must say beyond the defaults, as `settings` completes it."""

    name: str
    kind: str
    run: Callable[[Assault], Awaitable[object]]
    config: str | None

    @property
    def meaning(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


ATTACKS: dict[str, Attack] = {}


def settings(config: str, port: int) -> str:
    """A whole ``gateway.toml``; where `config` has ``{token}``, the digest of that token."""
    sealed = re.sub(r"\{(\w+)\}", lambda found: hashlib.sha256(found[1].encode()).hexdigest(), config)
    return f'[gateway]\nendpoint = "ws://127.0.0.1:{port}{PATH}"\nhandlers = "{HANDLERS}"\n{sealed}'


def attack(kind: str, *, config: str | None = None) -> Callable[[Any], Any]:
    """Enters an async function of an `Assault` in the table, under its own name."""

    def enter(function: Any) -> Any:
        name = function.__name__
        assert name not in ATTACKS, name
        assert function.__doc__, name
        ATTACKS[name] = Attack(name, kind, function, config)
        return function

    return enter


def all_attacks() -> dict[str, Attack]:
    for module in MODULES:
        importlib.import_module(f"benchmarks.attacks.{module}")
    return ATTACKS


class Assault:
    """What an attack has in its hands: connections, time, and where it counts what came back."""

    def __init__(self, name: str, port: int, config: Path | None = None, gateway: int = 0) -> None:
        self.name, self.port, self.config, self.gateway = name, port, config, gateway
        self.tally: Counter[str] = Counter()
        self.breaches: list[str] = []
        self.open: list[Stranger] = []

    async def link(self, handles: str | None = "", *, read: bool = True, token: str | None = None,
                   on_message: Callable[[Stranger, bytes], object] | None = None,
                   **announced: Any) -> Stranger:  # fmt: skip
        """A WebSocket; `announced`: the fields of a first heartbeat, if any."""
        stranger = await Stranger.dial(
            self.port, self.tally, read=read, upgrade=handshake(handles, token=token), on_message=on_message
        )
        self.open.append(stranger)
        if announced:
            stranger.write(heartbeat(**announced))
        return stranger

    async def links(self, count: int, **options: Any) -> list[Stranger]:
        return [await self.link(**options) for _ in range(count)]

    async def socket(self, **options: Any) -> Stranger:
        """A bare TCP connection."""
        stranger = await Stranger.dial(self.port, self.tally, **options)
        self.open.append(stranger)
        return stranger

    def leave(self, stranger: Stranger) -> None:
        stranger.abort()
        if stranger in self.open[-64:]:
            self.open.remove(stranger)

    async def flood(self, stranger: Stranger, frames: Iterable[bytes]) -> None:
        """Sends all of them, as fast as they are taken; ConnectionError once it is cut."""
        chunk: list[bytes] = []
        size = 0
        for frame in frames:
            chunk.append(frame)
            size += len(frame)
            if size >= CHUNK:
                self.tally["frames"] += len(chunk)
                await stranger.send(b"".join(chunk))
                await asyncio.sleep(0)  # answers are read meanwhile
                chunk.clear()
                size = 0
        self.tally["frames"] += len(chunk)
        await stranger.send(b"".join(chunk))

    async def ask(self, stranger: Stranger, frames: Iterable[bytes], at_once: int = 1000) -> None:
        """Sends all of them, so many at once, and waits for what becomes of those: nothing is refused for haste."""
        source = iter(frames)
        while batch := list(itertools.islice(source, at_once)):
            wanted = stranger.outcomes + len(batch)
            await self.flood(stranger, batch)
            while stranger.outcomes < wanted:
                await asyncio.sleep(0.001)
                await stranger.room()

    async def persist(self, frames: Callable[[], Iterable[bytes]], **options: Any) -> None:
        """Floods, again and again, and comes back when it is cut."""
        while True:
            try:
                stranger = await self.link(**options)
                while True:
                    await self.flood(stranger, frames())
                    await asyncio.sleep(0.001)
            except OSError:
                await asyncio.sleep(0.01)

    async def rest(self) -> None:
        """Stays, and does nothing more."""
        await asyncio.Event().wait()

    def reload(self, config: str) -> None:
        """What an operator does: another file, and SIGHUP."""
        assert self.config is not None
        self.config.write_text(settings(config, self.port))
        os.kill(self.gateway, signal.SIGHUP)

    def breach(self, what: str) -> None:
        """Something that it should not have got."""
        if what not in self.breaches and len(self.breaches) < 10:
            self.breaches.append(what)


async def together(*parts: Awaitable[object]) -> None:
    await asyncio.gather(*parts)


async def carry_out(chosen: Attack, assault: Assault, seconds: float) -> str:
    """Runs it for its time; returns what went wrong with the attack itself, if anything."""
    print("began", flush=True)
    ends = time.monotonic() + seconds
    trouble = ""
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await chosen.run(assault)
                    await assault.rest()
                except OSError as error:  # it was cut, and does not come back by itself
                    assault.tally["attempts"] += 1
                    trouble = f"{type(error).__name__}: {error}"
                    await asyncio.sleep(min(0.05, max(0.0, ends - time.monotonic())))
    except TimeoutError:
        pass
    for stranger in assault.open:
        stranger.abort()
    return trouble


def main() -> None:
    name, port, seconds, config, gateway = sys.argv[1:6]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assault = Assault(name, int(port), Path(config) if config else None, int(gateway))
    trouble = run(carry_out(all_attacks()[name], assault, float(seconds)))
    print(json.dumps({"tally": assault.tally, "breaches": assault.breaches, "trouble": trouble}), flush=True)
    os._exit(0)  # a million objects need not be taken down one by one


if __name__ == "__main__":
    # the attacks enter themselves in the table of the module of this name, not of __main__
    from benchmarks.attacks import attacker

    attacker.main()
