"""What is found by ``group:element`` without making strings. See ``keys.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from pfcore.ids cimport hash_key
from pfcore.packets cimport check_address
from pfcore.reader cimport group_index

cdef extern from "bytes_ops.h" nogil:
    uint64_t pf_hash(const unsigned char* p, size_t n, uint64_t key) noexcept

__all__ = ["KeyTable", "Keyed"]


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
        del self.by_key[key]
        return self._rebuild(len(self.table))

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
