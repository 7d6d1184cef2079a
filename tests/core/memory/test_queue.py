"""What waits in one place: the most urgent of each account first, the accounts by turns."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pfcore.audit import audit_queue
from pfcore.memory.budget import Account
from pfcore.memory.queue import Queue, Rounds

BY_AGE = 4
ROUND = 8


def all_of(queue: Queue, rounds: Rounds) -> list[Any]:
    found = []
    while len(queue):
        found.append(queue.take(rounds))
    assert audit_queue(queue) == []
    return found


def test_of_one_account_the_most_urgent_goes_first_and_equals_as_they_came() -> None:
    queue, one = Queue(), Account("one", 1)
    for place, priority in enumerate([5, 9, 5, 1, 9]):
        queue.add((priority, place), one, priority)
    assert all_of(queue, Rounds()) == [(9, 1), (9, 4), (5, 0), (5, 2), (1, 3)]
    assert queue.take(Rounds()) is None


def test_urgency_counts_between_accounts_within_a_round() -> None:
    queue, one, other = Queue(), Account("one", 1), Account("other", 1)
    queue.add("later", one, 1)
    queue.add("now", other, 9)
    assert all_of(queue, Rounds()) == ["now", "later"]


def test_nobodys_urgent_packets_keep_anothers_waiting() -> None:
    queue, loud, quiet = Queue(), Account("loud", 1), Account("quiet", 1)
    for place in range(100):
        queue.add(("loud", place), loud, 10)
    for place in range(20):
        queue.add(("quiet", place), quiet, 1)
    taken = [who for who, _ in all_of(queue, Rounds())]
    assert "quiet" in taken[:BY_AGE]
    assert abs(taken[: 4 * ROUND].count("loud") - 2 * ROUND) <= BY_AGE


def test_rounds_are_a_reactors_over_all_queues_that_it_takes_from() -> None:
    loud, quiet = Account("loud", 1), Account("quiet", 1)
    first, second, rounds = Queue(), Queue(), Rounds()
    for place in range(ROUND):
        first.add(place, loud, 10)
    assert len(all_of(first, rounds)) == ROUND
    second.add("loud", loud, 10)
    second.add("quiet", quiet, 1)
    assert all_of(second, rounds) == ["quiet", "loud"]


def test_thousands_of_accounts_all_come_to_their_turn() -> None:
    queue, rounds = Queue(), Rounds()
    for place in range(200):
        account = Account(f"loud {place}", 1)
        for number in range(20):
            queue.add(("loud", place, number), account, 10)
    queue.add("quiet", Account("quiet", 1), 1)
    taken = all_of(queue, rounds)
    assert len(taken) == 4001
    assert taken.index("quiet") < 201 * ROUND + 64


def test_who_stands_behind_many_comes_to_his_turn_though_they_never_end() -> None:
    queue, rounds, quiet = Queue(), Rounds(), Account("quiet", 1)
    loud = [Account(f"loud {place}", 1) for place in range(200)]
    for place, account in enumerate(loud):
        if place == 150:
            queue.add("quiet", quiet, 1)
        queue.add(place, account, 10)
    for _ in range(201 * ROUND):
        item = queue.take(rounds)
        if item == "quiet":
            return
        queue.add(item, loud[item], 10)
    raise AssertionError("a whole round of all, and it was not among them")


def test_nothing_is_kept_of_accounts_that_came_and_went() -> None:
    queue, rounds, stays = Queue(), Rounds(), Account("stays", 1)
    for place in range(1000):
        queue.add(place, stays, 1)
    for place in range(1000):
        queue.add("one", Account(f"one {place}", 1), 10)
        queue.take(rounds)
        assert len(rounds) <= 2 * len(queue) + 65


def test_accounts_that_keep_coming_with_something_urgent_keep_nobody_waiting() -> None:
    """A connection is an account, and costs nothing: there is always one that has not had its part."""
    queue, rounds = Queue(), Rounds()
    loud = [Account(f"loud {place}", 1) for place in range(72)]
    queue.add("quiet", Account("quiet", 1), 1)
    for number in range(72 * BY_AGE):
        account = loud[number // ROUND % len(loud)]
        queue.add("loud", account, 10)
        if queue.take(rounds) == "quiet":
            return
    raise AssertionError("it never came to its turn")


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 10)) | st.integers(0, 50), max_size=120))
def test_whatever_comes_and_goes_leaves_a_queue_whole(script: list[Any]) -> None:
    queue, rounds = Queue(), Rounds()
    accounts = {name: Account(name, 1) for name in "abcde"}
    there: dict[int, tuple[str, int, Any]] = {}
    for number, action in enumerate(script):
        if isinstance(action, tuple):
            name, priority = action
            there[number] = (name, priority, queue.add(number, accounts[name], priority))
        elif action % 2 and there:
            gone = random.Random(action).choice(sorted(there))
            name, _, entry = there.pop(gone)
            queue.discard(entry, accounts[name])
        elif there:
            item = queue.take(rounds)
            name, priority, _ = there.pop(item)
            assert all(
                (-priority, item) < (-other, place) for place, (who, other, _) in there.items() if who == name
            ), "the most urgent of its account, and of those the first"
        assert audit_queue(queue) == []
        assert len(queue) == len(there)
    assert sorted(all_of(queue, rounds)) == sorted(there)
