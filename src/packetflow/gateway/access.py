"""Who may connect to a gateway, and what they may submit and handle there.

A **role** names patterns of elements; a **principal** has a role and proves who
it is by a bearer token or a client certificate. Tokens are random text of at
least 32 characters (`new_token`), so what the configuration keeps of them is a
plain SHA-256: there is no dictionary to guess them from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packetflow.logs import has_controls
from packetflow.model import GROUPS
from pfcore.memory.budget import Account, Budget

__all__ = ["ANONYMOUS", "GATEWAY_ROLE", "NOBODY_ROLE", "Access", "Identity", "Role", "hash_token", "new_token"]

GATEWAY_ROLE = 63
"""The bit of the gateway's own role: it may do everything."""

NOBODY_ROLE = 62
"""The bit of who was a principal and is no more: no mask has it (`pfcore.route.flights` knows it, too)."""

FIRST_ROLE, LAST_ROLE = 1, 61
"""Bits for the roles of a configuration; 0 is the anonymous one's."""

_PATTERN = re.compile(r"(\*|cf|df|ed|co|mc|rm):(\*|[A-Za-z0-9_.\-]{1,64}\*?)\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_OF_NOTHING = hashlib.sha256(b"").hexdigest()


def new_token() -> str:
    """A fresh token: 43 characters, 256 bits."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What the configuration keeps of a token: SHA-256, 64 hexadecimal digits. ValueError for an empty one."""
    if not token:
        raise ValueError("token: expected a text, found an empty one")
    # a header's bytes that are not UTF-8 arrive as surrogates
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _matches(pattern: str, group: str, element: str) -> bool:
    wanted_group, _, wanted = pattern.partition(":")
    if wanted_group not in ("*", group):
        return False
    return element.startswith(wanted[:-1]) if wanted.endswith("*") else element == wanted


@dataclass(frozen=True)
class Role:
    """What a principal may do.

    `submit`, `handle`: patterns ``group:element``, either part ``*``, the element
    also with a trailing ``*``: ``"df:*"``, ``"*:*"``, ``"ed:order.*"``. `replace`:
    elements in which its reactors take the place of a handler of the gateway's
    own, ``df`` always included where `handle` has it. `admin`: may submit and
    handle ``mc``, where the patterns allow it, too. `names`: what its reactors may
    be called, each a name or the beginning of names and ``*``: ``"billing*"``
    (default: anything).
    """

    name: str
    submit: tuple[str, ...] = ()
    handle: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    admin: bool = False
    names: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not all(
            isinstance(one, str) and one and "*" not in one[:-1] for one in self.names
        ):
            raise ValueError(
                f"role {self.name!r}, names: expected a list of names such as ['billing'] or ['billing*'], "
                f"found {self.names!r}"
            )
        object.__setattr__(self, "names", tuple(self.names))
        for name in ("submit", "handle", "replace"):
            patterns = getattr(self, name)
            if isinstance(patterns, str) or not all(isinstance(one, str) for one in patterns):
                raise ValueError(f"role {self.name!r}, {name}: expected a list of patterns such as ['df:*']")
            for pattern in patterns:
                if not _PATTERN.match(pattern):
                    raise ValueError(
                        f"role {self.name!r}, {name}: expected patterns such as 'df:*', 'ed:order.*' or '*:*', "
                        f"found {pattern!r}"
                    )
            object.__setattr__(self, name, tuple(patterns))

    def _allows(self, patterns: tuple[str, ...], group: str, element: str) -> bool:
        if group == "mc" and not self.admin:
            return False
        # the usual ones at a glance: a reactor may announce a thousand elements at once
        return "*:*" in patterns or any([_matches(pattern, group, element) for pattern in patterns])

    def may_submit(self, group: str, element: str) -> bool:
        """May its principals submit packets for this element?"""
        return self._allows(self.submit, group, element)

    def may_handle(self, group: str, element: str) -> bool:
        """May its principals' reactors handle this element?"""
        return self._allows(self.handle, group, element)

    def may_replace(self, group: str, element: str) -> bool:
        """May its principals' reactors handle it in place of the gateway?"""
        return self.may_handle(group, element) and (group == "df" or self._allows(self.replace, group, element))

    def may_name(self, name: str) -> bool:
        """May its principals' reactors be called this?"""
        return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in self.names)


