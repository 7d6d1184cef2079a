"""Fan out, fan in: a pipeline in one packet, with workers that fail for a moment now and then.

python examples/fan_out.py
"""

import asyncio
import itertools

from packetflow import Gateway, Reactor, Unavailable
from packetflow.elements import loop, reduce, ref, seq, step, transform


async def main() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        workers = [Reactor(gateway.endpoint, name=f"worker-{n}") for n in range(3)]
        calls = itertools.count()
        for worker in workers:

            def count_words(line: str) -> dict[str, int]:
                if next(calls) % 5 == 0:
                    raise Unavailable("busy just now")
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

        # `retry` in a step's metadata: refused for a moment (PF503), it goes to another worker
        count = step("df", "count", ref("item"), metadata={"retry": 5})
        pipeline = seq(
            step("df", "split", ref("input")),
            transform(ref("prev"), map=count),
            reduce(ref("prev"), fold=step("df", "add", [ref("prev"), ref("item")])),
            input="the quick brown fox\njumps over the lazy dog\nthe end",
        )
        async with Reactor(gateway.endpoint) as client:
            result = await client.submit(pipeline)
            print(result.data["the"], "times 'the', and", len(result.data), "words")
            again = await client.submit(loop(step("df", "split", "a\nb"), times=3, collect=True))
            print(again.data)
        for worker in workers:
            await worker.stop()


asyncio.run(main())
