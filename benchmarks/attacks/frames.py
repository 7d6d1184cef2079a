"""Frames that are wrong, odd, or dear to read."""

from __future__ import annotations

import asyncio
import itertools
import random
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.wire import NUMBER, Stranger, body, compact, frame, heartbeat, message, result, submit, submits

ANYTHING = ("null", "true", "0", "-1", "1.5", "1e999", "9007199254740993", "1" * 400, '""', '"x"', '"PF500"',
            '"\\u0000"', "[]", "[[]]", "{}", '{"a":{}}', '[{"code":[]}]', '"' + "x" * 5000 + '"')  # fmt: skip
"""JSON of every type, for fields that want another."""


def telling(a: Assault) -> Callable[[Stranger, bytes], None]:
    """PF500 is a handler's fault; for a packet's own mistakes it is a breach."""

    def on_message(link: Stranger, text: bytes) -> None:
        at = text.find(b'"code":"PF500"')
        if at >= 0:
            a.breach(text[at : at + 120].decode(errors="replace"))

    return on_message


def wrong_fields() -> Iterator[bytes]:
    """Each field of each message as anything."""
    layouts = {
        "submit": ("version", "id", "group", "element", "data", "priority", "timeout_ms", "dependencies", "metadata"),
        "result": ("packet_id", "status", "data", "error", "duration_ms"),
        "error": ("code", "message", "packet_id", "details"),
        "heartbeat": ("timestamp", "reactor", "instance", "capabilities", "window", "load", "ext"),
    }
    usual = {"version": '"1.0"', "id": '"i"', "group": '"df"', "element": '"echo"', "data": "1", "priority": "5",
             "packet_id": '"i"', "status": '"success"', "duration_ms": "1", "code": '"PF500"', "message": '"m"',
             "timestamp": "1"}  # fmt: skip
    for kind, fields in layouts.items():
        for field, value in itertools.product((*fields, "type", "seq", "payload"), ANYTHING):
            parts = {name: usual[name] for name in fields if name in usual}
            outer = {"type": f'"{kind}"', "seq": "1", "payload": ""}
            if field in outer:
                outer[field] = value
            else:
                parts[field] = value
            outer["payload"] = outer["payload"] or "{" + ",".join(f'"{k}":{v}' for k, v in parts.items()) + "}"
            yield frame("{" + ",".join(f'"{k}":{v}' for k, v in outer.items()) + "}")


@attack("frames")
async def mutated_frames(a: Assault) -> None:
    """Valid frames of which a few bytes were changed: what a fuzzer sends."""
    chosen = random.Random(a.name)
    valid = [body("df:echo", {"a": [1, "é\\u00e9", None]}), body("cf:seq", {"steps": []}, metadata={"key": "k"}),
             body("ed:signal", {"event": "e"}, timeout_ms=5, dependencies=["x"])]  # fmt: skip
    mutants = []
    for _ in range(3000):
        raw = bytearray(chosen.choice(valid).encode())
        for _ in range(chosen.randint(1, 4)):
            place = chosen.randrange(len(raw))
            match chosen.randrange(3):
                case 0:
                    raw[place] = chosen.choice(b'{}[]",:\\0aE.-\x00\x7f tf')
                case 1:
                    del raw[place : place + chosen.randint(1, 9)]
                case _:
                    raw[place:place] = raw[max(0, place - 9) : place]
        mutants.append(frame(bytes(raw)))
    # a heartbeat now and then, or the connection is closed after a hundred
    await a.persist(lambda: (f for n, m in enumerate(mutants) for f in ((m, heartbeat()) if n % 50 == 0 else (m,))))


@attack("frames")
async def wrong_types(a: Assault) -> None:
    """Every field of every message as every type of JSON."""
    frames = list(wrong_fields())
    await a.persist(lambda: (f for n, m in enumerate(frames) for f in ((m, heartbeat()) if n % 50 == 0 else (m,))))


@attack("frames")
async def garbage(a: Assault) -> None:
    """Text that is not JSON; cut after a hundred, and back at once."""
    await a.persist(lambda: itertools.repeat(frame("{" * 40 + "garbage"), 200))


@attack("frames")
async def keys_twice(a: Assault) -> None:
    """A key twice, once of them escaped: two parsers could read two packets."""
    twice = [frame(body("df:echo", 1)[:-2] + f',"{key}":{value}}}}}')
             for key, value in (("element", '"hold"'), ("elemen\\u0074", '"hold"'), ("\\u0069d", '"other"'),
                                ("group", '"mc"'), ("priority", "10"))]  # fmt: skip
    await a.persist(lambda: (f for n in range(500) for f in (*twice, heartbeat())))


