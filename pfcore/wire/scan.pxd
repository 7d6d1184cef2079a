# A validating JSON scanner (RFC 8259) that finds spans and builds no objects.
#
# It knows bytes only: no packets, no Python values. It accepts exactly what
# msgspec.json accepts (and so what RFC 8259 accepts, less lone surrogates,
# doubles beyond the range of IEEE 754 and integers of more than 4,300 digits,
# the most that CPython converts), up to a nesting depth of the caller's choice.
#
# Contract of every function here: on success it returns 0 and leaves
# `cursor.p` behind what it read; on failure it returns -1, sets
# `cursor.expected` to a static text and leaves `cursor.p` at the offending
# byte. Nothing is read outside [cursor.start, cursor.end). No function needs
# the GIL, allocates or raises.

from libc.stdint cimport int64_t, uint8_t

cdef struct Cursor:
    const unsigned char* p       # next byte to read
    const unsigned char* end     # one past the last byte; borrowed, as is `start`
    const unsigned char* start   # first byte of the document, for offsets in errors
    const char* expected         # static text once something failed, else NULL
    int depth                    # containers that may still be opened
    int64_t digits               # squares of the lengths of long integers so far: what converting them takes

# What a JSON value is, told by its first byte.
cdef enum Kind:
    ABSENT = 0
    NULL_ = 1
    TRUE_ = 2
    FALSE_ = 3
    NUMBER = 4
    STRING = 5
    ARRAY = 6
    OBJECT = 7

# A value inside a document. For a STRING the span is what stands between the
# quotes, still escaped; for everything else it is the whole token.
cdef struct Span:
    const unsigned char* p
    Py_ssize_t n
    uint8_t kind                 # Kind
    uint8_t escaped              # STRING: holds a backslash
    uint8_t ascii                # STRING: no byte above 0x7F
    uint8_t integer              # NUMBER: neither fraction nor exponent

cdef inline void begin_scan(Cursor* cursor, const unsigned char* start, const unsigned char* p,
                            const unsigned char* end, int depth) noexcept nogil:
    cursor.start = start
    cursor.p = p
    cursor.end = end
    cursor.depth = depth
    cursor.digits = 0
    cursor.expected = NULL

cdef int scan_value(Cursor* cursor, Span* out) noexcept nogil
cdef int scan_string(Cursor* cursor, Span* out) noexcept nogil
cdef int scan_end(Cursor* cursor) noexcept nogil
cdef int span_to_int64(const Span* span, int64_t lowest, int64_t highest, int64_t* out) noexcept nogil
cdef Py_ssize_t unescape(const Span* span, unsigned char* out, Py_ssize_t room) noexcept nogil

cdef inline void skip_space(Cursor* cursor) noexcept nogil:
    # Machines write no white space: one comparison decides nearly always.
    while cursor.p < cursor.end and cursor.p[0] <= 0x20 and (
            cursor.p[0] == 0x20 or cursor.p[0] == 0x0A or cursor.p[0] == 0x0D or cursor.p[0] == 0x09):
        cursor.p += 1

cdef inline int scan_fail(Cursor* cursor, const char* expected) noexcept nogil:
    cursor.expected = expected
    return -1
