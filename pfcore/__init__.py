"""The compiled core of PacketFlow: it knows bytes, memory and order.

The parts that are of use by themselves are here; the others (`pfcore.link.engine`,
`pfcore.work.dispatch`, `pfcore.link.websocket`, `pfcore.client`) serve ``packetflow``.
"""

from pfcore.errors import InvalidPacket, PacketFlowError
from pfcore.link.pending import PendingTable
from pfcore.memory.heap import PriorityHeap
from pfcore.wire.frames import decode_message, encode_message
from pfcore.wire.packets import Message, Packet, Result

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