ANONYMOUS = Role("anonymous", submit=("*:*",), handle=("*:*",))
"""Without authentication everyone may submit and handle everything but ``mc``."""


@dataclass(frozen=True)
class Identity:
    """Someone who may connect.

    `name`: 1 to 255 characters, none of them control characters; not "anonymous",
    which is whoever presents no credentials.
    `tokens`: SHA-256 of tokens (`hash_token`), several while one replaces another.
    `certificate`: the common name of a client certificate that stands for it.
    `rate`: submits per second, 0 for no limit; `burst`: submits at once (default:
    one second's).
    """

    name: str
    role: str
    tokens: tuple[str, ...] = ()
    certificate: str | None = None
    rate: float = 0
    burst: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 255 or has_controls(self.name):
            raise ValueError(
                f"principal {self.name!r}: expected a name of 1 to 255 characters without control characters"
            )
        if self.name == "anonymous":
            raise ValueError("principal 'anonymous': expected another name; this one is whoever has no credentials")
        object.__setattr__(self, "tokens", tuple(self.tokens))
        for place, token in enumerate(self.tokens):
            if not isinstance(token, str) or not _HASH.match(token):
                raise ValueError(
                    f"principal {self.name!r}, tokens[{place}]: expected SHA-256 digests, 64 hexadecimal digits each "
                    "(packetflow token prints one), found something else"
                )
            if token == _OF_NOTHING:
                raise ValueError(
                    f"principal {self.name!r}, tokens[{place}]: expected the SHA-256 of a token (packetflow token "
                    "prints one), found that of an empty text"
                )
        if self.certificate is not None and (not isinstance(self.certificate, str) or not self.certificate):
            raise ValueError(
                f"principal {self.name!r}, certificate: expected a common name, found {self.certificate!r}"
            )
        if not (self.rate >= 0 and self.burst >= 0):  # so that NaN is none, too
            raise ValueError(f"principal {self.name!r}, rate, burst: expected 0 or more")


