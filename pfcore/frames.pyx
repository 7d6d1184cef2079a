"""Frame codec of PacketFlow v1.0: the four message types to and from bytes.

`encode_message` and `decode_message` are the codec for Python; links use the C
interface in ``frames.pxd``, which works on borrowed bytes. Both validate: what
RFC 8259 or the protocol does not allow raises `InvalidPacket`, which names the
place and what was expected there.
"""

import msgspec

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_FromLongLong
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen

from pfcore.buffers cimport OutputBuffer
from pfcore.ids cimport ID_LENGTH, write_id
from pfcore.scan cimport (
    Cursor,
    Kind,
    Span,
    pf_count_openers,
    pf_string_run,
    scan_end,
    scan_fail,
    scan_string,
    scan_value,
    skip_space,
    span_to_int64,
    unescape,
)

from pfcore.errors import InvalidPacket

cdef extern from "Python.h":
    bint PyDict_Next(object mapping, Py_ssize_t* at, PyObject** key, PyObject** value) noexcept
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text) noexcept
    int64_t PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1

cdef extern from "bytes_ops.h" nogil:
    bint pf_contains_null(const unsigned char* p, const unsigned char* end) noexcept

__all__ = [
    "GROUP_CODES",
    "MAX_ELEMENT_LENGTH",
    "MAX_ID_LENGTH",
    "MAX_SEQ",
    "MAX_TIMEOUT_MS",
    "Message",
    "Packet",
    "Result",
    "decode_message",
    "encode_message",
    "scan_repeatedly",
]

GROUP_CODES = ("cf", "df", "ed", "co", "mc", "rm")
MAX_SEQ = 2**53 - 1
MAX_TIMEOUT_MS = 300_000
MAX_ID_LENGTH = <int>MAX_ID
MAX_ELEMENT_LENGTH = <int>MAX_ELEMENT

cdef enum:
    ARENA = 512
    DEFAULT_DEPTH = 64
    DEFAULT_PRIORITY = 5

cdef int64_t _MAX_SEQ = 9007199254740991
cdef int64_t _MAX_TIMEOUT = 300000

cdef tuple _GROUPS = GROUP_CODES
cdef tuple _TYPES = (None, "submit", "result", "error", "heartbeat")
cdef str _VERSION = "1.0"
cdef str _SUCCESS = "success"
cdef str _ERROR = "error"

cdef object _encode = msgspec.json.Encoder().encode
cdef object _decode = msgspec.json.Decoder().decode
cdef object _to_builtins = msgspec.to_builtins
cdef object _Raw = msgspec.Raw


cdef uint8_t[256] ELEMENT_BYTES   # 1 for what an element may hold


cdef int _fill_tables() except -1:
    cdef int c
    for c in range(256):
        ELEMENT_BYTES[c] = chr(c) in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
    return 0


_fill_tables()


# ---------------------------------------------------------------- reading

cdef inline bint _is(const unsigned char* p, Py_ssize_t n, const char* word) noexcept nogil:
    return memcmp(p, word, <size_t>n) == 0


