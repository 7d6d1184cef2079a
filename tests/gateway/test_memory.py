"""What the system says of memory, where it does, and the allocator that gives it back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from packetflow.gateway import memory

GIB = 1 << 30


def fails(*_: Any) -> Any:
    raise ValueError("unrecognized configuration name")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 GiB, without a cgroup."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}.__getitem__)
    monkeypatch.setattr(memory, "_CGROUP", ())


@pytest.mark.parametrize(("limit", "expected"), [("1073741824", GIB), ("max", 16 * GIB), ("99999999999999", 16 * GIB)])
def test_a_containers_limit_counts_where_it_is_less(
    machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, expected: int
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(memory, "_CGROUP", (tmp_path / "nothing", tmp_path / "memory.max"))
    assert memory.memory_of_machine() == expected
    assert memory.share_of_memory() == min(expected // 4, memory.MOST)


def test_where_the_system_does_not_say_two_gigabytes_are_assumed(
    machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sysconf", fails)
    assert memory.memory_of_machine() == 2 * GIB
    monkeypatch.setattr(memory, "_STATM", tmp_path / "statm")
    assert memory.resident() == 0


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process would be from now on."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    return calls


def test_a_gateway_begins_again_with_glibcs_allocator(begun: list[Any]) -> None:
    memory.choose_allocator()
    ((program, arguments, environment),) = begun
    assert program == sys.executable
    assert arguments == [sys.executable, *sys.orig_argv[1:]]
    assert environment["PYTHONMALLOC"] == "malloc"


def test_and_the_second_time_goes_on(begun: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    memory.choose_allocator()
    for name in ("PYTHONMALLOC", memory._CHOSEN):
        monkeypatch.setenv(name, begun[0][2][name])
    memory.choose_allocator()
    assert len(begun) == 1
    assert "PYTHONMALLOC" not in os.environ, "what it starts has its own"


def test_elsewhere_there_is_no_such_allocator(begun: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", fails)
    memory.choose_allocator()
    assert begun == []
