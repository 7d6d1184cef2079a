"""Frame codec of PacketFlow v1.0 for Python: the four message types to and from bytes.

Links use `pfcore.wire.reader` and `pfcore.wire.writer` directly; this is the same for
everybody else. Both directions validate: what RFC 8259 or the protocol does
not allow raises `InvalidPacket`, which names the place and what was expected.
"""

import msgspec

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_FromLongLong
from libc.stdint cimport int64_t

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.memory.cpythonx cimport PyLong_AsLongLongAndOverflow, PyUnicode_AsUTF8AndSize
from pfcore.wire.packets cimport (
    Message,
    Packet,
    Result,
    check_timeout,
    invalid,
    new_packet,
    new_result,
    packet_address,
    packet_from,
    result_from,
)
from pfcore.wire.reader cimport DEFAULT_DEPTH, F_DATA, F_ERROR, FrameReader, MessageType
from pfcore.wire.terms cimport MAX_SEQ as LARGEST_SEQ, W_ERROR, W_HEARTBEAT, W_PAYLOAD, W_SUBMIT
from pfcore.wire.writer cimport encode_extra, encode_value, put_failure, put_result, put_submit, put_value

__all__ = ["MAX_SEQ", "decode_message", "encode_message", "scan_repeatedly"]

MAX_SEQ = LARGEST_SEQ

cdef tuple _TYPES = (None, "submit", "result", "error", "heartbeat")
cdef object _decode = msgspec.json.Decoder().decode


cdef OutputBuffer _scratch = None
cdef FrameReader _reader = None


cdef int _write_message(OutputBuffer out, str kind, int64_t seq, object payload) except -1:
    cdef Packet packet
    cdef Result result
    cdef Py_ssize_t n
    cdef const unsigned char* p
    if kind == "submit":
        packet = packet_from(payload)
        p = <const unsigned char*>PyUnicode_AsUTF8AndSize(packet.id, &n)
        if packet.version == "1.0":
            put_submit(out, seq, p, n, packet_address(packet), encode_value(packet.data, DEFAULT_DEPTH - 2, "data"),
                       packet.priority, check_timeout(packet.timeout_ms), encode_extra(packet, DEFAULT_DEPTH, 0))
        else:
            out.put_literal(W_SUBMIT)
            out.put_int(seq)
            out.put_literal(W_PAYLOAD)
            fields = {"version": packet.version, "id": packet.id, "group": packet.group, "element": packet.element,
                      "data": packet.data, "priority": packet.priority}
            for name in ("timeout_ms", "dependencies", "metadata"):
                if getattr(packet, name):
                    fields[name] = getattr(packet, name)
            put_value(out, encode_value(fields, DEFAULT_DEPTH - 1, "payload"))
            out.put_literal(b"}")
    elif kind == "result":
        result = result_from(payload)
        p = <const unsigned char*>PyUnicode_AsUTF8AndSize(result.packet_id, &n)
        if not 0 <= result._duration < 9e15:
            raise invalid("duration_ms", "milliseconds, not negative", result._duration)
        if result.ok:
            put_result(out, seq, p, n, encode_value(result.data, DEFAULT_DEPTH - 2, "result"),
                       <int64_t>result._duration)
        else:
            put_failure(out, seq, p, n, <bytes>encode_value(result.error, DEFAULT_DEPTH - 2, "error"),
                        <int64_t>result._duration)
    elif kind == "error" or kind == "heartbeat":
        try:
            payload = dict(payload)
        except (TypeError, ValueError):
            raise invalid("payload", "a mapping", payload) from None
        out.put_literal(W_ERROR if kind == "error" else W_HEARTBEAT)
        out.put_int(seq)
        out.put_literal(W_PAYLOAD)
        put_value(out, encode_value(payload, DEFAULT_DEPTH - 1, "payload"))
        out.put_literal(b"}")
    else:
        raise invalid("type", "submit, result, error or heartbeat", kind)
    return 0


