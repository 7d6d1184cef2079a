"""``packetflow demo``: a gateway, a worker process and a client, with real packets."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

import click

from packetflow import Gateway, Reactor
from packetflow.endings import within
from packetflow.errors import PacketFlowError
from packetflow.loop import run

__all__ = ["demo", "worker"]

WORKER = "demo-worker"
COUNT = 200_000
GRACE = 5.0
"""Seconds that the worker process has to end."""
WORKFLOW = {
    "input": "step by step",
    "steps": [
        {"group": "df", "element": "reverse", "data": {"$": "input"}},
        {"group": "df", "element": "transform", "data": {"$": "prev"}},
    ],
}


def _handlers(reactor: Reactor) -> None:
    """What the worker process does."""

    @reactor.register("df", "transform")
    async def transform(data: str) -> str:
        return data.upper()

    @reactor.register("ed", "notify")
    async def notify(data: dict[str, str]) -> str:
        await asyncio.sleep(0.01)
        return f"told {data['user']}: {data['message']}"

    @reactor.register("cf", "divide")
    def divide(data: list[float]) -> float:
        return data[0] / data[1]

    @reactor.register("rm", "sleep")
    async def sleep(data: float) -> None:
        await asyncio.sleep(data)


async def _work(endpoint: str) -> None:
    reactor = Reactor(endpoint, name=WORKER, reconnect=False)
    _handlers(reactor)
    async with reactor:
        while reactor.connected:
            await asyncio.sleep(0.2)


def worker(endpoint: str) -> None:
    """The worker process: handles until its gateway has gone."""
    # the failure is part of the show, its traceback is not
    logging.getLogger("packetflow.handlers").setLevel(logging.CRITICAL)
    run(_work(endpoint))


async def demo() -> int:
    """Runs the demonstration; returns the exit code."""
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")

    @gateway.register("df", "reverse")
    def reverse(data: str) -> str:
        return data[::-1]

    async with gateway:
        click.echo(f"gateway   listening on {gateway.endpoint}")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", f"from packetflow.cli.demo import worker; worker({gateway.endpoint!r})",
            start_new_session=os.name == "posix",  # Ctrl-C is for this process, which ends that one
        )  # fmt: skip
        try:
            async with asyncio.timeout(10):
                await gateway.wait_for_reactor(WORKER)
            click.echo(f"worker    process {process.pid}, handling {', '.join(gateway.reactors[WORKER].handles)}")
            async with Reactor(gateway.endpoint) as client:
                click.echo("client    connected\n")
                await _show(client)
                failed = await _load(client)
        finally:
            await _end(process)
    return 1 if failed else 0


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    if not await within(GRACE, process.wait()):
        process.kill()
        await process.wait()


async def _show(client: Reactor) -> None:
    """One packet of each kind, and what became of it."""
    for group, element, data, options in (
        ("df", "reverse", "hello world", {}),
        ("df", "transform", "hello world", {"priority": 9}),
        ("ed", "notify", {"user": "Ada", "message": "maintenance in 10 minutes"}, {}),
        ("cf", "divide", [355, 113], {}),
        ("cf", "divide", [1, 0], {}),
        ("df", "transform", 42, {}),
        ("rm", "sleep", 5, {"timeout_ms": 100}),
        ("co", "nobodys", None, {}),
        ("cf", "seq", WORKFLOW, {}),
    ):
        address = f"{group}:{element}"
        try:
            outcome = click.style(repr(await client.call(group, element, data, **options)), fg="green")
        except PacketFlowError as error:
            outcome = click.style(f"{type(error).__name__}: {error}", fg="yellow")
        shown = repr(data) if len(repr(data)) <= 62 else f"{repr(data)[:59]}..."
        click.echo(f"  {address:13} {shown:62} {outcome}")


async def _load(client: Reactor) -> int:
    """Many packets with a progress bar; returns how many went wrong."""
    click.echo()
    wrong = 0
    started = time.perf_counter()
    with click.progressbar(length=COUNT, label=f"{COUNT:,} packets", update_min_steps=COUNT // 50) as bar:
        async for result in client.map("df", "reverse", ("packetflow" for _ in range(COUNT))):
            wrong += result.data != "wolftekcap"
            bar.update(1)
    took = time.perf_counter() - started
    click.echo(f"{COUNT / took:,.0f} packets per second, gateway and client in one process; {wrong} went wrong")
    return wrong
