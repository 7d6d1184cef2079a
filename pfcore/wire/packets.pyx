"""The nouns of the core: Packet, Result and Message, and the checks of what they are made of."""

import msgspec

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from pfcore.memory.cpythonx cimport PyLong_AsLongLongAndOverflow, PyUnicode_AsUTF8AndSize
from pfcore.memory.ids cimport ID_LENGTH, write_id
from pfcore.wire.reader cimport (
    DEFAULT_PRIORITY,
    F_DATA,
    F_DEPENDENCIES,
    F_ID,
    F_METADATA,
    F_VERSION,
    MAX_DEPENDENCIES,
    MAX_ELEMENT,
    MAX_ID,
    MAX_TIMEOUT,
    FrameReader,
    decode_span,
    group_code,
    text_to_str,
    valid_element,
    valid_version,
)
from pfcore.wire.scan cimport Kind, Span
from pfcore.wire.terms cimport W_ELEMENT, W_GROUP

from pfcore.errors import InvalidPacket
from pfcore.wire.reader import GROUP_CODES

__all__ = [
    "MAX_ELEMENT_LENGTH",
    "MAX_ID_LENGTH",
    "MAX_TIMEOUT_MS",
    "Message",
    "Packet",
    "Result",
]

MAX_TIMEOUT_MS = <int>MAX_TIMEOUT
MAX_ID_LENGTH = <int>MAX_ID
MAX_ELEMENT_LENGTH = <int>MAX_ELEMENT

cdef tuple _GROUPS = GROUP_CODES
cdef str _VERSION = "1.0"
cdef str _SUCCESS = "success"
cdef str _ERROR = "error"
cdef object _decode = msgspec.json.Decoder().decode
cdef object _encode = msgspec.json.Encoder().encode
cdef object _Raw = msgspec.Raw


@cython.final
@cython.freelist(64)
cdef class Packet:
    """One unit of work.

    `group`: one of ``cf df ed co mc rm``. `element`: 1 to 64 of ``A-Za-z0-9_.-``.
    `data`: any JSON value. `priority`: 1 to 10, 10 most urgent (default 5).
    `timeout_ms`: 1 to 300,000, from acceptance to answer (default: 29,500 on
    the receiving side). `dependencies`: ids of packets that must have succeeded
    first, at most 64. `metadata`: an object. `id`: 1 to 128 bytes, by default a
    fresh UUIDv4. `size`: bytes of the data's JSON in a packet that came
    (a text's without its quotes), else 0.
    Specification section 1. Raises `InvalidPacket`.
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
        if type(metadata) is _Raw:  # JSON that the caller has checked
            metadata = bytes(metadata)
            if not (<bytes>metadata).startswith(b"{"):
                raise invalid("metadata", "an object (dict)", metadata)
        elif metadata is not None and not isinstance(metadata, dict):
            raise invalid("metadata", "an object (dict)", metadata)
        self._metadata = metadata
        self.id = _new_id() if id is None else _check_id("id", id)
        self.version = _check_version(version)

    @property
    def metadata(self):
        """The packet's own object, or None."""
        if type(self._metadata) is bytes:
            self._metadata = _decode(self._metadata)
        return self._metadata

    @property
    def raw_metadata(self):
        """The packet's own object as `msgspec.Raw`, not decoded, or None."""
        if self._metadata is None:
            return None
        return _Raw(self._metadata if type(self._metadata) is bytes else _encode(self._metadata))

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
            raise invalid("status", '"success" or "error"', status)
        if error is not None and not isinstance(error, dict):
            raise invalid("error", "an object with code and message", error)
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
    packet.group = group_code(reader.group)
    packet.element = text_to_str(reader.element.p, reader.element.n, True)
    packet.data = data
    packet.size = reader.fields[<int>F_DATA].n
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

cdef object invalid(str where, str expected, object found, str code="PF400"):
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
        raise invalid(where, "a string of 1 to 128 bytes", value)
    try:
        PyUnicode_AsUTF8AndSize(value, &n)
    except UnicodeEncodeError:
        raise invalid(where, "text without lone surrogates", value) from None
    if not 1 <= n <= MAX_ID:
        raise invalid(where, "a string of 1 to 128 bytes", value)
    return <str>value


