"""Who waits for whom. See ``dependencies.pxd``."""

from collections import OrderedDict, deque

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t

from pfcore.memory.clock cimport monotonic_ns as pf_monotonic_ns
from pfcore.route.flights cimport Flight, FlightState
from pfcore.route.ledger cimport Ledger, Outcome
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport F_DEPENDENCIES, FrameReader, decode_span

__all__ = ["Dependencies"]

cdef enum:
    NEED_BYTES = 256             # what each dependency takes that is waited for
    MAX_WALK = 256               # packets looked at for a cycle
    RETRY_AFTER_MS = 100
    SWEEP = 4096                 # entries of lists that are taken off before the loop has another turn: some 1 ms
    AT_ONCE = 256                # flights that start before the loop has another turn
    SLICE = 1000000              # ns that they may take, one at least: what was held is read again, and may be large


@cython.final
cdef class Dependencies:
    """Those between the flights of one table."""

    def __init__(self, FlightTable flights not None):
        self.flights = flights
        self.awaited = {}
        self.ready = OrderedDict()
        self.unwanted = deque()
        self.released = deque()

    cdef int require(self, Way way, Flight flight, FrameReader reader, Ledger ledger, int64_t now) except -1:
        cdef Outcome* outcome
        cdef bytes needed
        cdef int32_t number = flight.principal.number
        cdef set needs = set()
        cdef const unsigned char* p
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
                return _has_failed(way, flight, text, now)
        if not needs:
            return way.launch(flight, reader, now)
        cycle = self._in_cycle(number, self.flights.id_of(flight), needs)
        if cycle > 0:
            return way.fail(flight, "PF424", "the dependencies form a cycle", None, now)
        if cycle < 0:
            return way.fail(flight, "PF400", f"dependencies: more than {MAX_WALK} packets that have not ended stand"
                            " behind them, too many to look for a cycle", None, now)
        cost = NEED_BYTES * len(needs)
        if not flight.account.take(cost):
            return way.fail(flight, "PF429", flight.account.refusal(cost), {"retry_after_ms": RETRY_AFTER_MS}, now)
        flight.cost += cost
        if not way.hold(flight, reader):
            return 0
        flight.needs = needs
        flight.state = FlightState.WAITING
        for needed in needs:
            self.awaited.setdefault((number, needed), {})[flight] = None
        return 0

    cdef int _in_cycle(self, int32_t number, bytes packet_id, set needs) except? -2:
        cdef set seen = set()
        cdef list todo
        cdef bytes needed
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
            flight = self.flights.find(number, <const unsigned char*>PyBytes_AS_STRING(needed),
                                       PyBytes_GET_SIZE(needed), &clash)
            if flight is not None and flight.needs:
                todo.extend(flight.needs)
        return 0

    cdef int ended(self, int32_t number, bytes packet_id, bint success, Way way, int64_t now) except -1:
        waiting = self.awaited.pop((number, packet_id), None)
        if waiting is None:
            return 0
        self.walked += len(waiting)
        self.released.append((number, packet_id, success, iter(waiting)))
        self._walk(way)
        return self.go_on(way, now)

    cdef int _walk(self, Way way) except -1:
        """Looks at those that waited for what has ended, so many in an iteration of the loop."""
        cdef Flight flight
        cdef bytes packet_id
        while self.released and self.swept < SWEEP:
            number, packet_id, success, waiting = self.released[0]
            for flight in waiting:
                self.swept += 1
                # by now it may have ended, and be another packet: who waits for this one, too, may be somebody else
                if (flight.state == FlightState.WAITING and flight.needs is not None and packet_id in flight.needs
                        and flight.principal.number == number):
                    flight.needs.discard(packet_id)
                    if not success:
                        self.stop(flight, way)
                        self._note_ready(flight, packet_id)
                    elif not flight.needs:
                        flight.needs = None
                        self._note_ready(flight, None)
                if self.swept >= SWEEP:
                    break
            else:
                self.released.popleft()
        if self.released:
            way.arm_at(way.now)
        return 0

    cdef int _note_ready(self, Flight flight, bytes failed) except -1:
        turn = self.ready.get(flight.account)
        if turn is None:
            turn = self.ready[flight.account] = deque()
        turn.append((flight, flight.seq, failed))
        return 0

    cdef bint _may_begin(self) noexcept:
        return self.begun == 0 or (self.begun < AT_ONCE and self.spent < SLICE)

    cdef int begin_here(self, Way way, Flight flight, int64_t now) except -1:
        cdef int64_t began
        if self.starting:
            return way.run_here(flight, now)  # it is its turn
        if self.put_off(way, flight, now):
            return 0
        began = pf_monotonic_ns()
        self.starting = True
        try:
            way.run_here(flight, now)
        finally:
            self.starting = False
            self.took(way, pf_monotonic_ns() - began)
        return 0

    cdef bint put_off(self, Way way, Flight flight, int64_t now) except -1:
        if self.starting or (not self.ready and self._may_begin()):
            return False
        flight.state = FlightState.WAITING
        self._note_ready(flight, None)
        way.arm_at(now)
        return True

    cdef int took(self, Way way, int64_t spent) except -1:
        self.begun += 1
        self.spent += spent
        return way.arm_at(way.now)  # the next turn's begin there, and the count

    cdef int go_on(self, Way way, int64_t now) except -1:
        """A loop, not a recursion: a chain of dependencies may be long. The accounts take turns, a packet each."""
        cdef Flight flight
        cdef int64_t began
        if self.starting:
            return 0
        self.starting = True
        try:
            while self.ready and self._may_begin():
                began = pf_monotonic_ns()
                self.begun += 1
                account = next(iter(self.ready))
                turn = self.ready[account]
                flight, seq, failed = turn.popleft()
                if turn:
                    self.ready.move_to_end(account)
                else:
                    del self.ready[account]
                if flight.seq != seq or flight.state != FlightState.WAITING:
                    continue
                if failed is None:
                    way.launch_again(flight, now)
                else:
                    _has_failed(way, flight, failed.decode("utf-8", "replace"), now)
                self.spent += pf_monotonic_ns() - began
        finally:
            self.starting = False
            if self.ready:
                way.arm_at(now)  # the rest when the loop has had a turn
        return 0

    cdef int stop(self, Flight flight, Way way) except -1:
        cdef set needs = flight.needs
        flight.needs = None
        if needs is None:
            return 0
        while needs and self.swept < SWEEP:
            self._take_off(flight.principal.number, <bytes>needs.pop(), flight)
        if needs:
            self.unwanted.append((flight.principal.number, needs, flight))
            way.arm_at(way.now)
        return 0

    cdef int _take_off(self, int32_t number, bytes needed, Flight flight) except -1:
        cdef dict waiting = self.awaited.get((number, needed))
        self.swept += 1
        if waiting is not None:
            waiting.pop(flight, None)
            if not waiting:
                del self.awaited[(number, needed)]
        return 0

    cdef int begin_turn(self) except -1:
        self.begun = 0
        self.spent = 0
        return 0

    cdef int sweep(self, Way way) except -1:
        cdef Flight flight
        cdef set needs
        self.swept = 0
        while self.unwanted and self.swept < SWEEP:
            number, needs, flight = self.unwanted[0]
            while needs and self.swept < SWEEP:
                needed = needs.pop()
                # the flight may be another packet's by now, which waits for the same
                if flight.needs is None or needed not in flight.needs or flight.principal.number != number:
                    self._take_off(number, <bytes>needed, flight)
            if not needs:
                self.unwanted.popleft()
        if self.unwanted:
            way.arm_at(way.now)
        self._walk(way)
        return self.go_on(way, way.now)


cdef int _has_failed(Way way, Flight flight, str text, int64_t now) except -1:
    return way.fail(flight, "PF424", f"the packet {text!r}, on which this one depends, has failed",
                    {"dependency": text}, now)
