"""The scanner accepts what msgspec accepts, byte for byte, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pfcore.wire.scan import array_length, digits_work, separators, validate

VALID = [
    b"null", b"true", b"false", b"0", b"-0", b"-0.0", b"1", b"-1", b"10", b"1.5", b"1e5", b"1E+5", b"1e-5", b"0e0",
    b"0.0e999999999999", b"1e-999999999999999999999", b"1e308", b"1.7976931348623158e308", b"10e307",
    b"9" * 308 + b".0", b"9" * 309 + b"e-5", b"18446744073709551616", b"9" * 4300, b"-" + b"9" * 4299,
    b'""', b'"a"', b'"\\""', b'"\\\\"', b'"\\/"', b'"\\b\\f\\n\\r\\t"', b'"\\u0000"', b'"\\u00e9"', b'"\\uD83D\\uDE00"',
    '"é€😀"'.encode(), b'"\x7f"', b"[]", b"[ ]", b"[1]", b"[1,2]", b"[[],[]]", b"{}", b"{ }", b'{"a":1}',
    b'{"a":{"b":[null]}}', b'{"":0}', b'{"a":1,"a":2}', b" 1 ", b"\t\r\n 1 \t\r\n", b'[ 1 , "a" , { "b" : 2 } ]',
    b'"' + b"x" * 100 + b'"', b'"' + b"x" * 15 + b'\\n"', b'"' + b"x" * 16 + b'\\n"', b'"' + "é".encode() * 40 + b'"',
    b'"\xf4\x8f\xbf\xbf"', b'"\xed\x9f\xbf\xee\x80\x80"',
]  # fmt: skip
INVALID = [
    b"", b" ", b"nul", b"nulll", b"True", b"NaN", b"Infinity", b"-Infinity", b"nan", b"01", b"-01", b"+1", b"1.", b".5",
    b"-", b"1e", b"1e+", b"1.e5", b"0x10", b"1_000", b"1e400", b"-1e400", b"1.7976931348623159e308", b"9" * 309 + b".0",
    b"9" * 4301, b"-" + b"9" * 4300, b'"', b'"a', b'"\\', b'"\\"', b'"\\x"', b'"\\u"', b'"\\u12"', b'"\\u123g"', b'"\\U0041"', b'"\n"',
    b'"\x00"', b'"\x1f"', b"'a'", b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\ud83d\\ud83d"', b'"\\ud800x"',
    b'"\xff"', b'"\x80"', b'"\xc0\x80"', b'"\xc1\xbf"', b'"\xe0\x80\x80"', b'"\xed\xa0\x80"', b'"\xf0\x80\x80\x80"',
    b'"\xf4\x90\x80\x80"', b'"\xf5\x80\x80\x80"', b'"\xe2\x82"', b'"\xc3', b"[", b"]", b"[1", b"[1,", b"[1,]", b"[,]",
    b"[1 2]", b"[1]]", b"{", b"}", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{,}', b"{1:2}", b"{a:1}",
    b'{"a" 1}', b'{"a":1 "b":2}', b'{"\xff":1}', b"1 2", b"1,", b"\xef\xbb\xbf1", b"\x0b1", b"\x0c1", b"\xa01",
    b"1\x00", b"\x00", b"// c\n1", b"/**/1", b"[1}", b'{"a":1]',
]  # fmt: skip


def accepted_by_msgspec(document: bytes) -> bool:
    try:
        msgspec.json.decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


@pytest.mark.parametrize("document", VALID)
def test_accepts_every_valid_document(document: bytes) -> None:
    assert validate(document) is None
    assert accepted_by_msgspec(document)


@pytest.mark.parametrize("document", INVALID)
def test_refuses_every_invalid_document_with_place_and_expectation(document: bytes) -> None:
    problem = validate(document)
    assert problem is not None
    offset, expected = problem
    assert 0 <= offset <= len(document)
    assert expected
    assert not accepted_by_msgspec(document)


@pytest.mark.parametrize("document", [d for d in VALID if len(d) < 200])
def test_agrees_with_msgspec_on_every_truncation(document: bytes) -> None:
    for end in range(len(document)):
        assert (validate(document[:end]) is None) == accepted_by_msgspec(document[:end]), document[:end]


@pytest.mark.parametrize("document", [d for d in VALID if len(d) < 60])
def test_agrees_with_msgspec_on_every_changed_byte(document: bytes) -> None:
    for at in range(len(document)):
        for byte in b'\x00\t "\\/,:[]{}+-.0159eEaunx\x7f\x80\xc3\xe2\xf0\xff':
            changed = document[:at] + bytes([byte]) + document[at + 1 :]
            assert (validate(changed) is None) == accepted_by_msgspec(changed), changed


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=25,
)


@given(json_values, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_accepts_what_the_standard_library_writes(value: object, indent: object, ascii_only: bool) -> None:
    try:
        document = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()  # type: ignore[arg-type]
    except UnicodeEncodeError:
        return
    assert (validate(document) is None) == accepted_by_msgspec(document)


@given(st.binary(max_size=40))
@example(b'"\\ud800\\udc00')
def test_agrees_with_msgspec_on_arbitrary_bytes(document: bytes) -> None:
    assert (validate(document) is None) == accepted_by_msgspec(document)


ATOMS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"u",
    b"d800",
    b"dc00",
    b"0",
    b"1",
    b"-",
    b".",
    b"e",
    b"9" * 20,
    b"null",
    b"true",
    b" ",
    b"\n",
    b"\xc3\xa9",
    b"\xe2",
    b"\x82\xac",
    b"\xf0\x9f\x98\x80",
    b"a" * 17,
    b"\x01",
]


@given(st.lists(st.sampled_from(ATOMS), max_size=14).map(b"".join))
def test_agrees_with_msgspec_on_token_soup(document: bytes) -> None:
    assert (validate(document) is None) == accepted_by_msgspec(document)


def test_nesting_is_bounded_where_the_caller_says() -> None:
    assert validate(b"[" * 64 + b"]" * 64, max_depth=64) is None
    assert validate(b"[" * 65 + b"]" * 65, max_depth=64) == (64, "no deeper nesting")
    assert validate(b'{"a":' * 3 + b"1" + b"}" * 3, max_depth=3) is None
    assert validate(b'{"a":' * 4 + b"1" + b"}" * 4, max_depth=3) == (15, "no deeper nesting")
    assert validate(b"1", max_depth=0) is None
    # closing a container gives its level back
    assert validate(b"[" + b"[]," * 1000 + b"[]]", max_depth=2) is None


def test_deep_nesting_of_a_megabyte_ends_at_the_bound() -> None:
    assert validate(b"[" * 1_000_000, max_depth=512) == (512, "no deeper nesting")


@pytest.mark.parametrize("depth", [-1, 513])
def test_bad_depth_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="max_depth: expected 0 to 512"):
        validate(b"1", max_depth=depth)


LONG = b"9" * 4000


def test_long_integers_are_bounded_by_what_converting_them_takes() -> None:
    """An integer takes time with the square of its digits; short ones, texts and fractions count for nothing."""
    assert validate(b"[" + b",".join([LONG] * 12) + b"]") is None
    offset, expected = validate(b"[" + b",".join([LONG] * 13) + b"]") or (0, "")
    assert offset == 1 + 12 * 4001
    assert "fewer long integers" in expected
    assert validate(b"[" + b",".join([b"9" * 64] * 100_000) + b"]") is None
    assert validate(b'["' + b",".join([LONG] * 13) + b'"]') is None
    assert validate(b"[" + b",".join([b"0." + LONG] * 13) + b"]") is None


@pytest.mark.parametrize(
    ("text", "work"),
    [
        (b"[1,2," + b"1" * 64 + b"]", 0),
        (b"[" + b"1" * 65 + b",-" + b"1" * 100 + b"]", 65**2 + 100**2),
        (b'{"a":"' + b"1" * 100 + b'\\"' + b"1" * 100 + b'"}', 0),
        ('["é'.encode() + b"1" * 100 + b'\\"' + b"1" * 100 + b'",' + b"1" * 70 + b"]", 70**2),
        (b'"' + b"1" * 100, 0),
        (b'"\\', 0),
        (b"", 0),
    ],
)
def test_the_work_of_converting_integers(text: bytes, work: int) -> None:
    assert digits_work(text) == work


@given(st.integers(0, 130), st.integers(60, 140), st.integers(0, 70))
def test_long_integers_are_found_wherever_they_begin(before: int, digits: int, after: int) -> None:
    text = b"[" * before + b"1" * digits + b"]" * after
    assert digits_work(text) == (digits**2 if digits > 64 else 0)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_separators_are_counted(some: bytes, times: int) -> None:
    text = some * times
    assert separators(text) == sum(text.count(one) for one in (b",", b"[", b"{"))


NESTED = st.recursive(
    st.none() | st.integers(0, 9) | st.sampled_from(["", ",", "[", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab,"), inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(NESTED, max_size=6))
def test_the_items_of_an_array_are_counted(items: list[Any]) -> None:
    for text in (json.dumps(items), json.dumps(items, indent=1), " " + json.dumps(items) + "\n"):
        assert array_length(text.encode(), len(items)) == array_length(text.encode(), 10_000) == len(items)
        if items:
            assert array_length(text.encode(), len(items) - 1) == len(items)


@pytest.mark.parametrize("text", [b"", b" ", b"{}", b'{"a":[1,2]}', b'"[1,2]"', b"12", b"null", b"[]", b"[ ]", b"["])
def test_what_is_no_array_has_no_items(text: bytes) -> None:
    assert array_length(text, 10) == 0
