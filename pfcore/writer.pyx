"""Writes frames into an output buffer: the four message types, and any value as JSON."""

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.string cimport strlen

from pfcore.buffers cimport OutputBuffer
from pfcore.packets cimport Packet
from pfcore.reader cimport (
    DEFAULT_DEPTH,
    F_DATA,
    F_DEPENDENCIES,
    F_ERROR,
    F_METADATA,
    F_VERSION,
    FrameReader,
    Text,
    decode_span,
    group_code,
    text_to_str,
)
from pfcore.scan cimport Cursor, Kind, Span, pf_count_openers, scan_end, scan_value, skip_space

from pfcore.errors import InvalidPacket

cdef extern from "Python.h":
    bint PyDict_Next(object mapping, Py_ssize_t* at, PyObject** key, PyObject** value) noexcept
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef extern from "bytes_ops.h" nogil:
    bint pf_contains_null(const unsigned char* p, const unsigned char* end) noexcept

__all__ = []

cdef object _encode = msgspec.json.Encoder().encode
cdef object _to_builtins = msgspec.to_builtins
cdef object _Raw = msgspec.Raw


cdef int put_literal(OutputBuffer out, const char* text) except -1:
    return out.put(text, <Py_ssize_t>strlen(text))


cdef int _put_str(OutputBuffer out, object text, str where) except -1:
    cdef Py_ssize_t n
    cdef const char* p
    try:
        p = PyUnicode_AsUTF8AndSize(text, &n)
    except UnicodeEncodeError:
        raise InvalidPacket(f"{where}: expected text without lone surrogates", where=where,
                            expected="text without lone surrogates") from None
    return out.put_string(<const unsigned char*>p, n)


cdef bint _holds_non_finite(object value) except -1:
    """Is there a NaN or an infinity anywhere in this value? Its depth was checked before."""
    cdef type kind = type(value)
    cdef PyObject* key
    cdef PyObject* item
    cdef Py_ssize_t at = 0
    if kind is str or kind is int or kind is bool or value is None:
        return False
    if kind is float:
        return not isfinite(<double>value)
    if kind is dict:
        while PyDict_Next(value, &at, &key, &item):
            if _holds_non_finite(<object>item):
                return True
        return False
    if kind is list:
        for each in <list>value:
            if _holds_non_finite(each):
                return True
        return False
    if kind is tuple:
        for each in <tuple>value:
            if _holds_non_finite(each):
                return True
        return False
    if kind is _Raw:
        return False  # JSON already
    # structs, dataclasses, sets, subclasses: as msgspec sees them
    builtin = _to_builtins(value)
    return type(builtin) is not kind and _holds_non_finite(builtin)


cdef object _not_json(str where, str expected, object found):
    return InvalidPacket(f"{where}: expected {expected}, found {found}", where=where, expected=expected)


cdef int put_data(OutputBuffer out, object data, int depth, str where) except -1:
    """`depth`: levels that are left for `data` itself."""
    cdef int overflow
    cdef int64_t number
    cdef bytes encoded
    cdef const unsigned char* p
    cdef Py_ssize_t n
    cdef Cursor cursor
    cdef Span span
    cdef type kind = type(data)
    if kind is str:
        return _put_str(out, data, where)
    if data is None:
        return out.put(b"null", 4)
    if kind is bool:
        return out.put(b"true", 4) if data is True else out.put(b"false", 5)
    if kind is int:
        number = PyLong_AsLongLongAndOverflow(data, &overflow)
        if overflow == 0:
            return out.put_int(number)
    elif kind is float:
        if not isfinite(<double>data):
            raise _not_json(where, "a finite number", repr(data))
    try:
        encoded = bytes(data) if kind is _Raw else <bytes>_encode(data)
    except RecursionError:
        raise _not_json(where, f"at most {depth} levels of nesting", "more") from None
    except InvalidPacket:
        raise
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidPacket(f"{where}: {error}", where=where, expected="a value that JSON can hold") from error
    p = <const unsigned char*>PyBytes_AS_STRING(encoded)
    n = PyBytes_GET_SIZE(encoded)
    # raw text is anybody's; and whatever nests too deep, the receiver would refuse
    if kind is _Raw or pf_count_openers(p, p + n, depth) > depth:
        cursor.p = p
        cursor.start = p
        cursor.end = p + n
        cursor.depth = depth
        cursor.expected = NULL
        skip_space(&cursor)
        if scan_value(&cursor, &span) < 0 or scan_end(&cursor) < 0:
            expected = (<bytes>cursor.expected).decode()
            raise InvalidPacket(f"{where}: expected {expected} at byte {cursor.p - p}", where=where, expected=expected)
    # msgspec writes NaN and infinities as null: without a null there is none
    if kind is not int and kind is not _Raw and pf_contains_null(p, p + n) and _holds_non_finite(data):
        raise _not_json(where, "finite numbers only", "NaN or an infinity")
    return out.put(p, n)


