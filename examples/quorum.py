"""A quorum read by vote: an answer counts once most replicas agree on it.

python examples/quorum.py
"""

import asyncio

from packetflow import Gateway, Reactor


async def main() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        replicas = []
        for n, balance in enumerate([100, 100, 90, 100, 100]):  # one is behind
            replica = Reactor(gateway.endpoint, name=f"replica-{n}")
            replica.register("df", "balance", lambda account, balance=balance: {"account": account, "balance": balance})
            await replica.start()
            replicas.append(replica)
        while len(gateway.switch.reactors_for("df:balance")) < 5:
            await asyncio.sleep(0.001)
        async with Reactor(gateway.endpoint) as client:
            read = await client.poll("df", "balance", "ada", need=3)
            print(read["decision"], "by", read["tally"][0][1], "of 5")
            assert read["decision"] == {"account": "ada", "balance": 100}

            await replicas[0].stop()  # and one is gone
            while len(gateway.switch.reactors_for("df:balance")) > 4:
                await asyncio.sleep(0.001)
            assert (await client.poll("df", "balance", "ada", need=3))["decided"]
        for replica in replicas[1:]:
            await replica.stop()


asyncio.run(main())
