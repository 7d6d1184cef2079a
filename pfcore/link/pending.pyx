"""Pending-seq table: seq -> waiter, packet id -> seq, deadlines on a timer wheel."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from pfcore.memory.bytes_ops cimport pf_ctz64, pf_hash
from pfcore.memory.ids cimport hash_key
from pfcore.wire.terms cimport MAX_SEQ

__all__ = ["PendingFull", "PendingTable"]

cdef enum:
    FIRST_CAPACITY = 16


class PendingFull(Exception):
    """The table holds as many entries as it may."""


cdef inline int64_t _tick_of(int64_t deadline) noexcept nogil:
    """The tick at whose start the deadline has passed: rounded up, never early."""
    return (deadline + (<int64_t>1 << TICK_BITS) - 1) >> TICK_BITS


@cython.final
cdef class PendingTable:
    """Waiters by seq and by packet id, with deadlines. Every operation is O(1).

    `bound`: most entries (default 131,072), `PendingFull` past it.
    `first_seq`: the first seq given (default 1). `most_seq`: after it comes 1
    again (default 2^53-1); a seq still in use is passed over.
    `now`: the clock's present reading in nanoseconds (default 0).
    """

    def __cinit__(self, *, Py_ssize_t bound=131072, int64_t first_seq=1, int64_t most_seq=MAX_SEQ,
                  int64_t now=0):
        if not 1 <= bound <= 1 << 26:
            raise ValueError(f"bound: expected 1 to 2^26, got {bound}")
        if not 1 <= first_seq <= most_seq <= MAX_SEQ:
            raise ValueError(f"first_seq, most_seq: expected 1 <= first <= most <= 2^53-1, got {first_seq}, {most_seq}")
        if bound > most_seq:
            raise ValueError(f"bound: expected no more entries than seqs, got {bound} and {most_seq}")
        self.bound = bound
        self.last_seq = first_seq - 1
        self.most_seq = most_seq
        self.free = -1
        self.key = hash_key()
        self.wheel_tick = now >> TICK_BITS

    def __dealloc__(self):
        cdef int32_t slot
        for slot in range(self.used):
            if self.entries[slot].seq != 0:
                Py_DECREF(<object>self.entries[slot].waiter)
                free(self.entries[slot].long_id)
        free(self.entries)
        free(self.by_seq)
        free(self.by_id)
        free(self.wheel)

    def __len__(self):
        return self.count

    # -- seqs

    cdef int64_t next_seq(self) noexcept:
        while True:
            self.last_seq = self.last_seq + 1 if self.last_seq < self.most_seq else 1
            # after a wrap one slow entry may still hold its seq
            if self.count == 0 or self.find_seq(self.last_seq) < 0:
                return self.last_seq

    # -- memory

    cdef int _grow(self) except -1:
        cdef int32_t capacity = self.capacity * 2 if self.capacity else FIRST_CAPACITY
        cdef void* memory
        if self.wheel == NULL:
            memory = malloc(LEVELS * WHEEL_SLOTS * sizeof(int32_t))
            if memory == NULL:
                raise MemoryError()
            memset(memory, 0xFF, LEVELS * WHEEL_SLOTS * sizeof(int32_t))
            self.wheel = <int32_t*>memory
        memory = realloc(self.entries, <size_t>capacity * sizeof(Entry))
        if memory == NULL:
            raise MemoryError()
        self.entries = <Entry*>memory
        memory = realloc(self.by_seq, <size_t>capacity * sizeof(int32_t))
        if memory == NULL:
            raise MemoryError()
        self.by_seq = <int32_t*>memory
        memory = realloc(self.by_id, <size_t>capacity * sizeof(int32_t))
        if memory == NULL:
            raise MemoryError()
        self.by_id = <int32_t*>memory
        self.capacity = capacity
        self._fill_buckets()
        return 0

    cdef void _fill_buckets(self) noexcept:
        cdef int32_t slot, bucket
        memset(self.by_seq, 0xFF, <size_t>self.capacity * sizeof(int32_t))
        memset(self.by_id, 0xFF, <size_t>self.capacity * sizeof(int32_t))
        for slot in range(self.used):
            if self.entries[slot].seq != 0:
                bucket = <int32_t>(self.entries[slot].seq & (self.capacity - 1))
                self.entries[slot].next_seq = self.by_seq[bucket]
                self.by_seq[bucket] = slot
                bucket = <int32_t>(self.entries[slot].hash & <uint64_t>(self.capacity - 1))
                self.entries[slot].next_id = self.by_id[bucket]
                self.by_id[bucket] = slot

    def shrink(self):
        """Gives back memory of slots that are not in use. Entries stay in theirs: those to come take the first ones.

        So where some are in use a second call, once these have ended, gives back the more.
        """
        cdef int32_t slot, capacity = FIRST_CAPACITY
        cdef void* memory
        if self.capacity <= FIRST_CAPACITY or self.count > self.used >> 3:
            return
        while self.used > 0 and self.entries[self.used - 1].seq == 0:
            self.used -= 1
        self.free = -1
        for slot in range(self.used - 1, -1, -1):
            if self.entries[slot].seq == 0:
                self.entries[slot].next_seq = self.free
                self.free = slot
        while capacity < self.used:
            capacity *= 2
        if capacity > self.capacity // 4:
            return
        # in any order, and whichever of them the allocator refuses: a larger one than `capacity` says does no harm
        self.capacity = capacity
        memory = realloc(self.entries, <size_t>capacity * sizeof(Entry))
        if memory != NULL:
            self.entries = <Entry*>memory
        memory = realloc(self.by_seq, <size_t>capacity * sizeof(int32_t))
        if memory != NULL:
            self.by_seq = <int32_t*>memory
        memory = realloc(self.by_id, <size_t>capacity * sizeof(int32_t))
        if memory != NULL:
            self.by_id = <int32_t*>memory
        self._fill_buckets()

    # -- the wheel

    cdef void _wheel_add(self, int32_t slot) noexcept:
        cdef Entry* entry = &self.entries[slot]
        cdef int64_t tick = _tick_of(entry.deadline)
        cdef int64_t span
        cdef int level = 0, place
        if tick <= self.wheel_tick:
            tick = self.wheel_tick + 1  # already due: the next look finds it
        span = tick ^ self.wheel_tick
        # the level is that of the highest group of six bits in which tick and now differ
        while level < LEVELS - 1 and (span >> (6 * (level + 1))) != 0:
            level += 1
        if level < LEVELS - 1:
            place = <int>((tick >> (6 * level)) & (WHEEL_SLOTS - 1))
        else:
            # the outermost level goes round: by distance, not by bits, or an entry just behind
            # its seam would wait for a whole turn. Beyond it, park in the slot that comes up
            # last, to be looked at again there.
            span = (tick >> (6 * level)) - (self.wheel_tick >> (6 * level))
            if span > WHEEL_SLOTS - 1:
                span = WHEEL_SLOTS - 1
            place = <int>(((self.wheel_tick >> (6 * level)) + span) & (WHEEL_SLOTS - 1))
        place += level * WHEEL_SLOTS
        entry.wheel_slot = place
        entry.wheel_previous = -1
        entry.wheel_next = self.wheel[place]
        if entry.wheel_next >= 0:
            self.entries[entry.wheel_next].wheel_previous = slot
        self.wheel[place] = slot
        self.occupied[level] |= <uint64_t>1 << (place & (WHEEL_SLOTS - 1))

    cdef void _wheel_remove(self, int32_t slot) noexcept:
        cdef Entry* entry = &self.entries[slot]
        cdef int32_t place = entry.wheel_slot
        if place < 0:
            return
        if entry.wheel_next >= 0:
            self.entries[entry.wheel_next].wheel_previous = entry.wheel_previous
        if entry.wheel_previous >= 0:
            self.entries[entry.wheel_previous].wheel_next = entry.wheel_next
        else:
            self.wheel[place] = entry.wheel_next
            if entry.wheel_next < 0:
                self.occupied[place // WHEEL_SLOTS] &= ~(<uint64_t>1 << (place & (WHEEL_SLOTS - 1)))
        entry.wheel_slot = -1

    cdef void _cascade(self, int level) noexcept:
        """Time has reached the present slot of `level`: its entries move inwards."""
        cdef int32_t place = <int32_t>((self.wheel_tick >> (6 * level)) & (WHEEL_SLOTS - 1)) + level * WHEEL_SLOTS
        cdef int32_t slot = self.wheel[place], following
        self.wheel[place] = -1
        self.occupied[level] &= ~(<uint64_t>1 << (place & (WHEEL_SLOTS - 1)))
        while slot >= 0:
            following = self.entries[slot].wheel_next
            self._wheel_readd(slot)
            slot = following

    cdef void _wheel_readd(self, int32_t slot) noexcept:
        # an entry due exactly now belongs into the present slot of level 0, which is looked at next
        cdef Entry* entry = &self.entries[slot]
        cdef int32_t place
        if _tick_of(entry.deadline) > self.wheel_tick:
            self._wheel_add(slot)
            return
        place = <int32_t>(self.wheel_tick & (WHEEL_SLOTS - 1))
        entry.wheel_slot = place
        entry.wheel_previous = -1
        entry.wheel_next = self.wheel[place]
        if entry.wheel_next >= 0:
            self.entries[entry.wheel_next].wheel_previous = slot
        self.wheel[place] = slot
        self.occupied[0] |= <uint64_t>1 << place

    cdef int32_t due(self, int64_t now) noexcept:
        cdef int64_t target = now >> TICK_BITS
        cdef int64_t step, candidate
        cdef int level
        cdef int32_t slot
        if self.wheel == NULL or self.count == 0:
            if target > self.wheel_tick:
                self.wheel_tick = target
            return -1
        while True:
            slot = self.wheel[self.wheel_tick & (WHEEL_SLOTS - 1)]
            if slot >= 0:
                return slot
            if self.wheel_tick >= target:
                return -1
            # go to the next tick at which anything happens, at most to `target`
            step = target
            for level in range(LEVELS):
                candidate = self._next_of_level(level)
                if candidate >= 0 and candidate < step:
                    step = candidate
            self.wheel_tick = step
            # slots of the outer levels that begin at this tick empty into the inner ones
            for level in range(LEVELS - 1, 0, -1):
                if self.wheel_tick & ((<int64_t>1 << (6 * level)) - 1) == 0:
                    self._cascade(level)

    cdef int64_t _next_of_level(self, int level) noexcept:
        """The tick at which the level's next occupied slot comes up, or -1."""
        cdef uint64_t bits = self.occupied[level]
        cdef int64_t present = self.wheel_tick >> (6 * level)
        cdef int at = <int>(present & (WHEEL_SLOTS - 1))
        cdef uint64_t ahead
        cdef int distance
        if bits == 0:
            return -1
        # rotate so that the slot after the present one is bit 0
        at = (at + 1) & (WHEEL_SLOTS - 1)
        ahead = (bits >> at) | (bits << ((WHEEL_SLOTS - at) & (WHEEL_SLOTS - 1)))
        distance = pf_ctz64(ahead) + 1
        return (present + distance) << (6 * level)

    cdef int64_t next_due(self) noexcept:
        cdef int64_t best = -1, candidate
        cdef int level
        if self.wheel == NULL or self.count == 0:
            return -1
        if self.wheel[self.wheel_tick & (WHEEL_SLOTS - 1)] >= 0:
            return self.wheel_tick << TICK_BITS
        for level in range(LEVELS):
            candidate = self._next_of_level(level)
            if candidate >= 0 and (best < 0 or candidate < best):
                best = candidate
        return best << TICK_BITS if best >= 0 else -1

    # -- entries

    cdef int32_t insert(self, object waiter, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline) except? -1:
        cdef int32_t slot, bucket
        cdef Entry* entry
        if self.count >= self.bound:
            raise PendingFull(f"{self.count} entries are pending, the most that may")
        if self.free < 0 and self.used == self.capacity:
            self._grow()
        if self.free >= 0:
            slot = self.free
        else:
            slot = self.used
        entry = &self.entries[slot]
        if n > INLINE_ID:
            entry.long_id = <unsigned char*>malloc(<size_t>n)
            if entry.long_id == NULL:
                raise MemoryError()
            memcpy(entry.long_id, packet_id, <size_t>n)
        else:
            entry.long_id = NULL
            memcpy(entry.id, packet_id, <size_t>n)
        if slot == self.free:
            self.free = entry.next_seq
        else:
            self.used += 1
        entry.id_length = <int32_t>n
        entry.hash = pf_hash(packet_id, <size_t>n, self.key)
        entry.seq = self.next_seq()
        entry.deadline = deadline
        Py_INCREF(waiter)
        entry.waiter = <PyObject*>waiter
        bucket = <int32_t>(entry.seq & (self.capacity - 1))
        entry.next_seq = self.by_seq[bucket]
        self.by_seq[bucket] = slot
        bucket = <int32_t>(entry.hash & <uint64_t>(self.capacity - 1))
        entry.next_id = self.by_id[bucket]
        self.by_id[bucket] = slot
        entry.wheel_slot = -1
        if deadline >= 0:
            self._wheel_add(slot)
        self.count += 1
        return slot

    cdef int32_t find_seq(self, int64_t seq) noexcept:
        cdef int32_t slot
        if self.count == 0 or seq <= 0:
            return -1
        slot = self.by_seq[seq & (self.capacity - 1)]
        while slot >= 0 and self.entries[slot].seq != seq:
            slot = self.entries[slot].next_seq
        return slot

    cdef int32_t find_id(self, const unsigned char* packet_id, Py_ssize_t n) noexcept:
        cdef int32_t slot
        cdef uint64_t hash
        cdef Entry* entry
        if self.count == 0:
            return -1
        hash = pf_hash(packet_id, <size_t>n, self.key)
        slot = self.by_id[hash & <uint64_t>(self.capacity - 1)]
        while slot >= 0:
            entry = &self.entries[slot]
            if entry.hash == hash and entry.id_length == n and memcmp(self.id_of(slot), packet_id, <size_t>n) == 0:
                return slot
            slot = entry.next_id
        return -1

    cdef void _unlink(self, int32_t slot) noexcept:
        cdef Entry* entry = &self.entries[slot]
        cdef int32_t* link = &self.by_seq[entry.seq & (self.capacity - 1)]
        while link[0] != slot:
            link = &self.entries[link[0]].next_seq
        link[0] = entry.next_seq
        link = &self.by_id[entry.hash & <uint64_t>(self.capacity - 1)]
        while link[0] != slot:
            link = &self.entries[link[0]].next_id
        link[0] = entry.next_id
        self._wheel_remove(slot)

    cdef object take_slot(self, int32_t slot):
        cdef Entry* entry = &self.entries[slot]
        cdef object waiter = <object>entry.waiter
        self._unlink(slot)
        if entry.long_id != NULL:
            free(entry.long_id)
            entry.long_id = NULL
        entry.waiter = NULL
        entry.seq = 0
        entry.next_seq = self.free
        self.free = slot
        self.count -= 1
        Py_DECREF(waiter)  # the table's own reference; `waiter` holds another
        return waiter

    # -- for Python

    def add(self, waiter, packet_id, deadline=None):
        """Stores `waiter` under a fresh seq, which it returns.

        `packet_id`: str or bytes. `deadline`: nanoseconds on the caller's
        monotonic clock, None for no deadline. Raises `PendingFull` at the bound.
        """
        cdef bytes raw = packet_id.encode() if isinstance(packet_id, str) else <bytes?>packet_id
        cdef int64_t when = -1
        if deadline is not None:
            when = deadline
            if when < 0:
                when = 0
        cdef int32_t slot = self.insert(waiter, <const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw),
                                        when)
        return self.entries[slot].seq

    @property
    def slots(self):
        """Entries that there is memory for."""
        return self.capacity

    def take(self, int64_t seq):
        """The waiter of `seq`, removed; None if there is none."""
        cdef int32_t slot = self.find_seq(seq)
        return None if slot < 0 else self.take_slot(slot)

    def take_by_id(self, packet_id):
        """The waiter of `packet_id` (the latest added, if several), removed; None if there is none."""
        cdef bytes raw = packet_id.encode() if isinstance(packet_id, str) else <bytes?>packet_id
        cdef int32_t slot = self.find_id(<const unsigned char*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return None if slot < 0 else self.take_slot(slot)

    def expire(self, int64_t now):
        """The waiters whose deadline is at or before `now`, removed: a list, none early, none over 4.2 ms late."""
        cdef list expired = []
        cdef int32_t slot = self.due(now)
        while slot >= 0:
            expired.append(self.take_slot(slot))
            slot = self.due(now)
        return expired

    def next_expiry(self):
        """When `expire` is worth calling next, in nanoseconds; None if nothing has a deadline."""
        cdef int64_t when = self.next_due()
        return None if when < 0 else when
