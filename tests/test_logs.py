"""Logs: nothing raw, nothing without bound."""

from __future__ import annotations

import io
import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from packetflow.logs import HandlerErrors, JsonFormatter, RateLimit, TextFormatter, escape_controls

NASTY = ["\x00", "\x07", "\x1b[2J", "\n", "\r", "\t", "\x7f", "\x85", "\x9b31m", "\u2028", "\u2029", "\u202e", "\u2066",
         "\u061c", "\u200f", "\ud800"]  # fmt: skip
RAW = {character for text in NASTY for character in text if not character.isascii() or ord(character) < 32} | {"\x7f"}


def record(message: str, *arguments: Any, error: BaseException | None = None, at: float = 100.0) -> logging.LogRecord:
    made = logging.LogRecord("packetflow.gateway", logging.WARNING, "", 0, message, arguments or None, None)
    if error is not None:
        made.exc_info = (type(error), error, error.__traceback__)
    made.created = at
    return made


def raised(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


@pytest.mark.parametrize("nasty", NASTY)
def test_control_characters_never_reach_a_text_log(nasty: str) -> None:
    formatter = TextFormatter(logging.Formatter("%(levelname)s %(name)s %(reactor)s: %(message)s"))
    made = record("message %s" + nasty, "of " + nasty, error=raised("boom " + nasty + "forged"))
    made.reactor = "named " + nasty
    made.stack_info = "stack " + nasty
    shown = formatter.format(made)
    first, *rest = shown.split("\n")
    assert first.startswith("WARNING packetflow.gateway named")
    assert all(line.startswith("    ") for line in rest), "no line but the first begins as a record does"
    assert not RAW & set(shown.replace("\n", ""))
    assert "boom" in shown
    assert "Traceback" in shown
    shown.encode()


def test_what_is_no_control_character_stays() -> None:
    text = "Grüße, 世界 👩‍👩‍👧 C:\\new"
    assert escape_controls(text) == text
    assert escape_controls("a\x1b\n\u202e") == "a\\x1b\\n\\u202e"
    assert TextFormatter(logging.Formatter("%(message)s")).format(record(text)) == text


def test_a_record_is_not_changed_for_other_handlers() -> None:
    made = record("a\n%s", "b\x1b", error=raised("c\x1b"))
    TextFormatter().format(made)
    assert (made.msg, made.args, made.exc_text) == ("a\n%s", ("b\x1b",), None)


def test_records_that_cannot_be_formatted_are_still_one_line() -> None:
    made = record("%d", "x")
    assert "x" in TextFormatter(logging.Formatter("%(message)s")).format(made)
    made.exc_info = (type, ConnectionResetError, ConnectionResetError.__traceback__)  # type: ignore[assignment]
    limit = RateLimit(10)
    assert limit.filter(made)
    assert "ConnectionResetError" in TextFormatter().format(made)
    assert "ConnectionResetError" in JsonFormatter().format(made)


def test_lines_have_a_bound_of_their_own() -> None:
    made = record("x" * 1_000_000, error=raised("y" * 1_000_000))
    assert len(TextFormatter().format(made)) < 20_000
    assert len(JsonFormatter().format(made)) < 60_000


def test_logs_for_machines_are_printable_ascii() -> None:
    line = JsonFormatter().format(record("".join(NASTY)))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "".join(NASTY)


def test_a_traceback_counts_by_its_lines() -> None:
    """100 lines a second are lines, not records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    handler.addFilter(RateLimit(100))
    for _ in range(200):
        made = record("failed", error=raised("a\nb\nc\nd"))
        if handler.filter(made):
            handler.emit(made)
    lines = stream.getvalue().splitlines()
    assert 90 <= len(lines) <= 100
    assert lines[0].startswith("failed")
    assert any("Traceback" in line for line in lines)


def test_one_traceback_cannot_take_it_all() -> None:
    made = record("failed", error=raised("\n".join("x" * 500)))
    assert RateLimit(100).filter(made)
    assert len(TextFormatter().format(made).splitlines()) <= 100


def test_the_bound_is_one_for_all_loggers_and_handlers() -> None:
    limit = RateLimit(10)
    streams = [io.StringIO(), io.StringIO()]
    handlers = [logging.StreamHandler(stream) for stream in streams]
    for handler in handlers:
        handler.addFilter(limit)
    for n in range(40):
        made = record("n %d", n)
        made.name = ("asyncio", "aiofastnet", "picows", "packetflow.gateway")[n % 4]
        for handler in handlers:
            handler.handle(made)
    last = record("last", at=101.0)
    for handler in handlers:
        handler.handle(last)
    for stream in streams:
        lines = stream.getvalue().splitlines()
        assert len(lines) == 11
        assert lines[-1] == "last [30 lines before this one left out]"


def test_the_command_line_sets_every_handler_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from packetflow.cli.main import _set_up_log

    root = logging.getLogger()
    plain, own = logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())
    own.setFormatter(logging.Formatter("own %(message)s"))
    monkeypatch.setattr(root, "handlers", [plain, own])
    for log_format in (None, "text"):  # twice: the second changes nothing
        _set_up_log(log_format)
    root.warning("hello\x1b")
    assert plain.stream.getvalue() == "hello\\x1b\n"
    assert own.stream.getvalue() == "own hello\\x1b\n"
    limits = {found for handler in (plain, own) for found in handler.filters if isinstance(found, RateLimit)}
    assert len(limits) == 1, "one bound for all"
    _set_up_log("json")
    root.warning("hello\x1b")
    assert json.loads(plain.stream.getvalue().splitlines()[-1])["message"] == "hello\x1b"


def test_errors_of_the_command_line_are_plain() -> None:
    from packetflow.cli.main import Failure

    assert Failure("no\x1b[2J\nsuch").format_message() == "no\\x1b[2J\\nsuch"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_failure_of_top_shows_no_control_characters() -> None:
    import subprocess
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write("no \x1b[2J\u202e".encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "packetflow", "top", "--once", "--endpoint",
             f"ws://127.0.0.1:{server.server_port}/packetflow/v1"], capture_output=True, text=True,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 2
    assert "401" in done.stderr
    assert not {"\x1b", "\u202e"} & set(done.stderr)


def test_a_stack_counts_by_its_lines_and_is_cut_at_the_bound() -> None:
    limit = RateLimit(most=4)
    made = record("one")
    made.stack_info = "Stack:\n  a\n  b\n  c\n  d"
    assert limit.filter(made)
    assert made.stack_info == "Stack:\n  a\n  b"
    assert not limit.filter(record("no room"))
    later = record("later", at=101.0)
    assert limit.filter(later)
    assert later.getMessage() == "later [3 lines before this one left out]"


def test_a_traceback_without_room_is_left_out() -> None:
    limit = RateLimit(most=1)
    made = record("failed", error=raised("boom"))
    assert limit.filter(made)
    assert (made.exc_info, made.exc_text) == (None, None)


def test_a_record_that_cannot_be_told_is_told_as_far_as_it_goes() -> None:
    assert JsonFormatter().format(record("%d of them", "x")).count("%d of them ('x',)") == 1
    made = record("odd")
    made.exc_info = ("no", "exception", "at all")  # type: ignore[assignment]
    assert json.loads(JsonFormatter().format(made))["exception"] == "'exception'"


def test_failures_of_handlers_that_were_too_many_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [7.0]
    monkeypatch.setattr("packetflow.logs.time", SimpleNamespace(monotonic=lambda: now[0]))
    errors = HandlerErrors()
    for _ in range(HandlerErrors.MOST + 3):
        errors("df:x", "p", ValueError("no"))
    now[0] += 1
    errors("df:x", "p", ValueError("no"))
    messages = [one.message for one in caplog.records]
    assert messages.count("the handler for df:x failed") == HandlerErrors.MOST + 1
    assert "3 more failures of handlers were not logged" in messages
