"""A work queue by stream and acknowledgement: a worker that dies in the middle of a job loses none.

python examples/work_queue.py
"""

import asyncio
from contextlib import suppress

from packetflow import Gateway, PacketFlowError, Reactor


async def work(worker: Reactor, done: set[int], dies_at: int | None = None) -> None:
    """Takes jobs for ever; each is acknowledged when the loop comes back for the next."""
    async for item in worker.stream("jobs").consume("workers", max=5, redeliver_after=0.2):
        if item.data["n"] == dies_at:
            raise RuntimeError("the power went out")
        await asyncio.sleep(0.001)
        done.add(item.data["n"])


async def main() -> None:
    done: set[int] = set()
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway, Reactor(gateway.endpoint) as client:
        await client.stream("jobs").produce(*({"n": n} for n in range(50)))
        async with (
            Reactor(gateway.endpoint, name="doomed") as doomed,
            Reactor(gateway.endpoint, name="steady") as steady,
        ):
            falls = asyncio.ensure_future(work(doomed, done, dies_at=3))
            goes_on = asyncio.ensure_future(work(steady, done))
            with suppress(RuntimeError):
                await falls
            while len(done) < 50:
                await asyncio.sleep(0.01)
            goes_on.cancel()
            with suppress(asyncio.CancelledError, PacketFlowError):
                await goes_on
        print(len(done), "of 50 jobs done, with one worker lost")


asyncio.run(main())
