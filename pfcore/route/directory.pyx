"""Who handles what. See ``directory.pxd``."""

from collections import OrderedDict
from heapq import heappush, heapreplace

cimport cython
from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Member, Policy, Route
from pfcore.wire.terms cimport GROUP_DF
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.handler cimport Handler
from pfcore.work.keys cimport KeyTable

__all__ = ["Directory"]

cdef enum:
    MAX_ANNOUNCED = 1024         # elements that one reactor may announce; the rest is passed over
    MAX_STRANGERS = 4096         # elements remembered only because someone asked for them
    MAX_QUIET = 1024             # elements with a history that nobody handles any more

cdef tuple _GROUPS = ("cf", "df", "ed", "co", "mc", "rm")
cdef tuple _POLICIES = ("least", "sticky", "fastest", "keyed")


cdef Account _counted(Member member):
    """Whose elements are his: a principal's, or all anonymous links'."""
    if member.principal.account is not None:
        return member.principal.account
    return member.principal.stored if member.principal.stored is not None else member.account


cdef Route _named(str group, str element):
    """A route of that name, which nobody knows yet; None where it is none."""
    cdef Route route = Route.__new__(Route)
    try:
        route.name(group, element)
    except ValueError:
        return None
    return route


@cython.final
cdef class Directory:
    """`most`: routes known at once. The others as for `Switch`."""

    def __init__(self, Dispatcher dispatcher not None, permit, aliases, Py_ssize_t most):
        if most < 1:
            raise ValueError(f"max_routes: expected at least 1, got {most}")
        self.dispatcher = dispatcher
        self.permit = permit
        self.aliases = aliases or {}
        self.most = most
        self.routes = KeyTable()
        self.quiet = OrderedDict()
        self.gone = OrderedDict()
        self.policies = [Policy.STICKY, Policy.LEAST, Policy.FASTEST, Policy.LEAST, Policy.LEAST, Policy.KEYED]

    # -- routes

    cdef Route make(self, str group, str element):
        cdef Route route = <Route>self.routes.by_key.get(f"{group}:{element}")
        if route is not None:
            return route
        if len(self.routes.by_key) >= self.most and not self._forget_idle():
            return None
        route = _named(group, element)
        return self._add(route) if route is not None else None

    cdef Route _make_for(self, Member member, Route route):
        """As `make`, of one that somebody announces and pays for: the last eighth of them is for who has few."""
        cdef Py_ssize_t mine = _counted(member).routes
        if not shared_room(self.most, len(self.routes.by_key), mine) and not (
                self._forget_idle() and shared_room(self.most, len(self.routes.by_key), mine)):
            return None
        if not member.account.room(ROUTE_BYTES):
            member.account.refused += 1
            return None
        self._pay(route, member)
        return self._add(route)

    cdef int _pay(self, Route route, Member member) except -1:
        """It is this one who pays for it from now on; None: nobody."""
        if route.owner is not None:
            route.counted.routes -= 1
            route.owner.settle(-ROUTE_BYTES)
        route.owner = member.account if member is not None else None
        route.counted = _counted(member) if member is not None else None
        if member is not None:
            route.counted.routes += 1
            route.owner.settle(ROUTE_BYTES)
        return 0

    cdef Route _add(self, Route route):
        route.members = []
        route.queue = Queue()
        route.queued_at = -1
        route.last_served = <int64_t>self.gone.pop(route.key, 0)
        route.alias = self.aliases.get(route.key)
        route.policy = <Policy>self.policies[route.group]
        route.may_submit, route.may_handle, route.may_replace = self.permit(route.key)
        self._look_here(route)
        self.routes.put(route)
        self.all_busy = False
        return route

    cdef Route make_for_stranger(self, str group, str element):
        self.strangers += 1
        if self.strangers > MAX_STRANGERS:
            self._forget_idle()
        return self.make(group, element)

    cdef bint _forget_idle(self) except -1:
        """Makes room: elements that nobody handles and nothing waits for are forgotten."""
        cdef Route route
        if self.all_busy:
            return False  # nothing was found, and nothing has changed since: a hundred thousand need not be looked at
        idle = [route for route in self.routes.by_key.values()
                if not route.members and not route.local and route.flights == 0 and route not in self.quiet]
        for route in idle:
            self._pay(route, None)
            del self.routes.by_key[route.key]
        if idle:
            self.routes._rebuild(len(self.routes.table))
        self.strangers = 0
        self.all_busy = len(idle) == 0
        return len(idle) > 0

    cdef int rest(self, Route route) except -1:
        self.all_busy = False
        return 0 if route.members else self._quieten(route)

    cdef int _quieten(self, Route route) except -1:
        """Nobody handles it any more: it is kept for its history, the latest of such; the rest as a time alone."""
        self.all_busy = False
        self._pay(route, None)
        if route.local:
            return 0
        if route.succeeded == 0 and route.failed == 0:
            return self._drop(route)
        self.quiet[route] = None
        if len(self.quiet) > MAX_QUIET:
            self._drop(<Route>self.quiet.popitem(last=False)[0])
        return 0

    cdef int _drop(self, Route route) except -1:
        if route.flights > 0 or route.members or route.local or route.queued_at >= 0 \
                or <object>self.routes.by_key.get(route.key) is not route:
            return 0
        self.gone[route.key] = route.last_served
        self.routes.take(route.key)
        while len(self.gone) > MAX_STRANGERS:
            self.gone.popitem(last=False)
        return 0

    # -- members

    cdef int enlist(self, Member member, object keys, int64_t now) except -1:
        cdef Route route
        cdef set wanted = set()
        cdef list names = []
        if not member.listed:
            for route in list(member.routes):  # what it was seen to answer counts no more
                self.leave(member, route, now)
        member.listed = True
        for key in keys:
            if type(key) is not str or len(names) >= MAX_ANNOUNCED:
                continue
            route = <Route>self.routes.by_key.get(key)
            if route is None:
                group, _, element = key.partition(":")
                route = _named(group, element)
                if route is None:
                    continue
                if self.permit(route.key)[1] >> member.principal.role & 1:
                    route = self._make_for(member, route)
                    if route is None:
                        continue
            names.append(route.key)
            if route.may_handle >> member.principal.role & 1 and (
                    not route.local or route.may_replace >> member.principal.role & 1) and (
                    route in member.routes or self._announce(member, route)):
                wanted.add(route)
        names.sort()
        if tuple(names) != member.handles:
            member.handles = tuple(names)
        for route in [route for route in member.routes if route not in wanted]:
            self.leave(member, route, now)
        member.looked_at = None
        return 0

    cdef bint _announce(self, Member member, Route route) except -1:
        if not member.account.take(ANNOUNCED_BYTES):
            if not route.members:
                self._quieten(route)
            return False
        self.quiet.pop(route, None)
        self._enter(member, route)
        route.announced += 1
        return True

    cdef int _enter(self, Member member, Route route) except -1:
        member.routes[route] = len(route.members)
        route.members.append(member)
        return 0

    cdef int _exit(self, Member member, Route route) except -1:
        """The last takes its place: thousands may have announced the same, and one may leave a thousand of them."""
        cdef Py_ssize_t place = member.routes.pop(route)
        cdef Member last = <Member>route.members.pop()
        if last is not member:
            route.members[place] = last
            last.routes[route] = place
        return 0

    cdef int learn(self, Member member, Route route) except -1:
        if len(member.routes) < MAX_ANNOUNCED:
            self._enter(member, route)
            member.looked_at = None
        return 0

    cdef int leave(self, Member member, Route route, int64_t now) except -1:
        self._exit(member, route)
        if member.listed:
            route.announced -= 1
            member.account.settle(-ANNOUNCED_BYTES)
        member.looked_at = None
        if route.members and route.owner is member.account:
            self._pay(route, <Member>route.members[0])
        if not route.members:
            route.last_served = now if now > 0 else 1
            self._quieten(route)
        return 0

    # -- what has changed

    cdef int look_again(self, list members, int64_t now) except -1:
        cdef Route route
        for key in self.dispatcher.handlers.by_key:
            if key not in self.routes.by_key:
                group, _, element = key.partition(":")
                self._add(_named(group, element))  # whatever others have made known
        for route in self.routes.by_key.values():
            self._look_here(route)
        self.all_busy = False
        return self._enlist_again(members, now)

    cdef int ask_again(self, list members, int64_t now) except -1:
        cdef Route route
        for route in self.routes.by_key.values():
            route.may_submit, route.may_handle, route.may_replace = self.permit(route.key)
        return self._enlist_again(members, now)

    cdef int _enlist_again(self, list members, int64_t now) except -1:
        cdef Member member
        for member in members:
            if member.listed:
                self.enlist(member, member.handles, now)
        return 0

    cdef int _look_here(self, Route route) except -1:
        """Is there a handler of the gateway's own?"""
        cdef Handler handler = <Handler>self.dispatcher.handlers.by_key.get(route.key)
        route.handler = handler
        route.local = handler is not None
        # a standard df element: reactors register the same names, and the specification's do not announce them
        route.yields = handler is not None and handler.unbounded and route.group == GROUP_DF
        return 0

    cdef int set_policy(self, str group, str policy) except -1:
        cdef Route route
        cdef int value = _POLICIES.index(policy)
        self.policies[_GROUPS.index(group)] = value
        for route in self.routes.by_key.values():
            if route.key.partition(":")[0] == group:
                route.policy = <Policy>value
        return 0

    cdef str policy(self, str group):
        return <str>_POLICIES[self.policies[_GROUPS.index(group)]]

    cdef list busiest(self, Py_ssize_t most):
        """One pass over all routes, of which peers may make a hundred thousand."""
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
