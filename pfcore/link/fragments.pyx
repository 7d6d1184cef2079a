"""A message that comes in several frames. See ``fragments.pxd``."""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

__all__ = ["Fragments"]

cdef enum:
    LEAST = 4096                 # bytes that are allocated at first


@cython.final
cdef class Fragments:
    """At most `limit` bytes."""

    def __init__(self, Py_ssize_t limit):
        self.limit = limit

    def __dealloc__(self):
        free(self.data)

    cdef bint add(self, const unsigned char* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity
        cdef void* memory
        if n > self.limit - self.size:
            return False
        if n > self.capacity - self.size:
            capacity = max(2 * self.capacity, self.size + n, LEAST)
            memory = realloc(self.data, <size_t>capacity)
            if memory == NULL:
                raise MemoryError()
            self.data = <unsigned char*>memory
            self.capacity = capacity
        if n > 0:
            memcpy(self.data + self.size, p, <size_t>n)
            self.size += n
        return True
