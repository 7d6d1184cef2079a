"""Writes frames into an output buffer: the four message types, and any value as JSON."""

import msgspec

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t

from pfcore.memory.buffers cimport OutputBuffer
from pfcore.memory.bytes_ops cimport pf_contains_null, pf_count_openers
from pfcore.memory.cpythonx cimport PyDict_Next, PyLong_AsLongLongAndOverflow, PyUnicode_AsUTF8AndSize
from pfcore.wire.packets cimport Packet
from pfcore.wire.reader cimport (
    F_DATA,
    F_DEPENDENCIES,
    F_ERROR,
    F_METADATA,
    F_VERSION,
    FrameReader,
    MAX_CODE,
    Text,
    decode_span,
    find_key,
    group_code,
)
from pfcore.wire.scan cimport Cursor, Kind, Span, begin_scan, scan_end, scan_value, skip_space
from pfcore.wire.terms cimport (
    W_ANSWER,
    W_DATA,
    W_DEPENDENCIES,
    W_DURATION,
    W_ELEMENT,
    W_ELEMENT_DATA,
    W_ERROR,
    W_FAILURE,
    W_GROUP,
    W_HEARTBEAT,
    W_METADATA,
    W_PAYLOAD,
    W_PAYLOAD_PACKET,
    W_PRIORITY,
    W_RESULT,
    W_SUBMIT,
    W_SUCCESS,
    W_TIMEOUT,
)

from pfcore.errors import InvalidPacket

__all__ = []

cdef enum:
    MAX_ERROR = 65536            # bytes of an error object; longer ones lose their details

cdef object _encode = msgspec.json.Encoder().encode
cdef object _to_builtins = msgspec.to_builtins
cdef object _Raw = msgspec.Raw


cdef object _not_json(str where, str expected, object found):
    return InvalidPacket(f"{where}: expected {expected}, found {found}", where=where, expected=expected)


cdef bint _holds_non_finite(object value) except -1:
    """Is there a NaN or an infinity anywhere in this value? Its depth was checked before."""
    cdef list others = []
    if _walk(value, others):
        return True
    # structs, dataclasses, sets, subclasses: as msgspec sees them. What that makes is nobody else's, but making
    # it may run anybody's code, so it waits until nothing is being walked.
    while others:
        if _walk(_to_builtins(others.pop()), others):
            return True
    return False


cdef bint _walk(object value, list others) except -1:
    """As above for plain values; the rest is added to `others`. Runs nobody's code: it holds borrowed references."""
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
            if _walk(<object>item, others):
                return True
        return False
    if kind is list:
        for each in <list>value:
            if _walk(each, others):
                return True
        return False
    if kind is tuple:
        for each in <tuple>value:
            if _walk(each, others):
                return True
        return False
    if kind is not _Raw:  # that is JSON already
        others.append(value)
    return False


