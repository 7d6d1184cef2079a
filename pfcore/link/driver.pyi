import asyncio

from pfcore.link.engine import Engine
from pfcore.link.sharing import Sharing

__all__ = ["Driver"]

class Driver:
    def __init__(
        self, engine: Engine, *, loop: asyncio.AbstractEventLoop | None, sharing: Sharing | None = None
    ) -> None: ...
    @property
    def sharing(self) -> Sharing | None: ...
    @property
    def engine(self) -> Engine: ...
    def flush_ended(self) -> None: ...
