"""The standard elements: little that is asked for, much that is done or kept."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from benchmarks.attacks.answers import reactor
from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.wire import NUMBER, result, submit, submits


def step(key: str, data: Any = None, **more: Any) -> dict[str, Any]:
    group, _, element = key.partition(":")
    return {"group": group, "element": element, "data": data, **more}


async def again(a: Assault, key: str, data: Any, count: int = 50, **fields: Any) -> None:
    """The same packet again and again, `count` at once."""
    await a.persist(lambda: submits(key, data, count=count, **fields))


@attack("workflows")
async def loop_collect(a: Assault) -> None:
    """Two hundred bytes that collect ten thousand results of 900 kB."""
    await again(a, "cf:loop", {"times": 10_000, "max_iterations": 10_000, "collect": True, "step": step("df:big")}, 4)


@attack("workflows")
async def nested_maps(a: Assault) -> None:
    """A map of a map of large results."""
    inner = step("df:transform", {"input": list(range(1000)), "map": step("df:big")})
    await again(a, "df:transform", {"input": list(range(1000)), "map": inner, "concurrency": 1024}, 4)


@attack("workflows")
async def large_gathers(a: Assault) -> None:
    """A thousand large results gathered."""
    await again(a, "co:gather", {"packets": [step("df:big")] * 1000, "concurrency": 1024}, 4)


@attack("workflows")
async def named_results(a: Assault) -> None:
    """A sequence that keeps a thousand large results by name."""
    await again(a, "cf:seq", {"steps": [step("df:big", **{"as": f"r{n}"}) for n in range(999)]}, 4)


@attack("workflows")
async def large_references(a: Assault) -> None:
    """Sixty references of 8 kB, each an expression to be parsed and computed."""
    text = "[" + ",".join(["input.a"] * 120) + "]"
    data = [{"$": text} for _ in range(60)]
    await again(a, "cf:seq", {"input": {"a": list(range(100))}, "steps": [step("df:echo", data)]}, 20)


@attack("workflows")
async def branch_conditions(a: Assault) -> None:
    """Sixty conditions that each compute for as long as one may."""
    dear = "length([" + ",".join(["input.a[?@ < `0`]"] * 10) + "]) > `100`"
    cases = [{"when": dear, "then": step("df:echo")}] * 60
    await again(a, "cf:branch", {"input": {"a": list(range(9000))}, "cases": cases}, 10)


@attack("workflows")
async def loop_conditions(a: Assault) -> None:
    """The same in the condition of a loop, before each of ten thousand iterations, and in references and results."""
    dear = "length([" + ",".join(["input.a[?@ < `0`]"] * 10) + "]) > `1`"
    numbers = list(range(9000))
    loop = {"while": dear, "max_iterations": 10_000, "input": {"a": numbers}, "step": step("df:echo", {"$": dear})}
    await together(
        again(a, "cf:loop", loop, 5),
        again(a, "cf:seq", {"input": {"a": numbers}, "steps": [step("df:echo", {"$": dear})] * 900, "return": dear}, 5),
    )


@attack("workflows")
async def endless_loops(a: Assault) -> None:
    """Loops whose condition always holds, of steps that cost nothing: ten thousand iterations each."""
    await again(a, "cf:loop", {"while": "`true`", "max_iterations": 10_000, "step": step("df:echo", 1)}, 1000)


@attack("workflows")
async def loops_in_loops(a: Assault) -> None:
    """Loops in loops, fifteen deep: the product is what is done."""
    inner = step("df:echo", 1)
    for _ in range(14):
        inner = step("cf:loop", {"times": 10, "step": inner})
    await again(a, "cf:loop", {"times": 10, "step": inner}, 100)


@attack("workflows")
async def folds(a: Assault) -> None:
    """Folds whose value doubles with each step."""
    twice = step("df:transform", {"input": {"$": "prev"}, "expression": "[@, @]"})
    await together(
        again(a, "df:reduce", {"input": list(range(10_000)), "with": twice, "initial": "x" * 1000}, 10),
        again(a, "cf:loop", {"times": 1000, "input": [1], "step": twice}, 10),
    )


def _expressions(input: Any, *texts: str) -> Any:
    async def run(a: Assault) -> None:
        await together(*(again(a, "df:transform", {"input": input, "expression": text}, 4) for text in texts))

    return run


@attack("expressions")
async def reversed_copies(a: Assault) -> None:
    """`map(&reverse(@), @)` and its like, whose copies are nobody's nodes."""
    await _expressions(["x" * 900] * 900, "map(&reverse(@), @)", "map(&reverse(@), map(&reverse(@), @))",
                       "map(&join('', [@, @, @, @, @, @, @, @]), @)")(a)  # fmt: skip


