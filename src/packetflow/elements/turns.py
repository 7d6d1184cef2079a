"""Turns: the work of the standard elements in slices of a millisecond, shared fairly between accounts.

Before each piece of work (a step, an expression, a timer's firing) its call asks
`spent`, and where that says so awaits `next`. As long as the slice of this
iteration of the loop is not used up and nobody waits, that is one look at the
clock. Whoever waits stands in the queue of his account, and is resumed by the
next round, which is one slice long: always the first of the account that has
had least time so far, who may go on for a tenth of the slice. What a piece of
work took is measured, so an account whose pieces are long has fewer of them;
after one that was longer than the slice it rests for as many iterations of the
loop, so that others get on in between: where there are none, those pass in no
time. It knows nothing of packets.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from typing import Any

from pfcore.memory.budget import Account

__all__ = ["SLICE", "Turn", "Turns"]

log = logging.getLogger("packetflow.elements")

SLICE = 0.001
"""Seconds of an iteration of the loop that the elements' work may take."""
QUANTUM = 0.0001
"""Seconds that whoever is resumed may go on for, however many wait: a place in the queue costs some microseconds."""
MAX_DEBTS = 4096
MAX_REST = 16
"""Iterations of the loop that an account rests at most after a long piece of work."""


class Turn:
    """A place in the queue: an awaitable that is resumed by the round itself, not by one more callback of the loop."""

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_done", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._done = False
        self._cancelled = False

    def __await__(self) -> Generator[Turn, None, None]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        self.result()

    # -- as much of a future as a task needs

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._done:
            raise asyncio.InvalidStateError("it has not come yet")

    def exception(self) -> None:
        self.result()

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        context = copy_context() if context is None else context
        if self._done:
            self._loop.call_soon(callback, self, context=context)
        else:
            self._callback, self._context = callback, context

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        if self._callback != callback:
            return 0
        self._callback = None
        return 1

    def cancel(self, msg: object = None) -> bool:
        """It is waited for no more."""
        if self._done:
            return False
        self._done = self._cancelled = True
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
            self._callback = None
        return True

    def come_once(self) -> None:
        """As `come`, where it has not been cancelled meanwhile."""
        if not self._done:
            self.come()

    def come(self) -> None:
        """Resumes who waits, now."""
        self._done = True
        callback, self._callback = self._callback, None
        if callback is not None and self._context is not None:
            try:
                self._context.run(callback, self)
            finally:
                # where the task ended in a failure, that knows its frames, those this one, and this one the task
                del callback


class _Queue:
    """Those of one account."""

    __slots__ = ("account", "had", "waiting")

    def __init__(self, account: Account, had: float) -> None:
        self.account = account
        self.had = had  # seconds, on the scale of `Turns._had`
        self.waiting: deque[Turn | Callable[[], object]] = deque()


