"""The command line as a user meets it: in processes of its own, or in this one where that shows as much."""

from __future__ import annotations

import asyncio
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
from click.testing import CliRunner

from packetflow import Access, Gateway
from packetflow.cli import demo as demo_module
from packetflow.cli import main
from packetflow.cli.bench import Histogram, bench, render
from packetflow.cli.main import EndpointType, JsonType, _end_at_once, _until_signal
from tests.helpers import ROLES, TOKENS, get, identities, until

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


# ---------------------------------------------------------------- signals

posix = pytest.mark.skipif(os.name != "posix", reason="signals between processes")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What would end this process raises SystemExit instead."""
    killed: list[tuple[int, ...]] = []

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    monkeypatch.setattr(os, "_exit", leave)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "SIG_DFL", before)  # ... and its handler stays what it was
    return killed


@posix
@pytest.mark.parametrize("system", ["posix", "nt"])
def test_the_second_signal_ends_a_process_as_the_signal_would(
    ends: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", system)
        with pytest.raises(SystemExit) as caught:
            _end_at_once(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert ends == ([(os.getpid(), signal.SIGTERM)] if system == "posix" else [])


@posix
def test_the_first_signal_lets_a_command_clean_up_and_the_second_does_not(ends: list[tuple[int, ...]]) -> None:
    did = []

    async def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            did.append("cleans up")
            signal.raise_signal(signal.SIGINT)
            did.append("has cleaned up")

    with pytest.raises(SystemExit) as caught:
        _until_signal(work())
    assert caught.value.code == 128 + signal.SIGINT
    assert did == ["cleans up"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="SIGHUP")
def test_a_hangup_that_fails_is_logged_and_the_next_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    heard = []

    async def on_hangup() -> None:
        heard.append(len(heard))
        if len(heard) == 1:
            signal.raise_signal(signal.SIGHUP)
            raise ValueError("the file is gone")

    async def work() -> str:
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: len(heard) == 2)
        return "done"

    assert _until_signal(work(), on_hangup) == "done"
    assert [record.message for record in caplog.records] == ["SIGHUP changed nothing, or not everything"]


@posix
def test_a_gateway_without_a_configuration_has_nothing_to_read_again(tmp_path: Path) -> None:
    process, line = start("gateway", "--port", "0", cwd=tmp_path, ready="handling the standard elements")
    process.send_signal(signal.SIGHUP)
    done = packetflow("submit", "rm:cache", '{"op":"incr","key":"k"}', "--endpoint", line.split()[2].rstrip(","))
    assert done.returncode == 0
    assert end(process) == 0


@posix
def test_top_goes_on_until_it_is_interrupted(served: tuple[str, Path]) -> None:
    process, _ = start("top", "--interval", "0.1", "--endpoint", served[0], cwd=served[1], ready="^ws://")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("ws://"):
        pass
    assert end(process, signal.SIGINT) == 0


# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("submit", "df:x", "--endpoint", "{endpoint}"), "expected credentials"),
        (("top", "--once", "--endpoint", "{endpoint}"), "401: expected credentials"),
        (("top", "--once", "--endpoint", "{endpoint}", "--token", "wrong"), "401: these credentials are not valid"),
        (("top", "--once", "--endpoint", "ws://127.0.0.1:1"), "cannot read ws://127.0.0.1:1: "),
        (("gateway", "--config", "gateway.toml", "--port", "1"), "--port: expected in gateway.toml"),
        (("run", "packetflow_test_app:reactor"), "cannot connect to ws://127.0.0.1:1/"),
        (("run", "packetflow_test_app:gateway"), "address already in use"),
    ],
)
async def test_what_a_gateway_refuses_is_one_clear_line(
    log_as_it_was: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(ROLES, identities())) as gateway:
        (tmp_path / "packetflow_test_app.py").write_text(
            "from packetflow import Gateway, Reactor\n"
            'reactor = Reactor("ws://127.0.0.1:1/")\n'
            f"gateway = Gateway({gateway.endpoint!r})\n"
        )
        command = [one.format(endpoint=gateway.endpoint) for one in arguments]
        if command[0] != "run":
            done = await asyncio.to_thread(CliRunner().invoke, main, command)
            code, told = done.exit_code, done.output
        else:  # it has to do with signals, which are for a process's first thread
            ended = await asyncio.to_thread(packetflow, *command)
            code, told = ended.returncode, ended.stderr
    (line,) = told.splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert code == 2


def test_an_import_that_fails_inside_an_application_is_its_own_failure(
    log_as_it_was: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packetflow_test_broken.py").write_text("import packetflow_is_not_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(main, ["run", "packetflow_test_broken:reactor"])
    assert isinstance(done.exception, ModuleNotFoundError)
    assert done.exception.name == "packetflow_is_not_here"


async def test_top_reads_with_a_token_or_the_credentials_of_its_url() -> None:
    from packetflow.cli.top import fetch

    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(ROLES, identities())) as gateway:
        read = await asyncio.to_thread(fetch, gateway.endpoint, TOKENS["admin"])
        assert read.get("packetflow_handshakes_refused_total", "unauthenticated") == 0
        url = gateway.endpoint.replace("ws://", f"ws://admin:{TOKENS['admin']}@")
        assert (await asyncio.to_thread(fetch, url, None)).get("packetflow_connections") == 0
        assert (await get(gateway, "/metrics"))[0] == 401


def test_what_click_has_converted_already_stays_as_it_is() -> None:
    assert JsonType().convert([1], None, None) == [1]
    assert EndpointType().convert("ws://x", None, None) == "ws://x"


def test_latencies_of_nothing() -> None:
    histogram = Histogram()
    assert histogram.rows() == []
    assert histogram.quantile(0.5) == 0.0
    histogram.add(5000.0)
    assert histogram.quantile(1.0) <= 5000.0
    assert [count for _, count in histogram.rows()] == [1]


async def test_a_bench_whose_gateway_goes_away_ends_and_says_so(gateway: Gateway) -> None:
    async with gateway:
        measuring = asyncio.ensure_future(bench(gateway.endpoint, None, "df", "echo", 1, 1, 4, 60.0))
        await until(lambda: gateway.switch.remembered > 10)
        await gateway.stop(0)
        figures = await measuring
    assert figures["errors"] == {"PF502": 4} or sum(figures["errors"].values()) > 4
    assert "errors   PF502: " in render(figures)


async def test_the_demos_worker_ends_with_its_gateway(hub: Gateway) -> None:
    working = asyncio.ensure_future(demo_module._work(hub.endpoint))
    await hub.wait_for_reactor(demo_module.WORKER)
    await hub.stop(0)
    await working


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_demo_that_is_cancelled_leaves_no_worker(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "GRACE", 0.05)
    said = ""

    def says(what: str) -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return what in said

    running = asyncio.ensure_future(demo_module.demo())
    await until(lambda: says("client    connected"))
    worker = int(said.partition("worker    process ")[2].partition(",")[0])
    os.kill(worker, number)
    if number == signal.SIGKILL:
        await until(lambda: says("NoHandler"))  # the gateway knows that it has gone
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_the_module_that_is_run_does_nothing_where_it_is_imported() -> None:
    import packetflow.__main__

    assert packetflow.__main__.main is main


def test_a_command_that_is_called_begins_no_process_anew(log_as_it_was: None) -> None:
    done = CliRunner().invoke(main, ["gateway", "--host", "0.0.0.0"])
    assert done.exit_code == 2
    assert "insecure" in done.output
