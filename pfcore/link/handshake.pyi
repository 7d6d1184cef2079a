import asyncio
import ssl as ssl_module
from collections.abc import Callable, Mapping
from typing import Any

from pfcore.errors import HandshakeRefused as HandshakeRefused
from pfcore.link.sharing import Sharing
from pfcore.link.websocket import Link

__all__ = ["Gate", "HandshakeRefused", "accept", "answer", "connect"]

def accept(link: Link, headers: Mapping[str, str] | None = None) -> Any: ...
def answer(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Any: ...
async def connect(
    link: Link,
    url: str,
    *,
    headers: Mapping[str, str] | None,
    ssl: ssl_module.SSLContext | None,
    logger: Any,
) -> None: ...

class Gate:
    context: ssl_module.SSLContext | None
    shaking: set[Any]
    timeout: float
    def __init__(
        self,
        admit: Callable[[Any, str, Any], Any],
        arrived: Callable[[str], bool],
        departed: Callable[[str], object],
        *,
        may_begin: Callable[[int], bool],
        on_cut: Callable[[], object],
        sharing: Sharing,
        timeout: float,
        logger: Any,
    ) -> None: ...
    def __call__(self) -> Any: ...
    def lost(self, reference: Any) -> None: ...
    async def listen(self, **options: Any) -> asyncio.Server: ...
