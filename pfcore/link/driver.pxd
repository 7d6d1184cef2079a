# Drives an engine: the one place that says when what has come is done, when what is
# ready leaves, and when time has come.
#
# A batch is all that comes together: the packets of one read, the answers to
# them, what those who waited submit next. It leaves in one write at its end;
# in the middle of it, once that is worth a write (Engine.worth_writing), so that
# the peer works while we go on. What happens outside of a batch asks for one
# (`_wake`), which the loop's next iteration runs. There is one timer, for
# whatever the engine needs next.
#
# A Link drives over WebSocket, a Loopback from one engine to another.

from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.link.sharing cimport Sharing

cdef class Driver:
    cdef:
        readonly Engine engine
        readonly Sharing sharing     # None: it is the only one, as a reactor's is
        object loop
        unsigned long thread         # the loop's: nothing here may be called from another
        bint in_batch
        bint flush_scheduled
        object timer                 # the one loop timer, None
        int64_t timer_at             # ns

    # -- each kind's own
    # Hands on what is ready: all of it, or as much as goes in one go.
    cdef int write(self) except -1
    # The same at the end of a batch: with what was waiting for room, and a look at whether this is the end.
    cdef int flush(self) except -1
    # Is it much that waits to be written? Then it takes its turn with others who have much; must it wait for it?
    cdef bint much(self) noexcept
    cdef bint waits(self) noexcept
    # What waits is held: somebody pays for it.
    cdef int count_unsent(self) except -1
    # What is due now; when it is next, ns, -1 never; the same as far as it is known, -1 look.
    cdef int tick(self, int64_t now) except -1
    cdef int64_t wake_at(self) except? -2
    cdef int64_t earliest(self) noexcept
    # It will never need the timer again.
    cdef bint over(self) noexcept

    # -- all
    cdef int64_t present(self) noexcept
    cdef object submitted(self, object reply)
    cdef int begin_batch(self, int64_t now) except -1
    cdef int end_batch(self) except -1
    # In the middle of a batch, between two messages.
    cdef int pause(self) except -1
    cdef int fire(self) except -1
    cdef int arm(self) except -1
    # For good: engine and driver know each other no more, or only the garbage collector would end them.
    cdef int part(self) except -1
