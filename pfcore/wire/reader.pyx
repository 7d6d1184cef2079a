"""Reads frames: one pass over borrowed bytes, building nothing that nobody asks for.

The C interface is in ``reader.pxd``; from Python it is reached through `pfcore.wire.frames`.
"""

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.long cimport PyLong_FromLongLong
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from pfcore.memory.bytes_ops cimport pf_string_run
from pfcore.memory.cpythonx cimport PyUnicode_DATA, PyUnicode_New
from pfcore.wire.scan cimport (
    Cursor,
    Kind,
    Span,
    begin_scan,
    scan_end,
    scan_fail,
    scan_string,
    scan_value,
    skip_space,
    span_to_int64,
    unescape,
)
from pfcore.wire.terms cimport (
    MAX_SEQ,
    N_DURATION,
    N_ELEMENT,
    N_ELEMENT_DATA,
    N_PAYLOAD,
    N_PRIORITY,
    N_RESULT,
    N_SUBMIT,
    N_TIMEOUT,
    N_UUID_ANSWER,
    N_UUID_GROUP,
    N_UUID_PACKET,
    N_UUID_SUCCESS,
    W_DURATION,
    W_ELEMENT,
    W_ELEMENT_DATA,
    W_PRIORITY,
    W_RESULT,
    W_SUBMIT,
    W_TIMEOUT,
    W_UUID_ANSWER,
    W_UUID_GROUP,
    W_UUID_PACKET,
    W_UUID_SUCCESS,
)

from pfcore.errors import InvalidPacket

__all__ = ["GROUP_CODES"]

GROUP_CODES = ("cf", "df", "ed", "co", "mc", "rm")

cdef enum:
    ARENA = 512

cdef tuple _GROUPS = GROUP_CODES
cdef object _decode = msgspec.json.Decoder().decode

cdef uint8_t[256] ELEMENT_BYTES   # 1 for what an element may hold


cdef int _fill_tables() except -1:
    cdef int c
    for c in range(256):
        ELEMENT_BYTES[c] = chr(c) in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
    return 0


_fill_tables()


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
        if _is(p, n, b"instance"):
            return F_INSTANCE
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


