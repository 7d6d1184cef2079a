"""`submit`, `call` and `map`: what a reactor asks others to do."""

from collections import deque

cimport cython
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uintptr_t

from pfcore.link.driver cimport Driver
from pfcore.link.reply cimport Want
from pfcore.memory.cpythonx cimport pf_next, pf_own
from pfcore.wire.packets cimport Packet, check_address, check_priority, check_timeout, packet_address, packet_from
from pfcore.wire.terms cimport W_METADATA
from pfcore.wire.writer cimport encode_extra

from pfcore.errors import exception_for

__all__ = ["PacketMap", "Submitter"]

MAX_WINDOW = 65536
MAX_RETRIES = 100


cdef int check_retry(object retry) except -1:
    if retry is True:
        return 10
    if retry is False:
        return 0
    if type(retry) is not int or not 0 <= retry <= MAX_RETRIES:
        raise ValueError(f"retry: expected 0 to {MAX_RETRIES}, True or False, got {retry!r}")
    return retry


cdef bytes retry_extra(int retries):
    return <bytes>W_METADATA + b'{"retry":%d}' % retries


cdef class Submitter:
    """Submits packets over a link. The base of `packetflow.Reactor`."""

    def __cinit__(self, *args, **kwargs):
        self.keep = [None] * ADDRESSES

    def _bind(self, Driver link):
        """Sets the link that packets go out on; None takes it away."""
        self.link = link

    cdef Driver ready_link(self):
        if self.link is None:
            raise exception_for("PF502", "not started: use `async with`, or await start() first")
        if PyThread_get_thread_ident() != self.link.thread:
            raise RuntimeError("called from another thread than the event loop's: use packetflow.sync.Reactor")
        return self.link

    cdef bytes address_of(self, object group, object element):
        # callers pass the same two string objects again and again
        cdef size_t at = ((<uintptr_t><void*>group >> 4) ^ (<uintptr_t><void*>element >> 4)) & (ADDRESSES - 1)
        cdef Address* address = &self.addresses[at]
        cdef bytes encoded
        if address.group == <void*>group and address.element == <void*>element:
            return <bytes>address.encoded
        encoded = check_address(group, element)
        self.keep[at] = (group, element, encoded)
        address.group = <void*>group
        address.element = <void*>element
        address.encoded = <void*>encoded
        return encoded

    def submit(self, packet, *, retry=0, bint raw=False):
        """Submits a packet; await the `Reply` for its `Result`.

        `packet`: a `Packet`, or a mapping with ``group``, ``element`` and, where
        wanted, ``data``, ``priority``, ``timeout_ms``, ``dependencies``,
        ``metadata``, ``id``. `retry`: how often it may be sent again, under the
        same id, after a lost worker or gateway or a refusal worth retrying
        (PF429, PF502, PF503), until its deadline: 0 to 100, True for 10
        (default 0: at most once). The `Result` tells success or error; awaiting
        raises only if there is no answer: `PacketTimeout`, `ConnectionLost`.
        `raw`: the `Result`'s data is a `msgspec.Raw`, JSON as it came (default: decoded).
        Raises at once: `InvalidPacket`, `TooLarge`, `Overloaded`, `Conflict`.
        """
        cdef Packet checked = packet_from(packet)
        cdef Driver link = self.ready_link()
        return link.submitted(link.engine.submit(
            packet_address(checked), checked.data, checked.priority, check_timeout(checked.timeout_ms),
            checked.id.encode(), encode_extra(checked, link.engine.max_depth, check_retry(retry)),
            Want.WANT_RAW if raw else Want.WANT_RESULT, link.present(), check_retry(retry)))

    def call(self, group, element, data=None, *, priority=5, timeout_ms=None, retry=0):
        """Submits a packet; await the `Reply` for what its handler returned.

        `priority`: 1 to 10, 10 most urgent. `timeout_ms`: 1 to 300,000, from
        acceptance to answer (default 29,500). `retry`: as for `submit`. Awaiting raises the exception of
        the error's code (`HandlerError`, `NoHandler`, ...), `PacketTimeout` or
        `ConnectionLost`. Raises at once: `InvalidPacket`, `TooLarge`, `Overloaded`.
        """
        cdef Driver link = self.ready_link()
        return link.submitted(link.engine.submit(
            self.address_of(group, element), data, check_priority(priority), check_timeout(timeout_ms),
            None, None if retry == 0 else retry_extra(check_retry(retry)), Want.WANT_DATA, link.present(),
            0 if retry == 0 else check_retry(retry)))

    def _map(self, group, element, items, *, priority=5, timeout_ms=None, Py_ssize_t window=1024, retry=0):
        """`map` over an iterable; see `packetflow.Reactor.map`."""
        cdef PacketMap mapping = PacketMap.__new__(PacketMap)
        if not 1 <= window <= MAX_WINDOW:
            raise ValueError(f"window: expected 1 to {MAX_WINDOW}, got {window}")
        mapping.submitter = self
        mapping.link = self.ready_link()
        mapping.address = self.address_of(group, element)
        mapping.items = iter(items)
        mapping.replies = deque()
        mapping.window = window
        mapping.priority = check_priority(priority)
        mapping.timeout_ms = check_timeout(timeout_ms)
        mapping.retries = check_retry(retry)
        mapping.extra = retry_extra(mapping.retries) if mapping.retries > 0 else None
        return mapping


@cython.final
cdef class PacketMap:
    """Results of many packets in the order of their items, at most a window of them in flight."""

    def __init__(self):
        raise TypeError("PacketMap: made by map only")

    def __aiter__(self):
        return self

    cdef int fill(self) except -1:
        cdef PyObject* item
        cdef Driver link = self.link
        while len(self.replies) < self.window:
            item = pf_next(self.items)
            if item == NULL:
                self.exhausted = True
                return 0
            self.replies.append(link.engine.submit(
                self.address, pf_own(item), self.priority, self.timeout_ms, None, self.extra, Want.WANT_RESULT,
                link.present(), self.retries))
        return 0

    def __anext__(self):
        # The head of the window is itself the awaitable: if it is done already,
        # the `async for` gets its Result without being suspended.
        if not self.exhausted:
            try:
                self.fill()
            finally:
                self.link.submitted(None)
        if not self.replies:
            raise StopAsyncIteration
        return self.replies.popleft()

    async def aclose(self):
        """Cancels what is still in flight."""
        self.cancel()

    def cancel(self):
        """Cancels what is still in flight; the iteration ends."""
        self.exhausted = True
        replies = self.replies
        self.replies = deque()
        for reply in replies:
            reply.cancel()

    def __del__(self):
        # left by `break` or an exception: nobody wants the rest any more
        if self.replies:
            self.cancel()
