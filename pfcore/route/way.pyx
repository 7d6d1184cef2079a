"""What the parts of routing may ask of the switch. See ``way.pxd``."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pfcore.memory.budget cimport Account
from pfcore.memory.queue cimport Queue
from pfcore.route.flights cimport Flight, Member, Route
from pfcore.wire.reader cimport FrameReader

__all__ = ["Way"]


cdef class Way(Sink):
    """Moves packets on. The switch is the one there is; every method here is its own."""

    cdef int arm_at(self, int64_t deadline) except -1:
        raise NotImplementedError

    cdef Flight begin(self, Member origin, Route route, FrameReader reader, bint renamed, uint64_t fingerprint,
                      uint32_t tag, int64_t now):
        raise NotImplementedError

    cdef int launch(self, Flight flight, FrameReader reader, int64_t now) except -1:
        raise NotImplementedError

    cdef int launch_again(self, Flight flight, int64_t now) except -1:
        raise NotImplementedError

    cdef int place_again(self, Flight flight, int64_t now) except -1:
        raise NotImplementedError

    cdef int run_here(self, Flight flight, int64_t now) except -1:
        raise NotImplementedError

    cdef int end(self, Flight flight, const unsigned char* payload, Py_ssize_t length, bint success, object code,
                 bint answered, int64_t now) except -1:
        raise NotImplementedError

    cdef int fail(self, Flight flight, object code, object message, object details, int64_t now,
                  FrameReader reader=None) except -1:
        raise NotImplementedError

    cdef int forget(self, Flight flight) except -1:
        raise NotImplementedError

    cdef int take_back(self, Flight flight, object code) except -1:
        raise NotImplementedError

    cdef int paid_by(self, Flight flight, Account account) except -1:
        raise NotImplementedError

    cdef bint hold(self, Flight flight, FrameReader reader) except -1:
        raise NotImplementedError

    cdef int place(self, Flight flight, FrameReader reader, int64_t now) except -1:
        raise NotImplementedError

    cdef int send(self, Flight flight, Member target, FrameReader reader, int64_t now) except -1:
        raise NotImplementedError

    cdef int enqueue(self, Flight flight, Queue queue, FrameReader reader, int64_t now) except -1:
        raise NotImplementedError

    cdef int pump(self, Member member, int64_t now) except -1:
        raise NotImplementedError

    cdef int offer(self, Member member) except -1:
        raise NotImplementedError

    cdef int withdraw(self, Flight flight) except -1:
        raise NotImplementedError

    cdef int give_back(self, Flight flight) except -1:
        raise NotImplementedError

    cdef int touch(self, Member member, int64_t in_flight) except -1:
        raise NotImplementedError

    cdef int settled(self, int32_t number, const unsigned char* packet_id, Py_ssize_t n, bint success,
                     int64_t now) except -1:
        raise NotImplementedError

    cdef int write_result(self, Member member, int64_t seq, const unsigned char* payload, Py_ssize_t length) except -1:
        raise NotImplementedError
