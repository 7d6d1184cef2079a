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
# left for who holds little: who holds most is refused first.

from libc.stdint cimport int64_t

cdef class Budget:
    cdef:
        readonly int64_t limit       # bytes
        readonly int64_t held        # bytes, the sum of the accounts'
        readonly int64_t peak        # the most that was ever held
        readonly str key             # the setting's name, for messages

cdef class Account:
    cdef:
        readonly object name         # str: whose, for messages and metrics
        readonly int64_t limit       # bytes
        readonly int64_t held        # bytes
        readonly int64_t refused     # charges that were refused
        readonly str key             # the setting's name, for messages
        readonly Budget budget       # None: it has no other bound than its own
        # -- turns at the loop, in the reader's and the dispatcher's hands
        int64_t used                 # ns of work in the present round
        int64_t round                # number of the round that `used` belongs to

    # Is there room for `n` more bytes? Counts nothing.
    cdef inline bint room(self, int64_t n) noexcept:
        if n > self.limit - self.held:
            return False
        return self.budget is None or (n <= self.budget.limit - self.budget.held
                                       and self.held + n <= self.budget.limit - self.budget.held)

    # What was taken, or can no longer be refused: counted, whatever the limits say. Negative: given back.
    cdef inline void settle(self, int64_t n) noexcept:
        self.held += n
        if self.budget is not None:
            self.budget.held += n
            if self.budget.held > self.budget.peak:
                self.budget.peak = self.budget.held

    cdef inline bint take(self, int64_t n) noexcept:
        if not self.room(n):
            self.refused += 1
            return False
        self.settle(n)
        return True
