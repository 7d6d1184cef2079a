"""Validating JSON scanner: finds spans, builds no objects (RFC 8259).

The C interface is in ``scan.pxd``. From Python there is `validate`, which says
whether a buffer holds one JSON document and where it does not, and exists so
that the scanner can be tested and fuzzed on its own; and what tells what decoding
a text takes: `digits_work` and `separators`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcmp

from pfcore.memory.bytes_ops cimport pf_count_separators, pf_string_run, pf_utf8_sequence

__all__ = ["array_length", "digits_work", "separators", "validate"]

cdef enum:
    # CPython converts at most this many digits (sys.int_info); msgspec follows it.
    MAX_INTEGER_DIGITS = 4300
    LONG_INTEGER = 64
    # Converting an integer takes time with the square of its digits, there and back: these some 4 ms for a document.
    MAX_DIGITS_WORK = 200000000
    # A double's largest decimal exponent when the value is written 0.ddd x 10^E.
    MAX_DECIMAL_EXPONENT = 309

# 2^1024 - 2^970: the smallest decimal value that rounds to infinity, 309 digits.
# above it, one more digit would not fit 64 bits
cdef int64_t LARGEST = 99999999999999999

cdef const char* OVERFLOW
cdef bytes _overflow_digits = str(2**1024 - 2**970).encode()
OVERFLOW = _overflow_digits


cdef inline bint _is_digit(unsigned char c) noexcept nogil:
    return <unsigned char>(c - 0x30) < 10


cdef int _hex4(const unsigned char* p, const unsigned char* end) noexcept nogil:
    """The value of four hexadecimal digits at p, or -1."""
    cdef int value = 0, i
    cdef unsigned char c
    if end - p < 4:
        return -1
    for i in range(4):
        c = p[i]
        value <<= 4
        if _is_digit(c):
            value |= c - 0x30
        elif 0x41 <= c <= 0x46:
            value |= c - 0x37
        elif 0x61 <= c <= 0x66:
            value |= c - 0x57
        else:
            return -1
    return value


cdef int _scan_escape(Cursor* cursor) noexcept nogil:
    """At a backslash inside a string: pass the escape, surrogate pairs whole."""
    cdef const unsigned char* p = cursor.p + 1
    cdef const unsigned char* end = cursor.end
    cdef unsigned char c
    cdef int unit
    if p >= end:
        cursor.p = p
        return scan_fail(cursor, b"the rest of an escape sequence")
    c = p[0]
    if c != 0x75:  # u
        if (c == 0x22 or c == 0x5C or c == 0x2F or c == 0x62 or c == 0x66
                or c == 0x6E or c == 0x72 or c == 0x74):
            cursor.p = p + 1
            return 0
        cursor.p = p
        return scan_fail(cursor, b'one of "\\/bfnrtu after a backslash')
    unit = _hex4(p + 1, end)
    if unit < 0:
        cursor.p = p + 1
        return scan_fail(cursor, b"four hexadecimal digits after \\u")
    if unit < 0xD800 or unit > 0xDFFF:
        cursor.p = p + 5
        return 0
    if unit < 0xDC00 and end - p >= 11 and p[5] == 0x5C and p[6] == 0x75:
        unit = _hex4(p + 7, end)
        if 0xDC00 <= unit <= 0xDFFF:
            cursor.p = p + 11
            return 0
    return scan_fail(cursor, b"a surrogate pair, not a lone surrogate")


cdef int scan_string(Cursor* cursor, Span* out) noexcept nogil:
    """At the opening quote: pass the string, well-formed UTF-8 and escapes only."""
    cdef const unsigned char* p = cursor.p + 1
    cdef const unsigned char* end = cursor.end
    cdef unsigned char c
    cdef int n
    out.kind = Kind.STRING
    out.p = p
    out.escaped = 0
    out.ascii = 1
    out.integer = 0
    while True:
        p = pf_string_run(p, end)
        if p >= end:
            cursor.p = p
            return scan_fail(cursor, b"the closing quote of a string")
        c = p[0]
        if c == 0x22:
            out.n = p - out.p
            cursor.p = p + 1
            return 0
        if c == 0x5C:
            out.escaped = 1
            cursor.p = p
            if _scan_escape(cursor) < 0:
                return -1
            p = cursor.p
        elif c < 0x20:
            cursor.p = p
            return scan_fail(cursor, b"control characters in strings to be escaped")
        else:
            out.ascii = 0
            n = pf_utf8_sequence(p, end)
            if n == 0:
                cursor.p = p
                return scan_fail(cursor, b"well-formed UTF-8")
            p += n


cdef bint _overflows(const unsigned char* p, const unsigned char* end) noexcept nogil:
    """Does this valid number, written with a fraction or exponent, round to infinity?"""
    cdef int64_t exponent = 0, written = 0
    cdef int significant = 0
    cdef bint fraction = False, negative = False
    cdef const unsigned char* q = p
    cdef unsigned char digit
    if q[0] == 0x2D:
        q += 1
    p = q
    # exponent E of 0.d1d2d3... x 10^E, d1 the first digit that is not 0
    while q < end and q[0] != 0x65 and q[0] != 0x45:
        if q[0] == 0x2E:
            fraction = True
        elif significant or q[0] != 0x30:
            significant = 1
            if not fraction:
                exponent += 1
        elif fraction:
            exponent -= 1
        q += 1
    if not significant:
        return False
    if q < end:
        q += 1
        if q[0] == 0x2D or q[0] == 0x2B:
            negative = q[0] == 0x2D
            q += 1
        while q < end:
            if written < 1000000000:
                written = written * 10 + (q[0] - 0x30)
            q += 1
        exponent += -written if negative else written
    if exponent != MAX_DECIMAL_EXPONENT:
        return exponent > MAX_DECIMAL_EXPONENT
    # same magnitude as the limit: compare digit by digit
    significant = 0
    while p < end and p[0] != 0x65 and p[0] != 0x45:
        if p[0] != 0x2E and (significant or p[0] != 0x30):
            digit = <unsigned char>OVERFLOW[significant] if significant < MAX_DECIMAL_EXPONENT else 0x30
            if p[0] != digit:
                return p[0] > digit
            significant += 1
        p += 1
    while significant < MAX_DECIMAL_EXPONENT:
        if OVERFLOW[significant] != 0x30:
            return False
        significant += 1
    return True


cdef int _scan_number(Cursor* cursor, Span* out) noexcept nogil:
    cdef const unsigned char* p = cursor.p
    cdef const unsigned char* end = cursor.end
    cdef const unsigned char* digits
    out.kind = Kind.NUMBER
    out.p = p
    out.integer = 1
    out.escaped = 0
    out.ascii = 1
    if p[0] == 0x2D:
        p += 1
    digits = p
    while p < end and _is_digit(p[0]):
        p += 1
    if p == digits:
        cursor.p = p
        return scan_fail(cursor, b"a digit")
    if digits[0] == 0x30 and p - digits > 1:
        cursor.p = digits + 1
        return scan_fail(cursor, b"no digits after a leading zero")
    if p < end and p[0] == 0x2E:
        out.integer = 0
        p += 1
        if p >= end or not _is_digit(p[0]):
            cursor.p = p
            return scan_fail(cursor, b"a digit after the decimal point")
        while p < end and _is_digit(p[0]):
            p += 1
    if p < end and (p[0] == 0x65 or p[0] == 0x45):
        out.integer = 0
        p += 1
        if p < end and (p[0] == 0x2D or p[0] == 0x2B):
            p += 1
        if p >= end or not _is_digit(p[0]):
            cursor.p = p
            return scan_fail(cursor, b"a digit in the exponent")
        while p < end and _is_digit(p[0]):
            p += 1
    out.n = p - out.p
    if out.integer:
        if out.n > MAX_INTEGER_DIGITS:  # msgspec counts the sign, too
            return scan_fail(cursor, b"an integer of at most 4300 digits")
        if out.n > LONG_INTEGER:
            cursor.digits += out.n * out.n
            if cursor.digits > MAX_DIGITS_WORK:
                return scan_fail(cursor, b"fewer long integers: the squares of their digits are more than 200000000")
    elif _overflows(out.p, p):
        return scan_fail(cursor, b"a number within the range of a double")
    cursor.p = p
    return 0


cdef int _scan_word(Cursor* cursor, Span* out, const char* word, Py_ssize_t n, Kind kind) noexcept nogil:
    if cursor.end - cursor.p < n or memcmp(cursor.p, word, <size_t>n) != 0:
        return scan_fail(cursor, b"a JSON value")
    out.kind = kind
    out.p = cursor.p
    out.n = n
    out.escaped = 0
    out.ascii = 1
    out.integer = 0
    cursor.p += n
    return 0


cdef int _scan_array(Cursor* cursor) noexcept nogil:
    cdef Span item
    if cursor.depth <= 0:
        return scan_fail(cursor, b"no deeper nesting")
    cursor.depth -= 1
    cursor.p += 1
    skip_space(cursor)
    if cursor.p < cursor.end and cursor.p[0] == 0x5D:
        cursor.p += 1
        cursor.depth += 1
        return 0
    while True:
        if scan_value(cursor, &item) < 0:
            return -1
        skip_space(cursor)
        if cursor.p < cursor.end and cursor.p[0] == 0x2C:
            cursor.p += 1
            skip_space(cursor)
        elif cursor.p < cursor.end and cursor.p[0] == 0x5D:
            cursor.p += 1
            cursor.depth += 1
            return 0
        else:
            return scan_fail(cursor, b"',' or ']'")


cdef int _scan_object(Cursor* cursor) noexcept nogil:
    cdef Span item
    if cursor.depth <= 0:
        return scan_fail(cursor, b"no deeper nesting")
    cursor.depth -= 1
    cursor.p += 1
    skip_space(cursor)
    if cursor.p < cursor.end and cursor.p[0] == 0x7D:
        cursor.p += 1
        cursor.depth += 1
        return 0
    while True:
        if cursor.p >= cursor.end or cursor.p[0] != 0x22:
            return scan_fail(cursor, b"a key in double quotes")
        if scan_string(cursor, &item) < 0:
            return -1
        skip_space(cursor)
        if cursor.p >= cursor.end or cursor.p[0] != 0x3A:
            return scan_fail(cursor, b"':'")
        cursor.p += 1
        skip_space(cursor)
        if scan_value(cursor, &item) < 0:
            return -1
        skip_space(cursor)
        if cursor.p < cursor.end and cursor.p[0] == 0x2C:
            cursor.p += 1
            skip_space(cursor)
        elif cursor.p < cursor.end and cursor.p[0] == 0x7D:
            cursor.p += 1
            cursor.depth += 1
            return 0
        else:
            return scan_fail(cursor, b"',' or '}'")


cdef int scan_value(Cursor* cursor, Span* out) noexcept nogil:
    """At the first byte of a value: pass it whole. Recursion is bounded by `depth`."""
    cdef unsigned char c
    cdef const unsigned char* start = cursor.p
    if cursor.p >= cursor.end:
        return scan_fail(cursor, b"a JSON value")
    c = cursor.p[0]
    if c == 0x22:
        return scan_string(cursor, out)
    if _is_digit(c) or c == 0x2D:
        return _scan_number(cursor, out)
    if c == 0x7B or c == 0x5B:
        if (_scan_object(cursor) if c == 0x7B else _scan_array(cursor)) < 0:
            return -1
        out.kind = Kind.OBJECT if c == 0x7B else Kind.ARRAY
        out.p = start
        out.n = cursor.p - start
        out.escaped = 0
        out.ascii = 0
        out.integer = 0
        return 0
    if c == 0x6E:
        return _scan_word(cursor, out, b"null", 4, Kind.NULL_)
    if c == 0x74:
        return _scan_word(cursor, out, b"true", 4, Kind.TRUE_)
    if c == 0x66:
        return _scan_word(cursor, out, b"false", 5, Kind.FALSE_)
    return scan_fail(cursor, b"a JSON value")


cdef int scan_end(Cursor* cursor) noexcept nogil:
    """After the document: nothing but white space."""
    skip_space(cursor)
    if cursor.p != cursor.end:
        return scan_fail(cursor, b"the end of the document")
    return 0


cdef int span_to_int64(const Span* span, int64_t lowest, int64_t highest, int64_t* out) noexcept nogil:
    """The integer that a NUMBER is: 7, 7.0 and 7e0 are the same one.

    Returns 0, or -1 where it is not an integer or outside [lowest, highest].
    `highest` must be below 10^18.
    """
    cdef const unsigned char* p = span.p
    cdef const unsigned char* end = span.p + span.n
    cdef bint negative = False, exponent_negative = False
    cdef int64_t value = 0, exponent = 0, scale = 0, zeros = 0, digit = 0
    if span.kind != Kind.NUMBER:
        return -1
    if p[0] == 0x2D:
        negative = True
        p += 1
    if span.integer:
        if end - p > 18:
            return -1
        while p < end:
            value = value * 10 + (p[0] - 0x30)
            p += 1
    else:
        # digits without the point, times 10^(exponent - digits behind the point)
        while p < end and p[0] != 0x65 and p[0] != 0x45:
            if p[0] == 0x2E:
                scale = 1
            elif scale and p[0] == 0x30:
                zeros += 1  # behind the point, counted only once another digit follows
            else:
                while zeros > 0 or digit == 0:
                    if value > LARGEST:
                        return -1
                    if zeros > 0:
                        value *= 10
                        zeros -= 1
                        scale += 1
                    else:
                        value = value * 10 + (p[0] - 0x30)
                        scale += scale > 0
                        digit = 1
                digit = 0
            p += 1
        exponent = 0
        if p < end:
            p += 1
            if p[0] == 0x2D or p[0] == 0x2B:
                exponent_negative = p[0] == 0x2D
                p += 1
            while p < end:
                if exponent < 100000:
                    exponent = exponent * 10 + (p[0] - 0x30)
                p += 1
            if exponent_negative:
                exponent = -exponent
        if scale:
            exponent -= scale - 1
        if value != 0:
            while exponent < 0:
                if value % 10 != 0:
                    return -1
                value //= 10
                exponent += 1
            while exponent > 0:
                if value > LARGEST:
                    return -1
                value *= 10
                exponent -= 1
    if negative:
        value = -value
    if value < lowest or value > highest:
        return -1
    out[0] = value
    return 0


cdef Py_ssize_t unescape(const Span* span, unsigned char* out, Py_ssize_t room) noexcept nogil:
    """Writes the UTF-8 text of a scanned STRING; its length, or -1 if `room` is too little.

    The text is never longer than the span, so room for `span.n` always does.
    """
    cdef const unsigned char* p = span.p
    cdef const unsigned char* end = span.p + span.n
    cdef Py_ssize_t n = 0
    cdef int unit
    cdef unsigned char c
    while p < end:
        if room - n < 4 and room - n < end - p:
            return -1
        c = p[0]
        if c != 0x5C:
            out[n] = c
            n += 1
            p += 1
            continue
        c = p[1]
        p += 2
        if c != 0x75:
            if c == 0x62:
                c = 0x08
            elif c == 0x66:
                c = 0x0C
            elif c == 0x6E:
                c = 0x0A
            elif c == 0x72:
                c = 0x0D
            elif c == 0x74:
                c = 0x09
            out[n] = c
            n += 1
            continue
        unit = _hex4(p, end)
        p += 4
        if unit < 0x80:
            out[n] = <unsigned char>unit
            n += 1
        elif unit < 0x800:
            out[n] = <unsigned char>(0xC0 | (unit >> 6))
            out[n + 1] = <unsigned char>(0x80 | (unit & 0x3F))
            n += 2
        elif unit < 0xD800 or unit > 0xDFFF:
            out[n] = <unsigned char>(0xE0 | (unit >> 12))
            out[n + 1] = <unsigned char>(0x80 | ((unit >> 6) & 0x3F))
            out[n + 2] = <unsigned char>(0x80 | (unit & 0x3F))
            n += 3
        else:
            unit = 0x10000 + ((unit - 0xD800) << 10) + (_hex4(p + 2, end) - 0xDC00)
            p += 6
            out[n] = <unsigned char>(0xF0 | (unit >> 18))
            out[n + 1] = <unsigned char>(0x80 | ((unit >> 12) & 0x3F))
            out[n + 2] = <unsigned char>(0x80 | ((unit >> 6) & 0x3F))
            out[n + 3] = <unsigned char>(0x80 | (unit & 0x3F))
            n += 4
    return n


def validate(buffer, int max_depth=64):
    """Does `buffer` hold exactly one JSON document?

    `max_depth` (0 to 512) is how many containers may be open at once. Returns
    None where it does, else ``(offset, expected)``: the byte at which reading
    stopped and what was expected there.
    """
    cdef Py_buffer view
    cdef Cursor cursor
    cdef Span span
    cdef int failed
    if not 0 <= max_depth <= 512:
        raise ValueError(f"max_depth: expected 0 to 512, got {max_depth}")
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        begin_scan(&cursor, <const unsigned char*>view.buf, <const unsigned char*>view.buf,
                   <const unsigned char*>view.buf + view.len, max_depth)
        skip_space(&cursor)
        failed = scan_value(&cursor, &span)
        if failed == 0:
            failed = scan_end(&cursor)
        if failed == 0:
            return None
        return cursor.p - cursor.start, (<bytes>cursor.expected).decode()
    finally:
        PyBuffer_Release(&view)


def separators(bytes data not None):
    """How many of ``,``, ``[`` and ``{`` stand in a text: with one more, at least as many as it has values."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    return pf_count_separators(p, p + PyBytes_GET_SIZE(data))


def array_length(bytes data not None, Py_ssize_t most):
    """Items of the array that a text of valid JSON is, ``most + 1`` where there are more; 0 for any other text."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef Cursor cursor
    cdef Span item
    cdef Py_ssize_t count = 0
    begin_scan(&cursor, p, p, p + PyBytes_GET_SIZE(data), 512)
    skip_space(&cursor)
    if cursor.p >= cursor.end or cursor.p[0] != 0x5B:
        return 0
    cursor.p += 1
    skip_space(&cursor)
    while count <= most and scan_value(&cursor, &item) == 0:
        count += 1
        skip_space(&cursor)
        if cursor.p >= cursor.end or cursor.p[0] != 0x2C:
            break
        cursor.p += 1
        skip_space(&cursor)
    return count


cdef bint _has_long_run(const unsigned char* p, const unsigned char* end) noexcept nogil:
    """Do more than `LONG_INTEGER` digits follow one another anywhere, in texts, too? One byte in 64 tells."""
    cdef const unsigned char* at = p + LONG_INTEGER
    cdef const unsigned char* first
    cdef const unsigned char* last
    while at < end:
        if _is_digit(at[0]):
            first = last = at
            while first > p and _is_digit((first - 1)[0]) and at - first <= LONG_INTEGER:
                first -= 1
            while last < end and _is_digit(last[0]) and last - first <= LONG_INTEGER:
                last += 1
            if last - first > LONG_INTEGER:
                return True
        at += LONG_INTEGER
    return False


def digits_work(bytes data not None):
    """The squares of the lengths of all long integers in a JSON text, added up: what converting them takes."""
    cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
    cdef const unsigned char* end = p + PyBytes_GET_SIZE(data)
    cdef const unsigned char* began
    cdef int64_t work = 0
    if not _has_long_run(p, end):
        return 0
    while p < end:
        if p[0] == 0x22:
            p = pf_string_run(p + 1, end)
            while p < end and p[0] != 0x22:
                p += 2 if p[0] == 0x5C and end - p > 1 else 1
                p = pf_string_run(p, end)
            p += 1
        elif _is_digit(p[0]):
            began = p
            while p < end and _is_digit(p[0]):
                p += 1
            if p - began > LONG_INTEGER:
                work += (p - began) * (p - began)
        else:
            p += 1
    return work
