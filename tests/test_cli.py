"""The command line as a user meets it: in processes of its own."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

APP = """
from packetflow import Reactor
reactor = Reactor("{endpoint}", name="worker")
@reactor.register("df", "double")
async def double(data: int) -> int:
    return 2 * data
def setup(gateway):
    gateway.register("df", "transform", str.upper)
    gateway.register("df", "fail", lambda data: 1 / 0)
    gateway.register("cf", "ask", lambda data: gateway.call("df", "double", data, reactor="worker"))
number = 5
"""


def packetflow(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "packetflow", *arguments], capture_output=True, text=True, timeout=50, cwd=cwd
    )


def start(
    *arguments: str, cwd: Path, ready: str, environment: Mapping[str, str] = os.environ
) -> tuple[subprocess.Popen[str], str]:
    """Starts a command and waits for the line that says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "packetflow", *arguments],
        stdout=subprocess.PIPE, text=True, cwd=cwd, env={**environment, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.search(ready, line), line
    return process, line


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    process.communicate(timeout=20)
    return process.returncode


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`packetflow gateway` with handlers: its endpoint, and the directory of app.py."""
    directory = tmp_path_factory.mktemp("app")
    (directory / "app.py").write_text(APP.format(endpoint="ws://127.0.0.1:1/"))
    process, line = start(
        "gateway", "--port", "0", "--handlers", "app:setup", cwd=directory, ready="listening on ws://"
    )
    endpoint = line.split()[2].rstrip(",")
    (directory / "app.py").write_text(APP.format(endpoint=endpoint))
    yield endpoint, directory
    assert end(process) == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere Python's own allocator stays")
@pytest.mark.parametrize("chosen", [None, "pymalloc"])
def test_a_gateway_has_the_allocator_that_gives_back(tmp_path: Path, chosen: str | None) -> None:
    """What it starts, and whoever has chosen another, are left alone."""
    (tmp_path / "app.py").write_text(
        "import os, sys\n"
        "def setup(gateway):\n"
        "    print('allocator', os.environ.get('PYTHONMALLOC'), sys.argv[1:2], flush=True)\n"
        "    gateway.register('df', 'x', lambda data: data)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONMALLOC"}
    process, line = start(
        "gateway", "--port", "0", "--handlers", "app:setup", cwd=tmp_path, ready="allocator",
        environment=environment | ({} if chosen is None else {"PYTHONMALLOC": chosen}),
    )  # fmt: skip
    assert line.split()[1:] == [str(chosen), "['gateway']"]
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    if Path("/proc").exists():
        given = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert f"PYTHONMALLOC={chosen or 'malloc'}".encode() in given
    assert end(process) == 0


def test_a_store_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from packetflow.elements import in_memory\n"
        "def store(alarms, bounds):\n"
        "    print('names:', bounds.names, flush=True)\n"
        "    return in_memory(alarms, bounds)\n"
        "number = 5\n"
    )
    config = tmp_path / "gateway.toml"
    text = '[gateway]\nendpoint = "ws://127.0.0.1:0/packetflow/v1"\n[elements]\nnames = 7\n[store]\nfactory = "{}"\n'
    config.write_text(text.format("app:store"))
    process, line = start("gateway", "--config", str(config), cwd=tmp_path, ready="names")
    assert line == "names: 7\n"
    assert process.stdout is not None
    endpoint = process.stdout.readline().split()[2].rstrip(",")
    done = packetflow("submit", "rm:cache", '{"op":"incr","key":"k"}', "--endpoint", endpoint, "--data-only")
    assert json.loads(done.stdout)["value"] == 1
    assert end(process) == 0
    for factory, message in (("app:nothing", "has no 'nothing'"), ("app:number", "store: expected a function")):
        config.write_text(text.format(factory))
        done = packetflow("gateway", "--config", str(config), cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_submit_prints_the_result(served: tuple[str, Path]) -> None:
    done = packetflow("submit", "df:transform", '"hello"', "--endpoint", served[0], "--priority", "9")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert (result["status"], result["data"]) == ("success", "HELLO")
    plain = packetflow("submit", "df:transform", '"é"', "--endpoint", served[0], "--data-only")
    assert plain.stdout == '"É"\n'


def test_submit_of_a_packet_that_fails_exits_1(served: tuple[str, Path]) -> None:
    done = packetflow("submit", "df:fail", "--endpoint", served[0])
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == {"code": "PF500", "message": "division by zero"}


def test_run_serves_a_reactor(served: tuple[str, Path]) -> None:
    process, _ = start("run", "app:reactor", cwd=served[1], ready="handling df:double")
    done = packetflow("submit", "cf:ask", "21", "--endpoint", served[0], "--data-only")
    assert done.stdout == "42\n"
    assert end(process, signal.SIGINT) == 0


def test_bench_measures(served: tuple[str, Path]) -> None:
    shown = packetflow("bench", "df:transform", '"hello"', "--endpoint", served[0], "-c", "2", "-w", "16", "-t", "0.2")
    assert shown.returncode == 0, shown.stderr
    assert "requests per second" in shown.stdout
    assert "p99" in shown.stdout
    assert "█" in shown.stdout
    machine = packetflow("bench", "df:fail", "--endpoint", served[0], "-t", "0.1", "--json")
    figures = json.loads(machine.stdout)
    assert figures["errors"] == {"PF500": figures["requests"]}
    assert figures["latency_us"]["p50"] <= figures["latency_us"]["max"]
    assert sum(count for _, count in figures["histogram_us"]) == figures["requests"] > 0


def test_demo_shows_packets_and_exits_0() -> None:
    done = packetflow("demo")
    assert done.returncode == 0, done.stderr
    for expected in ("HELLO WORLD", "HandlerError", "PacketTimeout", "NoHandler", "InvalidPacket", "packets per second",
                     "0 went wrong"):  # fmt: skip
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("submit", "df:x", "{bad"), "expected JSON"),
        (("submit", "df:x", "1", "--endpoint", "ws://127.0.0.1:1/"), "cannot connect to ws://127.0.0.1:1"),
        (("submit", "df:x", "1", "--endpoint", "http://x"), "expected ws://"),
        (("submit", "dfx"), "expected group:element"),
        (("submit", "xx:y", "--endpoint", "{endpoint}"), "expected one of cf, df"),
        (("submit", "df:x", "--priority", "11"), "11 is not in the range"),
        (("bench", "df:x", "--endpoint", "ws://127.0.0.1:1/"), "cannot connect"),
        (("bench", "df:nothing", "--endpoint", "{endpoint}"), "no handler for df:nothing"),
        (("gateway", "--host", "0.0.0.0"), "insecure"),
        (("gateway", "--host", "192.0.2.1", "--insecure"), "cannot listen on ws://192.0.2.1"),
        (("gateway", "--handlers", "nowhere:x"), "no module named 'nowhere'"),
        (("run", "app"), "expected module:name"),
        (("run", "app:nothing"), "has no 'nothing'"),
        (("run", "app:number"), "expected a Reactor or a Gateway, found int"),
        (("nonsense",), "No such command"),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_2(
    served: tuple[str, Path], arguments: tuple[str, ...], expected: str
) -> None:
    done = packetflow(*(argument.replace("{endpoint}", served[0]) for argument in arguments), cwd=served[1])
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1


@pytest.mark.parametrize("command", [[], ["gateway"], ["run"], ["submit"], ["bench"], ["demo"]])
def test_help_teaches(command: list[str]) -> None:
    done = packetflow(*command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert len(done.stdout) > 100
