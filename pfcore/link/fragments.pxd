# A message that comes in several frames, RFC 6455, section 5.4.

from pfcore.memory.budget cimport Account

cdef class Fragments:
    cdef:
        Account account          # who pays for it; None: nobody
        str refusal              # why he may not have more, None
        unsigned char* data      # owned: the message so far
        Py_ssize_t size
        Py_ssize_t capacity
        Py_ssize_t limit         # bytes of the whole
        bint text                # as its first frame said

    # Appends `n` bytes; False, and nothing is added, where they are too many. Nor is it where there is a `refusal`.
    cdef bint add(self, const unsigned char* p, Py_ssize_t n) except -1
