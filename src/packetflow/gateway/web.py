"""The plain HTTP side of a gateway's port: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from operator import attrgetter
from typing import Any

from packetflow.endpoint import Endpoint
from packetflow.gateway.door import Refusal
from packetflow.gateway.view import View
from pfcore.errors import EXCEPTIONS
from pfcore.link.handshake import answer

__all__ = ["Web", "metrics"]

MOST_TIME = 0.1
"""Seconds of each that go into rendering the metrics: it keeps the loop for a millisecond, or twenty."""
MOST_ELEMENTS = 1000
MOST_REACTORS = 1000
MOST_PRINCIPALS = 1000


def prepare() -> None:
    """Imports what the first scrape needs: 60 ms that nobody should wait for, and objects that stay."""
    import prometheus_client.core  # noqa: F401 - not with the package: a reactor needs none of it


class Web:
    """Answers what is not an upgrade. `public_metrics`: ``/metrics`` asks for no credentials."""

    def __init__(self, view: View, endpoint: Endpoint, public_metrics: bool) -> None:
        self._view = view
        self._endpoint = endpoint
        self._public_metrics = public_metrics
        self._metrics = ""
        self._second, self._spent = 0, 0.0

    def respond(self, path: str, headers: Any, certificate: Any) -> Any:
        """The answer to a GET of `path`; `Refusal` where it asks for credentials."""
        if path == "/healthz":
            return _answer(200, "ok\n")
        if path == "/readyz":
            return _answer(200, "ready\n") if self._view.ready() else _answer(503, "draining\n")
        if path == "/metrics":
            if not self._public_metrics:
                try:
                    self._view.admission.access.identify(headers, certificate)
                except PermissionError as error:
                    raise Refusal(401, str(error), {"WWW-Authenticate": 'Basic realm="packetflow"'}) from None
            return _answer(200, self._recent(), {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        return _answer(404, f"no such path here; expected {self._endpoint.path.partition('?')[0]}\n")

    def _recent(self) -> str:
        """The metrics; a flood of scrapes is told again what the last one was told."""
        began = time.monotonic()
        if int(began) != self._second:
            self._second, self._spent = int(began), 0.0
        if self._spent < MOST_TIME or not self._metrics:
            self._metrics = metrics(self._view)
            self._spent += time.monotonic() - began
        return self._metrics


def _answer(status: int, body: str, headers: Mapping[str, str] | None = None) -> Any:
    return answer(status, body.encode(), headers)


def metrics(view: View) -> str:
    """Everything there is to count, in Prometheus's text format."""
    # imported where it is needed: it costs as much as all the rest of packetflow
    from prometheus_client import CollectorRegistry, generate_latest

    snapshot: Any = _Snapshot(view)  # a Collector to go by what it has
    registry = CollectorRegistry()
    registry.register(snapshot)
    return generate_latest(registry).decode() + "".join(_elements(view))


class _Snapshot:
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Any]:
        return _families(self._view)


BOUNDS = [repr((1 << (14 + place)) / 1e9) for place in range(64)]
"""Of a latency histogram's buckets, in seconds."""


