"""Packets that the gateway handles itself. See ``local.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.link.engine cimport DropReason, Engine
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
from pfcore.wire.codes import NEVER_RAN

__all__ = ["Local"]

cdef frozenset _NEVER_RAN = NEVER_RAN


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
        cdef Incoming incoming
        incoming.packet_id = reader.id.p
        incoming.fingerprint = fingerprint
        incoming.accepted = now
        incoming.tag = tag
        incoming.was_answered = False
        engine.noting = True
        self.incoming = &incoming
        self.accepting = engine
        self.route = route
        try:
            if route.group != reader.group or PyBytes_GET_SIZE(route.element) != reader.element.n:
                # a two-letter code: the dispatcher looks for the whole name
                reader.element.p = <const unsigned char*>PyBytes_AS_STRING(route.element)
                reader.element.n = PyBytes_GET_SIZE(route.element)
            job = self.dispatcher.take(engine, reader, origin, now)
        finally:
            engine.noting = False
            self.incoming = NULL
            self.accepting = None
            self.route = None
            if not incoming.was_answered and job is not None and not origin.gone:
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
        return 0

    cdef int run_held(self, Way way, Flight flight, int64_t now) except -1:
        cdef Member origin = flight.origin if flight.origin is not None and not flight.origin.gone else None
        cdef Engine engine = origin.engine if origin is not None else self.inner
        cdef int64_t seq = flight.seq
        cdef FrameReader reader
        cdef bytes packet_id = self.flights.id_of(flight)
        cdef Flight before = self.running
        cdef Job job = None
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
        engine.noting = True
        self.running = flight
        try:
            # one that has lost its link is still authorised as whose it is, not as the gateway's
            job = self.dispatcher.take(engine, reader, origin if origin is not None else flight.principal, now)
        finally:
            engine.noting = False
            self.running = before
            if flight.seq == seq and flight.state == FlightState.LOCAL and flight.job is None:
                if job is not None:
                    self._keep(flight, engine, job)
                else:
                    # neither kept nor answered: its link takes no answers any more
                    way.forget(flight)
        return 0

    cdef int answered(self, Way way, Engine engine, const unsigned char* packet_id, Py_ssize_t n, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1:
        cdef Member member = <Member>engine.member
        cdef Principal principal
        cdef Flight flight = None
        cdef bint success = code is None
        cdef bytes own
        cdef const unsigned char* p
        cdef int64_t now = engine.now
        if member is None:
            return 0
        principal = member.principal
        if engine.finishing is not None:
            flight = <Flight>(<Job>engine.finishing).flight
        elif self.incoming != NULL and self.accepting is engine and packet_id == self.incoming.packet_id:
            self.incoming.was_answered = True
            self.route.note(success, now - self.incoming.accepted)
            if success or engine.ran or code not in _NEVER_RAN:
                self.outcomes.of(principal).record(
                    self.incoming.tag, principal.number, packet_id, n, self.incoming.fingerprint, success, payload,
                    length, now)
                way.settled(principal.number, packet_id, n, success, now)
            else:
                self.failures.count(code)
            return 0
        elif self.running is not None and self.running.engine is engine:
            flight = self.running
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return 0
        # the engine itself has written the answer to its own peer
        own = PyBytes_FromStringAndSize(<const char*>payload, length)
        p = <const unsigned char*>PyBytes_AS_STRING(own)
        if flight.origin is not None and flight.origin.engine is not engine:
            way.write_result(flight.origin, flight.origin_seq, p, length)
        if flight.origin is not None:
            flight.origin.has_ended(flight)
        if engine.ran and code in _NEVER_RAN:
            code = "PF500"  # it is remembered: it ran
        return way.end(flight, p, length, success, code, True, now)

    cdef int drop(self, Way way, Engine engine, object job, int why) except -1:
        cdef Flight flight = <Flight>(<Job>job).flight
        cdef bytes packet_id
        cdef int64_t number
        if flight is None or flight.state != FlightState.LOCAL or flight.engine is not engine:
            return self.dispatcher.drop(engine, job, why)
        if why != DropReason.EXPIRED and self.inner is not None and self.inner is not engine and (
                (why == DropReason.DISCONNECTED and flight.retries > 0) or way.attached(flight)):
            # it goes on: someone else waits for it, or its submitter comes back for the answer
            packet_id = self.flights.id_of(flight)
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
            way.forget(flight)
        return self.dispatcher.drop(engine, job, why)

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
