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

from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.memory.budget cimport Budget
from pfcore.route.flights cimport Flight, Member, Principal, Route
from pfcore.route.local cimport Local
from pfcore.route.membership cimport Membership
from pfcore.route.outcomes cimport Outcomes
from pfcore.route.placing cimport Placing
from pfcore.wire.reader cimport FrameReader
from pfcore.work.dispatch cimport Dispatcher

cdef class Flow(Placing):
    cdef:
        # -- parts, beside those that find a reactor
        Dispatcher dispatcher
        Membership membership
        Local local
        Outcomes outcomes
        readonly Budget budget   # what all accounts may hold together
        # -- state
        readonly bint draining
        bint over                # steps of what was under way are refused, too
        object idle              # Future-like: set when nothing is under way, or None
        # -- counts
        readonly int64_t duplicates
        readonly int64_t late

    # -- in
    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader)
    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1
    cdef bint _here(self, Route route, Member origin) except -1
    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1
    cdef int _write_refusal(self, Member member, int64_t seq, Flight flight) except -1
    # -- out
    cdef int _broken(self, Flight flight, int64_t seq, object error) except -1
    cdef int _expire(self, Flight flight, int64_t now) except -1
