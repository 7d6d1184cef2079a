import asyncio
from collections.abc import Callable
from typing import final

__all__ = ["Sharing"]

@final
class Sharing:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def leaves(self, transport: asyncio.Transport) -> bool: ...
    def later(self, callback: Callable[[], object]) -> None: ...
