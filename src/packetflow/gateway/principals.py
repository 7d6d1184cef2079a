"""The principals of a running gateway: numbered once for all its life, whatever its configuration becomes.

What somebody has asked for (packets, timers, reactions, leases) holds his
`Principal`, and so his number and role. Numbers are therefore never used
again, a role keeps its bit for as long as it is there, and a principal that is
no more is left with a role that may do nothing.
"""

from __future__ import annotations

from collections import deque

from packetflow.gateway.access import FIRST_ROLE, LAST_ROLE, NOBODY_ROLE, Access, Budgets, Identity, Role
from packetflow.model import GROUPS
from pfcore.route.flights import Principal

__all__ = ["Principals"]

ANONYMOUS_NUMBER = 0
GATEWAY_NUMBER = 1


class Principals:
    """The core's principals, and the roles' bits in the masks.

    `anonymous`: of all links without credentials; its number is 0. `named`: of the
    identities, by name; their numbers count up from 2.
    """

    def __init__(self, access: Access, budgets: Budgets) -> None:
        self._budgets = budgets
        self._numbered = GATEWAY_NUMBER
        self._bits: dict[str, int] = {}
        # the front has been free for longest: a bit is used again only when all others have been
        self._free = deque(range(FIRST_ROLE, LAST_ROLE + 1))
        self._roles: dict[int, Role] = {}
        self._access = access
        self._of_groups: dict[str, tuple[int, int, int]] = {}
        self.anonymous = Principal("anonymous", ANONYMOUS_NUMBER, NOBODY_ROLE, stored=budgets.store("anonymous"))
        self.named: dict[str, Principal] = {}
        self.change(access)

    def change(self, access: Access) -> list[Principal]:
        """These and no others from now on; those that are no more, which may do nothing any longer.

        Whoever has a name that stays is who he was, with the role and rate that
        he has now. The masks of every element are to be asked for again.
        """
        bits = {name: bit for name, bit in self._bits.items() if name in access.roles}
        free = deque(self._free)
        # nothing but principals holds a bit, and all of theirs are set below: those of roles that end here may serve
        # again, but last
        free.extend(bit for name, bit in self._bits.items() if name not in access.roles)
        for name in access.roles:
            if name not in bits:
                bits[name] = free.popleft()
        roles = {bits[name]: role for name, role in access.roles.items()}
        if access.anonymous is not None:
            roles[0] = access.anonymous
        of_groups = {group: masks for group in GROUPS if (masks := access.masks_of_group(group, bits)) is not None}
        numbered = self._numbered
        named: dict[str, Principal] = {}
        changes: list[tuple[Principal, int, float, float]] = []
        for identity in access.identities:
            bit = bits[identity.role]
            principal = self.named.get(identity.name)
            if principal is None:
                numbered += 1
                principal = self._new(identity, numbered, bit)
            named[identity.name] = principal
            changes.append((principal, bit, identity.rate, identity.burst or max(identity.rate, 1)))
        gone = [principal for name, principal in self.named.items() if name not in named]
        if access.anonymous is None and self.anonymous.role != NOBODY_ROLE:
            gone.append(self.anonymous)
        # from here on nothing raises
        for principal, bit, rate, burst in changes:
            principal.role, principal.rate, principal.burst = bit, rate, burst
        self.anonymous.role = NOBODY_ROLE if access.anonymous is None else 0
        for principal in gone:
            principal.role = NOBODY_ROLE
        self._access, self._bits, self._free, self._roles = access, bits, free, roles
        self._numbered, self.named, self._of_groups = numbered, named, of_groups
        return gone

    def of(self, identity: Identity | None) -> Principal:
        """The principal of who has proved to be this, None: of who is anonymous."""
        return self.anonymous if identity is None else self.named[identity.name]

    @property
    def alive(self) -> list[Principal]:
        """Those that may be on a link."""
        return [one for one in (self.anonymous, *self.named.values()) if one.role != NOBODY_ROLE]

    def masks(self, key: str) -> tuple[int, int, int]:
        """Which roles may submit, handle and replace an element: a bit for each."""
        # a heartbeat may announce a thousand elements: where the patterns are of whole groups, each is one look
        masks = self._of_groups.get(key[:2]) if key[2:3] == ":" else None
        return masks if masks is not None else self._access.masks(key, self._bits)

    def may_handle(self, principal: Principal, key: str) -> bool:
        """May its reactors handle this ``group:element``?"""
        role = self._roles.get(principal.role)
        group, _, element = key.partition(":")
        return role is not None and role.may_handle(group, element)

    def may_name(self, principal: Principal, name: str) -> bool:
        """May its reactors take this name?"""
        role = self._roles.get(principal.role)
        return role is not None and role.may_name(name)

    def _new(self, identity: Identity, number: int, bit: int) -> Principal:
        return Principal(
            identity.name,
            number,
            bit,
            identity.rate,
            identity.burst,
            account=self._budgets.account(identity.name),
            stored=self._budgets.store(identity.name),
        )
