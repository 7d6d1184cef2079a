"""Expressions and references: what they give, and that nothing they are given does harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packetflow.elements.expressions import compile_expression, expand, is_packet, truth
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
