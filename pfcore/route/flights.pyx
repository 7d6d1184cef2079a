"""The nouns of routing: principals, routes, members and flights. See ``flights.pxd``."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free

from pfcore.link.outgoing cimport EngineState
from pfcore.memory.budget cimport Account
from pfcore.wire.terms cimport GROUP_ED
from pfcore.work.keys cimport Keyed

__all__ = ["Member", "Principal", "Route"]

cdef enum:
    SEND_AHEAD = 1048576         # bytes of unsent output beyond which a reactor gets no more work
    MAX_ATTACHED = 16            # submits of one packet that wait for its one answer, which may be a megabyte for each
    ATTACHED_BYTES = 128         # what each of them takes


@cython.final
cdef class Principal:
    """Who is on a link: a name, a role, and what they may ask for in a second.

    `number`: distinct among the principals of a switch. `role`: bit of the role
    masks, 0 to 63. `rate`: submits per second, 0 for no limit (default);
    `burst`: submits at once (default: one second's). `account`: what is held for
    it, over all of its links; None (default) where each link pays for itself.
    `stored`: what outlives links; None for no bound.
    """

    def __init__(self, name, int32_t number, int role, double rate=0, double burst=0, Account account=None,
                 Account stored=None):
        self.name = name
        self.number = number
        self.role = role
        self.account = account
        self.stored = stored
        self.rate = rate
        self.burst = burst if burst > 0 else max(rate, 1)
        self.tokens = self.burst

    def __repr__(self):
        return f"<Principal {self.name!r}>"

    def spend_many(self, int64_t n, int64_t now):
        """`n` submits more, at once: may it? None is counted where it may not. `now`: ns, as the switch's clock.

        More than `burst` may pass where all of that is there: the rest is owed.
        """
        if self.rate <= 0:
            return True
        self.tokens = min(self.burst, self.tokens + <double>(now - self.filled) * 1e-9 * self.rate)
        self.filled = now
        if self.tokens < min(<double>n, self.burst):
            return False
        self.tokens -= n
        return True

    cdef bint owe(self, int64_t now) noexcept:
        """One submit of what has begun before: it may be owed, a burst's worth. False: no more of them."""
        if self.rate > 0 and not self.spend(now):
            if self.tokens <= -self.burst:
                return False
            self.tokens -= 1
        return True

    cdef bint spend(self, int64_t now) noexcept:
        """One submit more: may it?"""
        self.tokens = min(self.burst, self.tokens + <double>(now - self.filled) * 1e-9 * self.rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@cython.final
cdef class Route(Keyed):
    """Where the packets of one ``group:element`` go."""

    @property
    def reactors(self):
        """Links whose reactors announced it."""
        return len(self.members)

    @property
    def queue_length(self):
        """Packets that wait for room at any of them."""
        return len(self.queue)

    @property
    def in_flight(self):
        """Packets under way: waiting, queued or running."""
        return self.flights

    @property
    def latencies(self):
        """``([counts], sum in ns)``: bucket i holds those of up to 16,384 ns times 2^i."""
        return [self.latency[i] for i in range(BUCKETS)], self.latency_sum

    cdef void note(self, bint success, int64_t took) noexcept:
        cdef uint64_t scaled = <uint64_t>(took if took > 0 else 0) >> 14
        cdef int bucket = 0
        while scaled != 0 and bucket < BUCKETS - 1:
            scaled >>= 1
            bucket += 1
        self.latency[bucket] += 1
        self.latency_sum += took
        if success:
            self.succeeded += 1
        else:
            self.failed += 1


@cython.final
cdef class Member:
    """A link as the switch sees it."""

    def __dealloc__(self):
        free(self.refused)

    @property
    def latency_ms(self):
        """Recent time from sending a packet there to its answer, milliseconds; 0: none yet."""
        return self.latency / 1e6

    cdef bint refuses(self, uint64_t hash) noexcept:
        return self.refused != NULL and self.refused[hash & (REFUSALS - 1)] == hash

    cdef void submits(self, Flight flight, int64_t seq) noexcept:
        flight.origin = self
        flight.origin_seq = seq
        flight.previous_mine = NULL
        flight.next_mine = self.mine
        if self.mine != NULL:
            (<Flight>self.mine).previous_mine = <void*>flight
        self.mine = <void*>flight
        self.submitted += 1

    cdef void has_ended(self, Flight flight) noexcept:
        if flight.previous_mine != NULL:
            (<Flight>flight.previous_mine).next_mine = flight.next_mine
        else:
            self.mine = flight.next_mine
        if flight.next_mine != NULL:
            (<Flight>flight.next_mine).previous_mine = flight.previous_mine
        self.submitted -= 1
        flight.origin = None

    cdef void gets(self, Flight flight) noexcept:
        flight.target = self
        flight.previous_theirs = NULL
        flight.next_theirs = self.theirs
        if self.theirs != NULL:
            (<Flight>self.theirs).previous_theirs = <void*>flight
        self.theirs = <void*>flight
        self.outstanding += 1
        self.events += flight.route.group == GROUP_ED
        self.engine.routed += 1

    cdef void lets_go(self, Flight flight) noexcept:
        if flight.previous_theirs != NULL:
            (<Flight>flight.previous_theirs).next_theirs = flight.next_theirs
        else:
            self.theirs = flight.next_theirs
        if flight.next_theirs != NULL:
            (<Flight>flight.next_theirs).previous_theirs = flight.previous_theirs
        self.outstanding -= 1
        self.events -= flight.route.group == GROUP_ED
        self.engine.routed -= 1
        flight.target = None

    cdef int note_refusal(self, uint64_t hash) except -1:
        # direct-mapped: one key may push another out, which is then asked for once more
        if self.refused == NULL:
            self.refused = <uint64_t*>calloc(REFUSALS, sizeof(uint64_t))
            if self.refused == NULL:
                raise MemoryError()
        self.refused[hash & (REFUSALS - 1)] = hash
        return 0

    cdef bint room(self, bint urgent) noexcept:
        # A sixteenth of the window is for events: they must not wait behind a full house. It is all that they have
        # before others, or where they are many everything else would wait behind them.
        cdef int64_t reserve = self.window >> 4
        # what the gateway itself has submitted there takes of the same window
        cdef int64_t taken = self.outstanding + self.engine.sent()
        return ((taken - min(self.events, reserve) < self.window - reserve
                 or (urgent and self.events < reserve and taken < self.window))
                and self.engine.state == EngineState.OPEN
                and self.engine.fatal == 0
                and not self.engine.paused and self.engine.out.size < SEND_AHEAD)


# `no_gc`: a flight is in a cycle only while it is queued (member, heap, entry), and it
# leaves the queue by its deadline at the latest; a hundred thousand tracked ones would be felt.
@cython.final
@cython.no_gc
cdef class Flight:
    def __dealloc__(self):
        free(self.held)

    cdef bint attach(self, Member member, int64_t seq) except -1:
        self.others_wait()  # those that have gone are none of them
        if self.attached is None:
            self.attached = []
        if len(self.attached) >= MAX_ATTACHED or not member.account.take(ATTACHED_BYTES):
            return False
        self.attached.append((member, seq))
        return True

    cdef int detach(self, Member member) except -1:
        cdef list others
        if self.attached is not None:
            others = [pair for pair in self.attached if pair[0] is not member]
            pay_back([pair for pair in self.attached if pair[0] is member])
            self.attached = others or None
        return 0

    cdef bint pass_on(self) except -1:
        if not self.others_wait():
            return False
        member, seq = self.attached[0]
        pay_back(self.attached[:1])
        self.attached = self.attached[1:] or None
        (<Member>member).submits(self, seq)
        return True

    cdef bint has_begun(self) noexcept:
        return self.lost or self.state == FlightState.SENT or (
            self.state == FlightState.LOCAL and (self.job is None or self.job.started > 0))

    cdef bint others_wait(self) except -1:
        if self.attached is None:
            return False
        cdef list here = [pair for pair in self.attached if not (<Member>pair[0]).gone]
        cdef list gone
        if len(here) < len(self.attached):
            gone = [pair for pair in self.attached if (<Member>pair[0]).gone]
            self.attached = here or None
            pay_back(gone)
        return len(here) > 0

    cdef Account heir(self):
        """What outlives an anonymous link counts against all of them together, if there is room for it."""
        cdef Account stored = self.principal.stored
        if self.principal.account is not None or stored is None or self.account is stored:
            return self.account
        return stored if stored.room(self.cost) else None


cdef int pay_back(list attached) except -1:
    for member, _seq in attached:
        (<Member>member).account.settle(-ATTACHED_BYTES)
    return 0
