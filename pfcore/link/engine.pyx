"""One connection's rules without I/O or clock. See ``engine.pxd`` for states and call order."""

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp

from pfcore.link.pending cimport PendingTable
from pfcore.link.reply cimport Reply, Want, new_reply
from pfcore.memory.buffers cimport OP_PING, OP_PONG, OP_TEXT, OutputBuffer
from pfcore.memory.heap cimport HeapEntry, PriorityHeap
from pfcore.memory.ids cimport ID_LENGTH, write_id
from pfcore.wire.packets cimport check_plain, new_result
from pfcore.wire.reader cimport (
    DEFAULT_DEPTH,
    F_CAPABILITIES,
    F_CODE,
    F_DATA,
    F_DETAILS,
    F_ERROR,
    F_EXT,
    F_INSTANCE,
    F_MESSAGE,
    F_REACTOR,
    MAX_CAPABILITIES,
    FrameReader,
    MessageType,
    decode_span,
)
from pfcore.wire.terms cimport DEFAULT_TIMEOUT_MS, FIRST_ROUTED, MAX_SEQ, MILLISECOND
from pfcore.wire.writer cimport (
    encode_error,
    encode_value,
    heartbeat_payload,
    put_error,
    put_failure,
    put_heartbeat,
    put_result,
    put_submit,
)

from pfcore.errors import InvalidPacket, exception_for
from pfcore.wire import codes
from pfcore.link.pending import PendingFull

__all__ = ["Engine"]

cdef object _Raw = msgspec.Raw
# a submit that may be sent again is, after these: the same id, so that it runs once
cdef frozenset _SENT_AGAIN = codes.SENT_AGAIN

cdef enum:
    FRAME_SLACK = 256            # bytes that a gateway's longer seq and names may add to a frame
    RETRY_MS = 50                # before a submit is sent again after a refusal that names no time
    GRACE_MS = 1000              # the gateway's clock decides; give its answer time to arrive
    SEND_AHEAD = 1048576         # bytes of unsent output beyond which submits wait
    STRIKES = 100                # refused frames without a packet between two heartbeats
    EXPIRED_AT_ONCE = 128        # packets of a peer whose deadline is found to have passed in one look
    MOST_WINDOW = 1073741824     # packets that a peer may announce to take at once; more is as much as this
    END_AT_ONCE = 512            # submits that end together with a link, some 2 ms
    CLOSE_POLICY = 1008
    CLOSE_GOING_AWAY = 1001


