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
# Flights stand in a PendingTable under seqs from 2^40 up, which are also the
# seqs of their frames to the handling reactor. Flight objects are used again
# from a pool: routing makes no Python object for a packet once it is warm.
#
# A frame in the usual layout is handed on as it is but for its seq. Any other
# is written anew from the fields that were checked, so that no parser behind
# us can read another packet than the one that was authorised.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.budget cimport Account, Budget
from pfcore.buffers cimport OutputBuffer
from pfcore.dispatch cimport Dispatcher
from pfcore.engine cimport Acceptor, Engine
from pfcore.flights cimport Flight, Member, Principal, Route
from pfcore.heap cimport PriorityHeap
from pfcore.keys cimport KeyTable
from pfcore.ledger cimport Ledger
from pfcore.pending cimport PendingTable
from pfcore.reader cimport FrameReader

cdef class Switch(Acceptor):
    cdef:
        Dispatcher dispatcher
        KeyTable routes
        PendingTable table       # of Flight
        list ledgers             # those of principals that have one
        Ledger nobodys           # of principals that are no more
        int32_t max_remembered   # outcomes in all; a principal has its share
        int64_t max_results      # bytes of results, likewise
        Py_ssize_t principals    # among how many
        OutputBuffer scratch
        list unlisted            # members that announce nothing and have answered something
        object unasked           # OrderedDict: members that announce nothing and are yet to be asked, oldest first
        object asked             # OrderedDict: those that were asked and have not answered yet, likewise
        PriorityHeap curious     # flights that wait for such an answer
        Py_ssize_t looking       # of them, how many have yet to look again
        int doubts               # links that were asked lately and did not answer
        int64_t doubted          # ns; when the last of them did not
        Route question           # of what they are asked for: nobody has it
        Principal asking         # whose the questions are
        dict members             # Engine -> Member
        list queued_routes       # those whose queue is not empty; Route.queued_at is the place
        dict behind              # Member -> None: has room, and more elements than were looked at
        object leaving           # deque of Member: gone, and some of its flights have not been ended yet
        public Py_ssize_t leave_at_once
        Py_ssize_t walked            # packets that waited for one that has ended, since the last were counted
        object quiet             # OrderedDict: Route -> None: nobody handles it any more, kept for its history
        object gone              # OrderedDict: key -> ns when it was last served, of those that are kept no more
        list told                # failures that the log has yet to be told of
        dict renamed             # (principal number, own id) -> Flight, of those with an `own_id`
        dict awaited             # (principal number, id) -> {Flight: None}
        object unwanted          # deque of (principal number, ids, Flight): still in `awaited`, but waits no longer
        Py_ssize_t swept         # entries taken off `awaited` since `advance` last had a turn
        object ready             # deque of (Flight, seq, failed id or None): what they waited for has ended
        Py_ssize_t begun             # packets that were started, or failed, by what they depend on since `advance`
        bint starting
        list pool                # Flight objects to be used again
        list dirty               # members with output
        Engine inner             # the gateway's own side: answers nobody else wants go there
        int[6] policies          # of the groups
        object permit            # callable(key) -> (submit, handle, replace) masks
        object aliases           # mapping: "df:tr" -> "df:transform"
        object on_failure        # callable(code, message, key, id, principal, traceparent) or None
        object arm               # callable(ns): a deadline that comes before all others
        int64_t armed            # ns, -1
        int64_t now
        int64_t started          # ns
        bint in_batch
        readonly bint draining
        object idle              # Future-like: set when nothing is under way, or None
        uint64_t chance          # state of the random choices
        int64_t numbers          # members so far
        readonly Budget budget   # what all accounts may hold together
        int64_t link_bytes       # what may be held for a link that has no principal's account
        readonly Py_ssize_t max_queue  # flights that may be queued for one key or reactor
        Py_ssize_t held_bytes
        Py_ssize_t max_routes
        Py_ssize_t strangers     # routes made by submits since the last were forgotten
        readonly Py_ssize_t queued
        # -- the packet that is with the dispatcher just now
        Engine accepting
        const unsigned char* accepting_id
        uint64_t accepting_fingerprint
        uint32_t accepting_tag
        Route accepting_route
        bint was_answered
        Flight running_held      # the one that had to wait and is with the dispatcher just now
        # -- counts
        readonly int64_t routed
        readonly int64_t retried
        readonly int64_t duplicates
        readonly int64_t late
        readonly dict refusals   # code -> how often

    # -- finding
    cdef Route _make_route(self, str group, str element)
    cdef bint _served(self, Route route) noexcept
    cdef Flight _flight_of(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint* clash)
    cdef Member _choose(self, Route route, Flight flight, Member origin, uint64_t key, bint has_key, bint* some)
    cdef Member _hashed(self, list members, Route route, Flight flight, uint64_t key)
    cdef bint _eligible(self, Member member, Route route, Flight flight) noexcept
    cdef uint64_t _random(self) noexcept
    cdef bint _key_of(self, FrameReader reader, Route route, uint64_t* key) noexcept
    # -- the way of a flight
    cdef Flight _begin(self, Member origin, Route route, FrameReader reader, bint renamed, uint64_t fingerprint,
                       uint32_t tag, int64_t now)
    cdef Flight _new_flight(self)
    cdef bint _hold(self, Flight flight, FrameReader reader) except -1
    cdef Ledger _ledger_of(self, Principal principal)
    cdef int _ask(self, Member member) except -1
    cdef int _has_answered(self, Member member) except -1
    cdef bint _awaits_word(self, Route route, Member origin) except -1
    cdef int _look_after_newcomers(self) except -1
    cdef int _give_up(self) except -1
    cdef int _place_curious(self) except -1
    cdef int _place_some(self) except -1
    cdef int _write_now(self, Engine engine) noexcept
    cdef int _count(self, object code) except -1
    cdef bint _here(self, Route route, Member origin) except -1
    cdef int _arm_at(self, int64_t deadline) except -1
    cdef bint _attached(self, Flight flight) except -1
    cdef bint _outlives(self, Flight flight) noexcept
    cdef int _lose_origin(self, Flight flight, Member member) except -1
    cdef Flight _look(self, Member member, Flight head, bint urgent)
    cdef list _routes_of(self, Member member)
    cdef int _give_work(self, Member member, int64_t now) except -1
    cdef int _note_failure(self, Member member, FrameReader reader, object code, object message) except -1
    cdef int _catch_up(self, int64_t now) except -1
    cdef object _code_of(self, FrameReader reader)
    cdef int _place(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int _send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1
    cdef int _queue(self, Flight flight, PriorityHeap heap, FrameReader reader, int64_t now) except -1
    cdef int _leave_queue(self, Flight flight) except -1
    cdef int _run_here(self, Member origin, Route route, FrameReader reader, uint32_t tag, uint64_t fingerprint,
                       bint clash, int64_t now) except -1
    cdef int _run_held(self, Flight flight, int64_t now) except -1
    cdef int _leave_target(self, Flight flight) except -1
    cdef int _end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                  bint answered, int64_t now) except -1
    cdef int _fail(self, Flight flight, object code, object message, object details, int64_t now,
                   FrameReader reader=*) except -1
    cdef void _doubt(self, Member member) noexcept
    cdef int _give_back(self, Flight flight) except -1
    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1
    cdef int _write_result(self, Member origin, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1
    cdef int _touch(self, Member member, int64_t in_flight) except -1
    cdef int _pump(self, Member member, int64_t now) except -1
    cdef int _next(self, Flight flight, int64_t now) except -1
    cdef int _ended(self, int32_t number, bytes packet_id, bint success, int64_t now) except -1
    cdef int _await(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int _take_off(self, int32_t number, bytes needed, Flight flight) except -1
    cdef int _sweep(self) except -1
    cdef int _in_cycle(self, int32_t number, bytes packet_id, object needs) except? -2
    cdef int _arm(self, int64_t deadline) except -1
    cdef int _flush_dirty(self) except -1
    cdef Py_ssize_t _lose_flights(self, Member member, Py_ssize_t most, int64_t now) except -1
    cdef int _lose_some(self, int64_t now) except -1
    cdef int _lose_target(self, Flight flight, Member member, int64_t now) except -1
    cdef object _id_of(self, Flight flight)
    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1
    cdef int _retries_of(self, FrameReader reader) noexcept
    cdef bint _another(self, Flight flight, Member member) except -1
    cdef int _start(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int _start_ready(self, int64_t now) except -1
    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader)
