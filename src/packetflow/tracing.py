"""W3C trace context: packets carry ``traceparent`` in their metadata.

`trace_context` is a middleware that makes the handled packet's trace the
present one; `inject` puts the present one into a packet to submit. Where the
package ``opentelemetry`` is installed, `trace_context` also makes a span of
every handled packet. Source: W3C Trace Context, Recommendation.
"""

from __future__ import annotations

import contextvars
import re
import secrets
from collections.abc import Mapping
from typing import Any

from packetflow.errors import PacketFlowError
from packetflow.middleware import CallNext
from packetflow.model import Packet

__all__ = ["current_traceparent", "inject", "trace_context", "trace_id_of"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_present: contextvars.ContextVar[str | None] = contextvars.ContextVar("packetflow_traceparent", default=None)


def trace_id_of(traceparent: Any) -> str | None:
    """The 32 hexadecimal digits of a valid ``traceparent``, else None."""
    match = _TRACEPARENT.match(traceparent) if isinstance(traceparent, str) else None
    if match is None or match[1] == "0" * 32 or match[2] == "0" * 16:
        return None
    return match[1]


def current_traceparent() -> str | None:
    """The trace that the code runs in: OpenTelemetry's where there is one, else the handled packet's."""
    span = _otel_span()
    return span if span is not None else _present.get()


def inject(packet: Mapping[str, Any]) -> dict[str, Any]:
    """The packet's mapping with the present trace in its metadata; a new trace where there is none."""
    parent = current_traceparent()
    if parent is None:
        parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    return {**packet, "metadata": {**(packet.get("metadata") or {}), "traceparent": parent}}


def _otel_span() -> str | None:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


async def trace_context(packet: Packet, call_next: CallNext) -> Any:
    """Middleware: ``reactor.use(trace_context)``."""
    parent = (packet.metadata or {}).get("traceparent")
    token = _present.set(parent if trace_id_of(parent) is not None else None)
    try:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            return await call_next(packet)
        context = propagate.extract({"traceparent": parent} if isinstance(parent, str) else {})
        tracer = trace.get_tracer("packetflow")
        with tracer.start_as_current_span(
            f"{packet.group}:{packet.element}",
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes={"packetflow.packet_id": packet.id, "packetflow.priority": packet.priority},
        ) as span:
            try:
                return await call_next(packet)
            except PacketFlowError as error:
                span.set_attribute("packetflow.code", error.code)
                raise
    finally:
        _present.reset(token)
