"""One attack, or several at once, on a gateway of their own: what it did to the gateway and to the victim.

Gateway, worker, victim and each attacker are processes; the attackers run with `nice 19`, for they stand for other
machines and must not take the CPU from those whom they attack other than through the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attacks.attacker import HANDLERS, Attack, settings
from benchmarks.memory import resident_kib
from benchmarks.peers.__main__ import free_port
from packetflow.gateway.memory import share_of_memory

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
FROM_ONE, LEFT = 256 * MIB, 32 * MIB
"""Bytes above its start that a gateway may take for an attacker of one link, and keep once he has left."""

STILL_HELD = 4 * MIB
"""Bytes more than before that may still be charged to someone then: what the victim has under way."""

SAMPLE = 0.02
PATIENCE = 2.0
"""Seconds for an answer of a gateway that is alive."""

RELIABLE = 30.0
"""Seconds for what this benchmark's own processes do at once."""


@dataclass(frozen=True)
class Before:
    """What the gateway took, in bytes, when the attack began."""

    resident: int
    stored: int
    held: int


@dataclass
class Outcome:
    """What was measured; `faults` says what was not as it should be. Times in seconds, memory in bytes."""

    attacks: list[Attack]
    quiet: dict[str, Any] = field(default_factory=dict)
    during: dict[str, Any] = field(default_factory=dict)
    more: int = 0
    left: int = 0
    recovered: float = 0.0
    stored: int = 0
    held: int = 0
    attackers: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "+".join(attack.name for attack in self.attacks)

    @property
    def most(self) -> int:
        """Bytes above the start that are allowed meanwhile: so much a link, and the budget and a quarter for all."""
        links = sum(int(attacker.get("tally", {}).get("at once", 1000)) for attacker in self.attackers)
        return min(max(1, links) * FROM_ONE, share_of_memory() * 5 // 4)


async def ask(port: int, path: str) -> tuple[float, str]:
    """Seconds and body of a GET; OSError or TimeoutError where there is no answer in time."""
    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if not head.startswith("HTTP/1.1 200"):
                raise ConnectionError(head.partition("\r\n")[0])
            length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:"))
            body = await reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("closed") from error
        finally:
            writer.transport.abort()
    return time.perf_counter() - began, body.decode()


def figure(metrics: str, name: str) -> int:
    """A figure of ``/metrics``; 0 where there is none of that name."""
    found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    return int(float(found[1])) if found is not None else 0


STORED, REMEMBERED, HELD = "packetflow_stored_bytes", "packetflow_remembered_bytes", "packetflow_held_bytes"
"""What outlives links (streams, cache, pools; outcomes), outside of what an attack may take; what someone is charged."""


def outliving(metrics: str) -> int:
    return figure(metrics, STORED) + figure(metrics, REMEMBERED)


def last_line(log: Path) -> str:
    return "".join(f" ({line[:200]})" for line in log.read_text(errors="replace").strip().splitlines()[-1:])


class Stage:
    """A gateway with a worker and a victim, from the start of the block to its end."""

    def __init__(self, config: str | None = None) -> None:
        self._config = config
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory()
        self.config_path = Path(self._directory.name) / "gateway.toml" if config is not None else None
        self._log = Path(self._directory.name) / "gateway.log"
        self._others_log = Path(self._directory.name) / "others.log"
        self._processes: list[asyncio.subprocess.Process] = []
        self._stopping = False

    async def start(self, *arguments: str, nice: bool = False, **options: Any) -> asyncio.subprocess.Process:
        prefix = ["nice", "-n", "19"] if nice else []
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = await asyncio.create_subprocess_exec(
            *prefix, sys.executable, "-m", *arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
            **{"stderr": self._others} | options,
        )  # fmt: skip
        self._processes.append(process)
        return process

    async def __aenter__(self) -> Stage:
        token: list[str] = []
        served = ["--port", str(self.port), "--handlers", HANDLERS]
        if self.config_path is not None and self._config is not None:
            self.config_path.write_text(settings(self._config, self.port))
            served = ["--config", str(self.config_path)]
            token = ["worker"] if "{worker}" in self._config else []
        self._others = self._others_log.open("ab")
        try:
            with self._log.open("wb") as log:
                self.gateway = await self.start("packetflow", "gateway", *served, stderr=log, stdout=subprocess.DEVNULL)
            await self.start("benchmarks.attacks.bystanders", "worker", str(self.port), *token)
            self.victim = await self.start(
                "benchmarks.attacks.bystanders", "victim", str(self.port), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self.victim.stdout is not None
            async with asyncio.timeout(RELIABLE):
                if await self.victim.stdout.readline() != b"ready\n":
                    raise RuntimeError("the victim did not begin")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        for process in self._processes:
            await process.wait()
        self._others.close()
        self._directory.cleanup()

    async def report(self) -> dict[str, Any]:
        """What became of the victim's packets since it was last asked."""
        assert self.victim.stdin is not None
        assert self.victim.stdout is not None
        self.victim.stdin.write(b"\n")
        async with asyncio.timeout(RELIABLE):
            line = await self.victim.stdout.readline()
        if not line:
            raise RuntimeError(f"the victim ended{last_line(self._others_log)}")
        return dict(json.loads(line))

    def resident(self) -> int:
        if self.gateway.returncode is not None:
            return 0
        try:
            return resident_kib(self.gateway.pid) * 1024
        except (OSError, IndexError):
            return 0

    def how_it_ended(self) -> str | None:
        """None while the gateway lives."""
        code = self.gateway.returncode
        if code is None:
            return None
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the gateway ended: {ended}{last_line(self._log)}"


@contextlib.asynccontextmanager
async def sampled(stage: Stage) -> AsyncIterator[list[int]]:
    """A list whose one item is the gateway's memory at its peak so far."""
    peak = [stage.resident()]

    async def sample() -> None:
        while True:
            peak[0] = max(peak[0], stage.resident())
            await asyncio.sleep(SAMPLE)

    task = asyncio.create_task(sample())
    try:
        yield peak
    finally:
        task.cancel()


async def _attack(stage: Stage, attack: Attack, seconds: float, begun: asyncio.Event) -> dict[str, Any]:
    """Runs the attacker's process; what it counted."""
    process = await stage.start(
        "benchmarks.attacks.attacker", attack.name, str(stage.port), str(seconds), str(stage.config_path or ""),
        str(stage.gateway.pid), nice=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        begun.set()
        async with asyncio.timeout(seconds + 10):
            line = await process.stdout.readline()
        return {
            "name": attack.name,
            **(
                json.loads(line)
                if line
                else {"trouble": f"ended by itself{last_line(stage._others_log)}", "broken": True}
            ),
        }
    except TimeoutError:
        return {"name": attack.name, "trouble": "the attacker did not end by itself"}
    finally:
        begun.set()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def measure(
    stage: Stage, attacks: list[Attack], *, seconds: float, quiet: float, slack: float, recovery: float
) -> Outcome:
    """Attacks a stage for so many seconds, after `quiet` seconds. `slack`: seconds that the victim's p99 may be above
    twice its quiet value; `recovery`: seconds in which memory is to be given back."""
    outcome = Outcome(attacks)
    faults = outcome.faults
    await stage.report()
    await asyncio.sleep(quiet)
    outcome.quiet = await stage.report()
    _, before_metrics = await ask(stage.port, "/metrics")
    before = Before(stage.resident(), outliving(before_metrics), figure(before_metrics, HELD))

    async with sampled(stage) as peak:
        signals = [asyncio.Event() for _ in attacks]
        parts = [asyncio.create_task(_attack(stage, attack, seconds, begun))
                 for attack, begun in zip(attacks, signals, strict=True)]  # fmt: skip
        await signals[0].wait()
        await stage.report()  # from here on
        outcome.attackers = await asyncio.gather(*parts)
        left_at = time.monotonic()
        await asyncio.sleep(min(1.0, seconds / 2))  # what their leaving costs counts, too
        outcome.during = await stage.report()
        await _afterwards(stage, outcome, before, left_at, recovery)
        outcome.more = max(0, peak[0] - before.resident - outcome.stored)

    _judge(stage, outcome, slack)
    if not faults:
        after = await stage.report()
        faults += [f"afterwards {what}: {count:,}" for what, count in after["failures"].items()]
    return outcome


async def _afterwards(stage: Stage, outcome: Outcome, before: Before, left_at: float, recovery: float) -> None:
    """Is it alive, does it answer, and does it give back what it took?"""
    while stage.gateway.returncode is None:
        try:
            await ask(stage.port, "/healthz")
            took, text = await ask(stage.port, "/metrics")
        except (OSError, TimeoutError) as error:
            outcome.faults.append(f"no answer from the gateway: {type(error).__name__}")
            return
        if outcome.recovered == 0.0 and took > 1.0:
            outcome.faults.append(f"metrics took {took:.1f} s")
        outcome.stored = max(0, outliving(text) - before.stored)
        outcome.held = figure(text, HELD) - before.held
        outcome.left = stage.resident() - before.resident - outcome.stored
        outcome.recovered = time.monotonic() - left_at
        if (outcome.left <= LEFT and outcome.held <= STILL_HELD) or outcome.recovered > recovery:
            return
        await asyncio.sleep(0.5)


def _judge(stage: Stage, outcome: Outcome, slack: float) -> None:
    faults = outcome.faults
    ended = stage.how_it_ended()
    if ended is not None:
        faults.insert(0, ended)
        return
    allowed = 2 * outcome.quiet["p99"] + slack
    if outcome.during["p99"] > allowed:
        faults.append(f"the victim's p99 was {outcome.during['p99'] * 1e3:,.0f} ms, {allowed * 1e3:,.0f} are allowed")
    for when, report in (("", outcome.during), ("before all ", outcome.quiet)):
        faults += [f"{when}{what}: {count:,}" for what, count in list(report["failures"].items())[:5]]
    if outcome.more > outcome.most:
        faults.append(f"{outcome.more / MIB:,.0f} MiB more, {outcome.most / MIB:,.0f} are allowed")
    if outcome.left > LEFT:
        faults.append(f"{outcome.left / MIB:,.0f} MiB not given back after {outcome.recovered:.0f} s")
    if outcome.held > STILL_HELD:
        faults.append(f"{outcome.held / MIB:,.0f} MiB still charged to someone after {outcome.recovered:.0f} s")
    for attacker in outcome.attackers:
        faults += [f"breach: {what}" for what in attacker.get("breaches", ())]
        if attacker.get("broken"):
            faults.append(f"{attacker['name']} {attacker['trouble']}")
