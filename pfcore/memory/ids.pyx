"""Packet ids: UUIDv4 text (RFC 9562) from a pool of operating-system randomness."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from pfcore.memory.bytes_ops cimport pf_siphash13

__all__ = ["new_id", "siphash13"]

cdef enum:
    POOL_BYTES = 8192            # 512 ids; one getrandom call a refill

cdef bytes _pool = b""           # the bytes that `_pool_data` points into
cdef const unsigned char* _pool_data = NULL
cdef Py_ssize_t _pool_left = 0   # bytes not yet handed out

cdef uint64_t _hash_key = 0
cdef uint16_t[256] _hex_pairs    # two ASCII digits of each byte, in memory order


cdef int _fill_tables() except -1:
    global _hash_key
    cdef bytes digits = b"0123456789abcdef"
    cdef bytes key = os.urandom(8)
    cdef uint8_t[2] pair
    cdef int i
    for i in range(256):
        pair[0] = <uint8_t>digits[i >> 4]
        pair[1] = <uint8_t>digits[i & 15]
        memcpy(&_hex_pairs[i], pair, 2)
    memcpy(&_hash_key, PyBytes_AS_STRING(key), 8)
    return 0


cdef const unsigned char* _draw(Py_ssize_t n) except NULL:
    """`n` fresh random bytes, valid until the next draw."""
    global _pool, _pool_data, _pool_left
    if _pool_left < n:
        _pool = os.urandom(POOL_BYTES)
        _pool_data = <const unsigned char*>PyBytes_AS_STRING(_pool)
        _pool_left = POOL_BYTES
    _pool_left -= n
    return _pool_data + _pool_left


def _drop_pool():
    """After a fork: parent and child must not hand out the same bytes."""
    global _pool_left
    _pool_left = 0


cdef int write_id(unsigned char* out) except -1:
    cdef const unsigned char* source = _draw(16)
    cdef unsigned char[16] raw
    cdef int i
    memcpy(raw, source, 16)
    raw[6] = (raw[6] & 0x0F) | 0x40
    raw[8] = (raw[8] & 0x3F) | 0x80
    for i in range(4):
        memcpy(out + 2 * i, &_hex_pairs[raw[i]], 2)
    out[8] = 0x2D
    memcpy(out + 9, &_hex_pairs[raw[4]], 2)
    memcpy(out + 11, &_hex_pairs[raw[5]], 2)
    out[13] = 0x2D
    memcpy(out + 14, &_hex_pairs[raw[6]], 2)
    memcpy(out + 16, &_hex_pairs[raw[7]], 2)
    out[18] = 0x2D
    memcpy(out + 19, &_hex_pairs[raw[8]], 2)
    memcpy(out + 21, &_hex_pairs[raw[9]], 2)
    out[23] = 0x2D
    for i in range(10, 16):
        memcpy(out + 24 + 2 * (i - 10), &_hex_pairs[raw[i]], 2)
    return 0


cdef int write_mask_key(unsigned char* out) except -1:
    memcpy(out, _draw(4), 4)
    return 0


cdef uint64_t hash_key() noexcept nogil:
    return _hash_key


def new_id():
    """A fresh packet id: 36 characters of random UUIDv4 text."""
    cdef unsigned char[ID_LENGTH] text
    write_id(text)
    return PyUnicode_DecodeASCII(<const char*>text, ID_LENGTH, NULL)


def siphash13(bytes data not None, uint64_t k0, uint64_t k1):
    """SipHash-1-3 of `data` under a 128-bit key: the hash of every table here, for tests."""
    return pf_siphash13(<const unsigned char*>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), k0, k1)


_fill_tables()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_pool)
