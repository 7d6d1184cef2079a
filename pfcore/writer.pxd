# Writes frames into an OutputBuffer, between its `begin_message` and `end_message`.
#
# Each writes one whole frame and raises InvalidPacket for a value that JSON
# cannot hold, BufferError at the buffer's limit; the caller then cancels the
# message. `depth`: levels of nesting that the receiver accepts in a frame.

from libc.stdint cimport int64_t

from pfcore.buffers cimport OutputBuffer
from pfcore.packets cimport Packet

cdef int put_submit(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    bytes address, object data, int priority, int64_t timeout_ms,
                    bytes extra, int depth) except -1
cdef int put_result(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    object data, int64_t duration_ms, int depth) except -1
cdef int put_failure(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                     object error, int64_t duration_ms, int depth) except -1
cdef int put_error(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                   object error, int depth) except -1
cdef int put_heartbeat(OutputBuffer out, int64_t seq, object payload) except -1
# JSON of any value; `depth`: levels left for it; `where` names it in errors.
cdef int put_data(OutputBuffer out, object data, int depth, str where) except -1
cdef int put_literal(OutputBuffer out, const char* text) except -1
# `,"dependencies":[...],"metadata":{...}` of a packet that has them, else None.
cdef bytes encode_extra(Packet packet, int depth)