@attack("expressions")
async def doubled_lists(a: Assault) -> None:
    """Lists that double with every pipe."""
    await _expressions([1], " | ".join(["[@, @]"] * 60), " | ".join(["[@[], @[], @[]][]"] * 60),
                       "[" + ",".join(["@"] * 500) + "]", " | ".join(["[to_string(@), to_string(@)]"] * 25),
                       " | ".join(["to_string([@, @])"] * 25))(a)  # fmt: skip


@attack("expressions")
async def sorted_lists(a: Assault) -> None:
    """Sorting, finding and grouping over the longest lists, within one another."""
    await _expressions([{"a": [9 * n % 7919 for n in range(300)], "b": str(n)} for n in range(700)],
                       "sort_by(@, &to_string(a))", "max_by(@, &length(to_string(sort(a))))", "@[?contains(a, `-1`)]",
                       "@[].a | sort(@) | reverse(@) | sort(@)", "map(&sort(a), @) | map(&sum(@), @)",
                       "@[?to_string(@) > to_string(a)]")(a)  # fmt: skip


@attack("expressions")
async def long_texts(a: Assault) -> None:
    """Texts of a megabyte printed, joined and searched again and again."""
    await _expressions({"t": "ab" * 400_000, "l": ["x" * 80] * 5}, f"contains(t, '{'ab' * 20}aa')", "join(t, l)",
                       "[" + ",".join(["to_string(@)"] * 60) + "]", "[" + ",".join(["reverse(t)"] * 90) + "]",
                       "[" + ",".join(["length(t)"] * 90) + "]")(a)  # fmt: skip


@attack("expressions")
async def new_expressions(a: Assault) -> None:
    """An expression of a kilobyte with each packet, always another: a cache of those compiled is no help."""
    await a.persist(
        lambda: submits("df:transform", {"input": {}, "expression": "a" + ".b[0] | [c.d, e]" * 55 + f".x{NUMBER}"})
    )


@attack("expressions")
async def merged_objects(a: Assault) -> None:
    """Fifty thousand objects merged into one."""
    await again(a, "df:reduce", {"input": [{f"k{n}": 1} for n in range(50_000)], "op": "merge"}, 5)


@attack("expressions")
async def concatenated(a: Assault) -> None:
    """Lists and texts concatenated one by one."""
    await together(
        again(a, "df:reduce", {"input": [[n] * 10 for n in range(30_000)], "op": "concat"}, 5),
        again(a, "df:reduce", {"input": ["x" * 20] * 40_000, "op": "concat"}, 5),
    )


@attack("events")
async def fast_timers(a: Assault) -> None:
    """A hundred and twenty timers of a millisecond, whose missed firings were made up, and a gateway stood still."""
    link = await a.link()
    timers = [{"packet": step("df:echo", 1), "every_ms": every} for every in [1] * 120 + [0.001, 0, 5, 9]]
    await a.flood(link, (submit("ed:timer", timer) for timer in timers))
    await a.rest()


@attack("events")
async def many_timers(a: Assault) -> None:
    """Ten thousand timers of the shortest interval, whose steps are workflows."""
    link = await a.link()
    inner = step("cf:seq", {"steps": [step("df:echo", 1)] * 5})
    await a.ask(link, submits("ed:timer", {"packet": inner, "every_ms": 10}, count=10_000))
    await a.rest()


