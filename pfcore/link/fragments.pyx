"""A message that comes in several frames. See ``fragments.pxd``."""

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from pfcore.memory.budget cimport Account

__all__ = ["Fragments"]

cdef enum:
    LEAST = 4096                 # bytes that are allocated at first


@cython.final
cdef class Fragments:
    """At most `limit` bytes, which `account` pays for (None: nobody) as long as this lives."""

    def __init__(self, Py_ssize_t limit, Account account):
        self.limit = limit
        self.account = account

    def __dealloc__(self):
        free(self.data)
        if self.account is not None:
            self.account.settle(-self.capacity)

    cdef bint add(self, const unsigned char* p, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity
        cdef void* memory
        if n > self.limit - self.size:
            return False
        if n > self.capacity - self.size:
            capacity = max(2 * self.capacity, self.size + n, LEAST)
            if self.account is not None and not self.account.room(capacity - self.capacity):
                self.refusal = self.account.refusal(capacity - self.capacity)
                return True
            memory = realloc(self.data, <size_t>capacity)
            if memory == NULL:
                raise MemoryError()
            if self.account is not None:
                self.account.settle(capacity - self.capacity)
            self.data = <unsigned char*>memory
            self.capacity = capacity
        if n > 0:
            memcpy(self.data + self.size, p, <size_t>n)
            self.size += n
        return True
