from pfcore.link.engine import Acceptor

__all__ = ["Way"]

class Way(Acceptor): ...