@attack("frames")
async def written_anew(a: Assault) -> None:
    """Escaped keys, white space and unknown keys: frames that the gateway has to write again."""
    odd = body(
        "df:echo", "x" * 200, id=f"odd-{a.name}-{NUMBER}", seq=NUMBER, metadata={"key": NUMBER, "deep": [[{}]] * 50}
    )
    odd = odd.replace('"element"', ' "elemen\\u0074" ').replace('"priority":5', '"priority" : 5.0 , "unknown":[{}]')
    parts = odd.split(NUMBER)
    await a.persist(lambda: (frame(str(10**9 + n).join(parts)) for n in itertools.count()))


@attack("frames")
async def many_keys(a: Assault) -> None:
    """Objects of 90,000 keys, as data that is decoded and as metadata that is written again."""
    keys = "{" + ",".join(f'"k{n}":{n % 10}' for n in range(90_000)) + "}"
    await together(
        a.persist(lambda: submits("df:transform", raw=f'{{"input":{keys},"expression":"length(keys(@))"}}', count=20)),
        a.persist(lambda: (frame(body("df:echo", 1, seq=n)[:-2] + f',"metadata":{keys}}}}}') for n in range(1, 20))),
    )


@attack("frames")
async def deep_nesting(a: Assault) -> None:
    """A megabyte of brackets: as deep as is allowed, and deeper."""
    allowed = "[" + ",".join(["[" * 55 + "]" * 55] * 9000) + "]"
    await together(
        a.persist(lambda: submits("df:transform", raw=f'{{"input":{allowed},"expression":"length(@)"}}', count=20)),
        a.persist(lambda: submits("df:echo", raw=allowed, count=20)),
        a.persist(lambda: submits("df:echo", raw="[" * 450_000 + "]" * 450_000, count=5)),
    )


@attack("frames")
async def long_numbers(a: Assault) -> None:
    """Integers of a megabyte, and two hundred of as many digits as are taken."""
    longest = "[" + ",".join(["9" * 4299] * 220) + "]"
    most = "[" + ",".join(["9" * 4299] * 10) + "]"
    await together(
        a.persist(lambda: submits("df:reduce", raw=f'{{"input":{most},"op":"sum"}}', count=20)),
        a.persist(lambda: submits("df:echo", raw=most, count=20)),
        a.persist(lambda: submits("df:reduce", raw=f'{{"input":{longest},"op":"sum"}}', count=20)),
        a.persist(lambda: submits("df:echo", raw=longest, count=20)),
        a.persist(lambda: submits("df:echo", raw="7" * 1_000_000, count=5)),
    )


@attack("frames")
async def escapes(a: Assault) -> None:
    """Texts of nothing but escapes, decoded and written again."""
    text = '"' + "\\u00e9" * 160_000 + '"'
    await together(
        a.persist(lambda: submits("df:echo", raw=text, count=20)),
        a.persist(lambda: submits("cf:seq", raw=f'{{"input":{text},"steps":[]}}', count=20)),
    )


@attack("frames")
async def too_large(a: Assault) -> None:
    """Frames of two megabytes, refused one by one, and of five, which end the connection."""
    await together(
        a.persist(lambda: submits("df:echo", "x" * 2_000_000, count=4)),
        a.persist(lambda: submits("df:echo", "x" * 5_000_000, count=1)),
    )


@attack("frames")
async def not_text(a: Assault) -> None:
    """Invalid UTF-8, lone surrogates and NUL, in text and in binary messages."""
    bad = [frame(b'{"type":"submit\xff","seq":1}'), frame(body("df:echo", raw='"\\ud800"')),
           frame(b'{"type":"heartbeat","seq":1,"payload":{"reactor":"\xed\xa0\x80"}}', 2), frame(bytes(1000), 2),
           frame(body("df:echo", raw='"\\u0000"'), 2)]  # fmt: skip
    await together(*(a.persist(lambda bad=bad: itertools.repeat(bad, 50)) for bad in bad))  # type: ignore[misc]


