from pfcore.link.engine import Acceptor

__all__: list[str] = []

class WorkerHost(Acceptor): ...
