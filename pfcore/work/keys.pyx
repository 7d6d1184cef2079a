"""What is found by ``group:element`` without making strings. See ``keys.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

from pfcore.memory.bytes_ops cimport pf_hash
from pfcore.memory.ids cimport hash_key
from pfcore.wire.packets cimport check_address
from pfcore.wire.reader cimport F_DATA, F_METADATA, FrameReader, decode_span, find_key, group_index
from pfcore.wire.scan cimport Kind, Span, unescape

import msgspec

__all__ = ["KeyTable", "Keyed"]

cdef enum:
    LONGEST_VALUE = 4096         # bytes of a key that is compared by value if it is not a string

cdef object _encode_sorted = msgspec.json.Encoder(order="sorted").encode


cdef object _plain(object value):
    """Equal values, equal JSON: 1 and 1.0 are the same number."""
    if type(value) is float and (<object>value).is_integer():
        return int(value)
    if type(value) is list:
        return [_plain(inner) for inner in value]
    if type(value) is dict:
        return {name: _plain(inner) for name, inner in value.items()}
    return value


cdef bint concurrency_key(FrameReader reader, bint in_data, uint64_t* out) noexcept:
    cdef Span span
    cdef Py_ssize_t n
    cdef unsigned char* text
    cdef bytes encoded
    if not (find_key(&reader.fields[<int>F_METADATA], b"key", 3, &span) and span.kind != Kind.NULL_) and not (
            in_data and find_key(&reader.fields[<int>F_DATA], b"key", 3, &span) and span.kind != Kind.NULL_):
        return False
    if span.kind == Kind.STRING and span.escaped:
        text = <unsigned char*>malloc(<size_t>span.n)
        if text != NULL:
            n = unescape(&span, text, span.n)
            out[0] = pf_hash(text, <size_t>n, hash_key() + <uint64_t>Kind.STRING)
            free(text)
            return True
    elif span.kind != Kind.STRING and span.n <= LONGEST_VALUE and not (span.kind == Kind.NUMBER and span.integer):
        try:
            encoded = <bytes>_encode_sorted(_plain(decode_span(&span, None)))
            out[0] = pf_hash(<const unsigned char*>PyBytes_AS_STRING(encoded), <size_t>PyBytes_GET_SIZE(encoded),
                             hash_key())
            return True
        except Exception:
            pass  # nested too deep to be decoded: by its bytes, then
    out[0] = pf_hash(span.p, <size_t>span.n, hash_key() + <uint64_t>(Kind.STRING if span.kind == Kind.STRING else 0))
    return True


cdef uint64_t key_hash(int group, const unsigned char* element, Py_ssize_t n) noexcept nogil:
    return pf_hash(element, <size_t>n, hash_key() + <uint64_t>group)


cdef class Keyed:
    """Something with a ``group:element`` of its own: `key`."""

    cdef int name(self, object group, object element) except -1:
        check_address(group, element)
        self.key = f"{group}:{element}"
        self.element = element.encode()
        raw = group.encode()
        self.group = <unsigned char>group_index(<const unsigned char*>PyBytes_AS_STRING(raw), 2)
        self.hash = key_hash(self.group, <const unsigned char*>PyBytes_AS_STRING(self.element),
                             PyBytes_GET_SIZE(self.element))
        return 0


@cython.final
cdef class KeyTable:
    """Keyed objects by group and element."""

    def __cinit__(self):
        self.table = [None] * 8
        self.by_key = {}

    def __len__(self):
        return len(self.by_key)

    cdef int put(self, Keyed item) except -1:
        cdef Py_ssize_t size = len(self.table)
        self.by_key[item.key] = item
        while size < 2 * len(self.by_key) + 1:
            size *= 2
        return self._rebuild(size) if size > len(self.table) else self._insert(item)

    cdef int take(self, str key) except -1:
        """Those behind it in its run move up, unless they would then stand before their home: no rebuilding."""
        cdef Keyed item = <Keyed>self.by_key.pop(key)
        cdef uint64_t mask = <uint64_t>(len(self.table) - 1)
        cdef uint64_t at = item.hash & mask, following
        cdef Keyed other
        self.latest = None
        while self.table[at] is not item:
            at = (at + 1) & mask
        following = at
        while True:
            following = (following + 1) & mask
            other = <Keyed>self.table[following]
            if other is None:
                break
            if ((following - other.hash) & mask) >= ((following - at) & mask):
                self.table[at] = other
                at = following
        self.table[at] = None
        return 0

    cdef int _rebuild(self, Py_ssize_t size) except -1:
        cdef Keyed item
        self.table = [None] * size
        self.latest = None
        for item in self.by_key.values():
            self._insert(item)
        return 0

    cdef int _insert(self, Keyed item) except -1:
        cdef uint64_t mask = <uint64_t>(len(self.table) - 1)
        cdef uint64_t at = item.hash & mask
        self.latest = None
        while self.table[at] is not None and (<Keyed>self.table[at]).key != item.key:
            at = (at + 1) & mask
        self.table[at] = item
        return 0

    cdef Keyed find(self, int group, const unsigned char* element, Py_ssize_t n):
        cdef Keyed item = self.latest
        cdef uint64_t hash, mask, at
        if item is not None and item.group == group and PyBytes_GET_SIZE(item.element) == n and memcmp(
                PyBytes_AS_STRING(item.element), element, <size_t>n) == 0:
            return item
        hash = key_hash(group, element, n)
        mask = <uint64_t>(len(self.table) - 1)
        at = hash & mask
        while True:
            item = <Keyed>self.table[at]
            if item is None:
                return None
            if item.hash == hash and item.group == group and PyBytes_GET_SIZE(item.element) == n and memcmp(
                    PyBytes_AS_STRING(item.element), element, <size_t>n) == 0:
                self.latest = item
                return item
            at = (at + 1) & mask