cdef object encode_value(object data, int depth, str where):
    cdef int overflow
    cdef bytes encoded
    cdef const unsigned char* p
    cdef Py_ssize_t n
    cdef Cursor cursor
    cdef Span span
    cdef type kind = type(data)
    if kind is str:
        try:
            PyUnicode_AsUTF8AndSize(data, &n)  # kept by the str: the writer's call makes nothing and cannot fail
        except UnicodeEncodeError:
            raise InvalidPacket(f"{where}: expected text without lone surrogates", where=where,
                                expected="text without lone surrogates") from None
        return data
    if data is None or kind is bool:
        return data
    if kind is int:
        PyLong_AsLongLongAndOverflow(data, &overflow)
        if overflow == 0:
            return data
    elif kind is float:
        if not isfinite(<double>data):
            raise _not_json(where, "a finite number", repr(data))
    try:
        encoded = bytes(data) if kind is _Raw else <bytes>_encode(data)
        p = <const unsigned char*>PyBytes_AS_STRING(encoded)
        n = PyBytes_GET_SIZE(encoded)
        # raw text is anybody's; and whatever nests too deep, the receiver would refuse
        if kind is _Raw or pf_count_openers(p, p + n, depth) > depth:
            begin_scan(&cursor, p, p, p + n, depth)
            skip_space(&cursor)
            if scan_value(&cursor, &span) < 0 or scan_end(&cursor) < 0:
                expected = (<bytes>cursor.expected).decode()
                raise InvalidPacket(f"{where}: expected {expected} at byte {cursor.p - p}", where=where,
                                    expected=expected)
        # msgspec writes NaN and infinities as null: without a null there is none
        if kind is not int and kind is not _Raw and pf_contains_null(p, p + n) and _holds_non_finite(data):
            raise _not_json(where, "finite numbers only", "NaN or an infinity")
    except RecursionError:
        raise _not_json(where, f"at most {depth} levels of nesting", "more") from None
    except (InvalidPacket, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        # a value's own hooks may raise anything: it is this value's fault, and nobody else's
        raise InvalidPacket(
            f"{where}: {_text_of(error)}", where=where, expected="a value that JSON can hold"
        ) from error
    return encoded


cdef str _text_of(object error):
    """An exception's text, whatever it does when it is asked."""
    try:
        return str(error) or type(error).__name__
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        return type(error).__name__


cdef bytes encode_error(object code, object message, object details, int depth):
    """An error object as JSON that any peer reads: whatever cannot be said is left out. Raises nothing of its parts."""
    cdef dict error
    try:
        code = code if type(code) is str and 0 < len(code) <= MAX_CODE and (<str>code).isascii() else "PF500"
        error = {"code": code, "message": message}
        if details is not None:
            error["details"] = details
        encoded = encode_value(error, depth, "error")
        if len(<bytes>encoded) <= MAX_ERROR:
            return <bytes>encoded
    except Exception:
        pass  # lone surrogates, or details that JSON cannot hold
    try:
        text = str(message)
    except Exception:
        text = "the packet ended in an error that cannot be said"
    text = text[:1000].encode("utf-8", "replace").decode("utf-8", "ignore")
    return <bytes>_encode({"code": code, "message": text})


cdef int put_value(OutputBuffer out, object value) except -1:
    cdef type kind = type(value)
    cdef int overflow
    cdef Py_ssize_t n
    cdef const char* p
    if kind is bytes:
        return out.put(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    if kind is str:
        p = PyUnicode_AsUTF8AndSize(value, &n)
        return out.put_string(<const unsigned char*>p, n)
    if value is None:
        return out.put(b"null", 4)
    if kind is bool:
        return out.put(b"true", 4) if value is True else out.put(b"false", 5)
    return out.put_int(PyLong_AsLongLongAndOverflow(value, &overflow))


cdef int put_submit(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    bytes address, object value, int priority, int64_t timeout_ms, bytes extra) except -1:
    out.put_literal(W_SUBMIT)
    out.put_int(seq)
    out.put_literal(W_PAYLOAD_PACKET)
    out.put_string(packet_id, id_length)
    out.put_literal(b",")
    out.put(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address))
    out.put_literal(W_DATA)
    put_value(out, value)
    out.put_literal(W_PRIORITY)
    out.put_int(priority)
    if timeout_ms > 0:
        out.put_literal(W_TIMEOUT)
        out.put_int(timeout_ms)
    if extra is not None:
        out.put(PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
    return out.put_literal(b"}}")


cdef int put_result_head(OutputBuffer out, int64_t seq) except -1:
    out.put_literal(W_RESULT)
    out.put_int(seq)
    return out.put_literal(W_PAYLOAD)


cdef Py_ssize_t put_result(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                           object value, int64_t duration_ms) except? -1:
    cdef Py_ssize_t start = out.size, head
    put_result_head(out, seq)
    head = out.size - start
    out.put_literal(W_ANSWER)
    out.put_string(packet_id, id_length)
    out.put_literal(W_SUCCESS)
    put_value(out, value)
    out.put_literal(W_DURATION)
    out.put_int(duration_ms)
    out.put_literal(b"}}")
    return head


cdef Py_ssize_t put_failure(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                            bytes error, int64_t duration_ms) except? -1:
    cdef Py_ssize_t start = out.size, head
    put_result_head(out, seq)
    head = out.size - start
    put_failure_payload(out, packet_id, id_length, error, duration_ms)
    out.put_literal(b"}")
    return head


cdef int put_failure_payload(OutputBuffer out, const unsigned char* packet_id, Py_ssize_t id_length,
                             bytes error, int64_t duration_ms) except -1:
    out.put_literal(W_ANSWER)
    out.put_string(packet_id, id_length)
    out.put_literal(W_FAILURE)
    put_value(out, error)
    out.put_literal(W_DURATION)
    out.put_int(duration_ms)
    return out.put_literal(b"}")


cdef int _put_span(OutputBuffer out, const Span* span) except -1:
    """A value as it stands in its frame; null where it is absent."""
    if span.kind == Kind.ABSENT:
        return out.put_literal(b"null")
    if span.kind == Kind.STRING:
        return out.put(span.p - 1, span.n + 2)
    return out.put(span.p, span.n)


cdef bytes encode_again(const Span* span):
    """A value decoded and encoded: with a key that stood there twice standing there once."""
    return <bytes>_encode(decode_span(span, None))


cdef int put_packet_head(OutputBuffer out, FrameReader reader, Text element, Text packet_id) except -1:
    cdef Span* version = &reader.fields[<int>F_VERSION]
    out.put_literal(b'{"version":"')
    if version.escaped:
        out.put_literal(b"1.0")
    else:
        out.put(version.p, version.n)
    out.put_literal(b'","id":')
    if packet_id.p == NULL:
        packet_id = reader.id
    out.put_string(packet_id.p, packet_id.n)
    out.put_literal(W_GROUP)
    out.put(PyUnicode_AsUTF8AndSize(group_code(reader.group), NULL), 2)
    out.put_literal(W_ELEMENT)
    if element.p == NULL:
        element = reader.element
    out.put(element.p, element.n)
    out.put_literal(W_ELEMENT_DATA)
    _put_span(out, &reader.fields[<int>F_DATA])
    out.put_literal(W_PRIORITY)
    return out.put_int(reader.priority)


cdef bytes metadata_again(FrameReader reader):
    if reader.fields[<int>F_METADATA].kind == Kind.OBJECT:
        return encode_again(&reader.fields[<int>F_METADATA])
    return None


cdef int put_packet_extra(OutputBuffer out, FrameReader reader, bytes metadata) except -1:
    if reader.fields[<int>F_DEPENDENCIES].kind == Kind.ARRAY:
        out.put_literal(W_DEPENDENCIES)
        _put_span(out, &reader.fields[<int>F_DEPENDENCIES])
    if metadata is not None:
        out.put_literal(W_METADATA)
        put_value(out, metadata)
    return 0


cdef bytes _error_again(const Span* span):
    """An error as it goes on: details of more than 64 KiB do not, they would have to be decoded and encoded."""
    cdef Span inner
    cdef dict error
    if span.n <= MAX_ERROR:
        return encode_again(span)
    error = {"code": "PF500", "message": ""}
    if find_key(span, b"code", 4, &inner) and inner.kind == Kind.STRING:
        error["code"] = decode_span(&inner, None)
    if find_key(span, b"message", 7, &inner) and inner.kind == Kind.STRING:
        error["message"] = decode_span(&inner, None)
    error["message"] += f" (details left out: an error of {span.n} bytes, at most {MAX_ERROR} go on with theirs)"
    return <bytes>_encode(error)


cdef int put_result_payload(OutputBuffer out, FrameReader reader, Text packet_id) except -1:
    cdef bytes error = None
    cdef object duration = 0
    # all that makes an object first
    if not reader.success and reader.fields[<int>F_ERROR].kind == Kind.OBJECT:
        error = _error_again(&reader.fields[<int>F_ERROR])
    if reader.duration_ms < 9e15 and reader.duration_ms == <double><int64_t>reader.duration_ms:
        duration = <int64_t>reader.duration_ms
    elif isfinite(reader.duration_ms):
        duration = <bytes>_encode(reader.duration_ms)
    if packet_id.p == NULL:
        packet_id = reader.id
    out.put_literal(W_ANSWER)
    out.put_string(packet_id.p, packet_id.n)
    if reader.success:
        out.put_literal(W_SUCCESS)
        _put_span(out, &reader.fields[<int>F_DATA])
    else:
        out.put_literal(W_FAILURE)
        if error is not None:
            put_value(out, error)
        else:
            out.put_literal(b'{"code":"PF500","message":"the packet ended in an error that says no more"}')
    out.put_literal(W_DURATION)
    put_value(out, duration)
    return out.put_literal(b"}")


cdef int put_error(OutputBuffer out, int64_t seq, bytes payload) except -1:
    out.put_literal(W_ERROR)
    out.put_int(seq)
    out.put_literal(W_PAYLOAD)
    put_value(out, payload)
    return out.put_literal(b"}")


cdef dict heartbeat_payload(int64_t timestamp, object name, object instance, list capabilities, int64_t window,
                            Py_ssize_t load):
    cdef dict payload = {"timestamp": timestamp}
    if name is not None:
        payload["reactor"] = name
        if instance is not None:
            payload["instance"] = instance
    if capabilities is not None:
        payload["capabilities"] = capabilities
    payload["window"] = window
    payload["load"] = load
    payload["ext"] = ["cancel"]
    return payload


cdef int put_heartbeat(OutputBuffer out, int64_t seq, object payload) except -1:
    out.put_literal(W_HEARTBEAT)
    out.put_int(seq)
    out.put_literal(W_PAYLOAD)
    put_value(out, payload)
    return out.put_literal(b"}")


cdef bytes encode_extra(Packet packet, int depth, int retries):
    """``,"dependencies":[...],"metadata":{...}`` of a packet that has them, else None."""
    cdef OutputBuffer out
    if packet.version == "1.0" and not packet.dependencies and packet._metadata is None and retries == 0:
        return None
    out = OutputBuffer()
    if packet.dependencies:
        out.put_literal(W_DEPENDENCIES)
        put_value(out, encode_value(list(packet.dependencies), depth - 2, "dependencies"))
    if retries > 0:
        out.put_literal(W_METADATA)
        put_value(out, encode_value({**(packet.metadata or {}), "retry": retries}, depth - 2, "metadata"))
    elif packet._metadata is not None:
        out.put_literal(W_METADATA)
        put_value(out, encode_value(
            _Raw(packet._metadata) if type(packet._metadata) is bytes else packet._metadata, depth - 2, "metadata"))
    return out.take()
