"""Whole frames out of the bytes of one connection. See ``inbox.pxd``."""

cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from pfcore.memory.budget cimport Account
from pfcore.memory.bytes_ops cimport PF_UNMASK_SLACK, pf_unmask

__all__ = ["Inbox", "ReadBuffer"]

cdef enum:
    # Bytes of a frame from which on reads go right to where it is put together. With less it is copied there and back
    # again: a microsecond for a peer that sends byte by byte.
    LARGE = 16384
    FREE = 16384                 # bytes of memory of its own that nobody is charged for
    KEEP = 262144                # ... that are kept for the next large frame
    CLOSE_PROTOCOL = 1002
    CLOSE_POLICY = 1008
    CLOSE_TOO_BIG = 1009
    CONTROL = 0x8                # opcodes from here on
    MOST_CONTROL = 125           # bytes of a control frame

# opcodes that RFC 6455 knows, a bit each
cdef int KNOWN = 1 << 0x0 | 1 << 0x1 | 1 << 0x2 | 1 << 0x8 | 1 << 0x9 | 1 << 0xA


@cython.final
cdef class ReadBuffer:
    """What the connections of one loop read into, each for as long as it handles what has come."""

    def __cinit__(self):
        self.capacity = LARGE + MOST_READ
        self.data = <unsigned char*>malloc(<size_t>(self.capacity + PF_UNMASK_SLACK))
        if self.data == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)


