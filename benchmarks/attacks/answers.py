"""A reactor that answers what it likes to the packets that it sends to itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.frames import ANYTHING
from benchmarks.attacks.wire import (
    NUMBER,
    SUBMIT,
    Stranger,
    frame,
    heartbeat,
    message,
    refusal,
    result,
    submit,
    submits,
)

MOST_UNSENT = 32 << 20
"""Bytes that the gateway has not taken yet; past it a reactor answers no more, or it would end itself."""

Answer = Callable[[bytes, bytes], Iterable[bytes]]


def answering(a: Assault, answer: Answer) -> Callable[[Stranger, bytes], None]:
    """What a connection does with each packet that it gets."""

    def on_message(link: Stranger, text: bytes) -> None:
        found = SUBMIT.match(text)
        if found is not None:
            a.tally["handled"] += 1
            if link.transport.get_write_buffer_size() > MOST_UNSENT:
                a.tally["unanswered"] += 1
                return
            for reply in answer(found[1], found[2]):
                link.write(reply)

    return on_message


async def reactor(a: Assault, answer: Answer, *elements: str, handles: str | None = "", **announced: Any) -> Stranger:
    """A connection that announces `elements` and answers so."""
    fields: dict[str, Any] = {"reactor": f"{a.name}-{len(a.open)}", "window": 4096, "ext": ["cancel"]} | announced
    if elements:
        fields["capabilities"] = list(elements)
    # said in the URL, too: until its heartbeat comes it would count as one that announces nothing
    return await a.link(handles=elements[0] if elements else handles, on_message=answering(a, answer), **fields)


@attack("answers")
async def malformed_answers(a: Assault) -> None:
    """Answers whose every field is anything: `"error":{"code":[]}` ended a gateway once."""
    rests = [f'"status":"error","error":{{"code":{value},"message":"m"}}' for value in ANYTHING]
    rests += [f'"status":"error","error":{{"code":"PF500","message":{value}}}' for value in ANYTHING]
    rests += [f'"status":"error","error":{{"code":"PF500","message":"m","details":{value}}}' for value in ANYTHING]
    rests += [f'"status":"error","error":{value}' for value in ANYTHING]
    rests += [f'"status":{value},"data":1' for value in ANYTHING]
    rests += [f'"status":"success","data":1,"duration_ms":{value}' for value in ANYTHING]
    rests += ['"status":"success"', '"status":"error"', '"data":1', '"status":"success","status":"error"',
              '"status":"success","data":1,"error":{"code":[]}', '"status":"error","error":{"code":"PF001","code":[]}',
              '"status":"error","error":{}', '"status":"error","error":{"message":"m"}']  # fmt: skip
    source = itertools.cycle(rests)
    kinds = itertools.cycle(range(7))

    def answer(seq: bytes, packet_id: bytes) -> Iterable[bytes]:
        match next(kinds):
            case 0:
                return [message("error", {"code": [], "message": {}, "packet_id": packet_id.decode()}, int(seq))]
            case 1:
                return [message("error", {"code": "PF500"}, int(seq)), result(0, packet_id, next(source))]
            case 2:
                return [result(seq, "another"), result(seq, packet_id, next(source))]
            case _:
                return [result(seq, packet_id, next(source))]

    link = await reactor(a, answer, "df:malformed")
    for frames in iter(lambda: submits("df:malformed", 1, count=64, timeout_ms=200), None):
        await a.flood(link, frames)
        link.write(heartbeat(reactor=a.name, capabilities=["df:malformed"], window=4096, ext=["cancel"]))
        await asyncio.sleep(0)


@attack("answers")
async def forged_results(a: Assault) -> None:
    """Results for packets of others: every seq that may be under way, from a connection that was sent none."""
    forged = '"status":"success","data":"forged","duration_ms":1'
    cancel = {"code": "PF499", "message": "", "packet_id": "x"}
    seqs = range(1, 400_000)  # those of the victim's packets are among them
    await together(
        a.persist(lambda: (result(n, "x", forged) for n in seqs), reactor="forger"),
        a.persist(lambda: (refusal(n, f"p-{n}") for n in seqs)),
        a.persist(lambda: (message("error", cancel, n) for n in seqs)),
    )


@attack("answers")
async def answers_too_often(a: Assault) -> None:
    """Each packet answered three times, before and after its submitter cancelled it, and after its deadline."""
    late: list[bytes] = []

    def answer(seq: bytes, packet_id: bytes) -> Iterable[bytes]:
        late.append(result(seq, packet_id))
        if int(seq) % 3 == 0:
            return [result(seq, packet_id), refusal(seq, packet_id), result(seq, packet_id)]
        if len(late) > 500:
            gone = late[:]
            late.clear()
            return gone
        return []

    link = await reactor(a, answer, "df:often")
    for n in itertools.count(10**6):
        packet_id = f"often-{a.name}-{n}"
        link.write(submit("df:often", n, id=packet_id, seq=n, timeout_ms=1 + n % 3))
        if n % 2:
            link.write(message("error", {"code": "PF499", "message": "", "packet_id": packet_id}, n))
        a.tally["frames"] += 1
        if n % 50 == 0:
            await link.room()
            await asyncio.sleep(0)


@attack("answers")
async def answers_before_sent(a: Assault) -> None:
    """Answers for packets that still wait for room at the reactor that gives them."""
    link = await reactor(a, lambda seq, packet_id: [], "df:waiting", window=1)
    for n in itertools.count():
        frames = list(submits("df:waiting", n, count=20, timeout_ms=300))
        ids = [text.split(b'"id":"')[1].split(b'"')[0] for text in frames]
        seqs = [text.split(b'"seq":')[1].split(b",")[0] for text in frames]
        await a.flood(link, frames)
        await a.flood(link, [reply for seq, name in zip(seqs, ids, strict=True)
                             for reply in (result(0, name), result(seq, name), refusal(seq, name))])  # fmt: skip
        await asyncio.sleep(0)


@attack("answers")
async def chosen_codes(a: Assault) -> None:
    """A hundred thousand error codes, each another: counters and labels that a peer makes."""
    codes = itertools.count()
    link = await reactor(
        a, lambda seq, name: [refusal(seq, name, f"E{next(codes)}-{'c' * 200}")], "df:codes"
    )  # fmt: skip
    await a.flood(link, submits("df:codes", 1, timeout_ms=5000))


@attack("answers")
async def long_errors(a: Assault) -> None:
    """Codes, messages and details of 900 kB."""
    long = "x" * 900_000
    rests = itertools.cycle((
        f'"status":"error","error":{{"code":"{long}","message":"m"}}',
        f'"status":"error","error":{{"code":"PF500","message":"{long}"}}',
        f'"status":"error","error":{{"code":"PF500","message":"m","details":{{"x":"{long}"}}}}',
        f'"status":"{long}","data":1',
    ))  # fmt: skip
    link = await reactor(a, lambda seq, name: [result(seq, name, next(rests))], "df:long")
    while True:
        await a.flood(link, submits("df:long", 1, count=50, timeout_ms=5000))
        await asyncio.sleep(0.05)


@attack("answers")
async def queued_elements(a: Assault) -> None:
    """Eight reactors with a window of one and a thousand elements each: packets wait in all of them for each answer."""

    async def one(number: int) -> None:
        elements = [f"df:q{number}.{n}" for n in range(1000)]
        link = await reactor(a, lambda seq, name: [result(seq, name)], *elements, window=1)
        while True:
            await a.flood(link, itertools.chain.from_iterable(submits(key, 1, count=1) for key in elements))
            await asyncio.sleep(0)

    await together(*(one(number) for number in range(8)))


@attack("answers")
async def refusals_in_turn(a: Assault) -> None:
    """Two reactors that refuse with PF429 what may be sent a hundred times: it goes to and fro between them."""
    two = [await reactor(a, lambda seq, name: [refusal(seq, name)], "df:refused") for _ in range(2)]
    await a.flood(two[0], submits("df:refused", "x" * 1000, metadata={"retry": 100}))


@attack("answers")
async def knows_nothing(a: Assault) -> None:
    """A reactor that announces nothing and answers PF001 to everything, while it submits what nobody has."""
    link = await reactor(a, lambda seq, name: [refusal(seq, name, "PF001")], handles=None)
    beat = heartbeat(reactor="knows-nothing")
    await a.flood(
        link, (f for n in itertools.count() for f in (*submits(f"df:n{n}", count=1), *([beat] if n % 100 == 0 else [])))
    )


@attack("answers")
async def cancels(a: Assault) -> None:
    """Packets that are cancelled as soon as they are sent: at the gateway, at a reactor, in a queue, in a workflow."""
    link = await reactor(a, lambda seq, name: [], "df:cancelled", window=64)
    steps = {"steps": [{"group": "df", "element": "hold"}]}
    kinds = itertools.cycle((("df:hold", 1), ("df:cancelled", 1), ("cf:seq", steps), ("ed:watch", {"event": "never"})))
    for n in itertools.count(10**6):
        key, data = next(kinds)
        packet_id = f"cancel-{a.name}-{n}"
        link.write(submit(key, data, id=packet_id, seq=n))
        link.write(message("error", {"code": "PF499", "message": "", "packet_id": packet_id}, n))
        a.tally["frames"] += 2
        if n % 50 == 0:
            await link.room()
            await asyncio.sleep(0)


@attack("answers")
async def never_answers(a: Assault) -> None:
    """A reactor that takes megabytes with the longest deadline and never answers."""
    link = await reactor(a, lambda seq, name: [], "df:never", window=2**53 - 1)
    await a.flood(link, submits("df:never", "x" * 1_000_000, timeout_ms=300_000, metadata={"retry": 100}))


@attack("answers")
async def silent_links(a: Assault) -> None:
    """Twenty connections that announce nothing and never answer: they must not swallow what others ask for."""
    links = await a.links(20, handles=None)
    for link in links:
        link.write(heartbeat())
    while True:
        for link in links:
            await a.flood(link, submits("df:reduce", {"input": [1], "op": "sum"}, count=10))
            link.write(heartbeat())
        await asyncio.sleep(0.01)


@attack("answers")
async def large_results(a: Assault) -> None:
    """A reactor that answers 900 kB to each of thousands of small packets."""
    long = "y" * 900_000
    link = await reactor(
        a, lambda seq, name: [result(seq, name, f'"status":"success","data":"{long}","duration_ms":1')], "df:large"
    )
    while True:
        await a.flood(link, submits("df:large", 1, count=40, id=f"large-{a.name}-{NUMBER}"))
        await asyncio.sleep(0.05)


@attack("answers")
async def answers_in_pieces(a: Assault) -> None:
    """Answers that are written anew: keys escaped, in another order, with white space."""

    def answer(seq: bytes, name: bytes) -> Iterable[bytes]:
        return [frame(f'{{ "p\\u0061yload" : {{"data":{{"a":[1,2,"\\u00e9"]}}, "status":"success", "unknown":[], '
                      f'"packet_id":"{name.decode()}" }}, "seq": {seq.decode()}.0, "type":"result"}}')]  # fmt: skip

    link = await reactor(a, answer, "df:pieces")
    await a.flood(link, submits("df:pieces", "x" * 100))
