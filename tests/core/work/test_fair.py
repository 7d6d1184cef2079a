"""Fair between accounts, urgent within them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfcore.memory.budget import Account, Budget
from pfcore.work.fair import FairQueue


def account(name: str) -> Account:
    return Account(name, 1 << 20, Budget(1 << 30))


def test_one_account_alone_has_a_heap() -> None:
    queue = FairQueue()
    one = account("one")
    for item, priority in (("a", 5), ("b", 9), ("c", 5)):
        queue.add(item, one, priority)
    assert [queue.take(10_000_000) for _ in range(4)] == ["b", "a", "c", None]


def test_who_has_much_queued_does_not_keep_others_waiting() -> None:
    queue = FairQueue(quantum=100)
    many, few = account("many"), account("few")
    for n in range(1000):
        queue.add(("many", n), many, 5)
    queue.add(("few", 0), few, 5)
    assert ("few", 0) in [queue.take(100) for _ in range(2)]


def test_urgency_buys_no_more_than_a_share() -> None:
    """Everything of one is most urgent; the other's least urgent items leave as often all the same."""
    queue = FairQueue(quantum=100)
    pushy, patient = account("pushy"), account("patient")
    for n in range(100):
        queue.add(("pushy", n), pushy, 10)
        queue.add(("patient", n), patient, 1)
    taken = [queue.take(100)[0] for _ in range(40)]
    assert taken.count("patient") == 20


def test_an_urgent_item_of_who_has_credit_goes_first() -> None:
    queue = FairQueue()
    one, other = account("one"), account("other")
    queue.add("later", one, 5)
    queue.add("now", other, 9)
    assert [queue.take(), queue.take()] == ["now", "later"]


def test_work_that_cannot_be_cut_is_paid_for_afterwards() -> None:
    queue = FairQueue(quantum=100)
    slow, quick = account("slow"), account("quick")
    for _ in range(100):
        queue.add("slow", slow, 5)
        queue.add("quick", quick, 5)
    taken = []
    for _ in range(44):
        taken.append(queue.take())
        queue.worked(1000 if taken[-1] == "slow" else 100)
    assert taken.count("quick") >= 9 * taken.count("slow")


ACCOUNTS = [account(str(n)) for n in range(100)]


def test_two_hundred_whose_items_take_long_leave_enough_to_one_whose_items_are_quick() -> None:
    queue = FairQueue()
    slow = [account(f"slow {n}") for n in range(200)]
    quick = account("quick")
    for one in slow:
        for n in range(20):
            queue.add(("slow", n), one, 5)
    for _ in range(200):  # so that what they take is known
        queue.take()
        queue.worked(600_000)
    for n in range(1000):
        queue.add(("quick", n), quick, 5)
    taken, worked = 0, 0
    while taken < 1000:
        kind, _ = queue.take()
        took = 600_000 if kind == "slow" else 1000
        queue.worked(took)
        worked += took
        taken += kind == "quick"
    assert worked < 10_000_000, "they are through in ten milliseconds"


def test_nobody_waits_for_one_whose_share_is_used_up() -> None:
    """What that one still has in credit is nothing that others have to wait for."""
    queue = FairQueue(quantum=100)
    full, other = account("full"), account("other")
    for n in range(10):
        queue.add(("full", n), full, 5)
        queue.add(("other", n), other, 5)
    queue.runs(full, 60)
    assert [queue.take(1000, 64, 60) for _ in range(10)] == [("other", n) for n in range(10)]
    assert queue.take(0, 64, 60) is None
    queue.runs(full, 0)
    assert queue.take(0, 64, 0) == ("full", 0)


STEPS = st.tuples(st.sampled_from(["add", "take", "discard", "runs"]), st.integers(0, 99), st.integers(1, 10))


@given(st.lists(STEPS, max_size=300))
def test_nothing_is_lost_given_twice_or_kept_from_who_may_have_it(steps: list[tuple[str, int, int]]) -> None:
    queue = FairQueue(quantum=50)
    there: dict[int, tuple[object, Account]] = {}
    runs: dict[str, int] = {}
    for number, (kind, place, priority) in enumerate(steps):
        if kind == "add":
            owner = ACCOUNTS[place]
            there[number] = (queue.add(number, owner, priority), owner)
        elif kind == "runs":
            queue.runs(ACCOUNTS[place], number % 40)
            runs[ACCOUNTS[place].name] = number % 40
        elif kind == "take":
            taken = priority * 3
            item = queue.take(place * 10, 32, taken)
            # the last eighth is for those who have little
            may = {owner.name for _, owner in there.values() if taken < 28 or runs.get(owner.name, 0) < 32 - taken}
            assert (item is None) == (not may)
            assert item is None or there[item][1].name in may
            if item is not None:
                del there[item]
        elif there:
            entry, owner = there.pop(sorted(there)[place % len(there)])
            queue.discard(entry, owner)  # type: ignore[arg-type]
        assert len(queue) == len(there)
    assert queue.accounts == len({owner.name for _, owner in there.values()})
    for one in ACCOUNTS:
        queue.runs(one, 0)
