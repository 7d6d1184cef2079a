# The gateway's routing: packets from link to link, without decoding `data`.
#
# It knows engines and a dispatcher, neither sockets nor a clock. One switch
# serves all links of a gateway. A packet on its way through it is a Flight:
#
#   accept --(forbidden, over a limit, draining)----------------> refused
#      |----(same id: running)--> attached to that flight
#      |----(same id: ended)----> answered from the ledger
#      |----(dependencies)------> WAITING --all succeeded--> as below
#      |----(a reactor has room)--> SENT --result----------> answered, remembered
#      |                             |---PF001, not announced--> the next reactor
#      |                             |---link lost, retry--> QUEUED or SENT again
#      |                             \---link lost-------> PF502
#      |----(all are full)--------> QUEUED --room--> SENT
#      \----(handled here)--------> LOCAL --answered by the dispatcher--> remembered
#   and from everywhere: deadline --> PF408, cancelled --> nothing
#
# Flights stand in a FlightTable under seqs from 2^40 up, which are also the seqs
# of their frames to the handling reactor.
#
# A frame in the canonical layout is handed on as it is but for its seq. Any other
# is written anew from the fields that were checked, so that no parser behind
# us can read another packet than the one that was authorised.

from libc.stdint cimport int64_t, uint64_t

from pfcore.link.engine cimport Engine
from pfcore.link.pending cimport PendingTable
from pfcore.memory.budget cimport Budget
from pfcore.route.dependencies cimport Dependencies
from pfcore.route.directory cimport Directory
from pfcore.route.failures cimport Failures
from pfcore.route.flights cimport Flight, Member, Principal, Route
from pfcore.route.held cimport Held
from pfcore.route.local cimport Local
from pfcore.route.membership cimport Membership
from pfcore.route.newcomers cimport Newcomers
from pfcore.route.outcomes cimport Outcomes
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport FrameReader
from pfcore.work.dispatch cimport Dispatcher

cdef class Flow(Way):
    cdef:
        # -- parts
        Dispatcher dispatcher
        Directory directory
        Membership membership
        Newcomers newcomers
        Queues queues
        Dependencies dependencies
        Held kept
        Local local
        Failures failures
        Outcomes outcomes
        FlightTable flights
        PendingTable table       # the flights'
        readonly Budget budget   # what all accounts may hold together
        list dirty               # members with output
        # -- state
        object arm               # callable(ns): a deadline that comes before all others
        int64_t armed            # ns, -1
        int64_t started          # ns
        readonly bint draining
        bint over                # steps of what was under way are refused, too
        object idle              # Future-like: set when nothing is under way, or None
        uint64_t chance          # state of the random choices
        # -- counts
        readonly int64_t routed
        readonly int64_t duplicates
        readonly int64_t late

    # -- in
    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader)
    cdef Route _alias_of(self, Route route)
    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1
    cdef bint _here(self, Route route, Member origin) except -1
    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1
    cdef int _write_refusal(self, Member member, int64_t seq, Flight flight) except -1
    # -- on
    cdef int _leave_target(self, Flight flight) except -1
    cdef int _next(self, Flight flight, int64_t now) except -1
    cdef int _broken(self, Flight flight, int64_t seq, object error) except -1
    cdef int _give_work(self, Member member, int64_t now) except -1
    cdef int _catch_up(self, int64_t now) except -1
    # -- out
    cdef int _expire(self, Flight flight, int64_t now) except -1
    cdef int _write_now(self, Engine engine) noexcept
    cdef int _flush_dirty(self) except -1
    cdef int _arm(self, int64_t deadline) except -1