cdef int put_submit(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    bytes address, object data, int priority, int64_t timeout_ms,
                    bytes extra, int depth) except -1:
    put_literal(out, b'{"type":"submit","seq":')
    out.put_int(seq)
    put_literal(out, b',"payload":{"version":"1.0","id":')
    out.put_string(packet_id, id_length)
    put_literal(out, b",")
    out.put(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address))
    put_literal(out, b',"data":')
    put_data(out, data, depth - 2, "data")
    put_literal(out, b',"priority":')
    out.put_int(priority)
    if timeout_ms > 0:
        put_literal(out, b',"timeout_ms":')
        out.put_int(timeout_ms)
    if extra is not None:
        out.put(PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
    return put_literal(out, b"}}")


cdef int put_result_head(OutputBuffer out, int64_t seq) except -1:
    put_literal(out, b'{"type":"result","seq":')
    out.put_int(seq)
    return put_literal(out, b',"payload":')


cdef int put_result(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    object data, int64_t duration_ms, int depth) except -1:
    put_result_head(out, seq)
    put_literal(out, b'{"packet_id":')
    out.put_string(packet_id, id_length)
    put_literal(out, b',"status":"success","data":')
    put_data(out, data, depth - 2, "result")
    put_literal(out, b',"duration_ms":')
    out.put_int(duration_ms)
    return put_literal(out, b"}}")


cdef int put_failure(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                     object error, int64_t duration_ms, int depth) except -1:
    put_result_head(out, seq)
    put_failure_payload(out, packet_id, id_length, error, duration_ms, depth)
    return put_literal(out, b"}")


cdef int put_failure_payload(OutputBuffer out, const unsigned char* packet_id, Py_ssize_t id_length,
                             object error, int64_t duration_ms, int depth) except -1:
    put_literal(out, b'{"packet_id":')
    out.put_string(packet_id, id_length)
    put_literal(out, b',"status":"error","error":')
    put_data(out, error, depth - 2, "error")
    put_literal(out, b',"duration_ms":')
    out.put_int(duration_ms)
    return put_literal(out, b"}")


cdef int _put_span(OutputBuffer out, const Span* span) except -1:
    """A value as it stands in its frame; null where it is absent."""
    if span.kind == Kind.ABSENT:
        return put_literal(out, b"null")
    if span.kind == Kind.STRING:
        return out.put(span.p - 1, span.n + 2)
    return out.put(span.p, span.n)


cdef int _put_again(OutputBuffer out, const Span* span) except -1:
    """A value decoded and encoded: with a key that stood there twice standing there once."""
    cdef bytes encoded = <bytes>_encode(decode_span(span, None))
    return out.put(PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded))


