"""Binds an engine to picows: frames in, batched writes out, one timer."""

import time
import weakref

import picows
from picows.picows import WSProtocol
from picows.url import parse_url

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t

from picows.picows cimport WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from pfcore.link.engine cimport Engine, EngineState
from pfcore.link.fragments cimport Fragments
from pfcore.link.reply cimport Reply
from pfcore.link.sharing cimport ITERATION, QUICK, Sharing
from pfcore.memory.budget cimport Account
from pfcore.memory.buffers cimport OP_BINARY, OP_CLOSE, OP_TEXT, OutputBuffer
from pfcore.memory.bytes_ops cimport pf_utf8_valid
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns

from pfcore.errors import HandshakeRefused

__all__ = ["PICOWS_VERSION", "Gate", "HandshakeRefused", "Link", "MessageLink", "accept", "answer", "connect"]

cdef extern from *:
    """
    #ifndef PFCORE_PICOWS_VERSION
    #define PFCORE_PICOWS_VERSION "unknown"
    #endif
    """
    const char* PFCORE_PICOWS_VERSION

PICOWS_VERSION = (<bytes>PFCORE_PICOWS_VERSION).decode()
"""The picows that this module was compiled against."""

cdef enum:
    # Replies that are resumed together in the middle of a large read: enough to share the
    # way there, few enough for their values to be still in the cache and young for the
    # garbage collector.
    FIRE_AT = 32
    CUTOFF = 5                   # seconds that a peer has to take what is left when we close
    KEEP_BUFFER = 262144         # bytes of output buffer that a busy link keeps between batches
    PAUSE_READING = 8388608      # unsent bytes at which we stop reading what makes more
    LARGE_WRITE = 65536          # bytes whose writing is counted and may have to wait for the loop's next iteration
    MOST_READ = 131072           # bytes that a link reads at once: at most, at least, and the first time
    LEAST_READ = 4096
    FIRST_READ = 16384
    SMALL_PARTIAL = 16384        # bytes of a partial frame that nobody is charged for
    LONG = 1000000               # ns: one that took more will be smaller
    BYTE = 2                     # ns that reading a byte of a large frame takes
    HANDLED = 6                  # ... and that the handling of it takes, once it is whole
    EXPECTED = 60                # ... and may take: what is short may be an announcement, the dearest at 400
    REST = 4                     # so many times as long as it took a link rests after a batch that no one could cut
    LONGEST_REST = 200000000     # ns
    RECENT = 50000000            # ns: another account has had a batch since
    CLOSE_PROTOCOL = 1002
    CLOSE_POLICY = 1008
    CLOSE_INVALID_TEXT = 1007
    CLOSE_TOO_BIG = 1009
    CLOSE_INTERNAL = 1011
    CLOSE_ABNORMAL = 1006


def _pin():
    """picows's objects are reached by their binary layout, which changes between minor versions."""
    if PICOWS_VERSION != "unknown" and picows.__version__.split(".")[:2] != PICOWS_VERSION.split(".")[:2]:
        raise ImportError(
            f"packetflow-fast was compiled against picows {PICOWS_VERSION}, found {picows.__version__}: "
            f"install picows {'.'.join(PICOWS_VERSION.split('.')[:2])}.*, or reinstall packetflow-fast from source"
        )


_pin()


