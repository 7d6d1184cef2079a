"""Flights that wait for room. See ``queues.pxd``."""

cimport cython

from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.queue cimport Queue, Share
from pfcore.route.choose cimport eligible
from pfcore.route.flights cimport Flight, FlightState, Member, Route
from pfcore.wire.terms cimport GROUP_ED

__all__ = ["Queues"]

cdef enum:
    LOOKED_AT = 64               # routes looked at for a reactor with room, before the rest waits for its turn


@cython.final
cdef class Queues:
    """At most `most` in each."""

    def __init__(self, Py_ssize_t most):
        self.set_most(most)
        self.routes = []
        self.behind = {}
        self.curious = Queue()

    def set_most(self, Py_ssize_t most):
        """Packets that may wait in one of them."""
        if most < 1:
            raise ValueError(f"max_queue: expected at least 1, got {most}")
        self.most = most

    cdef bint room(self, Flight flight, Queue queue) except -1:
        return shared_room(self.most, queue.live(), flight.account.queued)

    cdef int enter(self, Flight flight, Queue queue) except -1:
        cdef Route route = flight.route
        # those that wait for a word are looked at one after another, whosever they are and whatever he calls urgent
        cdef Account account = flight.account if queue is not self.curious else None
        flight.entry = queue.push(flight, account, flight.priority if queue is not self.curious else 0)
        flight.home = <Share>queue.shares[account]
        flight.state = FlightState.QUEUED
        flight.account.queued += 1
        self.count += 1
        if queue is route.queue and route.queued_at < 0:
            route.queued_at = len(self.routes)
            self.routes.append(route)
        return 0

    cdef int leave(self, Flight flight) except -1:
        if flight.entry is not None:
            flight.home.queue.remove(flight.home, flight.entry)
            self.left(flight)
        return 0

    cdef int take(self, Flight flight, Member member) except -1:
        flight.home.queue.pop_from(flight.home)
        self.left(flight)
        if self.count == 0:
            return member.rounds.over()  # nobody waits
        return member.rounds.note(flight.account)

    cdef int left(self, Flight flight) except -1:
        cdef Route route = flight.route, last
        flight.entry = None
        self.count -= 1
        flight.account.queued -= 1
        if route.queue.live() == 0 and route.queued_at >= 0:
            last = <Route>self.routes.pop()
            if last is not route:
                self.routes[route.queued_at] = last
                last.queued_at = route.queued_at
            route.queued_at = -1
        flight.home = None
        return 0

    cdef list routes_of(self, Member member):
        if not member.listed:
            return self.routes
        if member.looked_at is None:
            member.looked_at = list(member.routes)
        return member.looked_at

    cdef Flight most_urgent(self, Member member, bint urgent):
        cdef list routes = self.routes_of(member)
        cdef Py_ssize_t n = len(routes), left = LOOKED_AT
        cdef Route route
        cdef Flight flight, head = None
        cdef bint over, heads_over = True
        if member.queue is not None and member.queue.live() > 0:
            head = <Flight>member.queue.next_of(member.rounds, &heads_over).heap.peek()
            if urgent and head.route.group != GROUP_ED:
                head = None
                heads_over = True
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
            if not member.listed and (route.announced > 0 or not eligible(member, route, None)):
                continue
            flight = <Flight>route.queue.next_of(member.rounds, &over).heap.peek()
            if flight.tried is not None and member in flight.tried:
                continue
            if head is None or (heads_over and not over) or (heads_over == over and (
                    flight.priority > head.priority
                    or (flight.priority == head.priority and flight.accepted < head.accepted))):
                head = flight
                heads_over = over
        if head is not None and heads_over:
            member.rounds.over()
        if n > LOOKED_AT:
            member.unseen = n if head is not None else member.unseen - LOOKED_AT
        return head
