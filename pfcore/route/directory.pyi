from collections.abc import Callable, Mapping
from typing import final

from pfcore.work.dispatch import Dispatcher

__all__ = ["Directory"]

@final
class Directory:
    def __init__(
        self,
        dispatcher: Dispatcher,
        permit: Callable[[str], tuple[int, int, int]],
        aliases: Mapping[str, str] | None,
        most: int,
    ) -> None: ...
