"""What this side of a connection submits. See ``outgoing.pxd``."""

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp

from pfcore.link.pending cimport PendingTable
from pfcore.link.reply cimport Canceller, Reply, Want, new_reply
from pfcore.memory.buffers cimport OP_TEXT, OutputBuffer
from pfcore.memory.heap cimport HeapEntry
from pfcore.memory.ids cimport ID_LENGTH, write_id
from pfcore.wire.packets cimport new_result
from pfcore.wire.reader cimport F_DATA, F_ERROR, FrameReader, decode_span
from pfcore.wire.terms cimport DEFAULT_TIMEOUT_MS, MILLISECOND
from pfcore.wire.writer cimport encode_value, put_error, put_submit

from pfcore.errors import exception_for
from pfcore.link.pending import PendingFull
from pfcore.wire import codes

__all__ = ["Outgoing"]

cdef object _Raw = msgspec.Raw
# a submit that may be sent again is, after these: the same id, so that it runs once
cdef frozenset _SENT_AGAIN = codes.SENT_AGAIN

cdef enum:
    RETRY_MS = 50                # before a submit is sent again after a refusal that names no time
    GRACE_MS = 1000              # the gateway's clock decides; give its answer time to arrive
    SEND_AHEAD = 1048576         # bytes of unsent output beyond which submits wait
    CLOSE_POLICY = 1008

cdef int64_t COMING_BACK_NS = 10000000000


cdef class Outgoing(Canceller):
    """The submitting half of an `Engine`, and the output that both halves share."""

    cdef int note_output(self) except -1:
        """There is something to write, or a timer to set, and nobody is about to look."""
        if not self.in_batch and not self.sent_since_wake and self.wake is not None:
            self.sent_since_wake = True
            self.wake()
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

    # -- submits

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
        self.freed()
        return self.note_output()

    # -- what becomes of them

    cdef bint result(self, FrameReader reader) except -1:
        cdef PendingTable table = self.pending
        cdef int32_t slot = table.find_seq(reader.seq)
        cdef Reply reply
        if slot < 0 or table.entries[slot].id_length != reader.id.n or memcmp(
                table.id_of(slot), reader.id.p, <size_t>reader.id.n) != 0:
            # reference reactors answer with seq 0; some other seq is no better
            slot = table.find_id(reader.id.p, reader.id.n)
        if slot < 0:
            return False
        reply = <Reply>table.entries[slot].waiter
        if reply.entry is not None:
            self.unasked += 1
            return True
        if not reader.success and reply.frame is not None:
            error = reader.decode(F_ERROR)
            if isinstance(error, dict) and self._again(
                    reply, (<dict>error).get("code"), (<dict>error).get("details")):
                return True
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
            return True
        table.take_slot(slot)
        self.answered += 1
        reply.resolve(value)
        if reply.callback is not None:
            self.ready.append(reply)
        self.freed()
        return True

    cdef bint refused_there(self, FrameReader reader, object code, object message, object details) except -1:
        cdef int32_t slot = self.pending.find_seq(reader.seq)
        cdef Reply reply
        if slot < 0 or (reader.id.n > 0 and (
                self.pending.entries[slot].id_length != reader.id.n
                or memcmp(self.pending.id_of(slot), reader.id.p, <size_t>reader.id.n) != 0)):
            return False
        reply = <Reply>self.pending.entries[slot].waiter
        if reply.entry is not None:
            self.unasked += 1
        elif not self._again(reply, code, details):
            self.pending.take_slot(slot)
            reply.fail(code or "PF500", message or "the peer refused the frame and said no more", details)
            self._settle(reply)
        return True

    cdef bint malformed(self, FrameReader reader, object message) except -1:
        cdef int32_t slot = self.pending.find_seq(reader.seq)
        cdef Reply reply
        if slot < 0 and reader.id.n > 0:
            slot = self.pending.find_id(reader.id.p, reader.id.n)
        if slot < 0 or (<Reply>self.pending.entries[slot].waiter).entry is not None:
            return False
        reply = <Reply>self.pending.take_slot(slot)
        reply.fail("PF502", f"the peer's answer is malformed: {message}", None)
        self._settle(reply)
        return True

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
        self.freed()
        if self.earliest < 0 or due < self.earliest:
            self.earliest = due
            self.note_output()
        return True

    cdef int _settle(self, Reply reply) except -1:
        """A reply has ended: its waiter is resumed at the end of the batch."""
        self.freed()
        if reply.callback is not None:
            self.ready.append(reply)
            self.note_output()
        return 0

    cdef int freed(self) except -1:
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
            if self.worth_writing(self.sent()):
                return True
        ready.clear()
        self.ready_at = 0
        return False

    # -- ends

    cdef bint fail_sent(self, object code, object message, bint waiting_too, Py_ssize_t most) except -1:
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

    cdef int tick_submits(self, int64_t now) except -1:
        """Deadlines of those that wait for an answer; those whose time to be sent again has come."""
        cdef Reply reply
        cdef int32_t slot = self.pending.due(now)
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
        return 0

    cdef int64_t submits_due(self) except? -2:
        cdef int64_t best = self.pending.next_due()
        cdef int64_t other
        if self.delayed.live() > 0:
            other = (<tuple>self.delayed.peek())[1]
            if best < 0 or other < best:
                best = other
        return best
