"""Packets, announcements and queues: what the gateway's tables and lines are made of."""

from __future__ import annotations

import asyncio
import itertools
import time

from benchmarks.attacks.answers import reactor
from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.wire import NUMBER, heartbeat, refusal, result, submit, submits


@attack("heartbeats")
async def large_announcements(a: Assault) -> None:
    """Heartbeats of a megabyte of capabilities, each time others."""
    frames = [
        heartbeat(reactor=f"large{n}", capabilities=[f"df:{n}.{m}.{'c' * 40}" for m in range(14_000)])
        for n in range(20)
    ]
    await a.persist(lambda: frames)


@attack("heartbeats")
async def many_names(a: Assault) -> None:
    """Another name with each heartbeat."""
    await a.persist(lambda: (heartbeat(reactor=f"n{n}-{'x' * 100}", window=16) for n in itertools.count()))


@attack("heartbeats")
async def many_extensions(a: Assault) -> None:
    """Lists of extensions that never were."""
    await a.persist(lambda: (heartbeat(ext=[f"e{n}.{m}" for m in range(500)]) for n in itertools.count()))


@attack("heartbeats")
async def window_flaps(a: Assault) -> None:
    """A window that is one and 2^53 - 1 in turn, while packets wait for room."""
    link = await reactor(a, lambda seq, name: [result(seq, name)], "df:flaps", window=1)
    beats = [heartbeat(reactor="flaps", capabilities=["df:flaps"], window=w) for w in (1, 2**53 - 1, 0, 1, -1, 256)]
    while True:
        await a.flood(link, itertools.chain(submits("df:flaps", 1, count=200), beats))
        await asyncio.sleep(0)


@attack("heartbeats")
async def announces_and_takes_back(a: Assault) -> None:
    """A thousand elements announced and taken back, again and again, with packets for them between."""
    lists = [
        heartbeat(reactor="back", window=16, capabilities=[f"df:b{k}.{n}" for n in range(1000)] if k else [])
        for k in (0, 1, 2)
    ]
    await a.persist(
        lambda: (f for n in range(100) for f in (*lists, *submits(f"df:b1.{n}", 1, count=3, timeout_ms=50)))
    )


@attack("heartbeats")
async def many_announcements(a: Assault) -> None:
    """A thousand and twenty-four elements on each of a hundred connections, all different."""
    for number in range(100):
        await reactor(a, lambda seq, name: [result(seq, name)], *(f"df:a{number}.{n}" for n in range(1024)))
    while True:
        for number, link in enumerate(a.open):
            await a.flood(
                link,
                itertools.chain.from_iterable(submits(f"df:a{number}.{n}", 1, count=1) for n in range(0, 1024, 16)),
            )
        await asyncio.sleep(0.01)


@attack("heartbeats")
async def others_names(a: Assault) -> None:
    """The names of others, taken, left and taken again: their reactions, locks and places are not to be had so."""
    while True:
        for name in ("victim", "worker"):
            link = await a.link(reactor=name)
            link.write(heartbeat(reactor="another"))
            await a.flood(link, submits("rm:lock", {"key": f"own{NUMBER}"}, count=3))
            link.write(heartbeat(reactor=name))
            await asyncio.sleep(0.01)
            a.leave(link)


@attack("packets")
async def echoes(a: Assault) -> None:
    """Nothing but valid packets, as fast as they are taken."""
    await together(*(a.persist(lambda: submits("df:echo", "x" * 20)) for _ in range(4)))


@attack("packets")
async def urgent_packets(a: Assault) -> None:
    """A flood of packets of the highest priority."""
    await together(
        a.persist(lambda: submits("df:slow", 1, priority=10)), a.persist(lambda: submits("df:echo", 1, priority=10))
    )


@attack("packets")
async def events(a: Assault) -> None:
    """A flood of events, which never wait behind queued work."""
    await together(*(a.persist(lambda: submits("ed:own", 1)) for _ in range(3)))


@attack("packets")
async def slow_handler(a: Assault) -> None:
    """More packets for a handler of 50 ms than it can ever do: others' handlers must not wait for them."""
    await together(*(a.persist(lambda: submits("df:slow", 1)) for _ in range(3)))


