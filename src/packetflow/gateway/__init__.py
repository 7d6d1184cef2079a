"""The gateway: what reactors dial."""

from packetflow.gateway.access import Access, Identity, Role, hash_token, new_token
from packetflow.gateway.peer import Peer
from packetflow.gateway.processes import Template
from packetflow.gateway.server import Gateway

__all__ = ["Access", "Gateway", "Identity", "Peer", "Role", "Template", "hash_token", "new_token"]
