"""One side of a comparison in a process of its own: ``python -m benchmarks.peers.process serve|load ...``."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

import packetflow


def main() -> None:
    side, peer, port, *rest = sys.argv[1:]
    module = importlib.import_module(f"benchmarks.peers.{peer}_peer")
    if side == "serve":
        variant = rest[0]
        main = module.serve(int(port), variant)
    else:
        payload, outstanding, seconds, variant = rest
        main = module.load(int(port), payload, int(outstanding), float(seconds), variant)
    try:
        answer = asyncio.run(main) if "stock" in variant else packetflow.run(main)
    except KeyboardInterrupt:
        return
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
