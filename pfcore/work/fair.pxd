# A queue that is fair between accounts and urgent within them.
#
# Each account has a heap of its own. Whose turn it is, is decided by deficit
# round robin: an account has credit in nanoseconds of work, what it did is taken
# from it, and once nobody has any left all get the same again. Among those with
# credit the most urgent head goes first. So priorities order what everybody
# waits for, and nobody gets more than his share by calling everything urgent.
#
# Accounts whose items are quick stand in a ring of their own, which has half of
# the time where both have something: two hundred connections that each ask for
# a megabyte leave each its two hundredth, and that would be too little for one
# whose packets take a microsecond.

from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account
from pfcore.memory.heap cimport HeapEntry, PriorityHeap

cdef class Turn:
    cdef:
        Account account              # None: of those that nobody pays for
        readonly PriorityHeap heap
        int64_t credit               # ns; negative: it owes
        Py_ssize_t place             # in the ring's `order`
        Ring ring

cdef class Ring:
    cdef:
        list order                   # Turns
        Py_ssize_t at                # where the next look begins

cdef class FairQueue:
    cdef:
        dict turns                   # Account or None -> Turn, of those that have something queued
        Ring quick                   # of accounts whose items take little
        Ring slow                    # of the others
        int64_t balance              # ns that the slow ones had more than the quick ones, within bounds
        readonly Py_ssize_t count    # items
        Turn latest                  # whose item was popped last
        int64_t quantum              # ns of credit a round

    # Returns the entry, which `remove` takes.
    cdef HeapEntry push(self, object item, Account account, int64_t priority)
    # The next item, or None where there is none that may leave: an account may have `account.runs` of `most` that
    # all share, of which `taken` are taken.
    cdef object pop(self, Py_ssize_t most, Py_ssize_t taken)
    cdef int remove(self, HeapEntry entry, Account account) except -1
    # What was popped last has taken so long.
    cdef void used(self, int64_t ns) noexcept

    cdef Turn _choose(self, Ring ring, Py_ssize_t most, Py_ssize_t taken)
    cdef int _next_round(self, Ring ring, int64_t best) except -1
    cdef int _drop(self, Turn turn) except -1
    cdef void _take_out(self, Turn turn) noexcept
