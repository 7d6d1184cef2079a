# Random material: UUIDv4 text for packet ids and keys for WebSocket masking.
#
# Both come from one pool of operating-system randomness, because a system
# call for each would cost more than the frame that carries it. The pool is
# refilled whole, never reused, and dropped in a forked child.

from libc.stdint cimport uint64_t

cdef enum:
    ID_LENGTH = 36               # bytes of UUID text

# Writes ID_LENGTH bytes of lower-case UUIDv4 text (RFC 9562, section 5.4).
cdef int write_id(unsigned char* out) except -1
# Writes the four bytes of a masking key (RFC 6455, section 5.3).
cdef int write_mask_key(unsigned char* out) except -1
# A key drawn once per process, for hash tables that a peer must not steer.
cdef uint64_t hash_key() noexcept nogil
