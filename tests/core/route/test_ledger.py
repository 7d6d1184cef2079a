"""The ledger against a dictionary."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfcore.route.ledger import Ledger

SECOND = 1_000_000_000


def test_what_was_recorded_is_found_by_principal_and_id() -> None:
    ledger = Ledger()
    ledger.add(1, b"a", True, b"payload", 5, fingerprint=9)
    assert ledger.look_up(1, b"a", 6) == (True, 9, b"payload")
    assert ledger.look_up(2, b"a", 6) is None
    assert ledger.look_up(1, b"b", 6) is None


def test_results_are_kept_for_two_minutes_and_statuses_for_five() -> None:
    ledger = Ledger()
    ledger.add(1, b"a", False, b"payload", SECOND)
    assert ledger.look_up(1, b"a", 121 * SECOND) == (False, 0, b"payload")
    assert ledger.look_up(1, b"a", 122 * SECOND) == (False, 0, None)
    assert ledger.look_up(1, b"a", 301 * SECOND) == (False, 0, None)
    assert ledger.look_up(1, b"a", 302 * SECOND) is None


def test_a_large_result_is_not_kept_but_its_status_is() -> None:
    ledger = Ledger(room=1024)
    ledger.add(1, b"a", True, b"x" * 200, 5)
    assert ledger.look_up(1, b"a", 6) == (True, 0, None)


def test_bounds_are_checked() -> None:
    for bad in ({"bound": 0}, {"room": -1}):
        with pytest.raises(ValueError, match="expected"):
            Ledger(**bad)


@given(
    st.integers(1, 40),
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.booleans(), st.integers(0, 60)), max_size=300),
)
def test_it_remembers_the_latest_and_no_more(bound: int, room: int, steps: list[tuple[int, int, bool, int]]) -> None:
    ledger = Ledger(bound=bound, room=room)
    model: OrderedDict[int, tuple[int, bytes, bool, bytes]] = OrderedDict()
    for step, (principal, number, success, size) in enumerate(steps):
        name = b"id-%d" % number * (1 + number % 5 * 5)
        payload = bytes([step % 256]) * size
        # as the switch does: an id that is known is not recorded again
        if not any(entry[:2] == (principal, name) for entry in model.values()):
            ledger.add(principal, name, success, payload, step + 1)
            model[step] = (principal, name, success, payload)
            if len(model) > bound:
                model.popitem(last=False)
        assert len(ledger) == len(model)
        for known_principal, known, was_success, was_payload in model.values():
            found = ledger.look_up(known_principal, known, step + 1)
            assert found is not None
            assert found[0] == was_success
            assert found[2] in (None, was_payload)
        assert ledger.look_up(3, name, step + 1) is None
    if model and room >= 8 * 60:
        last = next(reversed(model.values()))
        assert ledger.look_up(last[0], last[1], len(steps))[2] == (last[3] or None)


def test_an_expired_outcome_hides_no_younger_one_of_the_same_id() -> None:
    ledger = Ledger(bound=8)
    ledger.add(1, b"id", False, b"old", SECOND)
    ledger.add(1, b"id", True, b"new", 400 * SECOND)
    assert ledger.look_up(1, b"id", 401 * SECOND) == (True, 0, b"new")
