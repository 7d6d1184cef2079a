from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, final

from pfcore.link.driver import Driver
from pfcore.link.reply import Reply
from pfcore.wire.packets import Packet, Result

__all__ = ["PacketMap", "Submitter"]

class Submitter:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def _bind(self, link: Driver | None) -> None: ...
    def _map(
        self,
        group: str,
        element: str,
        items: Iterable[Any],
        *,
        priority: int = 5,
        timeout_ms: int | None = None,
        window: int = 1024,
        retry: int | bool = 0,
    ) -> PacketMap: ...
    def submit(self, packet: Packet | Mapping[str, Any], *, retry: int | bool = 0, raw: bool = False) -> Reply: ...
    def call(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        priority: int = 5,
        timeout_ms: int | None = None,
        retry: int | bool = 0,
    ) -> Reply: ...

@final
class PacketMap(AsyncIterator[Result]):
    def __aiter__(self) -> PacketMap: ...
    def __anext__(self) -> Reply: ...
    async def aclose(self) -> None: ...
    def cancel(self) -> None: ...
