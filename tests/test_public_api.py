"""What is public, which way imports point, what importing costs, and the pin on picows."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import picows
import pytest

import packetflow
import pfcore
from pfcore.link import PICOWS_VERSION

ROOT = Path(packetflow.__file__).parents[2]

PUBLIC = [
    "GROUPS", "STANDARD_ELEMENTS", "Access", "Cancelled", "Conflict", "ConnectionLost", "DependencyFailed", "Forbidden", "Gateway",
    "HandlerError", "Identity", "InvalidPacket", "NoHandler", "Overloaded", "Packet", "PacketFlowError", "PacketTimeout", "Reactor",
    "Result", "Role", "TooLarge", "Unauthenticated", "Unavailable", "UnsupportedVersion", "run",
]  # fmt: skip
CORE = ["InvalidPacket", "Message", "Packet", "PacketFlowError", "PendingTable", "PriorityHeap", "Result",
        "decode_message", "encode_message"]  # fmt: skip


def test_the_public_names() -> None:
    assert packetflow.__all__ == PUBLIC
    assert sorted(pfcore.__all__) == CORE
    for module in (packetflow, pfcore):
        for name in module.__all__:
            assert getattr(module, name).__doc__ or name.isupper()


def test_the_core_is_compiled_against_the_picows_that_runs() -> None:
    assert PICOWS_VERSION.split(".")[:2] == picows.__version__.split(".")[:2]
    source = (ROOT / "pyproject.toml").read_text() if (ROOT / "pyproject.toml").exists() else None
    if source is not None:
        assert source.count(f"picows=={'.'.join(PICOWS_VERSION.split('.')[:2])}.*") == 2  # to build and to run


def test_another_picows_is_refused_at_import() -> None:
    program = "import picows; picows.__version__ = '9.9.0'\nimport packetflow"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert "ImportError: packetflow-fast was compiled against picows" in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "clock",
        "scan",
        "ids",
        "buffers",
        "frames",
        "heap",
        "pending",
        "keys",
        "budget",
        "fair",
        "ledger",
        "reply",
        "engine",
        "dispatch",
        "switch",
        "link",
        "loopback",
        "client",
        "audit",
    ],
)
def test_every_core_module_is_compiled(module: str) -> None:
    file = importlib.import_module(f"pfcore.{module}").__file__
    assert file is not None
    assert not file.endswith(".py")


ORDER = [
    "bytes_ops",
    "cpythonx",
    "terms",
    "errors",
    "clock",
    "scan",
    "ids",
    "buffers",
    "reader",
    "packets",
    "writer",
    "frames",
    "heap",
    "pending",
    "keys",
    "budget",
    "fair",
    "ledger",
    "reply",
    "engine",
    "dispatch",
    "flights",
    "switch",
    "link",
    "loopback",
    "client",
    "audit",
]


@pytest.mark.skipif(not (ROOT / "pfcore").exists(), reason="an installed wheel has no sources to look at")
def test_imports_point_one_way() -> None:
    for place, module in enumerate(ORDER):
        for path in (ROOT / "pfcore").glob(f"{module}.p*"):
            if path.suffix not in (".pyx", ".pxd", ".py"):
                continue
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] == ["from"] and words[1].startswith("pfcore."):
                    used = words[1].split(".")[1]
                    assert used == module or ORDER.index(used) < place, f"{path.name} uses {used}"
                assert words[:2] not in (["import", "packetflow"], ["from", "packetflow"]), path
                if words[:1] in (["import"], ["from"]) and len(words) > 1:
                    top = words[1].split(".")[0]
                    assert top != "picows" or module == "link", f"{path.name} knows picows"
                    assert top != "asyncio" or module in ("reply", "dispatch"), f"{path.name} knows asyncio"
                    assert top != "time" or module in ("link", "loopback"), f"{path.name} reads a clock"


@pytest.mark.skipif(not (ROOT / "pfcore").exists(), reason="an installed wheel has no sources to look at")
def test_each_foreign_function_is_declared_once() -> None:
    declaration = re.compile(r"^cdef extern from (.*?):\n(?=    )((?:    .*\n|\n)+)", re.MULTILINE)
    where: dict[str, str] = {}
    for path in sorted((ROOT / "pfcore").glob("*.p*")):
        for header, body in declaration.findall(path.read_text()):
            body = re.sub(r'"""[\s\S]*?"""|"PF_BYTES_OF.*', "", body)
            for name in re.findall(r"(\w+)(?: \"\w+\")?\((?!\*)", body):
                assert name not in where, f"{name}: in {where[name]} and in {path.name}"
                where[name] = path.name
            assert header.strip() != '"bytes_ops.h" nogil' or path.name == "bytes_ops.pxd", path
            assert header.strip() != '"Python.h"' or path.name == "cpythonx.pxd", path
    assert where["pf_hash"] == "bytes_ops.pxd"
    assert where["pf_restore"] == where["PyContext_Enter"] == "cpythonx.pxd"


@pytest.mark.skipif(not (ROOT / "pfcore").exists(), reason="an installed wheel has no sources to look at")
def test_each_word_of_the_wire_stands_once() -> None:
    words = re.findall(
        r'^#define PF_W_\w+ ("[^"\\]*\\"(?:[^"\\]|\\.)*")$', (ROOT / "pfcore" / "terms.h").read_text(), re.M
    )
    assert len(words) >= 17
    for path in sorted((ROOT / "pfcore").glob("*.pyx")):
        code = re.sub(r"#.*|`[^`]*`", "", path.read_text())
        for word in (json.loads(word) for word in words):
            assert f"b'{word}'" not in code, f"{path.name} has {word} of its own"
        for number in ("9007199254740991", "1099511627776", "29500"):
            assert number not in code, f"{path.name} has {number} of its own"


@pytest.mark.skipif(not (ROOT / "src").exists(), reason="an installed wheel has no sources to look at")
def test_one_module_knows_the_websocket_library() -> None:
    """That of Python's side is ``pfcore.link``, too (`test_imports_point_one_way` has the core)."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "picows" for name in names), path


@pytest.mark.skipif(not (ROOT / "src").exists(), reason="an installed wheel has no sources to look at")
def test_the_python_rooms_depend_downwards() -> None:
    order = [
        "_version",
        "errors",
        "model",
        "endpoint",
        "conformance",
        "loop",
        "endings",
        "logs",
        "middleware",
        "offload",
        "tracing",
        "handlers",
        "state",
        "elements",
        "reactor",
        "gateway",
        "sync",
        "testing",
        "cli",
    ]
    for path in (ROOT / "src" / "packetflow").rglob("*.py"):
        room = path.relative_to(ROOT / "src" / "packetflow").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("packetflow."):
                used = node.module.split(".")[1]
                assert used == room or order.index(used) < order.index(room), f"{path} uses {used}"


def test_importing_is_cheap_in_modules() -> None:
    """The time is for benchmarks; what must not creep in are the heavy ones."""
    program = "import sys, packetflow; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True).stdout.split()
    assert not {"uvloop", "click", "hypothesis", "multiprocessing", "xml", "pdb", "packetflow.cli"} & set(loaded)
