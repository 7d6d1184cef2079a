"""One connection's rules without I/O or clock. See ``engine.pxd`` for states and call order."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from pfcore.link.outgoing cimport EngineState, Outgoing
from pfcore.link.pending cimport PendingTable
from pfcore.memory.buffers cimport OP_PING, OP_PONG, OP_TEXT, OutputBuffer
from pfcore.memory.heap cimport PriorityHeap
from pfcore.wire.packets cimport check_plain
from pfcore.wire.reader cimport (
    DEFAULT_DEPTH,
    F_CAPABILITIES,
    F_CODE,
    F_DETAILS,
    F_EXT,
    F_INSTANCE,
    F_MESSAGE,
    F_REACTOR,
    MAX_CAPABILITIES,
    FrameReader,
    MessageType,
)
from pfcore.wire.terms cimport FIRST_ROUTED, MAX_SEQ, MILLISECOND
from pfcore.wire.writer cimport (
    encode_error,
    encode_value,
    heartbeat_payload,
    put_failure,
    put_heartbeat,
    put_result,
)

from pfcore.errors import InvalidPacket

__all__ = ["Engine"]

cdef enum:
    FRAME_SLACK = 256            # bytes that a gateway's longer seq and names may add to a frame
    STRIKES = 100                # refused frames without a packet between two heartbeats
    EXPIRED_AT_ONCE = 128        # packets of a peer whose deadline is found to have passed in one look
    MOST_WINDOW = 1073741824     # packets that a peer may announce to take at once; more is as much as this
    END_AT_ONCE = 512            # submits that end together with a link, some 2 ms
    CLOSE_POLICY = 1008
    CLOSE_GOING_AWAY = 1001


cdef class Sink:
    """Base of what handles a connection's incoming packets."""

    cdef int begin_batch(self, int64_t now) except -1:
        return 0

    cdef int end_batch(self) except -1:
        return 0

    cdef int accept(self, Engine engine, FrameReader reader, int64_t now) except -1:
        raise NotImplementedError

    cdef int drop(self, Engine engine, object job, int why) except -1:
        return 0

    cdef bint answer(self, Engine engine, FrameReader reader, int64_t now) except -1:
        return False

    cdef bint refuse(self, Engine engine, FrameReader reader, object code, object message, object details) except -1:
        return False

    cdef int cancel(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n) except -1:
        return 0

    cdef int answered(self, Engine engine, Incoming* incoming, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1:
        return 0

    cdef int resumed(self, Engine engine, int64_t now) except -1:
        return 0

    cdef int freed(self, Engine engine) except -1:
        return 0


@cython.final
cdef class Engine(Outgoing):
    """One connection's protocol state.

    `client`: this side dialled. `max_frame`: bytes of a message, 1 KiB to 256
    MiB (default 1 MiB). `max_depth`: levels of nesting (default 64). `window`:
    packets taken at once (default 4,096). `max_pending`: own submits
    unanswered (default 131,072). `max_buffer`: bytes of output that may wait
    for the peer to read (default 16 MiB). `heartbeat`: seconds between
    heartbeats (default 30). `silence`: seconds of silence before a ping, and
    again before the connection counts as dead (default 20). `loop`: the event
    loop that replies belong to, None for simulations. `now`: nanoseconds.
    `name`: this side's reactor id, 1 to 128 bytes without control characters.
    `instance`: a secret of 1 to 64 bytes that tells it from others of that
    name, the same over all of its connections.
    """

    def __init__(self, *, bint client, name=None, sink=None, Py_ssize_t max_frame=1048576, int max_depth=64,
                 int64_t window=4096, Py_ssize_t max_pending=131072, Py_ssize_t max_buffer=16777216,
                 double heartbeat=30, double silence=20, loop=None, on_heartbeat=None, int64_t now=0,
                 instance=None):
        if not 1024 <= max_frame <= 1 << 28:
            raise ValueError(f"max_frame: expected 1,024 to 2^28 bytes, got {max_frame}")
        if not 1 <= window <= 1 << 24:
            raise ValueError(f"window: expected 1 to 2^24, got {window}")
        if not (heartbeat > 0 and silence > 0):
            raise ValueError(f"heartbeat, silence: expected seconds above 0, got {heartbeat} and {silence}")
        if max_buffer < 2 * max_frame:
            raise ValueError(f"max_buffer: expected at least two frames ({2 * max_frame} bytes), got {max_buffer}")
        check_plain("name", name, 128)
        check_plain("instance", instance, 64)
        self.client = client
        self.name = name
        self.instance = instance
        self.sink = sink
        self.max_frame = max_frame
        self.max_depth = max_depth
        self.window = window
        self.loop = loop
        self.on_heartbeat = on_heartbeat
        self.heartbeat_ns = <int64_t>(heartbeat * 1e9)
        self.silence_ns = <int64_t>(silence * 1e9)
        self.out = OutputBuffer(masked=client, limit=max_buffer)
        self.reader = FrameReader(max_depth=max_depth)
        self.pending = PendingTable(bound=max_pending, most_seq=MAX_SEQ if client else FIRST_ROUTED - 1,
                                    now=now)
        self.waiting = PriorityHeap()  # bounded by `pending`, which holds the same submits
        self.delayed = PriorityHeap()
        self.inbound = PendingTable(bound=1 << 24, now=now)
        self.ready = []
        self.state = EngineState.OFFLINE
        self.now = now
        self.earliest = -1
        self.ping_sent = -1
        self.last_heard = now
        self.next_heartbeat = now

    # -- state changes

    def connected(self, int64_t now):
        """The handshake is done: the first heartbeat goes out, and what waited follows."""
        if self.state != EngineState.OFFLINE:
            raise RuntimeError(f"connected: expected an offline engine, it is {self.state_name}")
        if self.was_lost:
            self.came_back = now
        self.state = EngineState.OPEN
        self.now = now
        self.fatal = 0
        self.fatal_reason = None
        self.paused = False
        self.strikes = 0
        self.peer_name = None
        self.peer_instance = None
        self.peer_window = 0
        self.peer_cancels = False
        self.peer_capabilities = None
        self.last_heard = now
        self.ping_sent = -1
        self.out.clear()
        self._send_heartbeat()
        self.pump(now)

    def disconnected(self, str message, int64_t now):
        """The connection has gone: what was sent fails with PF502; what waits, waits on."""
        if self.state != EngineState.OPEN:
            return
        self.state = EngineState.OFFLINE
        self.was_lost = True
        self.now = now
        self.out.release()
        # who accepted the connection does not come back: what is left of thousands ends as `close` is called again. Who
        # dialled may be connected again before anybody could
        self.fail_sent("PF502", message, False, <Py_ssize_t>1 << 60 if self.client else END_AT_ONCE)
        self._drop_inbound()
        self.earliest = -1

    def close(self, str code, str message, bint all=True):
        """For good: every submit that is left fails with `code`, or without `all` so many that others get on meanwhile.

        Have all of them? Else it is to be called again.
        """
        if self.state != EngineState.CLOSED:
            self.state = EngineState.CLOSED
            self.out.release()
            self._drop_inbound()
        return self.fail_sent(code, message, True, <Py_ssize_t>1 << 60 if all else END_AT_ONCE)

    @property
    def state_name(self):
        """``"offline"``, ``"open"`` or ``"closed"``."""
        return ("offline", "open", "closed")[self.state]

    @property
    def in_flight(self):
        """Own submits that were sent and not yet answered."""
        return self.sent()

    @property
    def queued(self):
        """Own submits that wait for room, for the connection, or to be sent again."""
        return len(self.waiting) + len(self.delayed)

    @property
    def handling(self):
        """The peer's packets that are queued or running here."""
        return self.inbound.count

    def announce(self, capabilities):
        """Sets what heartbeats list from now on (an iterable of "group:element"), and says so at once.

        ValueError for more than 1,024: such a heartbeat would be refused.
        """
        cdef list listed = None if capabilities is None else list(capabilities)
        if listed is not None and len(listed) > MAX_CAPABILITIES:
            raise ValueError(f"capabilities: expected at most {MAX_CAPABILITIES:,} to announce, got {len(listed):,}")
        self.capabilities = listed
        if self.state == EngineState.OPEN:
            self._send_heartbeat()
            self.note_output()

    def set_window(self, int64_t window):
        """Packets that the peer may have in flight here from now on; the peer is told at once."""
        if not 1 <= window <= 1 << 24:
            raise ValueError(f"window: expected 1 to 2^24, got {window}")
        self.window = window
        self.announce(self.capabilities)

    cdef int _drop_inbound(self) except -1:
        cdef PendingTable table = self.inbound
        cdef int32_t slot
        for slot in range(table.used):
            if table.entries[slot].seq != 0:
                job = table.take_slot(slot)
                if self.sink is not None:
                    self.sink.drop(self, job, DropReason.DISCONNECTED)
        return 0

    cdef int freed(self) except -1:
        return self.sink.freed(self) if self.member is not None else 0

    # -- receiving

    cdef int receive(self, const unsigned char* p, Py_ssize_t n, int64_t now) except -1:
        cdef FrameReader reader = self.reader
        self.now = now
        self.last_heard = now
        self.ping_sent = -1
        if self.state != EngineState.OPEN or self.fatal != 0:
            return 0
        if reader.read(p, n) < 0:
            return self._fail_frame(now)
        if n > self.max_frame + FRAME_SLACK:
            reader.error_code = b"PF413"
            reader.where = b"the frame"
            reader.expected = b"fewer bytes: it is too large"
            reader.offset = -1
            return self._fail_frame(now)
        if reader.type == MessageType.RESULT:
            return self._on_result()
        if reader.type == MessageType.SUBMIT:
            if self.sink is None:
                return self.refuse(reader, "PF001", "no handlers here", None)
            return self.sink.accept(self, reader, now)
        if reader.type == MessageType.ERROR:
            return self._on_error()
        return self._on_heartbeat()

    cdef int _fail_frame(self, int64_t now) except -1:
        """A frame that is not valid: refuse the packet, or the frame, or end the submit it answers."""
        cdef FrameReader reader = self.reader
        error = reader.error()
        self.refused += 1
        if reader.type == MessageType.SUBMIT and reader.id.n > 0 and reader.seq > 0:
            return self.refuse(reader, error.code, error.message, None)
        if reader.type == MessageType.RESULT:
            if self.malformed(reader, error.message):
                return 0
            if reader.id.n > 0 and self.sink is not None and self.sink.refuse(
                    self, reader, "PF502", f"the handling peer's answer is malformed: {error.message}", None):
                return 0
        self.strikes += 1
        if self.strikes > STRIKES:
            return self._die(CLOSE_POLICY, f"more than {STRIKES} invalid frames; the last: {error.message}"[:120])
        if reader.type == MessageType.ERROR:
            return 0  # an error about an error would go on for ever
        return self._send_error(reader.seq if reader.seq > 0 else 0, None, error.code, error.message)

    cdef int _on_result(self) except -1:
        cdef FrameReader reader = self.reader
        if reader.seq >= FIRST_ROUTED and self.member is not None and self.sink.answer(self, reader, self.now):
            return 0
        if not self.result(reader) and (
                self.member is None or reader.seq >= FIRST_ROUTED or not self.sink.answer(self, reader, self.now)):
            self.unasked += 1
        return 0

    cdef int _on_error(self) except -1:
        """The peer refuses a frame of ours, or cancels a packet of its own."""
        cdef FrameReader reader = self.reader
        cdef int32_t slot
        cdef object job
        # all that makes objects comes first
        code = reader.decode(F_CODE)
        message = reader.decode(F_MESSAGE)
        details = reader.decode(F_DETAILS)
        if code == "PF499" and reader.id.n > 0:
            slot = self.inbound.find_id(reader.id.p, reader.id.n)
            if slot >= 0:
                job = self.inbound.take_slot(slot)
                if self.sink is not None:
                    self.sink.drop(self, job, DropReason.CANCELLED_BY_PEER)
            elif self.sink is not None:
                self.sink.cancel(self, reader.id.p, reader.id.n)
            return 0
        details = details if isinstance(details, dict) else None
        if not self.refused_there(reader, code, message, details) and (
                self.member is None
                or not self.sink.refuse(
                    self, reader, code or "PF500", message or "the peer refused the frame", details)):
            self.unasked += 1
        return 0

    cdef int _on_heartbeat(self) except -1:
        cdef FrameReader reader = self.reader
        extensions = reader.decode(F_EXT)
        self.peer_cancels = extensions is not None and "cancel" in extensions
        self.peer_window = min(reader.window, MOST_WINDOW)
        name = reader.decode(F_REACTOR)
        if name is not None:
            self.peer_name = name
        instance = reader.decode(F_INSTANCE)
        if instance is not None:
            self.peer_instance = instance
        self.peer_capabilities = reader.decode(F_CAPABILITIES)
        if self.on_heartbeat is not None:
            self.on_heartbeat(self)
        return 0

    cdef int ping_received(self, const unsigned char* p, Py_ssize_t n) except -1:
        try:
            self.out.begin_message()
            self.out.put(p, n)
            self.out.end_message(OP_PONG)
        except BufferError as error:
            self._overflow(error)
        return 0

    # -- answering

    cdef int respond(self, Incoming* incoming, object data, int64_t duration_ms) except -1:
        cdef object value
        try:
            # first: it may run the user's code
            value = encode_value(data, self.max_depth - 2, "result")
        except InvalidPacket as error:
            return self.respond_error(incoming, "PF500", error.message, None, duration_ms)
        except BaseException:
            self.respond_error(incoming, "PF500", "interrupted", None, duration_ms)
            raise
        return self.respond_value(incoming, value, duration_ms)

    cdef int respond_value(self, Incoming* incoming, object value, int64_t duration_ms) except -1:
        cdef OutputBuffer out = self._answers(incoming.noted)
        cdef Py_ssize_t size, head
        if out is None:
            return 0
        try:
            out.begin_message()
            head = put_result(out, incoming.seq, incoming.packet_id, incoming.n, value, duration_ms)
            size = out.message_size()
            if size <= self.max_frame:
                out.end_message(OP_TEXT)
                self.handled += 1
                if incoming.noted:
                    self._note_answer(out, size, head, incoming, None)
                if not self.in_batch:
                    self.note_output()
                return 0
            out.cancel_message()
        except BufferError as error:
            if out is self.out and out.size + self.max_frame > out.limit:
                self._overflow(error)
                return self.respond_value(incoming, value, duration_ms)
            out.cancel_message()
            size = self.max_frame + 1
        # it ran: PF413 alone would say that it may be sent again
        return self.respond_error(
            incoming, "PF500", f"the result makes a frame of {size} bytes or more, the most is {self.max_frame}",
            {"code": "PF413"}, duration_ms)

    cdef int respond_error(self, Incoming* incoming, object code, object message, object details,
                           int64_t duration_ms) except -1:
        cdef OutputBuffer out = self._answers(incoming.noted)
        cdef bytes error
        cdef Py_ssize_t size, head
        if out is None:
            return 0
        error = encode_error(code, message, details, self.max_depth - 2)
        try:
            out.begin_message()
            head = put_failure(out, incoming.seq, incoming.packet_id, incoming.n, error, duration_ms)
            if out.message_size() > self.max_frame:
                # frames may be as small as 1 KiB, and ids 128 bytes of escapes
                out.cancel_message()
                error = encode_error(code, "the packet failed; the message is too long for a frame", None, 8)
                out.begin_message()
                head = put_failure(out, incoming.seq, incoming.packet_id, incoming.n, error, duration_ms)
            size = out.message_size()
            out.end_message(OP_TEXT)
        except BufferError as overflow:
            if out is not self.out:
                raise
            self._overflow(overflow)
            return self.respond_error(incoming, code, message, details, duration_ms)
        self.handled += 1
        if incoming.noted:
            self._note_answer(out, size, head, incoming, code)
        return self.note_output()

    cdef int refuse(self, FrameReader reader, object code, object message, object details) except -1:
        cdef Incoming incoming = incoming_of(reader)
        return self.respond_error(&incoming, code, message, details, 0)

    cdef OutputBuffer _answers(self, bint noted):
        """Where an answer is written; None where nobody is interested.

        A connection that is about to end takes nothing more, but the packet has
        ended all the same: whoever else waits for it, or asks again, gets this.
        """
        if self.state != EngineState.OPEN:
            return None
        if self.fatal == 0 and not self.mute:
            return self.out
        return OutputBuffer(limit=self.max_frame + 262144) if noted else None

    cdef int _note_answer(self, OutputBuffer out, Py_ssize_t size, Py_ssize_t head, Incoming* incoming,
                          object code) except -1:
        """Shows the sink the payload of the result that was just written: `size` bytes, after `head` others."""
        # a gateway's side is not masked: the frame stands there as it was written
        return self.sink.answered(self, incoming, code, out.data + out.size - size + head, size - head - 1)

    cdef int64_t keep(self, object job, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline) except? -1:
        cdef int32_t slot
        if self.inbound.find_id(packet_id, n) >= 0:
            return 0
        slot = self.inbound.insert(job, packet_id, n, deadline)
        if self.earliest < 0 or deadline < self.earliest:
            self.earliest = deadline
            self.note_output()
        return self.inbound.entries[slot].seq

    cdef bint finish(self, int64_t number, int64_t seq, object data, int64_t duration_ms) except -1:
        cdef object value
        if self.inbound.find_seq(number) < 0:
            return False
        try:
            value = encode_value(data, self.max_depth - 2, "result")
        except InvalidPacket as error:
            return self.finish_error(number, seq, "PF500", error.message, None, duration_ms, True)
        except BaseException:
            self.finish_error(number, seq, "PF500", "interrupted", None, duration_ms, True)
            raise
        return self._finish(number, seq, value, None, duration_ms, True)

    cdef bint finish_error(self, int64_t number, int64_t seq, object code, object message, object details,
                           int64_t duration_ms, bint ran) except -1:
        return self._finish(number, seq, None, (code, message, details), duration_ms, ran)

    cdef bint _finish(self, int64_t number, int64_t seq, object value, tuple error, int64_t duration_ms,
                      bint ran) except -1:
        # looked up only now: encoding may have run the user's code, and that may have ended it
        cdef int32_t slot = self.inbound.find_seq(number)
        cdef bytes packet_id
        cdef object job
        cdef Incoming incoming
        if slot < 0:
            return False
        packet_id = PyBytes_FromStringAndSize(<const char*>self.inbound.id_of(slot),
                                              self.inbound.entries[slot].id_length)
        job = self.inbound.take_slot(slot)  # let go of when this returns: dropping it may run anything
        if job.packet_id is not None:
            packet_id = job.packet_id
        incoming = incoming_as(seq, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id))
        incoming.job = <PyObject*>job
        incoming.noted = self.records
        incoming.ran = ran
        if error is None:
            self.respond_value(&incoming, value, duration_ms)
        else:
            self.respond_error(&incoming, error[0], error[1], error[2], duration_ms)
        return True

    cdef int withdraw(self, int64_t seq, bytes packet_id) except -1:
        """Tells the peer that a submit under this seq is wanted no more."""
        return self._send_error(seq, packet_id, "PF499", "cancelled by the submitter")

    # -- time

    cdef int _send_heartbeat(self) except -1:
        cdef dict payload = heartbeat_payload((self.now + self.wall_offset) // MILLISECOND, self.name, self.instance,
                                              self.capabilities, self.window, self.inbound.count)
        self.strikes = 0
        self.next_heartbeat = self.now + self.heartbeat_ns
        encoded = encode_value(payload, DEFAULT_DEPTH - 1, "payload")
        try:
            self.out.begin_message()
            put_heartbeat(self.out, self.pending.next_seq(), encoded)
            self.out.end_message(OP_TEXT)
        except BufferError as error:
            self._overflow(error)
        return 0

    cdef int tick(self, int64_t now) except -1:
        """Deadlines, heartbeats, pings: whatever the time has come for."""
        cdef int32_t slot
        cdef int ended = 0
        self.now = now
        self.tick_submits(now)
        slot = self.inbound.due(now)
        # so many at a time: the rest is due still, so this is called again in the loop's next iteration
        while slot >= 0 and ended < EXPIRED_AT_ONCE:
            ended += 1
            if self.sink is not None:
                self._expire_inbound(slot)
            else:
                self.inbound.take_slot(slot)
            slot = self.inbound.due(now)
        if self.state == EngineState.OPEN and self.fatal == 0:
            if now >= self.next_heartbeat:
                self._send_heartbeat()
            if self.ping_sent >= 0:
                if now - self.ping_sent >= self.silence_ns:
                    self._die(CLOSE_GOING_AWAY,
                              f"no sign of life from the peer for {(now - self.last_heard) // 1000000000} s")
            elif now - self.last_heard >= self.silence_ns:
                self.ping_sent = now
                try:
                    self.out.begin_message()
                    self.out.end_message(OP_PING)
                except BufferError as error:
                    self._overflow(error)
        self.earliest = -1
        return 0

    cdef int _expire_inbound(self, int32_t slot) except -1:
        """Answers PF408 before the handler is told: its own answer would come too late."""
        cdef object job = <object>self.inbound.entries[slot].waiter
        try:
            self._finish(self.inbound.entries[slot].seq, job.seq, None,
                         ("PF408", "the deadline passed before the handler finished", None), 0, False)
        finally:
            self.sink.drop(self, job, DropReason.EXPIRED)
        return 0

    def heard(self, int64_t now):
        """Bytes came, or the peer took some of ours: it lives."""
        self.last_heard = now
        self.ping_sent = -1

    cdef int64_t wake_at(self) except? -2:
        """When `tick` is due, in ns; -1: never."""
        cdef int64_t best = self.submits_due()
        cdef int64_t other = self.inbound.next_due()
        if best < 0 or (0 <= other < best):
            best = other if other >= 0 else best
        if self.state == EngineState.OPEN:
            if best < 0 or self.next_heartbeat < best:
                best = self.next_heartbeat
            other = self.last_heard + self.silence_ns if self.ping_sent < 0 else self.ping_sent + self.silence_ns
            if other < best:
                best = other
        self.earliest = best
        return best
