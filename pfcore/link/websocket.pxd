# Binds an engine to picows: the one module that knows picows or sockets.
#
# picows parses WebSocket frames out of its read buffer and calls `on_ws_frame`
# with a pointer into it; the last frame of a buffer says so, and then waiters
# are resumed, handlers' answers and new submits leave in one write. picows's
# binary layout is compiled in (see the pin in pyproject.toml, and `_pin`).
#
# A Link outlives its connection where the engine does (a reactor's): it then
# serves one connection after another.

from libc.stdint cimport int64_t

from picows.picows cimport WSFrame, WSListener, WSTransport

from pfcore.link.engine cimport Engine
from pfcore.link.fragments cimport Fragments
from pfcore.link.sharing cimport Sharing

cdef class Link(WSListener):
    cdef:
        readonly Sharing sharing     # None: it is the only one, as a reactor's is
        readonly Py_ssize_t quantum  # bytes that it reads at once
        int64_t batch_began          # ns
        bint quick                   # the batch took so little that the next may be larger
        Py_ssize_t partial           # bytes of a frame that is not whole yet
        bint got_frame               # since the last look
        int64_t rests                # its batch took long: ns until it reads on; 1: in the loop's next iteration
        Py_ssize_t read_charged      # bytes of picows's buffer that its account was charged with: it never shrinks
        Py_ssize_t unsent_charged    # bytes of output that the peer does not take, likewise
        readonly Engine engine
        object loop
        unsigned long thread         # the loop's: nothing here may be called from another
        WSTransport transport        # None while there is no connection
        object tcp                   # its asyncio transport
        bint in_batch
        bint flush_scheduled
        bint closing                 # we have sent a close frame
        object old                   # picows's protocol of a connection that has gone, until what follows was done
        bint to_end                  # its connection has gone, and what follows from that has not been done yet
        bint reading_paused
        object reread                # TLS: reads what it has already; None otherwise
        bint unpausable              # TLS that cannot do that
        object timer                 # the one loop timer, None
        object cutoff                # timer that ends a close that the peer does not take part in
        int64_t timer_at             # ns
        Py_ssize_t max_message       # bytes of a message put together from fragments
        Fragments fragments          # of the message that is not whole yet, None
        readonly int close_code      # why the connection went: ours or the peer's, 1006 if none
        readonly object close_reason
        object on_open               # callable(link) or None
        object on_closed             # callable(link) or None
        Py_ssize_t backlog           # unsent bytes at the last look, to see a slow reader's progress

    # A whole message. Overridden by MessageLink.
    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1

    cdef int _attach(self, WSTransport transport) except -1
    cdef int _part(self) except -1
    cdef object submitted(self, object reply)
    cdef int _count_unsent(self) except -1
    cdef int _resume_reading(self) except -1
    cdef bint _much(self) noexcept
    cdef bint _waits(self) noexcept
    cdef int flush(self) except -1
    cdef int end_batch(self) except -1
    cdef int _fire(self) except -1
    cdef int arm(self) except -1
    cdef int64_t present(self) noexcept
    cdef int fail(self, int code, str reason) except -1
    cdef int _control(self, WSFrame frame) except -1
    cdef int _fragment(self, WSFrame frame) except -1
    cdef int _check_fatal(self) except -1
    cdef int _write(self) except -1
