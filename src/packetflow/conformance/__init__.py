"""Does an implementation keep to the protocol? A scripted peer for any server and any client.

`check_server` dials a gateway as clients and workers would; `check_client`
listens, and plays the gateway to one that dials it. Both give an `Outcome` for
every rule, with the rule's place in the specification.
"""

from packetflow.conformance.client import check_client
from packetflow.conformance.rules import Outcome, Rule
from packetflow.conformance.server import check_server

__all__ = ["Outcome", "Rule", "check_client", "check_server"]
