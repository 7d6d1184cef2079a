"""Logs for machines: one JSON object a line; and a bound on how many there are."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["HandlerErrors", "JsonFormatter", "RateLimit", "warn_slow"]

log = logging.getLogger("packetflow.handlers")

_FIELDS = ("packet_id", "trace_id", "element", "code", "principal", "reactor", "address")


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...}``; names from peers are JSON strings and cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                entry[name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


class RateLimit(logging.Filter):
    """At most `most` records a second (default 100); how many were left out is said in the next that is not."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self._most = most
        self._second = 0
        self._count = 0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(record.created)
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > self._most:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"{record.getMessage()} [{self._left_out} records before this one left out]"
            record.args = None
            self._left_out = 0
        return True


def warn_slow(key: str, milliseconds: int) -> None:
    """The warning for a handler that kept the loop from everything else."""
    log.warning(
        'the handler for %s kept the event loop for %d ms: make it async, or give it offload="thread" or "process"',
        key,
        milliseconds,
    )


class HandlerErrors:
    """Logs what handlers raise, with the traceback: at most ten a second, for a log costs more than a packet."""

    MOST = 10

    def __init__(self) -> None:
        self._second = 0
        self._count = 0

    def __call__(self, key: str, packet_id: str, error: BaseException) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._count > self.MOST:
                log.error("%d more failures of handlers were not logged", self._count - self.MOST)
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= self.MOST:
            log.error(
                "the handler for %s failed",
                key,
                exc_info=(type(error), error, error.__traceback__),
                extra={"packet_id": packet_id, "element": key},
            )