@attack("frames")
async def unasked_messages(a: Assault) -> None:
    """Errors, results and types that nobody asked for."""
    codes: list[Any] = ["PF499", "PF500", [], None, {"a": 1}]
    frames = [message("error", {"code": c, "message": "m", "packet_id": f"p{n}"}, n) for n, c in enumerate(codes)]
    frames += [message(kind, {}, 1) for kind in ("welcome", "", "SUBMIT", "chunk", "progress")]
    frames += [result(n, f"p{n}") for n in range(50)]
    await a.persist(lambda: (f for n in range(500) for f in (*frames, heartbeat())))


@attack("frames")
async def odd_values(a: Assault) -> None:
    """Numbers beyond every range and names with NUL, where an element computes with them."""
    huge = "1" + "0" * 400
    frames = [submit("rm:cache", raw='{"op":"set","key":"inf","value":1e308}')]
    frames += [submit("rm:cache", raw='{"op":"incr","key":"inf","by":1e308}') for _ in range(20)]
    for key, field in (("df:consume", '"stream":"s"'), ("cf:gate", '"gate":"g","action":"wait"'),
                       ("rm:lock", '"key":"k"'), ("rm:alloc", '"pool":"p","capacity":1'), ("ed:watch", '"event":"e"'),
                       ("co:sync", '"barrier":"b","parties":2')):  # fmt: skip
        for value in (huge, f"-{huge}", "1e300", "0.5", '"1"', "[]", "true"):
            frames.append(submit(key, raw=f'{{{field},"wait_ms":{value}}}'))
            frames.append(submit(key, raw=f'{{{field},"ttl_ms":{value}}}'))
    for value in (huge, "1e300", "-1", "0", "0.1", "[]"):
        for field in ("after_ms", "every_ms", "at", "count"):
            step = compact({"group": "df", "element": "echo"})
            frames.append(submit("ed:timer", raw=f'{{"packet":{step},"every_ms":1000,"{field}":{value}}}'))
    frames += [submit("df:produce", {"stream": name, "items": [1]}) for name in ("a\0b", "\0", "a\0", "é" * 128, "*")]
    frames += [submit("df:reduce", raw=f'{{"input":[{huge},1e308,1e308,-1e308],"op":"{op}"}}')
               for op in ("sum", "avg", "min", "max", "concat", "merge")]  # fmt: skip
    frames += [submit("df:transform", {"input": {"a": 1e308}, "expression": text})
               for text in ("a", "sum([a, a, a])", "to_number('1e999')", "abs(`-1e308`)", "a ^", "\0",
                            "@" * 900)]  # fmt: skip
    await a.persist(lambda: frames, on_message=telling(a))


