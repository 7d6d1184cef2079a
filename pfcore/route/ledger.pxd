# How packets ended: what a gateway answers a repeated id from, and what
# dependencies are decided by.
#
# A ring of `bound` outcomes in the order of their ending; the oldest makes way
# for the newest. They are found by principal and id through an index of its
# own, open addressing over 32 bits of hash and the place in the ring: to find
# that an id is not known, which is nearly always, touches the index alone. That
# is a miss of the cache all the same, so `expect` asks for it beforehand. The
# payloads of their results lie in a ring of bytes of their own, which may run
# out sooner: then the status is still known, the result no more.
#
#   known for OUTCOME_NS (5 min): id, fingerprint of the request, status
#   kept for RESULT_NS (2 min), and while the byte ring lasts: the result's payload
#
# `now` is an argument; nothing here has a timer. Nothing is allocated before
# the first outcome.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    LEDGER_INLINE = 40           # ids up to this long need no memory of their own

cdef struct Outcome:
    uint32_t tag                 # of principal and id
    uint64_t fingerprint         # of the request's payload
    int64_t ended                # ns; 0 while the place is unused
    int64_t offset               # of the payload in the byte ring, counted since the beginning; -1: not kept
    unsigned char* long_id       # owned; NULL where the id fits inline
    int32_t length               # bytes of the payload
    int32_t principal
    int32_t id_length
    uint8_t success
    unsigned char[LEDGER_INLINE] id

cdef class Ledger:
    cdef:
        Outcome* outcomes        # owned; a ring
        uint64_t* index          # owned: tag << 32 | place + 1; 0 where it is empty; at most half full
        unsigned char* bytes     # owned; a ring
        int32_t bound            # outcomes at most; set once
        int32_t capacity         # outcomes allocated
        uint32_t mask            # entries of the index less one
        int32_t count
        int32_t at               # where the next one goes
        int64_t written          # bytes written to the byte ring since the beginning
        int64_t room             # bytes of the byte ring
        uint64_t key

    # Of a principal's id; what `find` and `record` are given. The index is on its way to the cache afterwards.
    cdef uint32_t expect(self, int32_t principal, const unsigned char* packet_id, Py_ssize_t n) noexcept
    cdef int record(self, uint32_t tag, int32_t principal, const unsigned char* packet_id, Py_ssize_t n,
                    uint64_t fingerprint, bint success, const unsigned char* payload, Py_ssize_t length,
                    int64_t now) except -1
    # The outcome, or NULL; valid until the next `record`.
    cdef Outcome* find(self, uint32_t tag, int32_t principal, const unsigned char* packet_id, Py_ssize_t n,
                       int64_t now) noexcept
    # Its result's payload, or NULL where it is no longer kept.
    cdef const unsigned char* payload(self, const Outcome* outcome, int64_t now) noexcept

    cdef int _grow(self) except -1
    cdef void _forget(self, int32_t place) noexcept
    cdef void _enter(self, uint32_t tag, int32_t place) noexcept
