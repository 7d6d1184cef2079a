"""What the stateful elements keep: names, waiters, leases, sessions, alarms.

`Store` is the interface of everything that gateways could share, `MemoryStore`
this process's. The rest is about the links of one gateway, and stays with it.
"""

from packetflow.state.alarms import Alarm, Alarms
from packetflow.state.leases import Lease, Leases
from packetflow.state.lines import Lines
from packetflow.state.memory import MemoryStore
from packetflow.state.patterns import Patterns
from packetflow.state.sessions import Session, Sessions
from packetflow.state.store import (
    SAME,
    Change,
    Entry,
    LogBounds,
    LogFull,
    Payment,
    Store,
    StoreFull,
    Subscription,
    VersionMismatch,
    update,
)

__all__ = [
    "SAME",
    "Alarm",
    "Alarms",
    "Change",
    "Entry",
    "Lease",
    "Leases",
    "Lines",
    "LogBounds",
    "LogFull",
    "MemoryStore",
    "Patterns",
    "Payment",
    "Session",
    "Sessions",
    "Store",
    "StoreFull",
    "Subscription",
    "VersionMismatch",
    "update",
]
