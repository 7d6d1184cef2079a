"""The other languages run the same frames as we do (tests/test_vectors.py)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.peers import HERE, elixir_environment

VECTORS = HERE.parent / "vectors"
FRAMES = {name: json.loads((VECTORS / f"{name}.json").read_text())["frames"] for name in ("valid", "invalid")}
PLAIN = sum("strict" not in vector for vector in FRAMES["invalid"])


@pytest.mark.parametrize(
    ("command", "environment", "where"),
    [
        (["node", "--import", "tsx", "vectors.ts"], {}, HERE / "typescript"),
        (
            ["mix", "run", "--no-compile", "-e", "PacketFlowPeer.Vectors.main()", "--"],
            elixir_environment(),
            HERE / "elixir",
        ),
    ],
    ids=["typescript", "elixir"],
)
def test_vectors(command: list[str], environment: dict[str, str], where: Path) -> None:
    done = subprocess.run(
        [*command, str(VECTORS)], cwd=where, env=os.environ | environment, capture_output=True, text=True
    )
    said = json.loads(done.stdout)
    assert said["failures"] == []
    assert (said["valid"], said["invalid"]) == (len(FRAMES["valid"]), len(FRAMES["invalid"]))
    assert said["caught"] >= PLAIN
    assert done.returncode == 0
