"""The audit: it passes over what is in order, and names what is not."""

from __future__ import annotations

import random

from pfcore.audit import audit, audit_heap, audit_ledger, audit_table, in_flight
from pfcore.link.engine import Engine
from pfcore.link.pending import PendingTable
from pfcore.memory.budget import Account, Budget
from pfcore.memory.heap import HeapEntry, PriorityHeap
from pfcore.route.flights import Principal
from pfcore.route.ledger import Ledger
from pfcore.simulate import submit_packet
from tests.core.route.test_switch import Simulation


def test_a_pending_table_is_in_order_whatever_comes_and_goes() -> None:
    generator = random.Random(1)
    table = PendingTable(bound=500)
    seqs: list[int] = []
    now = 0
    for _ in range(2000):
        if generator.random() < 0.6 and len(table) < 500:
            deadline = generator.choice([None, now + generator.randrange(10**12)])
            seqs.append(table.add(object(), f"{generator.random()}" * generator.choice([1, 5]), deadline))
        elif seqs:
            table.take(seqs.pop(generator.randrange(len(seqs))))
        if generator.random() < 0.05:
            now += generator.randrange(10**11)
            table.expire(now)
        if generator.random() < 0.1:
            assert audit_table(table) == []
    assert audit_table(table) == []


def test_a_heap_is_in_order_whatever_comes_and_goes() -> None:
    generator = random.Random(2)
    heap = PriorityHeap()
    entries: list[HeapEntry] = []
    for _ in range(1000):
        match generator.randrange(4):
            case 0 if len(heap):
                heap.pop()
            case 1 if entries:
                heap.remove(entries.pop(generator.randrange(len(entries))))
            case _:
                entries.append(heap.push(object(), generator.randrange(10)))
        assert audit_heap(heap) == []


def test_a_ledger_is_in_order_when_outcomes_make_way_for_others() -> None:
    ledger = Ledger(bound=100, room=4096)
    for number in range(500):
        ledger.add(number % 3, f"id{number}".encode() * (1 + number % 9), number % 2 == 0, b"x" * (number % 50), number)
        assert audit_ledger(ledger) == []


def test_work_under_way_is_in_order_and_not_at_rest() -> None:
    sim = Simulation()
    client, worker = sim.join(), sim.join(["df:work"])
    sim.submit(client, "a", metadata={"retry": 2})
    sim.submit(client, "b", dependencies=["a"])
    assert audit(sim.switch) == []
    assert in_flight(sim.switch)[sim.links[worker]] == (1, 0, 256, False)
    left = audit(sim.switch, at_rest=True)
    assert "flight b'a' (sent, df:work) is left" in left
    assert "flight b'b' (waiting, df:work) is left" in left
    sim.answer(worker, sim.work[worker].pop())
    sim.answer(worker, sim.work[worker].pop())
    assert audit(sim.switch, at_rest=True) == []


def test_a_link_that_went_without_leaving_is_named() -> None:
    sim = Simulation()
    client = sim.join()
    sim.links[client].disconnected("gone", sim.now)
    assert audit(sim.switch) == ["link 1 of p2: its connection is offline"]


def test_a_link_that_was_admitted_twice_is_named() -> None:
    sim = Simulation()
    client = sim.join()
    sim.switch.admit(sim.links[client], Principal("p2", 2, 1), None)
    assert "link 1 of p2: it and its engine do not know each other" in audit(sim.switch)


def test_packets_without_a_switch_behind_are_audited_too() -> None:
    sim = Simulation()
    engine = Engine(client=True)
    engine.connected(sim.now)
    assert audit(sim.switch, engines=[engine], at_rest=True) == []
    submit_packet(engine, {"group": "df", "element": "x"}, sim.now)
    assert audit(sim.switch, engines=[engine]) == []
    assert audit(sim.switch, engines=[engine], at_rest=True) == ["a link has 1 submits and 0 packets left"]


def test_an_account_that_owes_or_still_holds_is_named() -> None:
    sim = Simulation()
    account = Account("alice", 1000, Budget(1000))
    account.insist(10)
    assert audit(sim.switch, accounts=[account]) == []
    assert audit(sim.switch, accounts=[account], at_rest=True) == [
        "10 bytes are held for alice still, 0 of them for what it announces"
    ]
    account.release(15)
    assert audit(sim.switch, accounts=[account]) == ["<Account 'alice' -5 of 1000 bytes> holds -5 bytes"]
