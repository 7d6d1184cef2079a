"""A gateway's routing, as the gateway sees it. See ``switch.pxd``."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t

from pfcore.link.engine cimport Engine
from pfcore.memory.budget cimport Account, Budget
from pfcore.route.choose cimport eligible
from pfcore.route.dependencies cimport Dependencies
from pfcore.route.directory cimport Directory
from pfcore.route.failures cimport Failures
from pfcore.route.flights cimport Flight, FlightState, Member, Principal, Route
from pfcore.route.held cimport Held
from pfcore.route.local cimport Local
from pfcore.route.membership cimport Membership
from pfcore.route.newcomers cimport Newcomers
from pfcore.route.outcomes cimport Outcomes
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable

__all__ = ["Switch"]


@cython.final
cdef class Switch(Flow):
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
        self.budget = Budget(1 << 62) if budget is None else budget
        self.dispatcher = dispatcher
        self.arm = arm
        self.flights = FlightTable(max_flights, now)
        self.table = self.flights.pending
        self.outcomes = Outcomes(max_remembered, max_results)
        self.directory = Directory(dispatcher, permit, aliases, max_routes)
        self.queues = Queues(max_queue)
        self.newcomers = Newcomers(self.flights, self.queues)
        self.dependencies = Dependencies(self.flights)
        self.membership = Membership(self.flights, self.directory, self.newcomers, self.queues, self.dependencies,
                                     self.budget, link_bytes)
        self.kept = Held(self.flights)
        self.failures = Failures(on_failure)
        self.local = Local(dispatcher, self.flights, self.kept, self.failures, self.outcomes)
        self.dirty = []
        self.armed = -1
        self.now = now
        self.started = -(1 << 62)  # long ago
        self.chance = seed | 1

    # ---------------------------------------------------------------- links

    def admit(self, Engine engine not None, Principal principal not None, handles=None, Account account=None, *,
              bint inside=False):
        """A link is about to open; `join` it once it has.

        `handles`: keys named in its URL, None if it named none. `account`: who pays
        for it (default: its principal's, else one of its own). `inside`: it is a
        loopback, by which steps of what has been accepted come, during a drain, too.
        """
        return self.membership.admit(engine, principal, handles, account, inside)

    def join(self, Engine engine not None):
        """A link that was admitted has opened."""
        self.membership.join(self, engine)

    def update(self, Engine engine not None):
        """A heartbeat came: what it announces holds from now on."""
        self.membership.update(self, engine)

    def leave(self, Engine engine not None, int64_t now):
        """A link has gone: its work goes to others or fails, its own submits are taken back."""
        self.now = now
        self.membership.leave(self, engine)
        self._flush_dirty()

    def drain_member(self, Member member not None, bint draining=True):
        """No new work to this reactor, or again."""
        member.draining = draining
        if not draining:
            self.offer(member)

    def migrate(self, Member source not None, Member target, int64_t now):
        """No new work to `source`; what waits for it alone goes to `target`, or to whoever handles it. How many."""
        self.now = now
        moved = self.membership.migrate(self, source, target)
        self._flush_dirty()
        return moved

    def set_window(self, Member member not None, int64_t window):
        """At most so many packets at once to this reactor, whatever it announces; 0: what it announces."""
        self.membership.set_window(self, member, window)

    def set_max_queue(self, Py_ssize_t most):
        """Packets that may wait for room at the reactors of one element."""
        self.queues.set_most(most)

    def set_principals(self, Py_ssize_t count):
        """Among how many the memory of outcomes is shared, for those who have none yet."""
        self.outcomes.principals = max(count, 1)

    def forget_principals(self, list principals not None):
        """They are no more: what was remembered of them goes, and what is under way for them ends, so much at once."""
        self.membership.forget(self, principals)
        for principal in principals:
            self.outcomes.forget(principal)
        self._flush_dirty()

    # ---------------------------------------------------------------- life

    def start(self, int64_t now):
        """Begins, or begins again after a drain."""
        self.draining = self.over = False
        self.started = now

    def set_inner(self, Engine engine not None):
        """Who keeps packets that go on without the link that they came by: an engine of its own, heard by nobody.

        It must be no end of a link, of the gateway's own ones neither: who submits
        there would take their answers for those to packets of his of the same id.
        """
        engine.mute = True
        engine.account = None
        self.local.inner = engine

    # ---------------------------------------------------------------- elements

    def handlers_changed(self):
        """Handlers of the gateway's own have come or gone."""
        self.directory.look_again(list(self.membership.members.values()), self.now)

    def roles_changed(self):
        """What roles may do has changed: asks `permit` again for every element."""
        self.directory.ask_again(list(self.membership.members.values()), self.now)
        for member in self.membership.members.values():
            self.offer(<Member>member)

    def set_policy(self, str group not None, str policy not None):
        """Sets the routing of a group: "least", "sticky", "fastest" or "keyed"."""
        self.directory.set_policy(group, policy)

    def policy(self, str group not None):
        """The routing of a group."""
        return self.directory.policy(group)

    # ---------------------------------------------------------------- for the gateway

    @property
    def in_flight(self):
        """Packets under way: waiting, queued, running elsewhere or here."""
        return self.table.count - self.newcomers.question.flights

    @property
    def remembered(self):
        """Outcomes that are known."""
        return self.outcomes.count()

    @property
    def remembered_bytes(self):
        """Memory that they take: for each principal at most what `max_remembered` and `max_results` say."""
        return self.outcomes.bytes_used()

    def busiest(self, Py_ssize_t most):
        """The routes of which most packets have ended, so many at most, sorted by key: ``[(key, Route)]``."""
        return self.directory.busiest(most)

    @property
    def elements(self):
        """Routes by key."""
        return dict(self.directory.routes.by_key)

    @property
    def links(self):
        """The members."""
        return list(self.membership.members.values())

    def reactors_for(self, str key not None):
        """The members that announced the key and may handle it, and those that announce nothing and may have it."""
        cdef Route route = <Route>self.directory.routes.by_key.get(key)
        cdef list unlisted = self.newcomers.unlisted
        cdef Member member
        if route is None:
            if len(unlisted) == 0:
                return []
            group, _, element = key.partition(":")
            route = self.directory.make_for_stranger(group, element)
            if route is None:
                return []
        known = set(route.members)
        return [*route.members, *[member for member in unlisted
                                  if member not in known and eligible(member, route, None)]]

    @property
    def held(self):
        """Bytes of payloads that are kept."""
        return self.kept.bytes

    @property
    def retried(self):
        """Packets that were sent again because the link of the reactor that had them had gone."""
        return self.membership.retried

    @property
    def leave_at_once(self):
        """Packets that end in one go with their link (512)."""
        return self.membership.leave_at_once

    @leave_at_once.setter
    def leave_at_once(self, Py_ssize_t most):
        self.membership.leave_at_once = most

    @property
    def queued(self):
        """Packets that wait for room at a reactor."""
        return self.queues.count

    @property
    def max_queue(self):
        """Packets that may wait for one element or reactor."""
        return self.queues.most

    @property
    def refusals(self):
        """How often the switch itself refused or failed a packet, by code."""
        return self.failures.counts

    def let_go(self):
        """Gives up what is kept to be used again, and holds pages that nothing else does."""
        self.flights.pool.clear()
        self.table.shrink()
        self.kept.scratch.release()
        self.dispatcher.let_go()

    def drain(self, idle):
        """No new packets (PF503) but the steps of those under way, until `fail_all`.

        `idle`: a future that is given a result once nothing is under way.
        """
        self.draining = True
        self.idle = idle
        if self.table.count == self.newcomers.question.flights:
            idle.set_result(None)

    def fail_all(self, str code not None, str message not None, int64_t now):
        """Ends everything that is still under way: `code` for what never began, PF502 for the rest."""
        cdef int32_t slot
        cdef Flight flight
        self.now = now
        self.draining = self.over = True
        self.dispatcher.end_all(message)
        for slot in range(self.table.used):
            if self.table.entries[slot].seq != 0:
                flight = <Flight>self.table.entries[slot].waiter
                if flight.route is self.newcomers.question:
                    self._leave_target(flight)
                    self.give_back(flight)
                    continue
                began = flight.state == FlightState.LOCAL or flight.state == FlightState.SENT
                if flight.needs is not None:
                    self.dependencies.stop(flight, self)
                self.queues.leave(flight)
                if flight.state == FlightState.SENT:
                    self.withdraw(flight)
                self._leave_target(flight)
                if began:
                    self.fail(flight, "PF502", f"{message}: the packet may have run or not", None, now)
                else:
                    self.fail(flight, code, message, None, now)
        self._flush_dirty()
