# What is found by `group:element`: handlers in a reactor, routes in a gateway.
#
# A KeyTable is an open-addressing hash table over the bytes of a frame, so
# that finding makes no strings; the one found last is tried first, since
# packets come in runs of one kind.

from libc.stdint cimport uint8_t, uint64_t

from pfcore.wire.reader cimport FrameReader

cdef class Keyed:
    cdef:
        readonly str key         # "df:transform"
        bytes element
        uint8_t group            # index into GROUP_CODES
        uint64_t hash            # keyed: a peer cannot aim for collisions

    # Sets all four from a checked pair; raises InvalidPacket.
    cdef int name(self, object group, object element) except -1

cdef class KeyTable:
    cdef:
        list table               # Keyed or None; a power of two long, at most half full
        readonly dict by_key     # "df:transform" -> Keyed
        Keyed latest             # the one found last

    cdef Keyed find(self, int group, const unsigned char* element, Py_ssize_t n)   # None if there is none
    cdef int put(self, Keyed item) except -1    # in place of an earlier one of the same key
    cdef int take(self, str key) except -1      # KeyError if there is none
    cdef int _rebuild(self, Py_ssize_t size) except -1
    cdef int _insert(self, Keyed item) except -1

# The concurrency key of a packet: its metadata.key or, where `in_data`, else its data.key, compared by value
# (an escaped letter is that letter, 1.0 is 1). False where it has none. Raises nothing: a value that cannot be
# decoded counts by its bytes. Not before a state is open: it may make Python objects.
cdef bint concurrency_key(FrameReader reader, bint in_data, uint64_t* out) noexcept

cdef uint64_t key_hash(int group, const unsigned char* element, Py_ssize_t n) noexcept nogil
