"""The compiled core of PacketFlow: it knows bytes, memory and order.

The parts that are of use by themselves are here; the others (`pfcore.engine`,
`pfcore.dispatch`, `pfcore.link`, `pfcore.client`) serve ``packetflow``.
"""

from pfcore.errors import InvalidPacket, PacketFlowError
from pfcore.frames import decode_message, encode_message
from pfcore.heap import PriorityHeap
from pfcore.packets import Message, Packet, Result
from pfcore.pending import PendingTable

__all__ = [
    "InvalidPacket",
    "Message",
    "Packet",
    "PacketFlowError",
    "PendingTable",
    "PriorityHeap",
    "Result",
    "decode_message",
    "encode_message",
]