cdef class Link(WSListener):
    """One WebSocket connection of an `Engine`.

    `on_open`, `on_closed`: called with the link. `sharing`: that of all links of
    a gateway, None for a link alone. Made within a running event loop; picows
    calls the rest.
    """

    def __init__(self, Engine engine not None, *, loop, on_open=None, on_closed=None, Sharing sharing=None):
        self.sharing = sharing
        self.quantum = FIRST_READ
        self.engine = engine
        self.loop = loop
        self.thread = PyThread_get_thread_ident()
        self.on_open = on_open
        self.on_closed = on_closed
        self.max_message = 4 * engine.max_frame
        self.timer_at = -1
        self.close_code = CLOSE_ABNORMAL
        engine.loop = loop
        engine.wake = self._wake
        engine.flush_now = self._flush_now

    @property
    def open(self):
        """True while there is a connection."""
        return self.transport is not None

    @property
    def unsent(self):
        """Bytes of output that the peer's side has not taken yet."""
        return self.engine.out.size + (self.tcp.get_write_buffer_size() if self.tcp is not None else 0)

    cdef int64_t present(self) noexcept:
        """The time: the batch's, where one is under way."""
        return self.engine.now if self.in_batch else pf_monotonic_ns()

    # -- picows calls these

    cpdef on_ws_connected(self, WSTransport transport):
        cdef int64_t now = pf_monotonic_ns()
        self._attach(transport)
        self.engine.wall_offset = time.time_ns() - now
        self.in_batch = True
        self.engine.in_batch = True
        try:
            self.engine.connected(now)
            if self.on_open is not None:
                self.on_open(self)
        finally:
            self.end_batch()

    cdef int _attach(self, WSTransport transport) except -1:
        self.transport = transport
        self.tcp = transport.underlying_transport
        self.closing = False
        self.reading_paused = False
        self.reread = None
        if self.tcp.get_extra_info("ssl_object") is not None:
            self.reread = getattr(self.tcp, "_do_read", None)
            self.unpausable = self.reread is None
        self.close_code = CLOSE_ABNORMAL
        self.close_reason = ""
        self.backlog = 0
        return 0

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef WSMsgType kind = frame.msg_type
        cdef int64_t now
        self.got_frame = True
        if not self.in_batch:
            now = pf_monotonic_ns()
            self.batch_began = now
            self.in_batch = True
            self.engine.in_batch = True
            self.engine.now = now
            if self.engine.sink is not None:
                self.engine.sink.begin_batch(now)
        try:
            if not self.closing or kind == WSMsgType.CLOSE:
                if frame.rsv1 or frame.rsv2 or frame.rsv3:
                    self.fail(CLOSE_PROTOCOL, "reserved bits are set, and no extension was agreed")
                elif frame.fin and self.fragments is None and (
                        kind == WSMsgType.TEXT or kind == WSMsgType.BINARY):
                    self.deliver(<const unsigned char*>frame.payload_ptr, frame.payload_size,
                                 kind == WSMsgType.TEXT)
                elif kind == WSMsgType.PING or kind == WSMsgType.PONG or kind == WSMsgType.CLOSE:
                    self._control(frame)
                else:
                    self._fragment(frame)
        except Exception as error:
            # nothing a peer sends may get here; if it does, this link ends and nothing else
            self.loop.call_exception_handler({"message": "packetflow link failed", "exception": error})
            self.fail(CLOSE_INTERNAL, "internal error")
        finally:
            if frame.last_in_buffer:
                self.partial = frame.tail_size
                self.end_batch()
                if self.sharing is not None:
                    self._share()
            else:
                if len(self.engine.ready) >= FIRE_AT:
                    self._fire()
                if self.engine.worth_writing():
                    self._write()

    cpdef on_ws_disconnected(self, WSTransport transport):
        if transport is not self.transport:
            return  # `detach` came first, or this connection was never this link's
        self.fragments = None
        self._give_back()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.cutoff is not None:
            self.cutoff.cancel()
            self.cutoff = None
        self.timer_at = -1
        if self.sharing is not None and self.tcp is not None:
            self.old = self.tcp.get_protocol()  # it has a buffer as large as the largest frame: let go of in turn, too
        self.transport = None
        self.tcp = None
        self.to_end = True
        if self.sharing is None:
            self._end()
        elif not self.sharing.end(self._end) and self.engine.fatal == 0:
            self.engine.fatal = CLOSE_ABNORMAL  # until then it is given nothing more

    def _end(self):
        """What follows from a connection that has gone."""
        if not self.to_end:
            return  # `detach` has done it meanwhile
        self.to_end = False
        self.old = None
        reason = f": {self.close_reason}" if self.close_reason else ""
        self.engine.disconnected(
            f"the connection was lost (close code {self.close_code}{reason}); the answer is unknown",
            pf_monotonic_ns())
        self.flush_ended()
        if self.on_closed is not None:
            self.on_closed(self)
        self.arm()
        if self.engine.state == EngineState.CLOSED:
            self._part()

    cdef int _part(self) except -1:
        """For good: link and engine know each other no more, or only the garbage collector would end them."""
        self.engine.wake = None
        self.engine.flush_now = None
        self.on_open = None
        self.on_closed = None
        return 0

    cpdef pause_writing(self):
        self.engine.paused = True

    cpdef resume_writing(self):
        self.engine.paused = False
        self._count_unsent()
        self.engine.heard(pf_monotonic_ns())
        self._run_batch()
        if self.engine.sink is not None:
            self.engine.sink.resumed(self.engine, pf_monotonic_ns())

    # -- who pays for what is read and not yet whole, and for what is written and not yet taken

    def _share(self):
        """A batch has ended: how long it took decides how much this link reads the next time."""
        cdef int64_t now = pf_monotonic_ns()
        cdef int64_t took = now - self.batch_began
        self.sharing.note(self.engine.account, took, now)
        if took > ITERATION and now - self.sharing.switched < RECENT:
            # one packet that could not be cut, and others are here: they come first for some time
            self.rests = min(REST * took, LONGEST_REST)
        elif took >= QUICK:
            self.rests = 1
        if took > LONG and self.quantum > LEAST_READ:
            self.quantum >>= 1
        self.quick = took < QUICK

    def next_read(self):
        """Bytes that may be read at once just now."""
        if self.sharing is not None and self.sharing.full():
            return LEAST_READ
        return self.quantum

    def received(self, Py_ssize_t n):
        """`n` bytes have come; what is not a whole frame yet is held, and picows's buffer never shrinks again."""
        cdef Account account = self.engine.account
        cdef Py_ssize_t more
        cdef int64_t expected = 0
        cdef bint turns = False
        if self.got_frame:
            self.got_frame = False
            if self.quick and n >= self.quantum and self.quantum < MOST_READ:
                self.quantum <<= 1  # it had more than that, perhaps
        else:
            self.partial += n
            if self.sharing is not None and n >= LEAST_READ:
                # part of a large frame: the system has copied it, on to pages that are new perhaps
                self.sharing.note(account, max(<int64_t>n * BYTE, QUICK), self.batch_began)
                self.rests = max(self.rests, 1)
                expected = max(n * EXPECTED, self.partial * HANDLED)
                turns = True
        if self.rests > 0:
            # the transport would read on while there is more; the others come first
            if self.tcp is not None and not self.reading_paused and not self.closing and not self.unpausable:
                self.tcp.pause_reading()
                if self.rests > 1:
                    self.loop.call_later(self.rests / 1e9, self._read_on)
                elif turns:
                    self.sharing.read_later(expected, self._read_on)
                else:
                    self.loop.call_soon(self._read_on)
            self.rests = 0
        if self.partial > SMALL_PARTIAL and account is not None and 2 * self.partial > self.read_charged:
            more = 2 * self.partial - self.read_charged  # it doubles
            if not account.take(more):
                self.fail(CLOSE_POLICY, account.refusal(more))
                self.abort()
                return
            self.read_charged += more

    def _read_on(self):
        if self.tcp is not None and not self.reading_paused:
            self._resume_reading()

    cdef int _resume_reading(self) except -1:
        self.tcp.resume_reading()
        if self.reread is not None:
            # what TLS had read before is looked at with the next bytes only: aiofastnet returns where there are none
            self.loop.call_soon(self._read_again)
        return 0

    def _read_again(self):
        if self.tcp is None or self.reading_paused or self.tcp.is_closing():
            return
        try:
            self.reread()
        except Exception as error:
            self.engine._die(CLOSE_PROTOCOL, f"TLS: {error}")
            self.tcp.abort()

    cdef int _count_unsent(self) except -1:
        """Output that the peer does not take is held for it; where that is too much it is cut off."""
        cdef Account account = self.engine.account
        cdef Py_ssize_t more
        if account is None or self.tcp is None:
            return 0
        more = self.engine.out.size + <Py_ssize_t>self.tcp.get_write_buffer_size() - self.unsent_charged
        if more > 0 and not account.room(more) and self.engine.fatal == 0:
            self.engine._die(CLOSE_POLICY, f"the peer does not read: {account.refusal(more)}")
        account.settle(more)
        self.unsent_charged += more
        return 0

    def _give_back(self):
        if self.engine.account is not None:
            self.engine.account.settle(-(self.read_charged + self.unsent_charged))
        self.read_charged = 0
        self.unsent_charged = 0
        self.partial = 0

    # -- frames

    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1:
        self.engine.receive(p, n, self.engine.now)
        if text and self.engine.reader.expected != NULL and not pf_utf8_valid(p, p + n):
            # refused already (PF400); RFC 6455, section 8.1 wants the connection failed as well
            self.fail(CLOSE_INVALID_TEXT, "invalid UTF-8")
        return 0

    cdef int _control(self, WSFrame frame) except -1:
        cdef int code = CLOSE_ABNORMAL
        cdef str reason = ""
        if frame.msg_type == WSMsgType.PING:
            self.engine.heard(self.engine.now)
            return self.engine.ping_received(<const unsigned char*>frame.payload_ptr, frame.payload_size)
        if frame.msg_type == WSMsgType.PONG:
            self.engine.heard(self.engine.now)
            return 0
        if frame.payload_size >= 2:
            code = (<unsigned char>frame.payload_ptr[0] << 8) | <unsigned char>frame.payload_ptr[1]
            # picows refuses the other reserved codes itself
            if code < 1000 or 1004 <= code <= 1006 or code == 1015 or code >= 5000:
                return self.fail(CLOSE_PROTOCOL, f"close code {code} is not for use on the wire")
            reason = frame.get_close_reason() or ""
        else:
            code = 1005
        if not self.closing:
            self.close_code = code
            self.close_reason = reason
            self.closing = True
            self._write()
            if frame.payload_size >= 2:
                self.transport.send_close(<WSCloseCode>code)
            else:
                self.engine.out.clear()  # a close frame without a code, as the peer's was
                self.engine.out.add(b"", OP_CLOSE)
                self._write()
        self.transport.disconnect()
        return 0

    cdef int _fragment(self, WSFrame frame) except -1:
        """A frame that is not a whole message."""
        cdef Fragments fragments = self.fragments
        if fragments is None:
            if frame.msg_type == WSMsgType.CONTINUATION:
                return self.fail(CLOSE_PROTOCOL, "a continuation without a message")
            fragments = self.fragments = Fragments(self.max_message, self.engine.account)
        elif frame.msg_type != WSMsgType.CONTINUATION:
            return self.fail(CLOSE_PROTOCOL, "a new message inside a fragmented one")
        if not fragments.add(<const unsigned char*>frame.payload_ptr, frame.payload_size):
            return self.fail(CLOSE_TOO_BIG, f"a message of more than {self.max_message} bytes")
        if fragments.refusal is not None:
            return self.fail(CLOSE_POLICY, fragments.refusal)
        if frame.msg_type != WSMsgType.CONTINUATION:
            fragments.text = frame.msg_type == WSMsgType.TEXT
        self.engine.heard(self.engine.now)
        if frame.fin:
            self.fragments = None
            self.deliver(fragments.data, fragments.size, fragments.text)
        return 0

    # -- output

    cdef int _write(self) except -1:
        """Writes what is ready, in one go."""
        cdef OutputBuffer out = self.engine.out
        cdef int64_t began = 0
        self.engine.sent_since_wake = False
        if out.size > 0 and self.transport is not None:
            if out.size >= LARGE_WRITE and self.sharing is not None:
                began = pf_monotonic_ns()
            self.transport._fast_write(<char*>out.data, out.size)
            if out.capacity > KEEP_BUFFER:
                out.release()
            else:
                out.clear()
            if began > 0:
                # however short it was: hundreds of links may have something large to write
                self.sharing.spend(pf_monotonic_ns() - began)
        return 0

    cdef int flush(self) except -1:
        cdef Engine engine = self.engine
        while True:
            if self.transport is None:
                break
            if engine.paused:
                # the peer does not take what it has; stop reading what would make more of it
                if not self.reading_paused and not self.unpausable and \
                        engine.out.size + <Py_ssize_t>self.tcp.get_write_buffer_size() > PAUSE_READING:
                    self.reading_paused = True
                    self.tcp.pause_reading()
                self._count_unsent()
                break
            if self.reading_paused:
                self.reading_paused = False
                self._resume_reading()
            self._write()
            if engine.waiting.live() == 0:
                break
            engine.pump(engine.now)
            if engine.out.size == 0:
                break
        engine.sent_since_wake = False
        return self._check_fatal()

    cdef int _fire(self) except -1:
        """Resumes who waits for what has arrived."""
        if self.engine.sink is not None:
            self.engine.sink.end_batch()
        while self.engine.fire_ready():
            self._write()
        return 0

    cdef int end_batch(self) except -1:
        """All that has arrived was handled: resume who waited for it, and send what that made."""
        try:
            self._fire()
            if self.engine.waiting.live() > 0:
                self.engine.pump(self.engine.now)
        finally:
            self.in_batch = False
            self.engine.in_batch = False
            if self.engine.ready:
                self.flush_ended()  # an interrupt is on its way out: the others wake later
            self.flush()
            self.arm()
        return 0

    def _run_batch(self):
        """What `end_batch` does, outside of any read."""
        if self.in_batch:
            return
        self.in_batch = True
        self.engine.in_batch = True
        self.engine.now = pf_monotonic_ns()
        self.end_batch()

    def _flush_now(self):
        """The switch has written for this link in another one's batch."""
        if self.transport is not None and not self.in_batch:
            if self._waits():
                self._wake()
            else:
                self.flush()

    cdef bint _much(self) noexcept:
        """Is it much that it has to write? Then it takes its turn with others who have much to move."""
        return self.sharing is not None and self.engine.out.size >= LARGE_WRITE

    cdef bint _waits(self) noexcept:
        return self._much() and self.sharing.full()

    def _wake(self):
        """The engine has output, or an earlier deadline, and no batch is under way."""
        cdef bint much = self._much()
        if much:
            self._count_unsent()  # it waits, and somebody pays for it until then
        if not self.flush_scheduled:
            self.flush_scheduled = True
            if much:
                self.sharing.move_later(self._on_wake)
            else:
                self.loop.call_soon(self._on_wake)

    def _on_wake(self):
        if self._waits() and not self.in_batch:
            self.sharing.move_later(self._on_wake)
            return
        self.flush_scheduled = False
        self.engine.sent_since_wake = False
        self._run_batch()

    cdef int _check_fatal(self) except -1:
        if self.engine.fatal != 0 and not self.closing:
            self.fail(self.engine.fatal, self.engine.fatal_reason)
        return 0

    cdef int fail(self, int code, str reason) except -1:
        """Closes the connection for a reason of ours; a peer that cannot hear it is cut off."""
        if self.transport is None or self.closing:
            return 0
        self.closing = True
        self.close_code = code
        self.close_reason = reason
        if not self.engine.paused:
            self._write()
        self.engine.out.clear()
        self.transport.send_close(<WSCloseCode>code, reason.encode()[:120].decode("utf-8", "ignore"))
        if self.engine.paused:
            self.tcp.abort()
        else:
            self.tcp.close()
            # close() waits until the peer has taken everything; one that never does is cut off
            self.cutoff = self.loop.call_later(CUTOFF, self.abort)
        return 0

    # -- time

    cdef int arm(self) except -1:
        """Sees to it that `_on_timer` runs when the engine next needs it."""
        cdef int64_t wanted = self.engine.earliest
        cdef int64_t delay
        if self.timer is not None and 0 <= self.timer_at and wanted >= 0 and self.timer_at <= wanted:
            return 0
        if self.engine.state == EngineState.CLOSED and self.transport is None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            return 0
        wanted = self.engine.wake_at()
        if wanted < 0:
            return 0
        if self.timer is not None:
            if self.timer_at <= wanted:
                return 0
            self.timer.cancel()
        delay = wanted - pf_monotonic_ns()
        self.timer_at = wanted
        self.timer = self.loop.call_later(delay / 1e9 if delay > 0 else 0, self._on_timer)
        return 0

    def _on_timer(self):
        cdef int64_t now = pf_monotonic_ns()
        cdef Py_ssize_t unsent
        self.timer = None
        self.timer_at = -1
        if self.in_batch:
            return
        if self.sharing is not None and self.sharing.full():
            self.sharing.move_later(self._on_timer)  # deadlines of hundreds of links may come at once
            return
        if self.engine.paused and self.tcp is not None:
            unsent = self.tcp.get_write_buffer_size()
            if unsent < self.backlog:
                self.engine.heard(now)  # slow, but it reads
            self.backlog = unsent
        self.in_batch = True
        self.engine.in_batch = True
        try:
            self.engine.tick(now)
        finally:
            if self.engine.out.size == 0 and self.engine.in_flight == 0:
                self.engine.out.release()
            self.end_batch()
            if self.sharing is not None and pf_monotonic_ns() - now >= QUICK:
                self.sharing.spend(pf_monotonic_ns() - now)

    cdef object submitted(self, object reply):
        """After submits: a deadline earlier than the timer's needs the timer set again."""
        if not self.in_batch and self.engine.earliest >= 0 and (
                self.timer is None or self.engine.earliest < self.timer_at):
            self.arm()
        return reply

    # -- for the sides that own it

    def close(self, int code=1000, str reason=""):
        """Closes the connection: what is ready is sent first."""
        self._run_batch()
        self.fail(code, reason)

    def abort(self):
        """Ends the connection at once."""
        if self.tcp is not None:
            self.tcp.abort()

    def detach(self):
        """Ends the connection at once, and does here and now what follows from it: nothing is left to wait for."""
        cdef WSTransport transport = self.transport
        if transport is not None:
            transport.underlying_transport.abort()
            self.on_ws_disconnected(transport)
        if self.to_end:
            self._end()

    def flush_ended(self):
        """Resumes whoever waits for submits that the engine has just ended."""
        cdef object reply
        cdef list ready = self.engine.ready
        cdef Py_ssize_t at = self.engine.ready_at
        self.engine.ready = []
        self.engine.ready_at = 0
        for reply in ready[at:]:
            (<Reply>reply).fire_soon()

    async def wait_closed(self):
        """Returns once the connection has gone."""
        if self.transport is not None:
            try:
                await self.transport.wait_disconnected()
            except Exception:
                pass  # picows's reason; ours is in close_code


