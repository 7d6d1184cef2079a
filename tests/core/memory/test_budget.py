"""Accounts and budgets: who has room, and who has some left whatever others hold."""

from __future__ import annotations

import pytest

from pfcore.memory.budget import Account, Budget

MIB = 1 << 20


def test_who_holds_little_has_room_whatever_could_not_be_refused() -> None:
    budget = Budget(64 * MIB)
    others = [Account(f"other {n}", 128 * MIB, budget) for n in range(4)]
    for one in others:
        one.insist(40 * MIB)  # held already, and more than all may hold together
    victim = Account("victim", 128 * MIB, budget)
    assert victim.charge(MIB // 2)
    assert not others[0].charge(1)
    assert not victim.charge(MIB), "beyond little he is one of those who are refused"


def test_the_eighth_of_those_who_hold_little_is_theirs_together() -> None:
    budget = Budget(64 * MIB)
    Account("other", 128 * MIB, budget).insist(80 * MIB)
    many = [Account(f"one {n}", 128 * MIB, budget) for n in range(16)]
    assert [one.charge(MIB) for one in many] == [True] * 8 + [False] * 8
    many[0].release(MIB)
    assert many[-1].charge(MIB)


@pytest.mark.parametrize("moves", [[MIB // 2, MIB, -MIB, -MIB // 2], [2 * MIB, -MIB, -MIB], [MIB, 1, -1, -MIB]])
def test_what_was_given_back_is_free_again_whichever_way_it_went(moves: list[int]) -> None:
    budget = Budget(64 * MIB)
    account = Account("one", 128 * MIB, budget)
    for move in moves:
        account.insist(move)
    assert (account.held, budget.held) == (0, 0)
    Account("other", 128 * MIB, budget).insist(80 * MIB)
    assert [Account(f"{n}", MIB, budget).charge(MIB) for n in range(9)] == [True] * 8 + [False]


def test_a_refusal_says_whose_limit_it_was() -> None:
    budget = Budget(64 * MIB, "max_total_bytes")
    alone, one = Account("alone", MIB), Account("one", 128 * MIB, budget)
    alone.insist(100)
    assert (
        alone.refusal(MIB)
        == "max_principal_bytes: 100 bytes are held for alone and 1,048,576 more asked for, at most 1,048,576 may be"
    )
    assert alone.refusal(1) == "max_principal_bytes: 100 bytes are held for alone"
    one.insist(64 * MIB)
    assert "max_total_bytes: 67,108,864 of 67,108,864 bytes are held in all, 67,108,864 of them for one" in one.refusal(
        1
    )
    assert repr(budget) == "<Budget 67108864 of 67108864 bytes>"


def test_limits_that_hold_nothing_are_refused_by_their_names() -> None:
    with pytest.raises(ValueError, match="max_total_bytes: expected at least 1 byte, got 0"):
        Budget(0)
    with pytest.raises(ValueError, match="max_link_bytes: expected at least 1 byte, got -1"):
        Account("one", -1, None, "max_link_bytes")
