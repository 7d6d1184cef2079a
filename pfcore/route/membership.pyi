from typing import final

from pfcore.memory.budget import Budget
from pfcore.route.dependencies import Dependencies
from pfcore.route.directory import Directory
from pfcore.route.newcomers import Newcomers
from pfcore.route.queues import Queues

__all__ = ["Membership"]

@final
class Membership:
    def __init__(
        self,
        directory: Directory,
        newcomers: Newcomers,
        queues: Queues,
        dependencies: Dependencies,
        budget: Budget,
        link_bytes: int,
    ) -> None: ...
