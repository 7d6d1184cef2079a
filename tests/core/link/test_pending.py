"""The pending table finds waiters by seq and by id, and expires them in time."""

from __future__ import annotations

import random
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pfcore.audit import audit_table
from pfcore.link.pending import PendingFull, PendingTable

MS = 1_000_000
TICK = 1 << 22


def test_seqs_count_from_one_and_are_taken_once() -> None:
    table = PendingTable()
    assert [table.add(letter, letter) for letter in "abc"] == [1, 2, 3]
    assert len(table) == 3
    assert table.take(2) == "b"
    assert table.take(2) is None
    assert table.take_by_id("c") == "c"
    assert table.take_by_id("c") is None
    assert table.take(0) is None
    assert table.take(-5) is None
    assert len(table) == 1


def test_the_bound_is_kept() -> None:
    table = PendingTable(bound=2)
    table.add(1, "a")
    table.add(2, "b")
    with pytest.raises(PendingFull, match="2 entries"):
        table.add(3, "c")
    table.take(1)
    assert table.add(3, "c") == 3


def test_seqs_wrap_to_one_and_pass_over_those_in_use() -> None:
    table = PendingTable(first_seq=2**53 - 2, bound=8)
    assert table.add("a", "a") == 2**53 - 2
    assert table.add("b", "b") == 2**53 - 1
    assert table.add("c", "c") == 1
    short = PendingTable(most_seq=3, bound=3)
    short.add("slow", "slow")
    for _ in range(10):
        seq = short.add("x", "x")
        assert seq in (2, 3)
        assert short.take(seq) == "x"
    assert short.take(1) == "slow"


def test_one_slow_entry_among_many_fast_ones() -> None:
    table = PendingTable(bound=64)
    slow = table.add("slow", "slow", 10**15)
    for number in range(100_000):
        seq = table.add(number, str(number), number * 1000 + 10**12)
        assert table.take(seq) == number
    assert len(table) == 1
    assert table.take(slow) == "slow"


@pytest.mark.parametrize("length", [1, 39, 40, 41, 128, 5000])
def test_ids_of_any_length(length: int) -> None:
    table = PendingTable()
    table.add("other", "y" * length)
    table.add("this", b"x" * length)
    assert table.take_by_id("x" * length) == "this"
    assert table.take_by_id("x" * (length + 1)) is None


def test_the_latest_of_two_equal_ids_is_found_first() -> None:
    table = PendingTable()
    table.add("old", "same")
    table.add("new", "same")
    assert table.take_by_id("same") == "new"
    assert table.take_by_id("same") == "old"


def test_expiry_is_never_early_and_at_most_a_tick_late() -> None:
    generator = random.Random(2)
    table = PendingTable(now=0)
    deadlines = {}
    for number in range(3000):
        deadline = generator.choice([5, 1000, 30_000, 400_000, 90_000_000]) * MS + generator.randrange(MS)
        deadlines[number] = deadline
        table.add(number, str(number), deadline)
    now = 0
    while len(table):
        due = table.next_expiry()
        assert due is not None
        now = max(due, now)
        for number in table.expire(now):
            deadline = deadlines.pop(number)
            assert deadline <= now
            assert now - deadline <= TICK
        assert all(deadline > now - TICK for deadline in deadlines.values())
    assert table.next_expiry() is None


@pytest.mark.parametrize("level", range(1, 6))
def test_deadlines_across_the_seam_of_every_level_of_the_wheel(level: int) -> None:
    seam = 64**level * TICK
    for before in (1, TICK, 100 * TICK):
        table = PendingTable(now=seam - before)
        table.add("waiter", "id", seam + 5 * TICK)
        assert table.expire(seam + 4 * TICK) == []
        assert table.expire(seam + 6 * TICK) == ["waiter"]


def test_a_clock_that_leaps_expires_everything_that_is_due() -> None:
    table = PendingTable(now=10**17)
    for seconds in (0, 1, 10, 100, 1000, 10_000, 100_000):
        table.add(seconds, str(seconds), 10**17 + seconds * 10**9)
    assert sorted(table.expire(10**17 + 500 * 10**9)) == [0, 1, 10, 100]
    assert sorted(table.expire(10**17 + 10**15)) == [1000, 10_000, 100_000]


def test_entries_without_a_deadline_never_expire() -> None:
    table = PendingTable()
    table.add("a", "a")
    assert table.next_expiry() is None
    assert table.expire(2**62) == []
    assert table.take(1) == "a"


