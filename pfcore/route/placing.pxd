# A packet finds its reactor: it is given to one that has room, or waits for that.
#
# Room that becomes free is offered to what waits: whoever takes a flight from a
# reactor calls `pump`, or `_leave_target`, which sees to it that somebody does.
# What is written leaves when the batch ends, or sooner once it is worth a write.

from libc.stdint cimport int64_t, uint64_t

from pfcore.link.engine cimport Engine
from pfcore.link.pending cimport PendingTable
from pfcore.route.dependencies cimport Dependencies
from pfcore.route.directory cimport Directory
from pfcore.route.failures cimport Failures
from pfcore.route.flights cimport Flight, Member, Route
from pfcore.route.held cimport Held
from pfcore.route.newcomers cimport Newcomers
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way

cdef enum:
    RETRY_AFTER_MS = 100         # what is said to who finds no room

cdef class Placing(Way):
    cdef:
        # -- parts
        Directory directory
        Newcomers newcomers
        Queues queues
        Dependencies dependencies
        Held kept
        Failures failures
        FlightTable flights
        PendingTable table       # the flights'
        list dirty               # members with output
        # -- state
        object arm               # callable(ns): a deadline that comes before all others
        int64_t armed            # ns, -1
        int64_t started          # ns
        uint64_t chance          # state of the random choices
        # -- counts
        readonly int64_t routed

    # May reactors still be on their way, so shortly after the start?
    cdef bint starting(self, int64_t now) noexcept
    cdef Route _alias_of(self, Route route)
    # It has no reactor any more, which is offered something else instead.
    cdef int _leave_target(self, Flight flight) except -1
    cdef int _next(self, Flight flight, int64_t now) except -1
    cdef int _give_work(self, Member member, int64_t now) except -1
    cdef int _catch_up(self, int64_t now) except -1
    cdef int _write_now(self, Engine engine) noexcept
    cdef int _flush_dirty(self) except -1
    cdef int _arm(self, int64_t deadline) except -1
