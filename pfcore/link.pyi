import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final

from pfcore.engine import Engine

__all__ = ["PICOWS_VERSION", "Gate", "Link", "MessageLink"]

PICOWS_VERSION: Final[str]

class Link:
    def __init__(
        self,
        engine: Engine,
        *,
        loop: asyncio.AbstractEventLoop | None,
        on_open: Callable[[Any], object] | None = None,
        on_closed: Callable[[Any], object] | None = None,
    ) -> None: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def open(self) -> bool: ...
    @property
    def unsent(self) -> int: ...
    @property
    def close_code(self) -> int: ...
    @property
    def close_reason(self) -> str | None: ...
    def close(self, code: int = 1000, reason: str = "") -> None: ...
    def abort(self) -> None: ...
    def flush_ended(self) -> None: ...
    async def wait_closed(self) -> None: ...

class MessageLink(Link):
    def __init__(
        self,
        on_message: Callable[[MessageLink, bytes, bool], object],
        *,
        loop: asyncio.AbstractEventLoop,
        on_open: Callable[[Any], object] | None = None,
        on_closed: Callable[[Any], object] | None = None,
        max_message: int = 67_108_864,
    ) -> None: ...
    def send(self, payload: bytes, text: bool = True) -> None: ...

class Gate:
    context: ssl.SSLContext | None
    shaking: set[Any]
    max_frame: int
    timeout: float
    def __init__(
        self,
        admit: Callable[[Any, str, Any], Any],
        arrived: Callable[[str], bool],
        departed: Callable[[str], object],
        *,
        may_begin: Callable[[int], bool],
        on_cut: Callable[[], object],
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        max_frame: int,
        logger: Any,
    ) -> None: ...
    def __call__(self) -> Any: ...
    def lost(self, reference: Any) -> None: ...
    async def listen(self, **options: Any) -> asyncio.Server: ...
