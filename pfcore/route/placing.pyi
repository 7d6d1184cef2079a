from pfcore.route.way import Way

__all__ = ["Placing"]

class Placing(Way):
    @property
    def routed(self) -> int: ...