@attack("frames")
async def odd_data(a: Assault) -> None:
    """Every field of every standard element, of its steps and of metadata as every type of JSON."""
    step = '{"group":"df","element":"echo"}'
    usual: dict[str, dict[str, str | None]] = {
        "cf:seq": {"steps": f"[{step}]", "input": "1", "return": '"prev"'},
        "cf:branch": {"cases": f'[{{"when":"input","then":{step}}}]', "input": "1", "else": step},
        "cf:loop": {"step": step, "times": "2", "items": None, "while": None, "until": None, "max_iterations": "3",
                    "collect": "true", "input": "1"},
        "cf:gate": {"gate": '"odd"', "action": '"arrive"', "count": "1", "wait_ms": "1"},
        "df:produce": {"stream": '"odd"', "items": "[1]", "wait_ms": "1"},
        "df:consume": {"stream": '"odd"', "consumer": '"c"', "max": "1", "wait_ms": "1", "ack": "[1]",
                       "redeliver_after_ms": "1"},
        "df:transform": {"input": "[1]", "expression": None, "map": step, "concurrency": "1"},
        "df:reduce": {"input": "[1,2]", "op": None, "with": step, "initial": "1"},
        "ed:signal": {"event": '"odd"', "payload": "1"},
        "ed:timer": {"packet": step, "after_ms": "10", "every_ms": "1000", "at": None, "count": "1", "id": '"t"',
                     "cancel": None},
        "ed:watch": {"event": '"odd"', "key": None, "version": None, "after": None, "wait_ms": "1"},
        "ed:react": {"event": '"odd"', "packet": step, "id": '"r"', "cancel": None},
        "co:sync": {"barrier": '"odd"', "parties": "1", "data": "1", "wait_ms": "1"},
        "co:broadcast": {"packet": step, "wait": "true"},
        "co:gather": {"packets": f"[{step}]", "need": "1", "concurrency": "1"},
        "co:vote": {"ballot": '"odd"', "choice": "1", "voters": "1", "need": "1", "packet": None, "wait_ms": "1"},
        "mc:tune": {"set": "{}", "reactor": '"worker"'},
        "mc:describe": {"group": None, "element": None},
        "rm:alloc": {"pool": '"odd"', "units": "1", "capacity": "2", "ttl_ms": "5", "wait_ms": "1"},
        "rm:free": {"lease": '"odd"'},
        "rm:lock": {"key": '"odd"', "ttl_ms": "5", "wait_ms": "1", "lease": None, "step": None},
        "rm:cache": {"op": '"set"', "key": '"odd"', "value": "1", "ttl_ms": "5", "version": None, "by": None,
                     "after": None, "step": None},
    }  # fmt: skip

    def objects(fields: Mapping[str, str | None]) -> Iterator[str]:
        for field, value in itertools.product(fields, ANYTHING):
            parts = {name: text for name, text in fields.items() if text is not None} | {field: value}
            yield "{" + ",".join(f'"{name}":{text}' for name, text in parts.items()) + "}"

    def frames() -> Iterator[bytes]:
        for key, fields in usual.items():
            yield from (submit(key, raw=text) for text in objects(fields))
        parts = {"group": '"df"', "element": '"echo"', "data": "1", "priority": "5", "timeout_ms": "9",
                  "metadata": "{}", "as": '"a"'}  # fmt: skip
        for text in objects(parts):
            yield submit("cf:seq", raw=f'{{"steps":[{text}]}}')
            yield submit("co:broadcast", raw=f'{{"packet":{text}}}')
        for text in objects({"key": '"k"', "retry": "2", "traceparent": f'"00-{"a" * 32}-{"b" * 16}-01"'}):
            for key in ("df:echo", "cf:own", "rm:own", "df:none"):
                yield frame(body(key, 1)[:-2] + f',"metadata":{text}}}}}')

    await a.persist(frames, on_message=telling(a))


@attack("frames")
async def attached(a: Assault) -> None:
    """One packet sent a hundred thousand times while it runs: each is attached to it, and all are answered at once."""

    async def attach() -> None:
        link = await a.link()
        for n in itertools.count():
            same = submit("df:hold", "x" * 1000, id=f"attached-{a.name}-{n}", seq=1, timeout_ms=700)
            await a.flood(link, itertools.repeat(same, 50_000))
            await asyncio.sleep(0.2)

    await together(attach(), attach())


@attack("frames")
async def long_ids(a: Assault) -> None:
    """Ids of 128 bytes, all different: what outcomes are remembered by."""
    filler = "".join(random.Random(a.name).choices(string.ascii_letters, k=100))
    await a.persist(lambda: submits("df:echo", "x", id=f"{filler}-{NUMBER}"), read=False)


@attack("frames")
async def colliding_ids(a: Assault) -> None:
    """Ids, and elements, made to collide in a multiplicative hash whatever its key: a bit flipped and taken back."""
    chosen = random.Random(a.name)

    def variants(blocks: int, base: str) -> Iterator[str]:
        # the highest bit but one of eight bytes, and in the next eight what is left of it
        for choice in range(1 << blocks):
            text = [ord(letter) for letter in base]
            for block in range(blocks):
                if choice >> block & 1:
                    for place in (7, 11, 15):
                        text[16 * block + place] ^= 0x40
            yield "".join(map(chr, text))

    def frames() -> Iterator[bytes]:
        for _ in range(100):
            for n, packet_id in enumerate(variants(8, "".join(chosen.choices("mnpqrstuv", k=128)))):
                yield submit("df:echo", 1, id=packet_id, seq=n + 1)
            for element in variants(4, "".join(chosen.choices("mnpqrstuv", k=64))):
                yield submit(f"df:{element}", 1)

    await a.persist(frames)


@attack("frames")
async def same_id(a: Assault) -> None:
    """One id from two connections, with the same payload, another, and while it runs."""

    def frames() -> Iterator[bytes]:
        for n in range(2000):
            for key, data in (
                ("df:slow", 1),
                ("df:slow", 1),
                ("df:slow", 2),
                ("df:echo", 1),
                ("cf:seq", {"steps": []}),
            ):
                yield submit(key, data, id=f"same-{a.name}-{n}", seq=n + 1)

    await together(a.persist(frames), a.persist(frames))
