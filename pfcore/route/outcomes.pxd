# What is remembered of how packets ended: a ledger for each principal, so that nobody's push out another's.

from libc.stdint cimport int32_t, int64_t

from pfcore.route.flights cimport Flight, Principal
from pfcore.route.ledger cimport Ledger

cdef class Outcomes:
    cdef:
        list ledgers             # those of principals that have one
        Ledger nobodys           # of principals that are no more
        int32_t most             # outcomes in all; a principal has its share
        int64_t most_bytes       # of results, likewise
        Py_ssize_t principals    # among how many

    cdef Ledger of(self, Principal principal)
    # One that had begun was taken back, by its submitter (PF499) or because he is gone (PF502): the same id does not
    # begin again.
    cdef int withdrawn(self, Flight flight, bytes packet_id, object code, int64_t now) except -1
    cdef int forget(self, Principal principal) except -1
    cdef Py_ssize_t count(self) except? -1
    cdef Py_ssize_t bytes_used(self) except? -1