class _ClientProtocol(WSProtocol):
    """The connection of one dialling."""

    __slots__ = ("__weakref__", "link")

    def __init__(self, link, target, headers, logger):
        self.link = link
        super().__init__(
            target.netloc, target.resource_name, True, self.take, logger, True,
            None,  # the time limit is the caller's
            False, 10.0, 10.0, picows.WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # the link answers pings itself, in the same write as everything else
            (<Link>link).max_message, headers, 16384)

    def present(self):
        """The factory of a protocol that is there already."""
        return self

    def take(self):
        """The listener, once the handshake is done."""
        if self.link is None:
            raise ConnectionError("nobody waits for this connection any more")
        return self.link

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
    protocol = _ClientProtocol(link, target, headers, logger)
    if target.is_secure:
        ssl = True if ssl is None else ssl
    else:
        ssl = None
    try:
        await aiofastnet.create_connection(link.loop, protocol.present, target.host, target.port, ssl=ssl)
        await protocol.wait_until_handshake_complete()
        if link.transport is None or link.closing:
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
    return picows.WSUpgradeResponseWithListener(picows.WSUpgradeResponse.create_101_response(headers), link)


def answer(int status, bytes body not None, headers=None):
    """A request gets an answer, and its connection ends."""
    if status == 200:
        response = picows.WSUpgradeResponse.create_ok_response(body, headers)
    else:
        response = picows.WSUpgradeResponse.create_error_response(status, body, headers)
    return picows.WSUpgradeResponseWithListener(response, None)