cdef bint valid_element(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if n < 1 or n > MAX_ELEMENT:
        return False
    for i in range(n):
        if not ELEMENT_BYTES[p[i]]:
            return False
    return True


cdef bint valid_version(const unsigned char* p, Py_ssize_t n) noexcept nogil:
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
        self.canonical = True
        if self.predict and self._predicted(p, n):
            self.payload.n = p + n - 1 - self.payload.p
            return 0
        self.canonical = False
        self.payload.p = p
        self.payload.n = 0
        self.id.n = 0
        self.type = MessageType.UNKNOWN
        self.seq = -1
        memset(self.fields, 0, sizeof(self.fields))
        begin_scan(&cursor, p, p, p + n, self.max_depth - 2)  # the frame and its payload are levels too
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
        if memcmp(p, W_SUBMIT, N_SUBMIT) == 0:
            submit = True
        elif memcmp(p, W_RESULT, N_RESULT) == 0:
            submit = False
        else:
            return False
        p = _digits(p + N_SUBMIT, end, &self.seq)  # both are as long
        if p == NULL or p[0] != 0x2C:
            return False
        self.payload.p = p + N_PAYLOAD
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
        if self.seq == 0 or end - p < 90 or memcmp(p, W_UUID_PACKET, N_UUID_PACKET) != 0:
            return False
        self.fields[<int>F_VERSION].kind = Kind.STRING
        self.fields[<int>F_VERSION].escaped = 0
        self.fields[<int>F_VERSION].p = p + N_PAYLOAD + 12  # behind `{"version":"`
        self.fields[<int>F_VERSION].n = 3
        p += N_UUID_PACKET
        if not self._predicted_id(p, end, &self.fields[<int>F_ID]):
            return False
        p += 36
        if end - p < 40 or memcmp(p, W_UUID_GROUP, N_UUID_GROUP) != 0:
            return False
        p += N_UUID_GROUP
        group = group_index(p, 2)
        if group < 0 or memcmp(p + 2, W_ELEMENT, N_ELEMENT) != 0:
            return False
        self.group = <uint8_t>group
        p += 2 + N_ELEMENT
        self.element.p = p
        while p < end and ELEMENT_BYTES[p[0]]:
            p += 1
        self.element.n = p - self.element.p
        if self.element.n == 0 or self.element.n > MAX_ELEMENT or end - p <= N_ELEMENT_DATA \
                or memcmp(p, W_ELEMENT_DATA, N_ELEMENT_DATA) != 0:
            return False
        begin_scan(&cursor, p, p + N_ELEMENT_DATA, end, self.max_depth - 2)
        if scan_value(&cursor, &self.fields[<int>F_DATA]) < 0:
            return False
        p = cursor.p
        if end - p < 15 or memcmp(p, W_PRIORITY, N_PRIORITY) != 0:
            return False
        p = _digits(p + N_PRIORITY, end, &number)
        if p == NULL or number < 1 or number > 10:
            return False
        self.priority = <uint8_t>number
        self.timeout_ms = 0
        if end - p >= 17 and memcmp(p, W_TIMEOUT, N_TIMEOUT) == 0:
            p = _digits(p + N_TIMEOUT, end, &self.timeout_ms)
            if p == NULL or self.timeout_ms == 0 or self.timeout_ms > MAX_TIMEOUT:
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
        if end - p < 90 or memcmp(p, W_UUID_ANSWER, N_UUID_ANSWER) != 0:
            return False
        p += N_UUID_ANSWER
        if not self._predicted_id(p, end, &self.fields[<int>F_PACKET_ID]):
            return False
        p += 36
        if end - p < 30 or memcmp(p, W_UUID_SUCCESS, N_UUID_SUCCESS) != 0:
            return False
        begin_scan(&cursor, p, p + N_UUID_SUCCESS, end, self.max_depth - 2)
        if scan_value(&cursor, &self.fields[<int>F_DATA]) < 0:
            return False
        p = cursor.p
        if end - p < 18 or memcmp(p, W_DURATION, N_DURATION) != 0:
            return False
        p = _digits(p + N_DURATION, end, &duration)
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
                        self.payload.p = cursor.p
                        if self._payload(cursor) < 0:
                            return -1
                        self.payload.n = cursor.p - self.payload.p
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
        if seq_span.kind != Kind.ABSENT and span_to_int64(&seq_span, 0, MAX_SEQ, &self.seq) < 0:
            return self._fail(b"seq", b"an integer from 0 to 2^53-1", &seq_span)
        if unknown > MAX_UNKNOWN:
            return self._fail(b"the frame", b"at most 256 keys that the specification does not know", NULL)
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
        if unknown > MAX_UNKNOWN:
            return self._fail(b"payload", b"at most 256 keys that the specification does not know", NULL)
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
            if self._text(span, &text, 32) < 0 or not valid_version(text.p, text.n):
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
                or not valid_element(self.element.p, self.element.n)):
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
            if span_to_int64(span, 1, MAX_TIMEOUT, &self.timeout_ms) < 0:
                return self._fail(b"payload.timeout_ms", b"an integer from 1 to 300000", span)
        span = &self.fields[<int>F_METADATA]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.OBJECT:
            return self._fail(b"payload.metadata", b"an object", span)
        if span.n > MAX_METADATA:
            return self._fail(b"payload.metadata", b"an object of at most 65536 bytes", span)
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
        begin_scan(&cursor, span.p, span.p + 1, span.p + span.n, self.max_depth)
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

    cdef bint _plain(self, Span* span, Py_ssize_t most) noexcept:
        """Is this a string of 1 to `most` bytes without control characters (C0, DEL, C1)?"""
        cdef Text text
        cdef Py_ssize_t i
        if span.kind != Kind.STRING or self._text(span, &text, most) < 0 or text.n == 0:
            return False
        for i in range(text.n):
            if text.p[i] < 0x20 or text.p[i] == 0x7F or (
                    text.p[i] == 0xC2 and i + 1 < text.n and text.p[i + 1] < 0xA0):
                return False
        return True

    cdef int _check_result(self) noexcept:
        cdef Span* span = &self.fields[<int>F_STATUS]
        cdef Span inner
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
        if not self.success and span.kind == Kind.OBJECT:
            # who acts on an answer may trust their types
            if find_key(span, b"code", 4, &inner) and inner.kind != Kind.NULL_ and (
                    inner.kind != Kind.STRING or inner.n > MAX_CODE):
                return self._fail(b"payload.error.code", b"a string of at most 64 bytes", &inner)
            if find_key(span, b"message", 7, &inner) and inner.kind != Kind.NULL_ and inner.kind != Kind.STRING:
                return self._fail(b"payload.error.message", b"a string", &inner)
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
        if span_to_int64(span, -MAX_SEQ, MAX_SEQ, &number) == 0:
            out[0] = <double>number
            return
        try:
            out[0] = float(PyBytes_FromStringAndSize(<const char*>span.p, span.n))
        except BaseException:
            out[0] = 0

    cdef int _check_error(self) noexcept:
        cdef Span* span = &self.fields[<int>F_CODE]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and (span.kind != Kind.STRING or span.n > MAX_CODE):
            return self._fail(b"payload.code", b"a string of at most 64 bytes", span)
        span = &self.fields[<int>F_MESSAGE]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.STRING:
            return self._fail(b"payload.message", b"a string", span)
        return 0

    cdef int _check_heartbeat(self) noexcept:
        cdef Span* span = &self.fields[<int>F_TIMESTAMP]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.NUMBER:
            return self._fail(b"payload.timestamp", b"milliseconds since the epoch", span)
        span = &self.fields[<int>F_REACTOR]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._plain(span, MAX_ID):
            return self._fail(b"payload.reactor", b"a string of 1 to 128 bytes without control characters", span)
        span = &self.fields[<int>F_INSTANCE]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._plain(span, MAX_INSTANCE):
            # not cut short and shown, as other fields are: who knows it is its reactor
            return self._fail(b"payload.instance", b"a string of 1 to 64 bytes without control characters", NULL)
        span = &self.fields[<int>F_CAPABILITIES]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._strings(
                span, MAX_CAPABILITIES, 3 + MAX_ELEMENT):
            return self._fail(b"payload.capabilities", b'an array of at most 1024 "group:element"', span)
        span = &self.fields[<int>F_EXT]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and not self._strings(span, MAX_EXT, MAX_EXT):
            return self._fail(b"payload.ext", b"an array of at most 64 strings of 1 to 64 bytes", span)
        span = &self.fields[<int>F_LOAD]
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_ and span.kind != Kind.NUMBER:
            return self._fail(b"payload.load", b"a number", span)
        span = &self.fields[<int>F_WINDOW]
        self.window = 0
        if span.kind != Kind.ABSENT and span.kind != Kind.NULL_:
            if span_to_int64(span, 1, MAX_SEQ, &self.window) < 0:
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
        begin_scan(&cursor, self._start, self._start + self.offset, self._start + self._length, self.max_depth)
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