@attack("events")
async def large_timers(a: Assault) -> None:
    """Ten thousand timers that hold a megabyte each."""
    link = await a.link()
    await a.ask(
        link,
        submits("ed:timer", {"packet": step("df:echo", "x" * 1_000_000), "after_ms": 80_000_000}, count=10_000),
        20,
    )
    await a.rest()


@attack("events")
async def own_signals(a: Assault) -> None:
    """Reactions that signal the event that they react to."""
    link = await a.link()
    await a.flood(
        link,
        submits(
            "ed:react", {"event": f"own.{a.name}", "packet": step("ed:signal", {"event": f"own.{a.name}"})}, count=10
        ),
    )
    while True:
        await a.flood(link, submits("ed:signal", {"event": f"own.{a.name}"}, count=1))
        await asyncio.sleep(0.1)


@attack("events")
async def signals_to_and_fro(a: Assault) -> None:
    """Two reactions that signal to one another, for ever, with timers to wake them again."""
    link = await a.link()
    for this, that in (("ping", "pong"), ("pong", "ping")):
        await a.flood(link, submits("ed:react", {"event": this, "packet": step("ed:signal", {"event": that})}, count=2))
    await a.flood(link, submits("ed:timer", {"every_ms": 10, "packet": step("ed:signal", {"event": "ping"})}, count=10))
    await a.rest()


@attack("events")
async def growing_tree(a: Assault) -> None:
    """Reactions to a prefix that each signal a longer name under it: ten times as many a level."""
    link = await a.link()
    signal = step("ed:signal", {"event": {"$": "join('.', [event.name, 'x'])"}, "payload": {"$": "[event, event]"}})
    await a.flood(link, submits("ed:react", {"event": "tree*", "packet": signal}, count=10))
    while True:
        await a.flood(link, submits("ed:signal", {"event": "tree", "payload": 1}, count=1))
        await asyncio.sleep(0.1)


@attack("events")
async def large_signals(a: Assault) -> None:
    """Signals of 900 kB to ten thousand reactions, each of which takes it along."""
    link = await a.link()
    await a.ask(
        link, submits("ed:react", {"event": "large", "packet": step("df:echo", {"$": "event.payload"})}, count=9990)
    )
    while True:
        await a.flood(link, submits("ed:signal", {"event": "large", "payload": "x" * 900_000}, count=2))
        await asyncio.sleep(0.05)


@attack("events")
async def large_reactions(a: Assault) -> None:
    """Reactions that hold a megabyte each: bounded in number, once, and not in bytes."""
    link = await a.link()
    await a.ask(
        link, submits("ed:react", {"event": "never", "packet": step("df:echo", "x" * 1_000_000)}, count=10_000), 20
    )
    await a.rest()


@attack("events")
async def watchers(a: Assault) -> None:
    """Watchers of the same and of other names, as many as there may be, and signals that wake them all."""

    async def signals() -> None:
        link = await a.link()
        while True:
            await a.flood(link, submits("ed:signal", {"event": "watched.all", "payload": "x" * 10_000}, count=5))
            await asyncio.sleep(0.02)

    await together(
        a.persist(lambda: submits("ed:watch", {"event": "watched.*"}, count=3000)),
        a.persist(lambda: submits("ed:watch", {"event": f"w{NUMBER}*"}, count=3000)),
        signals(),
    )


@attack("events")
async def large_events(a: Assault) -> None:
    """A thousand latest events of a megabyte, kept for a watcher who never comes back."""

    async def signals() -> None:
        link = await a.link()
        for n in itertools.cycle(range(50)):
            await a.flood(link, submits("ed:watch", {"event": f"kept{n}", "wait_ms": 1}, count=1))
            await a.flood(link, submits("ed:signal", {"event": f"kept{n}", "payload": "x" * 1_000_000}, count=5))

    await signals()


@attack("together")
async def large_votes(a: Assault) -> None:
    """Six hundred votes of 7 kB on one ballot, then on the next."""
    link = await a.link()
    for ballot in itertools.count():
        vote = {"ballot": f"b{ballot}", "choice": f"{NUMBER}{'v' * 7000}", "voters": 10_000}
        await a.flood(link, submits("co:vote", vote, count=600, timeout_ms=20_000))
        await asyncio.sleep(0.1)


