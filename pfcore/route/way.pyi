from pfcore.link.engine import Sink

__all__ = ["Way"]

class Way(Sink): ...
