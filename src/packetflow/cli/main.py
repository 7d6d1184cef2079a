"""``packetflow``: the commands and their arguments."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from packetflow import Gateway, Reactor, run
from packetflow._version import __version__
from packetflow.cli.bench import bench, render
from packetflow.cli.conformance import render_outcome, render_verdict
from packetflow.cli.demo import demo
from packetflow.cli.top import fetch, render_top
from packetflow.conformance import Outcome, check_client, check_server
from packetflow.endpoint import DEFAULT_PATH, DEFAULT_PORT, parse_endpoint
from packetflow.errors import ConnectionLost, InvalidPacket, PacketFlowError
from packetflow.gateway import hash_token, new_token
from packetflow.gateway.collector import Collector
from packetflow.gateway.config import load_config
from packetflow.gateway.memory import choose_allocator
from packetflow.gateway.processes import kill_all
from packetflow.logs import JsonFormatter, RateLimit, TextFormatter, escape_controls

__all__ = ["main"]

log = logging.getLogger("packetflow.cli")

_RATE_LIMIT = RateLimit()
"""One for every handler, whatever logger a record comes from: the bound is the log's."""

DEFAULT_ENDPOINT = f"ws://127.0.0.1:{DEFAULT_PORT}{DEFAULT_PATH}"


class Failure(click.ClickException):
    """One clear line, exit code 2; several where a file has several mistakes."""

    exit_code = 2

    def __init__(self, *lines: str) -> None:
        # they may hold what a peer sent
        super().__init__("\n".join(escape_controls(line) for line in lines))


class EndpointType(click.ParamType):  # type: ignore[type-arg]
    """A ws://, wss://, packetflow:// or packetflows:// URL."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_endpoint(value)
            return str(value)  # as it stands: it may hold credentials
        except (TypeError, ValueError) as error:
            raise Failure(str(error)) from None


class JsonType(click.ParamType):  # type: ignore[type-arg]
    """A JSON value."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise Failure(f"data: expected JSON such as '\"hello\"' or '[1, 2]', got {value!r}: {error}") from None


endpoint_option = click.option(
    "--endpoint", type=EndpointType(), default=DEFAULT_ENDPOINT, show_default=True, help="The gateway to dial."
)


token_option = click.option(
    "--token", envvar="PACKETFLOW_TOKEN", help="A bearer token for the gateway (or PACKETFLOW_TOKEN)."
)


def _until_signal(
    main: Coroutine[Any, Any, Any], on_hangup: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> Any:
    """Runs until SIGINT or SIGTERM, then lets `main` clean up; a second one ends at once.

    SIGHUP runs `on_hangup`, one at a time.

    Returns what `main` does, None where a signal ended it.
    """
    told = False
    before: dict[int, Any] = {}

    async def supervise() -> Any:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: object) -> None:
            # called between two instructions of whatever runs, so that the second helps where the loop is stuck, too
            nonlocal told
            if told:
                _end_at_once(number)
            told = True
            loop.call_soon_threadsafe(task.cancel)

        hung_up = asyncio.Event()

        async def on_hangups() -> None:
            assert on_hangup is not None
            while True:
                await hung_up.wait()
                hung_up.clear()
                try:
                    await on_hangup()
                except Exception:
                    log.exception("SIGHUP changed nothing, or not everything")

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
        if on_hangup is not None and hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, hung_up.set)
            hangups = asyncio.ensure_future(on_hangups())
            task.add_done_callback(lambda _: hangups.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            return None

    try:
        return run(supervise())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(number: int) -> None:
    """Ends this process as the signal would have by itself, and takes along what it has started."""
    kill_all()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be in the middle of a write
            stream.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="packetflow")
