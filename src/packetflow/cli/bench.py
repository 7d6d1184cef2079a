"""Load on a handler: throughput and a latency histogram."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from packetflow import Reactor
from packetflow.endpoint import parse_endpoint
from packetflow.errors import PacketFlowError

__all__ = ["bench", "render"]


class Histogram:
    """Latencies in buckets of 2.5 per cent, from 1 µs to 1,000 s: bounded however long the run."""

    STEP = math.log(1.025)
    BUCKETS = 850

    def __init__(self) -> None:
        self.counts = [0] * self.BUCKETS
        self.total = 0
        self.highest = 0.0

    def add(self, seconds: float) -> None:
        self.total += 1
        self.highest = max(self.highest, seconds)
        place = int(math.log(max(seconds, 1e-6) * 1e6) / self.STEP)
        self.counts[min(place, self.BUCKETS - 1)] += 1

    def quantile(self, share: float) -> float:
        """Seconds below which that share of the latencies lies."""
        wanted = share * self.total
        seen = 0
        for place, count in enumerate(self.counts):
            seen += count
            if seen >= wanted and count:
                return min(math.exp((place + 1) * self.STEP) / 1e6, self.highest)
        return self.highest

    def rows(self, most: int = 12) -> list[tuple[float, int]]:
        """(upper bound in seconds, count), the occupied range in at most `most` rows."""
        used = [place for place, count in enumerate(self.counts) if count]
        if not used:
            return []
        width = max(1, math.ceil((used[-1] - used[0] + 1) / most))
        return [
            (math.exp((start + width) * self.STEP) / 1e6, sum(self.counts[start : start + width]))
            for start in range(used[0], used[-1] + 1, width)
        ]


async def bench(
    endpoint: str,
    token: str | None,
    group: str,
    element: str,
    data: Any,
    connections: int,
    window: int,
    seconds: float,
) -> dict[str, Any]:
    """Keeps `window` packets in flight on each of `connections` for `seconds`."""
    histogram = Histogram()
    errors: dict[str, int] = {}
    ends = 0.0

    async def worker(reactor: Reactor) -> None:
        while (started := time.perf_counter()) < ends:
            try:
                await reactor.call(group, element, data)
            except PacketFlowError as error:
                errors[error.code] = errors.get(error.code, 0) + 1
                if error.code == "PF502":
                    return
            histogram.add(time.perf_counter() - started)

    reactors = [Reactor(endpoint, token=token, reconnect=False) for _ in range(connections)]
    try:
        for reactor in reactors:
            await reactor.start()
        try:
            await reactors[0].call(group, element, data)  # not counted; a wrong address shows at once
        except PacketFlowError as error:
            if error.code in ("PF001", "PF400", "PF502"):
                raise
        began, cpu = time.perf_counter(), time.process_time()
        ends = began + seconds
        await asyncio.gather(*(worker(reactor) for reactor in reactors for _ in range(window)))
        took, used = time.perf_counter() - began, time.process_time() - cpu
    finally:
        for reactor in reactors:
            await reactor.stop()
    answered = histogram.total
    return {
        "endpoint": parse_endpoint(endpoint).url,
        "address": f"{group}:{element}",
        "connections": connections,
        "window": window,
        "seconds": round(took, 3),
        "requests": answered,
        "per_second": round(answered / took, 1),
        "errors": errors,
        "client_cpu_us": round(1e6 * used / max(answered, 1), 3),
        "latency_us": {
            name: round(1e6 * histogram.quantile(share), 1)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
        },
        "histogram_us": [[round(1e6 * bound, 1), count] for bound, count in histogram.rows()],
    }


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.1f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.2f} s"


def render(figures: dict[str, Any]) -> str:
    """The figures for a terminal."""
    lines = [
        f"{figures['address']} at {figures['endpoint']}, {figures['connections']} connection(s) "
        f"with {figures['window']} in flight",
        f"{figures['per_second']:,.0f} requests per second ({figures['requests']:,} in {figures['seconds']:.2f} s), "
        f"{figures['client_cpu_us']:.2f} µs of client CPU each",
        "latency  " + "  ".join(f"{name} {_time(value)}" for name, value in figures["latency_us"].items()),
    ]
    if figures["errors"]:
        lines.append("errors   " + "  ".join(f"{code}: {count:,}" for code, count in sorted(figures["errors"].items())))
    most = max((count for _, count in figures["histogram_us"]), default=0)
    for bound, count in figures["histogram_us"]:
        bar = "█" * round(40 * count / most) if most else ""
        lines.append(f"  ≤ {_time(bound):>9} {count:>10,} {bar}")
    return "\n".join(lines)
