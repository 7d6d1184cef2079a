from typing import final

from pfcore.route.queues import Queues
from pfcore.route.table import FlightTable

__all__ = ["Newcomers"]

@final
class Newcomers:
    def __init__(self, flights: FlightTable, queues: Queues) -> None: ...
