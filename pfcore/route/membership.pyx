"""Links as they come, announce, and go. See ``membership.pxd``."""

from collections import deque

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from pfcore.link.engine cimport Engine
from pfcore.link.pending cimport PendingTable
from pfcore.memory.budget cimport Account, Budget
from pfcore.memory.queue cimport Queue, Rounds
from pfcore.route.choose cimport eligible
from pfcore.route.dependencies cimport Dependencies
from pfcore.route.directory cimport Directory
from pfcore.route.flights cimport NOBODY_ROLE, REFUSALS, Asked, Flight, FlightState, Member, Principal
from pfcore.route.newcomers cimport ASK_AFTER, Newcomers
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.terms cimport GROUP_ED

__all__ = ["Membership"]

cdef enum:
    DEFAULT_WINDOW = 256         # of reactors that do not say
    LEAVE_AT_ONCE = 512          # packets that end in one go with their link: some 1.5 ms
    WALKED = 8                   # packets that waited for one that ends: as many as are as much as one more

cdef int64_t CLEAR_REFUSALS = 1000000000  # ns: heartbeats make refusals forgotten no more often


@cython.final
cdef class Membership:
    """The links of one switch. `budget`, `link_bytes`: as for `Switch`."""

    def __init__(self, FlightTable flights not None, Directory directory not None, Newcomers newcomers not None,
                 Queues queues not None, Dependencies dependencies not None, Budget budget not None,
                 int64_t link_bytes):
        self.flights = flights
        self.directory = directory
        self.newcomers = newcomers
        self.queues = queues
        self.dependencies = dependencies
        self.budget = budget
        self.link_bytes = link_bytes
        self.members = {}
        self.leaving = deque()
        self.forgotten = deque()
        self.leave_at_once = LEAVE_AT_ONCE

    cdef Member admit(self, Engine engine, Principal principal, object handles, Account account, bint inside):
        cdef Member member = Member.__new__(Member)
        self.numbers += 1
        member.engine = engine
        member.principal = principal
        member.account = principal.account if account is None else account
        if member.account is None:
            member.account = Account(f"{principal.name} link {self.numbers}", self.link_bytes, self.budget)
        member.number = self.numbers
        member.inside = inside
        member.window = member.announced_window = DEFAULT_WINDOW
        member.routes = {}
        member.rounds = Rounds()
        member.handles = () if handles is None else tuple(handles)
        member.listed = handles is not None
        engine.member = member
        engine.account = member.account
        member.asked = Asked.NOT_YET
        return member

    cdef int join(self, Way way, Engine engine) except -1:
        cdef Member member = <Member?>engine.member
        engine.records = True
        self.members[engine] = member
        if member.listed:
            self.directory.enlist(member, member.handles, way.now)
            way.offer(member)
        else:
            self.newcomers.enter(member, engine.now)
            way.arm_at(engine.now + ASK_AFTER)
        return 0

    cdef int update(self, Way way, Engine engine) except -1:
        cdef Member member = <Member>self.members.get(engine)
        if member is None:
            return 0
        way.now = engine.now
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
                self.newcomers.leave(member)
            self.directory.enlist(member, engine.peer_capabilities, way.now)
            engine.peer_capabilities = member.handles  # the same strings for every link that announces them
            if self.newcomers.curious.live() > 0:
                self.newcomers.place_curious(way)
        elif not member.listed and (member.asked == Asked.NOT_YET or (
                member.asked == Asked.SILENT and engine.now - member.asked_at >= CLEAR_REFUSALS)):
            self.newcomers.ask(way, member)
        return way.pump(member, engine.now)

    cdef int migrate(self, Way way, Member source, Member target) except -1:
        cdef Flight flight
        cdef int moved = 0
        source.draining = True
        while source.queue is not None and source.queue.live() > 0:
            flight = <Flight>source.queue.pop()
            self.queues.left(flight)
            moved += 1
            if target is None or not eligible(target, flight.route, flight) or (
                    target.listed and flight.route not in target.routes):
                way.place_again(flight, way.now)
            elif target.room(flight.route.group == GROUP_ED):
                way.send(flight, target, None, way.now)
            else:
                if target.queue is None:
                    target.queue = Queue()
                way.enqueue(flight, target.queue, None, way.now)
        return moved

    cdef int set_window(self, Way way, Member member, int64_t window) except -1:
        member.cap = member.engine.cap = window
        if window > 0 and (member.window > window or member.announced_window > window):
            member.window = window
        elif member.announced_window > 0:
            member.window = member.announced_window
        return way.pump(member, way.now)

    cdef int leave(self, Way way, Engine engine) except -1:
        cdef Member member = <Member>self.members.pop(engine, None)
        if member is None:
            return 0
        member.gone = True
        engine.records = False
        for route in list(member.routes):
            self.directory.leave(member, route, way.now)
        if not member.listed:
            self.newcomers.leave(member)
        self.queues.behind.pop(member, None)
        engine.member = None
        if member.submitted + member.outstanding + (member.queue.live() if member.queue is not None else 0) \
                > self.leave_at_once:
            # thousands of packets: so many in an iteration of the loop, until then they are as if sent too late
            self.leaving.append(member)
            return way.arm_at(way.now)
        self._lose_flights(way, member, <Py_ssize_t>1 << 60)
        return 0

    cdef Py_ssize_t _lose_flights(self, Way way, Member member, Py_ssize_t most) except? -1:
        """Ends up to `most` of what a link that has gone left; how many more it could have been, 0: some are left."""
        cdef Flight flight
        while member.mine != NULL and most > 0:
            most -= 1 + self.dependencies.walked // WALKED
            self.dependencies.walked %= WALKED
            self._lose_origin(way, <Flight>member.mine, member)
        while member.theirs != NULL and most > 0:
            most -= 1
            self._lose_target(way, <Flight>member.theirs, member)
        while member.queue is not None and member.queue.live() > 0 and most > 0:
            most -= 1
            flight = <Flight>member.queue.pop()
            self.queues.left(flight)
            way.place_again(flight, way.now)
        if most <= 0:
            return 0
        member.queue = None
        return most

    cdef int forget(self, Way way, list principals) except -1:
        cdef PendingTable table = self.flights.pending
        cdef Flight flight
        cdef set gone = set(principals)
        # what the dispatcher would begin when another's handler ends; routing itself begins nothing for who is no more
        for slot in range(table.used):
            if table.entries[slot].seq != 0:
                flight = <Flight>table.entries[slot].waiter
                if flight.state == FlightState.LOCAL and not flight.has_begun() and flight.principal in gone:
                    way.take_back(flight, "PF502")
        # anonymous ones may be let in again before all is done: what they send then is another matter
        self.forgotten.append([gone, 0, way.now])
        return self.lose_some(way)

    cdef Py_ssize_t _forget_flights(self, Way way, list forgotten, Py_ssize_t most) except? -1:
        """Ends up to `most` of what principals that are no more have under way; how many more it could have been."""
        cdef PendingTable table = self.flights.pending
        cdef set gone = forgotten[0]
        cdef Py_ssize_t slot = forgotten[1]
        cdef int64_t when = forgotten[2]
        cdef Flight flight
        while slot < table.used and most > 0:
            if table.entries[slot].seq != 0:
                flight = <Flight>table.entries[slot].waiter
                if flight.accepted <= when and flight.principal in gone:
                    most -= 1
                    way.take_back(flight, "PF502")
            slot += 1
        forgotten[1] = slot
        return most

    cdef int lose_some(self, Way way) except -1:
        cdef Py_ssize_t left = self.leave_at_once
        self.dependencies.walked = 0
        while self.leaving and left > 0:
            left = self._lose_flights(way, <Member>self.leaving[0], left)
            if left > 0:
                self.leaving.popleft()
        while self.forgotten and left > 0:
            left = self._forget_flights(way, <list>self.forgotten[0], left)
            if left > 0:
                self.forgotten.popleft()
        if self.leaving or self.forgotten:
            way.arm_at(way.now)
        return 0

    cdef int _lose_origin(self, Way way, Flight flight, Member member) except -1:
        """The link that submitted it has gone."""
        cdef Account heir = None
        member.has_ended(flight)
        if flight.state == FlightState.LOCAL and flight.engine is member.engine:
            return 0  # its handler was told by its engine
        if flight.pass_on():
            return way.paid_by(flight, flight.origin.account)
        if flight.retries > 0 and flight.principal.role != NOBODY_ROLE:
            heir = flight.heir()
        # nobody waits, and nobody may come back, any more?
        return way.take_back(flight, "PF502") if heir is None else way.paid_by(flight, heir)

    cdef int _lose_target(self, Way way, Flight flight, Member member) except -1:
        """The link that has it has gone."""
        member.lets_go(flight)
        if flight.route is self.newcomers.question:
            return way.give_back(flight)
        flight.lost = True
        if flight.retries > 0:
            flight.retries -= 1
            self.retried += 1
            return way.place_again(flight, way.now)
        return way.fail(flight, "PF502",
                        "the connection of the reactor that handled it was lost; it may have run or not", None,
                        way.now)
