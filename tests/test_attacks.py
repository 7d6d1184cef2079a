"""Attacks beside a victim, a few for a second each; `benchmarks/attacks` is the long run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads the gateway's memory from /proc"),
    pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="an installed wheel has no benchmarks"),
]

AT_ONCE = (
    "mutated_frames+garbage+keys_twice",
    "half_a_message+dripping_fragments+endless_message",
    "slow_handshakes+origins+forged_results",
    "answers_in_pieces+others_names+same_id",
)


def attacks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.attacks", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    """Three attacks at once, four times, on one gateway. The victim may be late by half a second: of how long
    things take on a machine that others use, too, a test cannot judge."""
    done = attacks(
        "--only", ",".join(AT_ONCE), "--keep", "--seconds", "1", "--quiet", "0.3", "--slack", "500", "--json"
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    report: list[dict[str, Any]] = json.loads(done.stdout)["outcomes"]
    return report


@pytest.mark.timeout(120)
def test_a_victim_does_not_notice_strangers_and_the_gateway_gives_back_what_they_took(
    outcomes: list[dict[str, Any]],
) -> None:
    assert [outcome["name"] for outcome in outcomes] == list(AT_ONCE)
    assert [(outcome["name"], outcome["faults"]) for outcome in outcomes if outcome["faults"]] == []


@pytest.mark.timeout(120)
def test_each_attack_reaches_the_gateway(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["during"]["packets"] > 1000
        for attacker in outcome["attackers"]:
            assert attacker["tally"]["bytes sent"] > 100, attacker
            assert attacker["tally"]["links"] > 0, attacker
            assert not attacker["trouble"], attacker


def test_an_unknown_attack_is_named_and_every_known_one_says_what_it_stands_for() -> None:
    unknown = attacks("--only", "pings,nonsense")
    assert unknown.returncode != 0
    assert "nonsense" in unknown.stderr and "pings" not in unknown.stderr
    lines = attacks("--list").stdout.splitlines()
    assert len(lines) >= 60
    assert all(line.endswith(".") for line in lines)
