"""Gateway: the side that listens."""

from packetflow.gateway.server import Gateway

__all__ = ["Gateway"]
