"""Logs for people and for machines: nothing raw, and a bound on how much there is."""

from __future__ import annotations

import copy
import json
import logging
import re
import threading
import time
from typing import Any

__all__ = ["Complaints", "HandlerErrors", "JsonFormatter", "RateLimit", "TextFormatter", "escape_controls", "warn_slow"]

log = logging.getLogger("packetflow.handlers")

MOST_OF_A_LINE = 8192
"""Characters; what is longer is cut."""

_FIELDS = ("packet_id", "trace_id", "element", "code", "principal", "reactor", "address")

# C0, DEL, C1; what ends a line or turns its direction; surrogates, which no stream takes
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""The text with control characters, line separators and directional marks as ``\n``, ``\x1b``, ``\u202e``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def has_controls(text: str) -> bool:
    """Does `escape_controls` change it?"""
    return _CONTROLS.search(text) is not None


def _cut(text: str) -> str:
    left = len(text) - MOST_OF_A_LINE
    return text if left <= 0 else f"{text[:MOST_OF_A_LINE]} [{left} characters left out]"


def _message(record: logging.LogRecord) -> str:
    try:
        return _cut(record.getMessage())
    except Exception:  # noqa: BLE001  # a record whose arguments do not fit must not take the log with it
        return _cut(f"{record.msg} {record.args!r}")


def _exception(record: logging.LogRecord) -> str:
    """The traceback as text, "" without one; each line within its bound."""
    if record.exc_text:
        text = record.exc_text
    elif not record.exc_info:
        return ""
    else:
        try:
            text = logging.Formatter().formatException(record.exc_info)
        except Exception:  # noqa: BLE001  # transports have been seen to report a class for an instance
            text = repr(record.exc_info[1])
    return "\n".join(_cut(line) for line in text.split("\n"))


class TextFormatter(logging.Formatter):
    """Lines for people, as `inner` makes them, without a control character that did not come from here.

    One line a record; those of a traceback follow it, indented, so that nothing
    in it can pass for a record of its own.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self.inner = logging.Formatter() if inner is None else inner

    def format(self, record: logging.LogRecord) -> str:
        plain = copy.copy(record)  # other handlers get theirs as it was
        plain.msg, plain.args = escape_controls(_message(record)), None
        for name in _FIELDS:
            value = getattr(record, name, None)
            if isinstance(value, str):
                setattr(plain, name, escape_controls(value))
        plain.exc_text = _indented(_exception(record)) or None
        plain.exc_info = None  # its text stands there already
        plain.stack_info = _indented(record.stack_info) if record.stack_info else None
        return self.inner.format(plain)


def _indented(text: str) -> str:
    return "\n".join(f"    {escape_controls(_cut(line))}" for line in text.split("\n")) if text else ""


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...}``; names from peers are JSON strings and cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                entry[name] = value
        exception = _exception(record)
        if exception:
            entry["exception"] = exception
        return json.dumps(entry, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")


class RateLimit(logging.Filter):
    """At most `most` lines a second (default 100), tracebacks counted by theirs.

    One of them on every handler counts a record once, whichever logger it came
    through. A traceback that does not fit is cut. How many lines were left out is
    said in the next record that is not.
    """

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self._most = most
        self._second = 0
        self._count = 0
        self._left_out = 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        passes = getattr(record, "packetflow_passes", None)
        if passes is None:
            with self._lock:
                passes = self._count_record(record)
            record.packetflow_passes = passes
        return bool(passes)

    def _count_record(self, record: logging.LogRecord) -> bool:
        second = int(record.created)
        if second != self._second:
            self._second, self._count = second, 0
        if self._count >= self._most:
            self._left_out += 1
            return False
        self._count += 1
        if self._left_out:
            record.msg = f"{_message(record)} [{self._left_out} lines before this one left out]"
            record.args = None
            self._left_out = 0
        if record.exc_info or record.exc_text:
            self._count += self._cut_traceback(record)
        if record.stack_info:
            room = self._most - self._count
            lines = record.stack_info.split("\n")
            self._left_out += max(0, len(lines) - room)
            record.stack_info = "\n".join(lines[:room]) or None
            self._count += min(len(lines), room)
        return True

    def _cut_traceback(self, record: logging.LogRecord) -> int:
        """Keeps the lines of it for which there is room, the last ones; how many."""
        room = self._most - self._count
        lines = _exception(record).split("\n")
        kept = lines[-room:] if room > 0 else []
        self._left_out += len(lines) - len(kept)
        if kept:
            record.exc_text = "\n".join(kept)
        else:
            record.exc_info = record.exc_text = None
        return len(kept)


class Complaints:
    """Warnings about what comes from outside: at most `most` a second (default ten), whoever reads the log.

    How many were left out is said with the first of a later second.
    """

    def __init__(self, logger: logging.Logger, most: int = 10) -> None:
        self._log = logger
        self._most = most
        self._second = 0
        self._count = 0

    def __call__(self, level: int, message: str, *arguments: Any, **options: Any) -> None:
        """As `logging.Logger.log`."""
        second = int(time.monotonic())
        if second != self._second:
            left_out, self._second, self._count = self._count - self._most, second, 0
            if left_out > 0:
                self._log.warning("%d more of these were not logged", left_out)
        self._count += 1
        if self._count <= self._most:
            self._log.log(level, message, *arguments, **options)


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
