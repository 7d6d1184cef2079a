"""Meta-computation: real processes, draining, settings of a running gateway; for admins only."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.gateway import Template, hash_token, processes
from packetflow.gateway.config import ConfigError, load_config
from tests.helpers import refused, until

WORKER = """
import asyncio, os
from packetflow import Reactor, run

async def main():
    reactor = Reactor(os.environ["PACKETFLOW_ENDPOINT"])
    reactor.register("df", "pid", lambda data: os.getpid())

    async def slow(data):
        await asyncio.sleep(data)
        return "done"

    reactor.register("df", "slow", slow)
    async with reactor:
        await asyncio.Event().wait()

run(main())
"""


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    templates = [
        Template("worker", (sys.executable, "-P", "-c", WORKER), most=4),
        Template("broken", (sys.executable, "-c", "raise SystemExit(3)")),
        Template("missing", ("/no/such/program",)),
    ]
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", templates=templates) as gateway:
        yield gateway


async def admin(gateway: Gateway, element: str, **data: Any) -> Any:
    return await gateway.call("mc", element, data)


async def test_spawning_scaling_and_restarting(gateway: Gateway) -> None:
    spawned = (await admin(gateway, "spawn", reactor="worker", count=2))["spawned"]
    assert len(spawned) == 2
    assert set(spawned) <= set(gateway.reactors)
    pids = {await gateway.call("df", "pid", reactor=reactor) for reactor in spawned}
    assert len(pids) == 2
    # one that dies is started again, under its own id
    victim = await gateway.call("df", "pid", reactor=spawned[0])
    os.kill(victim, signal.SIGKILL)
    await until(lambda: spawned[0] not in gateway.reactors)
    await gateway.wait_for_reactor(spawned[0])
    assert await gateway.call("df", "pid", reactor=spawned[0]) not in pids
    # down: what is under way there finishes first
    running = [gateway.call("df", "slow", 0.1, retry=0) for _ in range(8)]
    assert await admin(gateway, "scale", reactor="worker", replicas=1) == {"before": 2, "after": 1}
    assert [await one for one in running] == ["done"] * 8
    assert await admin(gateway, "scale", reactor="worker", replicas=2) == {"before": 1, "after": 2}
    assert (await refused(admin(gateway, "spawn", reactor="worker", count=3))).code == "PF429"
    assert await admin(gateway, "scale", reactor="worker", replicas=0) == {"before": 2, "after": 0}
    await until(lambda: not gateway.reactors)


async def test_what_cannot_be_spawned(gateway: Gateway) -> None:
    error = await refused(admin(gateway, "spawn", reactor="broken"))
    assert (error.code, "3" in error.message) == ("PF500", True)
    assert gateway.supervisor.running("broken") == []
    assert (await refused(admin(gateway, "spawn", reactor="missing"))).code == "PF500"
    error = await refused(admin(gateway, "spawn", reactor="unheard-of"))
    assert (error.code, "worker" in error.message) == ("PF400", True)
    assert (await refused(admin(gateway, "spawn", reactor="worker", count=0))).code == "PF400"
    assert (await refused(admin(gateway, "scale", reactor="worker", replicas=-1))).code == "PF400"


async def test_processes_stop_with_their_gateway() -> None:
    template = Template("worker", (sys.executable, "-P", "-c", WORKER))
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", templates=[template]) as gateway:
        (reactor,) = (await admin(gateway, "spawn", reactor="worker"))["spawned"]
        pid = await gateway.call("df", "pid", reactor=reactor)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_migrating(gateway: Gateway) -> None:
    started: list[str] = []

    async def work(name: str, data: float) -> str:
        started.append(name)
        await asyncio.sleep(data)
        return name

    async with Reactor(gateway.endpoint, name="one", window=16) as one, Reactor(gateway.endpoint, name="two") as two:
        for name, reactor in (("one", one), ("two", two)):

            async def handler(data: float, name: str = name) -> str:
                return await work(name, data)

            reactor.register("df", "work", handler)
        await until(lambda: len(gateway.switch.reactors_for("df:work")) == 2)
        running = [gateway.call("df", "work", 0.05) for _ in range(20)]
        await until(lambda: len(started) == 20)
        finished = started.count("one")
        assert await admin(gateway, "migrate", **{"from": "one"}) == {"moved": 0, "finished": finished}
        assert all(call.done() or name == "two" for call, name in zip(running, started, strict=True))
        await asyncio.gather(*running)
        assert {await gateway.call("df", "work", 0) for _ in range(20)} == {"two"}
        assert (await refused(admin(gateway, "migrate", **{"from": "nobody"}))).code == "PF400"
        assert (await refused(admin(gateway, "migrate", **{"from": "one", "to": "one"}))).code == "PF400"


async def test_queued_work_moves(gateway: Gateway) -> None:
    """Sticky packets wait for the one reactor that may have them: drained, they go to the other."""
    ran: list[str] = []
    release = asyncio.Event()

    async with Reactor(gateway.endpoint, name="one", window=1) as one, Reactor(gateway.endpoint, name="two") as two:
        for name, reactor in (("one", one), ("two", two)):

            async def handler(data: Any, name: str = name) -> str:
                ran.append(name)
                if name == "one":
                    await release.wait()
                return name

            reactor.register("cf", "work", handler)
        await until(lambda: len(gateway.switch.reactors_for("cf:work")) == 2)
        key = 0
        while "one" not in ran:  # a key that goes there
            key += 1
            packet = {"group": "cf", "element": "work", "metadata": {"key": f"k{key}"}}
            first = gateway.submit(packet)
            await until(lambda: len(ran) == key)  # noqa: B023
        queued = [gateway.submit(packet) for _ in range(5)]
        await until(lambda: gateway.switch.queued == 5)
        migrating = asyncio.ensure_future(admin(gateway, "migrate", **{"from": "one", "to": "two"}))
        assert [(await one).data for one in queued] == ["two"] * 5
        assert not migrating.done()
        release.set()
        assert await migrating == {"moved": 5, "finished": 1}
        assert (await first).data == "one"


async def test_tuning(gateway: Gateway) -> None:
    before = await gateway.call("mc", "tune")
    assert before["settings"]["policy.df"] == "least"
    changed = await admin(
        gateway, "tune", set={"policy.df": "sticky", "window": 77, "concurrency": 5, "log_level": "ERROR"}
    )
    assert changed["settings"] | {"policy.df": "sticky", "window": 77, "concurrency": 5} == changed["settings"]
    async with Reactor(gateway.endpoint, name="w") as reactor:
        await gateway.wait_for_reactor("w")
        await until(lambda: reactor._engine.peer_window == 77)  # type: ignore[union-attr]
        one = await admin(gateway, "tune", set={"window": 3}, reactor="w")
        assert one["settings"]["window"] == 3
        assert (await admin(gateway, "tune", set={"draining": True}, reactor="w"))["settings"]["draining"] is True
        figures = (await admin(gateway, "tune"))["figures"]
        assert figures["reactors"]["w"]["window"] == 3
        assert figures["elements"]["mc:tune"]["latency_ms"]["p50"] > 0
    for bad in ({"nothing": 1}, {"concurrency": 0}, {"window": "7"}, {"policy.df": "random"}, {"log_level": "LOUD"}):
        error = await refused(admin(gateway, "tune", set={"max_queue": 1, **bad}))
        assert error.code == "PF400"
    # refused whole
    assert (await admin(gateway, "tune"))["settings"]["max_queue"] == before["settings"]["max_queue"]
    assert (await refused(admin(gateway, "tune", set={"concurrency": 1}, reactor="nobody"))).code == "PF400"
    await admin(gateway, "tune", set={"log_level": before["settings"]["log_level"]})


async def test_for_admins_only() -> None:
    roles = [Role("user", submit=("*:*",)), Role("boss", submit=("*:*",), admin=True)]
    identities = [Identity(role, role, tokens=(hash_token(f"token-{role}"),)) for role in ("user", "boss")]
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(roles, identities)) as gateway:
        async with Reactor(gateway.endpoint, token="token-user") as user:
            for element in ("spawn", "migrate", "scale", "tune", "sp", "mg"):
                assert (await refused(user.call("mc", element))).code == "PF403"
            # nor by way of a step
            nested = {"steps": [{"group": "mc", "element": "tune"}]}
            error = await refused(user.call("cf", "seq", nested))
            assert (error.code, error.details) == ("PF403", {"step": 0, "element": "mc:tune"})
        async with Reactor(gateway.endpoint, token="token-boss") as boss:
            assert "settings" in await boss.call("mc", "tune")


def test_templates_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("""
        [elements]
        names = 500

        [templates.worker]
        command = ["packetflow", "run", "app:reactor"]
        environment = { LEVEL = "high" }
        most = 3
    """)
    settings = load_config(path).settings
    assert settings["elements"].names == 500
    (template,) = settings["templates"]
    assert (template.name, template.command, template.most) == ("worker", ("packetflow", "run", "app:reactor"), 3)
    path.write_text("""
        [elements]
        nests = 5
        [templates.worker]
        command = []
        [templates.other]
        command = "packetflow"
    """)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.errors) >= 3
    path.write_text("[elements]\nenabled = false\n")
    assert load_config(path).settings["elements"] is False


async def test_what_does_not_go_in_its_grace_is_killed_and_said(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    deaf = WORKER.replace(
        "import asyncio, os", "import asyncio, os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    )
    gateway.supervisor.templates["deaf"] = Template("deaf", (sys.executable, "-P", "-c", deaf), grace=0.05)
    (reactor,) = (await admin(gateway, "spawn", reactor="deaf"))["spawned"]
    pid = await gateway.call("df", "pid", reactor=reactor)
    under_way = gateway.call("df", "slow", 60)
    await until(lambda: gateway.reactors[reactor].member.outstanding)
    scaling = gateway.call("mc", "scale", {"reactor": "deaf", "replicas": 0}, timeout_ms=100)
    assert (await refused(scaling)).code == "PF408"  # something is still under way there
    under_way.cancel()
    assert await admin(gateway, "scale", reactor="deaf", replicas=0) == {"before": 1, "after": 0}
    assert any("did not end within 0.05 s of SIGTERM" in record.message for record in caplog.records)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_one_that_cannot_be_started_again_is_tried_again(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    program = tmp_path / "worker"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -P -c '{WORKER}'\n")
    program.chmod(0o755)
    gateway.supervisor.templates["moved"] = Template("moved", (str(program),))
    (reactor,) = (await admin(gateway, "spawn", reactor="moved"))["spawned"]
    pid = await gateway.call("df", "pid", reactor=reactor)
    program.rename(tmp_path / "elsewhere")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: any("cannot be started" in record.message for record in caplog.records))
    (tmp_path / "elsewhere").rename(program)
    await gateway.wait_for_reactor(reactor)
    assert await gateway.call("df", "pid", reactor=reactor) != pid


def test_a_template_has_room_for_one() -> None:
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        Template("t", ("x",), most=0)


def test_a_forked_copy_kills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(processes, "_groups", {4_000_000: os.getpid() + 1})
    monkeypatch.setattr(os, "killpg", lambda *arguments: killed.append(arguments))
    processes.kill_all()
    assert killed == []


async def test_a_gateway_that_stops_starts_no_process(gateway: Gateway) -> None:
    gateway.supervisor.refuse()
    assert (await refused(gateway.call("mc", "spawn", {"reactor": "worker"}))).code == "PF503"


async def test_how_many_may_wait_is_tuned(gateway: Gateway) -> None:
    assert (await admin(gateway, "tune", set={"max_waiting": 77}))["settings"]["max_waiting"] == 77
    assert gateway.switch.max_queue == 77
