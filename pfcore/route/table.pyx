"""The flights that are under way. See ``table.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t

from pfcore.link.pending cimport PendingTable
from pfcore.route.flights cimport Flight
from pfcore.wire.terms cimport FIRST_ROUTED

__all__ = ["FlightTable"]

cdef enum:
    POOL = 8192                  # flights kept to be used again


@cython.final
cdef class FlightTable:
    """At most `bound` flights. `now`: ns, when its timer wheel begins."""

    def __init__(self, Py_ssize_t bound, int64_t now):
        self.pending = PendingTable(bound=bound, first_seq=FIRST_ROUTED, now=now)
        self.renamed = {}
        self.pool = []

    cdef Flight new(self):
        return <Flight>self.pool.pop() if self.pool else Flight.__new__(Flight)

    cdef int enter(self, Flight flight, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline,
                   int32_t number, bytes own_id) except -1:
        flight.slot = self.pending.insert(flight, packet_id, n, deadline)
        flight.seq = self.pending.entries[flight.slot].seq
        flight.deadline = deadline
        if own_id is not None:
            flight.own_id = own_id
            self.renamed[(number, own_id)] = flight
        return 0

    cdef int leave(self, Flight flight) except -1:
        if flight.own_id is not None:
            self.renamed.pop((flight.principal.number, flight.own_id), None)
            flight.own_id = None
        self.pending.take_slot(flight.slot)
        return 0

    cdef int give_back(self, Flight flight) except -1:
        if len(self.pool) < POOL:
            self.pool.append(flight)
        return 0

    cdef Flight find(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint* clash):
        cdef int32_t slot
        cdef Flight flight
        clash[0] = False
        if self.pending.count == 0:
            return None
        if self.renamed:
            flight = <Flight>self.renamed.get((number, PyBytes_FromStringAndSize(<const char*>packet_id, n)))
            if flight is not None:
                return flight
        slot = self.pending.find_id(packet_id, n)
        if slot < 0:
            return None
        flight = <Flight>self.pending.entries[slot].waiter
        if flight.principal.number == number and flight.own_id is None:
            return flight
        clash[0] = True
        return None

    cdef bytes id_of(self, Flight flight):
        return flight.own_id if flight.own_id is not None else self.wire_id_of(flight)

    cdef bytes wire_id_of(self, Flight flight):
        return PyBytes_FromStringAndSize(<const char*>self.pending.id_of(flight.slot),
                                         self.pending.entries[flight.slot].id_length)
