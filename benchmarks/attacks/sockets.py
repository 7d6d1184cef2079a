"""Connections that keep no rule of WebSocket or HTTP, or keep it slowly, or never read."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.wire import PATH, Stranger, body, frame, handshake, header, heartbeat, submit, submits


@attack("sockets")
async def half_a_message(a: Assault) -> None:
    """Half a message of 4 MiB, and then nothing."""
    link = await a.link()
    await link.send(header(4 << 20) + bytes(b"x" * (4 << 19)))
    await a.rest()


@attack("sockets")
async def half_messages(a: Assault) -> None:
    """Half a message of 4 MiB on each of 300 connections."""
    half = header(4 << 20) + b"x" * (4 << 19)
    for link in await a.links(300):
        link.write(half)
    await a.rest()


@attack("sockets")
async def dripping_fragments(a: Assault) -> None:
    """A message in fragments of a byte, on 300 connections."""
    links = await a.links(300)
    first, more = frame('{"type":"submit","x":"', fin=False), frame("x", 0, fin=False) * 20
    for link in links:
        link.write(first)
    while True:
        for link in links:
            link.write(more)
        a.tally["frames"] += 20 * len(links)
        await asyncio.sleep(0.02)


@attack("sockets")
async def endless_message(a: Assault) -> None:
    """Fragments that never end their message."""
    more = frame("x" * 60_000, 0, fin=False)
    await a.persist(lambda: itertools.chain([frame('"', fin=False)], itertools.repeat(more, 200)))


@attack("sockets")
async def fragment_flood(a: Assault) -> None:
    """Empty fragments, which cost a header each and add nothing."""
    more = frame("", 0, fin=False) * 500
    await a.persist(lambda: itertools.chain([frame('"', fin=False)], itertools.repeat(more, 500)))


@attack("sockets")
async def pings(a: Assault) -> None:
    """Pings of 125 bytes that each ask for a pong, which is never read."""
    await a.persist(lambda: itertools.repeat(frame("p" * 125, 9), 10_000), read=False)


@attack("sockets")
async def pings_read(a: Assault) -> None:
    """Pings whose pongs are read, so that nothing holds them back."""
    await a.persist(lambda: itertools.repeat(frame("", 9), 10_000))


@attack("sockets")
async def close_and_return(a: Assault) -> None:
    """A handshake, a Close, and again."""

    async def again() -> None:
        while True:
            try:
                link = await a.link()
                await link.send(frame(b"\x03\xe8", 8))
                await link.closed
                a.open.remove(link)
            except OSError:
                await asyncio.sleep(0.001)

    await together(*(again() for _ in range(8)))


@attack("sockets")
async def resets(a: Assault) -> None:
    """Connections that are reset in the middle of a message and of a handshake."""

    async def again(cut: bytes) -> None:
        while True:
            try:
                link = await a.socket()
                await link.send(cut)
                await asyncio.sleep(0)
                a.leave(link)
            except OSError:
                await asyncio.sleep(0.001)

    whole = handshake() + submit("df:echo", "x" * 60_000)
    await together(*(again(whole[:size]) for size in (1, 40, len(handshake()), len(handshake()) + 500, len(whole))))


@attack("sockets")
async def byte_by_byte(a: Assault) -> None:
    """Fifty connections that send each byte in a segment of its own."""

    async def drip(link: Stranger) -> None:
        for packet in submits("df:echo", 1):
            for byte in packet:
                link.write(bytes([byte]))
                await asyncio.sleep(0)
            a.tally["frames"] += 1
            await link.room()

    await together(*(drip(link) for link in await a.links(50)))


@attack("sockets")
async def odd_frames(a: Assault) -> None:
    """Reserved bits and opcodes, frames without mask, control frames that are long or in fragments."""
    odd = [b"\xf1\x80" + bytes(4), frame("x", 3), frame("x", 11), b"\x81\x05hello", frame("x" * 200, 9),
           frame("x", 9, fin=False), frame("x", 0), frame(b"\x00", 8), frame(b"\x03\xed", 8),
           b"\x81\xff" + b"\xff" * 8 + bytes(4), b"\x81\xff" + b"\x7f" + b"\xff" * 7 + bytes(4)]  # fmt: skip
    await together(*(a.persist(lambda bad=bad: itertools.repeat(bad, 2)) for bad in odd))  # type: ignore[misc]


@attack("sockets")
async def never_reads(a: Assault) -> None:
    """Asks for 900 kB again and again, and reads nothing."""
    await a.persist(lambda: submits("df:big"), read=False)


@attack("sockets")
async def never_read(a: Assault) -> None:
    """Two hundred connections that ask for 900 kB each and read nothing."""
    for link in await a.links(200, read=False):
        link.write(b"".join(submits("df:big", count=17)))
    await a.rest()


@attack("sockets")
async def reads_slowly(a: Assault) -> None:
    """Asks for 900 kB, and reads a little now and then, so that it never counts as stalled."""

    async def trickle(link: Stranger) -> None:
        while True:
            await asyncio.sleep(0.2)
            link.transport.resume_reading()
            await asyncio.sleep(0)
            if not link.transport.is_closing():
                link.transport.pause_reading()

    link = await a.link(read=False)
    await together(trickle(link), a.flood(link, submits("df:big")))


@attack("handshakes")
async def idle_handshakes(a: Assault) -> None:
    """Two thousand connections that begin a handshake and leave it at that."""
    for _ in range(2000):
        link = await a.socket()
        link.write(handshake()[:60])
    await a.rest()


@attack("handshakes")
async def slow_handshakes(a: Assault) -> None:
    """Five hundred handshakes, a byte at a time."""
    links = [await a.socket() for _ in range(500)]
    for place in itertools.count():
        for link in links:
            link.write(handshake(headers="X-Filler: " + "x" * 4000 + "\r\n")[place : place + 1])
        await asyncio.sleep(0.02)


async def _requests(a: Assault, *requests: bytes, forbidden: tuple[int, ...] = (500,), at_once: int = 8) -> None:
    """Each on a connection of its own, until that is closed or a while has passed. `forbidden`: what is a breach."""
    source = itertools.cycle(requests)

    async def ask() -> None:
        while True:
            try:
                link = await a.socket()
                link.write(next(source))
                a.tally["requests"] += 1
                await asyncio.wait([link.closed], timeout=0.5)
                a.leave(link)
                for status in forbidden:
                    if a.tally[f"HTTP {status}"]:
                        a.breach(f"an answer of {status}")
            except OSError:
                await asyncio.sleep(0.001)

    await together(*(ask() for _ in range(at_once)))


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    lines = (f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1")


@attack("handshakes")
async def odd_requests(a: Assault) -> None:
    """Targets, methods, tokens and headers that nobody sends by accident."""
    odd = [get(target) for target in ("", "*", "//", "http://[::1", "/%", "/%00", "/?\x00", "/\x1b[2J", "/é",
                                      "/" + "x" * 7000, "http://[", PATH + "?handles=" + "df:x," * 999,
                                      PATH + "?handles=%ff%00")]  # fmt: skip
    credentials = ("Bearer ", "Bearer é", "Basic !!!!", "Basic OjpÿOg==", "x", "Basic " + "A" * 7000, "Bearer \x00")
    odd += [get(PATH, f"Authorization: {value}") for value in credentials]
    odd += [get("/", method=method) for method in ("POST", "CONNECT", "get", "\x16\x03\x01", "G" * 3000)]
    odd += [handshake().replace(b"13\r\n", b"12\r\n"), handshake().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"!"),
            handshake(headers="Sec-WebSocket-Protocol: bearer.\r\n"), handshake(headers="Content-Length: 99999999\r\n"),
            handshake(headers="Host: evil.example\r\n"), b"\r\n\r\n", b"\x00" * 500, b"GET\r\n\r\n",
            handshake(headers="Transfer-Encoding: chunked\r\n") + b"ffffffffffffffff\r\n"]  # fmt: skip
    await _requests(a, *odd)


@attack("handshakes")
async def huge_headers(a: Assault) -> None:
    """Headers without end, and thousands of small ones."""
    await _requests(a, get("/healthz", "X: " + "x" * 4_000_000), get("/healthz", *(f"X{n}: y" for n in range(50_000))))


@attack("handshakes")
async def origins(a: Assault) -> None:
    """A web page that tries to use its visitor's gateway."""
    names = ("null", "http://evil.example", "http://127.0.0.1.evil.example", "http://127.0.0.1@evil", "file://", "é")
    await _requests(a, *(handshake(headers=f"Origin: {name}\r\n") for name in names), forbidden=(101, 200, 500))


@attack("handshakes")
async def rebinding(a: Assault) -> None:
    """A web page whose name was made to mean this machine: on loopback the Host has to be a loopback name."""
    hosts = ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1].evil", "localhost.evil.example")
    pages = [page.replace(b"Host: 127.0.0.1", f"Host: {host}".encode()) for host in hosts
             for page in (get("/metrics"), get("/healthz"), handshake(),
                          handshake(headers=f"Origin: http://{host}\r\n"))]  # fmt: skip
    await _requests(a, *pages, forbidden=(101, 200, 500))


@attack("handshakes")
async def scrapes(a: Assault) -> None:
    """Metrics, asked for by eight at once without a pause."""
    await _requests(a, get("/metrics"))


@attack("sockets")
async def many_fragments(a: Assault) -> None:
    """A message in thousands of fragments, with pings between them."""
    text = body("df:echo", "x" * 100_000)
    pieces = [frame(text[n : n + 20], 1 if n == 0 else 0, fin=False) + frame("", 9) for n in range(0, len(text), 20)]
    whole = b"".join(pieces) + frame("", 0) + heartbeat()
    await a.persist(lambda: itertools.repeat(whole, 10))
