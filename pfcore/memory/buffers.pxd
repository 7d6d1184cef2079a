# The output buffer of a link: whole WebSocket messages, back to back, that
# leave in one write. Of a link within the process (`bare`): messages with their
# lengths, that `message` gives one by one.
#
# A message is written between `begin_message` and `end_message`; everything
# before is complete and may be sent at any time. `begin_message` leaves room
# for the WebSocket header, `end_message` writes it (and masks, on a client:
# RFC 6455, section 5.3), `cancel_message` takes the message back. The writers
# check nothing but capacity; growth is bounded by `limit`, past which they
# cancel the message and raise BufferError.
#
# While a message is open nothing runs but these writers: no Python object is
# made or let go, so no finaliser, hook or callback of a user's can write into
# the middle of it. Values are encoded before (pfcore.wire.writer, encode_value).

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, strlen

from pfcore.memory.bytes_ops cimport PF_LONGEST_INT, pf_write_int

cdef enum Opcode:
    OP_TEXT = 0x1
    OP_BINARY = 0x2
    OP_CLOSE = 0x8
    OP_PING = 0x9
    OP_PONG = 0xA

cdef class OutputBuffer:
    cdef:
        unsigned char* data      # owned; NULL until first used
        Py_ssize_t size          # bytes written, the open message included
        Py_ssize_t capacity      # bytes allocated
        Py_ssize_t limit         # most bytes that may be buffered
        Py_ssize_t opened        # where the open message's header room starts, -1 if none
        bint masked              # a client's: every message is masked
        bint bare                # no WebSocket: an int64_t with its length is before each message

    cdef int grow(self, Py_ssize_t extra) except -1
    cdef int begin_message(self) except -1
    cdef int end_message(self, Opcode opcode) except -1
    cdef void cancel_message(self) noexcept
    cdef Py_ssize_t message_size(self) noexcept
    cdef int put_string(self, const unsigned char* text, Py_ssize_t n) except -1
    cdef void clear(self) noexcept
    cdef void release(self) noexcept
    # Changes what both hold; neither has a message open.
    cdef void swap(self, OutputBuffer other) noexcept

    # Of a bare buffer: the message at `at`, and where the next one is.
    cdef inline Py_ssize_t message(self, Py_ssize_t at, const unsigned char** p, Py_ssize_t* n) noexcept:
        cdef int64_t length
        memcpy(&length, self.data + at, sizeof(length))
        p[0] = self.data + at + sizeof(length)
        n[0] = <Py_ssize_t>length
        return at + <Py_ssize_t>sizeof(length) + n[0]

    cdef inline int reserve(self, Py_ssize_t extra) except -1:
        if self.capacity - self.size < extra:
            self.grow(extra)
        return 0

    cdef inline int put(self, const void* source, Py_ssize_t n) except -1:
        if self.capacity - self.size < n:
            self.grow(n)
        memcpy(self.data + self.size, source, <size_t>n)
        self.size += n
        return 0

    # A text that is known when this is compiled: then its length is, too, and it is written by a few moves.
    cdef inline int put_literal(self, const char* text) except -1:
        return self.put(text, <Py_ssize_t>strlen(text))

    cdef inline int put_int(self, int64_t value) except -1:
        if self.capacity - self.size < PF_LONGEST_INT:
            self.grow(PF_LONGEST_INT)
        self.size += pf_write_int(self.data + self.size, value)
        return 0
