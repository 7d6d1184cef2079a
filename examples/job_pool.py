"""A rate-limited job pool: only so many jobs at once, whoever submits them.

python examples/job_pool.py
"""

import asyncio

from packetflow import Gateway, Reactor


async def main() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway, Reactor(gateway.endpoint, name="worker") as worker:
        running = most = 0

        async def render(job: int) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            return f"job {job} done"

        worker.register("df", "render", render)

        async def submit(client: Reactor, job: int) -> str:
            # five seats for the whole company; urgent jobs wait in the same line, further to the front
            seat = await client.pool("render seats", capacity=5).alloc(wait=20)
            try:
                answer: str = await client.call("df", "render", job)
                return answer
            finally:
                await seat.free()

        async with Reactor(gateway.endpoint) as one, Reactor(gateway.endpoint) as other:
            jobs = [submit(client, job) for job, client in enumerate([one, other] * 20)]
            done = await asyncio.gather(*jobs)
            print(len(done), "jobs done, at most", most, "at once")
            assert most <= 5


asyncio.run(main())