@attack("packets")
async def held_handlers(a: Assault) -> None:
    """Packets for a handler that never ends, with the longest deadline and a megabyte each."""
    await a.persist(lambda: submits("df:hold", "x" * 1_000_000, timeout_ms=300_000))


@attack("packets")
async def short_deadlines(a: Assault) -> None:
    """Deadlines of a millisecond, in a handler that never ends."""
    await a.persist(lambda: submits("df:hold", 1, timeout_ms=1))


@attack("packets")
async def short_deadlines_routed(a: Assault) -> None:
    """Deadlines of a millisecond, at a reactor that never answers and in the queue before it."""
    link = await reactor(a, lambda seq, name: [], "df:short", window=64)
    await a.flood(link, submits("df:short", 1, timeout_ms=1))


@attack("packets")
async def unknown_elements(a: Assault) -> None:
    """Elements that nobody has, each another."""
    await a.persist(lambda: submits(f"df:u{NUMBER}", 1))


@attack("packets")
async def unknown_elements_of_many(a: Assault) -> None:
    """Elements that nobody has, in every group, with a queue for each: their reactor came, and went."""
    for n in itertools.count():
        link = await reactor(a, lambda seq, name: [], *(f"co:g{n}.{m}" for m in range(1000)), window=1)
        await a.flood(link, itertools.chain.from_iterable(submits(f"co:g{n}.{m}", 1, count=2) for m in range(1000)))
        await asyncio.sleep(0.01)
        a.leave(link)


@attack("packets")
async def lanes(a: Assault) -> None:
    """Another `metadata.key` with each packet, for handlers that keep a line for each."""
    metadata = {"key": f"{NUMBER}-{'k' * 100}"}
    await together(
        a.persist(lambda: submits("cf:own", {"key": NUMBER}, metadata=metadata)),
        a.persist(lambda: submits("rm:own", {"key": NUMBER}, metadata=metadata)),
    )


@attack("packets")
async def one_lane(a: Assault) -> None:
    """One key for every packet: one handler at a time, and everything waits."""
    await a.persist(lambda: submits("rm:own", "x" * 5000, metadata={"key": "one"}))


@attack("packets")
async def waiting_for_room(a: Assault) -> None:
    """Packets of 100 kB that wait for room at a reactor with a window of one which never answers."""
    link = await reactor(a, lambda seq, name: [], "df:room", window=1)
    await a.flood(link, submits("df:room", "x" * 100_000, timeout_ms=300_000))


@attack("packets")
async def dependency_star(a: Assault) -> None:
    """Three thousand packets that wait for the same sixty-four, which never come."""
    awaited = [f"never-{a.name}-{n}" for n in range(64)]
    await a.persist(lambda: submits("df:echo", 1, dependencies=awaited, count=3000, timeout_ms=60_000))


@attack("packets")
async def dependency_chain(a: Assault) -> None:
    """Packets that each wait for the one before, and the first for what never comes."""

    async def chain(name: str) -> None:
        link = await a.link()
        await a.flood(link, (submit("df:echo", 1, id=f"{name}-{n}", seq=n, timeout_ms=60_000,
                                    dependencies=[f"{name}-{n - 1}"]) for n in range(1, 3001)))  # fmt: skip
        await a.flood(link, [submit("df:echo", 1, id=f"{name}-0", seq=5000)])
        a.leave(link)

    for n in itertools.count():
        await chain(f"chain-{a.name}-{n}")
        await asyncio.sleep(0.05)


@attack("packets")
async def dependency_backwards(a: Assault) -> None:
    """Packets that wait for the one that comes after them, sixty-four edges each: a graph walked for every packet."""
    for turn in itertools.count():
        link = await a.link()
        name = f"back-{a.name}-{turn}"
        await a.flood(link, (submit("df:echo", 1, id=f"{name}-{n}", seq=n + 1, timeout_ms=60_000,
                                    dependencies=[f"{name}-{n + k}" for k in range(1, 65)])
                             for n in range(3000)))  # fmt: skip
        await asyncio.sleep(0.05)
        a.leave(link)


@attack("packets")
async def dependency_cycles(a: Assault) -> None:
    """Rings of a thousand packets that wait for one another."""
    for turn in itertools.count():
        link = await a.link()
        await a.flood(link, (submit("df:echo", 1, id=f"ring-{a.name}-{turn}-{n}", seq=n + 1, timeout_ms=60_000,
                                    dependencies=[f"ring-{a.name}-{turn}-{(n + 1) % 1000}"])
                             for n in range(1000)))  # fmt: skip
        await asyncio.sleep(0.01)
        a.leave(link)


