# What waits in one place: of each account the most urgent first, the accounts by turns.
#
# Each account has a heap of its own, so nobody's urgent items keep another's
# waiting for ever. Whose turn it is is the business of who takes: a reactor with
# room takes from many queues, and counts in rounds what of whom it was given
# (`Rounds`). Accounts cost nothing, a connection is one: so however many of them
# come with something urgent, one item in `BY_AGE` is that of whoever waits longest.

from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account
from pfcore.memory.heap cimport HeapEntry, PriorityHeap

cdef enum:
    ROUND = 8                    # items of one account in a round, while others wait as well
    BY_AGE = 4                   # of so many items one goes to who was given nothing for longest
    LOOKED_AT = 64               # accounts compared at once: with more, urgency holds among so many

# What one account has in a queue.
cdef class Share:
    cdef:
        Account account
        readonly PriorityHeap heap
        Queue queue              # None once nothing is left in it
        Py_ssize_t place         # in the queue's `order`
        void* newer              # in the order in which they were last given something, or came; borrowed
        void* older

cdef class Queue:
    cdef:
        list order               # Shares; None while it is empty, as is `shares`
        dict shares              # Account -> Share
        Py_ssize_t at            # where the next look begins
        void* oldest             # Share that was given nothing for longest, borrowed
        void* newest
        readonly Py_ssize_t count

    cdef inline Py_ssize_t live(self) noexcept:
        return self.count

    # Puts an item in. Its entry; where it stands is `shares[account]`.
    cdef HeapEntry push(self, object item, Account account, int64_t priority)
    # Takes it out of the share that it stands in.
    cdef int remove(self, Share share, HeapEntry entry) except -1
    # Takes the first of a share.
    cdef object pop_from(self, Share share)
    # The share whose head is to go next, of those that have not had their part of this round; of all, where there are
    # no others, and `over` is set. At most so many are compared. The queue is not empty.
    cdef Share next_of(self, Rounds rounds, Py_ssize_t most, bint* over)
    # The item that goes next to who counts these rounds; None where there is nothing.
    cdef object next(self, Rounds rounds)
    # The first of whoever comes, for those that take all; None where there is nothing. `first`: left where it is.
    cdef object pop(self)
    cdef object first(self)
    cdef int _left(self, Share share) except -1
    cdef void _link(self, Share share) noexcept
    cdef void _unlink(self, Share share) noexcept

# Whose items somebody was given of late.
cdef class Rounds:
    cdef dict given              # Account -> items of this round; None: nobody has had any
    cdef Py_ssize_t most         # accounts in it, before those are forgotten of whom nothing waits
    cdef int until_age           # items until one goes by age

    # Does the next one go to whoever waits longest?
    cdef inline bint by_age(self) noexcept:
        return self.until_age == 0

    cdef bint spent(self, Account account) except -1
    cdef int note(self, Account account) except -1
    # Everybody has had his part: the next round.
    cdef int over(self) except -1
