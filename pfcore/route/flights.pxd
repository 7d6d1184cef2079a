# The nouns of routing: who is on a link, where an element goes, what is under way.
#
# They hold state and answer questions about it; what happens to them, and
# when, is the switch's.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from pfcore.link.engine cimport Engine
from pfcore.memory.budget cimport Account
from pfcore.memory.heap cimport HeapEntry
from pfcore.memory.queue cimport Queue, Rounds, Share
from pfcore.route.ledger cimport Ledger
from pfcore.work.handler cimport Handler
from pfcore.work.keys cimport Keyed
from pfcore.work.worker cimport Job

cdef enum:
    BUCKETS = 24                 # of latency: up to 16.4 µs times 2^i
    REFUSALS = 1024              # keys that one reactor is remembered to refuse; a power of two
    NOBODY_ROLE = 62             # of a principal that is no more: a bit that no mask has

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

# Does a link that announces nothing handle anything? It is asked for an element that nobody has.
cdef enum Asked:
    NOT_YET = 0
    IN_FLIGHT = 1
    ANSWERED = 2                 # only now is it tried for elements that nobody announces
    SILENT = 3                   # it did not answer in time; it still may

cdef class Principal:
    cdef:
        readonly object name     # str
        readonly int32_t number  # among the principals of the switch; ids are told apart by it
        public int role          # bit of the masks
        public double rate       # submits per second; 0: no limit
        public double burst      # submits that may come at once
        double tokens
        int64_t filled           # ns; when `tokens` was right
        readonly Account account  # what is held for it; None where each of its links has an account of its own
        Ledger ledger            # how its packets ended, None until one has; nobody else's push them out
        readonly Account stored  # what outlives links: stream items, the cache, pools; None: no bound

    cdef bint spend(self, int64_t now) noexcept
    cdef bint owe(self, int64_t now) noexcept

cdef class Route(Keyed):
    cdef:
        list members             # that announced it and may handle it, or that have answered it
        Py_ssize_t announced     # of those, how many announced it
        readonly bint local      # the gateway has a handler of its own
        Handler handler          # that, or None: a packet is looked up once
        bint yields              # ... which a reactor that announces nothing may stand in for
        readonly object alias    # key of the standard element that a two-letter code means, or None
        Policy policy
        Queue queue              # of Flight
        Py_ssize_t queued_at     # place among the switch's routes with a queue, -1: its queue is empty
        uint64_t may_submit      # a bit for each role
        uint64_t may_handle
        uint64_t may_replace     # roles whose reactors take the place of our own handler
        int64_t last_served      # ns; when the last reactor for it left, 0: none ever was there
        Py_ssize_t flights       # under way
        Account owner            # who pays for it while somebody has announced it; None
        Account counted          # among whose elements it counts: all anonymous links' are one's; None
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
        readonly Account account  # who pays for what this link causes
        readonly int64_t number  # for rendezvous
        public object reactor    # str: the id that the gateway shows it under; None: it has no name
        readonly bint listed     # it announces what it handles
        readonly tuple handles   # keys that it announced, sorted
        dict routes              # Route that has it among its members -> its place there
        list looked_at           # them, in the order in which they are looked through for work; None: make it anew
        Py_ssize_t cursor        # where the next look begins
        Py_ssize_t age_cursor    # ... and the next for whoever waits longest
        Py_ssize_t fruitless     # routes looked at since one had something of an account that has not had its part
        Py_ssize_t unseen        # how many are left in this round of looks
        uint8_t asked            # Asked: whether it handles anything
        int64_t asked_at         # ns; when it was asked, or opened
        int64_t cleared          # ns; when its refusals were last forgotten
        readonly int64_t window  # packets that it is given at once
        int64_t announced_window
        int64_t cap              # no more than so many, 0: as it announces
        readonly int64_t outstanding  # flights that it has: those in `theirs`
        int64_t events           # of them, those of ed
        readonly int64_t submitted    # flights of its own: those in `mine`
        void* mine               # first of a list through Flight.next_mine, borrowed: the table holds them
        void* theirs             # first of a list through Flight.next_theirs, borrowed
        readonly bint draining
        readonly bint inside     # a loopback's: steps of what the gateway itself runs come by it
        bint gone
        bint dirty               # has output to be flushed at the end of the batch
        double latency           # ns, a moving average; 0: none yet
        Queue queue              # flights that only it may have, or None
        Rounds rounds            # whose packets it was given of those that waited
        uint64_t* refused        # hashes of keys that it refused; NULL while there is none
        dict strikes             # hash of key -> deadlines missed in a row, or None

    cdef bint refuses(self, uint64_t hash) noexcept
    cdef int note_refusal(self, uint64_t hash) except -1
    cdef bint room(self, bint urgent) noexcept
    # The only places where a flight's `origin` and `target` change; they keep lists, counts and the window's account.
    cdef void submits(self, Flight flight, int64_t seq) noexcept
    cdef void has_ended(self, Flight flight) noexcept
    cdef void gets(self, Flight flight) noexcept
    cdef void lets_go(self, Flight flight) noexcept

cdef class Flight:
    cdef:
        uint8_t state            # FlightState
        uint8_t priority
        bint has_key
        bint lost                # it was with a reactor that is gone: it may have run
        bint busy                # one of `tried` had no room just then
        int retries              # how often it may be sent again
        Member origin            # None once its link has gone
        Member target            # who has it, None
        Engine engine            # LOCAL: the one that the dispatcher answers
        Job job                  # LOCAL: what the dispatcher keeps
        Principal principal
        Account account          # who pays for it
        Py_ssize_t cost          # bytes that it is charged with
        void* next_mine          # lists of `origin` and `target`, borrowed
        void* previous_mine
        void* next_theirs
        void* previous_theirs
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
        Share home               # where
        list attached            # [(Member, seq)]: the same packet, sent again
        list tried               # members that refused it, or None
        set needs                # WAITING: ids that have not ended
        bytes own_id             # where the table and the target know it by another: two principals chose one id
        int32_t slot             # in the table

    # The same packet again, by this submit: it gets the one answer, too. False: too many wait for that already.
    cdef bint attach(self, Member member, int64_t seq) except -1
    # This link wants no answer any more, whatever it has submitted again.
    cdef int detach(self, Member member) except -1
    # Its submitter has gone, or wants it no more: the next that waits for it takes his place, and is to pay for it
    # (`Queues.paid_by`). False: there is none.
    cdef bint pass_on(self) except -1
    # Did this reactor refuse it?
    cdef inline bint was_refused_by(self, Member member) noexcept:
        return self.tried is not None and member in self.tried

    # Has a reactor got it, or had it, or is its handler here running?
    cdef bint has_begun(self) noexcept
    # Does another submit wait for it? Those whose links have gone do not count any more.
    cdef bint others_wait(self) except -1
    # Its link has gone, and it goes on: who pays from now on? None: nobody can.
    cdef Account heir(self)

# What submits were charged with that wait no more: ``[(Member, seq)]``.
cdef int pay_back(list attached) except -1
