"""One connection: what is asked over it, what is answered, and the socket, or loopback, below."""