cdef int put_packet_head(OutputBuffer out, FrameReader reader, Text element, Text packet_id) except -1:
    cdef Span* version = &reader.fields[<int>F_VERSION]
    put_literal(out, b'{"version":"')
    if version.escaped:
        put_literal(out, b"1.0")
    else:
        out.put(version.p, version.n)
    put_literal(out, b'","id":')
    if packet_id.p == NULL:
        packet_id = reader.id
    out.put_string(packet_id.p, packet_id.n)
    put_literal(out, b',"group":"')
    out.put(PyUnicode_AsUTF8AndSize(group_code(reader.group), NULL), 2)
    put_literal(out, b'","element":"')
    if element.p == NULL:
        element = reader.element
    out.put(element.p, element.n)
    put_literal(out, b'","data":')
    _put_span(out, &reader.fields[<int>F_DATA])
    put_literal(out, b',"priority":')
    return out.put_int(reader.priority)


cdef int put_packet_extra(OutputBuffer out, FrameReader reader) except -1:
    if reader.fields[<int>F_DEPENDENCIES].kind == Kind.ARRAY:
        put_literal(out, b',"dependencies":')
        _put_span(out, &reader.fields[<int>F_DEPENDENCIES])
    if reader.fields[<int>F_METADATA].kind == Kind.OBJECT:
        put_literal(out, b',"metadata":')
        _put_again(out, &reader.fields[<int>F_METADATA])
    return 0


cdef int put_result_payload(OutputBuffer out, FrameReader reader, Text packet_id) except -1:
    if packet_id.p == NULL:
        packet_id = reader.id
    put_literal(out, b'{"packet_id":')
    out.put_string(packet_id.p, packet_id.n)
    if reader.success:
        put_literal(out, b',"status":"success","data":')
        _put_span(out, &reader.fields[<int>F_DATA])
    else:
        put_literal(out, b',"status":"error","error":')
        if reader.fields[<int>F_ERROR].kind == Kind.OBJECT:
            _put_again(out, &reader.fields[<int>F_ERROR])
        else:
            put_literal(out, b'{"code":"PF500","message":"the packet ended in an error that says no more"}')
    put_literal(out, b',"duration_ms":')
    if reader.duration_ms < 9e15 and reader.duration_ms == <double><int64_t>reader.duration_ms:
        out.put_int(<int64_t>reader.duration_ms)
    else:
        put_data(out, reader.duration_ms if isfinite(reader.duration_ms) else 0, 1, "duration_ms")
    return put_literal(out, b"}")


cdef int put_error(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                   object error, int depth) except -1:
    cdef dict payload = dict(error)
    if id_length > 0:
        payload["packet_id"] = text_to_str(packet_id, id_length, False)
    put_literal(out, b'{"type":"error","seq":')
    out.put_int(seq)
    put_literal(out, b',"payload":')
    put_data(out, payload, depth - 1, "error")
    return put_literal(out, b"}")


cdef int put_heartbeat(OutputBuffer out, int64_t seq, object payload) except -1:
    put_literal(out, b'{"type":"heartbeat","seq":')
    out.put_int(seq)
    put_literal(out, b',"payload":')
    put_data(out, payload, DEFAULT_DEPTH - 1, "payload")
    return put_literal(out, b"}")


cdef bytes encode_extra(Packet packet, int depth, int retries):
    """``,"dependencies":[...],"metadata":{...}`` of a packet that has them, else None."""
    cdef OutputBuffer out
    if packet.version == "1.0" and not packet.dependencies and packet._metadata is None and retries == 0:
        return None
    out = OutputBuffer()
    if packet.dependencies:
        put_literal(out, b',"dependencies":')
        put_data(out, list(packet.dependencies), depth - 2, "dependencies")
    if retries > 0:
        put_literal(out, b',"metadata":')
        put_data(out, {**(packet.metadata or {}), "retry": retries}, depth - 2, "metadata")
    elif packet._metadata is not None:
        put_literal(out, b',"metadata":')
        put_data(out, _Raw(packet._metadata) if type(packet._metadata) is bytes else packet._metadata, depth - 2,
                 "metadata")
    return out.take()