@click.option("-v", "--verbose", count=True, help="Log to standard error; twice for more.")
def main(verbose: int) -> None:
    """Packets of work over WebSocket: run a gateway, run reactors, submit packets, measure.

    A gateway listens; reactors dial it. Packets name what shall handle them as
    group:element, such as df:transform.

    \b
    packetflow demo                                  see it work, in 15 seconds
    packetflow gateway                               listen on 127.0.0.1:8443
    packetflow run app:reactor                       run the reactor in app.py
    packetflow submit df:transform '"hello"'         submit a packet, print its result
    packetflow bench df:transform '"hello"'          load it and print latencies
    packetflow conformance                           hold a gateway against the protocol
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _set_up_log(None)


@main.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="A gateway.toml; see docs/operations.md."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535), help="0: any free.")
@click.option("--path", default=DEFAULT_PATH, show_default=True, help="Path of the WebSocket.")
@click.option(
    "--handlers",
    metavar="MODULE:NAME",
    help="A function that is given the gateway and registers handlers on it, as in app:setup.",
)
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, without any authentication.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Of the log on standard error.")
@click.pass_context
def gateway(
    context: click.Context,
    config_path: Path | None,
    host: str,
    port: int,
    path: str,
    handlers: str | None,
    insecure: bool,
    log_format: str | None,
) -> None:
    """Listen for reactors, route packets between them, and run handlers of its own.

    With --config, SIGHUP reads certificates, tokens, roles and limits again.
    SIGINT and SIGTERM drain: no new packets, those under way finish. A second one ends at once.

    \b
    packetflow gateway --port 9000 --handlers app:setup
    # app.py
    def setup(gateway):
        @gateway.register("df", "transform")
        async def transform(data: str) -> str:
            return data.upper()
    """
    program = Path(sys.argv[0])
    if program.name == "packetflow" or (program.parent.name, program.name) == ("packetflow", "__main__.py"):
        choose_allocator()  # else this is somebody's process who calls the command: not to be begun again
    shown = f"[{host}]" if ":" in host else host
    config = None
    drain = 5.0
    tls = None
    try:
        if config_path is not None:
            given = [
                name
                for name in ("host", "port", "path", "insecure")
                if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            ]
            if given:
                raise Failure(f"--{given[0]}: expected in {config_path}, where --config is given")
            config = load_config(config_path)
            tls = config.ssl_context()
            drain = config.drain
            handlers = handlers or config.handlers
            log_format = log_format or config.log_format
            if config.store is not None:
                config.settings["store"] = _load(config.store)
            server = Gateway(**{"ssl": tls, "access": config.access, **config.settings})
        else:
            server = Gateway(f"ws://{shown}:{port}{path}", insecure=insecure)
        if handlers is not None:
            _load(handlers)(server)
    except (ValueError, OSError) as error:
        raise Failure(*str(error).split("\n")) from None
    _set_up_log(log_format)

    async def serve() -> None:
        try:
            await server.start()
        except OSError as error:
            raise Failure(f"cannot listen on {server.endpoint}: {error.strerror or error}") from None
        if config is not None:
            for group, policy in config.policies.items():
                server.switch.set_policy(group, policy)
        # this process is a gateway and nothing else
        collector = Collector(lambda: server.switch.budget.held, let_go=server.switch.let_go)
        collector.start(asyncio.get_running_loop())
        _open_files()
        handled = [*server.handles, *(["the standard elements"] if server.offers_elements else [])]
        click.echo(f"listening on {server.endpoint}, handling {', '.join(handled) or 'nothing'}")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            collector.stop()
            await server.stop(drain)

    async def reload() -> None:
        if config_path is None:
            return
        try:
            fresh = load_config(config_path)
            context = fresh.ssl_context()
            if (context is None) is not (tls is None):
                raise ValueError("tls.certificate: a gateway that runs cannot begin or cease to use TLS")
            if context is not None:
                await server.set_ssl(context)
            server.set_access(fresh.access)
            server.set_limits(**{name: fresh.settings.get(name, default) for name, default in _RELOADED.items()})
        except (ValueError, OSError) as error:
            log.error("%s stays as it was: %s", config_path, error)
            return
        log.warning("%s was read again", config_path)

    _until_signal(serve(), reload)


_RELOADED = {"max_connections": 10_000, "max_per_address": 1 << 30, "allowed_hosts": (), "allowed_origins": ()}
"""What a reload sets of the limits, and to what where the file no longer says."""


def _open_files() -> None:
    """As many connections as the system lets this process have, not as many as a shell's soft limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up_log(log_format: str | None) -> None:
    """Every handler there is, an application's own too: bounded, and safe to look at."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_RATE_LIMIT)  # once, however often it is asked to
        if log_format == "json":
            handler.setFormatter(JsonFormatter())
        elif not isinstance(handler.formatter, (TextFormatter, JsonFormatter)):
            handler.setFormatter(TextFormatter(handler.formatter))


@main.command("token")
def token_command() -> None:
    """Make a token, and print it with the digest that goes into gateway.toml."""
    token = new_token()
    click.echo(f"token   {token}\nSHA-256 {hash_token(token)}")


@main.command("top")
@endpoint_option
@token_option
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds.")
@click.option("--once", is_flag=True, help="Print one reading over one interval, and end.")
@click.option("--ca", type=click.Path(exists=True), help="Certificates to trust, PEM, for wss://.")
def top_command(endpoint: str, token: str | None, interval: float, once: bool, ca: str | None) -> None:
    """Watch a gateway: elements, rates, latencies, queues, reactors."""
    tls = ssl.create_default_context(cafile=ca)
    before = None
    try:
        while True:
            now = fetch(endpoint, token, tls)
            if before is not None:
                shown = render_top(endpoint, now, before)
                click.echo(shown if once else f"\x1b[2J\x1b[H{shown}")
                if once:
                    return
            before = now
            time.sleep(interval)
    except PermissionError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"cannot read {endpoint}: {getattr(error, 'reason', error)}") from None
    except KeyboardInterrupt:
        return


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise Failure(f"{target!r}: expected module:name, as in app:reactor")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise Failure(f"{target!r}: no module named {error.name!r} here") from None
        raise
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise Failure(f"{target!r}: {module_name} has no {attribute!r}")
        value = getattr(value, part)
    return value


@main.command("run")
@click.argument("target", metavar="MODULE:REACTOR")
def run_command(target: str) -> None:
    """Run the reactor (or gateway) in a module until it is interrupted.

    \b
    packetflow run app:reactor
    # app.py
    from packetflow import Reactor
    reactor = Reactor("ws://127.0.0.1:8443/packetflow/v1", name="worker")
    @reactor.register("df", "transform")
    async def transform(data: str) -> str:
        return data.upper()
    """
    value = _load(target)
    if not isinstance(value, (Reactor, Gateway)):
        raise Failure(f"{target!r}: expected a Reactor or a Gateway, found {type(value).__name__}")

    async def serve() -> None:
        try:
            async with value:
                click.echo(f"{target}: {value.endpoint}, handling {', '.join(value.handles) or 'nothing'}")
                await asyncio.get_running_loop().create_future()
        except (ConnectionLost, OSError) as error:
            raise Failure(error.message if isinstance(error, ConnectionLost) else str(error)) from None

    _until_signal(serve())


def _address(value: str) -> tuple[str, str]:
    group, colon, element = value.partition(":")
    if not colon:
        raise Failure(f"{value!r}: expected group:element, as in df:transform")
    return group, element


@main.command()
@click.argument("address", metavar="GROUP:ELEMENT")
@click.argument("data", type=JsonType(), default="null")
@endpoint_option
@click.option("--priority", default=5, show_default=True, type=click.IntRange(1, 10), help="10 is most urgent.")
@click.option("--timeout-ms", type=click.IntRange(1, 300_000), help="Milliseconds until an answer.  [default: 29500]")
@click.option("--retry", default=0, show_default=True, type=click.IntRange(0, 100), help="Times to send it again.")
@token_option
@click.option("--data-only", is_flag=True, help="Print what the handler returned and nothing else.")
def submit(
    address: str,
    data: Any,
    endpoint: str,
    priority: int,
    timeout_ms: int | None,
    retry: int,
    token: str | None,
    data_only: bool,
) -> None:
    """Submit one packet and print its result as JSON.

    DATA is JSON: mind the shell's quotes. Exit code 0 on success, 1 if the
    packet ended in an error, 2 if it could not be submitted.

    \b
    packetflow submit df:transform '"hello"'
    packetflow submit df:transform '{"items": [1, 2]}' --priority 9 --timeout-ms 500
    """
    group, element = _address(address)

    async def once() -> Any:
        async with Reactor(endpoint, token=token, reconnect=retry > 0) as reactor:
            packet = {
                "group": group,
                "element": element,
                "data": data,
                "priority": priority,
                "timeout_ms": timeout_ms,
            }
            return await reactor.submit(packet, retry=retry)

    try:
        result = run(once())
    except (ConnectionLost, InvalidPacket) as error:
        raise Failure(error.message) from None
    except PacketFlowError as error:
        raise Failure(str(error)) from None
    if data_only and result.ok:
        click.echo(json.dumps(result.data, ensure_ascii=False))
    else:
        shown = {"packet_id": result.packet_id, "status": result.status}
        shown |= {"data": result.data} if result.ok else {"error": result.error}
        click.echo(json.dumps(shown | {"duration_ms": result.duration_ms}, ensure_ascii=False))
    sys.exit(0 if result.ok else 1)


@main.command("bench")
@click.argument("address", metavar="GROUP:ELEMENT")
@click.argument("data", type=JsonType(), default="null")
@endpoint_option
@click.option("-c", "--connections", default=1, show_default=True, type=click.IntRange(1, 10_000))
@click.option(
    "-w",
    "--window",
    default=64,
    show_default=True,
    type=click.IntRange(1, 65_536),
    help="Packets in flight per connection.",
)
@click.option("-t", "--seconds", default=3.0, show_default=True, type=click.FloatRange(0.05, 3600))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@token_option
def bench_command(
    address: str,
    data: Any,
    endpoint: str,
    connections: int,
    window: int,
    seconds: float,
    as_json: bool,
    token: str | None,
) -> None:
    """Load a handler and print throughput and latencies.

    \b
    packetflow bench df:transform '"hello"' -c 4 -w 256 -t 10
    """
    group, element = _address(address)
    try:
        figures = run(bench(endpoint, token, group, element, data, connections, window, seconds))
    except PacketFlowError as error:
        raise Failure(error.message) from None
    click.echo(json.dumps(figures) if as_json else render(figures))


@main.command("conformance")
@click.argument("endpoint", type=EndpointType(), default=DEFAULT_ENDPOINT)
@click.option("--listen", is_flag=True, help="Listen at ENDPOINT for a client, instead of dialling a server.")
@click.option("--element", metavar="GROUP:ELEMENT", help="Of a server that does not route between its peers.")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait for a client, with --listen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines, a rule a line.")
@token_option
def conformance_command(
    endpoint: str, listen: bool, element: str | None, wait: float, as_json: bool, token: str | None
) -> None:
    """Does a server, or a client, of any implementation keep to the protocol?

    A scripted peer plays every rule, and prints what became of it and where the
    rule stands. Exit code 0 if all that must hold holds, 1 if not. A client's part
    (with --listen) is in docs/interop.md.

    \b
    packetflow conformance ws://127.0.0.1:8443/packetflow/v1
    packetflow conformance --listen ws://127.0.0.1:8444/packetflow/v1
    """
    if element is not None:
        _address(element)

    async def play() -> list[Outcome]:
        outcomes = []
        if listen:
            played = check_client(
                endpoint, timeout=wait, on_listening=lambda url: click.echo(f"listening on {url}", err=True)
            )
        else:
            played = check_server(endpoint, token=token, element=element)
        async for outcome in played:
            outcomes.append(outcome)
            click.echo(json.dumps(dataclasses.asdict(outcome)) if as_json else render_outcome(outcome))
        return outcomes

    try:
        outcomes = run(play())
    except TimeoutError:
        raise Failure(f"no client came within {wait:g} s") from None
    except (PacketFlowError, OSError, ValueError) as error:
        raise Failure(getattr(error, "message", str(error))) from None
    if not as_json:
        click.echo(render_verdict(outcomes))
    sys.exit(any(outcome.passed is False and outcome.level == "must" for outcome in outcomes))


@main.command("demo")
def demo_command() -> None:
    """Start a gateway, a worker process and a client, and watch packets go round."""
    failed = _until_signal(demo())
    sys.exit(130 if failed is None else failed)
