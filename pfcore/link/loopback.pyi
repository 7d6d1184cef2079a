import asyncio

from pfcore.link.driver import Driver
from pfcore.link.engine import Engine
from pfcore.link.sharing import Sharing

__all__ = ["Loopback"]

class Loopback(Driver):
    def __init__(
        self, near: Engine, far: Engine, *, loop: asyncio.AbstractEventLoop, sharing: Sharing | None = None
    ) -> None: ...
    @property
    def far(self) -> Engine: ...
    def open_up(self) -> None: ...
    def shut(self, code: str, message: str) -> None: ...
