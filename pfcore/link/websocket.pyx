"""WebSocket for an engine, once the handshake is done. See ``websocket.pxd``."""

import asyncio
import time
import weakref

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t

from pfcore.link.driver cimport Driver
from pfcore.link.engine cimport Engine
from pfcore.link.fragments cimport Fragments
from pfcore.link.inbox cimport MOST_READ, Frame, Inbox, ReadBuffer
from pfcore.link.outgoing cimport EngineState
from pfcore.link.sharing cimport ITERATION, QUICK, Sharing
from pfcore.memory.budget cimport Account
from pfcore.memory.buffers cimport OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, OP_TEXT, OutputBuffer
from pfcore.memory.bytes_ops cimport pf_utf8_valid
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns

__all__ = ["Connection", "Link", "MessageLink"]

cdef enum:
    CUTOFF = 5                   # seconds that a peer has to take what is left when we close
    KEEP_BUFFER = 262144         # bytes of output buffer that a busy link keeps between batches
    PAUSE_READING = 8388608      # unsent bytes at which we stop reading what makes more
    LARGE_WRITE = 65536          # bytes whose writing is counted and may have to wait for the loop's next iteration
    LEAST_READ = 4096            # bytes that a link reads at once: at least, and the first time
    FIRST_READ = 16384
    LONG = 1000000               # ns: one that took more will be smaller
    BYTE = 2                     # ns that reading a byte of a large frame takes
    HANDLED = 6                  # ... and that the handling of it takes, once it is whole
    EXPECTED = 60                # ... and may take: what is short may be an announcement, the dearest at 400
    REST = 4                     # so many times as long as it took a link rests after a batch that no one could cut
    LONGEST_REST = 200000000     # ns
    RECENT = 50000000            # ns: another account has had a batch since
    CONTINUATION = 0x0
    CLOSE_PROTOCOL = 1002
    CLOSE_NO_CODE = 1005
    CLOSE_ABNORMAL = 1006
    CLOSE_INVALID_TEXT = 1007
    CLOSE_POLICY = 1008
    CLOSE_TOO_BIG = 1009
    CLOSE_INTERNAL = 1011

# loop -> its ReadBuffer: what is read is handled before anybody else of the loop reads
cdef object _buffers = weakref.WeakKeyDictionary()


cdef ReadBuffer _buffer_of(object loop):
    cdef ReadBuffer buffer = <ReadBuffer>_buffers.get(loop)
    if buffer is None:
        buffer = _buffers[loop] = ReadBuffer()
    return buffer


# asyncio looks for a subclass of BufferedProtocol, and a compiled class cannot have one written in Python as its first
# base
cdef class _Protocol:
    pass


