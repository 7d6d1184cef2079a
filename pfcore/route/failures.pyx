"""What the switch itself refused or failed. See ``failures.pxd``."""

cimport cython

from pfcore.route.flights cimport Flight, Member
from pfcore.wire.reader cimport F_METADATA, FrameReader, group_code, text_to_str

__all__ = ["Failures"]

cdef enum:
    MAX_TOLD = 256               # in one go; the rest is counted only
    READ_AT_ONCE = 262144        # bytes of packets that are read again for their traces, likewise

# Codes that are counted by their names; peers may choose any other.
cdef frozenset _CODES = frozenset(
    ("PF001", "PF400", "PF401", "PF403", "PF408", "PF409", "PF413", "PF424", "PF426", "PF429", "PF499", "PF500",
     "PF502", "PF503"))


@cython.final
cdef class Failures:
    """`listener`: called with ``(code, message, key, id, principal, traceparent or None)``; None: nobody is told."""

    def __init__(self, listener):
        self.listener = listener
        self.told = []
        self.counts = {}

    cdef int count(self, object code) except -1:
        # peers choose codes: those that nobody knows are one
        if code not in _CODES:
            code = "other"
        self.counts[code] = self.counts.get(code, 0) + 1
        return 0

    cdef bint may_read(self, Py_ssize_t length) noexcept:
        if self.listener is None or len(self.told) >= MAX_TOLD or self.read + length > READ_AT_ONCE:
            return False
        self.read += length
        return True

    cdef int note_refused(self, Member member, FrameReader reader, object code, object message) except -1:
        if self.listener is None or len(self.told) >= MAX_TOLD:
            return 0
        self.told.append((
            code, message, f"{group_code(reader.group)}:{text_to_str(reader.element.p, reader.element.n, True)}",
            text_to_str(reader.id.p, reader.id.n, False), member.principal.name if member is not None else None,
            _traceparent(reader)))
        return 0

    cdef int note_failed(self, Flight flight, FrameReader reader, object code, object message,
                         bytes packet_id) except -1:
        if self.listener is None or len(self.told) >= MAX_TOLD:
            return 0
        self.told.append((code, message, flight.route.key, packet_id.decode("utf-8", "replace"),
                          flight.principal.name, _traceparent(reader)))
        return 0

    cdef int tell(self) except -1:
        cdef list told = self.told
        self.told = []
        self.read = 0
        for one in told:
            try:
                self.listener(*one)
            except Exception:
                pass  # a log that fails is not a packet's fault
        return 0


cdef object _traceparent(FrameReader reader):
    metadata = reader.decode(F_METADATA) if reader is not None else None
    return metadata.get("traceparent") if isinstance(metadata, dict) else None