cdef int64_t COMING_BACK_NS = 10000000000


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
cdef class Engine(Canceller):
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
        self._fail_sent("PF502", message, False, <Py_ssize_t>1 << 60 if self.client else END_AT_ONCE)
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
        return self._fail_sent(code, message, True, <Py_ssize_t>1 << 60 if all else END_AT_ONCE)

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

    cdef bint _fail_sent(self, object code, object message, bint waiting_too, Py_ssize_t most) except -1:
        """Ends every submit that was sent, or every submit, but so many at most; False: there are more."""
        cdef PendingTable table = self.pending
        cdef int32_t slot
        cdef Reply reply
        for slot in range(table.used):
            if table.entries[slot].seq == 0:
                continue
            reply = <Reply>table.entries[slot].waiter
            if reply.entry is None or waiting_too:
                if not waiting_too and reply.frame is not None and reply.retries > 0:
                    reply.retries -= 1
                    reply.entry = self.waiting.push((reply, reply.frame), reply.priority)
                    continue
                if most == 0:
                    return False
                most -= 1
                self._unqueue(reply)
                table.take_slot(slot)
                reply.fail(code, message, None)
                self._settle(reply)
        return True

    cdef int _unqueue(self, Reply reply) except -1:
        """Takes a submit out of whichever queue it is in."""
        cdef HeapEntry entry
        if reply.entry is not None:
            entry = <HeapEntry>reply.entry
            if entry.home == <void*>self.delayed:
                self.delayed.remove(entry)
            else:
                self.waiting.remove(entry)
            reply.entry = None
        return 0

    cdef bint _again(self, Reply reply, object code, object details) except -1:
        """Is this refused submit to be sent again? Then it waits for its time."""
        cdef object after = None
        cdef int64_t due
        if reply.frame is None or reply.retries <= 0:
            return False
        if code == "PF001":
            # a gateway that we have only just come (back) to may not know yet who else will
            if self.came_back == 0 or self.now - self.came_back > COMING_BACK_NS:
                return False
            details = {"retry_after_ms": 4 * RETRY_MS}
        elif code not in _SENT_AGAIN:
            return False
        reply.retries -= 1
        if isinstance(details, dict):
            after = (<dict>details).get("retry_after_ms")
        if not isinstance(after, (int, float)) or not 0 <= after <= 60000:
            after = RETRY_MS
        due = self.now + <int64_t>(<double>after * MILLISECOND)
        reply.entry = self.delayed.push((reply, due), -due)
        if self.earliest < 0 or due < self.earliest:
            self.earliest = due
            self.note_output()
        return True

    cdef int _drop_inbound(self) except -1:
        cdef PendingTable table = self.inbound
        cdef int32_t slot
        for slot in range(table.used):
            if table.entries[slot].seq != 0:
                job = table.take_slot(slot)
                if self.sink is not None:
                    self.sink.drop(self, job, DropReason.DISCONNECTED)
        return 0

    cdef int _die(self, int close_code, object reason) except -1:
        """The connection must go; whoever drives us sees to it."""
        if self.fatal == 0:
            self.fatal = close_code
            self.fatal_reason = reason
            self.note_output()
        return 0

    cdef int _overflow(self, object error) except -1:
        """The peer does not read and our buffer is full."""
        self.out.cancel_message()
        return self._die(CLOSE_POLICY, f"the peer does not read: {error}")

    cdef int note_output(self) except -1:
        """There is something to write, or a timer to set, and nobody is about to look."""
        if not self.in_batch and not self.sent_since_wake and self.wake is not None:
            self.sent_since_wake = True
            self.wake()
        return 0

    cdef int _settle(self, Reply reply) except -1:
        """A reply has ended: its waiter is resumed at the end of the batch."""
        if self.member is not None:
            self.sink.freed(self)
        if reply.callback is not None:
            self.ready.append(reply)
            self.note_output()
        return 0

    # -- submitting

    cdef bint _room(self) noexcept:
        return (self.state == EngineState.OPEN and not self.paused and self.out.size < SEND_AHEAD
                and (self.peer_window == 0 or self.sent() + self.routed < self.peer_window)
                and (self.cap == 0 or self.sent() + self.routed < self.cap))

    cdef Reply submit(self, bytes address, object data, int priority, int64_t timeout_ms,
                      bytes packet_id, bytes extra, Want want, int64_t now, int retries=0):
        cdef Reply reply
        cdef unsigned char[ID_LENGTH] text
        cdef const unsigned char* id_bytes = text
        cdef Py_ssize_t id_length = ID_LENGTH
        cdef int64_t deadline = now + (GRACE_MS + (timeout_ms if timeout_ms > 0 else DEFAULT_TIMEOUT_MS)) * MILLISECOND
        cdef int32_t slot
        cdef OutputBuffer out = self.out
        cdef bytes frame = None
        cdef bint direct
        # this may run the user's code, and that may submit, too: nothing has begun yet
        cdef object value = encode_value(data, self.max_depth - 2, "data")
        if self.state == EngineState.CLOSED:
            raise exception_for("PF502", "the connection is closed")
        if packet_id is None:
            write_id(text)
        else:
            id_bytes = <const unsigned char*>PyBytes_AS_STRING(packet_id)
            id_length = PyBytes_GET_SIZE(packet_id)
            if self.pending.find_id(id_bytes, id_length) >= 0:
                raise exception_for("PF409", f"the id {packet_id.decode()!r} is already in flight")
        reply = new_reply(self.loop, self, want)
        direct = self.waiting.live() == 0 and self._room()
        if not direct:
            out = OutputBuffer(limit=self.max_frame + 65536)
        try:
            slot = self.pending.insert(reply, id_bytes, id_length, deadline)
        except PendingFull as full:
            reply.owner = None
            raise exception_for("PF429", f"{full}; wait for answers, or submit through map", {"retry_after_ms": 100})
        reply.seq = self.pending.entries[slot].seq
        reply.timeout_ms = timeout_ms
        try:
            out.begin_message()
            put_submit(out, reply.seq, id_bytes, id_length, address, value, priority, timeout_ms, extra)
            if out.message_size() > self.max_frame:
                id_length = out.message_size()
                out.cancel_message()
                raise exception_for(
                    "PF413", f"the packet makes a frame of {id_length} bytes, the most is {self.max_frame}")
            if not direct or retries > 0:
                frame = PyBytes_FromStringAndSize(<char*>out.data + out.size - out.message_size(), out.message_size())
            if direct:
                out.end_message(OP_TEXT)
                self.submitted += 1
            else:
                out.cancel_message()
            if retries > 0:
                reply.frame = frame
                reply.retries = retries
                reply.priority = priority
            if not direct:
                reply.entry = self.waiting.push((reply, frame), priority)
        except BaseException as error:
            out.cancel_message()
            reply.owner = None
            # making the exception may have run a finaliser; the table may have changed meanwhile
            slot = self.pending.find_seq(reply.seq)
            if slot >= 0 and <object>self.pending.entries[slot].waiter is reply:
                self.pending.take_slot(slot)
            if isinstance(error, BufferError):
                raise exception_for("PF413", f"the packet is larger than {self.max_frame} bytes") from None
            raise
        if self.earliest < 0 or deadline < self.earliest:
            self.earliest = deadline
        if not self.in_batch:
            self.note_output()
        return reply

    cdef int pump(self, int64_t now) except -1:
        cdef Reply reply
        cdef bytes frame
        self.now = now
        while self.waiting.live() > 0 and self._room():
            reply, frame = self.waiting.pop()
            reply.entry = None
            try:
                self.out.begin_message()
                self.out.put(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
                self.out.end_message(OP_TEXT)
            except BufferError as error:
                self._overflow(error)
                return 0
            self.submitted += 1
        return 0

    cdef int cancel_submit(self, int64_t seq) except -1:
        """The submitter has given up: forget it here, and say so where the peer understands."""
        cdef int32_t slot = self.pending.find_seq(seq)
        cdef Reply reply
        if slot < 0:
            return 0
        reply = <Reply>self.pending.entries[slot].waiter
        if reply.entry is not None:
            self._unqueue(reply)
        elif self.state == EngineState.OPEN and self.peer_cancels:
            packet_id = PyBytes_FromStringAndSize(<const char*>self.pending.id_of(slot),
                                                  self.pending.entries[slot].id_length)
            self.pending.take_slot(slot)
            self._send_error(seq, packet_id, "PF499", "cancelled by the submitter")
            slot = -1
        if slot >= 0:
            self.pending.take_slot(slot)
        if self.member is not None:
            self.sink.freed(self)
        return self.note_output()

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
        cdef int32_t slot
        cdef Reply reply
        error = reader.error()
        self.refused += 1
        if reader.type == MessageType.SUBMIT and reader.id.n > 0 and reader.seq > 0:
            return self.refuse(reader, error.code, error.message, None)
        if reader.type == MessageType.RESULT:
            slot = self.pending.find_seq(reader.seq)
            if slot < 0 and reader.id.n > 0:
                slot = self.pending.find_id(reader.id.p, reader.id.n)
            if slot >= 0 and (<Reply>self.pending.entries[slot].waiter).entry is None:
                reply = <Reply>self.pending.take_slot(slot)
                reply.fail("PF502", f"the peer's answer is malformed: {error.message}", None)
                return self._settle(reply)
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
        cdef PendingTable table = self.pending
        cdef int32_t slot
        cdef Reply reply
        if reader.seq >= FIRST_ROUTED and self.member is not None and self.sink.answer(self, reader, self.now):
            return 0
        slot = table.find_seq(reader.seq)
        if slot < 0 or table.entries[slot].id_length != reader.id.n or memcmp(
                table.id_of(slot), reader.id.p, <size_t>reader.id.n) != 0:
            # reference reactors answer with seq 0; some other seq is no better
            slot = table.find_id(reader.id.p, reader.id.n)
        if slot < 0 or (<Reply>table.entries[slot].waiter).entry is not None:
            if slot >= 0 or self.member is None or reader.seq >= FIRST_ROUTED \
                    or not self.sink.answer(self, reader, self.now):
                self.unasked += 1
            return 0
        reply = <Reply>table.entries[slot].waiter
        if not reader.success and reply.frame is not None:
            error = reader.decode(F_ERROR)
            if isinstance(error, dict) and self._again(
                    reply, (<dict>error).get("code"), (<dict>error).get("details")):
                return 0
        # first all that makes objects, which may set off a finaliser, and that may cancel this very submit
        if reader.success and reply.want == Want.WANT_DATA:
            value = reader.decode(F_DATA)
        else:
            value = new_result(
                reader.id.p, reader.id.n, reader.success,
                None if not reader.success else decode_span(
                    &reader.fields[<int>F_DATA], _Raw if reply.want == Want.WANT_RAW else None),
                None if reader.success else reader.decode(F_ERROR), reader.duration_ms)
        slot = table.find_seq(reply.seq)
        if slot < 0 or <object>table.entries[slot].waiter is not reply:
            self.unasked += 1
            return 0
        table.take_slot(slot)
        self.answered += 1
        reply.resolve(value)
        if reply.callback is not None:
            self.ready.append(reply)
        if self.member is not None:
            self.sink.freed(self)
        return 0

    cdef int _on_error(self) except -1:
        """The peer refuses a frame of ours, or cancels a packet of its own."""
        cdef FrameReader reader = self.reader
        cdef int32_t slot
        cdef Reply reply
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
        slot = self.pending.find_seq(reader.seq)
        if slot >= 0 and reader.id.n > 0 and (
                self.pending.entries[slot].id_length != reader.id.n
                or memcmp(self.pending.id_of(slot), reader.id.p, <size_t>reader.id.n) != 0):
            slot = -1
        if slot < 0 and self.member is None or slot >= 0 and (
                <Reply>self.pending.entries[slot].waiter).entry is not None:
            self.unasked += 1
            return 0
        if slot < 0:
            if not self.sink.refuse(self, reader, code or "PF500", message or "the peer refused the frame",
                                        details if isinstance(details, dict) else None):
                self.unasked += 1
            return 0
        reply = <Reply>self.pending.entries[slot].waiter
        if self._again(reply, code, details):
            return 0
        self.pending.take_slot(slot)
        reply.fail(code or "PF500", message or "the peer refused the frame and said no more",
                   details if isinstance(details, dict) else None)
        return self._settle(reply)

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

    cdef bint fire_ready(self) except -1:
        """Resumes the waiters of what has ended, in order; they may submit more.

        Returns True, before all were resumed, once there is a good write's
        worth of output: while the peer works on that, the rest can go on.
        """
        cdef Reply reply
        cdef list ready = self.ready
        while self.ready_at < len(ready):
            reply = <Reply>ready[self.ready_at]
            self.ready_at += 1
            reply.fire()
            if self.worth_writing():
                return True
        ready.clear()
        self.ready_at = 0
        return False

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

    cdef int _send_error(self, int64_t seq, bytes packet_id, object code, object message) except -1:
        cdef dict fields = {"code": code, "message": message}
        cdef bytes payload
        if self.state != EngineState.OPEN or self.fatal != 0:
            return 0
        if packet_id is not None:
            fields["packet_id"] = packet_id.decode()
        payload = <bytes>encode_value(fields, self.max_depth - 1, "error")
        try:
            self.out.begin_message()
            put_error(self.out, seq, payload)
            self.out.end_message(OP_TEXT)
        except BufferError as error:
            return self._overflow(error)
        return self.note_output()

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
        cdef Reply reply
        cdef int ended = 0
        self.now = now
        slot = self.pending.due(now)
        while slot >= 0:
            reply = <Reply>self.pending.take_slot(slot)
            if reply.entry is not None:
                self._unqueue(reply)
                message = "the packet was never sent: no room or no connection until its deadline"
            else:
                message = "no answer came until one second after the deadline"
            timeout = reply.timeout_ms or DEFAULT_TIMEOUT_MS
            reply.fail("PF408", f"{message} ({timeout} ms)", None)
            self._settle(reply)
            slot = self.pending.due(now)
        while self.delayed.live() > 0 and (<tuple>self.delayed.peek())[1] <= now:
            reply, _ = self.delayed.pop()
            reply.entry = self.waiting.push((reply, reply.frame), reply.priority)
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
        cdef int64_t best = self.pending.next_due()
        cdef int64_t other = self.inbound.next_due()
        if best < 0 or (0 <= other < best):
            best = other if other >= 0 else best
        if self.delayed.live() > 0:
            other = (<tuple>self.delayed.peek())[1]
            if best < 0 or other < best:
                best = other
        if self.state == EngineState.OPEN:
            if best < 0 or self.next_heartbeat < best:
                best = self.next_heartbeat
            other = self.last_heard + self.silence_ns if self.ping_sent < 0 else self.ping_sent + self.silence_ns
            if other < best:
                best = other
        self.earliest = best
        return best
