"""``packetflow``: the commands and their arguments."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import click

from packetflow import Gateway, Reactor, run
from packetflow._version import __version__
from packetflow.cli.bench import bench, render
from packetflow.cli.demo import demo
from packetflow.endpoint import DEFAULT_PATH, DEFAULT_PORT, parse_endpoint
from packetflow.errors import ConnectionLost, InvalidPacket, PacketFlowError

__all__ = ["main"]

DEFAULT_ENDPOINT = f"ws://127.0.0.1:{DEFAULT_PORT}{DEFAULT_PATH}"


class Failure(click.ClickException):
    """One clear line, exit code 2."""

    exit_code = 2


class EndpointType(click.ParamType):  # type: ignore[type-arg]
    """A ws://, wss://, packetflow:// or packetflows:// URL."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_endpoint(value).url
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


def _until_signal(main: Any) -> None:
    """Runs until SIGINT or SIGTERM, then lets `main` clean up."""

    async def supervise() -> None:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, task.cancel)
            except NotImplementedError:  # Windows: KeyboardInterrupt does it
                pass
        try:
            await task
        except asyncio.CancelledError:
            pass

    run(supervise())


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
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535), help="0: any free.")
@click.option("--path", default=DEFAULT_PATH, show_default=True, help="Path of the WebSocket.")
@click.option(
    "--handlers",
    metavar="MODULE:NAME",
    help="A function that is given the gateway and registers handlers on it, as in app:setup.",
)
@click.option("--insecure", is_flag=True, help="Allow an address that others can reach, without any authentication.")
def gateway(host: str, port: int, path: str, handlers: str | None, insecure: bool) -> None:
    """Listen for reactors, and run handlers of its own.

    \b
    packetflow gateway --port 9000 --handlers app:setup
    # app.py
    def setup(gateway):
        @gateway.register("df", "transform")
        async def transform(data: str) -> str:
            return data.upper()
    """
    shown = f"[{host}]" if ":" in host else host
    try:
        server = Gateway(f"ws://{shown}:{port}{path}", insecure=insecure)
        if handlers is not None:
            _load(handlers)(server)
    except ValueError as error:
        raise Failure(str(error)) from None

    async def serve() -> None:
        try:
            await server.start()
        except OSError as error:
            raise Failure(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        click.echo(f"listening on {server.endpoint}, handling {', '.join(server.handles) or 'nothing'}")
        await server.serve_forever()

    _until_signal(serve())


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
@click.option("--data-only", is_flag=True, help="Print what the handler returned and nothing else.")
def submit(address: str, data: Any, endpoint: str, priority: int, timeout_ms: int | None, data_only: bool) -> None:
    """Submit one packet and print its result as JSON.

    DATA is JSON: mind the shell's quotes. Exit code 0 on success, 1 if the
    packet ended in an error, 2 if it could not be submitted.

    \b
    packetflow submit df:transform '"hello"'
    packetflow submit df:transform '{"items": [1, 2]}' --priority 9 --timeout-ms 500
    """
    group, element = _address(address)

    async def once() -> Any:
        async with Reactor(endpoint, reconnect=False) as reactor:
            packet = {
                "group": group,
                "element": element,
                "data": data,
                "priority": priority,
                "timeout_ms": timeout_ms,
            }
            return await reactor.submit(packet)

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
def bench_command(
    address: str, data: Any, endpoint: str, connections: int, window: int, seconds: float, as_json: bool
) -> None:
    """Load a handler and print throughput and latencies.

    \b
    packetflow bench df:transform '"hello"' -c 4 -w 256 -t 10
    """
    group, element = _address(address)
    try:
        figures = run(bench(endpoint, group, element, data, connections, window, seconds))
    except PacketFlowError as error:
        raise Failure(error.message) from None
    click.echo(json.dumps(figures) if as_json else render(figures))


@main.command("demo")
def demo_command() -> None:
    """Start a gateway, a worker process and a client, and watch packets go round."""
    sys.exit(run(demo()))
