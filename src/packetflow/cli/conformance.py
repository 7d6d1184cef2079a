"""The table that ``packetflow conformance`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import click

from packetflow.conformance import Outcome

__all__ = ["render_outcome", "render_verdict"]

_MARKS = {True: ("pass", "green"), False: ("FAIL", "red"), None: ("skip", "yellow")}


def render_outcome(outcome: Outcome) -> str:
    """A rule's line, and what went wrong below it."""
    mark, colour = _MARKS[outcome.passed]
    if outcome.passed is False and outcome.level == "should":
        mark, colour = "weak", "yellow"
    line = f"{click.style(mark, fg=colour)}  {outcome.name}  {click.style(f'[{outcome.place}]', dim=True)}"
    if not outcome.note:
        return line
    return f"{line}\n{textwrap.indent(textwrap.fill(outcome.note, 100), '      ')}"


def render_verdict(outcomes: Sequence[Outcome]) -> str:
    """How many passed, and what that means."""
    passed = sum(outcome.passed is True for outcome in outcomes)
    failed = sum(outcome.passed is False and outcome.level == "must" for outcome in outcomes)
    weak = sum(outcome.passed is False and outcome.level == "should" for outcome in outcomes)
    skipped = sum(outcome.passed is None for outcome in outcomes)
    verdict = "keeps to the protocol" if not failed else "does not keep to the protocol"
    return f"{verdict}: {passed} rules passed, {failed} failed, {weak} recommendations not met, {skipped} not tested"
