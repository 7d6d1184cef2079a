from typing import final

from pfcore.route.table import FlightTable

__all__ = ["Held"]

@final
class Held:
    def __init__(self, flights: FlightTable) -> None: ...
