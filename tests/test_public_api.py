"""What is public, which way imports point, and what importing costs."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import packetflow
import pfcore

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


CORE_MODULES = sorted(
    ".".join(path.relative_to(Path(pfcore.__file__).parent).with_suffix("").parts)
    for path in Path(pfcore.__file__).parent.rglob("*.pyi")
)


def test_every_core_module_is_compiled_and_stubbed() -> None:
    assert len(CORE_MODULES) > 30
    for module in CORE_MODULES:
        file = importlib.import_module(f"pfcore.{module}").__file__
        assert file is not None
        assert not file.endswith(".py"), module
    if (ROOT / "pfcore").exists():
        compiled = [path.relative_to(ROOT / "pfcore").with_suffix("") for path in (ROOT / "pfcore").rglob("*.pyx")]
        assert sorted(".".join(path.parts) for path in compiled) == CORE_MODULES


needs_sources = pytest.mark.skipif(not (ROOT / "pfcore").exists(), reason="an installed wheel has no sources")

ROOMS = ["errors", "memory", "wire", "link", "work", "route", "client", "audit", "simulate"]
"""Of the core: each knows those before it."""


def core_imports() -> dict[str, set[str]]:
    """Module of the core -> what it imports of the core, in its ``.pyx`` and ``.pxd``."""
    found: dict[str, set[str]] = {}
    for path in [one for one in (ROOT / "pfcore").rglob("*") if one.suffix in (".pyx", ".pxd", ".py")]:
        module = ".".join(path.relative_to(ROOT / "pfcore").with_suffix("").parts)
        if path.stem == "__init__":
            continue
        used = found.setdefault(module, set())
        for name, names in re.findall(
            r"^from pfcore(\.[\w.]+)? c?import (\([^)]*\)|.*)$", path.read_text(), re.MULTILINE
        ):
            if "." in name.removeprefix(".") or name.removeprefix(".") in ("errors", "client", "audit", "simulate"):
                used.add(name.removeprefix("."))
            else:  # of a room, or of the top: its modules by name
                used |= {f"{name.removeprefix('.')}.{one}".removeprefix(".") for one in re.findall(r"\w+", names)}
    return {module: used - {module} for module, used in found.items()}


@needs_sources
def test_the_rooms_of_the_core_depend_downwards() -> None:
    graph = core_imports()
    assert len(graph) > 35
    for module, used in graph.items():
        for one in used:
            assert one in graph, f"{module} imports {one}"
            assert ROOMS.index(one.split(".")[0]) <= ROOMS.index(module.split(".")[0]), f"{module} uses {one}"
    graphlib.TopologicalSorter(graph).prepare()  # raises for a cycle inside a room


@needs_sources
def test_the_core_knows_only_what_it_may() -> None:
    allowed = {
        "picows": {"link.handshake"},
        "aiofastnet": {"link.handshake"},
        "asyncio": {"link.reply", "link.websocket", "work.dispatch", "work.worker"},
        "time": {"link.websocket", "link.loopback"},
        "packetflow": set(),
    }
    for path in [one for one in (ROOT / "pfcore").rglob("*") if one.suffix in (".pyx", ".pxd", ".py")]:
        module = ".".join(path.relative_to(ROOT / "pfcore").with_suffix("").parts)
        for name in re.findall(r"^\s*(?:from|c?import) ([\w]+)", path.read_text(), re.MULTILINE):
            assert module in allowed.get(name, {module}), f"{module} knows {name}"


@needs_sources
def test_no_number_of_the_core_is_taken_for_an_error() -> None:
    """A function that returns a number may return -1: only with ``except? -1`` is that told from an exception."""
    for path in (ROOT / "pfcore").rglob("*.p[xy][dx]"):
        for declaration in re.findall(
            r"^ *cdef (?:inline )?u?(?:Py_ssize_t|int\d+_t) \w+\((?:[^()]|\([^()]*\))*\)[^:\n]*", path.read_text(), re.M
        ):
            assert "except -1" not in declaration, f"{path.name}: {declaration}"


@needs_sources
def test_a_module_of_the_core_is_comfortable_to_hold_in_mind() -> None:
    for path in (ROOT / "pfcore").rglob("*.pyx"):
        assert len(path.read_text().splitlines()) <= 900, path


@needs_sources
def test_where_a_change_goes_names_files_that_are_there() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    table = architecture.partition("## Where a change goes")[2].partition("\n## ")[0]
    files = re.findall(r"`((?:pfcore|src|docs)/[\w./]+)`", table)
    assert len(files) > 25
    for file in files:
        assert (ROOT / file).is_file(), file


@needs_sources
def test_the_rooms_of_the_core_are_documented() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    for module in CORE_MODULES:
        name = module.rsplit(".", 1)[-1]
        assert re.search(rf"^\s+{name}\b", architecture, re.MULTILINE), f"docs/architecture.md lacks {module}"
        source = (ROOT / "pfcore" / f"{module.replace('.', '/')}.pyx").read_text()
        assert source.startswith('"""'), module


@needs_sources
def test_the_rooms_of_python_are_documented() -> None:
    rooms = (ROOT / "docs" / "architecture.md").read_text().partition("pfcore/  ")[0]
    for path in (ROOT / "src" / "packetflow").rglob("*.py"):
        if not path.stem.startswith("_") and path.parent.name not in ("cli", "conformance"):
            assert re.search(rf"\b{path.stem}\b", rooms), f"docs/architecture.md lacks {path.name}"
            assert path.read_text().startswith('"""'), path


@needs_sources
def test_each_foreign_function_is_declared_once() -> None:
    declaration = re.compile(r"^cdef extern from (.*?):\n(?=    )((?:    .*\n|\n)+)", re.MULTILINE)
    where: dict[str, str] = {}
    for path in sorted((ROOT / "pfcore").rglob("*.p*")):
        for header, body in declaration.findall(path.read_text()):
            body = re.sub(r'"""[\s\S]*?"""|"PF_BYTES_OF.*', "", body)
            for name in re.findall(r"(\w+)(?: \"\w+\")?\((?!\*)", body):
                assert name not in where, f"{name}: in {where[name]} and in {path.name}"
                where[name] = path.name
            assert header.strip() != '"memory/bytes_ops.h" nogil' or path.name == "bytes_ops.pxd", path
            assert header.strip() != '"Python.h"' or path.name == "cpythonx.pxd", path
    assert where["pf_hash"] == "bytes_ops.pxd"
    assert where["pf_restore"] == where["PyContext_Enter"] == "cpythonx.pxd"


@needs_sources
def test_each_word_of_the_wire_stands_once() -> None:
    words = re.findall(
        r'^#define PF_W_\w+ ("[^"\\]*\\"(?:[^"\\]|\\.)*")$', (ROOT / "pfcore" / "wire" / "terms.h").read_text(), re.M
    )
    assert len(words) >= 17
    for path in sorted((ROOT / "pfcore").rglob("*.pyx")):
        code = re.sub(r"#.*|`[^`]*`", "", path.read_text())
        for word in (json.loads(word) for word in words):
            assert f"b'{word}'" not in code, f"{path.name} has {word} of its own"
        for number in ("9007199254740991", "1099511627776", "29500"):
            assert number not in code, f"{path.name} has {number} of its own"


@pytest.mark.skipif(not (ROOT / "src").exists(), reason="an installed wheel has no sources to look at")
def test_one_module_knows_the_websocket_library() -> None:
    """That of Python's side is ``pfcore.link.handshake``, too (`test_the_core_knows_only_what_it_may` has the core)."""
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
        "tracing",
        "settings",
        "handling",
        "client",
        "state",
        "elements",
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
