"""A leader by lock and fence: one at a time, and one that was deposed without knowing does no harm.

python examples/leader.py
"""

import asyncio

from packetflow import Conflict, Gateway, Reactor


class Ledger:
    """What the lock protects. It refuses fences that are older than the newest that it has seen."""

    def __init__(self) -> None:
        self.newest = 0
        self.lines: list[str] = []

    def write(self, fence: int, line: str) -> None:
        if fence < self.newest:
            raise Conflict(f"fence {fence} is of a leader that was; {self.newest} is newer")
        self.newest = fence
        self.lines.append(line)


async def main() -> None:
    ledger = Ledger()
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway:
        async with Reactor(gateway.endpoint, name="a") as a, Reactor(gateway.endpoint, name="b") as b:
            # a leads, and is held up for so long that its lease ends: it does not renew
            stale = await a.call("rm", "lock", {"key": "leader", "ttl_ms": 50})
            ledger.write(stale["fence"], "a leads")

            async with b.lock("leader", ttl=10) as lock:  # waits until a's lease is over; renews its own
                ledger.write(lock.fence, "b leads")
                try:
                    ledger.write(stale["fence"], "a still thinks that it leads")
                except Conflict as error:
                    print("refused:", error.message)
            print(ledger.lines)
            assert ledger.lines == ["a leads", "b leads"]


asyncio.run(main())
