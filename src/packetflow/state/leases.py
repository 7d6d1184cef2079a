"""Leases: what somebody holds until he frees it, its time is over, or he is gone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from packetflow.errors import Overloaded
from packetflow.state.alarms import Alarm, Alarms
from packetflow.state.sessions import Session
from pfcore.memory.budget import Account
from pfcore.memory.ids import new_id

__all__ = ["Lease", "Leases"]

LEASE_BYTES = 1024
"""What a lease takes: itself, its alarm, its places in tables, what ends it."""


class Lease:
    """A grant. `kind`, `name`: of what; `principal`: whose, nobody else can free or renew it; `note`: the giver's.

    `account`: pays for it until it ends; None: nobody.
    """

    __slots__ = ("_alarm", "_end", "account", "expires_at", "id", "kind", "name", "note", "principal", "session")

    def __init__(
        self,
        kind: str,
        name: str,
        principal: int,
        session: Session,
        end: Callable[[Lease], Awaitable[None]],
        note: Any,
        account: Account | None,
    ) -> None:
        self.account = account
        self.id = new_id()
        self.kind = kind
        self.name = name
        self.principal = principal
        self.session = session
        self.note = note
        self.expires_at = 0
        self._end = end
        self._alarm: Alarm | None = None


class Leases:
    """The leases of a gateway. `end` of a lease runs once, in whichever of the three ways it ends.

    `later`: runs what ends a lease whose time is over, or whose holder is gone, soon
    and out of the account that paid for it: there may be many at once.
    """

    def __init__(
        self, alarms: Alarms, later: Callable[[Callable[[], Coroutine[Any, Any, Any]], Account | None], object]
    ) -> None:
        self._alarms = alarms
        self._later = later
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def grant(
        self,
        kind: str,
        name: str,
        principal: int,
        session: Session,
        ttl: float,
        end: Callable[[Lease], Awaitable[None]],
        note: Any = None,
        account: Account | None = None,
    ) -> Lease:
        """A lease of `ttl` seconds. Its account pays even past its bound: ask `check_room` before."""
        lease = Lease(kind, name, principal, session, end, note, account)
        if account is not None:
            account.insist(LEASE_BYTES)
        self._leases[lease.id] = lease
        session.hold(("lease", lease.id), lambda: self._lapse(lease))
        self.renew(lease, ttl)
        return lease

    @staticmethod
    def check_room(account: Account, session: Session, most: int) -> None:
        """Raises `Overloaded` where the account cannot pay for a lease, or the session has so many already."""
        if session.count("lease") >= most:
            raise Overloaded(f"{most:,} leases are this reactor's, the most that may", details={"retry_after_ms": 1000})
        if not account.may(LEASE_BYTES):
            raise Overloaded(account.refusal(LEASE_BYTES), details={"retry_after_ms": 1000})

    def find(self, lease_id: str, principal: int) -> Lease | None:
        """The lease of that id, if it is this principal's."""
        lease = self._leases.get(lease_id)
        return lease if lease is not None and lease.principal == principal else None

    def renew(self, lease: Lease, ttl: float) -> None:
        """It ends `ttl` seconds from now."""
        if lease._alarm is not None:
            lease._alarm.cancel()
        lease.expires_at = int((time.time() + ttl) * 1000)
        lease._alarm = self._alarms.at(self._alarms.now() + ttl, lambda: self._lapse(lease))

    async def free(self, lease: Lease) -> bool:
        """Ends it; False where it had ended."""
        if not self._take(lease):
            return False
        await lease._end(lease)
        return True

    def _lapse(self, lease: Lease) -> None:
        if self._take(lease):
            self._later(lambda: lease._end(lease), lease.account)  # type: ignore[arg-type, return-value]

    def _take(self, lease: Lease) -> bool:
        if self._leases.pop(lease.id, None) is None:
            return False
        if lease.account is not None:
            lease.account.release(LEASE_BYTES)
        assert lease._alarm is not None
        lease._alarm.cancel()
        lease.session.let_go(("lease", lease.id))
        return True
