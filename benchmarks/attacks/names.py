"""What is kept under names: streams, the cache, pools, locks, gates, ballots."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from benchmarks.attacks.attacker import Assault, attack, together
from benchmarks.attacks.wire import NUMBER, submit, submits


@attack("names")
async def full_streams(a: Assault) -> None:
    """Streams of a megabyte an item, until they are full, and the next one."""
    link = await a.link()
    for n in itertools.count():
        await a.ask(
            link, submits("df:produce", {"stream": f"full{n}", "items": ["x" * 1_000_000], "wait_ms": 1}, count=70), 10
        )
        await asyncio.sleep(0)


@attack("names")
async def small_items(a: Assault) -> None:
    """A hundred thousand items of one digit in each stream: what they cost is not their bytes."""
    items = [1] * 10_000
    link = await a.link()
    for n in itertools.count():
        await a.ask(link, submits("df:produce", {"stream": f"small{n}", "items": items, "wait_ms": 1}, count=10))
        await asyncio.sleep(0)


@attack("names")
async def many_consumers(a: Assault) -> None:
    """A consumer name with each packet, all of whom take and never acknowledge."""
    link = await a.link()
    await a.flood(link, submits("df:produce", {"stream": "read", "items": list(range(1000))}, count=1))
    await a.ask(
        link, submits("df:consume", {"stream": "read", "consumer": NUMBER, "redeliver_after_ms": 1, "wait_ms": 1})
    )


@attack("names")
async def redelivered(a: Assault) -> None:
    """Items that come again every millisecond, until they are dead, and streams of the dead of the dead."""
    link = await a.link()
    while True:
        for stream in ("re", "re.dead", "re.dead.dead"):
            await a.flood(link, submits("df:produce", {"stream": stream, "items": [1] * 500, "wait_ms": 1}, count=2))
            take = {"stream": stream, "max": 10_000, "redeliver_after_ms": 1, "wait_ms": 1}
            await a.ask(link, submits("df:consume", take, count=20))
        await asyncio.sleep(0.005)


@attack("names")
async def full_cache(a: Assault) -> None:
    """Values of a megabyte under ever new keys."""
    await a.persist(
        lambda: submits("rm:cache", {"op": "set", "key": f"c{NUMBER}", "value": "x" * 1_000_000}, count=500)
    )


@attack("names")
async def many_keys_cached(a: Assault) -> None:
    """Small values under ever new keys of 250 bytes, and lists of them all."""
    await together(
        a.persist(lambda: submits("rm:cache", {"op": "set", "key": f"c{NUMBER}{'k' * 230}", "value": 1})),
        a.persist(lambda: submits("rm:cache", {"op": "list", "key": "c"}, count=20)),
    )


@attack("names")
async def counted(a: Assault) -> None:
    """One key set, counted and deleted without a pause, with thousands who watch it."""
    changes = [{"op": "set", "key": "hot", "value": 1}, {"op": "incr", "key": "hot"}, {"op": "delete", "key": "hot"}]
    await together(
        a.persist(lambda: submits("ed:watch", {"key": "hot"}, count=2000)),
        a.persist(lambda: (submit("rm:cache", change) for _ in range(300) for change in changes)),
    )


KINDS: dict[str, tuple[str, Any]] = {
    "gates": ("cf:gate", {"gate": f"g{NUMBER}", "action": "open"}),
    "pools": ("rm:alloc", {"pool": f"p{NUMBER}", "capacity": 5, "ttl_ms": 86_400_000}),
    "locks": ("rm:lock", {"key": f"l{NUMBER}", "ttl_ms": 86_400_000}),
    "streams": ("df:produce", {"stream": f"s{NUMBER}", "items": [1]}),
    "barriers": ("co:sync", {"barrier": f"b{NUMBER}", "parties": 2, "wait_ms": 1}),
    "ballots": ("co:vote", {"ballot": f"v{NUMBER}", "choice": 1, "voters": 1}),
}


def _every_name(kind: str) -> None:
    key, data = KINDS[kind]

    async def run(a: Assault) -> None:
        link = await a.link()
        await a.ask(link, submits(key, data, count=120_000))

    run.__name__ = f"every_{kind.rstrip('s')}"
    run.__doc__ = f"A hundred and twenty thousand {kind}: every name that there may be."
    attack("names")(run)


for _kind in KINDS:
    _every_name(_kind)


@attack("names")
async def many_leases(a: Assault) -> None:
    """One unit of a large pool after another, none of them freed."""
    link = await a.link()
    await a.ask(link, submits("rm:alloc", {"pool": "leases", "capacity": 1_000_000, "ttl_ms": 86_400_000}))


@attack("names")
async def short_leases(a: Assault) -> None:
    """Leases of a millisecond, and frees of what never was."""
    await together(
        a.persist(lambda: submits("rm:lock", {"key": f"l{NUMBER}", "ttl_ms": 1}, count=5000)),
        a.persist(lambda: submits("rm:free", {"lease": f"no-{NUMBER}"}, count=5000)),
    )
