from typing import final

from pfcore.route.table import FlightTable

__all__ = ["Dependencies"]

@final
class Dependencies:
    def __init__(self, flights: FlightTable) -> None: ...
