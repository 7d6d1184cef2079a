"""Peers to play with: processes of other languages, and ours with the same face.

A foreign peer is driven over its standard input and output, a JSON object a
line; what it says on the wire is the specification's listing, no more.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import uuid
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any, ClassVar

from packetflow import Reactor
from packetflow.conformance import wire
from packetflow.errors import PacketFlowError

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "interop"
LANGUAGES = ("python", "typescript", "elixir")
LINE = 4 * 1024 * 1024


class Rejected(Exception):
    """The peer's submit ended without a result: its own timeout, or an `error` frame."""


class Process:
    """A peer in a process of its own.

    `role`: "worker" registers the handlers of the matrix, "client" one for
    itself, "doomed" one that says when it starts and never ends.
    """

    language: ClassVar[str]

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready = asyncio.Event()
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.tags = itertools.count(1)
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.reading = asyncio.ensure_future(self.read())

    @classmethod
    def command(cls, endpoint: str, role: str) -> tuple[list[str], dict[str, str], Path]:
        raise NotImplementedError

    @classmethod
    async def start(cls, endpoint: str, role: str) -> Process:
        command, environment, where = cls.command(endpoint, role)
        peer = cls(
            await asyncio.create_subprocess_exec(
                *command, cwd=where, env=os.environ | environment, stdin=PIPE, stdout=PIPE, limit=LINE
            )
        )
        ready = asyncio.ensure_future(peer.ready.wait())
        done, _ = await asyncio.wait({ready, peer.reading}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if ready not in done:
            ready.cancel()
            await peer.stop()
            raise RuntimeError(f"the {cls.language} peer did not come up: {command}")
        return peer

    async def read(self) -> None:
        try:
            await self.read_lines()
        finally:
            for answer in self.waiting.values():
                if not answer.done():
                    answer.set_exception(RuntimeError(f"the {self.language} peer has ended"))

    async def read_lines(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self.ready.set()
            elif "closed" in said:
                self.closed.set()
            elif "started" in said:
                self.started.set()
            else:
                self.waiting.pop(said["tag"]).set_result(said)

    async def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        tag = next(self.tags)
        answer = self.waiting[tag] = asyncio.get_running_loop().create_future()
        self.process.stdin.write(json.dumps({"tag": tag, **command}).encode() + b"\n")
        await self.process.stdin.drain()
        said = await answer
        if "rejected" in said:
            raise Rejected(said["rejected"])
        return said

    async def submit(self, group: str, element: str, **fields: Any) -> dict[str, Any]:
        """The result of one packet, as the peer's own user sees it."""
        packet = {"group": group, "element": element, "priority": 5, **fields}
        result: dict[str, Any] = (await self.ask(op="submit", packet=packet))["result"]
        return result

    async def submit_frame(self, group: str, element: str, length: int) -> dict[str, Any]:
        """One packet whose whole frame has this length; `data` says whether the same came back."""
        packet = {"group": group, "element": element, "priority": 5}
        result: dict[str, Any] = (await self.ask(op="submit", packet=packet, frame=length))["result"]
        return result

    async def flood(self, group: str, element: str, count: int, outstanding: int) -> int:
        """Submits 0, 1, ... `count` - 1 as data; how many came back as they were."""
        packet = {"group": group, "element": element, "priority": 5}
        right: int = (await self.ask(op="flood", packet=packet, count=count, outstanding=outstanding))["right"]
        return right

    async def raw(self, text: str, packet_id: str) -> str:
        """Sends a text as it stands; the text of the message that names `packet_id`."""
        answer: str = (await self.ask(op="raw", text=text, id=packet_id))["text"]
        return answer

    async def write(self, text: str) -> None:
        await self.ask(op="write", text=text)

    async def restart(self) -> None:
        """Connects anew, as a user's supervisor would: the listings do not come back by themselves."""
        self.ready.clear()
        await self.ask(op="restart")
        if self.language == "elixir":
            await self.ready.wait()

    def kill(self) -> None:
        self.process.kill()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.reading.cancel()


class TypeScript(Process):
    language = "typescript"

    @classmethod
    def command(cls, endpoint: str, role: str) -> tuple[list[str], dict[str, str], Path]:
        where = HERE / "typescript"
        return ["node", "--import", "tsx", "peer.ts", endpoint, role], {}, where


class Elixir(Process):
    language = "elixir"

    @classmethod
    def command(cls, endpoint: str, role: str) -> tuple[list[str], dict[str, str], Path]:
        run = ["mix", "run", "--no-compile", "--no-halt", "-e", "PacketFlowPeer.Peer.main()", "--", endpoint, role]
        return run, elixir_environment(), HERE / "elixir"


class Browser(Process):
    """A page in headless Chromium: the endpoint is not dialled before `open`."""

    language = "browser"

    @classmethod
    def command(cls, endpoint: str, role: str) -> tuple[list[str], dict[str, str], Path]:
        return ["node", "--import", "tsx", "browser.ts"], {}, HERE / "typescript"

    async def open(self, url: str) -> str:
        """Opens the page; what it says of its connection."""
        state: str = (await self.ask(op="open", url=url))["result"]
        return state

    async def press(self, text: str) -> str:
        """Writes into the page's field and presses its button; what the page says then."""
        said: str = (await self.ask(op="press", text=text))["result"]
        return said

    async def register(self, group: str, element: str) -> None:
        """The page handles this, too, and answers with the data."""
        await self.ask(op="register", group=group, element=element)

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # it closes its browser and ends
        await self.process.wait()
        self.reading.cancel()


def elixir_environment() -> dict[str, str]:
    """For `mix` where Hex is out of reach; see tools/interop."""
    return {
        "MIX_ENV": "debian",
        "MIX_BUILD_ROOT": str(BUILD / "mix"),
        "ERL_LIBS": str(BUILD / "erlang"),
        # no scheduler spins while it waits: the machine is shared
        "ELIXIR_ERL_OPTIONS": "+fnu +sbwt none +sbwtdcpu none +sbwtdio none",
    }


class Python:
    """Our own reactor, with the face of the others. Texts as they stand go over a bare WebSocket beside it."""

    language = "python"

    def __init__(self, reactor: Reactor, bare: wire.Peer) -> None:
        self.reactor, self.bare = reactor, bare
        self.crooked = asyncio.ensure_future(self.answer_by_hand())
        self.noted = 0
        self.started = asyncio.Event()
        self.texts: dict[str, asyncio.Future[str]] = {}

    @classmethod
    async def start(cls, endpoint: str, role: str) -> Python:
        reactor = Reactor(endpoint, window=256)
        handles = ",".join(f"df:crooked.{how}" for how in ("right", "wrong", "noid", "twice", "beat"))
        path = "/packetflow/v1?handles=" + (handles if role == "worker" else "")
        peer = cls(reactor, await wire.Peer.connect(endpoint, path=path))
        if role == "worker":
            peer.register(reactor)
        elif role == "client":
            reactor.register("df", "self.python", lambda data: {"self": data})
        else:
            reactor.register("df", "doomed.python", peer.doomed)
        await reactor.start()
        return peer

    async def doomed(self, data: Any) -> None:
        self.started.set()
        await asyncio.get_running_loop().create_future()

    def register(self, reactor: Reactor) -> None:
        def fail(data: Any) -> None:
            raise ValueError(str(data))

        async def never(data: Any) -> None:
            await asyncio.get_running_loop().create_future()

        async def sleep(data: float) -> float:
            await asyncio.sleep(data / 1000)
            return data

        def note(data: Any) -> int:
            self.noted += 1
            return self.noted

        reactor.register("df", "echo", lambda data: data)
        reactor.register("df", "transform", str.upper)
        reactor.register("df", "who", lambda data: "python")
        reactor.register("df", "fail", fail)
        reactor.register("df", "throw", fail)
        reactor.register("df", "never", never)
        reactor.register("df", "sleep", sleep)
        reactor.register("df", "note", note)

    async def answer_by_hand(self) -> None:
        """What a test wants to go wrong, on the bare connection."""
        while True:
            try:
                opcode, payload = await self.bare.frame()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if opcode == 9:  # it is asked whether it lives
                await self.bare.send(payload, opcode=10)
            if opcode != 1:
                continue
            text = payload.decode()
            message = json.loads(text)
            if message["type"] != "submit":
                for packet_id in [packet_id for packet_id in self.texts if f'"{packet_id}"' in text]:
                    self.texts.pop(packet_id).set_result(text)
            if message["type"] != "submit":
                continue
            packet, seq = message["payload"], message["seq"]
            if not packet["element"].startswith("crooked."):
                error = {"code": "PF001", "message": "not here"}
                await self.put(0, {"packet_id": packet["id"], "status": "error", "error": error, "duration_ms": 0})
                continue
            result = {"packet_id": packet["id"], "status": "success", "duration_ms": 0}
            match packet["element"].removeprefix("crooked."):
                case "right":
                    await self.put(seq, result | {"data": "right"})
                case "wrong":
                    await self.put(987654321, result | {"data": "wrong seq"})
                case "noid":
                    await self.put(seq, {"status": "success", "data": "no id", "duration_ms": 0})
                case "twice":
                    await self.put(0, result | {"data": "first"})
                    await self.put(0, result | {"data": "second"})
                case "beat":
                    await self.bare.send({"type": "heartbeat", "seq": seq, "payload": {"timestamp": 0}})
                    await self.put(0, result | {"data": "after a heartbeat"})

    async def put(self, seq: int, payload: dict[str, Any]) -> None:
        await self.bare.send({"type": "result", "seq": seq, "payload": payload})

    async def submit(self, group: str, element: str, *, retry: int = 0, **fields: Any) -> dict[str, Any]:
        try:
            result = await self.reactor.submit({"group": group, "element": element, **fields}, retry=retry)
        except PacketFlowError as error:
            raise Rejected(error.code) from error
        return {"packet_id": result.packet_id, "status": result.status, "data": result.data, "error": result.error}

    async def submit_frame(self, group: str, element: str, length: int) -> dict[str, Any]:
        packet_id = str(uuid.uuid4())
        packet = {"version": "1.0", "id": packet_id, "group": group, "element": element, "priority": 5}
        blank = json.dumps({"type": "submit", "seq": 1, "payload": packet | {"data": ""}})
        data = "x" * (length - len(blank))
        text = blank.replace('"data": ""', f'"data": "{data}"')
        assert len(text) == length
        result: dict[str, Any] = json.loads(await self.raw(text, packet_id))["payload"]
        return result | {"data": result.get("data") == data}

    async def flood(self, group: str, element: str, count: int, outstanding: int) -> int:
        results = self.reactor.map(group, element, range(count), window=outstanding)
        return sum([result.data == n async for n, result in aenumerate(results)])

    async def raw(self, text: str, packet_id: str) -> str:
        self.texts[packet_id] = asyncio.get_running_loop().create_future()
        await self.bare.send(text.encode())
        return await self.texts[packet_id]

    async def write(self, text: str) -> None:
        await self.bare.send(text.encode())

    def kill(self) -> None:
        self.bare.close()
        self.reactor._reconnect = False
        assert self.reactor._connection is not None
        self.reactor._connection.abort()

    async def restart(self) -> None:
        """It comes back by itself."""
        while not self.reactor.connected:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.bare.close()
        self.crooked.cancel()
        await self.reactor.stop(grace=0.1)


async def aenumerate(items: Any) -> Any:
    n = 0
    async for item in items:
        yield n, item
        n += 1


PEERS: dict[str, Any] = {"python": Python, "typescript": TypeScript, "elixir": Elixir}