cdef class Connection(_Protocol, asyncio.BufferedProtocol):
    """One connection of a `Link`, after the handshake: asyncio calls the rest.

    `departed`: called once it has gone, where it was accepted; None where it was dialled.
    """

    def __init__(self, Link link not None, tcp, departed):
        self.link = link
        self.tcp = tcp
        # it may be given a view of our buffer, for it copies what the kernel does not take at once
        self.take = tcp.write_nocheck
        self.departed = departed
        self.accepted = departed is not None
        self.inbox = Inbox(server=self.accepted, max_frame=link.max_message, shared=_buffer_of(link.loop))
        self.quantum = FIRST_READ
        self.quick = True
        if tcp.get_extra_info("ssl_object") is not None:
            self.reread = getattr(tcp, "_do_read", None)
            self.unpausable = self.reread is None

    def is_buffered_protocol(self):
        return True

    # -- in

    def get_buffer(self, Py_ssize_t hint):
        cdef Sharing sharing = self.link.sharing
        return self.inbox.room(LEAST_READ if sharing is not None and sharing.full() else self.quantum)

    def buffer_updated(self, Py_ssize_t n):
        cdef bint whole = False
        self.inbox.came(n)
        try:
            whole = self._handle()
        finally:
            if not self.inbox.keep(self.link.engine.account):
                self.link.fail(self.inbox.code, self.inbox.reason)
                self.abort()
        if self.tcp is not None:
            self._next_turn(n, whole)

    def feed(self, bytes data not None):
        """What came with the handshake's last bytes."""
        cdef Py_ssize_t at = 0, n
        while at < len(data) and self.tcp is not None:
            view = self.get_buffer(-1)
            n = min(len(view), len(data) - at)
            view[:n] = data[at:at + n]
            at += n
            self.buffer_updated(n)

    cdef bint _handle(self) except -1:
        """Hands on what is whole. Was anything?"""
        cdef Link link = self.link
        cdef Engine engine = link.engine
        cdef Inbox inbox = self.inbox
        cdef Frame frame
        cdef int status = inbox.next(&frame)
        cdef int64_t now
        if status == 0:
            return False
        now = pf_monotonic_ns()
        link.begin_batch(now)
        if engine.sink is not None:
            engine.sink.begin_batch(now)
        try:
            while status > 0:
                link.take(&frame)
                if inbox.more():
                    link.pause()
                status = inbox.next(&frame)
            if status < 0:
                link.fail(inbox.code, inbox.reason)
        finally:
            link.end_batch()
            if link.sharing is not None and self.tcp is not None:
                self.took(pf_monotonic_ns() - now, now)
        return True

    # -- whose turn it is to read

    cdef int took(self, int64_t ns, int64_t now) except -1:
        """How long it took decides how much is read the next time, and when."""
        cdef Sharing sharing = self.link.sharing
        sharing.note(self.link.engine.account, ns, now + ns)
        if ns > ITERATION and now + ns - sharing.switched < RECENT:
            # one packet that could not be cut, and others are here: they come first for some time
            self.rests = min(REST * ns, LONGEST_REST)
        elif ns >= QUICK:
            self.rests = 1
        if ns > LONG and self.quantum > LEAST_READ:
            self.quantum >>= 1
        self.quick = ns < QUICK
        return 0

    cdef int _next_turn(self, Py_ssize_t n, bint whole) except -1:
        cdef Sharing sharing = self.link.sharing
        cdef Py_ssize_t held = self.inbox.held
        cdef int64_t expected = 0
        cdef bint turns = False
        if whole:
            if self.quick and n >= self.quantum and self.quantum < MOST_READ:
                self.quantum <<= 1  # it had more than that, perhaps
        elif sharing is not None and n >= LEAST_READ:
            # part of a large frame: the system has copied it, on to pages that are new perhaps
            sharing.note(self.link.engine.account, max(<int64_t>n * BYTE, QUICK), pf_monotonic_ns())
            self.rests = max(self.rests, 1)
            expected = max(n * EXPECTED, held * HANDLED)
            turns = True
        if self.rests > 0:
            # the transport would read on while there is more; the others come first
            if not self.reading_paused and not self.link.closing and not self.unpausable:
                self.tcp.pause_reading()
                if self.rests > 1:
                    self.link.loop.call_later(self.rests / 1e9, self._read_on)
                elif turns:
                    sharing.read_later(expected, self._read_on)
                else:
                    self.link.loop.call_soon(self._read_on)
            self.rests = 0
        return 0

    def _read_on(self):
        if self.tcp is not None and not self.reading_paused:
            self._resume()

    def _resume(self):
        self.tcp.resume_reading()
        if self.reread is not None:
            # what TLS had read before is looked at with the next bytes only: aiofastnet returns where there are none
            self.link.loop.call_soon(self._read_again)

    def _read_again(self):
        if self.tcp is None or self.reading_paused or self.tcp.is_closing():
            return
        try:
            self.reread()
        except Exception as error:
            self.link.engine._die(CLOSE_PROTOCOL, f"TLS: {error}")
            self.abort()

    cdef int pause_reading(self) except -1:
        if not self.reading_paused and not self.unpausable:
            self.reading_paused = True
            self.tcp.pause_reading()
        return 0

    cdef int read_on(self) except -1:
        if self.reading_paused:
            self.reading_paused = False
            self._resume()
        return 0

    # -- out

    cdef int write(self, const unsigned char* p, Py_ssize_t n) except -1:
        self.take(PyMemoryView_FromMemory(<char*>p, n, PyBUF_READ))
        return 0

    cdef Py_ssize_t unsent(self) except? -1:
        return self.link.engine.out.size + <Py_ssize_t>self.tcp.get_write_buffer_size()

    cdef int count_unsent(self) except -1:
        """Output that the peer does not take is held for it; where that is too much it is cut off."""
        cdef Account account = self.link.engine.account
        cdef Py_ssize_t more
        if account is None or self.tcp is None:
            return 0
        more = self.unsent() - self.unsent_charged
        if more > 0 and not account.room(more) and self.link.engine.fatal == 0:
            self.link.engine._die(CLOSE_POLICY, f"the peer does not read: {account.refusal(more)}")
        account.settle(more)
        self.unsent_charged += more
        return 0

    def pause_writing(self):
        if self.link.connection is self:
            self.link.engine.paused = True

    def resume_writing(self):
        if self.link.connection is self:
            self.link.go_on()

    # -- the end

    def eof_received(self):
        # thousands may go in one iteration of the loop, and closing a socket takes the system its time; TLS cannot wait
        if self.link.sharing is None or self.reread is not None or self.unpausable:
            return False
        return self.link.sharing.leaves(self.tcp)

    def abort(self):
        """Ends it at once."""
        if self.tcp is not None:
            self.tcp.abort()

    def connection_lost(self, error):
        cdef object departed = self.departed
        self.departed = None
        self.link.lost(self)
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)
        if departed is not None:
            departed()

    def _let_go(self):
        """It is its link's no more."""
        if self.link.engine.account is not None:
            self.link.engine.account.settle(-self.unsent_charged)
        self.unsent_charged = 0
        self.inbox.stop()
        self.tcp = None
        self.take = None
        self.reread = None


