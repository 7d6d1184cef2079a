"""What waits in one place. See ``queue.pxd``."""

cimport cython
from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account
from pfcore.memory.heap cimport HeapEntry, PriorityHeap

__all__ = ["Queue", "Rounds"]

cdef enum:
    LEAST_KNOWN = 64             # accounts of a round that are remembered, whether anything of theirs waits or not


@cython.final
cdef class Share:
    pass


@cython.final
cdef class Queue:
    """Items of accounts; `add`, `take` and `discard` are for tests."""

    def __len__(self):
        return self.count

    cdef HeapEntry push(self, object item, Account account, int64_t priority):
        cdef Share share
        cdef HeapEntry entry
        if self.shares is None:
            # a hundred thousand elements have a queue each, nearly all of them empty
            self.order = []
            self.shares = {}
        share = <Share>self.shares.get(account)
        if share is None:
            share = Share.__new__(Share)
            share.account = account
            share.heap = PriorityHeap()
            entry = share.heap.push(item, priority)
            self.shares[account] = share
            share.queue = self
            share.place = len(self.order)
            self.order.append(share)
            self._link(share)
        else:
            entry = share.heap.push(item, priority)
        self.count += 1
        return entry

    cdef int remove(self, Share share, HeapEntry entry) except -1:
        if share.heap.remove(entry):
            self._left(share)
        return 0

    cdef object pop_from(self, Share share):
        item = share.heap.pop()
        self.at = share.place + 1
        self._unlink(share)
        self._link(share)  # it is the newest now
        self._left(share)
        return item

    cdef object next(self, Rounds rounds):
        cdef bint over
        cdef Share share
        if self.count == 0:
            return None
        if rounds.by_age():
            share = <Share>self.oldest
            over = False
        else:
            share = self.next_of(rounds, len(self.order), &over)
        if over:
            rounds.over()
        rounds.note(share.account)
        return self.pop_from(share)

    cdef object first(self):
        return (<Share>self.order[0]).heap.peek() if self.count > 0 else None

    cdef object pop(self):
        return self.pop_from(<Share>self.order[self.at % len(self.order)]) if self.count > 0 else None

    cdef int _left(self, Share share) except -1:
        cdef Share last
        self.count -= 1
        if share.heap.live() == 0:
            last = <Share>self.order.pop()
            if last is not share:
                self.order[share.place] = last
                last.place = share.place
            share.queue = None
            self._unlink(share)
            del self.shares[share.account]
            if not self.order:
                self.order = self.shares = None
        return 0

    cdef void _link(self, Share share) noexcept:
        share.newer = NULL
        share.older = self.newest
        if self.newest != NULL:
            (<Share>self.newest).newer = <void*>share
        else:
            self.oldest = <void*>share
        self.newest = <void*>share

    cdef void _unlink(self, Share share) noexcept:
        if share.older != NULL:
            (<Share>share.older).newer = share.newer
        else:
            self.oldest = share.newer
        if share.newer != NULL:
            (<Share>share.newer).older = share.older
        else:
            self.newest = share.older

    cdef Share next_of(self, Rounds rounds, Py_ssize_t most, bint* over):
        cdef Py_ssize_t n = len(self.order), k, seen = 0
        cdef Share share, best = None
        cdef bint spent
        cdef int64_t urgency, urgent = 0
        if n == 1:
            # nearly always; a reactor may look at a thousand queues for each answer
            best = <Share>self.order[0]
            over[0] = rounds.spent(best.account)
            return best
        over[0] = True
        if self.at >= n:
            self.at = 0
        most = min(n, most)
        while seen < most and over[0]:
            for k in range(seen, min(most, seen + LOOKED_AT)):
                share = <Share>self.order[(self.at + k) % n]
                spent = rounds.spent(share.account)
                if spent and not over[0]:
                    continue
                urgency = ~share.heap.nodes[0].priority
                if best is None or urgency > urgent or (over[0] and not spent):
                    best = share
                    urgent = urgency
                    over[0] = spent
            seen += LOOKED_AT
        return best

    # -- for Python: tests

    def add(self, item, Account account not None, int64_t priority):
        """Puts an item in; its entry. Counts it for the account, as who keeps a queue does."""
        entry = self.push(item, account, priority)
        account.queued += 1
        return entry

    def take(self, Rounds rounds not None):
        """The item that goes next to who counts these rounds; None where there is nothing."""
        cdef bint over
        cdef Account account = None
        if self.count > 0:
            account = (<Share>self.oldest if rounds.by_age() else self.next_of(rounds, len(self.order), &over)).account
            account.queued -= 1
        return self.next(rounds)

    def discard(self, HeapEntry entry not None, Account account not None):
        """Takes an item out."""
        self.remove(<Share>self.shares[account], entry)
        account.queued -= 1


@cython.final
cdef class Rounds:
    """Empty at first."""

    def __cinit__(self):
        self.until_age = BY_AGE - 1

    def __len__(self):
        return 0 if self.given is None else len(self.given)

    cdef bint spent(self, Account account) except -1:
        return self.given is not None and <Py_ssize_t>self.given.get(account, 0) >= ROUND

    cdef int note(self, Account account) except -1:
        cdef Account other
        if self.given is None:
            self.given = {}
            self.most = LEAST_KNOWN
        elif len(self.given) >= self.most:
            # of whom nothing waits is in nobody's way: accounts come and go, and nobody pays for what is known of them
            self.given = {other: n for other, n in self.given.items() if other is not None
                          and (other.queued > 0 or other.jobs > 0)}
            self.most = max(LEAST_KNOWN, 2 * len(self.given))
        self.given[account] = <Py_ssize_t>self.given.get(account, 0) + 1
        self.until_age = (self.until_age or BY_AGE) - 1
        return 0

    cdef int over(self) except -1:
        self.given = None
        return 0
