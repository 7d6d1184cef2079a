"""Growable output buffer that frames what is written into it as WebSocket messages."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from pfcore.memory.bytes_ops cimport pf_escape_run, pf_mask
from pfcore.memory.ids cimport write_mask_key

__all__ = ["OutputBuffer"]

cdef enum:
    HEADER = 4                   # header of a message of 126 to 65,535 bytes: the usual one
    LONG_HEADER = 8              # that with a mask, or a length alone
    FIRST_CAPACITY = 1024

cdef const char* HEX = b"0123456789abcdef"


@cython.final
cdef class OutputBuffer:
    """WebSocket messages back to back, ready to be written in one go.

    `masked`: mask every message, as a client must (RFC 6455, section 5.3).
    `limit`: most bytes that may be buffered (default 16 MiB); past it writing
    raises BufferError.
    """

    def __cinit__(self, *, bint masked=False, Py_ssize_t limit=16 * 1024 * 1024):
        if limit < 1024:
            raise ValueError(f"limit: expected at least 1024 bytes, got {limit}")
        self.data = NULL
        self.size = 0
        self.capacity = 0
        self.limit = limit
        self.opened = -1
        self.masked = masked

    def __dealloc__(self):
        free(self.data)

    def __len__(self):
        return self.size

    cdef int grow(self, Py_ssize_t extra) except -1:
        cdef Py_ssize_t wanted = self.capacity * 2
        cdef void* data
        cdef Py_ssize_t size = self.size
        if extra > self.limit - self.size:
            # first the message, then the exception: making one may run a finaliser, and that may submit
            self.cancel_message()
            raise BufferError(
                f"output buffer: {size} bytes wait to be sent, {extra} more would pass the limit of {self.limit}"
            )
        if wanted < FIRST_CAPACITY:
            wanted = FIRST_CAPACITY
        if wanted < self.size + extra:
            wanted = self.size + extra
        data = realloc(self.data, <size_t>wanted)
        if data == NULL:
            self.cancel_message()
            raise MemoryError()
        self.data = <unsigned char*>data
        self.capacity = wanted
        return 0

    cdef int begin_message(self) except -1:
        cdef Py_ssize_t room = LONG_HEADER if self.masked or self.bare else HEADER
        if self.opened >= 0:
            raise SystemError("begin_message: a message is open")  # cannot be: nothing else runs while one is
        self.reserve(room)
        self.opened = self.size
        self.size += room
        return 0

    cdef Py_ssize_t message_size(self) noexcept:
        return self.size - self.opened - (LONG_HEADER if self.masked or self.bare else HEADER)

    cdef void cancel_message(self) noexcept:
        if self.opened >= 0:
            self.size = self.opened
            self.opened = -1

    cdef int end_message(self, Opcode opcode) except -1:
        cdef Py_ssize_t n = self.message_size()
        cdef Py_ssize_t payload = self.size - n
        cdef Py_ssize_t start = self.opened
        cdef int header = 2 if n < 126 else 4 if n < 65536 else 10
        cdef int i
        cdef uint8_t mask_bit = 0x80 if self.masked else 0
        cdef unsigned char* at
        cdef int64_t length = n
        if self.bare:
            if opcode != OP_TEXT:
                self.cancel_message()  # there is no WebSocket
                return 0
            memcpy(self.data + start, &length, sizeof(length))
            self.opened = -1
            return 0
        if header != HEADER:
            # rare for packets: move the payload to where this header's length puts it
            if header > HEADER:
                self.reserve(header - HEADER)
            memmove(self.data + payload + header - HEADER, self.data + payload, <size_t>n)
            payload += header - HEADER
            self.size += header - HEADER
        at = self.data + start
        at[0] = <unsigned char>(0x80 | opcode)
        if header == 2:
            at[1] = <unsigned char>(mask_bit | n)
        elif header == 4:
            at[1] = mask_bit | 126
            at[2] = <unsigned char>(n >> 8)
            at[3] = <unsigned char>(n & 0xFF)
        else:
            at[1] = mask_bit | 127
            for i in range(8):
                at[2 + i] = <unsigned char>((<uint64_t>n >> (56 - 8 * i)) & 0xFF)
        if self.masked:
            write_mask_key(at + header)
            pf_mask(self.data + payload, <size_t>n, at + header)
        self.opened = -1
        return 0

    cdef int put_string(self, const unsigned char* text, Py_ssize_t n) except -1:
        """A JSON string of this well-formed UTF-8, quotes and escapes included."""
        cdef const unsigned char* end = text + n
        cdef const unsigned char* run
        cdef unsigned char c
        cdef unsigned char* at
        self.reserve(n + 2)
        self.data[self.size] = 0x22
        self.size += 1
        while True:
            run = pf_escape_run(text, end)
            self.put(text, run - text)
            text = run
            if text >= end:
                break
            self.reserve(6)
            c = text[0]
            text += 1
            at = self.data + self.size
            at[0] = 0x5C
            if c == 0x22 or c == 0x5C:
                at[1] = c
            elif c == 0x0A:
                at[1] = 0x6E
            elif c == 0x0D:
                at[1] = 0x72
            elif c == 0x09:
                at[1] = 0x74
            else:
                at[1] = 0x75
                at[2] = 0x30
                at[3] = 0x30
                at[4] = <unsigned char>HEX[c >> 4]
                at[5] = <unsigned char>HEX[c & 15]
                self.size += 4
            self.size += 2
        self.reserve(1)
        self.data[self.size] = 0x22
        self.size += 1
        return 0

    cdef void clear(self) noexcept:
        """Everything complete was sent. The memory stays for the next batch."""
        self.size = 0
        self.opened = -1

    cdef void release(self) noexcept:
        """As `clear`, and gives the memory back: an idle link keeps none."""
        free(self.data)
        self.data = NULL
        self.size = 0
        self.capacity = 0
        self.opened = -1

    def add(self, bytes payload not None, int opcode=OP_TEXT):
        """Appends one whole message of `opcode` (1 text, 2 binary, 8 close, 9 ping, 10 pong)."""
        if opcode not in (OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG):
            raise ValueError(f"opcode: expected 1, 2, 8, 9 or 10, got {opcode}")
        self.begin_message()
        try:
            self.put(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
            self.end_message(<Opcode>opcode)
        except BaseException:
            self.cancel_message()
            raise

    cdef void swap(self, OutputBuffer other) noexcept:
        self.data, other.data = other.data, self.data
        self.size, other.size = other.size, self.size
        self.capacity, other.capacity = other.capacity, self.capacity

    def take(self):
        """All complete messages as bytes; the buffer is empty afterwards."""
        cdef bytes out = PyBytes_FromStringAndSize(<char*>self.data, self.size)
        self.clear()
        return out