class Turns:
    """Who works when."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] | None = None,
        later: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock = time.perf_counter if clock is None else clock
        self._later = later or loop.call_soon
        self._ends = 0.0  # of the present slice; meaningful while a round is scheduled
        self._scheduled = False  # a round is
        self._served: Account | None = None  # whose piece a round has resumed, as long as that runs
        self._goes_on_until = 0.0
        self._queues: dict[Account, _Queue] = {}
        self._order: list[tuple[float, int, _Queue]] = []
        self._numbers = itertools.count()
        # how much the account that had least has had: those who come are not owed what they did not ask for
        self._had = 0.0
        self._idle_since = clock()
        self._debts: dict[Account, float] = {}  # of accounts that do not wait just now
        self._rounds = 0
        self._resting: dict[Account, int] = {}  # until which round
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def spent(self, account: Account) -> bool:
        """Must a piece of this account's work wait for its turn?"""
        if account is self._served:
            return self._clock() >= self._goes_on_until
        if self._queues or (self._resting and self._resting.get(account, 0) > self._rounds):
            return True
        now = self._clock()
        if not self._scheduled:
            self._ends = now + SLICE
            self._schedule()
            return False
        return now >= self._ends

    async def next(self, account: Account, *, first: bool = False) -> None:
        """Returns when it is this account's turn. `first`: before all others of this account.

        What is in the middle of a piece of work goes on first: as long as it waits,
        nothing of its account begins another, so one account has one of them.
        """
        turn = Turn(self._loop)
        self._enter(account, turn, first)
        await turn

    async def between(self, account: Account, began: float) -> float:
        """In the middle of what others wait for: they shall not wait for this account's turn as well.

        Returns when the rest of the loop has been on, and the time since `began` (of
        `clock`) is owed. What it returns is when it goes on.
        """
        self.took(account, self._clock() - began)
        turn = Turn(self._loop)
        self._later(turn.come_once)
        await turn
        return self._clock()

    def clock(self) -> float:
        """Seconds, on the scale in which work is measured."""
        return self._clock()

    def when(self, account: Account, work: Callable[[], object]) -> None:
        """Calls `work` when it is this account's turn."""
        self._enter(account, work)

    def took(self, account: Account, seconds: float) -> None:
        """A piece of work that did not wait for its turn took so long."""
        self._rest(account, seconds)
        queue = self._queues.get(account)
        if queue is not None:
            return  # measured in its round
        self._debts[account] = max(self._had, self._debts.get(account, 0.0)) + seconds
        self._idle_since += seconds  # what is owed does not wear off by being made
        if len(self._debts) > MAX_DEBTS:
            self._forget()

    def _rest(self, account: Account, seconds: float) -> None:
        if seconds > SLICE:
            self._resting[account] = self._rounds + min(MAX_REST, int(seconds / SLICE)) + 1

    def close(self) -> None:
        """Nobody's turn comes any more."""
        self._closed = True
        for queue in self._queues.values():
            for one in queue.waiting:
                if isinstance(one, Turn):
                    one.cancel()
        self._queues.clear()
        self._order.clear()

    def _enter(self, account: Account, one: Turn | Callable[[], object], first: bool = False) -> None:
        queue = self._queues.get(account)
        if queue is None:
            if not self._queues:
                # what is owed wears off while nobody waits
                now = self._clock()
                self._had += max(0.0, now - self._idle_since)
                self._idle_since = now
            queue = _Queue(account, max(self._had, self._debts.pop(account, 0.0)))
            self._queues[account] = queue
            heapq.heappush(self._order, (queue.had, next(self._numbers), queue))
        if first:
            queue.waiting.appendleft(one)
        else:
            queue.waiting.append(one)
        if not self._scheduled:
            self._ends = self._clock() + SLICE
            self._schedule()

    def _schedule(self) -> None:
        if not self._closed:
            self._scheduled = True
            self._later(self._serve)

    def _serve(self) -> None:
        """A round: one slice of work, then the rest of the loop."""
        self._scheduled = False
        self._rounds += 1
        if self._resting:
            self._resting = {account: until for account, until in self._resting.items() if until > self._rounds}
            if not self._order:
                self._schedule()
        if not self._order:
            return
        resting: list[tuple[float, int, _Queue]] = []
        now = self._clock()
        self._ends = now + SLICE
        self._schedule()
        try:
            while self._order and now < self._ends:
                had, _, queue = self._order[0]
                if queue.account in self._resting:
                    resting.append(heapq.heappop(self._order))
                    continue
                self._had = max(self._had, had)
                one = queue.waiting.popleft()
                self._served = queue.account
                self._goes_on_until = min(self._ends, now + QUANTUM)
                try:
                    if isinstance(one, Turn):
                        if not one.done():
                            one.come()
                    else:
                        one()
                except Exception:
                    log.exception("a piece of work failed")
                finally:
                    self._served = None
                    before, now = now, self._clock()
                    queue.had += now - before
                    self._rest(queue.account, now - before)
                    if self._order and self._order[0][2] is queue:
                        if queue.waiting:
                            heapq.heapreplace(self._order, (queue.had, next(self._numbers), queue))
                        else:
                            heapq.heappop(self._order)
                            del self._queues[queue.account]
                            self._debts[queue.account] = queue.had
        finally:
            # whatever was raised: those that rest have their turns again
            for entry in resting:
                heapq.heappush(self._order, entry)
            if not self._order:
                self._idle_since = now
                self._forget()

    def _forget(self) -> None:
        """What has worn off is not remembered."""
        if len(self._debts) > 64:
            self._debts = {account: had for account, had in self._debts.items() if had > self._had}
            if len(self._debts) > MAX_DEBTS:
                most = heapq.nlargest(MAX_DEBTS // 2, self._debts.items(), key=lambda item: item[1])
                self._debts = dict(most)
