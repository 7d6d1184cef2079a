# Packets that the gateway handles itself: between the switch and its dispatcher.
#
# Most handlers answer before `accept` returns: such a packet never has a flight,
# and what its answer needs is an Arrival on the stack. A packet that goes on,
# or had to wait before, is a flight of state LOCAL; the engine that it came by
# keeps the dispatcher's job, and sees to its deadline.

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pfcore.link.engine cimport Engine, Incoming
from pfcore.route.failures cimport Failures
from pfcore.route.flights cimport Flight, Member, Principal, Route
from pfcore.route.held cimport Held
from pfcore.route.outcomes cimport Outcomes
from pfcore.route.table cimport FlightTable
from pfcore.route.way cimport Way
from pfcore.wire.reader cimport FrameReader
from pfcore.work.dispatch cimport Dispatcher
from pfcore.work.worker cimport Job

# A packet that is with the dispatcher just now. What the dispatcher and the engine hand on is its first member.
cdef struct Arrival:
    Incoming incoming
    PyObject* flight             # that of one that had to wait; NULL: it has none
    PyObject* route
    uint64_t fingerprint
    int64_t accepted             # ns
    uint32_t tag                 # of principal and id, in the ledger
    bint was_answered

cdef class Local:
    cdef:
        Dispatcher dispatcher
        FlightTable flights
        Held held
        Failures failures
        Outcomes outcomes
        Engine inner             # the gateway's own side: answers nobody else wants go there; None

    # To the dispatcher. `clash`: another principal has a packet of the same id.
    cdef int run(self, Way way, Member origin, Route route, FrameReader reader, uint32_t tag, uint64_t fingerprint,
                 bint clash, int64_t now) except -1
    # As `run`, for a flight that is held.
    cdef int run_held(self, Way way, Flight flight, int64_t now) except -1
    # The dispatcher, or a refusal, has answered a packet.
    cdef int answered(self, Way way, Engine engine, Incoming* incoming, object code,
                      const unsigned char* payload, Py_ssize_t length) except -1
    # A job of the dispatcher's is wanted no more, or its link has gone.
    cdef int drop(self, Way way, Engine engine, object job, int why) except -1
    # It is with a handler of ours, and wanted no more: an engine of our own keeps its job.
    cdef int withdraw(self, Way way, Flight flight) except -1
    # The deadline of a flight of state LOCAL has come.
    cdef int expire(self, Way way, Flight flight) except -1
    # -- private
    cdef int _answered_at_once(self, Way way, Principal principal, Arrival* arrival, object code,
                               const unsigned char* payload, Py_ssize_t length, int64_t now) except -1
    cdef int _keep(self, Flight flight, Engine engine, Job job) except -1
    cdef bint _goes_on(self, Flight flight, Job job) except -1
