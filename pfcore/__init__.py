"""The compiled core of PacketFlow: bytes, memory and order."""