cdef int _field_of(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """The Field that a payload's key names, or -1. Told apart by length first."""
    if n == 4:
        if _is(p, n, b"data"):
            return F_DATA
        if _is(p, n, b"code"):
            return F_CODE
        if _is(p, n, b"load"):
            return F_LOAD
    elif n == 2:
        if _is(p, n, b"id"):
            return F_ID
    elif n == 5:
        if _is(p, n, b"group"):
            return F_GROUP
        if _is(p, n, b"error"):
            return F_ERROR
    elif n == 7:
        if _is(p, n, b"element"):
            return F_ELEMENT
        if _is(p, n, b"version"):
            return F_VERSION
        if _is(p, n, b"message"):
            return F_MESSAGE
        if _is(p, n, b"details"):
            return F_DETAILS
        if _is(p, n, b"reactor"):
            return F_REACTOR
    elif n == 8:
        if _is(p, n, b"priority"):
            return F_PRIORITY
        if _is(p, n, b"metadata"):
            return F_METADATA
    elif n == 9:
        if _is(p, n, b"packet_id"):
            return F_PACKET_ID
        if _is(p, n, b"timestamp"):
            return F_TIMESTAMP
    elif n == 6:
        if _is(p, n, b"status"):
            return F_STATUS
        if _is(p, n, b"window"):
            return F_WINDOW
    elif n == 11:
        if _is(p, n, b"duration_ms"):
            return F_DURATION
    elif n == 10:
        if _is(p, n, b"timeout_ms"):
            return F_TIMEOUT
    elif n == 12:
        if _is(p, n, b"dependencies"):
            return F_DEPENDENCIES
        if _is(p, n, b"capabilities"):
            return F_CAPABILITIES
    elif n == 3:
        if _is(p, n, b"ext"):
            return F_EXT
    return -1


cdef inline const unsigned char* _digits(const unsigned char* p, const unsigned char* end,
                                         int64_t* out) noexcept nogil:
    """Passes 1 to 15 digits without a leading zero; NULL where there are none or more, or nothing follows."""
    cdef int64_t value = 0
    cdef const unsigned char* limit = p + 16 if end - p > 16 else end
    cdef const unsigned char* start = p
    cdef unsigned char digit
    if p < end and p[0] == 0x30:
        out[0] = 0
        return p + 1 if p + 1 < end else NULL
    while p < limit:
        digit = p[0] - 0x30
        if digit > 9:
            out[0] = value
            return p if p > start else NULL
        value = value * 10 + digit
        p += 1
    return NULL


cdef int group_index(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    if n != 2:
        return -1
    if p[0] == 0x63:
        if p[1] == 0x66:
            return 0
        if p[1] == 0x6F:
            return 3
        return -1
    if p[0] == 0x64 and p[1] == 0x66:
        return 1
    if p[0] == 0x65 and p[1] == 0x64:
        return 2
    if p[0] == 0x6D and p[1] == 0x63:
        return 4
    if p[0] == 0x72 and p[1] == 0x6D:
        return 5
    return -1


cdef str group_code(int index):
    return <str>_GROUPS[index]


cdef bint _valid_element(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if n < 1 or n > MAX_ELEMENT:
        return False
    for i in range(n):
        if not ELEMENT_BYTES[p[i]]:
            return False
    return True


cdef bint _valid_version(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    """"1." and digits."""
    cdef Py_ssize_t i
    if n < 3 or p[0] != 0x31 or p[1] != 0x2E:
        return False
    for i in range(2, n):
        if not 0x30 <= p[i] <= 0x39:
            return False
    return True


@cython.final
cdef class FrameReader:
    """Reads one frame at a time from borrowed bytes. See ``frames.pxd``."""

    def __cinit__(self, *, int max_depth=DEFAULT_DEPTH):
        if not 3 <= max_depth <= 512:
            raise ValueError(f"max_depth: expected 3 to 512, got {max_depth}")
        self.max_depth = max_depth
        self.predict = True

    cdef int read(self, const unsigned char* p, Py_ssize_t n) noexcept:
        cdef Cursor cursor
        cdef int status
        self.id.p = p
        self.error_code = b"PF400"
        self.where = NULL
        self.expected = NULL
        self._start = p
        self._length = n
        self._arena_used = 0
        if self.predict and self._predicted(p, n):
            return 0
        self.id.n = 0
        self.type = MessageType.UNKNOWN
        self.seq = -1
        memset(self.fields, 0, sizeof(self.fields))
        cursor.p = p
        cursor.start = p
        cursor.end = p + n
        cursor.expected = NULL
        cursor.depth = self.max_depth - 2  # the frame and its payload are levels too
        status = self._frame(&cursor)
        if status < 0 and self.expected == NULL:
            self.expected = cursor.expected
            self.offset = cursor.p - p
        return status

    # Most frames come from reactors that write the keys in the specification's
    # order without white space, as JSON.stringify of its objects does, too.
    # Comparing with that layout is three times as fast as looking every key up.
    # Whatever differs anywhere takes the general way, from the start.

    cdef bint _predicted(self, const unsigned char* p, Py_ssize_t n) noexcept:
        cdef const unsigned char* end = p + n
        cdef bint submit
        if n < 96:
            return False
        if memcmp(p, b'{"type":"submit","seq":', 23) == 0:
            submit = True
        elif memcmp(p, b'{"type":"result","seq":', 23) == 0:
            submit = False
        else:
            return False
        p += 23
        p = _digits(p, end, &self.seq)
        if p == NULL or p[0] != 0x2C:
            return False
        return self._predicted_submit(p, end) if submit else self._predicted_result(p, end)

    cdef bint _predicted_id(self, const unsigned char* p, const unsigned char* end, Span* span) noexcept:
        """A UUID and its closing quote at p?"""
        if end - p < 37 + 16 or p[36] != 0x22 or pf_string_run(p, end) != p + 36:
            return False
        span.kind = Kind.STRING
        span.p = p
        span.n = 36
        span.escaped = 0
        span.ascii = 1
        self.id.p = p
        self.id.n = 36
        return True

    cdef bint _predicted_submit(self, const unsigned char* p, const unsigned char* end) noexcept:
        cdef Cursor cursor
        cdef int64_t number
        cdef int group
        if self.seq == 0 or end - p < 90 or memcmp(p, b',"payload":{"version":"1.0","id":"', 34) != 0:
            return False
        self.fields[<int>F_VERSION].kind = Kind.STRING
        self.fields[<int>F_VERSION].escaped = 0
        self.fields[<int>F_VERSION].p = p + 23
        self.fields[<int>F_VERSION].n = 3
        p += 34
        if not self._predicted_id(p, end, &self.fields[<int>F_ID]):
            return False
        p += 36
        if end - p < 40 or memcmp(p, b'","group":"', 11) != 0:
            return False
        group = group_index(p + 11, 2)
        if group < 0 or memcmp(p + 13, b'","element":"', 13) != 0:
            return False
        self.group = <uint8_t>group
        p += 26
        self.element.p = p
        while p < end and ELEMENT_BYTES[p[0]]:
            p += 1
        self.element.n = p - self.element.p
        if self.element.n == 0 or self.element.n > MAX_ELEMENT or end - p < 10 or memcmp(p, b'","data":', 9) != 0:
            return False
        cursor.start = p
        cursor.p = p + 9
        cursor.end = end
        cursor.depth = self.max_depth - 2
        if scan_value(&cursor, &self.fields[<int>F_DATA]) < 0:
            return False
        p = cursor.p
        if end - p < 15 or memcmp(p, b',"priority":', 12) != 0:
            return False
        p = _digits(p + 12, end, &number)
        if p == NULL or number < 1 or number > 10:
            return False
        self.priority = <uint8_t>number
        self.timeout_ms = 0
        if end - p >= 17 and memcmp(p, b',"timeout_ms":', 14) == 0:
            p = _digits(p + 14, end, &self.timeout_ms)
            if p == NULL or self.timeout_ms == 0 or self.timeout_ms > _MAX_TIMEOUT:
                return False
        if end - p != 2 or p[0] != 0x7D or p[1] != 0x7D:
            return False
        self.fields[<int>F_DEPENDENCIES].kind = Kind.ABSENT
        self.fields[<int>F_METADATA].kind = Kind.ABSENT
        self.type = MessageType.SUBMIT
        return True

    cdef bint _predicted_result(self, const unsigned char* p, const unsigned char* end) noexcept:
        cdef Cursor cursor
        cdef int64_t duration = 0
        if end - p < 90 or memcmp(p, b',"payload":{"packet_id":"', 25) != 0:
            return False
        p += 25
        if not self._predicted_id(p, end, &self.fields[<int>F_PACKET_ID]):
            return False
        p += 36
        if end - p < 30 or memcmp(p, b'","status":"success","data":', 28) != 0:
            return False
        cursor.start = p
        cursor.p = p + 28
        cursor.end = end
        cursor.depth = self.max_depth - 2
        if scan_value(&cursor, &self.fields[<int>F_DATA]) < 0:
            return False
        p = cursor.p
        if end - p < 18 or memcmp(p, b',"duration_ms":', 15) != 0:
            return False
        p = _digits(p + 15, end, &duration)
        if p == NULL or end - p != 2 or p[0] != 0x7D or p[1] != 0x7D:
            return False
        self.duration_ms = <double>duration
        self.fields[<int>F_ERROR].kind = Kind.ABSENT
        self.success = 1
        self.type = MessageType.RESULT
        return True

    cdef int _fail(self, const char* where, const char* expected, Span* span) noexcept:
        self.where = where
        self.expected = expected
        self.offset = span.p - self._start if span != NULL and span.kind != Kind.ABSENT else -1
        return -1

    cdef int _text(self, Span* span, Text* out, Py_ssize_t most) noexcept:
        """The unescaped text of a STRING, -1 if it is longer than `most` bytes."""
        cdef Py_ssize_t n
        if not span.escaped:
            if span.n > most:
                return -1
            out.p = span.p
            out.n = span.n
            return 0
        n = unescape(span, self._arena + self._arena_used, ARENA - self._arena_used)
        if n < 0 or n > most:
            return -1
        out.p = self._arena + self._arena_used
        out.n = n
        self._arena_used += n
        return 0

    cdef int _key(self, Cursor* cursor, Text* key) noexcept:
        """At a key: pass it and its colon. A key that is too long to be known has n == -1."""
        cdef Span span
        if cursor.p >= cursor.end or cursor.p[0] != 0x22:
            return scan_fail(cursor, b"a key in double quotes")
        if scan_string(cursor, &span) < 0:
            return -1
        if span.escaped:
            # only this frame's names matter, and none is longer than 16 bytes
            key.n = unescape(&span, self._arena, ARENA) if span.n <= 96 else -1
            key.p = self._arena
        else:
            key.p = span.p
            key.n = span.n
        skip_space(cursor)
        if cursor.p >= cursor.end or cursor.p[0] != 0x3A:
            return scan_fail(cursor, b"':'")
        cursor.p += 1
        skip_space(cursor)
        return 0

    cdef int _frame(self, Cursor* cursor) noexcept:
        cdef Text key, text
        cdef Span type_span, seq_span, span
        cdef int seen = 0, bit, unknown = 0
        cdef uint8_t payload_kind = Kind.ABSENT
        type_span.kind = Kind.ABSENT
        seq_span.kind = Kind.ABSENT
        seq_span.p = cursor.p
        skip_space(cursor)
        if cursor.p >= cursor.end or cursor.p[0] != 0x7B:
            return scan_fail(cursor, b"a frame: an object with type, seq and payload")
        cursor.p += 1
        skip_space(cursor)
        if cursor.p < cursor.end and cursor.p[0] == 0x7D:
            cursor.p += 1
        else:
            while True:
                if self._key(cursor, &key) < 0:
                    return -1
                bit = 0
                if key.n == 4 and _is(key.p, 4, b"type"):
                    bit = 1
                    if scan_value(cursor, &type_span) < 0:
                        return -1
                elif key.n == 3 and _is(key.p, 3, b"seq"):
                    bit = 2
                    if scan_value(cursor, &seq_span) < 0:
                        return -1
                elif key.n == 7 and _is(key.p, 7, b"payload"):
                    bit = 4
                    if cursor.p < cursor.end and cursor.p[0] == 0x7B and not seen & 4:
                        payload_kind = Kind.OBJECT
                        if self._payload(cursor) < 0:
                            return -1
                    else:
                        if scan_value(cursor, &span) < 0:
                            return -1
                        if not seen & 4:
                            payload_kind = span.kind
                else:
                    unknown += 1
                    if scan_value(cursor, &span) < 0:
                        return -1
                if seen & bit:
                    return self._fail(b"the frame", b"every key once", NULL)
                seen |= bit
                skip_space(cursor)
                if cursor.p < cursor.end and cursor.p[0] == 0x2C:
                    cursor.p += 1
                    skip_space(cursor)
                elif cursor.p < cursor.end and cursor.p[0] == 0x7D:
                    cursor.p += 1
                    break
                else:
                    return scan_fail(cursor, b"',' or '}'")
        if scan_end(cursor) < 0:
            return -1
        self._arena_used = 0
        # seq before all else: even a refusal wants to say which frame it refuses
        if seq_span.kind != Kind.ABSENT and span_to_int64(&seq_span, 0, _MAX_SEQ, &self.seq) < 0:
            return self._fail(b"seq", b"an integer from 0 to 2^53-1", &seq_span)
        if unknown > 1 and self._repeats(self._start, self._length):
            return self._fail(b"the frame", b"every key once", NULL)
        if type_span.kind != Kind.STRING or self._text(&type_span, &text, 16) < 0:
            return self._fail(b"type", b"submit, result, error or heartbeat", &type_span)
        if text.n == 6 and _is(text.p, 6, b"submit"):
            self.type = MessageType.SUBMIT
        elif text.n == 6 and _is(text.p, 6, b"result"):
            self.type = MessageType.RESULT
        elif text.n == 5 and _is(text.p, 5, b"error"):
            self.type = MessageType.ERROR
        elif text.n == 9 and _is(text.p, 9, b"heartbeat"):
            self.type = MessageType.HEARTBEAT
        else:
            return self._fail(b"type", b"submit, result, error or heartbeat", &type_span)
        if payload_kind != Kind.OBJECT:
            return self._fail(b"payload", b"an object", NULL)
        # the id early: a refusal of a packet goes to the packet, not to the frame
        if self._id() < 0:
            return -1
        if self.seq < 0:
            return self._fail(b"seq", b"an integer from 0 to 2^53-1", NULL)
        if self.type == MessageType.SUBMIT:
            return self._check_submit()
        if self.type == MessageType.RESULT:
            return self._check_result()
        if self.type == MessageType.ERROR:
            return self._check_error()
        return self._check_heartbeat()

    cdef int _payload(self, Cursor* cursor) noexcept:
        """At the payload's brace: note the span of every field."""
        cdef Text key
        cdef Span span
        cdef const unsigned char* start = cursor.p
        cdef int field, unknown = 0
        cursor.p += 1
        skip_space(cursor)
        if cursor.p < cursor.end and cursor.p[0] == 0x7D:
            cursor.p += 1
            return 0
        while True:
            if self._key(cursor, &key) < 0:
                return -1
            field = _field_of(key.p, key.n)
            if field < 0:
                unknown += 1
                if scan_value(cursor, &span) < 0:
                    return -1
            else:
                if self.fields[field].kind != Kind.ABSENT:
                    return self._fail(b"payload", b"every key once", &self.fields[field])
                if scan_value(cursor, &self.fields[field]) < 0:
                    return -1
            skip_space(cursor)
            if cursor.p < cursor.end and cursor.p[0] == 0x2C:
                cursor.p += 1
                skip_space(cursor)
            elif cursor.p < cursor.end and cursor.p[0] == 0x7D:
                cursor.p += 1
                break
            else:
                return scan_fail(cursor, b"',' or '}'")
        if unknown > 1 and self._repeats(start, cursor.p - start):
            return self._fail(b"payload", b"every key once", NULL)
        return 0

    cdef bint _repeats(self, const unsigned char* p, Py_ssize_t n) noexcept:
        """Do unknown keys of this valid object repeat? Rare enough to be done in Python."""
        try:
            seen = set()
            for key in _top_level_keys(p, n):
                if key in seen:
                    return True
                seen.add(key)
            return False
        except BaseException:  # out of memory: refuse rather than let it pass
            return True

    cdef int _id(self) noexcept:
        cdef Field field = F_ID if self.type == MessageType.SUBMIT else F_PACKET_ID
        cdef Span* span = &self.fields[<int>field]
        cdef const char* where = b"payload.id" if field == F_ID else b"payload.packet_id"
        if span.kind == Kind.ABSENT or span.kind == Kind.NULL_:
            if self.type == MessageType.SUBMIT or self.type == MessageType.RESULT:
                return self._fail(where, b"a string of 1 to 128 bytes", span)
            return 0
        if self.type == MessageType.HEARTBEAT:
            return 0
        if span.kind != Kind.STRING or self._text(span, &self.id, MAX_ID) < 0 or self.id.n == 0:
            self.id.n = 0
            return self._fail(where, b"a string of 1 to 128 bytes", span)
        return 0

    cdef int _check_submit(self) noexcept:
        cdef Span* span
        cdef Text text
        cdef int64_t number
        cdef int group
        if self.seq == 0:
            return self._fail(b"seq", b"an integer from 1 to 2^53-1 for a submit", NULL)
        span = &self.fields[<int>F_VERSION]
        if not (span.kind == Kind.STRING and span.n == 3 and _is(span.p, 3, b"1.0")):
            if span.kind != Kind.STRING:
                return self._fail(b"payload.version", b'a string, "1.0"', span)
            if self._text(span, &text, 32) < 0 or not _valid_version(text.p, text.n):
                self.error_code = b"PF426"
                return self._fail(b"payload.version", b'"1.0" or another 1.x', span)
        span = &self.fields[<int>F_GROUP]
        group = -1
        if span.kind == Kind.STRING and self._text(span, &text, 8) == 0:
            group = group_index(text.p, text.n)
        if group < 0:
            return self._fail(b"payload.group", b"one of cf, df, ed, co, mc, rm", span)
        self.group = <uint8_t>group
        span = &self.fields[<int>F_ELEMENT]
        if (span.kind != Kind.STRING or self._text(span, &self.element, MAX_ELEMENT) < 0
                or not _valid_element(self.element.p, self.element.n)):
            return self._fail(b"payload.element", b"1 to 64 of A-Z a-z 0-9 _ . -", span)
        span = &self.fields[<int>F_PRIORITY]
        if span.kind == Kind.ABSENT or span.kind == Kind.NULL_:
            self.priority = DEFAULT_PRIORITY
        else:
            if span_to_int64(span, 1, 10, &number) < 0:
                return self._fail(b"payload.priority", b"an integer from 1 to 10", span)
            self.priority = <uint8_t>number
        span = &self.fields[<int>F_TIMEOUT]
        self.timeout_ms = 0
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_:
            if span_to_int64(span, 1, _MAX_TIMEOUT, &self.timeout_ms) < 0:
                return self._fail(b"payload.timeout_ms", b"an integer from 1 to 300000", span)
        span = &self.fields[<int>F_METADATA]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.OBJECT:
            return self._fail(b"payload.metadata", b"an object", span)
        span = &self.fields[<int>F_DEPENDENCIES]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._strings(span, MAX_DEPENDENCIES, MAX_ID):
            return self._fail(b"payload.dependencies", b"an array of at most 64 packet ids", span)
        return 0

    cdef bint _strings(self, Span* span, Py_ssize_t most, Py_ssize_t longest) noexcept:
        """Is this an array of at most `most` strings of 1 to `longest` bytes (-1: no bound)?"""
        cdef Cursor cursor
        cdef Span item
        cdef Text text
        cdef Py_ssize_t count = 0, arena = self._arena_used
        if span.kind != Kind.ARRAY:
            return False
        cursor.p = span.p + 1
        cursor.start = span.p
        cursor.end = span.p + span.n
        cursor.depth = self.max_depth
        skip_space(&cursor)
        while cursor.p[0] != 0x5D:
            if cursor.p[0] != 0x22 or scan_string(&cursor, &item) < 0 or item.n == 0:
                return False
            if longest >= 0:
                if self._text(&item, &text, longest) < 0:
                    return False
                self._arena_used = arena
            count += 1
            if most >= 0 and count > most:
                return False
            skip_space(&cursor)
            if cursor.p[0] == 0x2C:
                cursor.p += 1
                skip_space(&cursor)
        return True

    cdef int _check_result(self) noexcept:
        cdef Span* span = &self.fields[<int>F_STATUS]
        cdef Text text
        text.n = 0
        if span.kind == Kind.STRING and self._text(span, &text, 16) < 0:
            text.n = 0
        if text.n == 7 and _is(text.p, 7, b"success"):
            self.success = 1
        elif text.n == 5 and _is(text.p, 5, b"error"):
            self.success = 0
        else:
            return self._fail(b"payload.status", b'"success" or "error"', span)
        span = &self.fields[<int>F_ERROR]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.OBJECT:
            return self._fail(b"payload.error", b"an object with code and message", span)
        span = &self.fields[<int>F_DURATION]
        self.duration_ms = 0
        if span.kind == Kind.NUMBER:
            self._number(span, &self.duration_ms)
            if self.duration_ms < 0:
                self.duration_ms = 0  # another's wall clock went backwards
        elif span.kind != Kind.ABSENT and span.kind != Kind.NULL_:
            return self._fail(b"payload.duration_ms", b"a number", span)
        return 0

    cdef void _number(self, Span* span, double* out) noexcept:
        """The value of a NUMBER; huge integers count as infinite."""
        cdef int64_t number
        if span_to_int64(span, -_MAX_SEQ, _MAX_SEQ, &number) == 0:
            out[0] = <double>number
            return
        try:
            out[0] = float(PyBytes_FromStringAndSize(<const char*>span.p, span.n))
        except BaseException:
            out[0] = 0

    cdef int _check_error(self) noexcept:
        cdef Span* span = &self.fields[<int>F_CODE]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.STRING:
            return self._fail(b"payload.code", b"a string", span)
        span = &self.fields[<int>F_MESSAGE]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.STRING:
            return self._fail(b"payload.message", b"a string", span)
        return 0

    cdef int _check_heartbeat(self) noexcept:
        cdef Span* span = &self.fields[<int>F_TIMESTAMP]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.NUMBER:
            return self._fail(b"payload.timestamp", b"milliseconds since the epoch", span)
        span = &self.fields[<int>F_REACTOR]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and (
                span.kind != Kind.STRING or span.n == 0 or span.n > MAX_ID):
            return self._fail(b"payload.reactor", b"a string of 1 to 128 bytes", span)
        span = &self.fields[<int>F_CAPABILITIES]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._strings(span, -1, 3 + MAX_ELEMENT):
            return self._fail(b"payload.capabilities", b'an array of "group:element"', span)
        span = &self.fields[<int>F_EXT]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._strings(span, -1, -1):
            return self._fail(b"payload.ext", b"an array of strings", span)
        span = &self.fields[<int>F_LOAD]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.NUMBER:
            return self._fail(b"payload.load", b"a number", span)
        span = &self.fields[<int>F_WINDOW]
        self.window = 0
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_:
            if span_to_int64(span, 1, _MAX_SEQ, &self.window) < 0:
                return self._fail(b"payload.window", b"an integer of at least 1", span)
        return 0

    cdef object error(self):
        cdef str expected = (<bytes>self.expected).decode()
        cdef str code = (<bytes>self.error_code).decode()
        cdef str where, message
        cdef object offset = self.offset if self.offset >= 0 else None
        if self.where != NULL:
            where = (<bytes>self.where).decode()
            message = f"{where}: expected {expected}" + self._found()
        else:
            where = f"byte {self.offset}"
            message = f"invalid JSON at {where}: expected {expected}"
            if self.offset >= self._length:
                message += ", found the end of the frame"
        packet_id = None
        if self.id.n > 0:
            packet_id = text_to_str(self.id.p, self.id.n, False)
        return InvalidPacket(
            message, code=code, where=where, expected=expected, offset=offset, packet_id=packet_id
        )

    cdef str _found(self):
        """What stood there instead, cut short: it goes into logs and messages."""
        cdef Cursor cursor
        cdef Span span
        if self.offset < 0 or self.offset >= self._length:
            return ""
        cursor.p = self._start + self.offset
        cursor.start = self._start
        cursor.end = self._start + self._length
        cursor.depth = self.max_depth
        if cursor.p[0] != 0x22:
            if scan_value(&cursor, &span) < 0:
                # a string's span starts behind its quote
                cursor.p = self._start + self.offset - 1
                if self.offset == 0 or cursor.p[0] != 0x22 or scan_string(&cursor, &span) < 0:
                    return ""
            elif self.offset > 0 and cursor.start[self.offset - 1] == 0x22:
                cursor.p = self._start + self.offset - 1
                if scan_string(&cursor, &span) < 0:
                    return ""
        elif scan_string(&cursor, &span) < 0:
            return ""
        text = PyBytes_FromStringAndSize(<const char*>span.p, min(span.n, 40)).decode("utf-8", "replace")
        if span.kind == Kind.STRING:
            text = f'"{text}"'
        return f", found {text}" + ("..." if span.n > 40 else "")

    cdef object decode(self, Field field):
        return decode_span(&self.fields[<int>field], None)


cdef list _top_level_keys(const unsigned char* p, Py_ssize_t n):
    """The unescaped keys of a valid object, repeated ones included."""
    cdef Cursor cursor
    cdef Span key, value
    cdef list keys = []
    cursor.p = p
    cursor.start = p
    cursor.end = p + n
    cursor.depth = 512
    cursor.expected = NULL
    skip_space(&cursor)
    cursor.p += 1
    skip_space(&cursor)
    while cursor.p < cursor.end and cursor.p[0] == 0x22:
        scan_string(&cursor, &key)
        keys.append(decode_span(&key, None))
        skip_space(&cursor)
        cursor.p += 1
        skip_space(&cursor)
        scan_value(&cursor, &value)
        skip_space(&cursor)
        cursor.p += 1
        skip_space(&cursor)
    return keys


cdef str text_to_str(const unsigned char* p, Py_ssize_t n, bint ascii):
    cdef object text
    if ascii:
        text = PyUnicode_New(n, 127)
        memcpy(PyUnicode_DATA(text), p, <size_t>n)
        return <str>text
    return <str>PyUnicode_DecodeUTF8(<const char*>p, n, NULL)


cdef object decode_span(const Span* span, object decoder):
    cdef int64_t number
    cdef unsigned char* text
    cdef Py_ssize_t n
    if span.kind == Kind.ABSENT:
        return None if decoder is None else decoder(b"null")
    if decoder is not None:
        if span.kind == Kind.STRING:  # the token, quotes included
            return decoder(PyBytes_FromStringAndSize(<const char*>span.p - 1, span.n + 2))
        return decoder(PyBytes_FromStringAndSize(<const char*>span.p, span.n))
    if span.kind == Kind.STRING:
        if not span.escaped:
            # picking the exact maximum matters: a str of a wrong kind is not equal to its twin
            return text_to_str(span.p, span.n, span.ascii)
        text = <unsigned char*>malloc(<size_t>span.n)
        if text == NULL:
            raise MemoryError()
        try:
            n = unescape(span, text, span.n)
            return PyUnicode_DecodeUTF8(<const char*>text, n, NULL)
        finally:
            free(text)
    if span.kind == Kind.NULL_:
        return None
    if span.kind == Kind.TRUE_:
        return True
    if span.kind == Kind.FALSE_:
        return False
    if span.kind == Kind.NUMBER and span.integer and span.n <= 18:
        span_to_int64(span, -999999999999999999, 999999999999999999, &number)
        return PyLong_FromLongLong(number)
    return _decode(PyBytes_FromStringAndSize(<const char*>span.p, span.n))


# ---------------------------------------------------------------- the nouns

@cython.final
@cython.freelist(64)
cdef class Packet:
    """One unit of work.

    `group`: one of ``cf df ed co mc rm``. `element`: 1 to 64 of ``A-Za-z0-9_.-``.
    `data`: any JSON value. `priority`: 1 to 10, 10 most urgent (default 5).
    `timeout_ms`: 1 to 300,000, from acceptance to answer (default: 29,500 on
    the receiving side). `dependencies`: ids of packets that must have succeeded
    first, at most 64. `metadata`: an object. `id`: 1 to 128 bytes, by default a
    fresh UUIDv4. Specification section 1. Raises `InvalidPacket`.
    """

    def __init__(self, group, element, data=None, *, priority=None, timeout_ms=None,
                 dependencies=None, metadata=None, id=None, version="1.0"):
        self.address = check_address(group, element)
        self.group = group
        self.element = element
        self.data = data
        self.priority = check_priority(priority)
        check_timeout(timeout_ms)
        self.timeout_ms = timeout_ms
        self.dependencies = _check_dependencies(dependencies)
        if metadata is not None and not isinstance(metadata, dict):
            raise _invalid("metadata", "an object (dict)", metadata)
        self._metadata = metadata
        self.id = _new_id() if id is None else _check_id("id", id)
        self.version = _check_version(version)

    @property
    def metadata(self):
        """The packet's own object, or None."""
        if type(self._metadata) is bytes:
            self._metadata = _decode(self._metadata)
        return self._metadata

    def __eq__(self, other):
        if type(other) is not Packet:
            return NotImplemented
        return self._fields() == (<Packet>other)._fields()

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        extra = "".join(
            f", {name}={value!r}"
            for name, value in (("timeout_ms", self.timeout_ms), ("dependencies", self.dependencies or None),
                                ("metadata", self.metadata))
            if value is not None
        )
        head = f"{self.group!r}, {self.element!r}, {self.data!r}, priority={self.priority}"
        return f"Packet({head}{extra}, id={self.id!r})"

    cdef tuple _fields(self):
        return (self.version, self.id, self.group, self.element, self.data, self.priority,
                self.timeout_ms, self.dependencies, self.metadata)


@cython.final
@cython.freelist(256)
cdef class Result:
    """The one outcome of a packet (specification, "Processing result").

    Attributes:
        packet_id: the packet's id.
        status: ``"success"`` or ``"error"``; `ok` says the same as a bool.
        data: what the handler returned; None on error.
        error: ``{"code", "message"}``, with ``details`` where it helps; None on success.
        duration_ms: the handler's time in milliseconds, not negative.
    """

    def __init__(self, packet_id, status="success", data=None, error=None, duration_ms=0):
        if status not in ("success", "error"):
            raise _invalid("status", '"success" or "error"', status)
        if error is not None and not isinstance(error, dict):
            raise _invalid("error", "an object with code and message", error)
        self._packet_id = _check_id("packet_id", packet_id)
        self._id_length = 0
        self.ok = status == "success"
        self.data = data
        self.error = error
        self._duration = duration_ms

    @property
    def packet_id(self):
        """The packet's id."""
        if self._packet_id is None:
            self._packet_id = text_to_str(self._id, self._id_length, False)
        return self._packet_id

    @property
    def status(self):
        """``"success"`` or ``"error"``."""
        return _SUCCESS if self.ok else _ERROR

    @property
    def duration_ms(self):
        """Milliseconds, not negative; an int where it is whole."""
        return int(self._duration) if self._duration < 9e15 and self._duration == <int64_t>self._duration \
            else self._duration

    def __eq__(self, other):
        if type(other) is not Result:
            return NotImplemented
        return (self.packet_id, self.ok, self.data, self.error, self._duration) == (
            other.packet_id, other.ok, other.data, other.error, (<Result>other)._duration)

    __hash__ = None

    def __repr__(self):
        what = f"data={self.data!r}" if self.ok else f"error={self.error!r}"
        return f"Result({self.packet_id!r}, {self.status!r}, {what}, duration_ms={self.duration_ms})"


@cython.final
@cython.freelist(64)
cdef class Message:
    """One frame: `type`, `seq` and `payload` (a `Packet`, a `Result`, or a dict)."""

    def __init__(self, type, seq, payload):
        self.type = type
        self.seq = seq
        self.payload = payload

    def __eq__(self, other):
        if type(other) is not Message:
            return NotImplemented
        return (self.type, self.seq, self.payload) == (other.type, other.seq, other.payload)

    __hash__ = None

    def __repr__(self):
        return f"Message({self.type!r}, {self.seq}, {self.payload!r})"


cdef Packet new_packet(FrameReader reader, object data):
    cdef Packet packet = Packet.__new__(Packet)
    cdef Span* span = &reader.fields[<int>F_VERSION]
    if span.n == 3 and not span.escaped and span.p[2] == 0x30:
        packet.version = _VERSION
    else:
        packet.version = <str>decode_span(span, None)
    packet.id = text_to_str(reader.id.p, reader.id.n, reader.fields[<int>F_ID].ascii and
                            not reader.fields[<int>F_ID].escaped)
    packet.group = <str>_GROUPS[reader.group]
    packet.element = text_to_str(reader.element.p, reader.element.n, True)
    packet.data = data
    packet.priority = reader.priority
    packet.timeout_ms = None if reader.timeout_ms == 0 else reader.timeout_ms
    span = &reader.fields[<int>F_DEPENDENCIES]
    packet.dependencies = tuple(decode_span(span, None)) if span.kind == Kind.ARRAY else ()
    span = &reader.fields[<int>F_METADATA]
    if span.kind == Kind.OBJECT:
        packet._metadata = PyBytes_FromStringAndSize(<const char*>span.p, span.n)
    return packet


cdef Result new_result(const unsigned char* packet_id, Py_ssize_t n, bint ok, object data, object error,
                       double duration_ms):
    cdef Result result = Result.__new__(Result)
    if n <= <Py_ssize_t>sizeof(result._id):
        memcpy(result._id, packet_id, <size_t>n)
        result._id_length = <unsigned char>n
    else:
        result._id_length = 0
        result._packet_id = text_to_str(packet_id, n, False)
    result.ok = ok
    result.data = data
    result.error = error
    result._duration = duration_ms
    return result


# ---------------------------------------------------------------- checks of Python values

def _invalid(where, expected, found, code="PF400"):
    shown = repr(found)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return InvalidPacket(f"{where}: expected {expected}, found {shown}", code=code, where=where, expected=expected)


cdef str _new_id():
    cdef unsigned char[ID_LENGTH] text
    write_id(text)
    return text_to_str(text, ID_LENGTH, True)


cdef str _check_id(str where, object value):
    cdef Py_ssize_t n
    if type(value) is not str:
        raise _invalid(where, "a string of 1 to 128 bytes", value)
    try:
        PyUnicode_AsUTF8AndSize(value, &n)
    except UnicodeEncodeError:
        raise _invalid(where, "text without lone surrogates", value) from None
    if not 1 <= n <= MAX_ID:
        raise _invalid(where, "a string of 1 to 128 bytes", value)
    return <str>value


cdef str _check_version(object version):
    cdef Py_ssize_t n
    cdef const char* p
    if type(version) is not str:
        raise _invalid("version", 'a string, "1.0"', version)
    try:
        p = PyUnicode_AsUTF8AndSize(version, &n)
    except UnicodeEncodeError:
        p = b""
        n = 0
    if n > 32 or not _valid_version(<const unsigned char*>p, n):
        raise _invalid("version", '"1.0" or another 1.x', version, "PF426")
    return <str>version


cdef bytes check_address(object group, object element):
    """``"group":"df","element":"transform"`` of a valid pair; raises InvalidPacket."""
    if group not in _GROUPS:
        raise _invalid("group", "one of cf, df, ed, co, mc, rm", group)
    if type(element) is not str or not (<str>element).isascii():
        raise _invalid("element", "1 to 64 of A-Z a-z 0-9 _ . -", element)
    cdef bytes raw = (<str>element).encode()
    if not _valid_element(<const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
        raise _invalid("element", "1 to 64 of A-Z a-z 0-9 _ . -", element)
    return b'"group":"' + (<str>group).encode() + b'","element":"' + raw + b'"'


cdef bytes packet_address(Packet packet):
    """The packet's ``check_address``, remembered: a packet never changes."""
    if packet.address is None:  # one that came off the wire
        packet.address = check_address(packet.group, packet.element)
    return packet.address


cdef int check_priority(object priority) except -1:
    if priority is None:
        return DEFAULT_PRIORITY
    cdef int overflow
    cdef int64_t number
    if type(priority) is int:
        number = PyLong_AsLongLongAndOverflow(priority, &overflow)
        if overflow == 0 and 1 <= number <= 10:
            return <int>number
    elif type(priority) is float and priority in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10):
        return <int><double>priority
    raise _invalid("priority", "an integer from 1 to 10", priority)


cdef int64_t check_timeout(object timeout_ms) except -1:
    """Milliseconds, 0 for None."""
    cdef int overflow
    cdef int64_t number
    if timeout_ms is None:
        return 0
    if type(timeout_ms) is int:
        number = PyLong_AsLongLongAndOverflow(timeout_ms, &overflow)
        if overflow == 0 and 1 <= number <= _MAX_TIMEOUT:
            return number
    raise _invalid("timeout_ms", "an integer from 1 to 300000", timeout_ms)


cdef tuple _check_dependencies(object dependencies):
    if dependencies is None:
        return ()
    if not isinstance(dependencies, (list, tuple)) or len(dependencies) > MAX_DEPENDENCIES:
        raise _invalid("dependencies", "at most 64 packet ids", dependencies)
    return tuple([_check_id("dependencies", one) for one in dependencies])


# ---------------------------------------------------------------- writing

cdef inline int _put(OutputBuffer out, const char* text) except -1:
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
    _put(out, b'{"type":"submit","seq":')
    out.put_int(seq)
    _put(out, b',"payload":{"version":"1.0","id":')
    out.put_string(packet_id, id_length)
    _put(out, b",")
    out.put(PyBytes_AS_STRING(address), PyBytes_GET_SIZE(address))
    _put(out, b',"data":')
    put_data(out, data, depth - 2, "data")
    _put(out, b',"priority":')
    out.put_int(priority)
    if timeout_ms > 0:
        _put(out, b',"timeout_ms":')
        out.put_int(timeout_ms)
    if extra is not None:
        out.put(PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
    return _put(out, b"}}")


cdef int put_result(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                    object data, int64_t duration_ms, int depth) except -1:
    _put(out, b'{"type":"result","seq":')
    out.put_int(seq)
    _put(out, b',"payload":{"packet_id":')
    out.put_string(packet_id, id_length)
    _put(out, b',"status":"success","data":')
    put_data(out, data, depth - 2, "result")
    _put(out, b',"duration_ms":')
    out.put_int(duration_ms)
    return _put(out, b"}}")


cdef int put_failure(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                     object error, int64_t duration_ms, int depth) except -1:
    _put(out, b'{"type":"result","seq":')
    out.put_int(seq)
    _put(out, b',"payload":{"packet_id":')
    out.put_string(packet_id, id_length)
    _put(out, b',"status":"error","error":')
    put_data(out, error, depth - 2, "error")
    _put(out, b',"duration_ms":')
    out.put_int(duration_ms)
    return _put(out, b"}}")


cdef int put_error(OutputBuffer out, int64_t seq, const unsigned char* packet_id, Py_ssize_t id_length,
                   object error, int depth) except -1:
    cdef dict payload = dict(error)
    if id_length > 0:
        payload["packet_id"] = text_to_str(packet_id, id_length, False)
    _put(out, b'{"type":"error","seq":')
    out.put_int(seq)
    _put(out, b',"payload":')
    put_data(out, payload, depth - 1, "error")
    return _put(out, b"}")


cdef int put_heartbeat(OutputBuffer out, int64_t seq, object payload) except -1:
    _put(out, b'{"type":"heartbeat","seq":')
    out.put_int(seq)
    _put(out, b',"payload":')
    put_data(out, payload, DEFAULT_DEPTH - 1, "payload")
    return _put(out, b"}")


cdef bytes encode_extra(Packet packet, int depth):
    """``,"dependencies":[...],"metadata":{...}`` of a packet that has them, else None."""
    cdef OutputBuffer out
    if packet.version == "1.0" and not packet.dependencies and packet._metadata is None:
        return None
    out = OutputBuffer()
    if packet.dependencies:
        _put(out, b',"dependencies":')
        put_data(out, list(packet.dependencies), depth - 2, "dependencies")
    if packet.metadata is not None:
        _put(out, b',"metadata":')
        put_data(out, packet.metadata, depth - 2, "metadata")
    return out.take()


# ---------------------------------------------------------------- the codec for Python

cdef frozenset _PACKET_KEYS = frozenset(
    ("version", "id", "group", "element", "data", "priority", "timeout_ms", "dependencies", "metadata"))
cdef frozenset _RESULT_KEYS = frozenset(("packet_id", "status", "data", "error", "duration_ms"))
cdef OutputBuffer _scratch = None
cdef FrameReader _reader = None


cdef Packet packet_from(object value):
    """A Packet from a Packet or a mapping with its fields; raises InvalidPacket."""
    if type(value) is Packet:
        return <Packet>value
    try:
        fields = dict(value)
    except (TypeError, ValueError):
        raise _invalid("packet", "a Packet or a mapping with group and element", value) from None
    for name in fields:
        if name not in _PACKET_KEYS:
            raise _invalid("packet", f"only the keys {', '.join(sorted(_PACKET_KEYS))}", name)
    for name in ("group", "element"):
        if name not in fields:
            raise InvalidPacket(f"packet: expected the key {name!r}, which is missing", where=name, expected="a value")
    group = fields.pop("group")
    element = fields.pop("element")
    data = fields.pop("data", None)
    if fields.get("version", "") is None:
        raise _invalid("version", 'a string, "1.0"', None)
    return Packet(group, element, data, **fields)


cdef Result result_from(object value):
    if type(value) is Result:
        return <Result>value
    try:
        fields = dict(value)
    except (TypeError, ValueError):
        raise _invalid("result", "a Result or a mapping with packet_id and status", value) from None
    for name in fields:
        if name not in _RESULT_KEYS:
            raise _invalid("result", f"only the keys {', '.join(sorted(_RESULT_KEYS))}", name)
    if "packet_id" not in fields or "status" not in fields:
        raise _invalid("result", "the keys packet_id and status", sorted(fields))
    return Result(**fields)


cdef int _write_message(OutputBuffer out, str kind, int64_t seq, object payload) except -1:
    cdef Packet packet
    cdef Result result
    cdef Py_ssize_t n
    cdef const unsigned char* p
    if kind == "submit":
        packet = packet_from(payload)
        p = <const unsigned char*>PyUnicode_AsUTF8AndSize(packet.id, &n)
        if packet.version == "1.0":
            put_submit(out, seq, p, n, packet_address(packet), packet.data, packet.priority,
                       check_timeout(packet.timeout_ms), encode_extra(packet, DEFAULT_DEPTH), DEFAULT_DEPTH)
        else:
            _put(out, b'{"type":"submit","seq":')
            out.put_int(seq)
            _put(out, b',"payload":')
            fields = {"version": packet.version, "id": packet.id, "group": packet.group, "element": packet.element,
                      "data": packet.data, "priority": packet.priority}
            for name in ("timeout_ms", "dependencies", "metadata"):
                if getattr(packet, name):
                    fields[name] = getattr(packet, name)
            put_data(out, fields, DEFAULT_DEPTH - 1, "payload")
            _put(out, b"}")
    elif kind == "result":
        result = result_from(payload)
        p = <const unsigned char*>PyUnicode_AsUTF8AndSize(result.packet_id, &n)
        if not 0 <= result._duration < 9e15:
            raise _invalid("duration_ms", "milliseconds, not negative", result._duration)
        if result.ok:
            put_result(out, seq, p, n, result.data, <int64_t>result._duration, DEFAULT_DEPTH)
        else:
            put_failure(out, seq, p, n, result.error, <int64_t>result._duration, DEFAULT_DEPTH)
    elif kind == "error" or kind == "heartbeat":
        try:
            payload = dict(payload)
        except (TypeError, ValueError):
            raise _invalid("payload", "a mapping", payload) from None
        _put(out, b'{"type":"error","seq":' if kind == "error" else b'{"type":"heartbeat","seq":')
        out.put_int(seq)
        _put(out, b',"payload":')
        put_data(out, payload, DEFAULT_DEPTH - 1, "payload")
        _put(out, b"}")
    else:
        raise _invalid("type", "submit, result, error or heartbeat", kind)
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
        raise _invalid("seq", "an integer from 0 to 2^53-1", seq)
    number = PyLong_AsLongLongAndOverflow(seq, &overflow)
    if overflow or not 0 <= number <= _MAX_SEQ or (number == 0 and type == "submit"):
        raise _invalid("seq", "an integer from 0 (a submit: 1) to 2^53-1", seq)
    if out is None:
        out = OutputBuffer(limit=1 << 40)
    _scratch = None  # a value's own conversion to JSON may call us again
    try:
        if <object>type.__class__ is not str:
            raise _invalid("type", "submit, result, error or heartbeat", type)
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
    `predict`: compare with the usual layout first (faster, never different).
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

    `predict`: try the usual layout first, as links do. Returns the seq it
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
