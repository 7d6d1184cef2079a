"""What the elements keep of names: records in, JSON in the store, so that any gateway can read what another wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import msgspec

from packetflow.errors import exception_for
from packetflow.state import SAME, Payment, Store, update
from pfcore.memory.budget import Account

__all__ = ["Kept", "Kind"]

R = TypeVar("R", bound=msgspec.Struct)

_FREE = Payment()


class Kept(NamedTuple, Generic[R]):
    """A record and its version."""

    record: R
    version: int


class Kind(Generic[R]):
    """One kind of names in the store, and the record that is kept of each.

    `name`: of the kind, in the store. `record`: the class of its values. `size`:
    bytes that one takes. Records are not changed: what is to change is replaced.
    """

    __slots__ = ("_decode", "_encode", "_latest", "name", "record", "size")

    def __init__(self, name: str, record: type[R], size: int) -> None:
        self.name = name
        self.record = record
        self.size = size
        self._decode: Callable[[bytes], R] = msgspec.json.Decoder(record).decode
        self._encode: Callable[[R], bytes] = msgspec.json.Encoder().encode
        # a barrier's next party, and who reads its end, find what the one before has just put or read
        self._latest: tuple[bytes, R] | None = None

    def encode(self, record: R) -> bytes:
        """As the store has it."""
        value = self._encode(record)
        self._latest = value, record
        return value

    def decode(self, name: str, value: bytes) -> R:
        """What the store has of a name; PF500 where that is not of this kind."""
        latest = self._latest
        if latest is not None and latest[0] is value:
            return latest[1]
        try:
            record = self._decode(value)
        except msgspec.ValidationError as error:
            raise exception_for("PF500", f"{self.name} {name!r}: the store holds something else ({error})") from None
        self._latest = value, record
        return record

    async def get(self, store: Store, name: str) -> Kept[R] | None:
        """The record of a name, None where there is none."""
        entry = await store.get(self.name, name)
        return Kept(self.decode(name, entry.value), entry.version) if entry is not None else None

    async def update(
        self,
        store: Store,
        name: str,
        change: Callable[[R | None], R | None],
        owner: Account | None,
        *,
        more: Callable[[R], int] | None = None,
        ttl: Callable[[R], float | None] | None = None,
    ) -> Kept[R] | None:
        """Changes the record of a name, whoever else does so meanwhile; what there is then.

        `change`: from the present record (None: there is none) to the new one (None:
        the name is deleted); the record that it was given means that all stays as it
        is. It may raise, is called again when another came first, and has no effect
        of its own. `owner`: pays from when the name is made, unless `more` says that
        a record takes so many bytes more: then from now on. `ttl`: seconds that it
        stays. Raises `StoreFull`.
        """
        latest: R | None = None

        def work(before: bytes | None) -> tuple[bytes | None, Payment]:
            nonlocal latest
            found = self.decode(name, before) if before is not None else None
            latest = change(found)
            if latest is found:
                return before, _FREE
            if latest is None:
                return None, _FREE
            larger = more(latest) if more is not None else 0
            payer = owner if before is None or larger else SAME
            return self.encode(latest), Payment(self.size + larger, payer, ttl(latest) if ttl is not None else None)

        entry = await update(store, self.name, name, work)
        return Kept(latest, entry.version) if entry is not None and latest is not None else None
