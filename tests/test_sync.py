"""The blocking reactor, from scripts and threads."""

from __future__ import annotations

import asyncio
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