cdef bint find_key(const Span* span, const char* key, Py_ssize_t n, Span* out) noexcept:
    cdef Cursor cursor
    cdef Span name, value
    cdef unsigned char[32] plain
    cdef bint found = False
    if span.kind != Kind.OBJECT:
        return False
    begin_scan(&cursor, span.p, span.p + 1, span.p + span.n, 512)
    skip_space(&cursor)
    while cursor.p < cursor.end and cursor.p[0] == 0x22:
        if scan_string(&cursor, &name) < 0:
            return False
        skip_space(&cursor)
        cursor.p += 1
        skip_space(&cursor)
        if scan_value(&cursor, &value) < 0:
            return False
        if name.n == n and not name.escaped:
            if memcmp(name.p, key, <size_t>n) == 0:
                out[0] = value
                found = True
        elif name.escaped and name.n <= 6 * n and unescape(&name, plain, 32) == n \
                and memcmp(plain, key, <size_t>n) == 0:
            out[0] = value
            found = True
        skip_space(&cursor)
        cursor.p += 1
        skip_space(&cursor)
    return found


cdef list _top_level_keys(const unsigned char* p, Py_ssize_t n):
    """The unescaped keys of a valid object, repeated ones included."""
    cdef Cursor cursor
    cdef Span key, value
    cdef list keys = []
    begin_scan(&cursor, p, p, p + n, 512)
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


cdef object error_code(FrameReader reader):
    cdef Span span
    if reader.fields[<int>F_ERROR].kind != Kind.OBJECT or not find_key(
            &reader.fields[<int>F_ERROR], b"code", 4, &span) or span.kind != Kind.STRING:
        return None
    return decode_span(&span, None)