cdef str _check_version(object version):
    cdef Py_ssize_t n
    cdef const char* p
    if type(version) is not str:
        raise invalid("version", 'a string, "1.0"', version)
    try:
        p = PyUnicode_AsUTF8AndSize(version, &n)
    except UnicodeEncodeError:
        p = b""
        n = 0
    if n > 32 or not valid_version(<const unsigned char*>p, n):
        raise invalid("version", '"1.0" or another 1.x', version, "PF426")
    return <str>version


cdef bytes check_address(object group, object element):
    """``"group":"df","element":"transform"`` of a valid pair; raises InvalidPacket."""
    if group not in _GROUPS:
        raise invalid("group", "one of cf, df, ed, co, mc, rm", group)
    if type(element) is not str or not (<str>element).isascii():
        raise invalid("element", "1 to 64 of A-Z a-z 0-9 _ . -", element)
    cdef bytes raw = (<str>element).encode()
    if not valid_element(<const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
        raise invalid("element", "1 to 64 of A-Z a-z 0-9 _ . -", element)
    return (<bytes>W_GROUP)[1:] + (<str>group).encode() + <bytes>W_ELEMENT + raw + b'"'


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
    raise invalid("priority", "an integer from 1 to 10", priority)


cdef int64_t check_timeout(object timeout_ms) except? -1:
    """Milliseconds, 0 for None."""
    cdef int overflow
    cdef int64_t number
    if timeout_ms is None:
        return 0
    if type(timeout_ms) is int:
        number = PyLong_AsLongLongAndOverflow(timeout_ms, &overflow)
        if overflow == 0 and 1 <= number <= MAX_TIMEOUT:
            return number
    raise invalid("timeout_ms", "an integer from 1 to 300000", timeout_ms)


cdef tuple _check_dependencies(object dependencies):
    if dependencies is None:
        return ()
    if not isinstance(dependencies, (list, tuple)) or len(dependencies) > MAX_DEPENDENCIES:
        raise invalid("dependencies", "at most 64 packet ids", dependencies)
    return tuple([_check_id("dependencies", one) for one in dependencies])


cdef frozenset _PACKET_KEYS = frozenset(
    ("version", "id", "group", "element", "data", "priority", "timeout_ms", "dependencies", "metadata"))
cdef frozenset _RESULT_KEYS = frozenset(("packet_id", "status", "data", "error", "duration_ms"))


cdef Packet packet_from(object value):
    """A Packet from a Packet or a mapping with its fields; raises InvalidPacket."""
    if type(value) is Packet:
        return <Packet>value
    try:
        fields = dict(value)
    except (TypeError, ValueError):
        raise invalid("packet", "a Packet or a mapping with group and element", value) from None
    for name in fields:
        if name not in _PACKET_KEYS:
            raise invalid("packet", f"only the keys {', '.join(sorted(_PACKET_KEYS))}", name)
    for name in ("group", "element"):
        if name not in fields:
            raise InvalidPacket(f"packet: expected the key {name!r}, which is missing", where=name, expected="a value")
    group = fields.pop("group")
    element = fields.pop("element")
    data = fields.pop("data", None)
    if fields.get("version", "") is None:
        raise invalid("version", 'a string, "1.0"', None)
    return Packet(group, element, data, **fields)


cdef Result result_from(object value):
    if type(value) is Result:
        return <Result>value
    try:
        fields = dict(value)
    except (TypeError, ValueError):
        raise invalid("result", "a Result or a mapping with packet_id and status", value) from None
    for name in fields:
        if name not in _RESULT_KEYS:
            raise invalid("result", f"only the keys {', '.join(sorted(_RESULT_KEYS))}", name)
    if "packet_id" not in fields or "status" not in fields:
        raise invalid("result", "the keys packet_id and status", sorted(fields))
    return Result(**fields)


cdef int check_plain(str what, object text, Py_ssize_t most) except -1:
    """ValueError, TypeError for what the other side would refuse in every heartbeat."""
    if text is None:
        return 0
    if not isinstance(text, str):
        raise TypeError(f"{what}: expected a text, got {text!r}")
    if not 1 <= len(text.encode("utf-8", "surrogatepass")) <= most or any(
            [c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in text]):
        raise ValueError(f"{what}: expected 1 to {most} bytes without control characters, got {text!r}")
    return 0
