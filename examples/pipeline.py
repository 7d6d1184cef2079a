"""A gateway, two named workers in processes of their own, and a gateway handler that spreads work over them."""

import asyncio
import sys
from itertools import cycle

from packetflow import Gateway, Reactor, run


async def work(endpoint: str, name: str) -> None:
    """What each worker process does."""
    reactor = Reactor(endpoint, name=name, reconnect=False)

    @reactor.register("df", "square")
    async def square(data: int) -> dict[str, object]:
        return {"value": data * data, "by": name}

    async with reactor:
        while reactor.connected:
            await asyncio.sleep(0.1)


async def main() -> None:
    """The gateway and a client."""
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    names = ["worker-1", "worker-2"]
    turns = cycle(names)

    @gateway.register("df", "square")
    def spread(data: int):  # type: ignore[no-untyped-def]
        return gateway.call("df", "square", data, reactor=next(turns))

    async with gateway:
        workers = [
            await asyncio.create_subprocess_exec(sys.executable, __file__, gateway.endpoint, name) for name in names
        ]
        for name in names:
            await gateway.wait_for_reactor(name)
        async with Reactor(gateway.endpoint) as client:
            async for result in client.map("df", "square", range(6)):
                print(result.data)
    for worker in workers:
        await worker.wait()


if __name__ == "__main__":
    run(work(*sys.argv[1:3]) if len(sys.argv) > 2 else main())
