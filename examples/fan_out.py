"""Fan out, fan in: a pipeline in one packet, mapped over three workers, one of which is lost on the way.

python examples/fan_out.py
"""

import asyncio

from packetflow import Gateway, Reactor
from packetflow.elements import loop, reduce, ref, seq, step, transform


async def main() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        workers = [Reactor(gateway.endpoint, name=f"worker-{n}") for n in range(3)]
        counting = asyncio.Event()
        for worker in workers:

            async def count_words(line: str) -> dict[str, int]:
                counting.set()
                await asyncio.sleep(0.05)
                words = line.lower().split()
                return {word: words.count(word) for word in words}

            worker.register("df", "split", str.splitlines)
            worker.register("df", "count", count_words)
            worker.register(
                "df", "add", lambda pair: {k: pair[0].get(k, 0) + pair[1].get(k, 0) for k in {**pair[0], **pair[1]}}
            )
            await worker.start()
        while len(gateway.switch.reactors_for("df:add")) < 3:
            await asyncio.sleep(0.001)

        # `retry` in a step's metadata: when its worker is lost it goes to another, under the same id
        count = step("df", "count", ref("item"), metadata={"retry": 5})
        pipeline = seq(
            step("df", "split", ref("input")),
            transform(ref("prev"), map=count),
            reduce(ref("prev"), fold=step("df", "add", [ref("prev"), ref("item")])),
            input="the quick brown fox\njumps over the lazy dog\nthe end",
        )
        async with Reactor(gateway.endpoint) as client:
            running = client.submit(pipeline)
            await counting.wait()
            await workers.pop().stop(grace=0)
            result = await running
            print(result.data["the"], "times 'the', and", len(result.data), "words")
            again = await client.submit(loop(step("df", "split", "a\nb"), times=3, collect=True))
            print(again.data)
        for worker in workers:
            await worker.stop()


asyncio.run(main())
