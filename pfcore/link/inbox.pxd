# Whole frames out of the bytes of one connection (RFC 6455, section 5).
#
# A read goes to the one buffer that all connections of a loop share: room -> the
# system writes n bytes -> came(n) -> next() until it says 0 -> keep(). What
# `next` hands out points into that buffer, unmasked, and is gone with `keep`;
# there what is left, part of a frame, moves to memory of its own. So a
# connection that is idle holds nothing, and one with a large frame on its way
# reads right to where that frame is put together.

from libc.stdint cimport uint8_t

from pfcore.memory.budget cimport Account

cdef enum:
    MOST_READ = 131072           # bytes that are read at once: one that does more parses what has left the cache

cdef struct Frame:
    unsigned char* p             # the payload
    Py_ssize_t n
    int opcode                   # one of RFC 6455's
    bint fin

cdef class ReadBuffer:
    cdef:
        unsigned char* data      # owned
        Py_ssize_t capacity
        bint busy                # somebody's frames are being handled: it is not to be read into

cdef class Inbox:
    cdef:
        bint server              # frames must be masked; else they must not be
        Py_ssize_t max_frame     # bytes of a payload
        ReadBuffer shared
        unsigned char* own       # the part of a frame that has come; NULL
        Py_ssize_t capacity      # bytes allocated there
        readonly Py_ssize_t held  # bytes of a frame that is not whole yet
        Py_ssize_t need          # bytes that it will have, header included; 0: not known yet
        bint direct              # it is large: reads go to `own`
        unsigned char* at        # what has come and was not handed out yet
        unsigned char* end
        bint broken              # no more frames: one was not valid, or the connection is at its end
        readonly int code        # close code for what was not valid, 0
        readonly object reason   # str
        Account account          # who pays for `own`, None: nobody
        Py_ssize_t charged       # bytes it was charged with

    # Where the next bytes go, at most so many: at least one.
    cdef object room(self, Py_ssize_t most)
    cdef int came(self, Py_ssize_t n) noexcept
    # 1: a frame; 0: no more; -1: what came is not valid, see `code` and `reason`.
    cdef int next(self, Frame* frame) except -2
    # After the last `next`. False: there is no room for what is left, see `code` and `reason`.
    cdef bint keep(self, Account account) except -1
    # No more frames; what was handed out stays until `keep`.
    cdef int stop(self) noexcept
    # Nothing is under way: gives back what is kept for the next large frame.
    cdef int release(self) noexcept
    cdef inline bint more(self) noexcept:
        return self.at < self.end
    # -- private
    cdef int _refuse(self, int code, str reason) except -2
    cdef bint _grow(self, Py_ssize_t wanted, Account account) except -1
