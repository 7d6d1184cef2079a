# What the switch itself refused or failed: counted by code, and told to the log once nothing is under way.

from pfcore.route.flights cimport Flight, Member
from pfcore.wire.reader cimport FrameReader

cdef class Failures:
    cdef:
        object listener          # callable(code, message, key, id, principal, traceparent) or None
        list told                # what it has yet to be told
        Py_ssize_t read          # bytes of packets that were read again for it
        readonly dict counts     # code -> how often

    cdef int count(self, object code) except -1
    # May a packet of so many bytes be read again, to be told with its trace?
    cdef bint may_read(self, Py_ssize_t length) noexcept
    # A packet that was refused, and one that had begun. `reader`: where its metadata is, or None.
    cdef int note_refused(self, Member member, FrameReader reader, object code, object message) except -1
    cdef int note_failed(self, Flight flight, FrameReader reader, object code, object message,
                         bytes packet_id) except -1
    cdef int tell(self) except -1
