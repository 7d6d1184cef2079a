"""A packet finds its reactor. See ``placing.pxd``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.memory.buffers cimport OP_TEXT, OutputBuffer
from pfcore.memory.queue cimport Queue
from pfcore.route.choose cimport all_refused, another, choose
from pfcore.route.flights cimport NOBODY_ROLE, Flight, FlightState, Member, Route
from pfcore.route.newcomers cimport WAIT_FOR_ASKED
from pfcore.route.queues cimport Queues
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport FrameReader, Text
from pfcore.wire.terms cimport GROUP_ED, W_PAYLOAD, W_SUBMIT, W_TIMEOUT
from pfcore.wire.writer cimport metadata_again, put_packet_extra, put_packet_head

__all__ = ["Placing"]

cdef enum:
    CAUGHT_UP = 16               # reactors with many elements that are looked through in one go

# ns after the start in which reactors may still be on their way: what is safe to send again waits for them
cdef int64_t STARTING = 10000000000
cdef int64_t SEEN_LATELY = 60000000000   # ns for which an element without a reactor is PF503, not PF001


cdef class Placing(Way):
    """Gives flights to reactors that have room, and has the rest wait."""

    cdef bint starting(self, int64_t now) noexcept:
        return now - self.started < STARTING

    # ---------------------------------------------------------------- to whom

    cdef bint hold(self, Flight flight, FrameReader reader) except -1:
        """Keeps the payload, for a reactor that has yet to be found. False, and it has failed: there is no room."""
        cdef Py_ssize_t missing = self.kept.keep(flight, reader)
        if missing > 0:
            self.fail(flight, "PF429", flight.account.refusal(missing), {"retry_after_ms": RETRY_AFTER_MS}, self.now)
        return missing == 0

    cdef int place(self, Flight flight, FrameReader reader, int64_t now) except -1:
        """Finds the flight its reactor. `reader`: the packet, where it is not held yet."""
        cdef bint some
        cdef Route route = flight.route, other
        cdef Member target = choose(route, flight, flight.origin, self.newcomers.unlisted, &self.chance, &some)
        if target is not None:
            if target.room(route.group == GROUP_ED):
                return self.send(flight, target, reader, now)
            # only this one may have it: it waits for this one
            if target.queue is None:
                target.queue = Queue()
            return self.enqueue(flight, target.queue, reader, now)
        if some and flight.tried is not None:
            # one that had room has refused it: at the head of the queue of all it would keep that one from the others
            target = another(route, flight, None, self.newcomers.unlisted)
            if target is not None:
                if target.queue is None:
                    target.queue = Queue()
                return self.enqueue(flight, target.queue, reader, now)
        if some:
            return self.enqueue(flight, route.queue, reader, now)
        if (route.announced == 0 and (not route.local or route.yields) and now - flight.accepted < WAIT_FOR_ASKED
                and self.newcomers.awaits_word(route, flight.origin, self.now)):
            return self.enqueue(flight, self.newcomers.curious, reader, now)
        if route.local:
            if reader is not None and not self.hold(flight, reader):
                return 0
            return self.dependencies.begin_here(self, flight, now)
        if route.alias is not None:
            other = self._alias_of(route)
            if other is not None and other.may_submit >> flight.principal.role & 1:
                route.flights -= 1
                other.flights += 1
                flight.route = other
                flight.tried = None
                if flight.held != NULL:
                    self.kept.rename(flight, self.now)
                return self.place(flight, reader, now)
        if flight.tried is not None and flight.busy and flight.retries > 0:
            flight.retries -= 1  # who had no room then may have some now
            flight.tried, flight.busy = None, False
            return self.place(flight, reader, now)
        if flight.tried is not None and all_refused(route, flight):
            return self.fail(flight, "PF001", f"no handler for {route.key}: all of them refused it", None, now, reader)
        if flight.retries > 0 and (self.starting(now) or (
                route.last_served > 0 and now - route.last_served < SEEN_LATELY)):
            # it was there a moment ago, or will be: a restart, perhaps; who refused it announces nothing, or is gone
            flight.tried = None
            return self.enqueue(flight, route.queue, reader, now)
        if route.last_served > 0 and now - route.last_served < SEEN_LATELY:
            return self.fail(flight, "PF503", f"no reactor for {route.key} is connected just now",
                              {"retry_after_ms": 1000}, now, reader)
        return self.fail(flight, "PF001", f"no handler for {route.key}", None, now, reader)

    cdef Route _alias_of(self, Route route):
        """The route that a two-letter code means, or None where nobody can have it."""
        cdef Route other = <Route>self.directory.routes.by_key.get(route.alias)
        cdef bint some = self.newcomers.some()
        if other is None and some:
            group, _, element = route.alias.partition(":")
            other = self.directory.make(group, element)
        return other if other is not None and (some or self.directory.served(other)) else None

    cdef int send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1:
        cdef OutputBuffer out = target.engine.out
        cdef Text element, wire
        cdef bytes metadata = None
        cdef bint as_it_is
        if flight.principal.role == NOBODY_ROLE:
            return self.forget(flight)  # it waited, and whose it was is no more
        # kept where another may have to be asked: after PF001, or a loss
        if reader is not None and flight.held == NULL and (flight.retries > 0 or not target.listed):
            if not self.hold(flight, reader):
                return 0
        as_it_is = reader is not None and reader.canonical and flight.own_id is None and PyBytes_GET_SIZE(
            flight.route.element) == reader.element.n  # else it was a two-letter code
        if reader is not None and not as_it_is:
            metadata = metadata_again(reader)
        try:
            out.begin_message()
            out.put_literal(W_SUBMIT)
            out.put_int(flight.seq)
            out.put_literal(W_PAYLOAD)
            if reader is None:
                self.kept.put(flight, out, self.now)
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
        return self.touch(target, target.outstanding)

    cdef int enqueue(self, Flight flight, Queue queue, FrameReader reader, int64_t now) except -1:
        cdef Queues queues = self.queues
        if not queues.room(flight, queue):
            return self.fail(
                flight, "PF429", f"max_waiting: {queue.live()} packets wait for {flight.route.key} already,"
                f" {flight.account.queued} in all for {flight.account.name}, at most {queues.most} may",
                {"retry_after_ms": RETRY_AFTER_MS}, now)
        if reader is not None and not self.hold(flight, reader):
            return 0
        return queues.enter(flight, queue)

    cdef int withdraw(self, Flight flight) except -1:
        """Tells the reactor that has it, where it understands."""
        cdef Member target = flight.target
        if target is not None and not target.gone and target.engine.peer_cancels:
            target.engine.withdraw(flight.seq, self.flights.wire_id_of(flight))
            self.touch(target, target.outstanding)
        return 0

    cdef int _leave_target(self, Flight flight) except -1:
        """Who has it has it no more, and is offered something else instead."""
        cdef Member target = flight.target
        if target is not None:
            target.lets_go(flight)
            self.offer(target)
        return 0

    cdef int _next(self, Flight flight, int64_t now) except -1:
        """Its reactor will not have it: the next one."""
        cdef Member refusing = flight.target
        if flight.tried is None:
            flight.tried = []
        flight.tried.append(refusing)
        refusing.lets_go(flight)
        self.place_again(flight, now)
        return self.pump(refusing, now)

    # ---------------------------------------------------------------- room

    cdef int offer(self, Member member) except -1:
        if self.queues.offer(member):
            self.arm_at(self.now)
        return 0

    cdef int pump(self, Member member, int64_t now) except -1:
        """Gives a reactor that has room what waits for it, the most urgent first."""
        member.unseen = len(self.queues.routes_of(member))
        return self._give_work(member, now)

    cdef int _give_work(self, Member member, int64_t now) except -1:
        cdef Queues queues = self.queues
        cdef Flight head
        while queues.count > 0 and member.room(True) and not member.draining and not member.gone:
            head = queues.most_urgent(member, not member.room(False))
            if head is None:
                break
            queues.take(head, member)
            if member.listed and head.route not in member.routes:
                self.place_again(head, now)  # it was to be this one's alone, which may have it no longer
            else:
                self.send(head, member, None, now)
        if member.unseen > 0 and queues.count > 0 and member.room(True) and not member.draining and not member.gone:
            # it has been through a part of its routes only: the rest when the loop has had a turn
            queues.behind[member] = None
            self.arm_at(now)
        return 0

    cdef int _catch_up(self, int64_t now) except -1:
        """Reactors with many elements that have not all been looked through; so many each time."""
        cdef Member member
        for member in list(self.queues.behind)[:CAUGHT_UP]:
            self.queues.behind.pop(member, None)
            self._give_work(member, now)
        if self.queues.behind:
            self.arm_at(now)
        return 0

    # ---------------------------------------------------------------- when it leaves

    cdef int touch(self, Member member, int64_t in_flight) except -1:
        """A member has output: sees to it that it leaves, soon or at once."""
        cdef Engine engine = member.engine
        if engine.in_batch:
            return 0
        if not self.in_batch:
            return engine.note_output()
        if not member.dirty:
            member.dirty = True
            self.dirty.append(member)
        # while they work on this, we go on
        if engine.flush_now is not None and engine.worth_writing(in_flight):
            self._write_now(engine)
        return 0

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
        if self.failures.told:
            self.failures.tell()
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

    cdef int arm_at(self, int64_t deadline) except -1:
        if self.armed < 0 or deadline < self.armed:
            return self._arm(deadline)
        return 0

    cdef int _arm(self, int64_t deadline) except -1:
        self.armed = deadline
        if self.arm is not None:
            self.arm(deadline)
        return 0
