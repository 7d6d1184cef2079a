"""Builders: packets of the standard elements as plain dicts, to submit or to nest.

Each gives ``{"group", "element", "data", ...}``: what `Reactor.submit` takes, and
what stands as a step inside another. `step` is any packet; `ref` refers to what
came before, `lit` keeps what looks like a reference as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Packet", "branch", "case", "gather", "lit", "loop", "reduce", "ref", "seq", "step", "transform"]

Packet = dict[str, Any]
"""A packet to be, ``{"group", "element", "data", ...}``."""


def step(
    group: str,
    element: str,
    data: Any = None,
    *,
    name: str | None = None,
    priority: int | None = None,
    timeout_ms: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Packet:
    """A step. `name`: what `results` calls its data (``as`` on the wire); the rest defaults to the packet's."""
    packet: Packet = {"group": group, "element": element, "data": data}
    for key, value in (("as", name), ("priority", priority), ("timeout_ms", timeout_ms), ("metadata", metadata)):
        if value is not None:
            packet[key] = value
    return packet


def ref(expression: str) -> dict[str, str]:
    """The value of a JMESPath expression over the context: ``ref("prev.items[0]")``."""
    return {"$": expression}


def lit(value: Any) -> dict[str, Any]:
    """A value as it is, even if it looks like a reference."""
    return {"$lit": value}


def seq(*steps: Packet, input: Any = None, returns: str | None = None, **options: Any) -> Packet:
    """cf:seq: one step after another; the last one's data, or `returns` over all. `options`: as for `step`."""
    data: dict[str, Any] = {"steps": list(steps), "input": input}
    if returns is not None:
        data["return"] = returns
    return step("cf", "seq", data, **options)


def case(when: str, then: Packet) -> dict[str, Any]:
    """A case of `branch`."""
    return {"when": when, "then": then}


def branch(*cases: Mapping[str, Any], input: Any = None, otherwise: Packet | None = None, **options: Any) -> Packet:
    """cf:branch: the first case that holds, else `otherwise`, else null."""
    data: dict[str, Any] = {"cases": list(cases), "input": input}
    if otherwise is not None:
        data["else"] = otherwise
    return step("cf", "branch", data, **options)


def loop(
    body: Packet,
    *,
    input: Any = None,
    times: int | None = None,
    items: Sequence[Any] | Mapping[str, Any] | None = None,
    while_: str | None = None,
    until: str | None = None,
    max_iterations: int | None = None,
    collect: bool = False,
    **options: Any,
) -> Packet:
    """cf:loop: `body` a number of times, for each item, while or until something holds."""
    data: dict[str, Any] = {"step": body, "input": input, "collect": collect}
    for key, value in (
        ("times", times),
        ("items", items),
        ("while", while_),
        ("until", until),
        ("max_iterations", max_iterations),
    ):
        if value is not None:
            data[key] = value
    return step("cf", "loop", data, **options)


def transform(
    input: Any, *, expression: str | None = None, map: Packet | None = None, concurrency: int = 64, **options: Any
) -> Packet:
    """df:transform: the value of an expression, or of a step for each item, in parallel."""
    data: dict[str, Any] = {"input": input, "concurrency": concurrency}
    if expression is not None:
        data["expression"] = expression
    if map is not None:
        data["map"] = map
    return step("df", "transform", data, **options)


_UNSET: Any = object()


def reduce(
    input: Any, *, op: str | None = None, fold: Packet | None = None, initial: Any = _UNSET, **options: Any
) -> Packet:
    """df:reduce: one of the operations, or a left fold by a step that sees `prev` and `item`."""
    data: dict[str, Any] = {"input": input}
    if op is not None:
        data["op"] = op
    if fold is not None:
        data["with"] = fold
    if initial is not _UNSET:
        data["initial"] = initial
    return step("df", "reduce", data, **options)


def gather(*packets: Packet, need: int | None = None, concurrency: int = 64, **options: Any) -> Packet:
    """co:gather: all at once, until `need` have succeeded (default: all)."""
    data: dict[str, Any] = {"packets": list(packets), "concurrency": concurrency}
    if need is not None:
        data["need"] = need
    return step("co", "gather", data, **options)
