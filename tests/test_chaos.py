"""Faults under load, each kind once; `benchmarks/chaos.py` is the long run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="signals that Windows does not have"),
    pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="an installed wheel has no benchmarks"),
]


@pytest.mark.timeout(120)
def test_every_submit_ends_once_and_retry_safe_ones_succeed_through_every_fault() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--faults", "9", "--outstanding", "64", "--seed", "7"],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["submits"] > 1000
    assert report["codes"]["success"] > 1000
