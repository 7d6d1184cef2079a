from typing import final

__all__ = ["FlightTable"]

@final
class FlightTable:
    def __init__(self, bound: int, now: int) -> None: ...