def test_waiters_are_released() -> None:
    class Waiter:
        pass

    table = PendingTable()
    waiters = [Waiter() for _ in range(20)]
    references = [weakref.ref(waiter) for waiter in waiters]
    for number, waiter in enumerate(waiters):
        table.add(waiter, str(number), number * MS)
    del waiter, waiters
    table.take(1)
    table.take_by_id("1")
    table.expire(5 * MS + TICK)
    assert [reference() is None for reference in references[:6]] == [True] * 6
    assert references[10]() is not None
    del table
    assert all(reference() is None for reference in references)


@pytest.mark.parametrize(
    "options", [{"bound": 0}, {"bound": 2**27}, {"first_seq": 0}, {"most_seq": 2**53}, {"bound": 10, "most_seq": 5}]
)
def test_bad_settings_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PendingTable(**options)


def test_a_packet_id_must_be_text_or_bytes() -> None:
    with pytest.raises(TypeError):
        PendingTable().add("waiter", 5)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60), st.lists(st.integers(0, 10**12), max_size=20))
def test_expiry_against_a_model(deadlines: list[int], moments: list[int]) -> None:
    table = PendingTable()
    left = {}
    for number, deadline in enumerate(deadlines):
        table.add(number, str(number), deadline)
        left[number] = deadline
    for now in sorted(moments):
        expired = set(table.expire(now))
        assert {number for number, deadline in left.items() if deadline <= now - TICK} <= expired
        assert all(left[number] <= now for number in expired)
        for number in expired:
            del left[number]
    assert len(table) == len(left)


def test_memory_of_many_is_given_back_once_they_have_ended() -> None:
    table = PendingTable()
    seqs = [table.add(n, f"p{n}", n * MS) for n in range(20_000)]
    before = table.slots
    for seq in seqs[:19_990]:
        table.take(seq)
    table.shrink()  # those that are left stand at the end
    more = [table.add("more", f"m{n}", 0) for n in range(5)]
    assert [table.take(seq) for seq in seqs[19_990:]] == list(range(19_990, 20_000))
    table.shrink()
    assert table.slots < before // 100
    assert [table.take(seq) for seq in more] == ["more"] * 5
    assert audit_table(table) == []
    assert table.add("last", "p") not in seqs
    table.shrink()
    assert table.take_by_id("p") == "last"


class TableAgainstModel(RuleBasedStateMachine):
    """The table beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PendingTable(bound=20, most_seq=25)
        self.model: dict[int, tuple[int, str, int | None]] = {}
        self.count = 0
        self.now = 0

    @rule(packet_id=st.sampled_from("abcdefg"), ahead=st.none() | st.integers(0, 10**11))
    def add(self, packet_id: str, ahead: int | None) -> None:
        self.count += 1
        deadline = None if ahead is None else self.now + ahead
        if len(self.model) == 20:
            with pytest.raises(PendingFull):
                self.table.add(self.count, packet_id, deadline)
            return
        seq = self.table.add(self.count, packet_id, deadline)
        assert 1 <= seq <= 25
        assert seq not in self.model
        self.model[seq] = (self.count, packet_id, deadline)

    @rule()
    def shrink(self) -> None:
        self.table.shrink()

    @rule(seq=st.integers(0, 26))
    def take(self, seq: int) -> None:
        assert self.table.take(seq) == self.model.pop(seq, (None,))[0]

    @rule(packet_id=st.sampled_from("abcdefg"))
    def take_by_id(self, packet_id: str) -> None:
        matching = {waiter: seq for seq, (waiter, known, _) in self.model.items() if known == packet_id}
        taken = self.table.take_by_id(packet_id)
        assert (taken in matching) if matching else (taken is None)
        if taken is not None:
            del self.model[matching[taken]]

    @precondition(lambda self: True)
    @rule(step=st.integers(0, 10**11))
    def expire(self, step: int) -> None:
        self.now += step
        expired = set(self.table.expire(self.now))
        for seq, (waiter, _, deadline) in list(self.model.items()):
            if waiter in expired:
                assert deadline is not None and deadline <= self.now
                del self.model[seq]
            else:
                assert deadline is None or deadline > self.now - TICK

    @invariant()
    def same(self) -> None:
        assert len(self.table) == len(self.model)


TestTableAgainstModel = TableAgainstModel.TestCase
