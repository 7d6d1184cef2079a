# Writes frames into an OutputBuffer, between its `begin_message` and `end_message`.
#
# Each writes one whole frame and raises InvalidPacket for a value that JSON
# cannot hold, BufferError at the buffer's limit; the caller then cancels the
# message. `depth`: levels of nesting that the receiver accepts in a frame.

from libc.stdint cimport int64_t

from pfcore.buffers cimport OutputBuffer
from pfcore.packets cimport Packet
from pfcore.reader cimport FrameReader, Text

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
# `,"dependencies":[...],"metadata":{...}` of a packet that has them, else None; `retries` above 0 go into the metadata.
cdef bytes encode_extra(Packet packet, int depth, int retries)

# A packet that was read, written anew in the usual layout, so that every parser reads what was checked:
# `{"version":...,"priority":5` with another element or id where one is given (p not NULL) ...
cdef int put_packet_head(OutputBuffer out, FrameReader reader, Text element, Text packet_id) except -1
# ... and `,"dependencies":[...],"metadata":{...}` of it. `timeout_ms` goes between them, a brace behind.
cdef int put_packet_extra(OutputBuffer out, FrameReader reader) except -1
# A result that was read, as a payload in the usual layout, under another id where one is given.
cdef int put_result_payload(OutputBuffer out, FrameReader reader, Text packet_id) except -1
# An error of ours, as a result's payload.
cdef int put_failure_payload(OutputBuffer out, const unsigned char* packet_id, Py_ssize_t id_length,
                             object error, int64_t duration_ms, int depth) except -1
# `{"type":"result","seq":7,"payload":`
cdef int put_result_head(OutputBuffer out, int64_t seq) except -1
