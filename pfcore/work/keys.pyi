from typing import final

__all__ = ["KeyTable", "Keyed"]

class Keyed:
    @property
    def key(self) -> str: ...

@final
class KeyTable:
    @property
    def by_key(self) -> dict[str, Keyed]: ...
    def __len__(self) -> int: ...
