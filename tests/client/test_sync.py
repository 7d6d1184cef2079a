"""The blocking reactor, from scripts and threads."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import packetflow
from packetflow import Gateway
from packetflow.sync import Reactor


@pytest.fixture
def endpoint(gateway: Gateway) -> Iterator[str]:
    """A gateway on a thread of its own."""
    started: threading.Event = threading.Event()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        async def run() -> None:
            nonlocal stop
            stop = asyncio.Event()
            async with gateway:
                started.set()
                await stop.wait()

        loop.run_until_complete(run())
        loop.close()

    stop: Any = None
    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(10)
    yield gateway.endpoint
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_the_same_but_blocking(endpoint: str) -> None:
    with Reactor(endpoint) as reactor:
        assert reactor.connected
        assert reactor.endpoint == endpoint
        assert reactor.call("df", "transform", "hello") == "HELLO"
        assert reactor.submit({"group": "df", "element": "fail", "data": "x"}).error["message"] == "x"
        with pytest.raises(packetflow.NoHandler):
            reactor.call("df", "nothing")
        with pytest.raises(packetflow.InvalidPacket):
            reactor.submit({"group": "xx", "element": "y"})
        assert [result.data for result in reactor.map("df", "echo", range(3000), window=64)] == list(range(3000))
        for result in reactor.map("df", "echo", range(3000), window=64):
            assert result.data == 0
            break
        assert list(reactor.map("df", "echo", [])) == []
        with pytest.raises(packetflow.PacketTimeout):
            reactor.call("df", "forever", timeout_ms=10)
    assert not reactor.connected


def test_many_threads_share_one(endpoint: str) -> None:
    with Reactor(endpoint) as reactor, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda n: reactor.call("df", "echo", n), range(500))) == list(range(500))


def test_it_handles_packets_too(endpoint: str, gateway: Gateway) -> None:
    reactor = Reactor(endpoint, name="sync")
    reactor.register("ed", "before")(lambda data: "before")
    with reactor:
        reactor.register("ed", "after", lambda data: "after")
        gateway.register("cf", "ask", lambda data: gateway.call("ed", data, reactor="sync"))
        assert [reactor.call("cf", "ask", name) for name in ("before", "after")] == ["before", "after"]


def test_a_handler_cannot_wait_for_its_own_thread(endpoint: str, gateway: Gateway) -> None:
    with Reactor(endpoint, name="sync") as reactor:
        reactor.register("ed", "deadlock", lambda data: reactor.call("df", "echo"))
        gateway.register("cf", "ask", lambda data: gateway.call("ed", "deadlock", reactor="sync"))
        with pytest.raises(packetflow.HandlerError, match="cannot wait for its own reactor's thread"):
            reactor.call("cf", "ask")


def test_life(endpoint: str) -> None:
    reactor = Reactor(endpoint)
    with pytest.raises(RuntimeError, match="not started"):
        reactor.call("df", "echo")
    for _ in range(2):
        reactor.start()
        with pytest.raises(RuntimeError, match="started already"):
            reactor.start()
        reactor.stop()
    reactor.stop()
    with pytest.raises(packetflow.ConnectionLost):
        Reactor("ws://127.0.0.1:1/").start()


def in_thread(function: Any) -> tuple[threading.Thread, list[Any]]:
    """Runs it in a thread; its exception, or what it returned, is in the list when the thread has ended."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def ended(thread: threading.Thread) -> None:
    thread.join(20)
    assert not thread.is_alive()


def entered(gateway: Gateway) -> threading.Event:
    """Set when somebody calls df:stay, which never answers."""
    event = threading.Event()

    @gateway.register("df", "stay")
    async def stay(data: Any) -> None:
        event.set()
        await asyncio.get_running_loop().create_future()

    return event


def test_what_waits_is_told_when_another_thread_stops_it(gateway: Gateway, endpoint: str) -> None:
    came = entered(gateway)
    reactor = Reactor(endpoint)
    packet = {"group": "df", "element": "stay"}
    for wait in (
        lambda: reactor.call("df", "stay"),
        lambda: reactor.submit(packet),
        lambda: list(reactor.map("df", "stay", range(3))),
    ):
        came.clear()
        reactor.start()
        thread, outcome = in_thread(wait)
        assert came.wait(10)
        reactor.stop()
        ended(thread)
        assert isinstance(outcome[0], packetflow.ConnectionLost), outcome
        with pytest.raises(packetflow.Unavailable, match="was stopped"):
            wait()


def test_calls_race_with_a_stop_and_every_one_ends(endpoint: str) -> None:
    for _ in range(10):
        reactor = Reactor(endpoint)
        reactor.start()
        going = threading.Barrier(9)

        def call(reactor: Reactor = reactor, going: threading.Barrier = going) -> None:
            going.wait(10)
            while True:
                assert reactor.call("df", "echo", 1) == 1

        threads = [in_thread(call) for _ in range(8)]
        going.wait(10)
        reactor.stop()
        for thread, outcome in threads:
            ended(thread)
            assert isinstance(outcome[0], (packetflow.ConnectionLost, packetflow.Unavailable)), outcome


