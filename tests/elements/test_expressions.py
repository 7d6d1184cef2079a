"""Expressions and references: what they give, and that nothing they are given does harm."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jmespath.parser import Parser

from packetflow.elements import expressions
from packetflow.elements.expressions import MAX_STEPS, Meter, View, compile_expression, expand, is_packet, truth
from packetflow.errors import InvalidPacket

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "$", "$lit", "c"]), inner, max_size=4)
    ),
    max_leaves=12,
)
PIECES = st.sampled_from(
    ["a", "b", "@", ".", "[", "]", "[]", "[*]", "[0]", "[-1]", "[::2]", "[::0]", "[?", "?", "{", "}", "a:", ",", "|", "||", "&&", "!", "==", "<", "(", ")",
     "&", "`1`", "`null`", "`[1,2]`", "'x'", '"a"', "*", "length(", "sort(", "to_string(", "join('',", "map(&", "max_by(", "sum(", "keys(", "merge(", " "]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25).map("".join), JSON)
def test_any_expression_gives_json_or_is_refused(text: str, value: Any) -> None:
    try:
        found = compile_expression(text).of(value)
    except InvalidPacket:
        return
    json.dumps(found, allow_nan=False)


@given(st.text(max_size=40), JSON)
def test_any_text_at_all(text: str, value: Any) -> None:
    try:
        compile_expression(text).of(value)
    except InvalidPacket:
        pass


@given(JSON, JSON)
def test_what_is_inserted_is_not_looked_into(value: Any, inserted: Any) -> None:
    """Whatever the data is, expanding gives it as it is where the reference stood."""
    assert expand({"x": {"$": "input"}, "y": [{"$lit": value}]}, {"input": inserted}) == {"x": inserted, "y": [value]}


def has_references(value: Any) -> bool:
    if isinstance(value, dict):
        return (len(value) == 1 and ("$" in value or "$lit" in value)) or any(map(has_references, value.values()))
    return isinstance(value, list) and any(map(has_references, value))


@given(JSON.filter(lambda value: not has_references(value)))
def test_what_holds_no_reference_stays_as_it_is(value: Any) -> None:
    assert expand(value, {}) == value


@pytest.mark.parametrize(
    ("value", "packet"),
    [
        ({"group": "df", "element": "x"}, True),
        ({"group": "df", "element": "x", "data": 1, "more": 2}, True),
        ({"group": "xx", "element": "x"}, False),
        ({"group": "df", "element": 5}, False),
        ({"group": ["df"], "element": "x"}, False),
        ({"group": "df"}, False),
        ([], False),
    ],
)
def test_a_nested_packet_is_known_by_group_and_element(value: Any, packet: bool) -> None:
    assert is_packet(value) is packet


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (0, True),
        (0.0, True),
        (True, True),
        ("0", True),
        ([0], True),
        ({"a": 0}, True),
        (False, False),
        (None, False),
        ("", False),
        ([], False),
        ({}, False),
    ],
)
def test_truth(value: Any, holds: bool) -> None:
    assert truth(value) is holds


@pytest.mark.parametrize(
    "text",
    [
        "|".join(["[@,@]"] * 30),
        "|".join(["[@,@][]"] * 30),
        "|".join(["[@,@,@,@,@,@,@,@,@,@]"] * 30),
        "|".join(["join('',[@,@])"] * 30),
        "to_string(" + "[@,@]|" * 28 + "@)",
        "[" + "[@,@]|" * 20 + "@] == [" + "[@,@]|" * 20 + "@]",
        "contains(" + "[@,@]|" * 20 + "[@], " + "[@,@]|" * 20 + "[@])",
        "map(&" + "[@,@]|" * 12 + "@, [" + ",".join(["@"] * 100) + "])",
        "sort_by([" + ",".join(["@"] * 300) + "], &to_string([" + ",".join(["@"] * 100) + "]))",
        "@[*]" * 100,
        "(" * 500 + "@" + ")" * 500,
        "!" * 1000 + "@",
        "@" + "||@" * 300,
    ],
    ids=lambda text: text[:24],
)
def test_bombs(text: str) -> None:
    """Each is refused, or gives something small; none takes the process with it."""
    try:
        found = compile_expression(text).of("x" * 100)
    except InvalidPacket:
        return
    assert len(json.dumps(found)) < 2_000_000


def test_an_expression_is_bounded_in_length() -> None:
    compile_expression("a" * 1024)
    with pytest.raises(InvalidPacket, match="1,024 bytes"):
        compile_expression("a" * 1025)
    with pytest.raises(InvalidPacket, match="1,024 bytes"):
        compile_expression('"' + "é" * 512 + '"')


RAW = st.dictionaries(st.sampled_from(["input", "prev", "item", "event"]), JSON, max_size=4)


@given(
    st.lists(PIECES, max_size=25).map("".join)
    | st.sampled_from(["input", "results.a", "results.*", "@.prev.a", "results.b[0]"]),
    RAW,
    st.dictionaries(st.sampled_from("ab"), JSON),
)
def test_a_context_of_json_gives_what_one_of_values_does(
    text: str, values: dict[str, Any], results: dict[str, Any]
) -> None:
    def raw(value: Any) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(value))

    view = View(
        {
            **{name: raw(value) for name, value in values.items()},
            "index": 3,
            "results": {name: raw(value) for name, value in results.items()},
        },
        Meter(),
    )
    try:
        expected = compile_expression(text).of({**values, "index": 3, "results": results})
    except InvalidPacket:
        with pytest.raises(InvalidPacket):
            view.plain(text)
        return
    assert view.plain(text) == expected
    assert view.holds(text) == truth(expected)


def cost(text: str, value: Any) -> int:
    """Steps that an expression takes of a value; all there are where it is refused."""
    meter = Meter()
    try:
        compile_expression(text).of(value, meter)
    except InvalidPacket:
        return MAX_STEPS
    return meter.spent


def test_long_integers_cost_what_converting_them_takes() -> None:
    meter = Meter()
    with pytest.raises(InvalidPacket, match="steps of evaluation"):
        View({"input": msgspec.Raw(b"[" + b",".join([b"9" * 4000] * 100) + b"]")}, meter).plain("input")


LIST = list(range(20_000))


@pytest.mark.parametrize(
    ("text", "value", "least"),
    [
        # what is copied, looked at or compared is counted by how much there is of it, shared or not
        ("map(&reverse(@), @)", [LIST] * 300, MAX_STEPS),
        ("map(&@[::1], @)", [LIST] * 300, MAX_STEPS),
        ("map(&sort(@), @)", [LIST] * 300, MAX_STEPS),
        ("map(&keys(@), @)", [dict.fromkeys(map(str, LIST), 1)] * 300, MAX_STEPS),
        ("map(&values(@), @)", [dict.fromkeys(map(str, LIST), 1)] * 300, MAX_STEPS),
        ("map(&merge(@, @), @)", [dict.fromkeys(map(str, LIST), 1)] * 300, MAX_STEPS),
        ("map(&(@ == @), @)", [LIST] * 300, MAX_STEPS),
        ("map(&contains(@, `-1`), @)", [LIST] * 300, MAX_STEPS),
        ("map(&sum(@), @)", [LIST] * 300, MAX_STEPS),
        ("map(&@[], @)", [[LIST] * 300], MAX_STEPS),
        ("[][]", [[LIST] * 300], MAX_STEPS),
        ("map(&reverse(@), @)", ["x" * 100_000] * 300, MAX_STEPS),
        ("map(&contains(@, 'yx'), @)", ["x" * 100_000] * 300, MAX_STEPS),
        ("map(&to_number(@), @)", ["9" * 4000] * 300, MAX_STEPS),
        ("sort(@)", ["x" * 500_000 + str(n) for n in range(30)], 30 * 400),
        ("sort_by(@, &@)", ["x" * 500_000 + str(n) for n in range(30)], 30 * 400),
        ("max_by(@, &@)", ["x" * 500_000 + str(n) for n in range(30)], 30 * 400),
        ("map(&to_string(@), @)", [LIST] * 300, MAX_STEPS),
        ("@", [{"x" * 500_000: 1}] * 300, MAX_STEPS),
        ("length(@)", LIST, 2 * len(LIST)),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_work_is_counted_by_what_there_is_to_do(text: str, value: Any, least: int) -> None:
    assert cost(text, value) >= least


@given(st.lists(PIECES, max_size=25).map("".join), JSON)
def test_no_visit_is_free(text: str, value: Any) -> None:
    try:
        expression = compile_expression(text)
    except InvalidPacket:
        return
    meter = Meter(3)
    with pytest.raises(InvalidPacket):
        expression.of(value, meter)


def test_a_comparison_evaluates_its_sides_once() -> None:
    text = "@"
    for _ in range(12):
        text = f"({text} == @)"
    assert cost(text, 1) < 1000


def test_what_was_compiled_is_kept_within_a_bound() -> None:
    for n in range(2000):
        compile_expression("a" * 100 + str(n))
    assert sum(map(len, expressions._compiled)) == expressions._compiled_size <= expressions.MAX_COMPILED
    with pytest.raises(InvalidPacket, match="steps"):
        compile_expression("b" * 1000, Meter(100))


def test_decoding_counts_before_it_is_done() -> None:
    value = msgspec.Raw(b"[" + b"[]," * 200_000 + b"1]")
    with pytest.raises(InvalidPacket, match="steps"):
        View({"input": value}, Meter()).of("input[0]")
    # a name alone inserts what is there, not decoded
    assert View({"input": value}, Meter(3000)).of("input") is value


def test_expressions_are_remembered_in_one_place_only() -> None:
    for n in range(20):
        compile_expression(f"a.b{n}")
    assert len(Parser._CACHE) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("to_string('x')", None, "x"),
        ("to_string(@)", {"a": 1}, '{"a":1}'),
        ("to_number(@)", 5, 5),
        ("to_number(@)", "5", 5),
        ("contains(@, 'x')", ["x", 1], True),
        ("contains(@, `1`)", ["x", 1], True),
        ("contains(@, `[1]`)", [[1]], True),
        ("contains('abc', 'b')", None, True),
        ("min_by(@, &a).a", [{"a": 2}, {"a": 1}], 1),
        ("max_by(@, &a).a", [{"a": 2}, {"a": 1}], 2),
        ("'a' == 'a'", None, True),
        ("`[1]` < `[2]`", None, None),
        ("@[]", 5, None),
        ("@[]", [1, [2, [3]]], [1, 2, [3]]),
        ("max(@)", [], None),
        ("@[0:1]", 5, None),
        ("@[0:1]", [1, 2], [1]),
    ],
)
def test_functions_and_operators_give_what_they_say(text: str, value: Any, expected: Any) -> None:
    assert compile_expression(text).of(value) == expected


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("sort('x')", None, "sort"),
        ("sort()", None, "sort"),
        ("join('', @)", ["x" * 600_000] * 2, "more than 1,048,576 characters"),
        ("[@]", "x" * 1_048_577, "more than 1,048,576 characters"),
        ("@", json.loads("[" * 70 + "]" * 70), "nested deeper than 60"),
    ],
)
def test_what_cannot_be_evaluated_says_why(text: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidPacket, match=reason):
        compile_expression(text).of(value)


def test_a_name_that_is_not_there_is_null() -> None:
    assert View({"input": msgspec.Raw(b"5")}, Meter()).plain("nothing || input") == 5


def test_work_on_data_is_paid_for_before_it_is_done() -> None:
    view = View({}, Meter(10, "there is no time left"))
    view.pay(10)
    with pytest.raises(InvalidPacket, match="data: there is no time left"):
        view.pay(1)


def test_references_insert_so_much_in_all() -> None:
    large = msgspec.Raw(b'"%s"' % (b"x" * (expressions.MAX_NODES * 40)))
    assert expand({"a": {"$": "input"}}, {"input": large}) == {"a": large}
    with pytest.raises(InvalidPacket, match="they insert more than 100,000 nodes in all"):
        expand({"a": {"$": "input"}, "b": {"$": "input"}}, {"input": large})


def test_what_another_compiles_meanwhile_is_not_compiled_twice() -> None:
    text = "a.b.c.d || 'compiled while its meter let others work'"
    meter, found = Meter(), []
    meter.cut(lambda: found.append(compile_expression(text)))
    assert compile_expression(text, meter) is found[0]
