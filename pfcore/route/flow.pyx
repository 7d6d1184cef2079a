"""The way of a packet through a gateway. See ``flow.pxd``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp

from pfcore.link.engine cimport Engine, Incoming, incoming_as
from pfcore.link.outgoing cimport EngineState
from pfcore.link.pending cimport PendingTable
from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.buffers cimport OP_TEXT, OutputBuffer
from pfcore.memory.bytes_ops cimport pf_fingerprint
from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.memory.ids cimport ID_LENGTH, hash_key, write_id
from pfcore.route.choose cimport another, retries_of, routing_key
from pfcore.route.directory cimport Directory
from pfcore.route.flights cimport NOBODY_ROLE, REFUSALS, Asked, Flight, FlightState, Member, Principal, Route, pay_back
from pfcore.route.ledger cimport Ledger, Outcome
from pfcore.route.placing cimport RETRY_AFTER_MS, Placing
from pfcore.wire.reader cimport (
    F_DEPENDENCIES,
    F_METADATA,
    MAX_METADATA,
    FrameReader,
    Text,
    error_code,
    group_code,
    text_to_str,
)
from pfcore.wire.scan cimport Kind
from pfcore.wire.terms cimport DEFAULT_TIMEOUT_MS, MILLISECOND
from pfcore.wire.writer cimport (
    encode_error,
    metadata_again,
    put_failure_payload,
    put_result_head,
    put_result_payload,
)
from pfcore.work.worker cimport Job

from pfcore.wire import codes

__all__ = ["Flow"]

cdef enum:
    STRIKES = 3                  # deadlines missed in a row until a reactor that announces nothing is passed over
    # Bytes of a packet that is sent again in its turn only: sixty refusals, or one link that goes, may be the cause of
    # sixty megabytes.
    LARGE_AGAIN = 32768
    FLIGHT_BYTES = 512           # what a flight takes, besides its payload
    AT_ONCE = 256                # flights that expire before the loop has another turn
    METADATA_MAY_GROW = 8192     # bytes: less stays within the bound, however it is written (by a factor of 4.5)

cdef frozenset _REFUSALS = codes.REFUSALS
cdef frozenset _NEVER_RAN = codes.NEVER_RAN
cdef frozenset _TRY_AGAIN = codes.TRY_AGAIN


cdef inline bint _same(const unsigned char* a, const unsigned char* b, Py_ssize_t n) noexcept nogil:
    return memcmp(a, b, <size_t>n) == 0


cdef class Flow(Placing):
    """Moves packets between links. What a gateway asks of it is `Switch`'s."""

    # ---------------------------------------------------------------- elements

    cdef Route _route_or_refuse(self, Engine engine, Principal principal, FrameReader reader):
        """The packet's route, if its principal may submit to it; None if the packet was refused."""
        cdef Directory directory = self.directory
        cdef Route route = <Route>directory.routes.find(reader.group, reader.element.p, reader.element.n)
        cdef Route other
        cdef str group, element
        if route is None:
            group = group_code(reader.group)
            element = text_to_str(reader.element.p, reader.element.n, True)
            alias = directory.aliases.get(f"{group}:{element}")
            if not self.newcomers.some() and alias is None and not (
                    self.starting(self.now) and retries_of(reader) > 0) \
                    and f"{group}:{element}" not in directory.gone:
                # nobody could have it: such elements are not worth remembering
                if not directory.permit(f"{group}:{element}")[0] >> principal.role & 1:
                    self._refuse_packet(engine, reader, "PF403", f"not allowed for this principal: {group}:{element}",
                                        None)
                else:
                    self._refuse_packet(engine, reader, "PF001", f"no handler for {group}:{element}", None)
                return None
            route = directory.make_for_stranger(group, element)
            if route is None:
                self._refuse_packet(
                    engine, reader, "PF429", f"{directory.most} elements are known here, the most that may",
                    {"retry_after_ms": 1000})
                return None
        if route.alias is not None and not directory.served(route) and len(self.newcomers.unlisted) == 0:
            other = self._alias_of(route)
            if other is not None:
                route = other
        if not route.may_submit >> principal.role & 1:
            self._refuse_packet(engine, reader, "PF403", f"not allowed for this principal: {route.key}", None)
            return None
        return route

    # ---------------------------------------------------------------- packets in

    cdef int begin_batch(self, int64_t now) except -1:
        self.now = now
        self.in_batch = True
        return self.dispatcher.begin_batch(now)

    cdef int end_batch(self) except -1:
        self.dispatcher.end_batch()
        return self._flush_dirty()

    cdef int _refuse_packet(self, Engine engine, FrameReader reader, object code, object message,
                            object details) except -1:
        self.failures.count(code)
        self.failures.note_refused(<Member>engine.member, reader, code, message)
        if self.failures.told and not self.in_batch:
            self.arm_at(self.now)
        return engine.refuse(reader, code, message, details)

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
        cdef Py_ssize_t length
        self.now = now
        if member is None:
            return engine.refuse(reader, "PF503", "this link is closing", None)
        if member.asked == Asked.NOT_YET and not member.listed and member.number > 0:
            self.newcomers.ask(self, member)
        principal = member.principal
        ledger = self.outcomes.of(principal)
        tag = ledger.expect(principal.number, reader.id.p, reader.id.n)
        route = self._route_or_refuse(engine, principal, reader)
        if route is None:
            return 0
        fingerprint = pf_fingerprint(reader.payload.p, <size_t>reader.payload.n, hash_key())
        flight = self.flights.find(principal.number, reader.id.p, reader.id.n, &clash)
        if flight is not None:
            if flight.fingerprint != fingerprint:
                return self._refuse_packet(engine, reader, "PF409", "another packet with this id is in flight", None)
            if not principal.owe(now):
                return self._refuse_packet(
                    engine, reader, "PF409", "this packet is under way, and was sent too often", None)
            return self._attach(flight, member, reader.seq)
        outcome = ledger.find(tag, principal.number, reader.id.p, reader.id.n, now)
        if outcome != NULL:
            payload = ledger.payload(outcome, now)
            if outcome.fingerprint != fingerprint or payload == NULL:
                return self._refuse_packet(
                    engine, reader, "PF409", "another packet with this id has ended" if payload != NULL
                    else "this packet has ended, and its result is no longer kept", None)
            if not principal.owe(now):
                return self._refuse_packet(
                    engine, reader, "PF409", "this packet has ended, and was sent too often", None)
            self.duplicates += 1
            return self.write_result(member, reader.seq, payload, outcome.length)
        if self.draining and (self.over or not member.inside):
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
        if reader.fields[<int>F_METADATA].n > METADATA_MAY_GROW and reader.fields[<int>F_METADATA].kind == Kind.OBJECT:
            # it may have to be written anew, and whoever reads that has the same bound: 1e9 becomes 1000000000.0
            length = PyBytes_GET_SIZE(metadata_again(reader))
            if length > MAX_METADATA:
                return self._refuse_packet(
                    engine, reader, "PF400", f"payload.metadata: {length} bytes once its numbers are written out,"
                    f" at most {<int>MAX_METADATA} may be", None)
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
            flight = self.begin(member, route, reader, clash, fingerprint, tag, now)
            return self.dependencies.require(self, flight, reader, self.outcomes.of(principal), now)
        if self._here(route, member):
            return self.local.run(self, member, route, reader, tag, fingerprint, clash, now)
        flight = self.begin(member, route, reader, clash, fingerprint, tag, now)
        return self.place(flight, reader, now)

    cdef bint _here(self, Route route, Member origin) except -1:
        """Is it ours to handle, with nobody to ask before?"""
        return route.local and route.announced == 0 and not (
            route.yields and (len(self.newcomers.unlisted) > 0
                              or self.newcomers.awaits_word(route, origin, self.now)))

    cdef int _attach(self, Flight flight, Member member, int64_t seq) except -1:
        """The same packet again, while it runs: both submits get its one answer."""
        self.duplicates += 1
        if flight.origin is None:
            member.submits(flight, seq)
        elif not flight.attach(member, seq):
            self._write_refusal(member, seq, flight)
        return 0

    cdef int _write_refusal(self, Member member, int64_t seq, Flight flight) except -1:
        cdef bytes packet_id = self.flights.id_of(flight)
        cdef Incoming incoming = incoming_as(
            seq, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id))
        member.engine.respond_error(
            &incoming, "PF409", "this packet is under way, and no more submits of it may wait for its answer", None, 0)

    # ---------------------------------------------------------------- a flight begins

    cdef Flight begin(self, Member origin, Route route, FrameReader reader, bint renamed, uint64_t fingerprint,
                      uint32_t tag, int64_t now):
        cdef Flight flight = self.flights.new()
        cdef unsigned char[ID_LENGTH] text
        cdef const unsigned char* packet_id = reader.id.p
        cdef Py_ssize_t n = reader.id.n
        cdef int64_t timeout = (reader.timeout_ms if reader.timeout_ms > 0 else DEFAULT_TIMEOUT_MS) * MILLISECOND
        cdef bytes own_id = None
        cdef uint64_t key_hash = 0
        cdef bint has_key = routing_key(reader, route, &key_hash)
        cdef int retries = retries_of(reader)
        if renamed:
            # another principal has a packet of the same id: the two must not meet anywhere
            own_id = PyBytes_FromStringAndSize(<const char*>packet_id, n)
            write_id(text)
            packet_id = text
            n = ID_LENGTH
        self.flights.enter(flight, packet_id, n, now + timeout, origin.principal.number, own_id)
        # from here on nothing raises
        flight.state = FlightState.WAITING
        flight.priority = reader.priority
        flight.principal = origin.principal
        flight.account = origin.account
        flight.cost = FLIGHT_BYTES
        flight.account.settle(FLIGHT_BYTES)
        flight.account.flights += 1
        flight.route = route
        flight.accepted = now
        flight.lost = flight.busy = False
        flight.retries = retries
        flight.has_key = has_key
        flight.key_hash = key_hash
        flight.fingerprint = fingerprint
        flight.tag = tag
        origin.submits(flight, reader.seq)
        route.flights += 1
        self.arm_at(flight.deadline)
        return flight

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
            code = error_code(reader)
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
            self.newcomers.hears(self, member)
        if flight.route is self.newcomers.question:
            self._leave_target(flight)
            self.give_back(flight)
            return True
        if not reader.success:
            if code == "PF001":
                if not member.listed:
                    member.note_refusal(flight.route.hash)
                    if flight.route in member.routes:
                        self.directory.leave(member, flight.route, now)
                if flight.held != NULL:
                    self._next(flight, now)
                    return True
            elif flight.retries > 0 and flight.held != NULL and code in _TRY_AGAIN:
                # it never ran there; if there is another, that one may
                if another(flight.route, flight, member, self.newcomers.unlisted) is not None:
                    flight.busy = True
                    self._next(flight, now)
                    return True
        elif member.strikes is not None:
            member.strikes.pop(flight.route.hash, None)
        if not member.listed and code != "PF001" and flight.route not in member.routes:
            self.directory.learn(member, flight.route)
        if flight.lost and code in _REFUSALS:
            member.lets_go(flight)
            self.fail(flight, code, "the next refused it", None, now)
            self.pump(member, now)
            return True
        payload = reader.payload.p
        length = reader.payload.n
        if not reader.canonical or flight.own_id is not None:
            out = self.kept.scratch
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
        member.lets_go(flight)
        # what a reactor says of a packet that it did not refuse is its outcome, whatever the code: it may have run
        self.end(flight, payload, length, reader.success, code if code in _REFUSALS else None, False, now)
        if self.queues.count > 0:
            self.pump(member, now)
        return True

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
        if flight.route is self.newcomers.question:
            self.newcomers.hears(self, member)
            self._leave_target(flight)
            self.give_back(flight)
            return True
        member.lets_go(flight)
        self.fail(flight, code, message, details, engine.now)
        self.pump(member, engine.now)
        return True

    cdef int end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                 bint answered, int64_t now) except -1:
        cdef bytes packet_id
        cdef const unsigned char* p = self.table.id_of(flight.slot)
        cdef Py_ssize_t n = self.table.entries[flight.slot].id_length
        cdef Principal principal = flight.principal
        if flight.own_id is not None:
            p = <const unsigned char*>PyBytes_AS_STRING(flight.own_id)
            n = PyBytes_GET_SIZE(flight.own_id)
        if flight.origin is not None:
            self.write_result(flight.origin, flight.origin_seq, payload, length)
        elif not answered:
            self.late += 1
        if flight.attached is not None:
            for other, seq in flight.attached:
                self.write_result(<Member>other, seq, payload, length)
        flight.route.note(success, now - flight.accepted)
        if success or code not in _NEVER_RAN:
            self.outcomes.of(principal).record(
                flight.tag, principal.number, p, n, flight.fingerprint, success, payload, length, now)
            if self.dependencies.awaited:
                packet_id = PyBytes_FromStringAndSize(<const char*>p, n)
                self.give_back(flight)
                return self.dependencies.ended(principal.number, packet_id, success, self, now)
        return self.give_back(flight)

    cdef int fail(self, Flight flight, object code, object message, object details, int64_t now,
                  FrameReader reader=None) except -1:
        cdef OutputBuffer out = OutputBuffer(limit=1048576)
        cdef bytes packet_id = self.flights.id_of(flight)
        if flight.lost and code in _REFUSALS:
            # said of one that is sent again after a loss it would mean that it never began
            details = {**(details or {}), "code": code}
            message = f"the connection of the reactor that handled it was lost, and then: {message}"
            code = "PF502"
        cdef bytes error = encode_error(code, message, details, 60)
        put_failure_payload(out, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id),
                            error, 0)
        self.failures.count(code)
        if self.failures.listener is not None:
            # without metadata nothing follows the head
            if (reader is None and flight.held != NULL and flight.length > flight.head
                    and self.failures.may_read(flight.length)):
                read, _borrowed = self.kept.read(flight, 1, self.now)
                reader = <FrameReader>read
            self.failures.note_failed(flight, reader, code, message, packet_id)
            if not self.in_batch:
                self.arm_at(self.now)
        return self.end(flight, out.data, out.size, False, code, False, now)

    cdef int write_result(self, Member member, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1:
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
        return self.touch(member, member.submitted)

    cdef int give_back(self, Flight flight) except -1:
        """The flight is over: out of the table, and into the pool."""
        # what it lets go of may be a user's, and letting go of it may run anything: last of all
        cdef object job = flight.job, _attached = flight.attached, _tried = flight.tried, _needs = flight.needs
        cdef Route route = flight.route
        self.flights.leave(flight)
        route.flights -= 1
        if flight.origin is not None:
            flight.origin.has_ended(flight)
        self._leave_target(flight)
        self.kept.let_go(flight)
        flight.account.settle(-flight.cost)
        flight.account.flights -= 1
        flight.account = None
        flight.cost = 0
        flight.state = FlightState.FREE
        flight.engine = None
        if job is not None:
            (<Job>job).flight = None
            flight.job = None
        if flight.attached is not None:
            pay_back(flight.attached)
        flight.attached = None
        flight.tried = None
        flight.needs = None
        flight.route = None
        flight.principal = None
        self.flights.give_back(flight)
        if route.flights == 0 and route.announced == 0 and not route.local:
            self.directory.rest(route)
        if self.idle is not None and self.table.count == self.newcomers.question.flights and not self.idle.done():
            self.idle.set_result(None)
        return 0

    # ---------------------------------------------------------------- handled here

    cdef int answered(self, Engine engine, Incoming* incoming, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1:
        return self.local.answered(self, engine, incoming, code, payload, length)

    cdef int drop(self, Engine engine, object job, int why) except -1:
        return self.local.drop(self, engine, job, why)

    cdef int settled(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint success,
                     int64_t now) except -1:
        if self.dependencies.awaited:
            self.dependencies.ended(number, PyBytes_FromStringAndSize(<const char*>packet_id, n), success, self, now)
        return 0

    cdef int forget(self, Flight flight) except -1:
        cdef bytes packet_id = self.flights.id_of(flight)
        cdef int32_t number = flight.principal.number
        self.dependencies.stop(flight, self)
        self.queues.leave(flight)
        self._leave_target(flight)
        flight.route.failed += 1
        self.give_back(flight)
        if self.dependencies.awaited:
            self.dependencies.ended(number, packet_id, False, self, self.now)
        return 0

    cdef int cancel(self, Engine engine, const unsigned char* packet_id, Py_ssize_t n) except -1:
        """The submitter takes a packet back."""
        cdef Member member = <Member>engine.member
        cdef bint clash
        cdef Flight flight
        if member is None:
            return 0
        flight = self.flights.find(member.principal.number, packet_id, n, &clash)
        if flight is None:
            return 0
        self.now = engine.now
        flight.detach(member)
        if flight.origin is not member:
            return 0
        if flight.others_wait():
            member.has_ended(flight)
            flight.pass_on()
            return self.paid_by(flight, flight.origin.account)
        return self.take_back(flight, "PF499")

    cdef int paid_by(self, Flight flight, Account account) except -1:
        if flight.job is not None:
            self.dispatcher.charge_to(flight.job, account, True)
        return self.queues.paid_by(flight, account)

    cdef int take_back(self, Flight flight, object code) except -1:
        if flight.has_begun():
            self.outcomes.withdrawn(flight, self.flights.id_of(flight), code, self.now)
        if flight.state == FlightState.LOCAL:
            return self.local.withdraw(self, flight)
        if flight.state == FlightState.SENT:
            self.withdraw(flight)
        return self.forget(flight)

    cdef int resumed(self, Engine engine, int64_t now) except -1:
        cdef Member member = <Member>engine.member
        self.now = now
        if member is not None and self.queues.count > 0:
            self.pump(member, now)
        return 0

    cdef int freed(self, Engine engine) except -1:
        return self.offer(<Member>engine.member)

    cdef int launch(self, Flight flight, FrameReader reader, int64_t now) except -1:
        if self._here(flight.route, flight.origin):
            if reader is not None and not self.hold(flight, reader):
                return 0
            return self.dependencies.begin_here(self, flight, now)
        return self.place(flight, reader, now)

    cdef int launch_again(self, Flight flight, int64_t now) except -1:
        cdef int64_t seq = flight.seq
        try:
            return self.launch(flight, None, now)
        except Exception as error:
            return self._broken(flight, seq, error)

    cdef int place_again(self, Flight flight, int64_t now) except -1:
        cdef int64_t seq = flight.seq
        cdef int64_t began = 0
        if flight.length >= LARGE_AGAIN:
            if self.dependencies.put_off(self, flight, now):
                return 0
            began = pf_monotonic_ns()
        try:
            return self.place(flight, None, now)
        except Exception as error:
            return self._broken(flight, seq, error)
        finally:
            if began != 0:
                self.dependencies.took(self, pf_monotonic_ns() - began)

    cdef int run_here(self, Flight flight, int64_t now) except -1:
        cdef int64_t seq = flight.seq
        if flight.principal.role == NOBODY_ROLE:
            return self.forget(flight)
        try:
            return self.local.run_held(self, flight, now)
        except Exception as error:
            return self._broken(flight, seq, error)

    cdef int _broken(self, Flight flight, int64_t seq, object error) except -1:
        """What must not happen did, to one packet: it ends, and whoever's doing set it off goes on."""
        if flight.seq != seq or flight.slot < 0 or (flight.state == FlightState.LOCAL and flight.job is not None):
            return 0  # it has ended, or goes on with its handler
        self.dependencies.stop(flight, self)
        self.queues.leave(flight)
        self._leave_target(flight)
        flight.state = FlightState.WAITING
        return self.fail(flight, "PF500", f"the gateway could not move this packet on: {type(error).__name__}", None,
                         self.now)

    # ---------------------------------------------------------------- time

    def advance(self, int64_t now):
        """Deadlines. Call at the time that `arm` was called with."""
        cdef int32_t slot
        cdef int count = 0
        cdef Flight flight
        self.now = now
        self.in_batch = True
        self.armed = -1
        self.dependencies.begin_turn()
        self.dispatcher.begin_batch(now)
        try:
            slot = self.table.due(now)
            # so many at a time: a hundred thousand that end at once must not keep the loop
            while slot >= 0 and count < AT_ONCE:
                count += 1
                flight = <Flight>self.table.entries[slot].waiter
                if flight.state == FlightState.LOCAL:
                    self.local.expire(self, flight)
                else:
                    self._expire(flight, now)
                slot = self.table.due(now)
            if self.dependencies.ready:
                self.dependencies.go_on(self, now)
            if self.newcomers.unasked or self.newcomers.asked or self.newcomers.curious.live() > 0:
                self.newcomers.look_after(self)
            if self.queues.behind:
                self._catch_up(now)
            if self.membership.leaving or self.membership.forgotten:
                self.membership.lose_some(self)
        finally:
            self.dependencies.sweep(self)
            self.dispatcher.end_batch()
            self._flush_dirty()
            if self.table.count > 0:
                self.arm_at(self.table.next_due())

    cdef int _expire(self, Flight flight, int64_t now) except -1:
        cdef Member target = flight.target
        cdef Route route = flight.route
        if flight.state == FlightState.WAITING:
            if flight.needs is None:
                return self.fail(flight, "PF408", f"the deadline passed before its turn came ({route.key})", None, now)
            self.dependencies.stop(flight, self)
            return self.fail(flight, "PF424", "what this packet depends on did not end before the deadline", None, now)
        if flight.state == FlightState.QUEUED:
            self.queues.leave(flight)
            self.fail(flight, "PF408", f"the deadline passed while the packet waited for a reactor with room"
                       f" ({route.key})", None, now)
            return 0
        if flight.route is self.newcomers.question:
            # that it is silent was noted long ago; meanwhile it may have been asked again
            self._leave_target(flight)
            self.give_back(flight)
            return 0
        self.withdraw(flight)
        if target is not None and not target.listed:
            if target.strikes is None:
                target.strikes = {}
            strikes = target.strikes.get(route.hash, 0) + 1
            if len(target.strikes) < REFUSALS:
                target.strikes[route.hash] = strikes
            if strikes >= STRIKES:
                target.note_refusal(route.hash)
        self._leave_target(flight)
        return self.fail(flight, "PF408", f"no answer came before the deadline ({route.key})", None, now)
