"""Packets that the gateway handles itself. See ``local.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.link.engine cimport DropReason, Engine, Incoming, incoming_of
from pfcore.memory.budget cimport Account
from pfcore.route.failures cimport Failures
from pfcore.route.flights cimport Flight, FlightState, Member, Principal, Route
from pfcore.route.held cimport Held
from pfcore.route.outcomes cimport Outcomes
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport FrameReader
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.worker cimport Job

from pfcore.link.pending import PendingFull
from pfcore.wire.codes import NEVER_RAN, REFUSALS

__all__ = ["Local"]

cdef frozenset _NEVER_RAN = NEVER_RAN
cdef frozenset _REFUSALS = REFUSALS


cdef inline Arrival arrival_of(FrameReader reader, int64_t now) noexcept:
    cdef Arrival arrival
    arrival.incoming = incoming_of(reader)
    arrival.incoming.noted = True
    arrival.flight = NULL
    arrival.route = NULL
    arrival.fingerprint = 0
    arrival.accepted = now
    arrival.tag = 0
    arrival.was_answered = False
    return arrival


@cython.final
cdef class Local:
    """Between one switch and its dispatcher."""

    def __init__(self, Dispatcher dispatcher not None, FlightTable flights not None, Held held not None,
                 Failures failures not None, Outcomes outcomes not None):
        self.dispatcher = dispatcher
        self.flights = flights
        self.held = held
        self.failures = failures
        self.outcomes = outcomes

    cdef int run(self, Way way, Member origin, Route route, FrameReader reader, uint32_t tag, uint64_t fingerprint,
                 bint clash, int64_t now) except -1:
        """Most handlers answer before the dispatcher returns: then there is no flight at all."""
        cdef Engine engine = origin.engine
        cdef Flight flight
        cdef Job job = None
        cdef Arrival arrival
        if route.group != reader.group or PyBytes_GET_SIZE(route.element) != reader.element.n:
            # a two-letter code: a handler is told the whole name
            reader.element.p = <const unsigned char*>PyBytes_AS_STRING(route.element)
            reader.element.n = PyBytes_GET_SIZE(route.element)
        arrival = arrival_of(reader, now)
        arrival.route = <PyObject*>route
        arrival.fingerprint = fingerprint
        arrival.tag = tag
        try:
            job = self.dispatcher.take(engine, reader, &arrival.incoming, route.handler, origin, now)
        finally:
            if not arrival.was_answered and job is not None and not origin.gone:
                # it is kept by the engine, and goes on: from now on the same id must find it
                try:
                    flight = way.begin(origin, route, reader, clash, fingerprint, tag, now)
                    self._keep(flight, engine, job)
                except PendingFull:
                    pass  # the handler has submitted a whole table full meanwhile; its packet ends as any other
        return 0

    cdef int _keep(self, Flight flight, Engine engine, Job job) except -1:
        """The engine keeps the job and sees to its deadline; the flight is how others find it."""
        flight.state = FlightState.LOCAL
        flight.engine = engine
        flight.job = job
        job.flight = flight
        job.packet_id = flight.own_id if engine is self.inner else None
        return 0

    cdef int run_held(self, Way way, Flight flight, int64_t now) except -1:
        cdef Member origin = flight.origin if flight.origin is not None and not flight.origin.gone else None
        # what was lost once must not be refused as if it had never begun: the engine of its own peer would say that
        cdef Engine engine = origin.engine if origin is not None and not flight.lost else self.inner
        cdef int64_t seq = flight.seq
        cdef FrameReader reader
        # on the gateway's own side packets of all principals meet: there it has the id that nobody else has
        cdef bytes packet_id = self.flights.wire_id_of(flight) if engine is self.inner else self.flights.id_of(flight)
        cdef bytes own_id = flight.own_id
        cdef Job job = None
        cdef Arrival arrival
        if engine is None:
            return way.fail(flight, "PF503", "shutting down", None, now)
        read, _borrowed = self.held.read(flight, flight.origin_seq, way.now)
        reader = <FrameReader>read
        # nobody but us sees this one: its own id will do
        reader.id.p = <const unsigned char*>PyBytes_AS_STRING(packet_id)
        reader.id.n = PyBytes_GET_SIZE(packet_id)
        flight.state = FlightState.LOCAL
        flight.engine = engine
        if not way.in_batch:
            self.dispatcher.slice_ends = 0  # perhaps inside a handler's task: queue it
        # answered at once, it ends in `answered` like one that takes its time
        arrival = arrival_of(reader, now)
        arrival.flight = <PyObject*>flight
        if own_id is not None:
            arrival.incoming.packet_id = <const unsigned char*>PyBytes_AS_STRING(own_id)
            arrival.incoming.n = PyBytes_GET_SIZE(own_id)
        if engine is self.inner:
            engine.account = flight.account  # whoever keeps it, it is he who pays
        try:
            # one that has lost its link is still authorised as whose it is, not as the gateway's
            job = self.dispatcher.take(
                engine, reader, &arrival.incoming, flight.route.handler,
                origin if origin is not None else flight.principal, now)
        finally:
            if engine is self.inner:
                engine.account = None
            if flight.seq == seq and flight.state == FlightState.LOCAL and flight.job is None:
                if job is not None:
                    self._keep(flight, engine, job)
                else:
                    # neither kept nor answered: its link takes no answers any more
                    way.forget(flight)
        return 0

    cdef int answered(self, Way way, Engine engine, Incoming* incoming, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1:
        cdef Member member = <Member>engine.member
        cdef Flight flight
        cdef bint success = code is None
        cdef bytes own
        cdef const unsigned char* p
        cdef int64_t now = engine.now
        if member is None:
            return 0
        if incoming.job != NULL:
            flight = (<Job><object>incoming.job).flight
        elif (<Arrival*>incoming).flight == NULL:
            return self._answered_at_once(way, member.principal, <Arrival*>incoming, code, payload, length, now)
        else:
            flight = <Flight><object>(<Arrival*>incoming).flight
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return 0
        way.now = now
        if flight.lost and not incoming.ran and code in _REFUSALS:
            return way.fail(flight, code, "it was not begun again", None, now)
        # the engine itself has written the answer to its own peer
        own = PyBytes_FromStringAndSize(<const char*>payload, length)
        p = <const unsigned char*>PyBytes_AS_STRING(own)
        if flight.origin is not None and flight.origin.engine is not engine:
            way.write_result(flight.origin, flight.origin_seq, p, length)
        if flight.origin is not None:
            flight.origin.has_ended(flight)
        if incoming.ran and code in _NEVER_RAN:
            code = "PF500"  # it is remembered: it ran
        return way.end(flight, p, length, success, code, True, now)

    cdef int _answered_at_once(self, Way way, Principal principal, Arrival* arrival, object code,
                               const unsigned char* payload, Py_ssize_t length, int64_t now) except -1:
        """It never had a flight; from now on the same id finds its outcome."""
        cdef Incoming* incoming = &arrival.incoming
        cdef bint success = code is None
        arrival.was_answered = True
        (<Route><object>arrival.route).note(success, now - arrival.accepted)
        if success or incoming.ran or code not in _NEVER_RAN:
            self.outcomes.of(principal).record(
                arrival.tag, principal.number, incoming.packet_id, incoming.n, arrival.fingerprint, success, payload,
                length, now)
            way.settled(principal.number, incoming.packet_id, incoming.n, success, now)
        else:
            self.failures.count(code)
        return 0

    cdef int drop(self, Way way, Engine engine, object job, int why) except -1:
        cdef Flight flight = <Flight>(<Job>job).flight
        cdef Account heir = None
        cdef bint others
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return self.dispatcher.drop(engine, job, why)
        if why != DropReason.EXPIRED and engine.member is not None:
            flight.detach(<Member>engine.member)
        if why != DropReason.EXPIRED and self.inner is not None and self.inner is not engine:
            others = flight.others_wait()
            if others:
                heir = (<Member>flight.attached[0][0]).account
            elif why == DropReason.DISCONNECTED and flight.retries > 0:
                heir = flight.heir()
            if (heir is not None and self.dispatcher.charge_to(<Job>job, heir, others)
                    and self._goes_on(flight, <Job>job)):
                if flight.origin is not None:
                    flight.origin.has_ended(flight)
                flight.pass_on()
                return way.paid_by(flight, heir)
        if why != DropReason.EXPIRED:
            if flight.has_begun():
                self.outcomes.withdrawn(flight, self.flights.id_of(flight),
                                        "PF499" if why == DropReason.CANCELLED_BY_PEER else "PF502", way.now)
            way.forget(flight)
        return self.dispatcher.drop(engine, job, why)

    cdef bint _goes_on(self, Flight flight, Job job) except -1:
        """Without the link that it came by: someone else waits for it, or its submitter comes back for the answer."""
        cdef bytes packet_id = self.flights.wire_id_of(flight)
        cdef int64_t number = self.inner.keep(
            job, <const unsigned char*>PyBytes_AS_STRING(packet_id), PyBytes_GET_SIZE(packet_id), flight.deadline)
        if number == 0:
            return False
        job.engine = flight.engine = self.inner
        job.packet_id = flight.own_id
        job.number = number
        if job.caller is not None:
            job.caller = flight.principal  # its link is no more
        return True

    cdef int withdraw(self, Way way, Flight flight) except -1:
        cdef Engine engine = flight.engine
        cdef Job job = flight.job
        cdef int32_t slot = engine.inbound.find_seq(job.number) if engine is not None and job is not None else -1
        way.forget(flight)
        if slot >= 0:
            engine.inbound.take_slot(slot)
            self.dispatcher.drop(engine, job, DropReason.CANCELLED_BY_PEER)
        return 0

    cdef int expire(self, Way way, Flight flight) except -1:
        """The engine that keeps the job has answered, or does so this moment."""
        cdef Engine engine = flight.engine
        cdef Job job = flight.job
        cdef int32_t slot
        if engine is not None and job is not None:
            slot = engine.inbound.find_seq(job.number)
            if slot >= 0:
                engine.now = way.now
                engine._expire_inbound(slot)
                engine.note_output()
        if flight.state == FlightState.LOCAL:
            way.fail(flight, "PF408", "the deadline passed before the handler finished", None, way.now)
            if job is not None:
                self.dispatcher.drop(engine, job, DropReason.EXPIRED)
        return 0
