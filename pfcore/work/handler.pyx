"""What runs for one ``group:element``. See ``handler.pxd``."""

cimport cython

__all__ = ["Handler"]


@cython.final
cdef class Handler:
    """What runs for one ``group:element``.

    `limit`: packets that may be suspended in it at once, 0 for no bound but the
    dispatcher's (default). `unbounded`: its group's order does not hold for it, nor the
    dispatcher's `concurrency`, for it waits rather than works.
    `function`: called with ``(data)``, or ``(data, packet)`` if `wants_packet`, or
    ``(data, packet, caller)`` if `wants_caller`: who submitted, a Member, or a
    Principal whose link has gone.
    `decoder`: from the JSON of `data` to its value, may raise
    `msgspec.ValidationError`; None for plain JSON values. `returns`, `check`:
    a value that is not exactly a `returns` goes through `check`, which returns
    what to send or raises.
    """

    def __init__(self, group, element, function, *, bint wants_packet=False,
                 decoder=None, bint plain_str=False, returns=None, check=None, Py_ssize_t limit=0, bint unbounded=False,
                 bint wants_caller=False):
        self.name(group, element)
        if not callable(function):
            raise TypeError(f"handler for {self.key}: expected a function, got {function!r}")
        self.function = function
        self.wants_packet = wants_packet or wants_caller
        self.wants_caller = wants_caller
        self.decoder = decoder
        self.plain_str = plain_str
        self.returns = returns
        self.check = check
        if limit < 0:
            raise ValueError(f"handler for {self.key}: expected a concurrency of at least 1, got {limit}")
        self.limit = limit
        self.unbounded = unbounded
