"""Payloads that are kept. See ``held.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.route.flights cimport Flight
from pfcore.route.table cimport FlightTable
from pfcore.wire.reader cimport FrameReader, Text
from pfcore.wire.terms cimport MILLISECOND, W_PAYLOAD, W_SUBMIT, W_TIMEOUT
from pfcore.wire.writer cimport metadata_again, put_packet_extra, put_packet_head

__all__ = ["Held"]

cdef enum:
    LARGEST = 1 << 29            # bytes of a message that is written here
    KEPT_SCRATCH = 65536         # bytes that the scratch buffer may keep


@cython.final
cdef class Held:
    """What is held for the flights of one table."""

    def __init__(self, FlightTable flights not None):
        self.flights = flights
        self.scratch = OutputBuffer(limit=LARGEST)

    cdef Py_ssize_t keep(self, Flight flight, FrameReader reader) except? -1:
        cdef OutputBuffer out = self.scratch
        cdef Py_ssize_t start
        cdef unsigned char* held
        if flight.held != NULL:
            return 0
        start = self._write(flight, reader, out)
        if not flight.account.take(out.size):
            return out.size
        held = <unsigned char*>malloc(<size_t>out.size)
        if held == NULL:
            flight.account.settle(-out.size)
            raise MemoryError()
        memcpy(held, out.data, <size_t>out.size)
        flight.held = held
        flight.head = start
        flight.length = out.size
        flight.cost += out.size
        self.bytes += out.size
        if out.size > KEPT_SCRATCH:
            out.release()
        return 0

    cdef Py_ssize_t _write(self, Flight flight, FrameReader reader, OutputBuffer out) except? -1:
        """The payload without its timeout and last brace, for a reactor; where the timeout belongs."""
        cdef bytes metadata = metadata_again(reader)
        cdef Text element, wire
        cdef Py_ssize_t start
        out.clear()
        element.p = NULL
        wire.p = NULL
        if flight.own_id is not None:
            wire.p = self.flights.pending.id_of(flight.slot)
            wire.n = self.flights.pending.entries[flight.slot].id_length
        if flight.route.element is not None:
            element.p = <const unsigned char*>PyBytes_AS_STRING(flight.route.element)
            element.n = PyBytes_GET_SIZE(flight.route.element)
        put_packet_head(out, reader, element, wire)
        start = out.size
        put_packet_extra(out, reader, metadata)
        return start

    cdef int rename(self, Flight flight, int64_t now) except -1:
        cdef OutputBuffer out = OutputBuffer(limit=LARGEST)
        cdef unsigned char* held
        read, _borrowed = self.read(flight, 1, now)
        cdef Py_ssize_t start = self._write(flight, <FrameReader>read, out)
        held = <unsigned char*>malloc(<size_t>out.size)
        if held == NULL:
            raise MemoryError()
        memcpy(held, out.data, <size_t>out.size)
        self.bytes += out.size - flight.length
        flight.account.settle(out.size - flight.length)
        flight.cost += out.size - flight.length
        free(flight.held)
        flight.held = held
        flight.head = start
        flight.length = out.size
        return 0

    cdef int put(self, Flight flight, OutputBuffer out, int64_t now) except -1:
        cdef int64_t left = (flight.deadline - now + MILLISECOND - 1) // MILLISECOND
        out.put(flight.held, flight.head)
        out.put_literal(W_TIMEOUT)
        out.put_int(left if left > 0 else 1)
        out.put(flight.held + flight.head, flight.length - flight.head)
        out.put_literal(b"}")
        return 0

    cdef tuple read(self, Flight flight, int64_t seq, int64_t now):
        cdef OutputBuffer out = OutputBuffer(limit=LARGEST)
        cdef FrameReader reader = FrameReader(max_depth=512)
        out.put_literal(W_SUBMIT)
        out.put_int(seq if seq > 0 else 1)
        out.put_literal(W_PAYLOAD)
        self.put(flight, out, now)
        out.put_literal(b"}")
        if reader.read(out.data, out.size) < 0:
            raise AssertionError(f"a packet that was checked does not read: {reader.error()}")
        return reader, out

    cdef int let_go(self, Flight flight) noexcept:
        if flight.held != NULL:
            free(flight.held)
            flight.held = NULL
            self.bytes -= flight.length
        return 0
