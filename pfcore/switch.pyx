"""The gateway's routing: packets from link to link without decoding `data`. See ``switch.pxd``."""

from collections import OrderedDict, deque
from heapq import heappush, heapreplace

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from pfcore.bytes_ops cimport pf_fingerprint
from pfcore.budget cimport Account, Budget, shared_room
from pfcore.buffers cimport OP_TEXT, OutputBuffer
from pfcore.dispatch cimport Handler, Job
from pfcore.engine cimport (
    GOOD_WRITE,
    LEAST_WRITE,
    WRITE_PER_SUBMIT,
    Acceptor,
    DropReason,
    Engine,
    EngineState,
)
from pfcore.flights cimport (
    NOBODY_ROLE,
    REFUSALS,
    Asked,
    Flight,
    FlightState,
    Member,
    Policy,
    Principal,
    Route,
)
from pfcore.heap cimport PriorityHeap
from pfcore.ids cimport ID_LENGTH, hash_key, write_id
from pfcore.keys cimport KeyTable, Keyed, concurrency_key
from pfcore.ledger cimport Ledger, Outcome
from pfcore.pending cimport PendingTable
from pfcore.reader cimport (
    F_DEPENDENCIES,
    F_ERROR,
    F_METADATA,
    FrameReader,
    Text,
    decode_span,
    find_key,
    group_code,
    text_to_str,
)
from pfcore.scan cimport Kind, Span, span_to_int64
from pfcore.terms cimport (
    DEFAULT_TIMEOUT_MS,
    FIRST_ROUTED,
    GROUP_DF,
    GROUP_ED,
    MILLISECOND,
    W_PAYLOAD,
    W_SUBMIT,
    W_TIMEOUT,
    W_UUID_PACKET,
)
from pfcore.writer cimport (
    encode_error,
    metadata_again,
    put_failure_payload,
    put_packet_extra,
    put_packet_head,
    put_result_head,
    put_result_payload,
)

from pfcore.pending import PendingFull

__all__ = ["Switch"]

cdef enum:
    DEFAULT_WINDOW = 256         # of reactors that do not say
    MAX_RETRIES = 100
    STRIKES = 3                  # deadlines missed in a row until a reactor that announces nothing is passed over
    MAX_ANNOUNCED = 1024         # elements that one reactor may announce; the rest is passed over
    MAX_STRANGERS = 4096         # elements remembered only because someone asked for them
    TRIES = 256                  # candidates looked at before all count as full
    POOL = 8192                  # flights kept to be used again
    FLIGHT_BYTES = 512           # what a flight takes, besides its payload
    NEED_BYTES = 256             # what each dependency takes that it waits for
    LOOKED_AT = 64               # routes looked at for a reactor with room, before the rest waits for its turn
    SWEEP = 4096                 # entries of lists that are taken off before the loop has another turn: some 1 ms
    AT_ONCE = 256                # flights that expire, or start, before the loop has another turn
    MAX_DOUBTS = 4               # links that did not answer a question, until nobody waits for the next
    MAX_WALK = 256               # packets looked at for a cycle of dependencies
    MAX_TRIED = 64               # reactors that announce nothing and may refuse one packet
    MAX_TRIED_HERE = 4           # ... where we have a handler of our own
    LOOK_AGAIN = 128             # packets that waited for a question, and are tried again in one go
    LEAVE_AT_ONCE = 512          # packets that end in one go with their link: some 1.5 ms
    WALKED = 8                   # packets that waited for one that ends: as many as are as much as one more
    MAX_QUIET = 1024             # elements with a history that nobody handles any more
    RETRY_AFTER_MS = 100

# ns after the start in which reactors may still be on their way: what is safe to send again waits for them
cdef int64_t STARTING = 10000000000
cdef int64_t SEEN_LATELY = 60000000000   # ns for which an element without a reactor is PF503, not PF001

cdef int64_t ASK_AFTER = 50000000        # ns until a link that says nothing is asked whether it handles anything
cdef int64_t WAIT_FOR_ASKED = 500000000  # ns that a packet waits for such an answer at most
cdef int64_t DOUBTING = 60000000000      # ns for which those are remembered
cdef int64_t CLEAR_REFUSALS = 1000000000  # ns: heartbeats make refusals forgotten no more often

# Codes that are counted by their names; peers may choose any other.
cdef frozenset _CODES = frozenset(
    ("PF001", "PF400", "PF401", "PF403", "PF408", "PF409", "PF413", "PF424", "PF426", "PF429", "PF499", "PF500",
     "PF502", "PF503"))

cdef tuple _REFUSALS = ("PF001", "PF429", "PF503")   # it never began

# What says nothing of the packet itself: it never ran, and the same id may come again.
cdef frozenset _NEVER_RAN = frozenset(
    ("PF001", "PF400", "PF401", "PF403", "PF409", "PF413", "PF426", "PF429", "PF503"))


cdef inline const unsigned char* payload_of(bytes payload) noexcept:
    return <const unsigned char*>PyBytes_AS_STRING(payload)


cdef inline bint _same(const unsigned char* a, const unsigned char* b, Py_ssize_t n) noexcept nogil:
    return memcmp(a, b, <size_t>n) == 0