@attack("packets")
async def aliases(a: Assault) -> None:
    """Two-letter codes for steps in steps, and a reactor that takes their place and refuses."""
    link = await reactor(a, lambda seq, name: [refusal(seq, name, "PF001")], "df:tr", "df:ag", "df:pr")
    step: dict[str, object] = {"group": "df", "element": "tr", "data": {"input": 1, "expression": "@"}}
    for _ in range(14):
        step = {"group": "cf", "element": "lp", "data": {"times": 2, "step": step}}
    await together(
        a.flood(link, submits("cf:lp", {"times": 2, "step": step})),
        a.persist(lambda: submits("df:tr", {"input": [3, 1], "expression": "sort(@)"})),
    )


@attack("packets")
async def forbidden(a: Assault) -> None:
    """What only an operator may do, alone and inside of others' elements."""
    step = {"group": "mc", "element": "migrate", "data": {"from": "worker"}}
    inner = [("cf:seq", {"steps": [step]}), ("co:gather", {"packets": [step] * 50}),
             ("ed:timer", {"packet": step, "every_ms": 10}), ("co:broadcast", {"packet": step}),
             ("ed:react", {"event": "victim.*", "packet": step}),
             ("rm:cache", {"op": "fill", "key": "m", "ttl_ms": 1, "step": step})]  # fmt: skip
    inner += [(f"mc:{name}", {"from": "worker", "set": {"window": 1}, "reactor": "worker"})
              for name in ("migrate", "mg", "tune", "spawn", "sp", "scale")]  # fmt: skip
    await a.persist(lambda: (submit(key, data) for _ in range(100) for key, data in inner))


@attack("links")
async def comings_and_goings(a: Assault) -> None:
    """Connections that submit one packet and leave, while the table of packets is large."""
    for number in range(8):
        link = await reactor(a, lambda seq, name: [], f"df:table{number}", window=4096)
        await a.flood(link, submits(f"df:table{number}", 1, count=4000, timeout_ms=300_000))
    a.tally["table"] = 32_000

    async def come_and_go() -> None:
        for n in itertools.count():
            try:
                link = await a.link()
                await link.send(submit(("df:table0", "df:hold", "df:slow")[n % 3], 1))
                await asyncio.sleep(0)
                a.leave(link)
            except OSError:
                await asyncio.sleep(0.001)

    await together(*(come_and_go() for _ in range(8)))


@attack("links")
async def many_links(a: Assault) -> None:
    """Two thousand connections, each with a name, a thousand bytes under way and a heartbeat now and then."""
    links = []
    for n in range(2000):
        links.append(await a.link(reactor=f"many{n}", capabilities=[f"df:m{n}"], window=16))
        links[-1].write(submit(f"df:m{n}", "x" * 1000, timeout_ms=60_000))
    while True:
        for n, link in enumerate(links):
            link.write(heartbeat(reactor=f"many{n}", capabilities=[f"df:m{n}"], window=16))
            if n % 100 == 0:
                await asyncio.sleep(0.001)


@attack("links")
async def megabytes_of_many(a: Assault) -> None:
    """Two hundred connections that hold as much as they may, each: the total is shared."""

    async def hold(number: int) -> None:
        link = await reactor(a, lambda seq, name: [], f"df:hold{number}", window=2**40)
        await a.flood(link, submits(f"df:hold{number}", "x" * 200_000, timeout_ms=300_000, metadata={"retry": 9}))

    await together(*(hold(number) for number in range(200)))


@attack("principals", config='[roles.everyone]\nsubmit = ["*:*"]\nhandle = ["df:mine*", "ed:*"]\n'
                             '[roles.worker]\nsubmit = ["*:*"]\nhandle = ["df:work"]\n[anonymous]\nrole = "everyone"\n'
                             '[principals.works]\nrole = "worker"\ntokens = ["{worker}"]\n')  # fmt: skip