@attack("together")
async def large_barriers(a: Assault) -> None:
    """A barrier of ten thousand parties that bring 64 kB each: everyone is to get all of it."""
    link = await a.link()
    await a.flood(link, submits("co:sync", {"barrier": "large", "parties": 10_000, "data": "x" * 64_000}))


@attack("together")
async def full_barriers(a: Assault) -> None:
    """Barriers that fill: a hundred parties of 9 kB, each of which gets 900 kB."""
    link = await a.link()
    for n in itertools.count():
        await a.flood(link, submits("co:sync", {"barrier": f"full{n}", "parties": 100, "data": "x" * 9000}, count=100))
        await asyncio.sleep(0.01)


@attack("together")
async def large_broadcasts(a: Assault) -> None:
    """A megabyte to fifty reactors that do not read, again and again."""
    for _ in range(50):
        link = await reactor(a, lambda seq, name: [], "df:all", window=2**30)
        link.transport.pause_reading()
    await again(a, "co:broadcast", {"packet": step("df:all", "x" * 1_000_000)}, 20, timeout_ms=20_000)


@attack("together")
async def broadcasts_unawaited(a: Assault) -> None:
    """Broadcasts that nobody waits for, in a loop, to fifty reactors that answer a megabyte."""
    long = f'"status":"success","data":"{"x" * 900_000}","duration_ms":1'
    for _ in range(50):
        await reactor(a, lambda seq, name: [result(seq, name, long)], "df:unawaited", window=2**30)
    loop = {"times": 1000, "step": step("co:broadcast", {"packet": step("df:unawaited", "x" * 1000), "wait": False})}
    await again(a, "cf:loop", loop, 20)


@attack("together")
async def large_ballots(a: Assault) -> None:
    """A vote among fifty reactors whose every vote is 900 kB, and another."""
    numbers = itertools.count()

    def answer(seq: bytes, name: bytes) -> list[bytes]:
        return [result(seq, name, f'"status":"success","data":"{next(numbers)}{"x" * 900_000}"')]

    for _ in range(50):
        await reactor(a, answer, "df:opinion", window=2**30)
    await again(a, "co:vote", {"packet": step("df:opinion"), "need": 50}, 4)


@attack("waiting")
async def gate_waits(a: Assault) -> None:
    """Fifteen hundred waits at a gate, with a megabyte of metadata each."""
    await a.persist(lambda: submits("cf:gate", {"gate": "never", "action": "wait"}, count=1500, timeout_ms=300_000,
                                    metadata={"x": "m" * 1_000_000}))  # fmt: skip


@attack("waiting")
async def crowded_gate(a: Assault) -> None:
    """As many waiters at one gate as there may be, which is opened and closed all the time."""

    async def swing() -> None:
        link = await a.link()
        while True:
            await a.flood(
                link, (submit("cf:gate", {"gate": "swing", "action": action}) for action in ("open", "close"))
            )
            await asyncio.sleep(0.01)

    await together(
        swing(),
        *(a.persist(lambda: submits("cf:gate", {"gate": "swing", "action": "wait"}, count=4000)) for _ in range(3)),
    )


@attack("waiting")
async def crowded_lock(a: Assault) -> None:
    """Thousands who wait for one lock, and leave it at once when they have it."""
    held = {"key": "crowded", "wait_ms": 20_000, "step": step("df:echo", 1)}
    await together(*(a.persist(lambda: submits("rm:lock", held, count=3000)) for _ in range(3)))


@attack("waiting")
async def fills(a: Assault) -> None:
    """Thousands who ask for what one computes, which is a megabyte, and for what never comes."""
    await together(
        a.persist(
            lambda: submits("rm:cache", {"op": "fill", "key": "big", "ttl_ms": 1, "step": step("df:big")}, count=200)
        ),
        a.persist(
            lambda: submits("rm:cache", {"op": "fill", "key": NUMBER, "ttl_ms": 1, "step": step("df:hold")}, count=2000)
        ),
    )
