from typing import final

__all__ = ["Fragments"]

@final
class Fragments:
    def __init__(self, limit: int) -> None: ...
