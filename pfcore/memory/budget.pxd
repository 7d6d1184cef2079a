# Who pays for the bytes that the gateway holds.
#
# An Account is what is held for one principal, or for one anonymous link. A
# Budget is what all accounts of one gateway may hold together. Nothing here
# allocates, raises or calls back: charging is two comparisons and two additions.
#
# An account is refused at its own limit, and when the budget is short. Short is
# judged as switches with a shared buffer do (dynamic thresholds): an account may
# grow while it holds no more than what is still free. So one that takes all it
# can ends with half, n of them with 1/(n+1) each, and there is always something
# left for who holds little: who holds most is refused first. What was taken and
# can no longer be refused may pass the limit, so beyond it there is an eighth more
# that only those have who hold little, by the same rule, whatever the others hold.

from libc.stdint cimport int64_t

cdef enum:
    LITTLE = 1048576             # bytes that one may hold while the budget is short

cdef class Budget:
    cdef:
        readonly int64_t limit       # bytes
        readonly int64_t held        # bytes, the sum of the accounts'
        int64_t little               # of them, those of accounts that hold little
        readonly int64_t peak        # the most that was ever held
        readonly str key             # the setting's name, for messages

# Is there room for one more, of `most` that all share, where `total` are taken and `own` of them by who asks?
# The last eighth is for those who have few: there it is who holds less than what is still free.
cdef inline bint shared_room(Py_ssize_t most, Py_ssize_t total, Py_ssize_t own) noexcept nogil:
    cdef Py_ssize_t free = most - total
    return free > 0 and (free > most >> 3 or own < free)

cdef class Account:
    cdef:
        readonly object name         # str: whose, for messages and metrics
        readonly int64_t limit       # bytes
        readonly int64_t held        # bytes
        readonly int64_t refused     # charges that were refused
        readonly str key             # the setting's name, for messages
        readonly Budget budget       # None: it has no other bound than its own
        # -- how many of each it has, for bounds that all share
        Py_ssize_t routes            # elements that are known because it has announced them
        Py_ssize_t flights           # packets under way in the switch
        Py_ssize_t queued            # of them, those that wait for room at a reactor
        Py_ssize_t jobs              # packets in the dispatcher's queues
        Py_ssize_t waits             # packets that are with a handler which waits (the standard elements)
        Py_ssize_t runs              # packets that are with a handler of a user's, suspended
        int64_t job_cost             # ns that one of its queued packets takes, a moving average

    # Is there room for `n` more bytes? Counts nothing.
    cdef inline bint room(self, int64_t n) noexcept:
        if n > self.limit - self.held:
            return False
        if self.budget is None:
            return True
        if self.held + n <= LITTLE and self.held + n <= (self.budget.limit >> 3) - self.budget.little:
            return True
        return n <= self.budget.limit - self.budget.held and self.held + n <= self.budget.limit - self.budget.held

    # What was taken, or can no longer be refused: counted, whatever the limits say. Negative: given back.
    cdef inline void settle(self, int64_t n) noexcept:
        cdef int64_t before = self.held
        self.held += n
        if self.budget is not None:
            if before <= LITTLE:
                self.budget.little -= before
            if self.held <= LITTLE:
                self.budget.little += self.held
            self.budget.held += n
            if self.budget.held > self.budget.peak:
                self.budget.peak = self.budget.held

    cdef inline bint take(self, int64_t n) noexcept:
        if not self.room(n):
            self.refused += 1
            return False
        self.settle(n)
        return True
