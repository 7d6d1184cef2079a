"""Patterns: what is kept for a name, or with a trailing ``*`` for names that begin so."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Patterns"]

T = TypeVar("T")


class Patterns(Generic[T]):
    """Values by pattern; `match` finds those of a name, in time that does not grow with their number."""

    def __init__(self) -> None:
        self._values: dict[str, dict[T, None]] = {}
        self._lengths: dict[int, int] = {}  # of a prefix -> how many patterns

    def __bool__(self) -> bool:
        return bool(self._values)

    def add(self, pattern: str, value: T) -> None:
        """Keeps a value under a pattern."""
        values = self._values.get(pattern)
        if values is None:
            values = self._values[pattern] = {}
            if pattern.endswith("*"):
                length = len(pattern) - 1
                self._lengths[length] = self._lengths.get(length, 0) + 1
        values[value] = None

    def remove(self, pattern: str, value: T) -> None:
        """Takes it out, if it is there."""
        values = self._values.get(pattern)
        if values is None:
            return
        values.pop(value, None)
        if not values:
            del self._values[pattern]
            if pattern.endswith("*"):
                length = len(pattern) - 1
                self._lengths[length] -= 1
                if not self._lengths[length]:
                    del self._lengths[length]

    def match(self, name: str) -> list[T]:
        """The values of all patterns that a name fits."""
        found = list(self._values.get(name, ()))
        for length in self._lengths:
            if length <= len(name):
                found.extend(self._values.get(f"{name[:length]}*", ()))
        return found
