"""Rules, and what became of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, Literal, TypeVar

from packetflow.conformance.wire import Peer

__all__ = [
    "PATIENCE",
    "Broken",
    "Outcome",
    "Rule",
    "Rules",
    "Skipped",
    "check_message",
    "check_result",
    "expect",
    "need",
    "vectors",
]

Level = Literal["must", "should"]
Session = TypeVar("Session")

PATIENCE = 5.0
"""Seconds that a rule waits for what has to come."""


class Broken(Exception):
    """The peer does not keep to the rule; the text says how."""


class Skipped(Exception):
    """The rule says nothing about this peer; the text says why."""


@dataclass(frozen=True)
class Rule(Generic[Session]):
    """A rule. `place`: where it stands; `level`: whether peers depend on it ("must") or gain by it ("should")."""

    name: str
    place: str
    level: Level
    check: Callable[[Session], Awaitable[None]]


@dataclass(frozen=True)
class Outcome:
    """What became of a rule. `passed`: None where it was not put to the test; `note`: why, or what went wrong."""

    name: str
    place: str
    level: Level
    passed: bool | None
    note: str = ""


class Rules(Generic[Session]):
    """Rules in order; each is a function of a session, run under a timeout."""

    def __init__(self) -> None:
        self._rules: list[Rule[Session]] = []

    def rule(self, name: str, place: str, level: Level = "must") -> Callable[[Any], Any]:
        """Registers the function below as the check of a rule."""

        def register(check: Callable[[Session], Awaitable[None]]) -> Callable[[Session], Awaitable[None]]:
            self._rules.append(Rule(name, place, level, check))
            return check

        return register

    def __iter__(self) -> Iterator[Rule[Session]]:
        return iter(self._rules)

    async def run(self, rule: Rule[Session], session: Session) -> Outcome:
        """Puts one rule to the test. Errors of the connection are the peer's."""
        passed: bool | None = True
        note = ""
        try:
            async with asyncio.timeout(4 * PATIENCE):
                await rule.check(session)
        except Skipped as error:
            passed, note = None, str(error)
        except Broken as error:
            passed, note = False, str(error)
        except TimeoutError:
            passed, note = False, "nothing came in time"
        except asyncio.IncompleteReadError:
            passed, note = False, "the connection was closed"
        except (OSError, ValueError) as error:
            passed, note = False, f"{type(error).__name__}: {error}"
        return Outcome(rule.name, rule.place, rule.level, passed, note)


def need(condition: object, what: str) -> None:
    """Raises `Broken` unless the condition holds."""
    if not condition:
        raise Broken(what)


def check_message(message: Any) -> None:
    """What every message of every peer has to be (specification, section 2)."""
    need(isinstance(message, dict), f"expected a JSON object, got {_short(message)}")
    for key in ("type", "seq", "payload"):
        need(key in message, f"expected the key {key!r} in {_short(message)}")
    need(
        message["type"] in ("submit", "result", "error", "heartbeat"),
        f"expected one of the four types, got {_short(message['type'])}",
    )
    seq = message["seq"]
    need(type(seq) is int and 0 <= seq < 2**53, f"expected a seq of 0 to 2^53-1, got {_short(seq)}")
    need(isinstance(message["payload"], dict), f"expected an object as payload, got {_short(message['payload'])}")


def check_result(payload: dict[str, Any]) -> None:
    """What every result has to be (specification, TypeScript core types)."""
    need(isinstance(payload.get("packet_id"), str), f"expected a packet_id in {_short(payload)}")
    status = payload.get("status")
    need(status in ("success", "error"), f'expected the status "success" or "error", got {_short(status)}')
    duration = payload.get("duration_ms")
    need(
        isinstance(duration, int | float) and duration >= 0,
        f"expected a duration_ms of 0 or more, got {_short(duration)}",
    )
    if status == "error":
        error = payload.get("error")
        need(
            isinstance(error, dict) and isinstance(error.get("code"), str) and isinstance(error.get("message"), str),
            f'expected an error of {{"code", "message"}}, got {_short(error)}',
        )


async def expect(peer: Peer, *kinds: str, packet_id: str | None = None) -> dict[str, Any]:
    """The next message of these types, for this packet if one is named; every message on the way is checked."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await peer.message()
                check_message(message)
                if message["type"] == "result":
                    check_result(message["payload"])
                if message["type"] in kinds and packet_id in (None, _packet_id(message)):
                    return message
                if message["type"] == "submit" and "submit" not in kinds:
                    await _has_no_handler(peer, message["payload"])
    except TimeoutError:
        what = " or ".join(kinds) + (f" for packet {packet_id}" if packet_id else "")
        raise Broken(f"no {what} came within {PATIENCE:g} s") from None


async def _has_no_handler(peer: Peer, packet: dict[str, Any]) -> None:
    # a server may ask who announces nothing, as the listings do not
    error = {"code": "PF001", "message": "No handler"}
    payload = {"packet_id": packet.get("id"), "status": "error", "error": error, "duration_ms": 0}
    await peer.send({"type": "result", "seq": 0, "payload": payload})


def _packet_id(message: dict[str, Any]) -> Any:
    return message["payload"].get("id" if message["type"] == "submit" else "packet_id")


def vectors(name: str) -> list[dict[str, Any]]:
    """The frames of ``vectors/valid.json`` or ``vectors/invalid.json``."""
    frames: list[dict[str, Any]] = json.loads((files(__package__) / "vectors" / f"{name}.json").read_text())["frames"]
    return frames


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
