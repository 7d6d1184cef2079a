from collections.abc import Callable
from typing import final

__all__ = ["Failures"]

@final
class Failures:
    def __init__(self, listener: Callable[..., object] | None) -> None: ...
    @property
    def counts(self) -> dict[str, int]: ...
