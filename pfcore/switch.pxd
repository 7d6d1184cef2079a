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

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from pfcore.buffers cimport OutputBuffer
from pfcore.dispatch cimport Dispatcher, Job
from pfcore.engine cimport Acceptor, Engine
from pfcore.heap cimport HeapEntry, PriorityHeap
from pfcore.keys cimport KeyTable, Keyed
from pfcore.ledger cimport Ledger
from pfcore.pending cimport PendingTable
from pfcore.reader cimport FrameReader

cdef enum:
    BUCKETS = 24                 # of latency: up to 16.4 µs times 2^i
    REFUSALS = 1024              # keys that one reactor is remembered to refuse; a power of two

cdef enum Policy:
    LEAST = 0                    # least outstanding work relative to window, of two random choices
    STICKY = 1                   # by metadata.key, else by submitting link
    FASTEST = 2                  # lowest recent latency
    KEYED = 3                    # by metadata.key, else data.key, else as LEAST

cdef enum FlightState:
    FREE = 0
    WAITING = 1                  # for dependencies
    QUEUED = 2                   # for room, or for a reactor to come back
    SENT = 3
    LOCAL = 4                    # with the dispatcher

cdef class Principal:
    cdef:
        readonly object name     # str
        readonly int32_t number  # among the principals of the switch; ids are told apart by it
        public int role          # bit of the masks
        public double rate       # submits per second; 0: no limit
        public double burst      # submits that may come at once
        double tokens
        int64_t filled           # ns; when `tokens` was right

    cdef bint spend(self, int64_t now) noexcept

cdef class Route(Keyed):
    cdef:
        list members             # that announced it and may handle it
        readonly bint local      # the dispatcher has a handler
        readonly object alias    # key of the standard element that a two-letter code means, or None
        Policy policy
        PriorityHeap queue       # of Flight
        uint64_t may_submit      # a bit for each role
        uint64_t may_handle
        uint64_t may_replace     # roles whose reactors take the place of our own handler
        int64_t last_served      # ns; when the last reactor for it left, 0: none ever was there
        Py_ssize_t flights       # under way
        # -- counts
        readonly int64_t succeeded
        readonly int64_t failed
        int64_t[BUCKETS] latency
        int64_t latency_sum      # ns

    cdef void note(self, bint success, int64_t took) noexcept

cdef class Member:
    cdef:
        readonly Engine engine
        readonly Principal principal
        readonly int64_t number  # for rendezvous
        readonly bint listed     # it announces what it handles
        readonly tuple handles   # keys that it announced, sorted
        set routes               # Route objects that list it
        readonly int64_t window
        readonly int64_t outstanding  # flights that it has
        readonly int64_t submitted    # flights of its own
        readonly bint draining
        bint gone
        bint dirty               # has output to be flushed at the end of the batch
        double latency           # ns, a moving average; 0: none yet
        PriorityHeap queue       # flights that only it may have, or None
        uint64_t* refused        # hashes of keys that it refused; NULL while there is none
        dict strikes             # hash of key -> deadlines missed in a row, or None

    cdef bint refuses(self, uint64_t hash) noexcept
    cdef int note_refusal(self, uint64_t hash) except -1
    cdef bint room(self, bint urgent) noexcept

cdef class Flight:
    cdef:
        uint8_t state            # FlightState
        uint8_t priority
        bint has_key
        bint counted             # route.flights counts it
        int retries              # how often it may be sent again
        Member origin            # None once its link has gone
        Member target            # who has it, None
        Engine engine            # LOCAL: the one that the dispatcher answers
        Job job                  # LOCAL: what the dispatcher keeps
        Principal principal
        Route route
        int64_t seq              # in the table, and on the way to the target
        int64_t origin_seq       # of the submitter
        int64_t accepted         # ns
        int64_t sent             # ns
        int64_t deadline         # ns
        uint64_t fingerprint     # of the payload
        uint32_t tag             # of principal and id, in the ledger
        uint64_t key_hash        # of metadata.key or data.key
        unsigned char* held      # owned: the payload, written anew, without timeout and last brace; NULL
        Py_ssize_t head          # bytes of it that come before the timeout
        Py_ssize_t length
        HeapEntry entry          # while QUEUED
        PriorityHeap home        # where
        list attached            # [(Member, seq)]: the same packet, sent again
        list tried               # members that refused it, or None
        set needs                # WAITING: ids that have not ended
        bytes own_id             # where the table and the target know it by another: two principals chose one id
        int32_t slot             # in the table

cdef class Switch(Acceptor):
    cdef:
        Dispatcher dispatcher
        KeyTable routes
        PendingTable table       # of Flight
        Ledger ledger
        FrameReader again        # reads packets that were held
        OutputBuffer scratch
        list unlisted            # members that announce nothing
        dict members             # Engine -> Member
        dict queued_routes       # Route -> None: those whose queue is not empty
        dict renamed             # (principal number, own id) -> Flight, of those with an `own_id`
        dict awaited             # (principal number, id) -> [Flight]
        list ready               # (Flight, seq, failed id or None): what they waited for has ended
        bint starting
        list pool                # Flight objects to be used again
        list dirty               # members with output
        Engine inner             # the gateway's own side: answers nobody else wants go there
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
        Py_ssize_t max_queue     # flights that may be queued for one key or reactor
        Py_ssize_t max_held      # bytes of payloads that may be held
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
    cdef Flight _begin(self, Member origin, Route route, FrameReader reader, bint renamed, int64_t now)
    cdef int _hold(self, Flight flight, FrameReader reader) except -1
    cdef int _place(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int _send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1
    cdef int _queue(self, Flight flight, PriorityHeap heap, FrameReader reader, int64_t now) except -1
    cdef int _leave_queue(self, Flight flight) except -1
    cdef int _run_here(self, Member origin, Route route, FrameReader reader, uint32_t tag, uint64_t fingerprint,
                       int retries, int64_t now) except -1
    cdef int _run_held(self, Flight flight, int64_t now) except -1
    cdef int _leave_target(self, Flight flight) except -1
    cdef int _end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                  int64_t now) except -1
    cdef int _fail(self, Flight flight, object code, object message, object details, int64_t now) except -1
    cdef int _give_back(self, Flight flight) except -1
    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1
    cdef int _write_result(self, Member origin, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1
    cdef int _touch(self, Member member, int64_t in_flight) except -1
    cdef int _pump(self, Member member, int64_t now) except -1
    cdef int _next(self, Flight flight, int64_t now) except -1
    cdef int _ended(self, int32_t number, bytes packet_id, bint success, int64_t now) except -1
    cdef int _await(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef bint _in_cycle(self, int32_t number, bytes packet_id, object needs) except -1
    cdef int _arm(self, int64_t deadline) except -1
    cdef int _flush_dirty(self) except -1
    cdef int _lose_flight(self, Flight flight, Member member, int64_t now) except -1
    cdef object _id_of(self, Flight flight)
    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1
    cdef int _retries_of(self, FrameReader reader) noexcept
    cdef bint _another(self, Flight flight, Member member) except -1
    cdef Flight _local_flight(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n)
    cdef int _start(self, Flight flight, FrameReader reader, int64_t now) except -1
    cdef int _start_ready(self, int64_t now) except -1
    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader)
