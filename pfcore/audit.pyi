import asyncio
from collections.abc import Iterable
from typing import Any

from pfcore.budget import Account
from pfcore.engine import Engine
from pfcore.heap import PriorityHeap
from pfcore.ledger import Ledger
from pfcore.pending import PendingTable
from pfcore.switch import Switch

__all__ = ["audit", "audit_heap", "audit_ledger", "audit_table", "deliver", "in_flight"]

def audit_table(table: PendingTable, name: str = "table") -> list[str]: ...
def audit_heap(heap: PriorityHeap, name: str = "heap") -> list[str]: ...
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
def deliver(engine: Engine, messages: Iterable[bytes], now: int) -> None: ...
