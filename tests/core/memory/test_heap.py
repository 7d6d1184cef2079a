"""The heap is a queue in order of urgency, first come first served among equals."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pfcore.memory.heap import HeapEntry, HeapFull, PriorityHeap


def test_the_most_urgent_leaves_first_and_equals_in_order_of_arrival() -> None:
    heap = PriorityHeap()
    for item, priority in (("a", 5), ("b", 9), ("c", 5), ("d", 1), ("e", 9)):
        heap.push(item, priority)
    assert heap.peek() == "b"
    assert [heap.pop() for _ in range(5)] == ["b", "e", "a", "c", "d"]
    assert len(heap) == 0


def test_an_empty_heap_says_so() -> None:
    heap = PriorityHeap()
    with pytest.raises(IndexError, match="pop from an empty heap"):
        heap.pop()
    with pytest.raises(IndexError, match="peek into an empty heap"):
        heap.peek()


def test_the_bound_is_kept_and_room_comes_back() -> None:
    heap = PriorityHeap(2)
    first = heap.push(1, 1)
    heap.push(2, 1)
    with pytest.raises(HeapFull, match="2 entries"):
        heap.push(3, 1)
    assert heap.remove(first)
    heap.push(3, 1)
    assert [heap.pop(), heap.pop()] == [2, 3]


@pytest.mark.parametrize("bound", [0, -1, 1.5, "2"])
def test_a_bad_bound_is_refused(bound: object) -> None:
    with pytest.raises(ValueError, match="bound: expected an integer of at least 1"):
        PriorityHeap(bound)  # type: ignore[arg-type]


def test_an_entry_tells_its_state_and_is_removed_once() -> None:
    heap = PriorityHeap()
    entry = heap.push("a", 3)
    assert (entry.item, entry.priority, entry.queued) == ("a", 3, True)
    assert heap.remove(entry) is True
    assert not entry.queued
    assert heap.remove(entry) is False
    popped = heap.push("b", 3)
    heap.pop()
    assert heap.remove(popped) is False


def test_an_entry_of_another_heap_is_refused() -> None:
    entry = PriorityHeap().push(1, 1)
    other = PriorityHeap()
    other.push(1, 1)
    # its own heap has gone, so it has left
    assert other.remove(entry) is False
    mine = PriorityHeap()
    with pytest.raises(ValueError, match="another heap"):
        other.remove(mine.push(1, 1))
    with pytest.raises(TypeError, match="got None"):
        other.remove(None)  # type: ignore[arg-type]


def test_entries_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="PriorityHeap.push"):
        HeapEntry()


def test_priorities_may_be_any_64_bit_integer() -> None:
    heap = PriorityHeap()
    for priority in (0, -(2**63), 2**63 - 1, -1):
        heap.push(priority, priority)
    assert [heap.pop() for _ in range(4)] == [2**63 - 1, 0, -1, -(2**63)]
    with pytest.raises(OverflowError):
        heap.push(1, 2**63)


def test_items_are_released_when_they_leave_and_when_the_heap_goes() -> None:
    class Item:
        pass

    heap = PriorityHeap()
    items = [Item() for _ in range(50)]
    references = [weakref.ref(item) for item in items]
    entries = [heap.push(item, 1) for item in items]
    del items
    heap.remove(entries[7])
    assert references[7]() is None
    heap.pop()
    del entries
    assert references[0]() is None
    heap.clear()
    assert len(heap) == 0
    gc.collect()
    assert all(reference() is None for reference in references)


def test_a_hundred_thousand_come_out_in_order() -> None:
    heap = PriorityHeap()
    generator = random.Random(1)
    priorities = [generator.randint(1, 10) for _ in range(100_000)]
    for number, priority in enumerate(priorities):
        heap.push(number, priority)
    expected = sorted(range(100_000), key=lambda number: (-priorities[number], number))
    assert [heap.pop() for _ in range(100_000)] == expected


class HeapAgainstModel(RuleBasedStateMachine):
    """The heap beside a sorted list."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = PriorityHeap()
        self.model: list[tuple[int, int]] = []
        self.entries: dict[int, HeapEntry] = {}
        self.count = 0

    @rule(priority=st.integers(-3, 3))
    def push(self, priority: int) -> None:
        self.entries[self.count] = self.heap.push(self.count, priority)
        self.model.append((-priority, self.count))
        self.model.sort()
        self.count += 1

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        assert self.heap.pop() == self.model.pop(0)[1]

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.entries)))
        queued = any(item == number for _, item in self.model)
        assert self.entries[number].queued == queued
        assert self.heap.remove(self.entries[number]) == queued
        self.model = [pair for pair in self.model if pair[1] != number]

    @invariant()
    def same(self) -> None:
        assert len(self.heap) == len(self.model)
        if self.model:
            assert self.heap.peek() == self.model[0][1]


TestHeapAgainstModel = HeapAgainstModel.TestCase


@pytest.mark.parametrize("end", ["remove", "clear", "drop"])
def test_a_finaliser_of_an_item_finds_the_heap_whole(end: str) -> None:
    """Letting an item go may run its owner's code, and that may push again."""
    heap = PriorityHeap()
    seen: list[int] = []

    class Item:
        def __del__(self) -> None:
            seen.append(len(heap))
            heap.push("again", 1)

    entries = [heap.push(Item(), n) for n in range(3)]
    if end == "remove":
        for entry in entries:
            heap.remove(entry)
    elif end == "clear":
        while len(heap) > 0 and len(seen) < 3:
            heap.clear()
    else:
        for _ in range(3):
            heap.pop()
    del entries
    gc.collect()
    assert len(seen) == 3
    left = len(heap)
    assert [heap.pop() for _ in range(left)] == ["again"] * left
    with pytest.raises(IndexError):
        heap.pop()


def test_an_entry_says_whether_it_is_queued() -> None:
    heap = PriorityHeap()
    entry = heap.push("x", 3)
    assert repr(entry) == "<HeapEntry priority=3 queued item='x'>"
    heap.remove(entry)
    assert repr(entry).startswith("<HeapEntry priority=3 gone")
