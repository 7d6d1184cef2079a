"""Data flow: streams, transformations, reductions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.elements import Bounds, reduce, ref, step, streams, transform
from packetflow.elements.streams import MAX_DELIVERIES
from packetflow.elements.turns import SLICE, Turns
from packetflow.gateway import hash_token
from pfcore.memory.budget import Account
from tests.helpers import Slow, refused, until


async def consume(client: Reactor, stream: str, **more: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.call("df", "consume", {"stream": stream, **more}))["items"]
    return items


# ---------------------------------------------------------------- streams


async def test_what_is_produced_is_consumed_in_order(client: Reactor) -> None:
    made = await client.call("df", "produce", {"stream": "s", "items": [1, {"a": None}, "x"]})
    assert made["length"] == 3
    assert made["first"] < made["last"]
    items = await consume(client, "s")
    assert [item["data"] for item in items] == [1, {"a": None}, "x"]
    assert [item["deliveries"] for item in items] == [1, 1, 1]
    assert [items[0]["id"], items[-1]["id"]] == [made["first"], made["last"]]
    again = await client.call("df", "produce", {"stream": "s", "items": ["y"]})
    assert again["first"] > made["last"]


async def test_an_item_goes_to_one_caller_of_a_consumer_name_and_to_every_name(client: Reactor) -> None:
    await client.stream("s").produce(*range(10))
    first, second = await asyncio.gather(consume(client, "s", max=6), consume(client, "s", max=6))
    assert sorted(item["data"] for item in first + second) == list(range(10))
    assert [item["data"] for item in await consume(client, "s", consumer="audit")] == list(range(10))


async def test_what_is_acknowledged_by_all_who_read_is_dropped(hub: Gateway, client: Reactor) -> None:
    await client.stream("s").produce(*range(4))
    mine = await consume(client, "s")
    theirs = await consume(client, "s", consumer="b")
    await consume(client, "s", max=0, ack=[item["id"] for item in mine])
    assert (await hub.view.runtime().store.extent("stream", "s"))[0] == 4  # type: ignore[union-attr]
    await consume(client, "s", consumer="b", max=0, ack=[item["id"] for item in theirs[:2]])
    assert (await hub.view.runtime().store.extent("stream", "s"))[0] == 2  # type: ignore[union-attr]


async def test_what_is_not_acknowledged_comes_again_and_at_last_goes_to_the_dead(client: Reactor) -> None:
    await client.stream("s").produce("poison")
    for delivery in range(1, MAX_DELIVERIES + 1):
        (item,) = await consume(client, "s", redeliver_after_ms=5)
        assert (item["data"], item["deliveries"]) == ("poison", delivery)
    assert (await refused(consume(client, "s", redeliver_after_ms=5, wait_ms=50))).code == "PF408"
    assert [item["data"] for item in await consume(client, "s.dead")] == ["poison"]


async def test_the_dead_of_the_longest_name_can_be_read(client: Reactor) -> None:
    """And what is dead of those stays where it can be: its own dead would have too long a name."""
    name = "s" * 251
    for stream in (name + "s", "é" * 126, name + "d.dead"):
        for element, more in (("produce", {"items": [1]}), ("consume", {})):
            error = await refused(client.call("df", element, {"stream": stream, **more}))
            assert error.code == "PF400"
            assert "bytes" in error.message
    await client.stream(name).produce("a")
    for stream, most in ((name, 5), (name + ".dead", 9)):
        taken = {"stream": stream, "redeliver_after_ms": 1, "wait_ms": 5000}
        for deliveries in range(1, most + 1):
            (item,) = (await client.call("df", "consume", taken))["items"]
            assert (item["data"], item["deliveries"]) == ("a", deliveries)
        if stream == name:
            assert (await refused(client.call("df", "consume", {**taken, "wait_ms": 100}))).code == "PF408"


async def test_what_is_dead_twice_has_a_stream_as_long_as_there_is_a_name_for_it(client: Reactor) -> None:
    await client.stream("s.dead").produce("a")
    taken = {"stream": "s.dead", "redeliver_after_ms": 1, "wait_ms": 5000}
    for _ in range(5):
        await client.call("df", "consume", taken)
    assert (await refused(client.call("df", "consume", {**taken, "wait_ms": 100}))).code == "PF408"
    (item,) = (await client.call("df", "consume", {**taken, "stream": "s.dead.dead"}))["items"]
    assert item["data"] == "a"


async def test_consumers_wait_for_items(hub: Gateway, client: Reactor) -> None:
    waiting = asyncio.ensure_future(consume(client, "later"))
    await until(lambda: hub.view.runtime().lines.waiting("stream", ("later", "default")) == 1)  # type: ignore[union-attr]
    await client.stream("later").produce("now")
    assert [item["data"] for item in await waiting] == ["now"]
    assert (await refused(consume(client, "later", wait_ms=10))).code == "PF408"


async def test_acknowledging_comes_before_waiting(client: Reactor) -> None:
    await client.stream("s").produce("a")
    (item,) = await consume(client, "s", redeliver_after_ms=20)
    assert (await refused(consume(client, "s", ack=[item["id"]], wait_ms=60))).code == "PF408"


async def test_a_full_stream_makes_its_producer_wait() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(stream_items=3)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        stream = client.stream("s")
        await stream.produce(1, 2, 3)
        error = await refused(stream.produce(4, wait=0.02))
        assert (error.code, "3 items" in error.message) == ("PF429", True)
        assert (await refused(stream.produce(1, 2, 3, 4))).code == "PF400"
        waiting = asyncio.ensure_future(stream.produce(4))
        items = await consume(client, "s")
        assert not waiting.done()
        await consume(client, "s", max=0, ack=[items[0]["id"]])
        await waiting


async def test_an_async_iterator_acknowledges_what_its_loop_has_done(hub: Gateway, client: Reactor) -> None:
    stream = client.stream("jobs")
    await stream.produce("a", "b", "c")
    seen = []

    async def fail_at_b() -> None:
        async for item in stream.consume(redeliver_after=0.02):
            seen.append(item.data)
            if item.data == "b":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_at_b()
    assert seen == ["a", "b"]
    # a generator that was left is closed when it is collected; what it had done is acknowledged then
    elements = hub.view.runtime()
    assert elements is not None
    (progress,) = elements.rooms["readers"].known.values()
    await until(lambda: len(progress.pending) == 2)
    async for item in stream.consume(redeliver_after=0.02):
        seen.append(item.data)
        if len(seen) == 4:
            break
    assert sorted(seen[2:]) == ["b", "c"]


@pytest.mark.parametrize(
    ("element", "data"),
    [
        ("produce", {"stream": "", "items": []}),
        ("produce", {"stream": "s"}),
        ("produce", {"stream": "s", "items": {}}),
        ("consume", {"stream": "s", "max": -1}),
        ("consume", {"stream": "s", "max": 10_001}),
        ("consume", {"stream": "s", "ack": "x"}),
        ("consume", {"stream": "s", "redeliver_after_ms": 0}),
        ("consume", {"stream": "s", "consumer": "c" * 257}),
    ],
)
async def test_streams_refuse_what_is_not_valid(client: Reactor, element: str, data: dict[str, Any]) -> None:
    assert (await refused(client.call("df", element, data))).code == "PF400"


# ---------------------------------------------------------------- df:transform


async def run(client: Reactor, packet: dict[str, Any]) -> Any:
    return await client.call(packet["group"], packet["element"], packet["data"])


async def test_transform_by_expression(client: Reactor) -> None:
    people = [{"name": "Ada", "age": 36}, {"name": "Bob", "age": 20}]
    assert await run(client, transform(people, expression="[?age > `30`].name")) == ["Ada"]
    assert await run(client, transform({"a": 1}, expression="b")) is None


async def test_transform_each_item_in_order_and_in_parallel(client: Reactor) -> None:
    items = [0.05, 0.01, 0.03]
    assert await run(client, transform(items, map=step("df", "sleep", ref("item")))) == items
    assert await run(client, transform([1, 2, 3], map=step("df", "double", ref("item")))) == [2, 4, 6]
    assert await run(client, transform(["a"], map=step("df", "echo", ref("[index, item]")))) == [[0, "a"]]
    assert await run(client, transform([], map=step("df", "double", ref("item")))) == []


async def test_a_failing_item_fails_it(client: Reactor) -> None:
    error = await refused(run(client, transform([1, 2], map=step("df", "fail", ref("item")))))
    assert error.code == "PF500"
    assert error.details["element"] == "df:fail"  # type: ignore[index]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"expression": "a", "map": step("df", "echo")},
        {"input": 5, "map": step("df", "echo")},
        {"input": [1], "map": step("df", "echo"), "concurrency": 0},
    ],
)
async def test_transform_refuses_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("df", "transform", data))).code == "PF400"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("a[", "Incomplete"),
        ("x" * 1025, "1,024 bytes"),
        ("[" * 33 + "@" + "]" * 33, "deeper than 32"),
        ("|".join(["[@,@]"] * 26), "steps of evaluation"),
        ("|".join(["[@,@][]"] * 22), "steps"),
        ("join('', [@,@])|" * 24 + "@", "characters"),
        ("to_string(" + "[@,@]|" * 25 + "@)", "steps of evaluation"),
        ("to_number('1e999')", "JSON"),
        ("&a", "JSON"),
        ("nothing(@)", "Unknown function"),
        ("abs('x')", "abs"),
    ],
)
async def test_expressions_that_are_wrong_or_explode(client: Reactor, expression: str, why: str) -> None:
    error = await refused(run(client, transform("x" * 64, expression=expression)))
    assert error.code == "PF400"
    assert why in error.message


# ---------------------------------------------------------------- df:reduce


@pytest.mark.parametrize(
    ("op", "items", "result"),
    [
        ("sum", [1, 2.5], 3.5),
        ("sum", [], 0),
        ("count", ["a", None], 2),
        ("count", [], 0),
        ("min", [3, 1], 1),
        ("max", ["a", "b"], "b"),
        ("min", [], None),
        ("avg", [1, 2], 1.5),
        ("avg", [], None),
        ("concat", ["a", "b"], "ab"),
        ("concat", [[1], [2]], [1, 2]),
        ("concat", [], None),
        ("merge", [{"a": 1}, {"a": 2, "b": 3}], {"a": 2, "b": 3}),
    ],
)
async def test_reduce_by_operation(client: Reactor, op: str, items: list[Any], result: Any) -> None:
    assert await run(client, reduce(items, op=op)) == result


async def test_reduce_by_step(client: Reactor) -> None:
    add = step("df", "add", [ref("prev"), ref("item")])
    assert await run(client, reduce([1, 2, 3], fold=add)) == 6
    assert await run(client, reduce(["a", "b"], fold=add, initial=">")) == ">ab"
    assert await run(client, reduce([], fold=add)) is None
    assert await run(client, reduce([], fold=add, initial=7)) == 7


@pytest.mark.parametrize(
    "data",
    [
        {"input": []},
        {"input": 5, "op": "sum"},
        {"input": [1, True], "op": "sum"},
        {"input": ["a", 1], "op": "max"},
        {"input": [1], "op": "concat"},
        {"input": [1], "op": "merge"},
        {"input": [1], "op": "median"},
    ],
)
async def test_reduce_refuses_what_is_not_valid(client: Reactor, data: dict[str, Any]) -> None:
    assert (await refused(client.call("df", "reduce", data))).code == "PF400"


async def test_a_reactors_handler_takes_the_place_of_a_df_element(hub: Gateway, client: Reactor) -> None:
    async with Reactor(hub.endpoint, name="mine") as mine:
        mine.register("df", "transform", str.upper)
        await until(lambda: hub.switch.reactors_for("df:transform"))
        assert await client.call("df", "transform", "hello") == "HELLO"
        assert await client.call("df", "tr", "hello") == "HELLO"
    await until(lambda: not hub.switch.reactors_for("df:transform"))
    assert await run(client, transform(1, expression="@")) == 1
    hub.register("df", "transform", lambda data: "the gateway's")
    assert await client.call("df", "transform", 1) == "the gateway's"
    hub.unregister("df", "transform")
    assert await run(client, transform(1, expression="@")) == 1


async def test_names_that_hold_what_keys_are_made_of(client: Reactor, hub: Gateway) -> None:
    """No stream's consumers are another's, whatever they are called, and no message shows what they are kept under."""
    await client.call("df", "produce", {"stream": "a", "items": [1]})
    for stream, consumer in (("a", "b\0c"), ("a\0b", "c"), ("a:b", "c"), ("1:a", "b")):
        await client.call("df", "consume", {"stream": stream, "consumer": consumer, "max": 0})
    found = await client.call("df", "consume", {"stream": "a", "consumer": "b\0c"})
    await client.call("df", "consume", {"stream": "a", "consumer": "b\0c", "max": 0, "ack": [found["items"][0]["id"]]})
    assert await hub.view.runtime().store.extent("stream", "a") == (0, 0, 0)  # type: ignore[union-attr]
    for group, element, data in (
        ("df", "consume", {"stream": "a", "consumer": "b", "wait_ms": 0}),
        ("co", "sync", {"barrier": "a", "parties": 2, "wait_ms": 0}),
        ("co", "vote", {"ballot": "a", "choice": 1, "voters": 2, "wait_ms": 0}),
    ):
        error = await refused(client.call(group, element, data))
        assert error.code == "PF408"
        assert "'a'" in error.message


async def test_merging_many_and_sums_beyond_all_measure(client: Reactor) -> None:
    merged = await client.call("df", "reduce", {"input": [{f"k{n}": n} for n in range(5000)], "op": "merge"})
    assert len(merged) == 5000
    for data in ({"input": [1e308, 1e308], "op": "sum"}, {"input": [10**400, 1], "op": "avg"}):
        assert (await refused(client.call("df", "reduce", msgspec.Raw(json.dumps(data).encode())))).code == "PF400"
    error = await refused(client.call("df", "reduce", {"input": [0] * 200_000, "op": "sum"}))
    assert (error.code, "steps" in error.message) == ("PF400", True)
    assert await client.call("df", "reduce", {"input": [0] * 20_000, "op": "count"}) == 20_000


async def test_many_items_that_are_due_again(client: Reactor, hub: Gateway) -> None:
    await client.call("df", "produce", {"stream": "s", "items": list(range(3000))})
    data = {"stream": "s", "max": 1000, "redeliver_after_ms": 1}
    first = [item for _ in range(3) for item in (await client.call("df", "consume", data))["items"]]
    assert sorted({item["data"] for item in first}) == list(range(len({item["data"] for item in first})))
    seen: set[int] = set()
    while len(seen) < 3000:
        items = (await client.call("df", "consume", {**data, "redeliver_after_ms": 60_000}))["items"]
        assert not seen & {item["data"] for item in items}
        assert sum(item["deliveries"] > 1 for item in items) <= 400
        seen |= {item["data"] for item in items}
    assert (await refused(client.call("df", "consume", {**data, "wait_ms": 0}))).code == "PF408"


async def test_too_many_acknowledged_at_once(client: Reactor) -> None:
    error = await refused(client.call("df", "consume", {"stream": "s", "ack": [1] * 10_001}))
    assert (error.code, "10,000" in error.message) == ("PF400", True)


async def test_reducing_from_an_initial_value_or_from_nothing(client: Reactor) -> None:
    async def reduce(**data: Any) -> Any:
        return await client.call("df", "reduce", data)

    assert await reduce(input=[1, 2], op="sum", initial=10) == 13
    assert await reduce(input=[], op="merge") is None
    error = await refused(client.call("df", "reduce", {"input": [10**400], "op": "avg"}))
    assert error.code == "PF400"


async def test_too_many_produced_at_once(client: Reactor) -> None:
    for items in ([None] * 10_001, [[0, 1]] * 11_000):
        error = await refused(client.call("df", "produce", {"stream": "s", "items": items}))
        assert (error.code, "at most 10,000" in error.message) == ("PF400", True)
    # values within an item are not counted
    assert (await client.call("df", "produce", {"stream": "s", "items": [[0] * 20_000, {"a": [1] * 9000}]}))[
        "length"
    ] == 2


@pytest.mark.parametrize("items", [{"a": 1}, "text", None, 7])
async def test_what_is_produced_is_a_list(client: Reactor, items: Any) -> None:
    error = await refused(client.call("df", "produce", {"stream": "s", "items": items}))
    assert (error.code, error.message.startswith("items: Expected `array`")) == ("PF400", True)


async def test_a_long_stream_that_is_done_with_is_dropped(hub: Gateway, client: Reactor) -> None:
    count = 4200
    await client.stream("s").produce(*range(count))
    taken = await client.call("df", "consume", {"stream": "s", "max": 10_000})
    assert len(taken["items"]) == count
    await client.call("df", "consume", {"stream": "s", "max": 0, "ack": [item["id"] for item in taken["items"]]})
    assert hub.view.runtime() is not None
    assert (await hub.view.runtime().store.extent("stream", "s"))[0] == 0


async def test_ten_thousand_items_are_given_out_in_turns(hub: Gateway, client: Reactor) -> None:
    await client.stream("s").produce(*range(10_000))
    elements = hub.view.runtime()
    assert elements is not None
    clock = Slow()
    elements.turns = Turns(asyncio.get_running_loop(), clock)
    items = await consume(client, "s", max=10_000)
    assert [item["data"] for item in items] == list(range(10_000))
    assert clock.now >= 10_000 / streams.PIECE * SLICE


async def test_what_was_given_out_before_a_cancel_comes_again(hub: Gateway, client: Reactor) -> None:
    await client.stream("s").produce(*range(10_000))
    elements = hub.view.runtime()
    assert elements is not None
    elements.turns = Turns(asyncio.get_running_loop(), Slow())
    readers = elements.rooms["readers"]
    first = asyncio.ensure_future(consume(client, "s", max=10_000, redeliver_after_ms=1))
    await until(lambda: any(len(one.pending) > 1000 for one in readers.known.values()))
    first.cancel()
    got: dict[int, Any] = {}
    while len(got) < 10_000:
        for item in await consume(client, "s", max=10_000, redeliver_after_ms=60_000):
            assert item["id"] not in got
            got[item["id"]] = item
    assert sorted(item["data"] for item in got.values()) == list(range(10_000))
    assert {item["deliveries"] for item in got.values()} == {1, 2}


async def test_so_many_consumer_names_read_a_stream(client: Reactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_CONSUMERS", 2)
    for name in "ab":
        await client.call("df", "consume", {"stream": "s", "consumer": name, "max": 0})
    error = await refused(client.call("df", "consume", {"stream": "s", "consumer": "c", "max": 0}))
    assert (error.code, "2 consumer names" in error.message) == ("PF429", True)


async def test_an_item_that_was_dropped_by_another_is_not_given_out_again(hub: Gateway, client: Reactor) -> None:
    data = {"stream": "s", "redeliver_after_ms": 1}
    await client.stream("s").produce("x")
    (item,) = (await client.call("df", "consume", data))["items"]
    assert hub.view.runtime() is not None
    await hub.view.runtime().store.trim("stream", "s", item["id"])
    assert (await refused(client.call("df", "consume", {**data, "wait_ms": 30}))).code == "PF408"


async def test_an_item_waits_while_the_dead_have_no_room() -> None:
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", elements=Bounds(stream_items=2)) as hub,
        Reactor(hub.endpoint) as client,
    ):
        await client.stream("s.dead").produce("older", "old")
        await client.stream("s").produce("x")
        data = {"stream": "s", "redeliver_after_ms": 1}
        for deliveries in range(1, 6):
            (item,) = (await client.call("df", "consume", data))["items"]
            assert item["deliveries"] == deliveries
        assert (await refused(client.call("df", "consume", {**data, "wait_ms": 30}))).code == "PF408"
        dead = (await client.call("df", "consume", {"stream": "s.dead"}))["items"]
        await client.call("df", "consume", {"stream": "s.dead", "max": 0, "ack": [item["id"] for item in dead]})
        assert (await refused(client.call("df", "consume", {**data, "wait_ms": 30}))).code == "PF408"
        (item,) = (await client.call("df", "consume", {"stream": "s.dead"}))["items"]
        assert item["data"] == "x"


def test_what_is_given_out_again_and_again_is_noted_once() -> None:
    progress = streams._Progress(0, 0)
    for time in range(1000):
        progress.give(1, time, float(time))
    assert len(progress._due) <= 2 + 64 + 1
    assert progress.next_due() == (999.0, 1)
    assert progress.floor() == 0


async def test_sums_of_fractions_and_what_no_fraction_can_be(client: Reactor) -> None:
    error = await refused(client.call("df", "reduce", {"input": [0.5, 10**400], "op": "sum"}))
    assert error.code == "PF400"


async def test_nobodys_progress_is_told_late_for_want_of_anothers_turn() -> None:
    role = Role("user", submit=("*:*",))
    access = Access.of([role], [Identity(name, "user", tokens=(hash_token(name),)) for name in ("ada", "bob")])
    async with (
        Gateway("ws://127.0.0.1:0/packetflow/v1", access=access) as hub,
        Reactor(hub.endpoint, token="ada") as ada,
        Reactor(hub.endpoint, token="bob") as bob,
    ):
        elements = hub.view.runtime()
        assert elements is not None
        turns, adas = elements.turns, hub.view.principals.named["ada"].stored

        class Never(Turns):
            def spent(self, account: Account) -> bool:
                return account is adas or turns.spent(account)

            async def next(self, account: Account, *, first: bool = False) -> None:
                if account is adas:
                    await asyncio.get_running_loop().create_future()
                await turns.next(account, first=first)

        await ada.stream("s").produce(*range(1000))
        for client, name in ((ada, "a"), (bob, "b")):
            assert len(await consume(client, "s", consumer=name, max=1000)) == 1000
        readers = elements.rooms["readers"]
        assert len(readers.changed) == 2
        elements.turns = Never(asyncio.get_running_loop())
        await until(lambda: len(readers.changed) == 1)
        assert list(readers.changed.values()) == [adas]