@cython.final
cdef class Inbox:
    """Frames of one side of a connection.

    `server`: ours is the server's side, so that frames must be masked (RFC 6455,
    section 5.1); else they must not be. `max_frame`: bytes of a payload, a longer
    one is refused by its header. `shared`: the loop's buffer.
    """

    def __init__(self, *, bint server, Py_ssize_t max_frame, ReadBuffer shared not None):
        self.server = server
        self.max_frame = max_frame
        self.shared = shared

    def __dealloc__(self):
        free(self.own)
        if self.account is not None:
            self.account.settle(-self.charged)

    cdef object room(self, Py_ssize_t most):
        cdef ReadBuffer shared = self.shared
        if self.direct:
            # `keep` has seen to it that there is some; not beyond the frame, though there may be memory
            return PyMemoryView_FromMemory(
                <char*>self.own + self.held, min(most, min(self.capacity, self.need) - self.held), PyBUF_WRITE)
        if shared.busy:
            # somebody else's frames are being handled, and that reads from us: it does not happen, but it may
            shared = self.shared = ReadBuffer()
        if self.held > 0:
            memcpy(shared.data, self.own, <size_t>self.held)
        return PyMemoryView_FromMemory(
            <char*>shared.data + self.held, min(most, shared.capacity - self.held), PyBUF_WRITE)

    cdef int came(self, Py_ssize_t n) noexcept:
        if self.direct:
            self.at = self.own
        else:
            self.at = self.shared.data
            self.shared.busy = True
        self.end = self.at + self.held + n
        if self.broken:
            self.at = self.end
        return 0

    cdef int next(self, Frame* frame) except -2:
        cdef unsigned char* p = self.at
        cdef Py_ssize_t there = self.end - p
        cdef Py_ssize_t n, header
        cdef uint64_t length
        cdef int opcode, i
        if there < 2:
            self.need = 0
            return 0
        opcode = p[0] & 0xF
        if p[0] & 0x70:
            return self._refuse(CLOSE_PROTOCOL, "reserved bits are set, and no extension was agreed")
        if not KNOWN >> opcode & 1:
            return self._refuse(CLOSE_PROTOCOL, f"opcode {opcode}: expected 0, 1, 2, 8, 9 or 10")
        if (p[1] & 0x80 != 0) != self.server:
            return self._refuse(CLOSE_PROTOCOL, "a frame of a client that is not masked" if self.server
                                else "a frame of a server that is masked")
        n = p[1] & 0x7F
        header = 6 if self.server else 2
        if opcode >= CONTROL and (n > MOST_CONTROL or not p[0] & 0x80):
            return self._refuse(CLOSE_PROTOCOL, "a control frame in fragments" if not p[0] & 0x80
                                else f"a control frame of more than {<int>MOST_CONTROL} bytes")
        if n == 126:
            header += 2
            if there < 4:
                self.need = 0
                return 0
            n = (<Py_ssize_t>p[2] << 8) | p[3]
            if n < 126:
                return self._refuse(CLOSE_PROTOCOL, f"{n} bytes as a length of 16 bits: expected the shortest form")
        elif n == 127:
            header += 8
            if there < 10:
                self.need = 0
                return 0
            length = 0
            for i in range(8):
                length = (length << 8) | p[2 + i]
            if length < 65536 or length >> 63:
                return self._refuse(CLOSE_PROTOCOL,
                                    f"{length} bytes as a length of 64 bits: expected the shortest form")
            n = <Py_ssize_t>length
        if n > self.max_frame and opcode < CONTROL:
            return self._refuse(CLOSE_TOO_BIG, f"a frame of {n} bytes, the most is {self.max_frame}")
        if there < header + n:
            self.need = header + n
            return 0
        frame.p = p + header
        frame.n = n
        frame.opcode = opcode
        frame.fin = p[0] & 0x80 != 0
        if self.server:
            pf_unmask(frame.p, <size_t>n, frame.p - 4)
        self.at = frame.p + n
        return 1

    cdef int _refuse(self, int code, str reason) except -2:
        self.code = code
        self.reason = reason
        self.stop()
        return -1

    cdef int stop(self) noexcept:
        self.broken = True
        self.at = self.end
        if self.end == NULL:
            # nothing is being handled: else `keep` does it
            self.held = 0
            self.direct = False
            self.release()
        return 0

    cdef bint keep(self, Account account) except -1:
        cdef Py_ssize_t rest = self.end - self.at
        cdef unsigned char* at = self.at
        self.at = self.end = NULL
        if not self.direct:
            self.shared.busy = False
        if rest == 0:
            self.held = 0
            self.need = 0
            self.direct = False
            if self.capacity > KEEP or self.broken:
                self.release()
            return True
        # A frame that is not whole yet. Memory grows with what has come of it: what its header says costs nothing.
        if self.direct:
            if rest == self.capacity and not self._grow(min(self.need, 2 * rest), account):
                return False
        else:
            if self.need > LARGE:
                if not self._grow(min(self.need, max(2 * rest, <Py_ssize_t>2 * LARGE)), account):
                    return False
                self.direct = True
            elif not self._grow(rest, account):
                return False
            memcpy(self.own, at, <size_t>rest)
        self.held = rest
        return True

    cdef bint _grow(self, Py_ssize_t wanted, Account account) except -1:
        """Memory of its own of that many bytes at least. False: whoever pays for it cannot."""
        cdef Py_ssize_t more
        cdef void* own
        if wanted <= self.capacity:
            return True
        more = wanted - self.charged if wanted > FREE else 0
        if self.account is None:
            self.account = account
        if more > 0 and self.account is not None and not self.account.take(more):
            self._refuse(CLOSE_POLICY, self.account.refusal(more))
            return False
        if more > 0 and self.account is not None:
            self.charged += more
        own = realloc(self.own, <size_t>(wanted + PF_UNMASK_SLACK))
        if own == NULL:
            self.stop()
            raise MemoryError()
        self.own = <unsigned char*>own
        self.capacity = wanted
        return True

    cdef int release(self) noexcept:
        if self.held > 0 or self.direct:
            return 0
        free(self.own)
        self.own = NULL
        self.capacity = 0
        if self.account is not None:
            self.account.settle(-self.charged)
        self.charged = 0
        return 0

    def feed(self, bytes data not None, Py_ssize_t most=MOST_READ):
        """The frames that become whole with `data`, read `most` bytes at a time: ``[(opcode, fin, payload)]``.

        After one that is not valid there are no more: `code` and `reason` say why. For tests.
        """
        cdef list frames = []
        cdef Frame frame
        cdef Py_ssize_t at = 0
        cdef object view
        while at < len(data) and not self.broken:
            view = self.room(most)
            n = min(len(view), len(data) - at)
            view[:n] = data[at:at + n]
            at += n
            self.came(n)
            try:
                while self.next(&frame) > 0:
                    frames.append((frame.opcode, bool(frame.fin),
                                   PyBytes_FromStringAndSize(<const char*>frame.p, frame.n)))
            finally:
                self.keep(None)
        return frames
