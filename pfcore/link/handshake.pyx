"""Handshakes of WebSocket (RFC 6455, section 4), dialled and accepted, and plain HTTP answers: all there is of picows.

picows reads the request or the answer, checks it and writes what follows. It is
given the bytes of the handshake and none behind them: those are a link's, which
takes the connection over (`Link.connected`).
"""

import functools
import weakref

import picows
from picows.picows import WSProtocol
from picows.url import parse_url

from pfcore.link.sharing cimport Sharing
from pfcore.link.websocket cimport Connection, Link

from pfcore.errors import HandshakeRefused

__all__ = ["Gate", "HandshakeRefused", "accept", "answer", "connect"]

cdef enum:
    READ = 2048                  # bytes of a handshake that are read at once


class _Listener(picows.WSListener):
    """What picows is given for a link: its handshake has succeeded."""

    def __init__(self, link):
        self.link = link
        self.succeeded = False

    def on_ws_connected(self, transport):
        self.succeeded = True


class _Handshake(WSProtocol):
    """A connection until its handshake is done."""

    __slots__ = ("__weakref__", "head", "given", "block")

    def __init__(self, *options):
        self.head = bytearray()
        self.given = 0           # bytes of it that picows has had
        self.block = bytearray(READ)
        super().__init__(*options)

    def get_buffer(self, hint):
        return self.block

    def buffer_updated(self, count):
        head = self.head
        searched = max(len(head) - 3, 0)
        head += memoryview(self.block)[:count]
        end = head.find(b"\r\n\r\n", searched)
        if self.transport.is_client_side and not head.startswith(b"HTTP/1.1 101"):
            end = -1  # what follows is the answer's body
        whole = len(head) if end < 0 else end + 4
        while self.given < whole:
            view = WSProtocol.get_buffer(self, -1)
            n = min(len(view), whole - self.given)
            view[:n] = head[self.given:self.given + n]
            self.given += n
            WSProtocol.buffer_updated(self, n)
        if self.listener is not None and self.listener.succeeded:
            self.hand_over(self.listener.link, bytes(memoryview(head)[whole:]))

    def hand_over(self, link, rest):
        link.connected(self.transport.underlying_transport, rest)


class _Dialling(_Handshake):
    """The connection of one dialling."""

    __slots__ = ("link",)

    def __init__(self, link, target, headers, logger):
        self.link = link
        super().__init__(
            target.netloc, target.resource_name, True, self.take, logger, True,
            None,  # the time limit is the caller's
            False, 10.0, 10.0, picows.WSAutoPingStrategy.PING_WHEN_IDLE, False, 0, headers, READ)

    def present(self):
        """The factory of a protocol that is there already."""
        return self

    def take(self):
        """The listener, once the handshake is done."""
        if self.link is None:
            raise ConnectionError("nobody waits for this connection any more")
        return _Listener(self.link)

    def connection_made(self, transport):
        if self.link is None:
            transport.abort()
        super().connection_made(transport)

    def give_up(self):
        """Whoever dialled is gone: neither an answer that comes late nor the connection is of use to anybody."""
        self.link = None
        if self.transport is not None:
            self.transport.underlying_transport.abort()


async def connect(Link link not None, str url, *, headers, ssl, logger):
    """Dials `url` for a link that has no connection; returns once it is open.

    `headers`: of the handshake, or None. `ssl`: an `ssl.SSLContext`, None for the default one.
    Raises `HandshakeRefused`, ConnectionError where the peer closed what it had just opened or
    does not speak WebSocket, and OSError. Whatever it raises, and when it is cancelled: no
    connection is left, nor one on its way. It knows no time: whoever waits for it sees to that.
    """
    import aiofastnet

    target = parse_url(url)
    protocol = _Dialling(link, target, headers, logger)
    if target.is_secure:
        ssl = True if ssl is None else ssl
    else:
        ssl = None
    try:
        await aiofastnet.create_connection(link.loop, protocol.present, target.host, target.port, ssl=ssl)
        await protocol.wait_until_handshake_complete()
        if link.ended:
            # a connection that goes in the middle of the handshake, or in the same segment, counts as made there
            why = f" (close code {link.close_code}: {link.close_reason})" if link.close_reason else ""
            raise ConnectionError(f"the connection was closed during the handshake{why}")
    except BaseException as error:
        protocol.give_up()
        link.detach()
        if isinstance(error, picows.WSHandshakeError):
            status = getattr(error.response, "status", None)
            raise HandshakeRefused(str(error), status, error.raw_body or b"") from error
        if isinstance(error, picows.WSError):
            raise ConnectionError(str(error) or type(error).__name__) from error
        raise


# -- what `Gate.admit` returns

def accept(link not None, headers=None):
    """A request becomes a connection: the link's. `headers`: more of the answer 101."""
    return picows.WSUpgradeResponseWithListener(picows.WSUpgradeResponse.create_101_response(headers), _Listener(link))


