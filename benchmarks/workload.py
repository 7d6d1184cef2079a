"""The work that every comparison does, and the closed loop that asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

HELLO = "hello world"

# 20 mixed fields, 1 KiB of JSON
OBJECT: dict[str, Any] = {
    "text": "The quick brown fox jumps over the lazy dog. " * 4,
    "title": "Quarterly report on the state of the northern warehouses",
    "name": "Grace Hopper",
    "city": "Zürich",
    "email": "grace.hopper@example.org",
    "reference": "7f3b8c1e-9a52-4d4f-8d43-2b1c6f0a9e77",
    "note": 'She said: "measure, then cut" — twice.\nSecond line.',
    "count": 12_345,
    "big": 9_007_199_254_740_991,
    "negative": -42,
    "price": 19.99,
    "ratio": 0.000123,
    "active": True,
    "deleted": False,
    "parent": None,
    "tags": ["alpha", "beta", "gamma", "delta", "epsilon"],
    "scores": [1, 2, 3, 5, 8, 13, 21, 34, 55, 89],
    "address": {"street": "Bahnhofstrasse 1", "zip": "8001", "geo": [47.3769, 8.5417]},
    "history": [{"at": 1_700_000_000_000, "what": "created"}, {"at": 1_700_000_100_000, "what": "shipped"}],
    "comment": "Nothing else to report from here, all quiet so far. " * 3,
}

PAYLOADS = {"hello": HELLO, "object": OBJECT}


def work(data: Any) -> Any:
    """Upper-cases a string, or an object's ``text``."""
    if isinstance(data, str):
        return data.upper()
    data["text"] = data["text"].upper()
    return data


def expected(data: Any) -> Any:
    """What `work` makes of `data`, without changing it."""
    return data.upper() if isinstance(data, str) else {**data, "text": data["text"].upper()}


async def closed_loop(
    request: Callable[[Any], Awaitable[Any]], payload: Any, outstanding: int, seconds: float
) -> dict[str, float]:
    """Keeps `outstanding` requests in flight for `seconds`; requests per second and CPU of this process.

    The answers of the first round are checked; that round is not counted.
    """
    wanted = expected(payload)

    async def checked() -> None:
        answer = await request(payload)
        assert answer == wanted, f"expected {wanted!r}, got {answer!r}"

    await asyncio.gather(*(checked() for _ in range(outstanding)))
    done = 0
    ends = 0.0
    chunk = 1 if outstanding < 16 else 8

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < ends:
            for _ in range(chunk):
                await request(payload)
            done += chunk

    # a short warm-up at full load, then the measured stretch
    for stretch in (min(0.3, seconds / 4), seconds):
        done = 0
        started, cpu = time.perf_counter(), time.process_time()
        ends = started + stretch
        await asyncio.gather(*(worker() for _ in range(outstanding)))
        took, used = time.perf_counter() - started, time.process_time() - cpu
    return {"requests": done, "seconds": took, "cpu": used}
