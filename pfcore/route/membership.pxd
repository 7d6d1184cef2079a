# Links as they come, announce, and go.
#
# A link that goes leaves its own submits, which are taken back, and others'
# packets that it had, which go on to somebody else or fail: so many in an
# iteration of the loop.

from libc.stdint cimport int64_t

from pfcore.link.engine cimport Engine
from pfcore.memory.budget cimport Account, Budget
from pfcore.route.dependencies cimport Dependencies
from pfcore.route.directory cimport Directory
from pfcore.route.flights cimport Flight, Member, Principal
from pfcore.route.newcomers cimport Newcomers
from pfcore.route.queues cimport Queues
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way

cdef class Membership:
    cdef:
        FlightTable flights
        Directory directory
        Newcomers newcomers
        Queues queues
        Dependencies dependencies
        dict members             # Engine -> Member
        int64_t numbers          # members so far
        object forgotten         # deque of [principals, slot, ns]: no more since then, their flights from there on end
        object leaving           # deque of Member: gone, and some of its flights have not been ended yet
        Py_ssize_t leave_at_once  # packets that end in one go with their link
        Budget budget            # what all accounts may hold together
        int64_t link_bytes       # what may be held for a link that has no principal's account
        int64_t retried          # packets that were sent again because their reactor's link had gone

    # A link is about to open; it has; a heartbeat of it came; it has gone.
    cdef Member admit(self, Engine engine, Principal principal, object handles, Account account, bint inside)
    cdef int join(self, Way way, Engine engine) except -1
    cdef int update(self, Way way, Engine engine) except -1
    cdef int leave(self, Way way, Engine engine) except -1
    # A principal is no more: what is under way for it ends.
    cdef int forget(self, Way way, list principals) except -1
    # Goes on with links that have gone and left many packets, and with principals that are no more.
    cdef int lose_some(self, Way way) except -1
    # No new work to `source`; what waits for it alone goes to `target`, or to whoever handles it. How many.
    cdef int migrate(self, Way way, Member source, Member target) except -1
    cdef int set_window(self, Way way, Member member, int64_t window) except -1
    # -- private
    cdef Py_ssize_t _forget_flights(self, Way way, list forgotten, Py_ssize_t most) except? -1
    cdef Py_ssize_t _lose_flights(self, Way way, Member member, Py_ssize_t most) except? -1
    cdef int _lose_origin(self, Way way, Flight flight, Member member) except -1
    cdef int _lose_target(self, Way way, Flight flight, Member member) except -1
