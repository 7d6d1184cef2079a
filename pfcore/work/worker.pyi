from pfcore.link.engine import Sink

__all__: list[str] = []

class WorkerHost(Sink): ...