async def false_announcements(a: Assault) -> None:
    """Strangers who announce the worker's name and element without the right, and answer with forgeries."""

    def forge(seq: bytes, name: bytes) -> list[bytes]:
        a.breach("was sent a packet of an element that it may not handle")
        return [result(seq, name, '"status":"success","data":"forged"')]

    while True:
        links = [await reactor(a, forge, "df:work", "df:local", reactor="worker") for _ in range(20)]
        links.append(await reactor(a, forge, handles="df:work", reactor="worker"))
        ends = time.monotonic() + 0.3
        while time.monotonic() < ends:
            for link in links:
                await a.flood(link, submits("df:echo", 1, count=10))
                link.write(
                    heartbeat(reactor="worker", capabilities=["df:work", "df:mine", "mc:tune"], window=2**53 - 1)
                )
            await asyncio.sleep(0.01)
        for link in links:
            a.leave(link)


def principal(name: str, role: str) -> str:
    return f'[principals.{name}]\nrole = "{role}"\ntokens = ["{{{name}}}"]\n'


EVERYONE = """
[roles.everyone]
submit = ["*:*"]
handle = ["*:*"]
[roles.operator]
submit = ["*:*"]
admin = true
[anonymous]
role = "everyone"
"""
OLD, KEPT, NEW = principal("old", "everyone"), principal("kept", "everyone"), principal("new", "operator")


@attack("principals", config=EVERYONE + principal("poor", "everyone") + "rate = 50\nburst = 50\n")
async def more_than_its_rate(a: Assault) -> None:
    """A principal of fifty packets a second who has workflows, broadcasts, timers and reactions submit for it."""
    began = time.monotonic()

    def answer(seq: bytes, name: bytes) -> list[bytes]:
        if a.tally["handled"] > 50 + 60 * (time.monotonic() - began + 1):
            a.breach("had more done than its rate allows")
        return [result(seq, name)]

    await reactor(a, answer, "df:dear")
    dear = {"group": "df", "element": "dear", "data": 1}
    broadcast = {"group": "co", "element": "broadcast", "data": {"packet": dear, "wait": False}}
    packets = [("cf:loop", {"times": 900, "step": broadcast}), ("co:gather", {"packets": [dear] * 900}),
               ("ed:timer", {"packet": broadcast, "every_ms": 10}), ("co:vote", {"packet": dear}),
               ("df:transform", {"input": [1] * 900, "map": broadcast}),
               ("ed:react", {"event": "rate", "packet": dear}), ("ed:signal", {"event": "rate"}),
               ("cf:loop", {"times": 900, "step": dear})]  # fmt: skip
    link = await a.link(token="poor", reactor="poor")
    while True:
        await a.flood(link, (submit(key, data, timeout_ms=2000) for key, data in packets))
        await asyncio.sleep(0.05)


@attack("principals", config=EVERYONE + OLD + KEPT)
async def reloads(a: Assault) -> None:
    """A configuration that is read again and again, each time with other principals: none may have another's things."""
    configs = [EVERYONE + KEPT + NEW, EVERYONE + NEW, EVERYONE + OLD + KEPT, EVERYONE + KEPT + OLD]
    tune = {"group": "mc", "element": "tune", "data": {"reactor": "worker"}}

    def seen(link: object, text: bytes) -> None:
        if b'"type":"result"' in text and (b'"cancelled":true' in text or b'"window"' in text):
            a.breach(f"had another's rights or things: {text[:120]!r}")

    for config in itertools.cycle(configs):
        for token in ("old", "kept", "new"):
            try:
                link = await a.link(token=token, reactor=f"of-{token}", on_message=seen if token != "new" else None)
            except OSError:
                continue  # it is not in the file just now
            packets = [("ed:timer", {"id": f"t-{token}", "every_ms": 20, "packet": tune}),
                       ("rm:lock", {"key": f"l-{token}"}), ("ed:signal", {"event": "tick"}),
                       ("ed:react", {"id": f"r-{token}", "event": "tick", "packet": tune})]  # fmt: skip
            packets += [("ed:timer", {"cancel": f"t-{other}"}) for other in ("old", "kept", "new") if other != token]
            packets += [("ed:react", {"cancel": f"r-{other}"}) for other in ("old", "kept", "new") if other != token]
            if token != "new":
                packets.append(("mc:tune", {}))
            await a.flood(link, (submit(key, data) for key, data in packets))
        await asyncio.sleep(0.1)
        a.reload(config)
        await asyncio.sleep(0.1)
        for link in list(a.open):
            a.leave(link)
