# Reads frames: the four message types of PacketFlow v1.0.
#
# Reading is one pass over the bytes: a FrameReader notes the span of every
# field it knows, whatever the order of the keys, and then checks what the
# frame's type requires. It borrows the bytes: everything in it is valid until
# they go or until the next `read`. Nothing is decoded that nobody asks for.
#
#   frame      {"type": T, "seq": S, "payload": P}
#   submit     P = {"version","id","group","element","data","priority","timeout_ms","dependencies","metadata"}
#   result     P = {"packet_id","status","data","error","duration_ms"}
#   error      P = {"code","message","details","packet_id"}
#   heartbeat  P = {"timestamp","reactor","instance","capabilities","window","load","ext"}

from libc.stdint cimport int64_t, uint8_t

from pfcore.wire.scan cimport Cursor, Span

cdef enum:
    MAX_ID = 128                 # bytes of a packet id
    MAX_CODE = 64                # bytes of an error's code
    MAX_TIMEOUT = 300000         # ms
    DEFAULT_DEPTH = 64           # levels of nesting
    DEFAULT_PRIORITY = 5
    MAX_ELEMENT = 64             # bytes of an element
    MAX_DEPENDENCIES = 64
    MAX_METADATA = 65536         # bytes: it may have to be decoded and written again
    MAX_UNKNOWN = 256            # keys that the specification does not know, of one object: each is compared with all
    MAX_INSTANCE = 64            # bytes of what tells reactors of one name apart
    MAX_CAPABILITIES = 1024      # elements in a heartbeat
    MAX_EXT = 64                 # extensions in a heartbeat, and bytes of each
    GROUPS = 6

cdef enum MessageType:
    UNKNOWN = 0
    SUBMIT = 1
    RESULT = 2
    ERROR = 3
    HEARTBEAT = 4

cdef enum Field:
    F_VERSION = 0
    F_ID
    F_GROUP
    F_ELEMENT
    F_DATA
    F_PRIORITY
    F_TIMEOUT
    F_DEPENDENCIES
    F_METADATA
    F_PACKET_ID
    F_STATUS
    F_ERROR
    F_DURATION
    F_CODE
    F_MESSAGE
    F_DETAILS
    F_TIMESTAMP
    F_REACTOR
    F_CAPABILITIES
    F_WINDOW
    F_LOAD
    F_EXT
    F_INSTANCE
    FIELDS                       # how many there are

# Unescaped UTF-8, borrowed from the frame or from the reader's arena.
cdef struct Text:
    const unsigned char* p
    Py_ssize_t n

cdef class FrameReader:
    cdef:
        bint predict             # try the canonical layout first; off only in tests
        int max_depth            # levels of nesting, the frame's own included
        # -- what the last `read` found; on failure, what it found until then
        MessageType type
        int64_t seq              # 0 to 2^53-1; -1 where it was absent or wrong
        Span[<int>FIELDS] fields
        Text payload             # the payload's object, as it stands in the frame
        bint canonical           # it has the canonical layout throughout: no parser could read it otherwise
        Text id                  # submit: id; result, error: packet_id (n == 0: none)
        Text element
        uint8_t group            # index into GROUP_CODES
        uint8_t priority         # 1 to 10
        uint8_t success          # result: status is "success"
        int64_t timeout_ms       # 0: absent
        double duration_ms       # result: 0 or more
        int64_t window           # heartbeat: 0: absent
        # -- why it failed
        const char* error_code   # "PF400", "PF426"
        const char* where        # static: the field, or NULL for a place in the bytes
        const char* expected     # static
        Py_ssize_t offset        # byte at which reading stopped
        # -- private
        const unsigned char* _start
        Py_ssize_t _length
        unsigned char[512] _arena
        Py_ssize_t _arena_used

    # 0, or -1 with the four fields above set. Raises nothing.
    cdef int read(self, const unsigned char* p, Py_ssize_t n) noexcept
    cdef object error(self)      # the InvalidPacket for the failure
    cdef object decode(self, Field field)   # the field's value as Python, None where absent

    # -- private
    cdef bint _predicted(self, const unsigned char* p, Py_ssize_t n) noexcept
    cdef bint _predicted_id(self, const unsigned char* p, const unsigned char* end, Span* span) noexcept
    cdef bint _predicted_submit(self, const unsigned char* p, const unsigned char* end) noexcept
    cdef bint _predicted_result(self, const unsigned char* p, const unsigned char* end) noexcept
    cdef int _fail(self, const char* where, const char* expected, Span* span) noexcept
    cdef int _text(self, Span* span, Text* out, Py_ssize_t most) noexcept
    cdef int _key(self, Cursor* cursor, Text* key) noexcept
    cdef int _frame(self, Cursor* cursor) noexcept
    cdef int _payload(self, Cursor* cursor) noexcept
    cdef bint _repeats(self, const unsigned char* p, Py_ssize_t n) noexcept
    cdef int _id(self) noexcept
    cdef int _check_submit(self) noexcept
    cdef int _check_result(self) noexcept
    cdef int _check_error(self) noexcept
    cdef int _check_heartbeat(self) noexcept
    cdef bint _strings(self, Span* span, Py_ssize_t most, Py_ssize_t longest) noexcept
    cdef bint _plain(self, Span* span, Py_ssize_t most) noexcept
    cdef void _number(self, Span* span, double* out) noexcept
    cdef str _found(self)

# The value of a top-level key of an OBJECT, compared unescaped; of a key that stands there twice the last, as every
# parser behind us that keeps one keeps it. False where there is none. `key`: at most 16 bytes.
cdef bint find_key(const Span* span, const char* key, Py_ssize_t n, Span* out) noexcept
# The value of a span; `decoder` is the `decode` method of a msgspec Decoder, or None.
cdef object decode_span(const Span* span, object decoder)
cdef str text_to_str(const unsigned char* p, Py_ssize_t n, bint ascii)
cdef int group_index(const unsigned char* p, Py_ssize_t n) noexcept nogil   # -1: not a group
cdef str group_code(int index)
cdef bint valid_element(const unsigned char* p, Py_ssize_t n) noexcept nogil
cdef bint valid_version(const unsigned char* p, Py_ssize_t n) noexcept nogil

# The code of a result that is an error; None where it has none. The reader has seen to it that it is a short string.
cdef object error_code(FrameReader reader)