def _elements(view: View) -> Iterator[str]:
    """What is counted by element, of the busiest: a bound, for peers choose the names.

    Text at once: a sample of the library's for each of 20,000 lines took 0.2 s, of everybody's time.
    """
    routes = [
        (key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"), route)
        for key, route in view.switch.busiest(MOST_ELEMENTS)
    ]
    yield "# HELP packetflow_packets_total Packets that ended\n# TYPE packetflow_packets_total counter\n"
    for key, route in routes:
        yield f'packetflow_packets_total{{element="{key}",status="success"}} {route.succeeded}.0\n'
        yield f'packetflow_packets_total{{element="{key}",status="error"}} {route.failed}.0\n'
    for name, text, read in (
        ("queue_length", "Packets that wait, by element", attrgetter("queue_length")),
        ("element_in_flight", "Packets under way, by element", attrgetter("in_flight")),
        ("element_reactors", "Reactors that announced it", attrgetter("reactors")),
    ):
        yield f"# HELP packetflow_{name} {text}\n# TYPE packetflow_{name} gauge\n"
        for key, route in routes:
            yield f'packetflow_{name}{{element="{key}"}} {read(route)}.0\n'
    name = "packetflow_latency_seconds"
    yield f"# HELP {name} From acceptance to answer, by element\n# TYPE {name} histogram\n"
    for key, route in routes:
        counts, total = route.latencies
        seen = 0
        if not any(counts):
            continue
        for bound, count in zip(BOUNDS, counts[:-1], strict=False):
            seen += count
            yield f'{name}_bucket{{element="{key}",le="{bound}"}} {seen}.0\n'
        seen += counts[-1]
        yield f'{name}_bucket{{element="{key}",le="+Inf"}} {seen}.0\n'
        yield f'{name}_count{{element="{key}"}} {seen}.0\n{name}_sum{{element="{key}"}} {total / 1e9}\n'


def _by_code(refusals: Mapping[str, int]) -> dict[str, int]:
    """By the protocol's codes; peers choose others, and a label for each would be theirs to choose, too."""
    counts: dict[str, int] = {}
    for code, count in refusals.items():
        known = code if code in EXCEPTIONS else "other"
        counts[known] = counts.get(known, 0) + count
    return counts


def _budgets(view: View) -> Iterator[Any]:
    """Every budget, and who holds what of it."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    budgets = view.budgets
    for name, what, budget, most in (
        ("held", "packets, results and output", budgets.held, budgets.principal),
        ("stored", "what outlives links", budgets.stored, budgets.stored_principal),
    ):
        for suffix, text, value in (
            ("bytes", f"Bytes held of {what}", budget.held),
            ("bytes_limit", f"The most that may be held of {what}", budget.limit),
            ("bytes_peak", f"The most that was ever held of {what}", budget.peak),
            ("principal_bytes_limit", f"The most that one principal may hold of {what}", most),
        ):
            yield GaugeMetricFamily(f"packetflow_{name}_{suffix}", text, value)
    held = GaugeMetricFamily("packetflow_principal_held_bytes", "Bytes held, by principal", labels=["principal"])
    stored = GaugeMetricFamily("packetflow_principal_stored_bytes", "Bytes stored, by principal", labels=["principal"])
    refused = CounterMetricFamily(
        "packetflow_charges_refused", "Bytes that a budget had no room for, times, by principal",
        labels=["principal", "budget"],
    )  # fmt: skip
    # anonymous links have an account each; here they are one
    links = [member.account for member in view.switch.links if member.principal.number == 0]
    kept = view.principals.anonymous.stored
    rows = [
        (
            "anonymous",
            sum(account.held for account in links),
            kept.held if kept is not None else 0,
            view.links.refused_charges + sum(account.refused for account in links),
            kept.refused if kept is not None else 0,
        )
    ]
    named = [
        (name, one.account.held, one.stored.held, one.account.refused, one.stored.refused)
        for name, one in view.principals.named.items()
        if one.account is not None and one.stored is not None
    ]
    # those who hold most, where a file names more than anyone would look at
    rows += sorted(named, key=lambda row: -(row[1] + row[2] + row[3] + row[4]))[:MOST_PRINCIPALS]
    for name, of_links, of_store, refused_held, refused_stored in rows:
        held.add_metric([name], of_links)
        stored.add_metric([name], of_store)
        refused.add_metric([name, "held"], refused_held)
        refused.add_metric([name, "stored"], refused_stored)
    yield from (held, stored, refused)


def _families(view: View) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    switch = view.switch
    for name, text, value in (
        ("packetflow_connections", "Open links", len(view.links)),
        ("packetflow_reactors", "Connected reactors that have a name", len(view.reactors)),
        ("packetflow_in_flight", "Packets under way", switch.in_flight),
        ("packetflow_queued", "Packets that wait for a reactor with room", switch.queued),
        ("packetflow_remembered", "Outcomes remembered", switch.remembered),
        ("packetflow_remembered_bytes", "Memory of the outcomes remembered", switch.remembered_bytes),
    ):
        yield GaugeMetricFamily(name, text, value)
    for name, text, value in (
        ("packetflow_routed", "Packets sent to a reactor", switch.routed),
        ("packetflow_redispatched", "Packets sent again after a reactor was lost", switch.retried),
        ("packetflow_duplicates", "Packets answered from memory or attached to a running one", switch.duplicates),
        ("packetflow_late_answers", "Answers that nobody waited for any more", switch.late),
        ("packetflow_accepted_connections", "Links accepted since the start", view.counts["accepted"]),
        ("packetflow_reconnects", "Named reactors that came back", view.counts["reconnects"]),
    ):
        yield CounterMetricFamily(name, text, value)
    handshakes = CounterMetricFamily("packetflow_handshakes_refused", "Handshakes refused", labels=["reason"])
    for reason in ("turned_away", "unauthenticated", "refused_host", "refused_origin", "malformed", "tls", "failed"):
        handshakes.add_metric([reason], view.counts[reason])
    yield handshakes
    names = CounterMetricFamily(
        "packetflow_names_refused", "Claims to a reactor's name that were ignored", labels=["reason"]
    )
    for reason in ("taken", "forbidden", "changed"):
        names.add_metric([reason], view.counts[f"names_{reason}"])
    yield names
    yield from _budgets(view)
    refusals = CounterMetricFamily("packetflow_refusals", "Packets refused or failed by the gateway", labels=["code"])
    for code, count in sorted(_by_code(switch.refusals).items()):
        refusals.add_metric([code], count)
    yield refusals
    outstanding = GaugeMetricFamily(
        "packetflow_reactor_outstanding", "Packets that a named reactor has", labels=["reactor"]
    )
    window = GaugeMetricFamily("packetflow_reactor_window", "Packets that it takes at once", labels=["reactor"])
    recent = GaugeMetricFamily("packetflow_reactor_latency_seconds", "Recent time to its answers", labels=["reactor"])
    for peer in islice(view.reactors, MOST_REACTORS):
        outstanding.add_metric([peer.id], peer.member.outstanding)
        window.add_metric([peer.id], peer.member.window)
        recent.add_metric([peer.id], peer.member.latency_ms / 1e3)
    yield from (outstanding, window, recent)