cdef inline uint64_t _mix(uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t h = (a ^ (b * <uint64_t>0x9E3779B97F4A7C15)) * <uint64_t>0xFF51AFD7ED558CCD
    h ^= h >> 32
    h *= <uint64_t>0xC4CEB9FE1A85EC53
    return h ^ (h >> 29)


@cython.final
cdef class Switch(Acceptor):
    """Routes packets between the links of a gateway.

    `dispatcher`: runs the gateway's own handlers. `permit`: called with a key,
    returns three masks with a bit for each role: who may submit it, whose
    reactors may handle it, and whose may take the place of the gateway's own
    handler. `aliases`: two-letter keys to the standard ones. `arm`: called with
    the time (ns) at which `advance` is next needed. `max_flights`: packets
    under way (default 262,144). `max_queue`: packets that wait for one element
    or reactor (default 16,384). `max_routes`: elements known at once (default 131,072).
    `max_remembered`: outcomes that are known (default 100,000), and `max_results`:
    bytes of their results (default 16 MiB), in equal shares for `principals`
    (default 1, see `set_principals`).
    `budget`: what all accounts may hold together (default: no bound); `link_bytes`:
    what may be held for an anonymous link (default 128 MiB).
    `on_failure`: called with ``(code, message, key, id, principal, traceparent or
    None)`` for every packet that the switch itself refuses or fails.
    """

    def __init__(self, dispatcher not None, permit, *, aliases=None, arm=None, Py_ssize_t max_flights=262144,
                 Py_ssize_t max_queue=16384, Py_ssize_t max_routes=131072, int32_t max_remembered=100000,
                 int64_t max_results=16777216, on_failure=None, Budget budget=None, int64_t link_bytes=134217728,
                 uint64_t seed=1, int64_t now=0):
        if max_queue < 1 or max_routes < 1:
            raise ValueError("max_queue, max_routes: expected at least 1")
        Ledger(bound=max_remembered, room=max_results)  # bad settings fail here
        self.dispatcher = dispatcher
        self.permit = permit
        self.aliases = aliases or {}
        self.arm = arm
        self.on_failure = on_failure
        self.routes = KeyTable()
        self.table = PendingTable(bound=max_flights, first_seq=FIRST_ROUTED, now=now)
        self.ledgers = []
        self.nobodys = Ledger(bound=1000, room=65536)
        self.max_remembered = max_remembered
        self.max_results = max_results
        self.principals = 1
        self.scratch = OutputBuffer(limit=1 << 29)
        self.unlisted = []
        self.members = {}
        self.queued_routes = []
        self.behind = {}
        self.leaving = deque()
        self.leave_at_once = LEAVE_AT_ONCE
        self.unasked = OrderedDict()
        self.asked = OrderedDict()
        self.curious = PriorityHeap()
        self.quiet = OrderedDict()
        self.gone = OrderedDict()
        self.told = []
        self.asking = Principal("gateway", 0, 63)
        self.question = Route.__new__(Route)
        self.question.name("df", "packetflow.anyone")
        self.question.members = []
        self.question.queue = PriorityHeap()
        self.question.queued_at = -1
        self.renamed = {}
        self.awaited = {}
        self.ready = deque()
        self.unwanted = deque()
        self.pool = []
        self.dirty = []
        self.armed = -1
        self.now = now
        self.started = -STARTING
        self.chance = seed | 1
        self.max_queue = max_queue
        self.max_routes = max_routes
        self.budget = Budget(1 << 62) if budget is None else budget
        self.link_bytes = link_bytes
        self.refusals = {}
        self.policies = [Policy.STICKY, Policy.LEAST, Policy.FASTEST, Policy.LEAST, Policy.LEAST, Policy.KEYED]

    # ---------------------------------------------------------------- links

    def admit(self, Engine engine not None, Principal principal not None, handles=None, Account account=None):
        """A link is about to open; `join` it once it has.

        `handles`: keys named in its URL, None if it named none. `account`: who pays
        for it (default: its principal's, else one of its own).
        """
        cdef Member member = Member.__new__(Member)
        self.numbers += 1
        member.engine = engine
        member.principal = principal
        member.account = principal.account if account is None else account
        if member.account is None:
            member.account = Account(f"{principal.name} link {self.numbers}", self.link_bytes, self.budget)
        member.number = self.numbers
        member.window = member.announced_window = DEFAULT_WINDOW
        member.routes = set()
        member.handles = () if handles is None else tuple(handles)
        member.listed = handles is not None
        engine.member = member
        engine.account = member.account
        member.asked = Asked.NOT_YET
        return member

    def join(self, Engine engine not None):
        """A link that was admitted has opened."""
        cdef Member member = <Member?>engine.member
        engine.records = True
        self.members[engine] = member
        if member.listed:
            self._list(member, member.handles)
        else:
            member.asked_at = engine.now
            self.unasked[member] = None
            self._arm_at(engine.now + ASK_AFTER)

    def set_principals(self, Py_ssize_t count):
        """Among how many the memory of outcomes is shared, for those who have none yet."""
        self.principals = max(count, 1)

    cdef Ledger _ledger_of(self, Principal principal):
        """A share of its own: what is remembered of one principal is never pushed out by another."""
        if principal.ledger is None and principal.role == NOBODY_ROLE:
            return self.nobodys  # what is still under way of one that is no more
        if principal.ledger is None:
            principal.ledger = Ledger(
                bound=max(min(1000, self.max_remembered), <int32_t>(self.max_remembered // self.principals)),
                room=self.max_results // self.principals)
            self.ledgers.append(principal.ledger)
        return principal.ledger

    def forget_principal(self, Principal principal not None):
        """It is no more: what was remembered of it goes."""
        if principal.ledger is not None:
            self.ledgers.remove(principal.ledger)
            principal.ledger = None

    # ---------------------------------------------------------------- does it handle anything?

    cdef int _ask(self, Member member) except -1:
        """Asks a link that announces nothing for an element that nobody has: a reactor says PF001 at once."""
        cdef OutputBuffer out = member.engine.out
        cdef Flight flight
        cdef unsigned char[ID_LENGTH] text
        member.asked = Asked.IN_FLIGHT
        member.asked_at = self.now
        self.unasked.pop(member, None)
        self.asked[member] = None
        if member.engine.state != EngineState.OPEN or member.engine.fatal != 0 or (
                member.outstanding + member.engine.sent() >= member.window):
            return 0  # with its window full of what was sent to it by name, an answer to that says as much
        write_id(text)
        flight = self._new_flight()
        try:
            flight.slot = self.table.insert(flight, text, ID_LENGTH, self.now + 4 * WAIT_FOR_ASKED)
        except PendingFull:
            return 0  # it counts as one that does not answer
        flight.seq = self.table.entries[flight.slot].seq
        flight.state = FlightState.SENT
        flight.principal = self.asking
        flight.account = member.account
        flight.route = self.question
        flight.accepted = flight.sent = self.now
        flight.deadline = self.now + 4 * WAIT_FOR_ASKED
        self.question.flights += 1
        member.account.flights += 1
        member.gets(flight)
        try:
            out.begin_message()
            out.put_literal(W_SUBMIT)
            out.put_int(flight.seq)
            out.put_literal(W_UUID_PACKET)
            out.put(text, ID_LENGTH)
            out.put_literal(b'","group":"df","element":"packetflow.anyone","data":null,"priority":1}}')
            out.end_message(OP_TEXT)
        except BufferError as error:
            return member.engine._overflow(error)
        self._arm_at(self.now + WAIT_FOR_ASKED)
        return self._touch(member, member.outstanding)

    cdef int _has_answered(self, Member member) except -1:
        """It is a reactor: from now on it is tried for what nobody announces."""
        if member.asked == Asked.ANSWERED or member.listed or member.gone:
            return 0
        member.asked = Asked.ANSWERED
        self.unasked.pop(member, None)
        self.asked.pop(member, None)
        self.unlisted.append(member)
        return self._place_curious()

    cdef bint _awaits_word(self, Route route, Member origin) except -1:
        """Is there a question whose answer may bring a handler for this route? Not for longer than half a second."""
        if route.local:
            if not route.yields:
                return False
            if (origin is not None and not origin.gone and not origin.listed and origin.asked <= Asked.IN_FLIGHT
                    and self.now - origin.asked_at < WAIT_FOR_ASKED):
                return True  # one who has just come may be the handler of its own packet
            # we have a handler ourselves: after a few who never answered nobody waits for strangers any more
            if self.doubts >= MAX_DOUBTS and self.now - self.doubted < DOUBTING:
                return False
        self._give_up()
        return len(self.unasked) > 0 or len(self.asked) > 0

    cdef int _give_up(self) except -1:
        """Those that were asked and have not answered in time."""
        cdef Member member
        while self.asked:
            member = <Member>next(iter(self.asked))
            if self.now - member.asked_at < WAIT_FOR_ASKED:
                break
            del self.asked[member]
            self._doubt(member)
        return 0

    cdef void _doubt(self, Member member) noexcept:
        """It did not answer in time."""
        if member.asked == Asked.IN_FLIGHT:
            member.asked = Asked.SILENT
            if self.now - self.doubted >= DOUBTING:
                self.doubts = 0
            self.doubts += 1
            self.doubted = self.now

    cdef int _look_after_newcomers(self) except -1:
        """Asks those that have said nothing for a while, and lets go what has waited for them long enough."""
        cdef Member member
        while self.unasked:
            member = <Member>next(iter(self.unasked))
            if self.now - member.asked_at < ASK_AFTER:
                self._arm_at(member.asked_at + ASK_AFTER)
                break
            self._ask(member)
        self._give_up()
        if self.curious.live() > 0:
            self._place_curious()
        if self.asked:
            self._arm_at((<Member>next(iter(self.asked))).asked_at + WAIT_FOR_ASKED)
        return 0

    cdef int _place_curious(self) except -1:
        """Those that waited for an answer look again; who may wait on waits on."""
        self.looking = self.curious.live()
        return self._place_some()

    cdef int _place_some(self) except -1:
        """So many of them in an iteration of the loop."""
        cdef Flight flight
        cdef list waiting = []
        while self.looking > 0 and self.curious.live() > 0 and len(waiting) < LOOK_AGAIN:
            self.looking -= 1
            flight = <Flight>self.curious.pop()
            self._left_queue(flight)
            waiting.append(flight)
        for flight in waiting:
            self._place(flight, None, self.now)
        if self.curious.live() == 0:
            self.looking = 0
        elif self.looking > 0:
            self._arm_at(self.now)
        return 0

    # ---------------------------------------------------------------- life and announcements

    def start(self, int64_t now):
        """Begins, or begins again after a drain."""
        self.draining = False
        self.started = now

    def set_inner(self, Engine engine not None):
        """The gateway's own end: it handles nothing, and answers that nobody waits for may go there."""
        self.inner = engine

    def update(self, Engine engine not None):
        """A heartbeat came: what it announces holds from now on."""
        cdef Member member = <Member>self.members.get(engine)
        if member is None:
            return
        self.now = engine.now
        if engine.now - member.cleared >= CLEAR_REFUSALS:
            # it may have registered more since
            member.cleared = engine.now
            if member.refused != NULL:
                memset(member.refused, 0, REFUSALS * sizeof(uint64_t))
            member.strikes = None
        if engine.peer_window > 0:
            member.announced_window = engine.peer_window
            member.window = engine.peer_window if member.cap == 0 else min(engine.peer_window, member.cap)
        if engine.peer_capabilities is not None:
            if not member.listed:
                self._know(member)
            self._list(member, engine.peer_capabilities)
            engine.peer_capabilities = member.handles  # the same strings for every link that announces them
            if self.curious.live() > 0:
                self._place_curious()
        elif not member.listed and (member.asked == Asked.NOT_YET or (
                member.asked == Asked.SILENT and engine.now - member.asked_at >= CLEAR_REFUSALS)):
            self._ask(member)
        self._pump(member, engine.now)

    def _know(self, Member member):
        """It is no longer one that announces nothing."""
        self.unasked.pop(member, None)
        self.asked.pop(member, None)
        if member.asked == Asked.ANSWERED and member in self.unlisted:
            self.unlisted.remove(member)

    def _list(self, Member member, keys):
        """Sets what a member handles; keys that are not valid are passed over."""
        cdef Route route
        cdef set wanted = set()
        cdef list names = []
        if not member.listed:
            for route in list(member.routes):  # what it was seen to answer counts no more
                self._leave_route(member, route)
        member.listed = True
        for key in keys:
            if type(key) is not str or len(names) >= MAX_ANNOUNCED:
                continue
            group, _, element = key.partition(":")
            route = self._make_route(group, element)
            if route is None:
                continue
            names.append(route.key)
            if route.may_handle >> member.principal.role & 1 and (
                    not route.local or route.may_replace >> member.principal.role & 1):
                wanted.add(route)
        names.sort()
        if tuple(names) != member.handles:
            member.handles = tuple(names)
        for route in member.routes - wanted:
            self._leave_route(member, route)
        for route in wanted - member.routes:
            self.quiet.pop(route, None)
            route.members.append(member)
            route.announced += 1
            member.routes.add(route)
        member.looked_at = None

    def _learn(self, Member member, Route route):
        """It announces nothing, and has answered: once somebody announces the element, it shares the work."""
        if len(member.routes) < MAX_ANNOUNCED:
            route.members.append(member)
            member.routes.add(route)
            member.looked_at = None

    def _leave_route(self, Member member, Route route):
        member.routes.discard(route)
        route.members.remove(member)
        if member.listed:
            route.announced -= 1
        member.looked_at = None
        if not route.members:
            route.last_served = self.now if self.now > 0 else 1
            self._quieten(route)

    def _quieten(self, Route route):
        """Nobody handles it any more: it is kept for its history, the latest of such; the rest as a time alone."""
        cdef Route old
        if route.local or route is self.question:
            return
        if route.succeeded == 0 and route.failed == 0:
            self._drop_route(route)
            return
        self.quiet[route] = None
        if len(self.quiet) > MAX_QUIET:
            old = <Route>self.quiet.popitem(last=False)[0]
            self._drop_route(old)

    def _drop_route(self, Route route):
        if route.flights > 0 or route.members or route.local or route.queued_at >= 0 \
                or <object>self.routes.by_key.get(route.key) is not route:
            return
        self.gone[route.key] = route.last_served
        self.routes.take(route.key)
        while len(self.gone) > MAX_STRANGERS:
            self.gone.popitem(last=False)

    def drain_member(self, Member member not None, bint draining=True):
        """No new work to this reactor, or again."""
        member.draining = draining

    def migrate(self, Member source not None, Member target, int64_t now):
        """No new work to `source`; what waits for it alone goes to `target`, or to whoever handles it. How many."""
        cdef Flight flight
        cdef int moved = 0
        self.now = now
        source.draining = True
        while source.queue is not None and source.queue.live() > 0:
            flight = <Flight>source.queue.pop()
            self._left_queue(flight)
            moved += 1
            if target is None or not self._eligible(target, flight.route, flight) or (
                    target.listed and flight.route not in target.routes):
                self._place(flight, None, now)
            elif target.room(flight.route.group == GROUP_ED):
                self._send(flight, target, None, now)
            else:
                if target.queue is None:
                    target.queue = PriorityHeap()
                self._queue(flight, target.queue, None, now)
        self._flush_dirty()
        return moved

    def set_window(self, Member member not None, int64_t window):
        """At most so many packets at once to this reactor, whatever it announces; 0: what it announces."""
        member.cap = member.engine.cap = window
        if window > 0 and (member.window > window or member.announced_window > window):
            member.window = window
        elif member.announced_window > 0:
            member.window = member.announced_window
        self._pump(member, self.now)

    def set_max_queue(self, Py_ssize_t most):
        """Packets that may wait for room at the reactors of one element."""
        if most < 1:
            raise ValueError(f"max_queue: expected at least 1, got {most}")
        self.max_queue = most

    def leave(self, Engine engine not None, int64_t now):
        """A link has gone: its work goes to others or fails, its own submits are taken back."""
        cdef Member member = <Member>self.members.pop(engine, None)
        if member is None:
            return
        self.now = now
        member.gone = True
        engine.records = False
        for route in list(member.routes):
            self._leave_route(member, route)
        if not member.listed:
            self._know(member)
        self.behind.pop(member, None)
        engine.member = None
        if member.submitted + member.outstanding + (member.queue.live() if member.queue is not None else 0) \
                > self.leave_at_once:
            # thousands of packets: so many in an iteration of the loop, until then they are as if sent too late
            self.leaving.append(member)
            self._arm_at(now)
        else:
            self._lose_flights(member, <Py_ssize_t>1 << 60, now)
        self._flush_dirty()

    cdef Py_ssize_t _lose_flights(self, Member member, Py_ssize_t most, int64_t now) except -1:
        """Ends up to `most` of what a link that has gone left; how many more it could have been, 0: some are left."""
        cdef Flight flight
        while member.mine != NULL and most > 0:
            most -= 1 + self.walked // WALKED
            self.walked %= WALKED
            self._lose_origin(<Flight>member.mine, member)
        while member.theirs != NULL and most > 0:
            most -= 1
            self._lose_target(<Flight>member.theirs, member, now)
        while member.queue is not None and member.queue.live() > 0 and most > 0:
            most -= 1
            flight = <Flight>member.queue.pop()
            self._left_queue(flight)
            self._place(flight, None, now)
        if most > 0:
            member.queue = None
        return most

    cdef int _lose_some(self, int64_t now) except -1:
        """Goes on with links that have gone and left many packets."""
        cdef Py_ssize_t left = self.leave_at_once
        self.walked = 0
        while self.leaving and left > 0:
            left = self._lose_flights(<Member>self.leaving[0], left, now)
            if left > 0:
                self.leaving.popleft()
        if self.leaving:
            self._arm_at(now)
        return 0

    cdef int _lose_origin(self, Flight flight, Member member) except -1:
        """The link that submitted it has gone."""
        cdef bint stays = flight.retries > 0 and flight.principal.role != NOBODY_ROLE
        member.has_ended(flight)
        if stays and flight.account is member.account and not self._outlives(flight):
            stays = False
        if not stays and flight.state != FlightState.LOCAL and not self._attached(flight):
            # nobody waits, or may come back, any more (a local one's handler was told by its engine)
            if flight.state == FlightState.SENT and flight.target is not None and not flight.target.gone:
                self._withdraw(flight)
            self._forget(flight)
        return 0

    cdef bint _outlives(self, Flight flight) noexcept:
        """What outlives an anonymous link counts against all of them together; is there room for it?"""
        cdef Account stored = flight.principal.stored, before = flight.account
        if flight.principal.account is not None or stored is None:
            return True
        if not stored.take(flight.cost):
            return False
        before.settle(-flight.cost)
        before.flights -= 1
        stored.flights += 1
        if flight.state == FlightState.QUEUED:
            before.queued -= 1
            stored.queued += 1
        flight.account = stored
        return True

    cdef bint _attached(self, Flight flight) except -1:
        """Does another submit wait for it? Those whose links have gone do not count any more."""
        if flight.attached is None:
            return False
        flight.attached = [pair for pair in flight.attached if not (<Member>pair[0]).gone] or None
        return flight.attached is not None

    cdef int _lose_target(self, Flight flight, Member member, int64_t now) except -1:
        """The link that has it has gone."""
        member.lets_go(flight)
        if flight.route is self.question:
            return self._give_back(flight)
        flight.lost = True
        if flight.retries > 0:
            flight.retries -= 1
            self.retried += 1
            return self._place(flight, None, now)
        return self._fail(flight, "PF502",
                          "the connection of the reactor that handled it was lost; it may have run or not", None,
                          now)

    def _withdraw(self, Flight flight):
        """Tells the reactor that has it, where it understands."""
        cdef Member target = flight.target
        if target.engine.peer_cancels:
            target.engine.withdraw(flight.seq, self._id_of_wire(flight))
            self._touch(target, target.outstanding)

    # ---------------------------------------------------------------- elements

    cdef Route _make_route(self, str group, str element):
        """The route of a key, made where there is none; None for a key that is not valid."""
        cdef Route route
        cdef Keyed known = <Keyed>self.routes.by_key.get(f"{group}:{element}")
        if known is not None:
            return <Route>known
        if len(self.routes.by_key) >= self.max_routes and not self._forget_routes():
            return None
        route = Route.__new__(Route)
        try:
            route.name(group, element)
        except ValueError:
            return None
        route.members = []
        route.queue = PriorityHeap()
        route.queued_at = -1
        route.last_served = <int64_t>self.gone.pop(route.key, 0)
        route.alias = self.aliases.get(route.key)
        route.policy = <Policy>self.policies[route.group]
        route.may_submit, route.may_handle, route.may_replace = self.permit(route.key)
        self._look_here(route)
        self.routes.put(route)
        return route

    def _forget_routes(self):
        """Makes room: elements that nobody handles and nothing waits for are forgotten."""
        cdef Route route
        idle = [route for route in self.routes.by_key.values()
                if not route.members and not route.local and route.flights == 0 and route not in self.quiet]
        for route in idle:
            del self.routes.by_key[route.key]
        if idle:
            self.routes._rebuild(len(self.routes.table))
        self.strangers = 0
        return bool(idle)

    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader):
        """The packet's route, if its principal may submit to it; None if the packet was refused."""
        cdef Route route = <Route>self.routes.find(reader.group, reader.element.p, reader.element.n)
        cdef Route other
        cdef str group, element
        if route is None:
            group = group_code(reader.group)
            element = text_to_str(reader.element.p, reader.element.n, True)
            alias = self.aliases.get(f"{group}:{element}")
            if len(self.unlisted) == 0 and not self.unasked and not self.asked and alias is None and not (
                    self.now - self.started < STARTING and self._retries_of(reader) > 0) \
                    and f"{group}:{element}" not in self.gone:
                # nobody could have it: such elements are not worth remembering
                if not self.permit(f"{group}:{element}")[0] >> principal.role & 1:
                    self._refuse_packet(engine, reader, "PF403", f"not allowed for this principal: {group}:{element}",
                                        None)
                else:
                    self._refuse_packet(engine, reader, "PF001", f"no handler for {group}:{element}", None)
                return None
            self.strangers += 1
            if self.strangers > MAX_STRANGERS:
                self._forget_routes()
            route = self._make_route(group, element)
            if route is None:
                self._refuse_packet(
                    engine, reader, "PF429", f"{self.max_routes} elements are known here, the most that may",
                    {"retry_after_ms": 1000})
                return None
        if route.alias is not None and not self._served(route) and len(self.unlisted) == 0:
            other = <Route>self._alias_of(route)
            if other is not None:
                route = other
        if not route.may_submit >> principal.role & 1:
            self._refuse_packet(engine, reader, "PF403", f"not allowed for this principal: {route.key}", None)
            return None
        return route

    cdef bint _served(self, Route route) noexcept:
        """Does anyone handle it, as far as is known?"""
        return len(route.members) > 0 or route.local

    def handlers_changed(self):
        """Handlers of the gateway's own have come or gone."""
        cdef Route route
        cdef Member member
        for key in self.dispatcher.handlers.by_key:
            if key not in self.routes.by_key:
                group, _, element = key.partition(":")
                self._make_route(group, element)
        for route in self.routes.by_key.values():
            self._look_here(route)
        for member in self.members.values():
            if member.listed:
                self._list(member, member.handles)

    def _look_here(self, Route route):
        """Is there a handler of the gateway's own?"""
        cdef Handler handler = <Handler>self.dispatcher.handlers.by_key.get(route.key)
        route.local = handler is not None
        # a standard df element: reactors register the same names, and the specification's do not announce them
        route.yields = handler is not None and handler.free and route.group == GROUP_DF

    def roles_changed(self):
        """What roles may do has changed: asks `permit` again for every element."""
        cdef Route route
        cdef Member member
        for route in self.routes.by_key.values():
            route.may_submit, route.may_handle, route.may_replace = self.permit(route.key)
        for member in self.members.values():
            if member.listed:
                self._list(member, member.handles)

    def set_policy(self, str group not None, str policy not None):
        """Sets the routing of a group: "least", "sticky", "fastest" or "keyed"."""
        cdef Route route
        cdef int value = ("least", "sticky", "fastest", "keyed").index(policy)
        self.policies[("cf", "df", "ed", "co", "mc", "rm").index(group)] = value
        for route in self.routes.by_key.values():
            if route.key.partition(":")[0] == group:
                route.policy = <Policy>value

    def policy(self, str group not None):
        """The routing of a group."""
        return ("least", "sticky", "fastest", "keyed")[self.policies[("cf", "df", "ed", "co", "mc", "rm").index(group)]]

    # ---------------------------------------------------------------- choosing

    cdef uint64_t _random(self) noexcept:
        # xorshift64*: only has to spread load
        cdef uint64_t x = self.chance
        x ^= x >> 12
        x ^= x << 25
        x ^= x >> 27
        self.chance = x
        return (x * <uint64_t>0x2545F4914F6CDD1D) >> 16

    cdef bint _eligible(self, Member member, Route route, Flight flight) noexcept:
        if member.draining or member.gone:
            return False
        # what announces nothing is given nothing before it has said anything at all
        if not member.listed and (member.asked != Asked.ANSWERED or member.refuses(route.hash)
                                  or not route.may_handle >> member.principal.role & 1
                                  or (route.local and not route.may_replace >> member.principal.role & 1)):
            return False
        return flight is None or flight.tried is None or member not in flight.tried

    cdef Member _hashed(self, list members, Route route, Flight flight, uint64_t key):
        """Rendezvous: the same key goes to the same reactor, and to few others when one comes or goes."""
        cdef Member member, best = None
        cdef uint64_t weight, most = 0
        for member in members:
            if self._eligible(member, route, flight):
                weight = _mix(key, <uint64_t>member.number)
                if best is None or weight > most:
                    best = member
                    most = weight
        return best

    cdef Member _choose(self, Route route, Flight flight, Member origin, uint64_t key, bint has_key, bint* some):
        """Who gets it; None where nobody has room. `some`: is there anyone at all?

        For a key that only one reactor may have, that one, room or not.
        """
        cdef list members = route.members
        cdef Py_ssize_t n = len(members), at, tries
        cdef Member a, b
        cdef bint urgent = route.group == GROUP_ED
        some[0] = False
        if route.announced == 0:
            if route.local and not route.yields:
                return None
            members = self.unlisted
            n = len(members)
            if n == 0:
                return None
            # refusals are remembered, but many links that refuse must not make one packet's way long
            if flight is not None and flight.tried is not None and len(flight.tried) >= (
                    MAX_TRIED_HERE if route.local else MAX_TRIED):
                return None
        if n == 1:
            a = <Member>members[0]
            if not self._eligible(a, route, flight):
                return None
            some[0] = True
            if a.room(urgent) or ((route.policy == Policy.STICKY or (route.policy == Policy.KEYED and has_key))):
                return a
            return None
        if route.policy == Policy.STICKY or (route.policy == Policy.KEYED and has_key):
            if not has_key:
                key = <uint64_t>origin.number * <uint64_t>0xD6E8FEB86659FD93 if origin is not None else 0
            a = self._hashed(members, route, flight, key)
            some[0] = a is not None
            return a
        if route.policy == Policy.FASTEST:
            b = None
            at = <Py_ssize_t>(self._random() % <uint64_t>n)
            for tries in range(min(n, 16)):
                a = <Member>members[(at + tries) % n]
                if self._eligible(a, route, flight):
                    some[0] = True
                    if a.room(urgent) and (b is None or a.latency < b.latency):
                        b = a
            if b is not None or n <= 16:
                return b
        else:
            at = <Py_ssize_t>(self._random() % <uint64_t>n)
            tries = <Py_ssize_t>(self._random() % <uint64_t>(n - 1))
            a = <Member>members[at]
            b = <Member>members[tries if tries < at else tries + 1]
            if b.outstanding * a.window < a.outstanding * b.window:
                a, b = b, a
            if self._eligible(a, route, flight):
                some[0] = True
                if a.room(urgent):
                    return a
            if self._eligible(b, route, flight):
                some[0] = True
                if b.room(urgent):
                    return b
        at = <Py_ssize_t>(self._random() % <uint64_t>n)
        for tries in range(min(n, TRIES) if some[0] else n):
            a = <Member>members[(at + tries) % n]
            if self._eligible(a, route, flight):
                some[0] = True
                if a.room(urgent):
                    return a
        return None

    cdef bint _key_of(self, FrameReader reader, Route route, uint64_t* key) noexcept:
        """The packet's metadata.key, for rm else data.key, hashed; False where it has none."""
        if route.policy != Policy.STICKY and route.policy != Policy.KEYED:
            return False
        return concurrency_key(reader, route.policy == Policy.KEYED, key)

    # ---------------------------------------------------------------- packets in

    cdef int begin_batch(self, int64_t now) except -1:
        self.now = now
        self.in_batch = True
        return self.dispatcher.begin_batch(now)

    cdef int end_batch(self) except -1:
        self.dispatcher.end_batch()
        return self._flush_dirty()

    cdef int _flush_dirty(self) except -1:
        cdef Member member
        cdef list dirty
        self.in_batch = False
        while self.dirty:
            dirty = self.dirty
            self.dirty = []
            for member in dirty:
                member.dirty = False
                # a link in the middle of a batch of its own writes by itself at the end of it
                if not member.gone and not member.engine.in_batch and member.engine.flush_now is not None:
                    self._write_now(member.engine)
        if self.told:
            self._tell()
        return 0

    cdef int _write_now(self, Engine engine) noexcept:
        """What goes wrong while a link writes is that link's, and nothing that is under way here suffers."""
        try:
            engine.flush_now()
        except Exception as error:
            try:
                engine._die(1011, f"writing failed: {type(error).__name__}")
            except Exception:
                pass
        return 0

    cdef int _touch(self, Member member, int64_t in_flight) except -1:
        """A member has output: sees to it that it leaves, soon or at once."""
        cdef Engine engine = member.engine
        if engine.in_batch:
            return 0
        if not self.in_batch:
            return engine.note_output()
        if not member.dirty:
            member.dirty = True
            self.dirty.append(member)
        # As in Engine.worth_writing: while they work on this, we go on
        if engine.out.size >= LEAST_WRITE and not engine.paused and engine.flush_now is not None and (
                engine.out.size >= GOOD_WRITE or engine.out.size >= in_flight * WRITE_PER_SUBMIT):
            self._write_now(engine)
        return 0

    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1:
        self._count(code)
        if self.on_failure is not None:
            self._note_failure(<Member>engine.member, reader, code, message)
        return engine.respond_error(reader.seq, reader.id.p, reader.id.n, code, message, details, 0)

    cdef int _count(self, object code) except -1:
        # peers choose codes: those that nobody knows are one
        if code not in _CODES:
            code = "other"
        self.refusals[code] = self.refusals.get(code, 0) + 1
        return 0

    cdef int _note_failure(self, Member member, FrameReader reader, object code, object message) except -1:
        """For the log, which is told once nothing is under way."""
        if len(self.told) < AT_ONCE:
            metadata = reader.decode(F_METADATA)
            self.told.append((
                code, message,
                f"{group_code(reader.group)}:{text_to_str(reader.element.p, reader.element.n, True)}",
                text_to_str(reader.id.p, reader.id.n, False), member.principal.name if member is not None else None,
                metadata.get("traceparent") if isinstance(metadata, dict) else None))
            if not self.in_batch:
                self._arm_at(self.now)
        return 0

    def _note_lost(self, Flight flight, FrameReader reader, code, message, bytes packet_id):
        if len(self.told) < AT_ONCE:
            metadata = reader.decode(F_METADATA) if reader is not None else None
            if reader is None and flight.held != NULL and flight.length > flight.head:
                reader, _ = self._held_reader(flight, 1)
                metadata = (<FrameReader>reader).decode(F_METADATA)
            self.told.append((code, message, flight.route.key, packet_id.decode("utf-8", "replace"),
                              flight.principal.name,
                              metadata.get("traceparent") if isinstance(metadata, dict) else None))
            if not self.in_batch:
                self._arm_at(self.now)

    def _tell(self):
        told, self.told = self.told, []
        for one in told:
            try:
                self.on_failure(*one)
            except Exception:
                pass  # a log that fails is not a packet's fault

    cdef Flight _flight_of(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint* clash):
        """The principal's flight of that id. `clash`: someone else has one of the same id."""
        cdef PendingTable table = self.table
        cdef int32_t slot
        cdef Flight flight
        clash[0] = False
        if table.count == 0:
            return None
        if self.renamed:
            flight = <Flight>self.renamed.get((number, PyBytes_FromStringAndSize(<const char*>packet_id, n)))
            if flight is not None:
                return flight
        slot = table.find_id(packet_id, n)
        if slot < 0:
            return None
        flight = <Flight>table.entries[slot].waiter
        if flight.principal.number == number and flight.own_id is None:
            return flight
        clash[0] = True
        return None

    cdef int accept(self, Engine engine, FrameReader reader, int64_t now) except -1:
        cdef Member member = <Member>engine.member
        cdef Principal principal
        cdef Route route
        cdef Flight flight
        cdef uint64_t fingerprint
        cdef uint32_t tag
        cdef Outcome* outcome
        cdef const unsigned char* payload
        cdef bint clash
        cdef Ledger ledger
        cdef Account account
        self.now = now
        if member is None:
            return engine.respond_error(reader.seq, reader.id.p, reader.id.n, "PF503", "this link is closing", None, 0)
        if member.asked == Asked.NOT_YET and not member.listed and member.number > 0:
            self._ask(member)
        principal = member.principal
        ledger = self._ledger_of(principal)
        tag = ledger.expect(principal.number, reader.id.p, reader.id.n)
        route = self._route_or_refuse(engine, principal, reader)
        if route is None:
            return 0
        fingerprint = pf_fingerprint(reader.payload.p, <size_t>reader.payload.n, hash_key())
        flight = self._flight_of(principal.number, reader.id.p, reader.id.n, &clash)
        if flight is not None:
            if flight.fingerprint != fingerprint:
                return self._refuse_packet(engine, reader, "PF409", "another packet with this id is in flight", None)
            return self._attach(flight, member, reader.seq)
        outcome = ledger.find(tag, principal.number, reader.id.p, reader.id.n, now)
        if outcome != NULL:
            payload = ledger.payload(outcome, now)
            if outcome.fingerprint != fingerprint or payload == NULL:
                return self._refuse_packet(
                    engine, reader, "PF409", "another packet with this id has ended" if payload != NULL
                    else "this packet has ended, and its result is no longer kept", None)
            self.duplicates += 1
            return self._write_result(member, reader.seq, payload, outcome.length)
        if self.draining:
            return self._refuse_packet(engine, reader, "PF503", "shutting down: no new packets", None)
        if principal.rate > 0 and not principal.spend(now):
            return self._refuse_packet(
                engine, reader, "PF429", f"more than {principal.rate:g} packets a second",
                {"retry_after_ms": max(1, int(1000 / principal.rate))})
        if member.submitted >= engine.window:
            return self._refuse_packet(
                engine, reader, "PF429", f"{engine.window} packets of this connection are under way, the most that may",
                {"retry_after_ms": RETRY_AFTER_MS})
        # all that could refuse it comes before anything has begun
        account = member.account
        if not shared_room(self.table.bound, self.table.count, account.flights):
            return self._refuse_packet(
                engine, reader, "PF429", f"max_flights: {self.table.count} packets are under way,"
                f" {account.flights} of them for {account.name}, at most {self.table.bound} may be",
                {"retry_after_ms": RETRY_AFTER_MS})
        if not account.room(FLIGHT_BYTES):
            account.refused += 1
            return self._refuse_packet(engine, reader, "PF429", account.refusal(FLIGHT_BYTES),
                                       {"retry_after_ms": RETRY_AFTER_MS})
        if reader.fields[<int>F_DEPENDENCIES].kind == Kind.ARRAY and reader.fields[<int>F_DEPENDENCIES].n > 2:
            flight = self._begin(member, route, reader, clash, fingerprint, tag, now)
            return self._await(flight, reader, now)
        if self._here(route, member):
            return self._run_here(member, route, reader, tag, fingerprint, clash, now)
        flight = self._begin(member, route, reader, clash, fingerprint, tag, now)
        return self._place(flight, reader, now)

    cdef bint _here(self, Route route, Member origin) except -1:
        """Is it ours to handle, with nobody to ask before?"""
        return route.local and route.announced == 0 and not (
            route.yields and (len(self.unlisted) > 0 or self._awaits_word(route, origin)))

    def _alias_of(self, Route route):
        """The route that a two-letter code means, or None where nobody can have it."""
        cdef Route other = <Route>self.routes.by_key.get(route.alias)
        if other is None and (len(self.unlisted) > 0 or self.unasked or self.asked):
            group, _, element = route.alias.partition(":")
            other = <Route>self._make_route(group, element)
        if other is not None and (self._served(other) or len(self.unlisted) > 0 or self.unasked or self.asked):
            return other
        return None

    cdef int _retries_of(self, FrameReader reader) noexcept:
        cdef Span span
        cdef int64_t value
        if reader.fields[<int>F_METADATA].kind != Kind.OBJECT or not find_key(
                &reader.fields[<int>F_METADATA], b"retry", 5, &span):
            return 0
        if span.kind == Kind.TRUE_:
            return 10
        if span.kind == Kind.NUMBER and span_to_int64(&span, 0, MAX_RETRIES, &value) == 0:
            return <int>value
        return 0

    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1:
        """The same packet again, while it runs: both submits get its one answer."""
        self.duplicates += 1
        if flight.origin is None:
            member.submits(flight, seq)
            return 0
        if flight.attached is None:
            flight.attached = []
        if len(flight.attached) < 64:
            flight.attached.append((member, seq))
        else:
            self._write_refusal(member, seq, flight)
        return 0

    def _write_refusal(self, Member member, int64_t seq, Flight flight):
        packet_id = self._id_of(flight)
        member.engine.respond_error(
            seq, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id), "PF409",
            "this packet was sent 64 times while it ran", None, 0)

    # ---------------------------------------------------------------- a flight's way

    cdef Flight _begin(self, Member origin, Route route, FrameReader reader, bint renamed, uint64_t fingerprint,
                       uint32_t tag, int64_t now):
        """A flight for the packet, in the table. `accept` has seen to it that there is room."""
        cdef Flight flight = self._new_flight()
        cdef unsigned char[ID_LENGTH] text
        cdef const unsigned char* packet_id = reader.id.p
        cdef Py_ssize_t n = reader.id.n
        cdef int64_t timeout = (reader.timeout_ms if reader.timeout_ms > 0 else DEFAULT_TIMEOUT_MS) * MILLISECOND
        cdef bytes own_id = None
        cdef uint64_t key_hash = 0
        cdef bint has_key = self._key_of(reader, route, &key_hash)
        cdef int retries = self._retries_of(reader)
        if renamed:
            # another principal has a packet of the same id: the two must not meet anywhere
            own_id = PyBytes_FromStringAndSize(<const char*>packet_id, n)
            write_id(text)
            packet_id = text
            n = ID_LENGTH
        flight.slot = self.table.insert(flight, packet_id, n, now + timeout)
        # from here on nothing raises
        flight.seq = self.table.entries[flight.slot].seq
        flight.state = FlightState.WAITING
        flight.priority = reader.priority
        flight.principal = origin.principal
        flight.account = origin.account
        flight.cost = FLIGHT_BYTES
        flight.account.settle(FLIGHT_BYTES)
        flight.account.flights += 1
        flight.route = route
        flight.accepted = now
        flight.deadline = now + timeout
        flight.lost = False
        flight.retries = retries
        flight.has_key = has_key
        flight.key_hash = key_hash
        flight.fingerprint = fingerprint
        flight.tag = tag
        origin.submits(flight, reader.seq)
        route.flights += 1
        if own_id is not None:
            flight.own_id = own_id
            self.renamed[(flight.principal.number, own_id)] = flight
        self._arm_at(flight.deadline)
        return flight

    cdef Flight _new_flight(self):
        return <Flight>self.pool.pop() if self.pool else Flight.__new__(Flight)

    cdef int _arm_at(self, int64_t deadline) except -1:
        if self.armed < 0 or deadline < self.armed:
            return self._arm(deadline)
        return 0

    cdef int _arm(self, int64_t deadline) except -1:
        self.armed = deadline
        if self.arm is not None:
            self.arm(deadline)
        return 0

    cdef object _id_of(self, Flight flight):
        """The packet's id as its submitter knows it, bytes."""
        return flight.own_id if flight.own_id is not None else self._id_of_wire(flight)

    def _id_of_wire(self, Flight flight):
        return PyBytes_FromStringAndSize(<const char*>self.table.id_of(flight.slot),
                                         self.table.entries[flight.slot].id_length)

    cdef bint _hold(self, Flight flight, FrameReader reader) except -1:
        """Keeps the payload, for a reactor that has yet to be found. False, and it has failed: there is no room."""
        cdef OutputBuffer out = self.scratch
        cdef Text element, wire
        cdef Py_ssize_t start
        cdef bytes metadata
        cdef unsigned char* held
        if flight.held != NULL:
            return True
        metadata = metadata_again(reader)
        out.clear()
        element.p = NULL
        wire.p = NULL
        if flight.own_id is not None:
            wire.p = self.table.id_of(flight.slot)
            wire.n = self.table.entries[flight.slot].id_length
        if flight.route.element is not None:
            element.p = <const unsigned char*>PyBytes_AS_STRING(flight.route.element)
            element.n = PyBytes_GET_SIZE(flight.route.element)
        put_packet_head(out, reader, element, wire)
        start = out.size
        put_packet_extra(out, reader, metadata)
        if not flight.account.take(out.size):
            self._fail(flight, "PF429", flight.account.refusal(out.size), {"retry_after_ms": RETRY_AFTER_MS}, self.now)
            return False
        held = <unsigned char*>malloc(<size_t>out.size)
        if held == NULL:
            flight.account.settle(-out.size)
            raise MemoryError()
        memcpy(held, out.data, <size_t>out.size)
        flight.held = held
        flight.head = start
        flight.length = out.size
        flight.cost += out.size
        self.held_bytes += out.size
        if out.size > 65536:
            out.release()
        return True

    cdef int _place(self, Flight flight, FrameReader reader, int64_t now) except -1:
        """Finds the flight its reactor. `reader`: the packet, where it is not held yet."""
        cdef bint some
        cdef Route route = flight.route, other
        cdef Member target = self._choose(route, flight, flight.origin, flight.key_hash, flight.has_key, &some)
        if target is not None:
            if target.room(route.group == GROUP_ED):
                return self._send(flight, target, reader, now)
            # only this one may have it: it waits for this one
            if target.queue is None:
                target.queue = PriorityHeap()
            return self._queue(flight, target.queue, reader, now)
        if some:
            return self._queue(flight, route.queue, reader, now)
        if (route.announced == 0 and (not route.local or route.yields) and now - flight.accepted < WAIT_FOR_ASKED
                and self._awaits_word(route, flight.origin)):
            return self._queue(flight, self.curious, reader, now)
        if route.local:
            if reader is not None and not self._hold(flight, reader):
                return 0
            return self._run_held(flight, now)
        if route.alias is not None:
            other = <Route>self._alias_of(route)
            if other is not None and other.may_submit >> flight.principal.role & 1:
                route.flights -= 1
                other.flights += 1
                flight.route = other
                flight.tried = None
                if flight.held != NULL:
                    self._rename_held(flight)
                return self._place(flight, reader, now)
        if flight.retries > 0 and (now - self.started < STARTING or (
                route.last_served > 0 and now - route.last_served < SEEN_LATELY)):
            # it was there a moment ago, or will be: a restart, perhaps
            return self._queue(flight, route.queue, reader, now)
        if route.last_served > 0 and now - route.last_served < SEEN_LATELY:
            return self._fail(flight, "PF503", f"no reactor for {route.key} is connected just now",
                              {"retry_after_ms": 1000}, now, reader)
        return self._fail(flight, "PF001", f"no handler for {route.key}", None, now, reader)

    def _rename_held(self, Flight flight):
        """The held packet's element becomes that of its route."""
        cdef OutputBuffer out = OutputBuffer(limit=1 << 29)
        cdef Text element, wire
        cdef FrameReader reader
        cdef unsigned char* held
        read, _borrowed = self._held_reader(flight, 1)
        reader = <FrameReader>read
        metadata = metadata_again(reader)
        element.p = <const unsigned char*>PyBytes_AS_STRING(flight.route.element)
        element.n = PyBytes_GET_SIZE(flight.route.element)
        wire.p = NULL
        put_packet_head(out, reader, element, wire)
        start = out.size
        put_packet_extra(out, reader, metadata)
        held = <unsigned char*>malloc(<size_t>out.size)
        if held == NULL:
            raise MemoryError()
        memcpy(held, out.data, <size_t>out.size)
        self.held_bytes += out.size - flight.length
        flight.account.settle(out.size - flight.length)
        flight.cost += out.size - flight.length
        free(flight.held)
        flight.held = held
        flight.head = start
        flight.length = out.size

    def _held_reader(self, Flight flight, int64_t seq):
        """``(reader, buffer)``: a held packet, read. Of its own: whoever runs it may come back here meanwhile."""
        cdef OutputBuffer out = OutputBuffer(limit=1 << 29)
        cdef FrameReader reader = FrameReader(max_depth=512)
        out.put_literal(W_SUBMIT)
        out.put_int(seq if seq > 0 else 1)
        out.put_literal(W_PAYLOAD)
        self._put_held(flight, out)
        out.put_literal(b"}")
        if reader.read(out.data, out.size) < 0:
            raise AssertionError(f"a packet that was checked does not read: {reader.error()}")
        return reader, out

    def _put_held(self, Flight flight, OutputBuffer out):
        """The held payload with what is left of its time."""
        cdef int64_t left = (flight.deadline - self.now + MILLISECOND - 1) // MILLISECOND
        out.put(flight.held, flight.head)
        out.put_literal(W_TIMEOUT)
        out.put_int(left if left > 0 else 1)
        out.put(flight.held + flight.head, flight.length - flight.head)
        out.put_literal(b"}")

    cdef int _send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1:
        cdef OutputBuffer out = target.engine.out
        cdef Text element, wire
        cdef bytes metadata = None
        cdef bint as_it_is
        # kept where another may have to be asked: after PF001, or a loss
        if reader is not None and flight.held == NULL and (flight.retries > 0 or not target.listed):
            if not self._hold(flight, reader):
                return 0
        as_it_is = reader is not None and reader.usual and flight.own_id is None and PyBytes_GET_SIZE(
            flight.route.element) == reader.element.n  # else it was a two-letter code
        if reader is not None and not as_it_is:
            metadata = metadata_again(reader)
        try:
            out.begin_message()
            out.put_literal(W_SUBMIT)
            out.put_int(flight.seq)
            out.put_literal(W_PAYLOAD)
            if reader is None:
                self._put_held(flight, out)
            elif as_it_is:
                out.put(reader.payload.p, reader.payload.n)
            else:
                element.p = <const unsigned char*>PyBytes_AS_STRING(flight.route.element)
                element.n = PyBytes_GET_SIZE(flight.route.element)
                wire.p = self.table.id_of(flight.slot)
                wire.n = self.table.entries[flight.slot].id_length
                put_packet_head(out, reader, element, wire)
                if reader.timeout_ms > 0:
                    out.put_literal(W_TIMEOUT)
                    out.put_int(reader.timeout_ms)
                put_packet_extra(out, reader, metadata)
                out.put_literal(b"}")
            out.put_literal(b"}")
            out.end_message(OP_TEXT)
        except BufferError as error:
            # it does not read: its own link ends, and with it this flight finds another or fails
            target.engine._overflow(error)
            flight.sent = now
            flight.state = FlightState.SENT
            target.gets(flight)
            return 0
        flight.state = FlightState.SENT
        flight.sent = now
        target.gets(flight)
        self.routed += 1
        return self._touch(target, target.outstanding)

    cdef int _queue(self, Flight flight, PriorityHeap heap, FrameReader reader, int64_t now) except -1:
        cdef Account account = flight.account
        if not shared_room(self.max_queue, heap.live(), account.queued):
            return self._fail(
                flight, "PF429", f"max_waiting: {heap.live()} packets wait for {flight.route.key} already,"
                f" {account.queued} in all for {account.name}, at most {self.max_queue} may",
                {"retry_after_ms": RETRY_AFTER_MS}, now)
        if reader is not None and not self._hold(flight, reader):
            return 0
        flight.entry = heap.push(flight, flight.priority)
        flight.home = heap
        flight.state = FlightState.QUEUED
        account.queued += 1
        self.queued += 1
        if heap is flight.route.queue and flight.route.queued_at < 0:
            flight.route.queued_at = len(self.queued_routes)
            self.queued_routes.append(flight.route)
        return 0

    cdef int _leave_queue(self, Flight flight) except -1:
        if flight.entry is not None:
            flight.home.remove(flight.entry)
            self._left_queue(flight)
        return 0

    def _left_queue(self, Flight flight):
        cdef Route route = flight.route, last
        flight.entry = None
        self.queued -= 1
        flight.account.queued -= 1
        if flight.home is route.queue and route.queue.live() == 0 and route.queued_at >= 0:
            last = <Route>self.queued_routes.pop()
            if last is not route:
                self.queued_routes[route.queued_at] = last
                last.queued_at = route.queued_at
            route.queued_at = -1
        flight.home = None

    cdef int _leave_target(self, Flight flight) except -1:
        if flight.target is not None:
            flight.target.lets_go(flight)
        return 0

    cdef int _pump(self, Member member, int64_t now) except -1:
        """Gives a reactor that has room what waits for it, the most urgent first."""
        member.unseen = len(self._routes_of(member))
        return self._give_work(member, now)

    cdef list _routes_of(self, Member member):
        """Where work for a reactor may wait."""
        if not member.listed:
            return self.queued_routes
        if member.looked_at is None:
            member.looked_at = list(member.routes)
        return member.looked_at

    cdef int _give_work(self, Member member, int64_t now) except -1:
        cdef Flight head
        cdef bint urgent
        while self.queued > 0 and member.room(True) and not member.draining and not member.gone:
            urgent = not member.room(False)  # only what an event may have is left
            head = None
            if member.queue is not None and member.queue.live() > 0:
                head = <Flight>member.queue.peek()
                if urgent and head.route.group != GROUP_ED:
                    head = None
            head = self._look(member, head, urgent)
            if head is None:
                break
            head.home.pop()
            self._left_queue(head)
            self._send(head, member, None, now)
        if member.unseen > 0 and self.queued > 0 and member.room(True) and not member.draining and not member.gone:
            # it has been through a part of its routes only: the rest when the loop has had a turn
            self.behind[member] = None
            self._arm_at(now)
        return 0

    cdef Flight _look(self, Member member, Flight head, bint urgent):
        """The most urgent of `head` and what waits for any of the reactor's elements, of so many of them at a time."""
        cdef list routes = self._routes_of(member)
        cdef Py_ssize_t n = len(routes), left = LOOKED_AT
        cdef Route route
        cdef Flight flight
        if n <= LOOKED_AT:
            left = n
            member.unseen = 0
        while left > 0:
            left -= 1
            if member.cursor >= n:
                member.cursor = 0
            route = <Route>routes[member.cursor]
            member.cursor += 1
            if route.queued_at < 0 or (urgent and route.group != GROUP_ED):
                continue
            if not member.listed and (route.announced > 0 or not self._eligible(member, route, None)):
                continue
            flight = <Flight>route.queue.peek()
            if flight.tried is not None and member in flight.tried:
                continue
            if head is None or flight.priority > head.priority or (
                    flight.priority == head.priority and flight.accepted < head.accepted):
                head = flight
        if n > LOOKED_AT:
            member.unseen = n if head is not None else member.unseen - LOOKED_AT
        return head

    cdef int _catch_up(self, int64_t now) except -1:
        """Reactors with many elements that have not all been looked through; so many each time."""
        cdef Member member
        for member in list(self.behind)[:16]:
            del self.behind[member]
            self._give_work(member, now)
        return 0

    cdef int _next(self, Flight flight, int64_t now) except -1:
        """Its reactor will not have it: the next one."""
        cdef Member refusing = flight.target
        if flight.tried is None:
            flight.tried = []
        flight.tried.append(refusing)
        self._leave_target(flight)
        self._place(flight, None, now)
        return self._pump(refusing, now)

    # ---------------------------------------------------------------- answers

    cdef bint answer(self, Engine engine, FrameReader reader, int64_t now) except -1:
        cdef PendingTable table = self.table
        cdef Member member = <Member>engine.member
        cdef int32_t slot = table.find_seq(reader.seq)
        cdef Flight flight
        cdef Text own
        cdef OutputBuffer out
        cdef const unsigned char* payload
        cdef Py_ssize_t length
        cdef object code = None
        self.now = now
        # first all that makes an object
        if not reader.success:
            code = self._code_of(reader)
        if slot >= 0 and ((<Flight>table.entries[slot].waiter).target is not member
                          or table.entries[slot].id_length != reader.id.n
                          or not _same(table.id_of(slot), reader.id.p, reader.id.n)):
            slot = -1
        if slot < 0:
            # reference reactors answer with seq 0; some other seq is no better
            slot = table.find_id(reader.id.p, reader.id.n)
            if slot < 0 or (<Flight>table.entries[slot].waiter).target is not member:
                self.late += 1
                return False
        flight = <Flight>table.entries[slot].waiter
        if flight.state != FlightState.SENT:
            self.late += 1
            return False
        if member.asked != Asked.ANSWERED and not member.listed:
            self._has_answered(member)
        if flight.route is self.question:
            self._leave_target(flight)
            self._give_back(flight)
            return True
        if not reader.success:
            if code == "PF001":
                if not member.listed:
                    member.note_refusal(flight.route.hash)
                    if flight.route in member.routes:
                        self._leave_route(member, flight.route)
                if flight.held != NULL:
                    self._next(flight, now)
                    return True
            elif flight.retries > 0 and flight.held != NULL and (code == "PF429" or code == "PF503"):
                # it never ran there; if there is another, that one may
                if self._another(flight, member):
                    self._next(flight, now)
                    return True
        elif member.strikes is not None:
            member.strikes.pop(flight.route.hash, None)
        if not member.listed and code != "PF001" and flight.route not in member.routes:
            self._learn(member, flight.route)
        if flight.lost and code in _REFUSALS:
            self._leave_target(flight)
            self._fail(flight, code, "the next refused it", None, now)
            self._pump(member, now)
            return True
        payload = reader.payload.p
        length = reader.payload.n
        if not reader.usual or flight.own_id is not None:
            out = self.scratch
            out.clear()
            own.p = NULL
            if flight.own_id is not None:
                own.p = <const unsigned char*>PyBytes_AS_STRING(flight.own_id)
                own.n = PyBytes_GET_SIZE(flight.own_id)
            put_result_payload(out, reader, own)
            payload = out.data
            length = out.size
        member.latency = member.latency * 0.8 + 0.2 * <double>(now - flight.sent) if member.latency > 0 \
            else <double>(now - flight.sent)
        self._leave_target(flight)
        self._end(flight, payload, length, reader.success, code, False, now)
        if self.queued > 0:
            self._pump(member, now)
        return True

    cdef object _code_of(self, FrameReader reader):
        """The code of an answer that is an error; the reader has seen to it that it is a short string or absent."""
        cdef Span span
        if reader.fields[<int>F_ERROR].kind != Kind.OBJECT or not find_key(
                &reader.fields[<int>F_ERROR], b"code", 4, &span) or span.kind != Kind.STRING:
            return None
        return decode_span(&span, None)

    cdef bint _another(self, Flight flight, Member member) except -1:
        """Is there another reactor for it, besides this one?"""
        cdef Member other
        for other in (flight.route.members if flight.route.announced > 0 else self.unlisted):
            if other is not member and self._eligible(other, flight.route, flight):
                return True
        return False

    cdef bint refuse(self, Engine engine, FrameReader reader, object code, object message, object details) except -1:
        cdef int32_t slot = self.table.find_seq(reader.seq)
        cdef Flight flight
        cdef Member member = <Member>engine.member
        if slot < 0 and reader.id.n > 0:
            slot = self.table.find_id(reader.id.p, reader.id.n)
        if slot < 0 or member is None:
            return False
        flight = <Flight>self.table.entries[slot].waiter
        if flight.target is not member or flight.state != FlightState.SENT:
            return False
        if flight.route is self.question:
            self._has_answered(member)
            self._leave_target(flight)
            self._give_back(flight)
            return True
        self._leave_target(flight)
        self._fail(flight, code, message, details, engine.now)
        self._pump(member, engine.now)
        return True

    cdef int _end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                  bint answered, int64_t now) except -1:
        """The flight's one outcome: to who waits for it, into the ledger, to who depends on it."""
        cdef bytes packet_id
        cdef const unsigned char* p = self.table.id_of(flight.slot)
        cdef Py_ssize_t n = self.table.entries[flight.slot].id_length
        cdef Principal principal = flight.principal
        if flight.own_id is not None:
            p = <const unsigned char*>PyBytes_AS_STRING(flight.own_id)
            n = PyBytes_GET_SIZE(flight.own_id)
        if flight.origin is not None:
            self._write_result(flight.origin, flight.origin_seq, payload, length)
        elif not answered:
            self.late += 1
        if flight.attached is not None:
            for other, seq in flight.attached:
                self._write_result(<Member>other, seq, payload, length)
        flight.route.note(success, now - flight.accepted)
        if success or code not in _NEVER_RAN:
            self._ledger_of(principal).record(
                flight.tag, principal.number, p, n, flight.fingerprint, success, payload, length, now)
            if self.awaited:
                packet_id = PyBytes_FromStringAndSize(<const char*>p, n)
                self._give_back(flight)
                return self._ended(principal.number, packet_id, success, now)
        return self._give_back(flight)

    cdef int _fail(self, Flight flight, object code, object message, object details, int64_t now,
                   FrameReader reader=None) except -1:
        cdef OutputBuffer out = OutputBuffer(limit=1048576)
        cdef bytes packet_id = <bytes>self._id_of(flight)
        if flight.lost and code in _REFUSALS:
            # said of one that is sent again after a loss it would mean that it never began
            details = {**(details or {}), "code": code}
            message = f"the connection of the reactor that handled it was lost, and then: {message}"
            code = "PF502"
        cdef bytes error = encode_error(code, message, details, 60)
        put_failure_payload(out, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id),
                            error, 0)
        self._count(code)
        if self.on_failure is not None:
            self._note_lost(flight, reader, code, message, packet_id)
        return self._end(flight, out.data, out.size, False, code, False, now)

    cdef int _write_result(self, Member member, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1:
        cdef Engine engine = member.engine
        cdef OutputBuffer out = engine.out
        if engine.state != EngineState.OPEN or engine.fatal != 0:
            return 0
        try:
            out.begin_message()
            put_result_head(out, seq)
            out.put(payload, length)
            out.put_literal(b"}")
            out.end_message(OP_TEXT)
        except BufferError as error:
            return engine._overflow(error)
        engine.handled += 1
        return self._touch(member, member.submitted)

    cdef int _give_back(self, Flight flight) except -1:
        """The flight is over: out of the table, and into the pool."""
        # what it lets go of may be a user's, and letting go of it may run anything: last of all
        cdef object job = flight.job, _attached = flight.attached, _tried = flight.tried, _needs = flight.needs
        cdef Route route = flight.route
        if flight.own_id is not None:
            self.renamed.pop((flight.principal.number, flight.own_id), None)
            flight.own_id = None
        self.table.take_slot(flight.slot)
        route.flights -= 1
        if flight.origin is not None:
            flight.origin.has_ended(flight)
        if flight.target is not None:
            flight.target.lets_go(flight)
        if flight.held != NULL:
            free(flight.held)
            flight.held = NULL
            self.held_bytes -= flight.length
        flight.account.settle(-flight.cost)
        flight.account.flights -= 1
        flight.account = None
        flight.cost = 0
        flight.state = FlightState.FREE
        flight.engine = None
        if job is not None:
            (<Job>job).flight = None
            flight.job = None
        flight.attached = None
        flight.tried = None
        flight.needs = None
        flight.route = None
        flight.principal = None
        if len(self.pool) < POOL:
            self.pool.append(flight)
        if self.idle is not None and self.table.count == self.question.flights and not self.idle.done():
            self.idle.set_result(None)
        return 0

    # ---------------------------------------------------------------- handled here

    cdef int _run_here(self, Member origin, Route route, FrameReader reader, uint32_t tag, uint64_t fingerprint,
                       bint clash, int64_t now) except -1:
        """To the dispatcher. Most handlers answer before it returns: then there is no flight at all."""
        cdef Engine engine = origin.engine
        cdef Flight flight
        engine.noting = True
        engine.kept = -1
        self.accepting = engine
        self.accepting_tag = tag
        self.accepting_id = reader.id.p
        self.accepting_fingerprint = fingerprint
        self.accepting_route = route
        self.was_answered = False
        try:
            if route.group != reader.group or PyBytes_GET_SIZE(route.element) != reader.element.n:
                # a two-letter code: the dispatcher looks for the whole name
                reader.element.p = <const unsigned char*>PyBytes_AS_STRING(route.element)
                reader.element.n = PyBytes_GET_SIZE(route.element)
            self.dispatcher.caller = origin
            self.dispatcher.accept(engine, reader, now)
        finally:
            self.dispatcher.caller = None
            engine.noting = False
            self.accepting = None
            self.accepting_id = NULL
            if not self.was_answered and engine.kept >= 0 and not origin.gone:
                # it is kept by the engine, and goes on: from now on the same id must find it
                try:
                    flight = self._begin(origin, route, reader, clash, fingerprint, tag, now)
                    self._make_local(flight, engine)
                except PendingFull:
                    pass  # the handler has submitted a whole table full meanwhile; its packet ends as any other
        return 0

    def _make_local(self, Flight flight, Engine engine):
        """The engine keeps the job and sees to its deadline; the flight is how others find it."""
        cdef Job job = <Job>engine.inbound.entries[engine.kept].waiter
        flight.state = FlightState.LOCAL
        flight.engine = engine
        flight.job = job
        job.flight = flight

    cdef int _run_held(self, Flight flight, int64_t now) except -1:
        """As `_run_here`, for a packet that had to wait."""
        cdef Member origin = flight.origin if flight.origin is not None and not flight.origin.gone else None
        cdef Engine engine = origin.engine if origin is not None else self.inner
        cdef int64_t seq = flight.seq
        cdef FrameReader reader
        cdef bytes packet_id = <bytes>self._id_of(flight)
        cdef Flight before = self.running_held
        if engine is None:
            return self._fail(flight, "PF503", "shutting down", None, now)
        read, _borrowed = self._held_reader(flight, flight.origin_seq)
        reader = <FrameReader>read
        # nobody but us sees this one: its own id will do
        reader.id.p = <const unsigned char*>PyBytes_AS_STRING(packet_id)
        reader.id.n = PyBytes_GET_SIZE(packet_id)
        flight.state = FlightState.LOCAL
        flight.engine = engine
        engine.kept = -1
        if not self.in_batch:
            self.dispatcher.slice_ends = 0  # perhaps inside a handler's task: queue it
        # answered at once, it ends in `answered` like one that takes its time
        engine.noting = True
        self.running_held = flight
        try:
            # one that has lost its link is still authorised as whose it is, not as the gateway's
            self.dispatcher.caller = origin if origin is not None else flight.principal
            self.dispatcher.accept(engine, reader, now)
        finally:
            self.dispatcher.caller = None
            engine.noting = False
            self.running_held = before
            if flight.seq == seq and flight.state == FlightState.LOCAL and flight.job is None:
                if engine.kept >= 0:
                    self._make_local(flight, engine)
                else:
                    # neither kept nor answered: its link takes no answers any more
                    self._forget(flight)
        return 0

    cdef int answered(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1:
        """The dispatcher, or a refusal, has answered a packet."""
        cdef Member member = <Member>engine.member
        cdef Principal principal
        cdef Flight flight = None
        cdef bint success = code is None
        cdef bytes own
        cdef int64_t now = engine.now
        if member is None:
            return 0
        principal = member.principal
        if engine.finishing is not None:
            flight = <Flight>(<Job>engine.finishing).flight
        elif self.accepting is engine and packet_id == self.accepting_id:
            self.was_answered = True
            self.accepting_route.note(success, now - self.now)
            if success or engine.ran or code not in _NEVER_RAN:
                self._ledger_of(principal).record(
                    self.accepting_tag, principal.number, packet_id, n, self.accepting_fingerprint, success, payload,
                    length, now)
                if self.awaited:
                    own = PyBytes_FromStringAndSize(<const char*>packet_id, n)
                    self._ended(principal.number, own, success, now)
            else:
                self._count(code)
            return 0
        elif self.running_held is not None and self.running_held.engine is engine:
            flight = self.running_held
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return 0
        # the engine itself has written the answer to its own peer
        own = PyBytes_FromStringAndSize(<const char*>payload, length)
        if flight.origin is not None and flight.origin.engine is not engine:
            self._write_result(flight.origin, flight.origin_seq, payload_of(own), length)
        if flight.origin is not None:
            flight.origin.has_ended(flight)
        if engine.ran and code in _NEVER_RAN:
            code = "PF500"  # it is remembered: it ran
        return self._end(flight, payload_of(own), length, success, code, True, now)

    cdef int drop(self, Engine engine, object job, int why) except -1:
        """A job of the dispatcher's is wanted no more, or its link has gone."""
        cdef Flight flight = <Flight>(<Job>job).flight
        cdef bytes packet_id
        cdef int64_t number
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return self.dispatcher.drop(engine, job, why)
        if why != DropReason.EXPIRED and self.inner is not None and self.inner is not engine and (
                (why == DropReason.DISCONNECTED and flight.retries > 0) or self._attached(flight)):
            # it goes on: someone else waits for it, or its submitter comes back for the answer
            packet_id = <bytes>self._id_of(flight)
            number = self.inner.keep(
                job, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id), flight.deadline)
            if number > 0:  # 0: another principal's of the same id is there
                (<Job>job).engine = self.inner
                (<Job>job).number = number
                if (<Job>job).caller is not None:
                    (<Job>job).caller = flight.principal  # its link is no more
                flight.engine = self.inner
                if flight.origin is not None:
                    flight.origin.has_ended(flight)
                return 0
        if why != DropReason.EXPIRED:
            self._forget(flight)
        return self.dispatcher.drop(engine, job, why)

    def _forget(self, Flight flight):
        """Ends a flight that nobody waits for; whoever depends on it learns that it failed."""
        packet_id = self._id_of(flight)
        number = flight.principal.number
        self._stop_waiting(flight)
        self._leave_queue(flight)
        self._leave_target(flight)
        flight.route.failed += 1
        self._give_back(flight)
        if self.awaited:
            self._ended(number, packet_id, False, self.now)

    cdef int cancel(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n) except -1:
        """The submitter takes a packet back."""
        cdef Member member = <Member>engine.member
        cdef Member target
        cdef bint clash
        cdef Flight flight
        if member is None:
            return 0
        flight = self._flight_of(member.principal.number, packet_id, n, &clash)
        if flight is None or flight.origin is not member or self._attached(flight):
            return 0
        target = flight.target
        if flight.state == FlightState.SENT:
            self._withdraw(flight)
        self._forget(flight)
        if target is not None:
            self._pump(target, engine.now)
        return 0

    cdef int resumed(self, Engine engine, int64_t now) except -1:
        cdef Member member = <Member>engine.member
        self.now = now
        if member is not None and self.queued > 0:
            self._pump(member, now)
        return 0

    # ---------------------------------------------------------------- dependencies

    cdef int _await(self, Flight flight, FrameReader reader, int64_t now) except -1:
        """Starts the flight once everything that it depends on has succeeded."""
        cdef Outcome* outcome
        cdef bytes needed
        cdef int32_t number = flight.principal.number
        cdef bytes own = <bytes>self._id_of(flight)
        cdef set needs = set()
        cdef const unsigned char* p
        cdef Ledger ledger = self._ledger_of(flight.principal)
        cdef int cycle
        cdef Py_ssize_t cost
        for text in decode_span(&reader.fields[<int>F_DEPENDENCIES], None):
            needed = text.encode()
            p = <const unsigned char*>PyBytes_AS_STRING(needed)
            outcome = ledger.find(ledger.expect(number, p, PyBytes_GET_SIZE(needed)), number, p,
                                  PyBytes_GET_SIZE(needed), now)
            if outcome == NULL:
                needs.add(needed)
            elif not outcome.success:
                return self._fail(flight, "PF424", f"the packet {text!r}, on which this one depends, has failed",
                                  {"dependency": text}, now)
        if not needs:
            return self._start(flight, reader, now)
        cycle = self._in_cycle(number, own, needs)
        if cycle > 0:
            return self._fail(flight, "PF424", "the dependencies form a cycle", None, now)
        if cycle < 0:
            return self._fail(flight, "PF400", f"dependencies: more than {MAX_WALK} packets that have not ended stand"
                              " behind them, too many to look for a cycle", None, now)
        cost = NEED_BYTES * len(needs)
        if not flight.account.take(cost):
            return self._fail(flight, "PF429", flight.account.refusal(cost), {"retry_after_ms": RETRY_AFTER_MS}, now)
        flight.cost += cost
        if not self._hold(flight, reader):
            return 0
        flight.needs = needs
        flight.state = FlightState.WAITING
        for needed in needs:
            self.awaited.setdefault((number, needed), {})[flight] = None
        return 0

    cdef int _start(self, Flight flight, FrameReader reader, int64_t now) except -1:
        if self._here(flight.route, flight.origin):
            if reader is not None and not self._hold(flight, reader):
                return 0
            return self._run_held(flight, now)
        return self._place(flight, reader, now)

    cdef int _in_cycle(self, int32_t number, bytes packet_id, object needs) except? -2:
        """Does anything that is needed wait, in turn, for this packet? 1: yes; -1: too many to tell."""
        cdef set seen = set()
        cdef list todo
        cdef bint clash
        cdef Flight flight
        if (number, packet_id) not in self.awaited:
            # nobody waits for it, so nobody can in turn; an id may be its own dependency all the same
            return packet_id in needs
        todo = list(needs)
        while todo:
            needed = <bytes>todo.pop()
            if needed == packet_id:
                return 1
            if needed in seen:
                continue
            seen.add(needed)
            if len(seen) > MAX_WALK:
                return -1
            flight = self._flight_of(number, <const unsigned char*>PyBytes_AS_STRING(needed), PyBytes_GET_SIZE(needed),
                                     &clash)
            if flight is not None and flight.needs:
                todo.extend(flight.needs)
        return 0

    cdef int _ended(self, int32_t number, bytes packet_id, bint success, int64_t now) except -1:
        """A packet has ended: those that wait for it go on, or fail."""
        cdef Flight flight
        waiting = self.awaited.pop((number, packet_id), None)
        if waiting is None:
            return 0
        self.walked += len(waiting)
        for flight in waiting:
            if flight.state != FlightState.WAITING or flight.needs is None or packet_id not in flight.needs:
                continue
            flight.needs.discard(packet_id)
            if not success:
                self._stop_waiting(flight)
                self.ready.append((flight, flight.seq, packet_id))
            elif not flight.needs:
                flight.needs = None
                self.ready.append((flight, flight.seq, None))
        return self._start_ready(now)

    cdef int _start_ready(self, int64_t now) except -1:
        """A loop, not a recursion: a chain of dependencies may be long. So many until `advance` is called again."""
        cdef Flight flight
        if self.starting:
            return 0
        self.starting = True
        try:
            while self.ready and self.begun < AT_ONCE:
                self.begun += 1
                flight, seq, failed = self.ready.popleft()
                if flight.seq != seq or flight.state != FlightState.WAITING:
                    continue
                if failed is None:
                    self._start(flight, None, now)
                else:
                    text = failed.decode("utf-8", "replace")
                    self._fail(flight, "PF424", f"the packet {text!r}, on which this one depends, has failed",
                               {"dependency": text}, now)
        finally:
            self.starting = False
            if self.ready:
                self._arm_at(now)  # the rest when the loop has had a turn
        return 0

    def _stop_waiting(self, Flight flight):
        """Takes a flight off the lists of what it waits for: in the next iterations, where that is much just now."""
        cdef set needs = flight.needs
        flight.needs = None
        if needs is None:
            return
        while needs and self.swept < SWEEP:
            self._take_off(flight.principal.number, needs.pop(), flight)
        if needs:
            self.unwanted.append((flight.principal.number, needs, flight))
            self._arm_at(self.now)

    cdef int _take_off(self, int32_t number, bytes needed, Flight flight) except -1:
        cdef dict waiting = self.awaited.get((number, needed))
        self.swept += 1
        if waiting is not None:
            waiting.pop(flight, None)
            if not waiting:
                del self.awaited[(number, needed)]
        return 0

    cdef int _sweep(self) except -1:
        """Goes on with what `_stop_waiting` has put off."""
        cdef Flight flight
        cdef set needs
        self.swept = 0
        while self.unwanted and self.swept < SWEEP:
            number, needs, flight = self.unwanted[0]
            while needs and self.swept < SWEEP:
                needed = needs.pop()
                # the flight may be another packet's by now, which waits for the same
                if flight.needs is None or needed not in flight.needs or flight.principal.number != number:
                    self._take_off(number, needed, flight)
            if not needs:
                self.unwanted.popleft()
        if self.unwanted:
            self._arm_at(self.now)
        return 0

    # ---------------------------------------------------------------- time

    def advance(self, int64_t now):
        """Deadlines. Call at the time that `arm` was called with."""
        cdef int32_t slot
        cdef int count = 0
        cdef Flight flight
        self.now = now
        self.in_batch = True
        self.armed = -1
        self.begun = 0
        self.dispatcher.begin_batch(now)
        try:
            slot = self.table.due(now)
            # so many at a time: a hundred thousand that end at once must not keep the loop
            while slot >= 0 and count < AT_ONCE:
                count += 1
                flight = <Flight>self.table.entries[slot].waiter
                if flight.state == FlightState.LOCAL:
                    # the engine that keeps the job has answered, or does so this moment
                    self._expire_local(flight)
                else:
                    self._expire(flight, now)
                slot = self.table.due(now)
            if self.ready:
                self._start_ready(now)
            if self.looking > 0:
                self._place_some()
            elif self.unasked or self.asked or self.curious.live() > 0:
                self._look_after_newcomers()
            if self.behind:
                self._catch_up(now)
            if self.leaving:
                self._lose_some(now)
        finally:
            self._sweep()
            self.dispatcher.end_batch()
            self._flush_dirty()
            if self.table.count > 0:
                self._arm_at(self.table.next_due())

    def _expire_local(self, Flight flight):
        cdef Engine engine = flight.engine
        cdef Job job = flight.job
        cdef int32_t slot
        if engine is not None and job is not None:
            slot = engine.inbound.find_seq(job.number)
            if slot >= 0:
                engine.now = self.now
                engine._expire_inbound(slot)
                engine.note_output()
        if flight.state == FlightState.LOCAL:
            self._fail(flight, "PF408", "the deadline passed before the handler finished", None, self.now)
            if job is not None:
                self.dispatcher.drop(engine, job, DropReason.EXPIRED)

    def _expire(self, Flight flight, int64_t now):
        cdef Member target = flight.target
        cdef Route route = flight.route
        if flight.state == FlightState.WAITING:
            self._stop_waiting(flight)
            self._fail(flight, "PF424", "what this packet depends on did not end before the deadline", None, now)
            return
        if flight.state == FlightState.QUEUED:
            self._leave_queue(flight)
            self._fail(flight, "PF408", f"the deadline passed while the packet waited for a reactor with room"
                       f" ({route.key})", None, now)
            return
        if flight.route is self.question:
            # that it is silent was noted long ago; meanwhile it may have been asked again
            self._leave_target(flight)
            self._give_back(flight)
            return
        self._withdraw(flight)
        if not target.listed:
            if target.strikes is None:
                target.strikes = {}
            strikes = target.strikes.get(route.hash, 0) + 1
            if len(target.strikes) < REFUSALS:
                target.strikes[route.hash] = strikes
            if strikes >= STRIKES:
                target.note_refusal(route.hash)
        self._leave_target(flight)
        self._fail(flight, "PF408", f"no answer came before the deadline ({route.key})", None, now)
        self._pump(target, now)

    # ---------------------------------------------------------------- for the gateway

    @property
    def in_flight(self):
        """Packets under way: waiting, queued, running elsewhere or here."""
        return self.table.count - self.question.flights

    @property
    def remembered(self):
        """Outcomes that are known."""
        return sum([len(ledger) for ledger in self.ledgers])

    @property
    def remembered_bytes(self):
        """Memory that they take: for each principal at most what `max_remembered` and `max_results` say."""
        return sum([ledger.bytes_used for ledger in self.ledgers])

    def busiest(self, Py_ssize_t most):
        """The routes of which most packets have ended, so many at most, sorted by key: ``[(key, Route)]``.

        One pass over all routes, of which peers may make a hundred thousand.
        """
        cdef Route route
        cdef int64_t count, least = -1
        cdef list found = []
        cdef Py_ssize_t number = 0
        for route in self.routes.by_key.values():
            count = route.succeeded + route.failed
            number += 1
            if len(found) < most:
                heappush(found, (count, number, route))
                least = (<tuple>found[0])[0]
            elif count > least:
                heapreplace(found, (count, number, route))
                least = (<tuple>found[0])[0]
        return sorted([((<Route>route).key, route) for _, _, route in found])

    @property
    def elements(self):
        """Routes by key."""
        return dict(self.routes.by_key)

    @property
    def links(self):
        """The members."""
        return list(self.members.values())

    def reactors_for(self, str key not None):
        """The members that announced the key and may handle it, and those that announce nothing and may have it."""
        cdef Route route = <Route>self.routes.by_key.get(key)
        cdef Member member
        if route is None:
            if len(self.unlisted) == 0:
                return []
            self.strangers += 1
            if self.strangers > MAX_STRANGERS:
                self._forget_routes()
            group, _, element = key.partition(":")
            route = self._make_route(group, element)
            if route is None:
                return []
        known = set(route.members)
        return [*route.members, *[member for member in self.unlisted
                                  if member not in known and self._eligible(member, route, None)]]

    @property
    def held(self):
        """Bytes of payloads that are kept."""
        return self.held_bytes

    def let_go(self):
        """Gives up what is kept to be used again, and holds pages that nothing else does."""
        self.pool.clear()
        self.scratch.release()
        self.dispatcher.let_go()

    def drain(self, idle):
        """No new packets (PF503). `idle`: a future that is given a result once nothing is under way."""
        self.draining = True
        self.idle = idle
        if self.table.count == self.question.flights:
            idle.set_result(None)

    def fail_all(self, str code not None, str message not None, int64_t now):
        """Ends everything that is still under way: `code` for what never began, PF502 for the rest."""
        cdef int32_t slot
        cdef Flight flight
        self.now = now
        self.dispatcher.end_all(message)
        for slot in range(self.table.used):
            if self.table.entries[slot].seq != 0:
                flight = <Flight>self.table.entries[slot].waiter
                if flight.route is self.question:
                    self._leave_target(flight)
                    self._give_back(flight)
                    continue
                began = flight.state == FlightState.LOCAL or flight.state == FlightState.SENT
                if flight.needs is not None:
                    self._stop_waiting(flight)
                self._leave_queue(flight)
                if flight.state == FlightState.SENT and not flight.target.gone:
                    self._withdraw(flight)
                self._leave_target(flight)
                if began:
                    self._fail(flight, "PF502", f"{message}: the packet may have run or not", None, now)
                else:
                    self._fail(flight, code, message, None, now)
        self._flush_dirty()