def encode_message(type, seq, payload):
    """One frame as JSON bytes (specification section 2).

    `type`: ``"submit"``, ``"result"``, ``"error"`` or ``"heartbeat"``. `seq`: 0 to
    2^53-1, from 1 for a submit. `payload`: a `Packet` or `Result` or a mapping
    with their fields; any mapping for the other two. Raises `InvalidPacket`.
    """
    global _scratch
    cdef OutputBuffer out = _scratch
    cdef bytes frame
    cdef int64_t number
    cdef int overflow = 0
    if <object>seq.__class__ is not int:
        raise invalid("seq", "an integer from 0 to 2^53-1", seq)
    number = PyLong_AsLongLongAndOverflow(seq, &overflow)
    if overflow or not 0 <= number <= LARGEST_SEQ or (number == 0 and type == "submit"):
        raise invalid("seq", "an integer from 0 (a submit: 1) to 2^53-1", seq)
    if out is None:
        out = OutputBuffer(limit=1 << 40)
    _scratch = None  # a value's own conversion to JSON may call us again
    try:
        if <object>type.__class__ is not str:
            raise invalid("type", "submit, result, error or heartbeat", type)
        _write_message(out, <str>type, number, payload)
        if type == "error" or type == "heartbeat":
            _check_own(out, <str>type)
        frame = PyBytes_FromStringAndSize(<char*>out.data, out.size)
    finally:
        if out.capacity > 65536:
            out.release()
        out.clear()
        _scratch = out
    return frame


cdef int _check_own(OutputBuffer out, str kind) except -1:
    """What others send of these two is checked on arrival; hold ourselves to the same."""
    cdef FrameReader reader = FrameReader()
    if reader.read(out.data, out.size) < 0:
        raise reader.error()
    return 0


def decode_message(buffer, *, int max_depth=DEFAULT_DEPTH, bint predict=True):
    """The `Message` in a frame of JSON bytes (any object with the buffer protocol).

    Its payload is a `Packet` for a submit, a `Result` for a result and a dict
    for the other two. `max_depth`: levels of nesting, 3 to 512 (default 64).
    `predict`: compare with the canonical layout first (faster, never different).
    Raises `InvalidPacket`, which names the place and what was expected.
    """
    global _reader
    cdef Py_buffer view
    cdef FrameReader reader = _reader
    cdef Message message
    _reader = None
    if reader is None or reader.max_depth != max_depth:
        reader = FrameReader(max_depth=max_depth)
    reader.predict = predict
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if reader.read(<const unsigned char*>view.buf, view.len) < 0:
            raise reader.error()
        message = Message.__new__(Message)
        message.type = <str>_TYPES[<int>reader.type]
        message.seq = PyLong_FromLongLong(reader.seq)
        if reader.type == MessageType.SUBMIT:
            message.payload = new_packet(reader, reader.decode(F_DATA))
        elif reader.type == MessageType.RESULT:
            message.payload = new_result(
                reader.id.p, reader.id.n, reader.success,
                reader.decode(F_DATA), reader.decode(F_ERROR), reader.duration_ms)
        else:
            message.payload = _payload_dict(reader)
        return message
    finally:
        PyBuffer_Release(&view)
        _reader = reader


cdef dict _payload_dict(FrameReader reader):
    """An error's or heartbeat's payload, unknown keys included."""
    return _decode(PyBytes_FromStringAndSize(<const char*>reader._start, reader._length))["payload"]


def scan_repeatedly(bytes frame not None, Py_ssize_t times, *, bint predict=True):
    """Reads `frame` `times` times as a link does, building nothing. For benchmarks.

    `predict`: try the canonical layout first, as links do. Returns the seq it
    found. Raises `InvalidPacket`.
    """
    cdef FrameReader reader = FrameReader()
    reader.predict = predict
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(frame)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(frame), _
    for _ in range(times):
        if reader.read(p, n) < 0:
            raise reader.error()
    return reader.seq
