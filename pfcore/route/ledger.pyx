"""How packets ended: bounded memory of ids, statuses and results. See ``ledger.pxd``."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from pfcore.memory.bytes_ops cimport pf_hash, pf_prefetch
from pfcore.memory.ids cimport hash_key

__all__ = ["Ledger"]

cdef enum:
    FIRST_CAPACITY = 1024

cdef int64_t OUTCOME_NS = 300000000000
cdef int64_t RESULT_NS = 120000000000


@cython.final
cdef class Ledger:
    """Outcomes of packets by principal and id.

    `bound`: outcomes at most (default 100,000). `room`: bytes of results at
    most (default 16 MiB: with the outcomes it stays in a large cache); one larger than an eighth of it is not kept.
    Statuses are known for 5 minutes, results for 2. Times in nanoseconds.
    """

    def __cinit__(self, *, int32_t bound=100000, int64_t room=16777216):
        if not 1 <= bound <= 1 << 23:
            raise ValueError(f"bound: expected 1 to 2^23, got {bound}")
        if not 0 <= room <= 1 << 32:
            raise ValueError(f"room: expected 0 to 2^32 bytes, got {room}")
        self.bound = bound
        self.room = room
        self.key = hash_key()

    def __dealloc__(self):
        cdef int32_t place
        for place in range(self.capacity):
            free(self.outcomes[place].long_id)
        free(self.outcomes)
        free(self.index)
        free(self.bytes)

    def __len__(self):
        return self.count

    @property
    def bytes_used(self):
        """Memory of outcomes, index and results: what was touched of it."""
        cdef int64_t index = 0 if self.index == NULL else (<int64_t>self.mask + 1) * <int64_t>sizeof(uint64_t)
        return self.capacity * <int64_t>sizeof(Outcome) + index + min(self.written, self.room)

    cdef int _grow(self) except -1:
        """Room for more outcomes; only while the ring has not gone round, so places stay what they are."""
        cdef int32_t capacity = self.capacity * 2 if self.capacity else FIRST_CAPACITY
        cdef uint32_t entries = 2
        cdef int32_t place
        cdef void* memory
        if capacity > self.bound:
            capacity = self.bound
        while entries < 2 * <uint32_t>capacity:
            entries *= 2
        if self.bytes == NULL and self.room > 0:
            # untouched pages of it cost nothing
            self.bytes = <unsigned char*>malloc(<size_t>self.room)
            if self.bytes == NULL:
                raise MemoryError()
        memory = malloc(entries * sizeof(uint64_t))
        if memory == NULL:
            raise MemoryError()
        free(self.index)
        self.index = <uint64_t*>memory
        self.mask = entries - 1
        memset(self.index, 0, entries * sizeof(uint64_t))
        for place in range(self.capacity):
            if self.outcomes[place].ended != 0:
                self._enter(self.outcomes[place].tag, place)
        memory = realloc(self.outcomes, <size_t>capacity * sizeof(Outcome))
        if memory == NULL:
            raise MemoryError()
        self.outcomes = <Outcome*>memory
        memset(&self.outcomes[self.capacity], 0, <size_t>(capacity - self.capacity) * sizeof(Outcome))
        self.capacity = capacity
        return 0

    cdef void _enter(self, uint32_t tag, int32_t place) noexcept:
        cdef uint32_t at = tag & self.mask
        while self.index[at] != 0:
            at = (at + 1) & self.mask
        self.index[at] = (<uint64_t>tag << 32) | <uint64_t>(place + 1)

    cdef void _forget(self, int32_t place) noexcept:
        cdef Outcome* outcome = &self.outcomes[place]
        cdef uint32_t at = outcome.tag & self.mask, home, following
        while <int32_t>(self.index[at] & 0xFFFFFFFF) != place + 1:
            at = (at + 1) & self.mask
        # those behind it move up, unless they would then stand before their home
        following = at
        while True:
            following = (following + 1) & self.mask
            if self.index[following] == 0:
                break
            home = <uint32_t>(self.index[following] >> 32) & self.mask
            if ((following - home) & self.mask) >= ((following - at) & self.mask):
                self.index[at] = self.index[following]
                at = following
        self.index[at] = 0
        if outcome.long_id != NULL:
            free(outcome.long_id)
            outcome.long_id = NULL
        outcome.ended = 0
        self.count -= 1

    cdef uint32_t expect(self, int32_t principal, const unsigned char* packet_id, Py_ssize_t n) noexcept:
        cdef uint32_t tag = <uint32_t>pf_hash(packet_id, <size_t>n, self.key + <uint64_t>principal)
        if self.index != NULL:
            pf_prefetch(&self.index[tag & self.mask])
        return tag

    cdef int record(self, uint32_t tag, int32_t principal, const unsigned char* packet_id, Py_ssize_t n,
                    uint64_t fingerprint, bint success, const unsigned char* payload, Py_ssize_t length,
                    int64_t now) except -1:
        cdef Outcome* outcome
        cdef int32_t place
        cdef int64_t start, at
        if self.at == self.capacity:
            if self.capacity < self.bound:
                self._grow()
            else:
                self.at = 0
        place = self.at
        outcome = &self.outcomes[place]
        if outcome.ended != 0:
            self._forget(place)
        if n > LEDGER_INLINE:
            outcome.long_id = <unsigned char*>malloc(<size_t>n)
            if outcome.long_id == NULL:
                raise MemoryError()
            memcpy(outcome.long_id, packet_id, <size_t>n)
        else:
            memcpy(outcome.id, packet_id, <size_t>n)
        outcome.tag = tag
        outcome.fingerprint = fingerprint
        outcome.ended = now if now > 0 else 1
        outcome.principal = principal
        outcome.id_length = <int32_t>n
        outcome.success = success
        outcome.length = <int32_t>length
        outcome.offset = -1
        if payload != NULL and 0 < length <= self.room >> 3:
            # in one piece: where it would go over the end, it starts at the beginning
            at = self.written % self.room
            start = self.written if at + length <= self.room else self.written + self.room - at
            memcpy(self.bytes + start % self.room, payload, <size_t>length)
            self.written = start + length
            outcome.offset = start
            pf_prefetch(self.bytes + (start + 4 * length) % self.room)
        self._enter(outcome.tag, place)
        self.count += 1
        self.at = place + 1
        # the ring is larger than the cache: ask early for what is to be forgotten and overwritten next
        if self.at + 4 < self.capacity:
            pf_prefetch(&self.outcomes[self.at + 4])
            pf_prefetch(<unsigned char*>&self.outcomes[self.at + 4] + 64)
            if self.outcomes[self.at].ended != 0:
                pf_prefetch(&self.index[self.outcomes[self.at].tag & self.mask])
        return 0

    cdef Outcome* find(self, uint32_t tag, int32_t principal, const unsigned char* packet_id, Py_ssize_t n,
                       int64_t now) noexcept:
        cdef uint32_t at
        cdef uint64_t entry
        cdef Outcome* outcome
        if self.count == 0:
            return NULL
        at = tag & self.mask
        while self.index[at] != 0:
            entry = self.index[at]
            if <uint32_t>(entry >> 32) == tag:
                outcome = &self.outcomes[<int32_t>(entry & 0xFFFFFFFF) - 1]
                if outcome.principal == principal and outcome.id_length == n and memcmp(
                        outcome.long_id if outcome.long_id != NULL else outcome.id, packet_id, <size_t>n) == 0 \
                        and now - outcome.ended <= OUTCOME_NS:
                    return outcome
            at = (at + 1) & self.mask
        return NULL

    cdef const unsigned char* payload(self, const Outcome* outcome, int64_t now) noexcept:
        if outcome.offset < 0 or now - outcome.ended > RESULT_NS or self.written - outcome.offset > self.room:
            return NULL
        return self.bytes + outcome.offset % self.room

    # -- for Python: tests

    def add(self, int32_t principal, bytes packet_id not None, bint success, bytes payload, int64_t now,
            uint64_t fingerprint=0):
        """Records an outcome; `payload` None keeps none."""
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(packet_id)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(packet_id)
        self.record(self.expect(principal, p, n), principal, p, n, fingerprint, success,
                    NULL if payload is None else <const unsigned char*>PyBytes_AS_STRING(payload),
                    0 if payload is None else PyBytes_GET_SIZE(payload), now)

    def look_up(self, int32_t principal, bytes packet_id not None, int64_t now):
        """``(success, fingerprint, payload or None)``, or None if nothing is known."""
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(packet_id)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(packet_id)
        cdef Outcome* outcome = self.find(self.expect(principal, p, n), principal, p, n, now)
        cdef const unsigned char* payload
        if outcome == NULL:
            return None
        payload = self.payload(outcome, now)
        return (bool(outcome.success), outcome.fingerprint,
                None if payload == NULL else PyBytes_FromStringAndSize(<const char*>payload, outcome.length))
