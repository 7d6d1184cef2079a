"""A queue that is fair between accounts and urgent within them. See ``fair.pxd``."""

cimport cython
from libc.stdint cimport int64_t

from pfcore.memory.budget cimport Account, shared_room
from pfcore.memory.heap cimport HeapEntry, PriorityHeap

__all__ = ["FairQueue"]

cdef enum:
    QUICK = 50000                # ns: items of an account that take less on average
    MOST_BALANCE = 2000000       # ns
    LOOKED_AT = 64               # accounts compared at once: with more, urgency holds among so many


@cython.final
cdef class Turn:
    pass


@cython.final
cdef class Ring:
    pass


cdef Ring _ring():
    cdef Ring ring = Ring.__new__(Ring)
    ring.order = []
    return ring


@cython.final
cdef class FairQueue:
    """Items of accounts, by turns. `quantum`: nanoseconds of work that an account has in a round (default 200,000)."""

    def __init__(self, int64_t quantum=200000):
        self.quantum = quantum
        self.turns = {}
        self.quick = _ring()
        self.slow = _ring()

    def __len__(self):
        return self.count

    cdef HeapEntry push(self, object item, Account account, int64_t priority):
        cdef Turn turn = <Turn>self.turns.get(account)
        cdef HeapEntry entry
        if turn is None:
            turn = Turn.__new__(Turn)
            turn.account = account
            turn.heap = PriorityHeap()
            turn.credit = self.quantum
            turn.ring = self.slow if account is not None and account.job_cost > QUICK else self.quick
            turn.place = len(turn.ring.order)
            self.turns[account] = turn
            turn.ring.order.append(turn)
        entry = turn.heap.push(item, priority)
        self.count += 1
        return entry

    cdef object pop(self, Py_ssize_t most, Py_ssize_t taken):
        cdef Turn turn = None
        cdef object item
        cdef Ring first = self.quick, second = self.slow
        if self.count == 0:
            return None
        if self.balance < 0:
            first, second = second, first
        if first.order:
            turn = self._choose(first, most, taken)
        if turn is None and second.order:
            turn = self._choose(second, most, taken)
        if turn is None:
            return None
        item = turn.heap.pop()
        self.count -= 1
        self.latest = turn
        if turn.heap.live() == 0:
            self._drop(turn)
        return item

    cdef Turn _choose(self, Ring ring, Py_ssize_t most, Py_ssize_t taken):
        cdef Py_ssize_t n = len(ring.order), k, seen = 0
        cdef Turn turn, best
        cdef bint someone
        cdef int64_t urgency, urgent = 0, most_credit = 0
        cdef int _rounds
        if n == 1:
            best = <Turn>ring.order[0]
            return best if best.account is None or shared_room(most, taken, best.account.runs) else None
        for _rounds in range(2):
            someone = False
            seen = 0
            while seen < n:
                best = None
                if ring.at >= n:
                    ring.at = 0
                for k in range(min(n - seen, LOOKED_AT)):
                    turn = <Turn>ring.order[(ring.at + k) % n]
                    if turn.account is not None and not shared_room(most, taken, turn.account.runs):
                        continue
                    if not someone or turn.credit > most_credit:
                        most_credit = turn.credit
                    someone = True
                    if turn.credit <= 0:
                        continue
                    urgency = ~turn.heap.nodes[0].priority
                    if best is None or urgency > urgent:
                        best = turn
                        urgent = urgency
                if best is not None:
                    ring.at = best.place + 1
                    return best
                seen += LOOKED_AT
                ring.at += LOOKED_AT
            if not someone:
                return None
            self._next_round(ring, most_credit)
        return None

    cdef int _next_round(self, Ring ring, int64_t best) except -1:
        """Nobody who may take something has credit: all get the same, as often as it takes until one of those has.

        `best`: the most that one of them has. What somebody has whose share is used up does not count: he could
        not use it, and everybody would wait for him.
        """
        cdef Turn turn
        cdef int64_t more = (-best // self.quantum + 1) * self.quantum
        for turn in ring.order:
            turn.credit = min(turn.credit + more, self.quantum)
        return 0

    cdef int remove(self, HeapEntry entry, Account account) except -1:
        cdef Turn turn = <Turn>self.turns[account]
        if turn.heap.remove(entry):
            self.count -= 1
            if turn.heap.live() == 0:
                self._drop(turn)
        return 0

    cdef int _drop(self, Turn turn) except -1:
        self._take_out(turn)
        del self.turns[turn.account]
        return 0

    cdef void _take_out(self, Turn turn) noexcept:
        cdef list order = turn.ring.order
        cdef Turn last = <Turn>order.pop()
        if last is not turn:
            order[turn.place] = last
            last.place = turn.place

    cdef void used(self, int64_t ns) noexcept:
        cdef Turn turn = self.latest
        cdef Ring ring
        if turn is None:
            return
        turn.credit -= ns
        if self.quick.order and self.slow.order:
            self.balance += ns if turn.ring is self.slow else -ns
            self.balance = min(max(self.balance, -MOST_BALANCE), MOST_BALANCE)
        if turn.account is not None:
            turn.account.job_cost += (ns - turn.account.job_cost) // 8
            ring = self.slow if turn.account.job_cost > QUICK else self.quick
            if ring is not turn.ring and self.turns.get(turn.account) is turn:
                self._take_out(turn)
                turn.ring = ring
                turn.place = len(ring.order)
                ring.order.append(turn)

    # -- for Python: tests

    def add(self, item, Account account, int64_t priority):
        """Queues an item; returns its entry."""
        return self.push(item, account, priority)

    def take(self, int64_t worked=0, Py_ssize_t most=1 << 40, Py_ssize_t taken=0):
        """The next item, which then works for `worked` ns; None where there is none."""
        item = self.pop(most, taken)
        if item is not None:
            self.used(worked)
        return item

    def worked(self, int64_t ns):
        """What was taken last has taken so long."""
        self.used(ns)

    def runs(self, Account account not None, Py_ssize_t number):
        """So many of an account's items are with handlers."""
        account.runs = number

    def discard(self, HeapEntry entry not None, Account account):
        """Takes an item out."""
        self.remove(entry, account)

    @property
    def accounts(self):
        """How many accounts have something queued."""
        return len(self.turns)