cdef class Link(Driver):
    """The WebSocket connections of an `Engine`, one after another.

    `on_open`, `on_closed`: called with the link. `sharing`: that of all links of
    a gateway, None for a link alone. Made within a running event loop.
    """

    def __init__(self, Engine engine not None, *, loop, on_open=None, on_closed=None, Sharing sharing=None):
        super().__init__(engine, loop=loop, sharing=sharing)
        self.on_open = on_open
        self.on_closed = on_closed
        self.max_message = 4 * engine.max_frame
        self.close_code = CLOSE_ABNORMAL
        engine.flush_now = self._flush_now

    @property
    def open(self):
        """True while there is a connection."""
        return self.connection is not None

    @property
    def ended(self):
        """There is no connection, or there will soon be none."""
        return self.connection is None or self.closing

    @property
    def unsent(self):
        """Bytes of output that the peer's side has not taken yet."""
        return self.connection.unsent() if self.connection is not None else self.engine.out.size

    # -- from the handshake's end to the connection's

    def connected(self, tcp, bytes rest not None, departed=None):
        """A handshake has succeeded: `tcp`, one of aiofastnet's transports, is this link's connection.

        `rest`: what has come behind the handshake. `departed`: called without
        arguments once the connection has gone; None: we have dialled.
        """
        cdef Connection connection = Connection(self, tcp, departed)
        tcp.set_protocol(connection)
        self.connection = connection
        self.closing = False
        self.close_code = CLOSE_ABNORMAL
        self.close_reason = ""
        self.in_batch = True
        self.engine.in_batch = True
        try:
            self.begin()
            if self.on_open is not None:
                self.on_open(self)
        finally:
            self.end_batch()
        connection.feed(rest)

    cdef int begin(self) except -1:
        cdef int64_t now = pf_monotonic_ns()
        self.engine.wall_offset = time.time_ns() - now
        self.engine.connected(now)
        return 0

    def lost(self, Connection connection):
        """That connection has gone; nothing where it was not this link's any more."""
        if connection is not self.connection:
            return
        self.fragments = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.cutoff is not None:
            self.cutoff.cancel()
            self.cutoff = None
        self.timer_at = -1
        if connection is not None:
            connection._let_go()
        self.connection = None
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
        reason = f": {self.close_reason}" if self.close_reason else ""
        self.engine.disconnected(
            f"the connection was lost (close code {self.close_code}{reason}); the answer is unknown",
            pf_monotonic_ns())
        self.flush_ended()
        if self.on_closed is not None:
            self.on_closed(self)
        self.arm()
        if self.engine.state == EngineState.CLOSED:
            self.part()

    cdef int part(self) except -1:
        Driver.part(self)
        self.on_open = None
        self.on_closed = None
        return 0

    # -- frames

    cdef int take(self, Frame* frame) except -1:
        try:
            self._take(frame)
        except Exception as error:
            # nothing a peer sends may get here; if it does, this link ends and nothing else
            self.loop.call_exception_handler({"message": "packetflow link failed", "exception": error})
            self.fail(CLOSE_INTERNAL, "internal error")
        return 0

    cdef int _take(self, Frame* frame) except -1:
        if frame.opcode >= OP_CLOSE:
            if not self.closing or frame.opcode == OP_CLOSE:
                return self._control(frame)
        elif not self.closing:
            if frame.fin and self.fragments is None and frame.opcode != CONTINUATION:
                return self.deliver(frame.p, frame.n, frame.opcode == OP_TEXT)
            return self._fragment(frame)
        return 0

    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1:
        self.engine.receive(p, n, self.engine.now)
        if text and self.engine.reader.expected != NULL and not pf_utf8_valid(p, p + n):
            # refused already (PF400); RFC 6455, section 8.1 wants the connection failed as well
            self.fail(CLOSE_INVALID_TEXT, "invalid UTF-8")
        return 0

    cdef int _fragment(self, Frame* frame) except -1:
        """A frame that is not a whole message."""
        cdef Fragments fragments = self.fragments
        if fragments is None:
            if frame.opcode == CONTINUATION:
                return self.fail(CLOSE_PROTOCOL, "a continuation without a message")
            fragments = self.fragments = Fragments(self.max_message, self.engine.account)
        elif frame.opcode != CONTINUATION:
            return self.fail(CLOSE_PROTOCOL, "a new message inside a fragmented one")
        if not fragments.add(frame.p, frame.n):
            return self.fail(CLOSE_TOO_BIG, f"a message of more than {self.max_message} bytes")
        if fragments.refusal is not None:
            return self.fail(CLOSE_POLICY, fragments.refusal)
        if frame.opcode != CONTINUATION:
            fragments.text = frame.opcode == OP_TEXT
        self.engine.heard(self.engine.now)
        if frame.fin:
            self.fragments = None
            self.deliver(fragments.data, fragments.size, fragments.text)
        return 0

    cdef int _control(self, Frame* frame) except -1:
        cdef int code = CLOSE_NO_CODE
        if frame.opcode == OP_PING:
            self.engine.heard(self.engine.now)
            return self.engine.ping_received(frame.p, frame.n)
        if frame.opcode == OP_PONG:
            self.engine.heard(self.engine.now)
            return 0
        if frame.n == 1:
            return self.fail(CLOSE_PROTOCOL, "a close frame of one byte")
        if frame.n >= 2:
            code = (frame.p[0] << 8) | frame.p[1]
            if code < 1000 or 1004 <= code <= 1006 or 1015 <= code < 3000 or code >= 5000:
                return self.fail(CLOSE_PROTOCOL, f"close code {code} is not for use on the wire")
            if not pf_utf8_valid(frame.p + 2, frame.p + frame.n):
                return self.fail(CLOSE_INVALID_TEXT, "invalid UTF-8")
        if not self.closing:
            self.close_code = code
            self.close_reason = frame.p[2:frame.n].decode() if frame.n > 2 else ""
            # a close frame with the peer's code, or without one as his was
            self._say_close(frame.p[:2] if frame.n >= 2 else b"")
        if self.connection is not None:
            self.connection.inbox.stop()
            self._hang_up()
        return 0

    # -- output

    cdef int write(self) except -1:
        """Writes what is ready, in one go."""
        cdef OutputBuffer out = self.engine.out
        cdef int64_t began = 0
        self.engine.sent_since_wake = False
        if self.closing:
            out.clear()  # nothing comes behind a close frame (RFC 6455, section 5.5.1)
        if out.size > 0 and self.connection is not None:
            if out.size >= LARGE_WRITE and self.sharing is not None:
                began = pf_monotonic_ns()
            self.connection.write(out.data, out.size)
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
        while self.connection is not None:
            if engine.paused:
                # the peer does not take what it has; stop reading what would make more of it
                if self.connection.unsent() > PAUSE_READING:
                    self.connection.pause_reading()
                self.connection.count_unsent()
                break
            self.connection.read_on()
            self.write()
            if engine.waiting.live() == 0:
                break
            engine.pump(engine.now)
            if engine.out.size == 0:
                break
        engine.sent_since_wake = False
        if engine.fatal != 0 and not self.closing:
            self.fail(engine.fatal, engine.fatal_reason)
        return 0

    def _flush_now(self):
        """The switch has written for this link in another one's batch."""
        if self.connection is not None and not self.in_batch:
            if self.waits():
                self._wake()
            else:
                self.flush()

    cdef bint much(self) noexcept:
        return self.sharing is not None and self.engine.out.size >= LARGE_WRITE

    cdef int count_unsent(self) except -1:
        return self.connection.count_unsent() if self.connection is not None else 0

    def _say_close(self, bytes payload):
        """Writes what is ready, if the peer takes it, and a close frame, which is the last."""
        cdef OutputBuffer out = self.engine.out
        if not self.engine.paused:
            self.write()
        self.closing = True
        if self.sharing is not None and self.engine.fatal == 0:
            self.engine.fatal = CLOSE_ABNORMAL  # it is given nothing more
        out.clear()
        out.add(payload, OP_CLOSE)
        if self.connection is not None:
            self.connection.write(out.data, out.size)
        out.clear()

    def _hang_up(self):
        """`close` of a transport waits until the peer has taken everything; one that never does is cut off."""
        self.connection.tcp.close()
        if self.cutoff is None:
            self.cutoff = self.loop.call_later(CUTOFF, self.abort)

    cdef int fail(self, int code, str reason) except -1:
        """Closes the connection for a reason of ours; a peer that cannot hear it is cut off."""
        if self.connection is None or self.closing:
            return 0
        self.close_code = code
        self.close_reason = reason
        self._say_close(code.to_bytes(2, "big") + reason.encode()[:120].decode("utf-8", "ignore").encode())
        if self.engine.paused:
            self.abort()
        else:
            self._hang_up()
        return 0

    def go_on(self):
        """The peer takes more again."""
        self.engine.paused = False
        self.count_unsent()
        self.engine.heard(pf_monotonic_ns())
        self._run_batch()
        if self.engine.sink is not None:
            self.engine.sink.resumed(self.engine, pf_monotonic_ns())

    # -- time

    cdef int tick(self, int64_t now) except -1:
        cdef Connection connection = self.connection
        cdef Py_ssize_t unsent
        if self.engine.paused and connection is not None:
            unsent = connection.tcp.get_write_buffer_size()
            if unsent < connection.backlog:
                self.engine.heard(now)  # slow, but it reads
            connection.backlog = unsent
        self.engine.tick(now)
        if self.engine.out.size == 0 and self.engine.in_flight == 0:
            self.engine.out.release()
            if connection is not None:
                connection.inbox.release()
        return 0

    cdef bint over(self) noexcept:
        return self.engine.state == EngineState.CLOSED and self.connection is None

    # -- for the sides that own it

    def close(self, int code=1000, str reason=""):
        """Closes the connection: what is ready is sent first."""
        self._run_batch()
        self.fail(code, reason)

    def abort(self):
        """Ends the connection at once."""
        if self.connection is not None:
            self.connection.abort()

    def detach(self):
        """Ends the connection at once, and does here and now what follows from it: nothing is left to wait for."""
        cdef Connection connection = self.connection
        if connection is not None:
            connection.abort()
            self.lost(connection)
        if self.to_end:
            self._end()

    async def wait_closed(self):
        """Returns once the connection has gone."""
        cdef Connection connection = self.connection
        if connection is not None:
            if connection.gone is None:
                connection.gone = self.loop.create_future()
            await asyncio.shield(connection.gone)


cdef class MessageLink(Link):
    """A link that hands whole messages to `on_message`, as ``(link, bytes, text)``: for tests of RFC 6455."""

    cdef object on_message

    def __init__(self, on_message, *, loop, on_open=None, on_closed=None, max_message=67108864):
        engine = Engine(client=False, max_frame=max_message // 4, max_buffer=4 * max_message)
        super().__init__(engine, loop=loop, on_open=on_open, on_closed=on_closed)
        self.on_message = on_message

    cdef int begin(self) except -1:
        # the engine stays offline: no heartbeats, no deadlines
        self.engine.out.masked = not self.connection.accepted
        return 0

    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1:
        if text and not pf_utf8_valid(p, p + n):
            return self.fail(CLOSE_INVALID_TEXT, "invalid UTF-8")
        self.on_message(self, PyBytes_FromStringAndSize(<const char*>p, n), text)
        return 0

    def send(self, bytes payload not None, bint text=True):
        """Sends one message."""
        self.engine.out.add(payload, OP_TEXT if text else OP_BINARY)
        self.engine.note_output()
