from typing import final

__all__ = ["Outcomes"]

@final
class Outcomes:
    def __init__(self, most: int, most_bytes: int) -> None: ...
