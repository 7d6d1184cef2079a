import asyncio
from collections.abc import Iterable
from typing import Any

from pfcore.link.engine import Engine
from pfcore.link.pending import PendingTable
from pfcore.memory.budget import Account
from pfcore.memory.heap import PriorityHeap
from pfcore.memory.queue import Queue
from pfcore.route.ledger import Ledger
from pfcore.route.switch import Switch

__all__ = ["audit", "audit_heap", "audit_ledger", "audit_queue", "audit_table", "in_flight"]

def audit_table(table: PendingTable, name: str = "table") -> list[str]: ...
def audit_heap(heap: PriorityHeap, name: str = "heap") -> list[str]: ...
def audit_queue(queue: Queue, name: str = "queue") -> list[str]: ...
def audit_ledger(ledger: Ledger, name: str = "ledger") -> list[str]: ...
def in_flight(switch: Switch) -> dict[Engine, tuple[int, int, int, bool]]: ...
def audit(
    switch: Switch,
    *,
    engines: Iterable[Engine] = (),
    tasks: Iterable[asyncio.Task[Any]] = (),
    accounts: Iterable[Account] = (),
    at_rest: bool = False,
) -> list[str]: ...
