# Who handles what: the routes of a gateway, by group and element.
#
# Only here do routes come and go, and members enter and leave them. An element
# that nobody handles any more is kept for its history, the latest of such; of
# the rest remains when it was last served.

from libc.stdint cimport int64_t

from pfcore.route.flights cimport Member, Route
from pfcore.wire.reader cimport FrameReader
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.keys cimport KeyTable

cdef enum:
    ROUTE_BYTES = 1024           # what an element takes, besides who handles it
    ANNOUNCED_BYTES = 128        # ... and what each who has announced it does

cdef class Directory:
    cdef:
        KeyTable routes
        Dispatcher dispatcher    # has the gateway's own handlers
        object permit            # callable(key) -> (submit, handle, replace) masks
        object aliases           # mapping: "df:tr" -> "df:transform"
        Py_ssize_t most          # routes known at once
        bint all_busy            # none of them could be forgotten when last looked
        Py_ssize_t strangers     # routes made by submits since the last were forgotten
        object quiet             # OrderedDict: Route -> None: nobody handles it any more, kept for its history
        object gone              # OrderedDict: key -> ns when it was last served, of those that are kept no more
        int[6] policies          # of the groups

    # The route of a key, made where there is none; None for a key that is not valid, or where there is no room.
    cdef Route make(self, str group, str element)
    # Likewise, because someone asked for it who may be anyone.
    cdef Route make_for_stranger(self, str group, str element)
    # Does anyone handle it, as far as is known?
    cdef inline bint served(self, Route route) noexcept:
        return len(route.members) > 0 or route.local
    # Sets what a member handles; keys that are not valid are passed over.
    cdef int enlist(self, Member member, object keys, int64_t now) except -1
    # It announces nothing, and has answered: once somebody announces the element, it shares the work.
    cdef int learn(self, Member member, Route route) except -1
    cdef int leave(self, Member member, Route route, int64_t now) except -1
    # Nothing of it is under way any more: where nobody handles it, either, it need not stay.
    cdef int rest(self, Route route) except -1
    # Handlers of the gateway's own, or what roles may do, have changed.
    cdef int look_again(self, list members, int64_t now) except -1
    cdef int ask_again(self, list members, int64_t now) except -1
    cdef int set_policy(self, str group, str policy) except -1
    cdef str policy(self, str group)
    # ``[(key, Route)]`` of which most packets have ended, so many at most, sorted by key.
    cdef list busiest(self, Py_ssize_t most)
    # -- private
    cdef Route _make_for(self, Member member, Route route)
    cdef Route _add(self, Route route)
    cdef int _pay(self, Route route, Member member) except -1
    cdef int _enter(self, Member member, Route route) except -1
    cdef int _exit(self, Member member, Route route) except -1
    cdef bint _announce(self, Member member, Route route) except -1
    cdef bint _forget_idle(self) except -1
    cdef int _look_here(self, Route route) except -1
    cdef int _quieten(self, Route route) except -1
    cdef int _drop(self, Route route) except -1
    cdef int _enlist_again(self, list members, int64_t now) except -1