def test_an_iteration_does_not_go_on_after_a_stop(endpoint: str) -> None:
    reactor = Reactor(endpoint)
    reactor.start()
    results = reactor.map("df", "echo", range(100), window=2)
    assert next(results).data == 0
    reactor.stop()
    reactor.start()
    with pytest.raises(packetflow.Unavailable, match="was stopped"):
        list(results)
    left = reactor.map("df", "echo", range(100), window=2)
    next(left)
    reactor.stop()
    left.close()


def test_any_number_of_threads_may_stop_it(endpoint: str) -> None:
    reactor = Reactor(endpoint)
    for _ in range(20):
        reactor.start()
        for thread, outcome in [in_thread(reactor.stop) for _ in range(4)]:
            ended(thread)
            assert outcome == [None]
        reactor.stop()
        assert not reactor.connected
        assert reactor._thread is None


def test_stopping_while_another_thread_starts_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reactor = Reactor(f"ws://127.0.0.1:{silent.getsockname()[1]}/", handshake_timeout=50)
        thread, outcome = in_thread(reactor.start)
        connection, _ = silent.accept()
        reactor.stop()
        ended(thread)
        assert isinstance(outcome[0], packetflow.ConnectionLost)
        assert connection.recv(65536).startswith(b"GET")
        assert connection.recv(65536) == b""
        connection.close()


def test_a_failed_start_leaves_no_thread() -> None:
    reactor = Reactor("ws://127.0.0.1:1/")
    for _ in range(3):
        with pytest.raises(packetflow.ConnectionLost):
            reactor.start()
        assert not [thread for thread in threading.enumerate() if thread.name == "packetflow"]
        with pytest.raises(RuntimeError, match="not started"):
            reactor.call("df", "x")


def test_a_handler_cannot_stop_its_own_thread(endpoint: str, gateway: Gateway) -> None:
    with Reactor(endpoint, name="sync") as reactor:
        reactor.register("ed", "stop", lambda data: reactor.stop())
        gateway.register("cf", "ask", lambda data: gateway.call("ed", "stop", reactor="sync"))
        with pytest.raises(packetflow.HandlerError, match="cannot wait for its own reactor's thread"):
            reactor.call("cf", "ask")
        assert reactor.call("df", "echo", 1) == 1


FORKED = """
import os, sys
from packetflow.sync import Reactor

reactor = Reactor(sys.argv[1])
with reactor:
    child = os.fork()
    if child == 0:
        uses = [lambda: reactor.call("df", "echo"), lambda: reactor.submit({}), lambda: list(reactor.map("df", "x", [])),
                lambda: reactor.register("df", "x", print), reactor.start, reactor.stop, lambda: reactor.connected]
        for use in uses:
            try:
                use()
            except RuntimeError as error:
                assert "fork" in str(error), error
            else:
                raise AssertionError("expected a RuntimeError")
        with Reactor(sys.argv[1]) as fresh:
            assert fresh.call("df", "echo", 1) == 1
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert reactor.call("df", "echo", 2) == 2
print("over", child == 0)
"""
LEFT_RUNNING = """
import sys, threading
from packetflow.sync import Reactor

reactor = Reactor(sys.argv[1])
reactor.start()
waiting = threading.Event()

def wait():
    waiting.set()
    try:
        reactor.call("df", "stay")
    except Exception as error:
        print(type(error).__name__)

threading.Thread(target=wait, daemon=True).start()
waiting.wait()
print("over")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_so(endpoint: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FORKED, endpoint], capture_output=True, text=True, timeout=30)
    assert (done.returncode, sorted(done.stdout.split("\n"))) == (0, ["", "over False", "over True"]), done.stderr


def test_the_interpreter_ends_though_a_reactor_runs(endpoint: str, gateway: Gateway) -> None:
    entered(gateway)
    done = subprocess.run(
        [sys.executable, "-P", "-c", LEFT_RUNNING, endpoint], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "over"), done.stderr
    assert done.stderr == ""


def test_what_a_handler_goes_on_with_when_its_reactor_stops_is_ended(endpoint: str, gateway: Gateway) -> None:
    ended: list[str] = []
    begun = threading.Event()

    async def aside() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("aside")

    reactor = Reactor(endpoint, name="blocking")
    tasks = []

    @reactor.register("df", "begin")
    async def begin(data: Any) -> None:
        tasks.append(asyncio.ensure_future(aside()))
        await asyncio.sleep(0)
        begun.set()

    with reactor:
        reactor.call("df", "begin")
        assert begun.wait(20)
    assert ended == ["aside"]
    assert tasks[0].cancelled()
