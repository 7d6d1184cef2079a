# WebSocket (RFC 6455) for an engine, once the handshake is done: see handshake.pyx for that.
#
# A Connection is one connection's bytes: how much of them is read when, and who
# pays for what is not whole yet or not taken yet. Its frames go to a Link, which
# does with them what RFC 6455 says, drives the engine, and outlives its
# connection where the engine does (a reactor's): it then serves one after
# another. The two are one module because they are one state: who is closing, and
# whose connection this still is.

from libc.stdint cimport int64_t

from pfcore.link.driver cimport Driver
from pfcore.link.fragments cimport Fragments
from pfcore.link.inbox cimport Frame, Inbox

cdef class _Protocol:
    pass

cdef class Connection(_Protocol):
    cdef:
        Link link
        object tcp                   # its transport, aiofastnet's; None once it has gone
        object take                  # the transport's method that takes bytes
        Inbox inbox
        object departed              # callable() once it has gone, or None
        readonly bint accepted       # it came to us, rather than we went there
        object gone                  # Future: set when it has gone; None as long as nobody waits
        # -- turns of reading
        Py_ssize_t quantum           # bytes that it reads at once
        bint quick                   # the last batch took so little that the next may be larger
        int64_t rests                # its batch took long: ns until it reads on; 1: in the loop's next iteration
        bint reading_paused
        object reread                # TLS: reads what it has already; None otherwise
        bint unpausable              # TLS that cannot do that
        # -- what it has not taken
        Py_ssize_t unsent_charged    # bytes of it that its account was charged with
        Py_ssize_t backlog           # bytes of it at the last look, to see a slow reader's progress

    cdef int write(self, const unsigned char* p, Py_ssize_t n) except -1
    cdef Py_ssize_t unsent(self) except? -1
    # The link has much to say that is not taken: it reads no more, and goes on.
    cdef int pause_reading(self) except -1
    cdef int read_on(self) except -1
    cdef int count_unsent(self) except -1
    # A batch took so long.
    cdef int took(self, int64_t ns, int64_t now) except -1
    # -- private
    cdef bint _handle(self) except -1
    cdef int _next_turn(self, Py_ssize_t n, bint whole) except -1

cdef class Link(Driver):
    cdef:
        Connection connection        # None while there is none
        bint closing                 # we have sent a close frame
        bint to_end                  # its connection has gone, and what follows from that has not been done yet
        object cutoff                # timer that ends a close that the peer does not take part in
        Py_ssize_t max_message       # bytes of a message put together from fragments
        Fragments fragments          # of the message that is not whole yet, None
        readonly int close_code      # why the connection went: ours or the peer's, 1006 if none
        readonly object close_reason
        object on_open               # callable(link) or None
        object on_closed             # callable(link) or None

    # A whole message. Overridden by MessageLink.
    cdef int deliver(self, const unsigned char* p, Py_ssize_t n, bint text) except -1
    # There is a connection.
    cdef int begin(self) except -1
    cdef int take(self, Frame* frame) except -1
    cdef int fail(self, int code, str reason) except -1
    # -- private
    cdef int _take(self, Frame* frame) except -1
    cdef int _control(self, Frame* frame) except -1
    cdef int _fragment(self, Frame* frame) except -1
