# Who waits for whom: packets that begin once others have succeeded.
#
# The lists are by what is waited for. Taking a flight off many of them, and
# starting many flights that waited for one, are both put off beyond a bound:
# so many, then the rest of the loop has a turn.

from libc.stdint cimport int32_t, int64_t

from pfcore.route.flights cimport Flight
from pfcore.route.ledger cimport Ledger
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport FrameReader

cdef class Dependencies:
    cdef:
        FlightTable flights
        dict awaited             # (principal number, id) -> {Flight: None}
        object unwanted          # deque of (principal number, ids, Flight): still in `awaited`, but waits no longer
        object released          # deque of (principal number, id, success, iterator): ended; who waited is looked at
        object ready             # OrderedDict: account -> deque of (Flight, seq, failed id or None) that may begin
        Py_ssize_t swept         # entries of `awaited` taken off or looked at in this iteration
        Py_ssize_t begun         # packets that were started, or failed, since then
        int64_t spent            # ns that they took
        Py_ssize_t walked        # packets that waited for one that has ended, since the last were counted
        bint starting

    # A packet that names dependencies has come: it is launched once all of them have succeeded, or fails. `ledger`:
    # how its principal's packets ended.
    cdef int require(self, Way way, Flight flight, FrameReader reader, Ledger ledger, int64_t now) except -1
    # It waits no longer. Deferred in part where that is much just now.
    cdef int stop(self, Flight flight, Way way) except -1
    # A packet has ended: those that wait for it go on, or fail.
    cdef int ended(self, int32_t number, bytes packet_id, bint success, Way way, int64_t now) except -1
    # A flight that is held is to be handled here: now, or when there is time, by turns of the accounts.
    cdef int begin_here(self, Way way, Flight flight, int64_t now) except -1
    # Is there no time for a large one just now? Then it begins, or finds its reactor, when there is.
    cdef bint put_off(self, Way way, Flight flight, int64_t now) except -1
    # One that was not put off took so many ns.
    cdef int took(self, Way way, int64_t spent) except -1
    # Starts, or fails, what is ready: so many until `begin_turn` is called again.
    cdef int go_on(self, Way way, int64_t now) except -1
    # The loop has had a turn; and goes on with what `stop` has put off.
    cdef int begin_turn(self) except -1
    cdef int sweep(self, Way way) except -1
    # -- private
    cdef bint _may_begin(self) noexcept
    # Does anything that is needed wait, in turn, for this packet? 1: yes; -1: too many to tell.
    cdef int _in_cycle(self, int32_t number, bytes packet_id, set needs) except? -2
    cdef int _walk(self, Way way) except -1
    cdef int _note_ready(self, Flight flight, bytes failed) except -1
    cdef int _take_off(self, int32_t number, bytes needed, Flight flight) except -1
