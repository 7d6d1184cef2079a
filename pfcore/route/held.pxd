# Payloads that are kept: of packets that have to wait, or may have to be sent again.
#
# A packet is held as it was checked, written anew from its fields and without
# its timeout, which is put in as what is left of it.

from libc.stdint cimport int64_t

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.route.flights cimport Flight
from pfcore.route.table cimport FlightTable
from pfcore.wire.reader cimport FrameReader

cdef class Held:
    cdef:
        FlightTable flights
        OutputBuffer scratch     # for one message, by whoever needs it next
        Py_ssize_t bytes         # of all that are kept

    # Keeps the packet in `reader` as the flight's, and charges its account. 0, or how many bytes there is no room for.
    cdef Py_ssize_t keep(self, Flight flight, FrameReader reader) except? -1
    # The held packet's element becomes that of its route.
    cdef int rename(self, Flight flight, int64_t now) except -1
    # The payload with what is left of its time.
    cdef int put(self, Flight flight, OutputBuffer out, int64_t now) except -1
    # ``(reader, buffer)``: a held packet, read. Of its own: whoever runs it may come back here meanwhile.
    cdef tuple read(self, Flight flight, int64_t seq, int64_t now)
    cdef int let_go(self, Flight flight) noexcept
    # -- private
    cdef Py_ssize_t _write(self, Flight flight, FrameReader reader, OutputBuffer out) except? -1
