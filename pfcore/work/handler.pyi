from collections.abc import Callable
from typing import Any, final

from pfcore.work.keys import Keyed

__all__ = ["Handler"]

@final
class Handler(Keyed):
    def __init__(
        self,
        group: str,
        element: str,
        function: Callable[..., Any],
        *,
        wants_packet: bool = False,
        decoder: Callable[[bytes], Any] | None = None,
        plain_str: bool = False,
        returns: type | None = None,
        check: Callable[[Any], Any] | None = None,
        limit: int = 0,
        unbounded: bool = False,
        wants_caller: bool = False,
    ) -> None: ...
    @property
    def function(self) -> Callable[..., Any]: ...
    @property
    def limit(self) -> int: ...
    @property
    def wants_packet(self) -> bool: ...
    @property
    def decoder(self) -> Callable[[bytes], Any] | None: ...
    @property
    def check(self) -> Callable[[Any], Any] | None: ...
