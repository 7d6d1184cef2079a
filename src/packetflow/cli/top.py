"""``packetflow top``: a gateway's metrics as a live table."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from packetflow.endpoint import parse_endpoint

__all__ = ["Snapshot", "fetch", "render_top"]


@dataclass
class Snapshot:
    """One reading of ``/metrics``: sample name -> labels -> value."""

    at: float
    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def get(self, name: str, *labels: str) -> float:
        """A sample's value, 0 where there is none."""
        return self.values.get(name, {}).get(labels, 0.0)


def fetch(endpoint: str, token: str | None, context: ssl.SSLContext | None = None) -> Snapshot:
    """Reads the metrics of the gateway at a ws:// or wss:// endpoint. Raises OSError, PermissionError."""
    from prometheus_client.parser import text_string_to_metric_families

    parsed = parse_endpoint(endpoint)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    request = urllib.request.Request(f"{'https' if parsed.secure else 'http'}://{host}:{parsed.port}/metrics")
    token = token or (parsed.credentials[1] if parsed.credentials else None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=5) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        detail = error.read().decode("utf-8", "replace").strip()
        error.close()
        raise PermissionError(f"{error.code}: {detail}") from None
    snapshot = Snapshot(time.monotonic())
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for key, value in sample.labels.items())
            snapshot.values.setdefault(sample.name, {})[labels] = sample.value
    return snapshot


def _quantile(now: Snapshot, before: Snapshot | None, element: str, share: float) -> float:
    """Seconds below which that share of the latencies since `before` lies."""
    buckets = []
    for labels, value in now.values.get("packetflow_latency_seconds_bucket", {}).items():
        if element in labels:
            bucket = next(label for label in labels if label != element)
            earlier = before.get("packetflow_latency_seconds_bucket", *labels) if before else 0.0
            buckets.append((float(bucket), value - earlier))
    buckets.sort()
    if not buckets or buckets[-1][1] <= 0:
        return 0.0
    wanted = share * buckets[-1][1]
    last = 0.0
    for bound, count in buckets:  # pragma: no branch - the last holds all
        if count >= wanted:
            return bound if bound != float("inf") else last
        last = bound
    return last  # pragma: no cover - the same


def _shown(name: str) -> str:
    """In 32 columns: what tells replicas apart stands at the end."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= 32 else f"{name[:20]}…{name[-11:]}"


def _time(seconds: float) -> str:
    if seconds <= 0:
        return "-"
    return (
        f"{seconds * 1e6:.0f} µs"
        if seconds < 1e-3
        else f"{seconds * 1e3:.1f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
    )


def render_top(endpoint: str, now: Snapshot, before: Snapshot | None) -> str:
    """The table: totals, elements by rate, reactors by load."""
    span = now.at - before.at if before else 0.0

    def rate(name: str, *labels: str) -> float:
        return (now.get(name, *labels) - before.get(name, *labels)) / span if before and span > 0 else 0.0

    lines = [
        f"{parse_endpoint(endpoint).url}   links {now.get('packetflow_connections'):.0f}   "
        f"reactors {now.get('packetflow_reactors'):.0f}   in flight {now.get('packetflow_in_flight'):.0f}   "
        f"queued {now.get('packetflow_queued'):.0f}",
        "",
        f"{'element':32} {'per second':>12} {'errors/s':>9} {'p50':>9} {'p99':>9} {'in flight':>9} {'queued':>7} "
        f"{'reactors':>8}",
    ]
    elements = {labels[0] for labels in now.values.get("packetflow_packets_total", {})}

    def load(element: str) -> float:
        return rate("packetflow_packets_total", element, "success") + rate("packetflow_packets_total", element, "error")

    for element in sorted(elements, key=lambda one: (-load(one), one))[:30]:
        lines.append(
            f"{element:32} {load(element):12,.0f} {rate('packetflow_packets_total', element, 'error'):9,.0f} "
            f"{_time(_quantile(now, before, element, 0.5)):>9} {_time(_quantile(now, before, element, 0.99)):>9} "
            f"{now.get('packetflow_element_in_flight', element):9,.0f} "
            f"{now.get('packetflow_queue_length', element):7,.0f} "
            f"{now.get('packetflow_element_reactors', element):8,.0f}"
        )
    reactors = now.values.get("packetflow_reactor_outstanding", {})
    if reactors:
        lines += ["", f"{'reactor':32} {'outstanding':>12} {'window':>9} {'latency':>9}"]
        for (name, *_), value in sorted(reactors.items(), key=lambda item: -item[1])[:20]:
            lines.append(
                f"{_shown(name):32} {value:12,.0f} {now.get('packetflow_reactor_window', name):9,.0f} "
                f"{_time(now.get('packetflow_reactor_latency_seconds', name)):>9}"
            )
    return "\n".join(lines)
