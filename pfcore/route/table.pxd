# The flights that are under way, by id and by seq, with their deadlines.
#
# Ids are a principal's own: where two chose the same one, the later flight goes
# by another on the wire and in the table, and `renamed` knows it by its own.
# Flight objects are used again from a pool: routing makes no Python object for
# a packet once it is warm.

from libc.stdint cimport int32_t, int64_t

from pfcore.link.pending cimport PendingTable
from pfcore.route.flights cimport Flight

cdef class FlightTable:
    cdef:
        PendingTable pending     # of Flight, under seqs from 2^40 up
        dict renamed             # (principal number, own id) -> Flight, of those with an `own_id`
        list pool                # Flight objects to be used again

    cdef Flight new(self)
    # Sets `slot`, `seq`, `deadline` and `own_id`. Raises PendingFull, and nothing has changed.
    cdef int enter(self, Flight flight, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline,
                   int32_t number, bytes own_id) except -1
    # It is no longer there; the object goes back with `give_back`.
    cdef int leave(self, Flight flight) except -1
    cdef int give_back(self, Flight flight) except -1
    # The principal's flight of that id, None. `clash`: someone else has one of the same id.
    cdef Flight find(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint* clash)
    # The id as its submitter knows it, and as the wire behind us does.
    cdef bytes id_of(self, Flight flight)
    cdef bytes wire_id_of(self, Flight flight)
