# Pending-seq table: what this side has asked for and not yet been answered.
#
# Entries live in one slab, linked by index into three structures, each O(1):
#
#   by seq     buckets of chains; seqs are handed out one by one, so chains stay
#              short, and one slow entry among millions of fast ones is simply
#              one link in one chain
#   by id      buckets of chains over a keyed hash, for peers that answer
#              with seq 0
#   by time    a hierarchical timer wheel: LEVELS x 64 lists, level L's slots
#              are 64^L ticks wide; entries far away cascade inwards as time
#              comes near. A bitmap a level finds the next occupied slot.
#
# Nothing is allocated until the first entry; the slab doubles up to `bound`
# and is given back by `shrink`. Time is an integer number of nanoseconds on
# any monotonic clock, given by the caller. An entry is never expired early,
# and at most one TICK late.

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    INLINE_ID = 40               # ids up to this long need no memory of their own
    LEVELS = 4
    WHEEL_SLOTS = 64
    TICK_BITS = 22               # a tick is 2^22 ns = 4.19 ms; 4 levels reach 19.5 hours

cdef struct Entry:
    int64_t seq                  # 0 while the slot is free
    int64_t deadline             # ns
    uint64_t hash                # of the packet id
    PyObject* waiter             # owned reference
    unsigned char* long_id       # owned; NULL where the id fits inline
    int32_t next_seq             # chain by seq; the free list when free; -1 ends
    int32_t next_id              # chain by id
    int32_t wheel_next           # list of its wheel slot
    int32_t wheel_previous
    int32_t wheel_slot           # level * 64 + slot, -1 if it has no deadline
    int32_t id_length
    unsigned char[INLINE_ID] id

cdef class PendingTable:
    cdef:
        Entry* entries           # the slab
        int32_t* by_seq          # buckets, `capacity` of them
        int32_t* by_id
        int32_t* wheel           # LEVELS * WHEEL_SLOTS heads
        uint64_t[LEVELS] occupied   # bit s: slot s of the level is not empty
        int64_t wheel_tick       # every entry at or before this tick was expired
        int32_t capacity         # a power of two
        int32_t used             # slots ever used; the rest is untouched
        int32_t free             # first free slot, -1
        Py_ssize_t count
        Py_ssize_t bound
        int64_t last_seq         # the seq given last
        int64_t most_seq         # after which it wraps to 1
        uint64_t key             # of the id hash

    # Adds; returns the slot, whose `seq` is set. -1 with PendingFull raised at the bound.
    cdef int32_t insert(self, object waiter, const unsigned char* packet_id, Py_ssize_t n, int64_t deadline) except? -1
    # Takes a seq as `insert` would, for frames that expect no answer.
    cdef int64_t next_seq(self) noexcept
    cdef int32_t find_seq(self, int64_t seq) noexcept
    cdef int32_t find_id(self, const unsigned char* packet_id, Py_ssize_t n) noexcept
    # The waiter of an occupied slot; the slot is free afterwards.
    cdef object take_slot(self, int32_t slot)
    # The first slot whose deadline has passed, or -1. `take_slot` it, then ask again.
    cdef int32_t due(self, int64_t now) noexcept
    # When `due` next needs a look, in ns: never later than the earliest deadline's tick; -1: never.
    cdef int64_t next_due(self) noexcept

    cdef inline const unsigned char* id_of(self, int32_t slot) noexcept:
        return self.entries[slot].long_id if self.entries[slot].long_id != NULL else self.entries[slot].id

    cdef int _grow(self) except -1
    cdef void _fill_buckets(self) noexcept
    cdef void _wheel_add(self, int32_t slot) noexcept
    cdef void _wheel_remove(self, int32_t slot) noexcept
    cdef void _cascade(self, int level) noexcept
    cdef void _unlink(self, int32_t slot) noexcept
    cdef void _wheel_readd(self, int32_t slot) noexcept
    cdef int64_t _next_of_level(self, int level) noexcept
