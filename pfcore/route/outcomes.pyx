"""What is remembered of how packets ended. See ``outcomes.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.route.flights cimport NOBODY_ROLE, Flight, Principal
from pfcore.route.ledger cimport Ledger
from pfcore.wire.writer cimport encode_error, put_failure_payload

__all__ = ["Outcomes"]

cdef dict _WITHDRAWN = {
    "PF499": encode_error("PF499", "cancelled by its submitter", None, 0),
    "PF502": encode_error("PF502", "its submitter's connection was lost; it may have run or not", None, 0),
}

cdef enum:
    LEAST = 1000                 # outcomes that a principal's share has, however many principals there are
    NOBODYS_BYTES = 65536


@cython.final
cdef class Outcomes:
    """`most` outcomes, and `most_bytes` of results, in equal shares. ValueError for less than one."""

    def __init__(self, int32_t most, int64_t most_bytes):
        Ledger(bound=most, room=most_bytes)  # bad settings fail here
        self.most = most
        self.most_bytes = most_bytes
        self.principals = 1
        self.ledgers = []
        self.nobodys = Ledger(bound=LEAST, room=NOBODYS_BYTES)

    cdef Ledger of(self, Principal principal):
        if principal.ledger is None and principal.role == NOBODY_ROLE:
            return self.nobodys  # what is still under way of one that is no more
        if principal.ledger is None:
            principal.ledger = Ledger(bound=max(min(LEAST, self.most), <int32_t>(self.most // self.principals)),
                                      room=self.most_bytes // self.principals)
            self.ledgers.append(principal.ledger)
        return principal.ledger

    cdef int withdrawn(self, Flight flight, bytes packet_id, object code, int64_t now) except -1:
        cdef OutputBuffer out = OutputBuffer(limit=65536)
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(packet_id)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(packet_id)
        put_failure_payload(out, p, n, <bytes>_WITHDRAWN[code], 0)
        self.of(flight.principal).record(
            flight.tag, flight.principal.number, p, n, flight.fingerprint, False, out.data, out.size, now)
        return 0

    cdef int forget(self, Principal principal) except -1:
        if principal.ledger is not None:
            self.ledgers.remove(principal.ledger)
            principal.ledger = None
        return 0

    cdef Py_ssize_t count(self) except? -1:
        return sum([len(ledger) for ledger in self.ledgers])

    cdef Py_ssize_t bytes_used(self) except? -1:
        return sum([ledger.bytes_used for ledger in self.ledgers])
