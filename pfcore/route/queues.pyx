"""Flights that wait for room. See ``queues.pxd``."""

cimport cython

from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.queue cimport LOOKED_AT as SHARES, Queue, Share
from pfcore.route.choose cimport eligible
from pfcore.route.flights cimport Flight, FlightState, Member, Route
from pfcore.wire.terms cimport GROUP_ED

__all__ = ["Queues"]

cdef enum:
    LOOKED_AT = 64               # routes looked at for a reactor with room, before the rest waits for its turn
    COMPARED = 512               # accounts compared there, over all of them: some 30 us


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
        # as it stands in the queue: whoever pays for it by now
        cdef Account account = flight.home.account
        flight.home.queue.pop_from(flight.home)
        self.left(flight)
        if self.count == 0:
            return member.rounds.over()  # nobody waits
        return member.rounds.note(account)

    cdef int paid_by(self, Flight flight, Account account) except -1:
        cdef Account before = flight.account
        cdef Queue queue = None
        cdef bint queued = flight.entry is not None
        if before is account:
            return 0
        if queued and flight.home.account is not None:
            queue = flight.home.queue
            self.leave(flight)
        before.settle(-flight.cost)
        account.settle(flight.cost)
        before.flights -= 1
        account.flights += 1
        flight.account = account
        if queue is not None:
            self.enter(flight, queue)
        elif queued:
            before.queued -= 1
            account.queued += 1
        return 0

    cdef bint offer(self, Member member) except -1:
        if self.count == 0 or member.gone:
            return False
        member.unseen = len(self.routes_of(member))
        self.behind[member] = None
        return True

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

    cdef bint _may_look(self, Member member, Route route, bint urgent) except -1:
        return not (route.queued_at < 0 or (urgent and route.group != GROUP_ED)
                    or (not member.listed and (route.announced > 0 or not eligible(member, route, None))))

    cdef Flight _eldest(self, Member member, list routes, bint urgent):
        cdef Py_ssize_t n = len(routes), left = min(n, LOOKED_AT) + 1
        cdef Route route
        cdef Flight flight
        while left > 0:
            left -= 1
            if member.age_cursor >= n:
                # between the last and the first: what it alone may have
                member.age_cursor = 0
                if member.queue is not None and member.queue.live() > 0:
                    flight = <Flight>(<Share>member.queue.oldest).heap.peek()
                    if not urgent or flight.route.group == GROUP_ED:
                        return flight
                continue
            route = <Route>routes[member.age_cursor]
            member.age_cursor += 1
            if self._may_look(member, route, urgent):
                flight = <Flight>(<Share>route.queue.oldest).heap.peek()
                if not flight.was_refused_by(member):
                    return flight
        return None

    cdef Flight most_urgent(self, Member member, bint urgent):
        cdef list routes = self.routes_of(member)
        cdef Py_ssize_t n = len(routes), looked = min(n, LOOKED_AT), left = looked, shares = COMPARED
        cdef Route route
        cdef Flight flight, head = None
        cdef bint over, heads_over = True
        if member.rounds.by_age():
            head = self._eldest(member, routes, urgent)
            if head is not None:
                member.unseen = n
                return head
        if member.queue is not None and member.queue.live() > 0:
            head = <Flight>member.queue.next_of(member.rounds, SHARES, &heads_over).heap.peek()
            if urgent and head.route.group != GROUP_ED:
                head = None
                heads_over = True
        member.fruitless += left
        while left > 0 and shares > 0:
            left -= 1
            if member.cursor >= n:
                member.cursor = 0
            route = <Route>routes[member.cursor]
            member.cursor += 1
            if not self._may_look(member, route, urgent):
                continue
            flight = <Flight>route.queue.next_of(member.rounds, min(shares, <Py_ssize_t>SHARES), &over).heap.peek()
            shares -= min(<Py_ssize_t>len(route.queue.order), <Py_ssize_t>SHARES)
            if flight.was_refused_by(member):
                continue
            if head is None or (heads_over and not over) or (heads_over == over and (
                    flight.priority > head.priority
                    or (flight.priority == head.priority and flight.accepted < head.accepted))):
                head = flight
                heads_over = over
        member.fruitless -= left
        if head is not None and not heads_over:
            member.fruitless = 0
        elif head is not None and member.fruitless >= n:
            # everybody who waits at any of its elements has had his part
            member.rounds.over()
            member.fruitless = 0
        looked -= left
        member.unseen = 0 if looked == n else n if head is not None else member.unseen - looked
        return head