def answer(int status, bytes body not None, headers=None):
    """A request gets an answer, and its connection ends."""
    if status == 200:
        response = picows.WSUpgradeResponse.create_ok_response(body, headers)
    else:
        response = picows.WSUpgradeResponse.create_error_response(status, body, headers)
    return picows.WSUpgradeResponseWithListener(response, None)


class _Arrival(_Handshake):
    """One accepted connection until its handshake is done. Its gate is told of it from its first byte to its last."""

    __slots__ = ("address", "context", "gate", "peer", "shaking", "timer")

    def connection_made(self, transport):
        self.gate.shaking.discard(self.shaking)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) and peer else ""
        self.context = transport.get_extra_info("sslcontext")
        self.peer = transport.get_extra_info("peercert")
        self.timer = None
        if not self.gate.arrived(self.address):
            self.gate = None
            transport.abort()
            return
        # picows's own timeout leaves an exception behind that nobody fetches
        self.timer = self.gate.loop.call_later(self.gate.timeout, transport.abort)
        super().connection_made(transport)

    def hand_over(self, link, rest):
        gate, self.gate = self.gate, None
        self.timer.cancel()
        link.connected(
            self.transport.underlying_transport, rest, functools.partial(gate.departed, self.address))

    def eof_received(self):
        # as with a link's: thousands may go in one iteration of the loop
        if self.gate is None or self.context is not None:
            return False
        return self.gate.sharing.leaves(self.transport.underlying_transport)

    def connection_lost(self, error):
        gate, self.gate = self.gate, None
        if gate is None:
            return
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(error)
        gate.departed(self.address)


class _Watch:
    """Handles what asyncio's transports report of connections that a gate accepted.

    A connection that breaks is no fault of this process, and anyone can break many: its gate learns of it, and
    asyncio's log does not. (One that is closed within the handshake of TLS is reported with a class for an
    exception.) What is reported of anything else goes where it went before.
    """

    def __init__(self, before):
        self.before = before

    def __call__(self, loop, context):
        error = context.get("exception")
        kind = error if isinstance(error, type) else type(error)
        find = getattr(context.get("transport"), "get_protocol", None)
        if issubclass(kind, OSError) and find is not None:
            protocol = find()
            if isinstance(protocol, _Arrival) or (isinstance(protocol, Connection) and protocol.accepted):
                return
        if self.before is not None:
            self.before(loop, context)
        else:
            loop.default_exception_handler(context)

    @classmethod
    def install(cls, loop):
        """On the loop, once. It stays: connections end after the gate has been closed."""
        before = loop.get_exception_handler()
        if not isinstance(before, cls):
            loop.set_exception_handler(cls(before))


class Gate:
    """Accepts connections for a gateway.

    `admit`: called with ``(request, address, certificate)`` once the handshake has been read, returns what `accept`
    or `answer` made. `arrived`: called with the address of a new connection; False turns it away before anything is
    read. `departed`: called with it when the connection has gone. `timeout`: seconds from the connection to the end
    of its handshake. `sharing`: that of its links. `may_begin`: called with how many handshakes of TLS are under
    way; False turns one more away. `on_cut`: called when one of them did not come to its end.
    """

    def __init__(self, admit, arrived, departed, *, may_begin, on_cut, Sharing sharing not None, double timeout,
                 logger):
        self.admit = admit
        self.arrived = arrived
        self.departed = departed
        self.may_begin = may_begin
        self.on_cut = on_cut
        self.context = None  # ssl.SSLContext of the handshakes to come: whoever listens sets it
        self.shaking = set()  # weak references to protocols whose handshake of TLS is under way
        self.sharing = sharing
        self.loop = sharing.loop
        self.timeout = timeout
        self.logger = logger

    def __call__(self):
        if self.context is not None and not self.may_begin(len(self.shaking)):
            raise ConnectionRefusedError("too many handshakes of TLS are under way")  # closes the socket, silently

        def admit(request):
            protocol = made()
            if protocol.peer and protocol.context is not self.context:
                # by an authority that may be trusted no longer
                return answer(503, b"the certificates were changed meanwhile: try again\n")
            return self.admit(request, protocol.address, protocol.peer)

        protocol = _Arrival(
            None, None, False, admit, self.logger, True, None, False, 20.0, 20.0,
            picows.WSAutoPingStrategy.PING_WHEN_IDLE, False, 0, None, READ)
        protocol.gate = self
        made = weakref.ref(protocol)  # no cycle: one that never gets a connection goes with its transport
        protocol.shaking = None
        if self.context is not None:
            # the transport tells a protocol of nothing before the connection is made, but it lets go of it
            protocol.shaking = weakref.ref(protocol, self.lost)
            self.shaking.add(protocol.shaking)
        return protocol

    def lost(self, reference):
        """A protocol is gone; if it was still shaking hands, nothing came of it."""
        if reference in self.shaking:
            self.shaking.discard(reference)
            self.on_cut()

    async def listen(self, **options):
        """An `asyncio.Server`; options as for `loop.create_server`. Raises OSError."""
        import aiofastnet

        _Watch.install(self.loop)
        return await aiofastnet.create_server(self.loop, self, **options)
