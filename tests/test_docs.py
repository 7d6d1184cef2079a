"""Every snippet of the documentation runs as printed, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from packetflow.gateway.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text[: match.start()].count("\n") + 2
                found.append(pytest.param(match[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("source", blocks("python"))
def test_python_snippets(source: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", source], capture_output=True, text=True,
                          timeout=50, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", blocks("console"))
def test_shell_sessions(source: str, tmp_path: Path) -> None:
    """Lines after "$ " are commands (a here-document goes on to its end); all must succeed."""
    # the second that a gateway has to start is not enough on a busy machine
    script = "set -e\nsleep() { command sleep 2; }\n" + "\n".join(
        line.removeprefix("$ ") for line in source.splitlines()
    )
    script += "\nkill %1 2>/dev/null || true\nwait\n"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-m", "-c", script], capture_output=True, text=True, timeout=50, cwd=tmp_path,
                          env=os.environ | {"PATH": path})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(path: Path) -> None:
    done = subprocess.run([sys.executable, "-P", str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_only_languages_that_are_run() -> None:
    """``sh`` is for installing, which .ci/run does; ``mermaid`` is rendered by tools/pictures; none is a list."""
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            assert match[1] in ("python", "console", "sh", "toml", "mermaid"), f"{page}: {match[1]}"


@pytest.mark.parametrize("source", blocks("toml"))
def test_configurations(source: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(source)
    load_config(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
