"""A gateway's routing: which link gets a packet, what waits, how packets ended."""
