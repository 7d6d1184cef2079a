"""Coverage-guided fuzzing of a connection: any bytes a peer may send, through a socket, in any pieces.

The input is a script: a byte says what comes next (a frame of some opcode and length, damage, a valid submit, a
pause), the bytes behind it what is in it. Whatever comes, another connection is served as ever.
"""

import asyncio
import base64
import os
import sys

import atheris

with atheris.instrument_imports(include=["pfcore", "packetflow"]):
    import logging

    from packetflow import Gateway, Reactor

logging.disable(logging.CRITICAL)


def frame(opcode: int, payload: bytes) -> bytes:
    n = len(payload)
    head = bytes([opcode]) + (bytes([0x80 | n]) if n < 126 else bytes([0xFE]) + n.to_bytes(2, "big"))
    return head + b"\0\0\0\0" + payload


class Session:
    """A gateway, a healthy reactor beside, and a loop to run them in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", handshake_timeout=1)
        self.gateway.register("df", "echo", lambda data: data)

        async def later(data: object) -> object:
            await asyncio.sleep(0)
            return data

        self.gateway.register("df", "later", later)
        self.loop.run_until_complete(self.gateway.start())
        self.reactor = Reactor(self.gateway.endpoint)
        self.loop.run_until_complete(self.reactor.start())
        self.port = int(self.gateway.endpoint.split(":")[2].split("/")[0])

    async def play(self, script: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /packetflow/v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        at = 0
        try:
            while at < len(script):
                command = script[at]
                length = script[at + 1] if at + 1 < len(script) else 0
                body = script[at + 2 : at + 2 + length]
                at += 2 + length
                if command < 0x40:  # raw bytes
                    writer.write(body)
                elif command < 0xA0:  # a well-formed frame of any opcode, final or not
                    writer.write(frame(command & 0x0F | (0x80 if command & 0x10 else 0), body))
                elif command < 0xF0:  # a submit with this as its data
                    element = "later" if command & 1 else "echo"
                    text = (f'{{"type":"submit","seq":{command},"payload":{{"version":"1.0","id":"{at}",'
                            f'"group":"df","element":"{element}","data":').encode() + body + b"}}"  # fmt: skip
                    writer.write(frame(0x81, text))
                else:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        except ConnectionError:
            pass
        writer.transport.abort()
        assert await self.reactor.call("df", "echo", "fine", timeout_ms=5000) == "fine"


session = Session()


def test_one_input(data: bytes) -> None:
    session.loop.run_until_complete(session.play(data))


atheris.Setup(sys.argv, test_one_input)
atheris.Fuzz()
