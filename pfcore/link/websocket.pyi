import asyncio
import ssl as ssl_module
from collections.abc import Callable, Mapping
from typing import Any, Final

from pfcore.errors import HandshakeRefused as HandshakeRefused
from pfcore.link.engine import Engine
from pfcore.link.sharing import Sharing

__all__ = [
    "PICOWS_VERSION",
    "Gate",
    "HandshakeRefused",
    "Link",
    "MessageLink",
    "accept",
    "answer",
    "connect",
]

PICOWS_VERSION: Final[str]

class Link:
    def __init__(
        self,
        engine: Engine,
        *,
        loop: asyncio.AbstractEventLoop | None,
        on_open: Callable[[Any], object] | None = None,
        on_closed: Callable[[Any], object] | None = None,
        sharing: Sharing | None = None,
    ) -> None: ...
    @property
    def sharing(self) -> Sharing | None: ...
    @property
    def quantum(self) -> int: ...
    def next_read(self) -> int: ...
    def received(self, n: int) -> None: ...
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
    def detach(self) -> None: ...
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
        sharing: Sharing,
        timeout: float,
        max_frame: int,
        logger: Any,
    ) -> None: ...
    def __call__(self) -> Any: ...
    def lost(self, reference: Any) -> None: ...
    async def listen(self, **options: Any) -> asyncio.Server: ...
