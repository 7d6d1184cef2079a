"""Who handles what. See ``directory.pxd``."""

from collections import OrderedDict
from heapq import heappush, heapreplace

cimport cython
from libc.stdint cimport int64_t

from pfcore.memory.heap cimport PriorityHeap
from pfcore.route.flights cimport Member, Policy, Route
from pfcore.wire.terms cimport GROUP_DF
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.handler cimport Handler
from pfcore.work.keys cimport Keyed, KeyTable

__all__ = ["Directory"]

cdef enum:
    MAX_ANNOUNCED = 1024         # elements that one reactor may announce; the rest is passed over
    MAX_STRANGERS = 4096         # elements remembered only because someone asked for them
    MAX_QUIET = 1024             # elements with a history that nobody handles any more

cdef tuple _GROUPS = ("cf", "df", "ed", "co", "mc", "rm")
cdef tuple _POLICIES = ("least", "sticky", "fastest", "keyed")


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
        cdef Route route
        cdef Keyed known = <Keyed>self.routes.by_key.get(f"{group}:{element}")
        if known is not None:
            return <Route>known
        if len(self.routes.by_key) >= self.most and not self._forget_idle():
            return None
        route = Route.__new__(Route)
        try:
            route.name(group, element)
        except ValueError:
            return None
        route.members = []
        route.queue = PriorityHeap()
        route.queued_at = -1
        route.last_served = <int64_t>self.gone.pop(route.key, 0)
        route.alias = self.aliases.get(route.key)
        route.policy = <Policy>self.policies[route.group]
        route.may_submit, route.may_handle, route.may_replace = self.permit(route.key)
        self._look_here(route)
        self.routes.put(route)
        return route

    cdef Route make_for_stranger(self, str group, str element):
        self.strangers += 1
        if self.strangers > MAX_STRANGERS:
            self._forget_idle()
        return self.make(group, element)

    cdef bint _forget_idle(self) except -1:
        """Makes room: elements that nobody handles and nothing waits for are forgotten."""
        cdef Route route
        idle = [route for route in self.routes.by_key.values()
                if not route.members and not route.local and route.flights == 0 and route not in self.quiet]
        for route in idle:
            del self.routes.by_key[route.key]
        if idle:
            self.routes._rebuild(len(self.routes.table))
        self.strangers = 0
        return len(idle) > 0

    cdef int rest(self, Route route) except -1:
        return 0 if route.members else self._quieten(route)

    cdef int _quieten(self, Route route) except -1:
        """Nobody handles it any more: it is kept for its history, the latest of such; the rest as a time alone."""
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
            group, _, element = key.partition(":")
            route = self.make(group, element)
            if route is None:
                continue
            names.append(route.key)
            if route.may_handle >> member.principal.role & 1 and (
                    not route.local or route.may_replace >> member.principal.role & 1):
                wanted.add(route)
        names.sort()
        if tuple(names) != member.handles:
            member.handles = tuple(names)
        for route in member.routes - wanted:
            self.leave(member, route, now)
        for route in wanted - member.routes:
            self.quiet.pop(route, None)
            route.members.append(member)
            route.announced += 1
            member.routes.add(route)
        member.looked_at = None
        return 0

    cdef int learn(self, Member member, Route route) except -1:
        if len(member.routes) < MAX_ANNOUNCED:
            route.members.append(member)
            member.routes.add(route)
            member.looked_at = None
        return 0

    cdef int leave(self, Member member, Route route, int64_t now) except -1:
        member.routes.discard(route)
        route.members.remove(member)
        if member.listed:
            route.announced -= 1
        member.looked_at = None
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
                self.make(group, element)
        for route in self.routes.by_key.values():
            self._look_here(route)
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
        route.local = handler is not None
        # a standard df element: reactors register the same names, and the specification's do not announce them
        route.yields = handler is not None and handler.free and route.group == GROUP_DF
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
