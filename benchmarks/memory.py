"""Resident memory of idle connections on a gateway: ``python -m benchmarks.memory``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

from packetflow import Gateway, Reactor, run


def resident_kib(pid: int | str = "self") -> int:
    """Resident set of a process in KiB (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def serve() -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1", max_connections=100_000)
    gateway.register("df", "echo", lambda data: data)
    async with gateway:
        print(gateway.endpoint, flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            gc.collect()
            print(gateway.connections, resident_kib(), flush=True)
            if line.strip() == "end":
                break


async def measure(connections: int) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory", "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout
    endpoint = stdout.readline().strip()

    def ask() -> tuple[int, int]:
        stdin.write("memory\n")
        stdin.flush()
        count, kib = stdout.readline().split()
        return int(count), int(kib)

    async def dial(count: int) -> list[Reactor]:
        reactors = [Reactor(endpoint) for _ in range(count)]
        for start in range(0, count, 100):
            await asyncio.gather(*(reactor.start() for reactor in reactors[start : start + 100]))
        return reactors

    warm = await dial(50)  # pools and caches fill once
    before = ask()
    reactors = await dial(connections)
    await asyncio.gather(*(reactor.call("df", "echo", "x") for reactor in reactors))
    after = ask()
    assert after[0] - before[0] == connections
    print(f"{connections:,} connections: {(after[1] - before[1]) / connections:.1f} KiB of resident memory each")
    for reactor in warm + reactors:
        await reactor.stop()
    stdin.write("end\n")
    stdin.close()
    server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run(serve())
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run(measure(options.connections))


if __name__ == "__main__":
    main()
