# Writes frames into an OutputBuffer, between its `begin_message` and `end_message`.
#
# In two steps: `encode_value` makes of a value what can be written without making
# or letting go of any Python object (itself for a str, None, bool or int of 64
# bits, else its JSON as bytes); that may run the user's code, so it comes before
# the message is opened and before any state is changed. The `put_` functions
# write one whole frame and raise BufferError at the buffer's limit only.

from libc.stdint cimport int64_t

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.wire.packets cimport Packet
from pfcore.wire.reader cimport FrameReader, Text

# `depth`: levels left for the value; `where` names it in errors. Raises InvalidPacket, whatever a value's own code
# raises.
cdef object encode_value(object data, int depth, str where)
# `{"code":...,"message":...,"details":...}`; what cannot be said in it is left out, a text of any kind is made to fit.
cdef bytes encode_error(object code, object message, object details, int depth)
# What `encode_value` gave.
cdef int put_value(OutputBuffer out, object value) except -1

cdef int put_submit(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    bytes address, object value, int priority, int64_t timeout_ms, bytes extra) except -1
# ... of a result; returns how many bytes come before its payload.
cdef Py_ssize_t put_result(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    object value, int64_t duration_ms) except? -1
cdef Py_ssize_t put_failure(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                     bytes error, int64_t duration_ms) except? -1
# The payloads of these two are encoded already.
cdef int put_error(OutputBuffer out, int64_t seq, bytes payload) except -1
# What a reactor says of itself. `timestamp`: ms of the Unix epoch; `name`, `instance`, `capabilities`: or None.
cdef dict heartbeat_payload(int64_t timestamp, object name, object instance, list capabilities, int64_t window,
                            Py_ssize_t load)
cdef int put_heartbeat(OutputBuffer out, int64_t seq, object payload) except -1
# `,"dependencies":[...],"metadata":{...}` of a packet that has them, else None; `retries` above 0 go into the metadata.
cdef bytes encode_extra(Packet packet, int depth, int retries)

# A packet that was read, written anew in the canonical layout, so that every parser reads what was checked:
# `{"version":...,"priority":5` with another element or id where one is given (p not NULL) ...
cdef int put_packet_head(OutputBuffer out, FrameReader reader, Text element, Text packet_id) except -1
# ... and `,"dependencies":[...],"metadata":{...}` of it. `timeout_ms` goes between them, a brace behind.
# The `metadata` is what `metadata_again` gave, before the message was opened.
cdef int put_packet_extra(OutputBuffer out, FrameReader reader, bytes metadata) except -1
# A packet's metadata written anew, None where it has none.
cdef bytes metadata_again(FrameReader reader)
# A result that was read, as a payload in the canonical layout, under another id where one is given. Into a buffer of
# its own, not into an open message: it encodes.
cdef int put_result_payload(OutputBuffer out, FrameReader reader, Text packet_id) except -1
# An error of ours, as a result's payload.
cdef int put_failure_payload(OutputBuffer out, const unsigned char* packet_id, Py_ssize_t id_length,
                             bytes error, int64_t duration_ms) except -1
# `{"type":"result","seq":7,"payload":`
cdef int put_result_head(OutputBuffer out, int64_t seq) except -1
