from typing import final

from pfcore.memory.budget import Account
from pfcore.memory.heap import HeapEntry

__all__ = ["Queue", "Rounds"]

@final
class Queue:
    @property
    def count(self) -> int: ...
    def __len__(self) -> int: ...
    def add(self, item: object, account: Account | None, priority: int) -> HeapEntry: ...
    def take(self, rounds: Rounds) -> object: ...
    def discard(self, entry: HeapEntry, account: Account | None) -> None: ...

@final
class Rounds:
    pass