@dataclass(frozen=True)
class Access:
    """The roles and principals of a gateway, and whether it lets in who names none.

    `anonymous`: the role of who presents no credentials; None: they are refused.
    """

    roles: Mapping[str, Role] = field(default_factory=dict)
    identities: tuple[Identity, ...] = ()
    anonymous: Role | None = ANONYMOUS

    def __post_init__(self) -> None:
        if len(self.roles) > 60:
            raise ValueError(f"roles: expected at most 60, found {len(self.roles)}")
        names: set[str] = set()
        for identity in self.identities:
            if identity.name in names:
                raise ValueError(f"principals: the name {identity.name!r} stands there twice")
            names.add(identity.name)
        for identity in self.identities:
            if identity.role not in self.roles:
                raise ValueError(
                    f"principal {identity.name!r}, role: expected one of {sorted(self.roles) or 'none'}, "
                    f"found {identity.role!r}"
                )

    @classmethod
    def of(cls, roles: Iterable[Role], identities: Iterable[Identity], *, anonymous: Role | None = None) -> Access:
        """Access for these only; `anonymous` for everyone else, by default nobody."""
        return cls({role.name: role for role in roles}, tuple(identities), anonymous)

    @property
    def authenticates(self) -> bool:
        """Is nobody let in who does not prove who he is?"""
        return self.anonymous is None

    def masks(self, key: str, bits: Mapping[str, int]) -> tuple[int, int, int]:
        """Which roles may submit, handle and replace an element: a bit for each, the anonymous one's being 0.

        `bits`: of the roles, by name.
        """
        group, _, element = key.partition(":")
        own = 1 << GATEWAY_ROLE
        submit, handle, replace = own, own, own
        if group not in GROUPS:
            return own, own, own
        roles = [(bits[name], role) for name, role in self.roles.items()]
        if self.anonymous is not None:
            roles.append((0, self.anonymous))
        for bit, role in roles:
            submit |= role.may_submit(group, element) << bit
            handle |= role.may_handle(group, element) << bit
            replace |= role.may_replace(group, element) << bit
        return submit, handle, replace

    def masks_of_group(self, group: str, bits: Mapping[str, int]) -> tuple[int, int, int] | None:
        """`masks` of a group's elements where they are the same for each; None where a pattern names some of them."""
        roles = [*self.roles.values(), *([self.anonymous] if self.anonymous is not None else [])]
        for role in roles:
            for pattern in (*role.submit, *role.handle, *role.replace):
                wanted, _, element = pattern.partition(":")
                if wanted in ("*", group) and element != "*":
                    return None
        return self.masks(f"{group}:x", bits)

    def identify(self, headers: Any, certificate: Any) -> Identity | None:
        """Who this is, None for anonymous; raises PermissionError with what to tell them."""
        token, user = _token(headers)
        if token is not None:
            try:
                presented = hash_token(token)
            except ValueError:
                raise PermissionError("expected a token, found an empty one, or what is no text") from None
            found = None
            # every digest is compared, whatever the ones before said
            for identity in self.identities:
                for digest in identity.tokens:
                    if hmac.compare_digest(presented, digest):
                        found = identity
            if found is None or (user and not hmac.compare_digest(user.encode(), found.name.encode())):
                raise PermissionError("these credentials are not valid here")
            return found
        name = _common_name(certificate)
        if name is not None:
            for identity in self.identities:
                if identity.certificate and hmac.compare_digest(identity.certificate.encode(), name.encode()):
                    return identity
        if self.anonymous is None:
            raise PermissionError(
                "expected credentials: a bearer token in Authorization, as the password of a ws://name:token@host "
                "URL, or in the subprotocol"
            )
        return None


def _token(headers: Any) -> tuple[str | None, str]:
    """(token, user name) of a handshake's headers; the token None where they have no credentials at all.

    A token that is offered and empty is one: "", which is nobody's.
    """
    values = headers.getall("Authorization", [])
    if len(values) > 1:
        raise PermissionError("expected one Authorization header")
    if values:
        scheme, _, rest = values[0].strip().partition(" ")
        rest = rest.strip()
        if scheme.lower() == "bearer":
            return rest, ""
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                raise PermissionError("expected Basic credentials in base64") from None
            return password, user
        raise PermissionError("expected Authorization: Bearer or Basic")
    offered = [one.strip() for value in headers.getall("Sec-WebSocket-Protocol", []) for one in value.split(",")]
    tokens = [one.removeprefix("bearer.") for one in offered if one.startswith("bearer.")]
    if len(tokens) > 1:
        raise PermissionError("expected one token in the subprotocol")
    return (tokens[0] if tokens else None), ""


def _common_name(certificate: Any) -> str | None:
    """Of the certificate that TLS has verified, as `ssl.SSLSocket.getpeercert` gives it; None unless it has one."""
    if not certificate:
        return None
    found = [str(value) for names in certificate.get("subject", ()) for kind, value in names if kind == "commonName"]
    return found[0] if len(found) == 1 and found[0] else None


@dataclass(frozen=True)
class Budgets:
    """Bytes that may be held: for a principal or an anonymous link, and for all of them together.

    `held`: packets, results, output: what ends with its link or its packet.
    `stored`: stream items, the cache, pools; anonymous links share one account of it.
    """

    principal: int
    held: Budget
    stored_principal: int
    stored: Budget

    def account(self, name: str) -> Account:
        """What is held for a principal of that name."""
        return Account(name, self.principal, self.held)

    def store(self, name: str) -> Account:
        """What is stored for a principal of that name."""
        return Account(name, self.stored_principal, self.stored, "max_stored_principal_bytes")