class _ServerProtocol(WSProtocol):
    """One accepted connection: told to `gate` from its first byte to its last."""

    __slots__ = ("__weakref__", "address", "context", "gate", "handshake", "link", "peer", "shaking")

    def connection_made(self, transport):
        self.gate.shaking.discard(self.shaking)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) and peer else ""
        self.context = transport.get_extra_info("sslcontext")
        self.peer = transport.get_extra_info("peercert")
        self.handshake = None
        self.link = None
        if not self.gate.arrived(self.address):
            self.gate = None
            transport.abort()
            return
        # picows's own timeout leaves an exception behind that nobody fetches
        self.handshake = self.gate.loop.call_later(self.gate.timeout, transport.abort)
        super().connection_made(transport)

    # picows's buffer takes whatever the kernel has, doubles, and never shrinks: not more than a link's share at once

    def get_buffer(self, hint):
        view = WSProtocol.get_buffer(self, hint)
        most = LEAST_READ if self.link is None else self.link.next_read()
        return view if len(view) <= most else view[:most]

    def buffer_updated(self, count):
        link = self.link
        WSProtocol.buffer_updated(self, count)
        if link is not None:
            link.received(count)

    def eof_received(self):
        # thousands may go in one iteration of the loop, and closing a socket takes the system its time; TLS cannot wait
        if self.gate is None or self.context is not None:
            return False
        return self.gate.sharing.leaves(self.transport.underlying_transport)

    def connection_lost(self, error):
        gate, self.gate = self.gate, None
        if gate is None:
            return
        if self.handshake is not None:
            self.handshake.cancel()
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
        if issubclass(kind, OSError) and find is not None and isinstance(find(), _ServerProtocol):
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
                 Py_ssize_t max_frame, logger):
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
        self.max_frame = max_frame
        self.logger = logger

    def __call__(self):
        if self.context is not None and not self.may_begin(len(self.shaking)):
            raise ConnectionRefusedError("too many handshakes of TLS are under way")  # closes the socket, silently

        def admit(request):
            protocol = made()
            if protocol.peer and protocol.context is not self.context:
                # by an authority that may be trusted no longer
                return answer(503, b"the certificates were changed meanwhile: try again\n")
            made_of_it = self.admit(request, protocol.address, protocol.peer)
            if made_of_it.listener is not None:
                protocol.handshake.cancel()
                protocol.handshake = None
                protocol.link = made_of_it.listener
            return made_of_it

        protocol = _ServerProtocol(
            None, None, False, admit, self.logger, True, None, False, 20.0, 20.0,
            picows.WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # the link answers pings itself, in the same write as everything else
            self.max_frame, None,
            2048)  # the read buffer grows with the load; an idle connection stays small
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


cdef class MessageLink(Link):
    """A link that hands whole messages to `on_message`, as ``(link, bytes, text)``: for tests of RFC 6455."""

    cdef object on_message

    def __init__(self, on_message, *, loop, on_open=None, on_closed=None, max_message=67108864):
        engine = Engine(client=False, max_frame=max_message // 4, max_buffer=4 * max_message)
        super().__init__(engine, loop=loop, on_open=on_open, on_closed=on_closed)
        self.on_message = on_message

    cpdef on_ws_connected(self, WSTransport transport):
        # the engine stays offline: no heartbeats, no deadlines
        self.engine.out.masked = transport.is_client_side
        self._attach(transport)
        if self.on_open is not None:
            self.on_open(self)

    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1:
        if text and not pf_utf8_valid(p, p + n):
            return self.fail(CLOSE_INVALID_TEXT, "invalid UTF-8")
        self.on_message(self, PyBytes_FromStringAndSize(<const char*>p, n), text)
        return 0

    def send(self, bytes payload not None, bint text=True):
        """Sends one message."""
        self.engine.out.add(payload, OP_TEXT if text else OP_BINARY)
        self.engine.note_output()
