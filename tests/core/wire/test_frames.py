"""The codec reads and writes all four messages, and refuses what the protocol does not allow."""

from __future__ import annotations

import dataclasses
import datetime
import json
import string
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfcore.errors import InvalidPacket
from pfcore.wire.frames import MAX_SEQ, decode_message, encode_message
from pfcore.wire.packets import Message, Packet, Result

ID = "550e8400-e29b-41d4-a716-446655440000"
MINIMAL = {"version": "1.0", "id": ID, "group": "df", "element": "tr", "data": "any-json-value", "priority": 5}
EXTENDED = {**MINIMAL, "timeout_ms": 30000, "dependencies": ["packet-id-1"], "metadata": {"custom": "fields"}}
SUBMIT = {"type": "submit", "seq": 12345, "payload": MINIMAL}
RESULT = {"type": "result", "seq": 7,
          "payload": {"packet_id": ID, "status": "success", "data": [1], "duration_ms": 3}}  # fmt: skip


def read(message: Any) -> Message:
    """Decodes with and without the prediction of the layout; they must agree."""
    frame = message if isinstance(message, (bytes, bytearray, memoryview)) else json.dumps(message).encode()
    outcomes = []
    for predict in (True, False):
        try:
            outcomes.append(decode_message(frame, predict=predict))
        except InvalidPacket as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    if isinstance(outcomes[0], str):
        return decode_message(frame)
    return outcomes[0]


def compact(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def change(message: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(message))
    *parents, last = path.split(".")
    target = changed
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return changed


# -- reading


def test_the_specifications_minimal_packet() -> None:
    message = read(SUBMIT)
    packet = message.payload
    assert (message.type, message.seq) == ("submit", 12345)
    assert isinstance(packet, Packet)
    assert (packet.version, packet.id, packet.group, packet.element) == ("1.0", ID, "df", "tr")
    assert (packet.data, packet.priority, packet.timeout_ms) == ("any-json-value", 5, None)
    assert (packet.dependencies, packet.metadata) == ((), None)


def test_the_specifications_extended_packet() -> None:
    packet = read(change(SUBMIT, "payload", EXTENDED)).payload
    assert (packet.timeout_ms, packet.dependencies, packet.metadata) == (30000, ("packet-id-1",), {"custom": "fields"})


def test_a_reference_reactors_result() -> None:
    message = read(change(RESULT, "seq", 0))
    result = message.payload
    assert message.seq == 0
    assert isinstance(result, Result)
    assert (result.packet_id, result.status, result.ok, result.data) == (ID, "success", True, [1])
    assert (result.error, result.duration_ms) == (None, 3)


def test_an_elixir_result_with_nulls_and_alphabetical_keys() -> None:
    frame = (b'{"payload":{"data":null,"duration_ms":2,"error":{"code":"PF500","message":"boom"},"packet_id":"x",'
             b'"status":"error"},"seq":0,"type":"result"}')  # fmt: skip
    result = read(frame).payload
    assert (result.packet_id, result.status, result.error) == ("x", "error", {"code": "PF500", "message": "boom"})
    submit = (b'{"payload":{"data":"hi","dependencies":null,"element":"tr","group":"df","id":"x","metadata":null,'
              b'"priority":5,"timeout_ms":null,"version":"1.0"},"seq":1,"type":"submit"}')  # fmt: skip
    packet = read(submit).payload
    assert (packet.data, packet.dependencies, packet.metadata, packet.timeout_ms) == ("hi", (), None, None)


def test_errors_and_heartbeats_are_dicts_with_whatever_they_hold() -> None:
    assert read({"type": "error", "seq": 3, "payload": {"code": "PF400", "message": "no", "x": [1]}}) == Message(
        "error", 3, {"code": "PF400", "message": "no", "x": [1]}
    )
    heartbeat = {"timestamp": 1_700_000_000_000, "reactor": "r", "capabilities": ["df:x"], "window": 9, "load": 0.5,
                 "ext": ["cancel"], "instance": "secret", "more": None}  # fmt: skip
    assert read({"type": "heartbeat", "seq": 1, "payload": heartbeat}).payload == heartbeat
    assert read({"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1}}).payload == {"timestamp": 1}


@given(st.permutations(list(EXTENDED)), st.permutations(["type", "seq", "payload"]), st.booleans())
def test_any_order_of_keys_and_any_white_space(fields: list[str], keys: list[str], spread: bool) -> None:
    frame = {"type": "submit", "seq": 5, "payload": {name: EXTENDED[name] for name in fields}}
    text = json.dumps({key: frame[key] for key in keys}, indent=3 if spread else None)
    assert read(text.encode()).payload == read({"type": "submit", "seq": 5, "payload": EXTENDED}).payload


def test_a_packet_that_came_knows_how_long_its_data_was() -> None:
    for data in ("any-json-value", [1, {"a": None}], None, 7):
        message = {"type": "submit", "seq": 1, "payload": {**MINIMAL, "data": data}}
        assert read(message).payload.size == len(json.dumps(data)) - 2 * isinstance(data, str)
    absent = {key: value for key, value in MINIMAL.items() if key != "data"}
    assert read({"type": "submit", "seq": 1, "payload": absent}).payload.size == 0
    assert Packet("df", "x", [1, 2, 3]).size == 0


def test_unknown_keys_are_ignored() -> None:
    changed = change(change(SUBMIT, "extra", {"a": [1]}), "payload.another", "x")
    assert read(changed) == read(SUBMIT)
    many = change(SUBMIT, "payload", {**MINIMAL, **{f"key{n}": n for n in range(100)}})
    assert read(many) == read(SUBMIT)


def test_escaped_keys_and_values_are_what_they_spell() -> None:
    frame = (r'{"\u0074ype":"s\u0075bmit","seq":1,"payload":{"version":"1\u002e0","\u0069d":"\u0061\"\n\ud83d\ude00",'
             r'"group":"d\u0066","element":"tr\u0061","data":"\t","priority":5}}')  # fmt: skip
    packet = read(frame.encode()).payload
    assert (packet.id, packet.group, packet.element, packet.data) == ('a"\n😀', "df", "tra", "\t")


@pytest.mark.parametrize("priority", ["7.0", "7e0", "70e-1", "0.7e1", "7.000000000000000000000000000000"])
def test_seven_is_seven_however_it_is_written(priority: str) -> None:
    frame = compact(SUBMIT).replace(b'"priority":5', f'"priority":{priority}'.encode())
    assert read(frame).payload.priority == 7


@pytest.mark.parametrize("field", ["priority", "timeout_ms", "dependencies", "metadata", "data"])
def test_null_is_the_same_as_absent(field: str) -> None:
    assert (
        read(change(SUBMIT, f"payload.{field}", None)).payload
        == read(change(change(SUBMIT, f"payload.{field}", None), f"payload.{field}", ...)).payload
    )


def test_an_absent_priority_is_five_and_absent_data_null() -> None:
    bare = {"type": "submit", "seq": 1, "payload": {"version": "1.0", "id": "x", "group": "cf", "element": "seq"}}
    packet = read(bare).payload
    assert (packet.priority, packet.data) == (5, None)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.23"])
def test_every_1_x_version_is_accepted(version: str) -> None:
    assert read(change(SUBMIT, "payload.version", version)).payload.version == version


@pytest.mark.parametrize(
    "number",
    [
        0,
        1,
        -1,
        2**53,
        2**53 + 1,
        2**63 - 1,
        -(2**63),
        2**64,
        10**15,
        10**40,
        1e-300,
        0.1,
        1.7976931348623157e308,
        5e-324,
        -0.0,
        123456789012345678,
        -999999999999999999,
    ],
)
def test_numbers_survive(number: float) -> None:
    data = read(change(SUBMIT, "payload.data", number)).payload.data
    assert data == number
    assert type(data) is type(number)


def test_a_negative_duration_is_clamped_and_a_fractional_one_kept() -> None:
    assert read(change(RESULT, "payload.duration_ms", -5)).payload.duration_ms == 0
    assert read(change(RESULT, "payload.duration_ms", 1.5)).payload.duration_ms == 1.5
    assert read(change(RESULT, "payload.duration_ms", ...)).payload.duration_ms == 0
    assert read(change(RESULT, "payload.duration_ms", 10**400)).payload.duration_ms >= 0


# -- refusing

WRONG: list[Any] = [None, True, False, 0, -1, 1.5, "", "x", [], {}, [1], {"a": 1}, 11, 10**20, "1", 1e300]
RIGHT: dict[str, list[Any]] = {
    "type": [],
    "seq": [0, 11, 1e300],
    "payload": [],
    "payload.version": [],
    "payload.id": ["x", "1"],
    "payload.group": [],
    "payload.element": ["x", "1"],
    "payload.data": WRONG,
    "payload.priority": [None],
    "payload.timeout_ms": [None, 11],
    "payload.dependencies": [None, []],
    "payload.metadata": [None, {}, {"a": 1}],
}


@pytest.mark.parametrize("field", RIGHT)
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_every_wrong_type_in_every_field_of_a_submit(field: str, value: Any) -> None:
    frame = change(SUBMIT, field, value)
    accepted = any(value == right and type(value) is type(right) for right in RIGHT[field])
    if field == "seq" and (value == 0 or value == 1e300):
        accepted = False
    if accepted:
        read(frame)
        return
    with pytest.raises(InvalidPacket) as caught:
        read(frame)
    error = caught.value
    assert error.code in ("PF400", "PF426")
    assert error.where == ("payload.id" if field == "payload" and isinstance(value, dict) else field)
    assert error.expected
    assert error.expected in str(error)


@pytest.mark.parametrize(
    "field", ["type", "seq", "payload", "payload.version", "payload.id", "payload.group", "payload.element"]
)
def test_every_missing_field_of_a_submit(field: str) -> None:
    with pytest.raises(InvalidPacket) as caught:
        read(change(SUBMIT, field, ...))
    assert caught.value.where == field


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("payload.version", "2.0"), ("payload.version", "1"), ("payload.version", "1."), ("payload.version", "1.x"),
        ("payload.version", "1.0 "), ("payload.version", "01.0"), ("payload.version", "1.0" * 20),
    ],
)  # fmt: skip
def test_other_versions_are_pf426(path: str, value: str) -> None:
    with pytest.raises(InvalidPacket) as caught:
        read(change(SUBMIT, path, value))
    assert caught.value.code == "PF426"
    assert caught.value.packet_id == ID


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("payload.id", "x" * 129), ("payload.id", "é" * 65), ("payload.group", "DF"), ("payload.group", "dfx"),
        ("payload.group", "xx"), ("payload.element", "x" * 65), ("payload.element", "a b"), ("payload.element", "é"),
        ("payload.element", "a:b"), ("payload.priority", 0), ("payload.priority", 10.5), ("payload.priority", "5"),
        ("payload.timeout_ms", 0), ("payload.timeout_ms", 300_001), ("payload.timeout_ms", 1.5),
        ("payload.dependencies", ["x"] * 65), ("payload.dependencies", [""]), ("payload.dependencies", [1]),
        ("payload.dependencies", ["x" * 129]), ("seq", 2**53), ("seq", -1), ("type", "SUBMIT"), ("type", "x" * 50),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_values_out_of_range(path: str, value: Any) -> None:
    with pytest.raises(InvalidPacket) as caught:
        read(change(SUBMIT, path, value))
    assert (caught.value.code, caught.value.where) == ("PF400", path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("payload.id", "x" * 128), ("payload.id", "é" * 64), ("payload.element", "x" * 64),
        ("payload.element", string.ascii_letters[:50] + "0_.-"), ("payload.priority", 1), ("payload.priority", 10),
        ("payload.timeout_ms", 1), ("payload.timeout_ms", 300_000), ("payload.dependencies", ["x" * 128] * 64),
        ("seq", 1), ("seq", 2**53 - 1),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_values_at_the_edge_of_their_range(path: str, value: Any) -> None:
    read(change(SUBMIT, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("payload.packet_id", ...), ("payload.packet_id", ""), ("payload.packet_id", 5), ("payload.status", ...),
        ("payload.status", "done"), ("payload.status", None), ("payload.error", "boom"), ("payload.duration_ms", "3"),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_results(path: str, value: Any) -> None:
    with pytest.raises(InvalidPacket) as caught:
        read(change(RESULT, path, value))
    assert caught.value.where == path


@pytest.mark.parametrize(
    "payload",
    [{"timestamp": "now"}, {"reactor": ""}, {"reactor": 5}, {"capabilities": "df:x"}, {"capabilities": [1]},
     {"window": 0}, {"window": "1"}, {"load": "high"}, {"ext": ["cancel", 1]}, {"ext": {}},
     {"reactor": "r" * 129}, {"reactor": "two\nlines"}, {"reactor": "\x00"}, {"reactor": "\x7f"}, {"reactor": "a\x9bb"},
     {"instance": ""}, {"instance": 5}, {"instance": "i" * 65}, {"instance": "\t"}, {"instance": ["i"]}],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("ascii_only", [True, False])
def test_bad_heartbeats(payload: dict[str, Any], ascii_only: bool) -> None:
    with pytest.raises(InvalidPacket) as caught:
        read(json.dumps({"type": "heartbeat", "seq": 1, "payload": payload}, ensure_ascii=ascii_only).encode())
    assert caught.value.where == f"payload.{next(iter(payload))}"


def test_names_and_instances_are_measured_unescaped() -> None:
    longest = {"reactor": "é" * 64, "instance": "é" * 32}
    for ascii_only in (True, False):
        frame = json.dumps({"type": "heartbeat", "seq": 1, "payload": longest}, ensure_ascii=ascii_only).encode()
        assert read(frame).payload == longest


def test_a_secret_that_is_not_valid_is_not_shown_either() -> None:
    with pytest.raises(InvalidPacket) as caught:
        read({"type": "heartbeat", "seq": 1, "payload": {"instance": "swordfish" * 10}})
    assert "swordfish" not in str(caught.value)


def test_what_a_heartbeat_lists_is_bounded_and_the_refusal_names_the_bound() -> None:
    def beat(**payload: Any) -> dict[str, Any]:
        return {"type": "heartbeat", "seq": 1, "payload": payload}

    most = [f"df:e{n}" for n in range(1024)]
    assert read(beat(capabilities=most, ext=["x" * 64] * 64)).payload["capabilities"] == most
    with pytest.raises(InvalidPacket, match="at most 1024"):
        read(beat(capabilities=[*most, "df:more"]))
    with pytest.raises(InvalidPacket, match="at most 64"):
        read(beat(ext=["x"] * 65))
    with pytest.raises(InvalidPacket, match="1 to 64 bytes"):
        read(beat(ext=["x" * 65]))


@pytest.mark.parametrize("payload", [{"code": 5}, {"message": []}, {"packet_id": 1}], ids=repr)
def test_bad_errors(payload: dict[str, Any]) -> None:
    with pytest.raises(InvalidPacket):
        read({"type": "error", "seq": 1, "payload": payload})


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"submit","type":"submit","seq":1,"payload":{}}',
        b'{"type":"heartbeat","seq":1,"seq":1,"payload":{}}',
        b'{"type":"heartbeat","seq":1,"payload":{},"payload":{}}',
        b'{"type":"heartbeat","seq":1,"payload":{},"x":1,"x":2}',
        b'{"type":"heartbeat","seq":1,"payload":{"timestamp":1,"timestamp":1}}',
        b'{"type":"heartbeat","seq":1,"payload":{"x":1,"x":1}}',
        rb'{"type":"heartbeat","seq":1,"payload":{"x":1,"\u0078":1}}',
        rb'{"type":"heartbeat","seq":1,"payload":{"timestamp":1,"time\u0073tamp":1}}',
        rb'{"type":"heartbeat","\u0074ype":"submit","seq":1,"payload":{}}',
    ],
)  # fmt: skip
def test_a_key_twice_is_refused_however_it_is_spelled(frame: bytes) -> None:
    with pytest.raises(InvalidPacket, match="every key once"):
        read(frame)


def test_inside_data_keys_may_repeat() -> None:
    frame = compact(SUBMIT).replace(b'"any-json-value"', b'{"a":1,"a":2}')
    assert read(frame).payload.data == {"a": 2}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"1",
        b'"submit"',
        b"null",
        b"{",
        compact(SUBMIT) + b" x",
        b"\xef\xbb\xbf" + compact(SUBMIT),
        compact(SUBMIT)[:-1] + b",}",
    ],
)
def test_what_is_no_frame_at_all(frame: bytes) -> None:
    with pytest.raises(InvalidPacket):
        read(frame)


@pytest.mark.parametrize(
    "frame",
    [SUBMIT, change(SUBMIT, "payload", EXTENDED), RESULT, {"type": "heartbeat", "seq": 1, "payload": {"timestamp": 1}}],
)
def test_every_truncation_of_a_valid_frame(frame: dict[str, Any]) -> None:
    whole = compact(frame)
    for end in range(len(whole)):
        with pytest.raises(InvalidPacket):
            read(whole[:end])
    read(bytearray(whole))
    read(memoryview(whole))


def test_nesting_counts_the_frame_and_its_payload() -> None:
    def nested(levels: int) -> bytes:
        return compact(SUBMIT).replace(b'"any-json-value"', b"[" * levels + b"]" * levels)

    read(nested(62))
    with pytest.raises(InvalidPacket, match="no deeper nesting"):
        read(nested(63))
    decode_message(nested(200), max_depth=202)


def test_an_error_quotes_what_it_found_but_not_all_of_it() -> None:
    with pytest.raises(InvalidPacket, match=r'found "x{40}"\.\.\.'):
        read(change(SUBMIT, "payload.group", "x" * 10_000))
    with pytest.raises(InvalidPacket, match=r"payload\.priority: expected an integer from 1 to 10, found 11$"):
        read(change(SUBMIT, "payload.priority", 11))
    with pytest.raises(InvalidPacket, match="found the end of the frame"):
        read(compact(SUBMIT)[:40])


@given(st.binary(max_size=60), st.integers(0, 170))
def test_no_damage_to_a_frame_does_more_than_raise_invalid_packet(damage: bytes, at: int) -> None:
    whole = compact(SUBMIT)
    for frame in (whole[:at] + damage + whole[at:], whole[:at] + damage + whole[at + len(damage) :]):
        try:
            read(frame)
        except InvalidPacket:
            pass


@given(st.sampled_from([compact(SUBMIT), compact(RESULT)]), st.integers(0, 180), st.integers(0, 255))
def test_prediction_never_changes_the_outcome(frame: bytes, at: int, byte: int) -> None:
    changed = frame[:at] + bytes([byte]) + frame[at + 1 :]
    try:
        read(changed)
    except InvalidPacket:
        pass


# -- writing

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(
    json_values,
    st.integers(1, MAX_SEQ),
    st.sampled_from(["cf", "df", "ed", "co", "mc", "rm"]),
    st.integers(1, 10),
    st.none() | st.integers(1, 300_000),
    st.none() | st.dictionaries(st.text(max_size=3, alphabet='ab"\\é\n'), st.integers()),
)
def test_submits_go_round(
    data: Any, seq: int, group: str, priority: int, timeout: int | None, metadata: dict[str, int] | None
) -> None:
    packet = Packet(group, "a.b-c_D", data, priority=priority, timeout_ms=timeout, metadata=metadata)
    frame = encode_message("submit", seq, packet)
    assert decode_message(frame) == Message("submit", seq, packet)
    plain = json.loads(frame)
    assert plain["payload"]["data"] == data
    assert msgspec.json.decode(frame)["payload"]["data"] == data
    assert list(plain) == ["type", "seq", "payload"]


@given(json_values, st.integers(0, MAX_SEQ), st.integers(0, 10**9))
def test_results_go_round(data: Any, seq: int, duration: int) -> None:
    result = Result(str(uuid.uuid4()), "success", data, None, duration)
    frame = encode_message("result", seq, result)
    assert decode_message(frame) == Message("result", seq, result)
    assert json.loads(frame)["payload"]["data"] == data


def test_mappings_are_as_good_as_objects() -> None:
    packet = {"group": "df", "element": "x", "data": 1, "id": "i"}
    assert encode_message("submit", 1, packet) == encode_message("submit", 1, Packet("df", "x", 1, id="i"))
    failed = {"packet_id": "i", "status": "error", "error": {"code": "PF500", "message": "boom"}}
    assert decode_message(encode_message("result", 0, failed)).payload.error == failed["error"]


def test_newer_versions_keep_theirs() -> None:
    packet = Packet("df", "x", version="1.7", metadata={"a": 1}, dependencies=["d"], timeout_ms=5)
    assert decode_message(encode_message("submit", 1, packet)).payload == packet


def test_fresh_packets_have_ids_of_their_own() -> None:
    ids = {Packet("df", "x").id for _ in range(2000)}
    assert len(ids) == 2000
    assert all(uuid.UUID(one).version == 4 for one in ids)


@dataclasses.dataclass
class Point:
    x: float
    y: object = None


class Struct(msgspec.Struct):
    x: object


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(1.5), {"x": 1.5, "y": None}), (Struct([None]), {"x": [None]}), ((1, 2), [1, 2]), ({3: 4}, {"3": 4}),
        (datetime.date(2026, 11, 23), "2026-11-23"), (uuid.UUID(ID), ID), (b"abc", "YWJj"),
        (msgspec.Raw(b' {"a": [1]} '), {"a": [1]}), ("\x00\x1f\"\\/\x7f\u2028é😀", "\x00\x1f\"\\/\x7f\u2028é😀"),
    ],
    ids=repr,
)  # fmt: skip
def test_values_that_msgspec_understands(value: Any, expected: Any) -> None:
    assert decode_message(encode_message("submit", 1, Packet("df", "x", value))).payload.data == expected


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [NAN, INFINITY, [NAN], {"a": (1, {"b": -INFINITY})}, Point(NAN), [Point(1.0, [NAN])], Struct(NAN), [None, NAN],
     "\ud800", ["\udfff"], {"\ud800": 1}, object(), {1, object()}, msgspec.Raw(b"{bad"), msgspec.Raw(b"1 2"),
     msgspec.Raw(b"[" * 70 + b"]" * 70), 10**5000],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else "huge",
)  # fmt: skip
def test_values_that_json_cannot_hold_are_refused(value: Any) -> None:
    with pytest.raises(InvalidPacket) as caught:
        encode_message("submit", 1, Packet("df", "x", value))
    assert caught.value.code == "PF400"
    assert caught.value.where == "data"
    # and nothing half-written is left behind
    assert decode_message(encode_message("submit", 1, Packet("df", "x", 1))).payload.data == 1


def test_what_the_receiver_would_refuse_for_depth_is_not_written() -> None:
    value: Any = 1
    for _ in range(62):
        value = [value]
    decode_message(encode_message("submit", 1, Packet("df", "x", value)))
    with pytest.raises(InvalidPacket, match="no deeper nesting"):
        encode_message("submit", 1, Packet("df", "x", [value]))
    # brackets inside strings are no nesting
    decode_message(encode_message("submit", 1, Packet("df", "x", ["[{" * 500])))


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("xx", "y"), "group"), ((None, "y"), "group"), (("df", ""), "element"), (("df", "a b"), "element"),
        (("df", None), "element"), (("df", "x" * 65), "element"), (("df", "é"), "element"),
    ],
)  # fmt: skip
def test_packets_with_a_bad_address(arguments: tuple[Any, ...], where: str) -> None:
    with pytest.raises(InvalidPacket) as caught:
        Packet(*arguments)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"priority": 0}, "priority"), ({"priority": 11}, "priority"), ({"priority": "5"}, "priority"),
        ({"priority": True}, "priority"), ({"priority": 10**30}, "priority"), ({"priority": 5.5}, "priority"),
        ({"timeout_ms": 0}, "timeout_ms"), ({"timeout_ms": 300_001}, "timeout_ms"), ({"timeout_ms": "1"}, "timeout_ms"),
        ({"timeout_ms": 1.0}, "timeout_ms"), ({"dependencies": "abc"}, "dependencies"),
        ({"dependencies": ["x"] * 65}, "dependencies"), ({"dependencies": [5]}, "dependencies"),
        ({"metadata": []}, "metadata"), ({"id": ""}, "id"), ({"id": 5}, "id"), ({"id": "x" * 129}, "id"),
        ({"id": "\ud800"}, "id"), ({"version": "2.0"}, "version"), ({"version": 1}, "version"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_packets_with_a_bad_field(options: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidPacket) as caught:
        Packet("df", "x", **options)
    assert caught.value.where == where
    with pytest.raises(InvalidPacket):
        encode_message("submit", 1, {"group": "df", "element": "x", **options})


@pytest.mark.parametrize(
    ("type_", "seq", "payload"),
    [
        ("submit", 0, {"group": "df", "element": "x"}), ("submit", -1, {}), ("result", 2**53, {}), ("result", "1", {}),
        ("result", True, {}), ("unknown", 1, {}), (5, 1, {}), ("submit", 1, 5), ("submit", 1, {"group": "df"}),
        ("submit", 1, {"group": "df", "element": "x", "prio": 1}), ("result", 1, {"packet_id": "x"}),
        ("result", 1, {"packet_id": "x", "status": "done"}), ("result", 1, []), ("error", 1, 5),
        ("error", 1, {"code": 5}), ("heartbeat", 1, {"window": 0}), ("heartbeat", 1, {"load": NAN}),
        ("result", 1, {"packet_id": "x", "status": "success", "duration_ms": -1}),
    ],
    ids=repr,
)  # fmt: skip
def test_messages_that_must_not_be_written(type_: Any, seq: Any, payload: Any) -> None:
    with pytest.raises(InvalidPacket):
        encode_message(type_, seq, payload)


def test_packets_and_results_show_and_compare() -> None:
    packet = Packet("df", "x", [1], id="i", timeout_ms=5)
    assert repr(packet) == "Packet('df', 'x', [1], priority=5, timeout_ms=5, id='i')"
    assert packet == Packet("df", "x", [1], id="i", timeout_ms=5)
    assert packet != Packet("df", "x", [2], id="i", timeout_ms=5)
    assert hash(packet) == hash(Packet("df", "y", id="i"))
    assert repr(Result("i", "success", 1)) == "Result('i', 'success', data=1, duration_ms=0)"
    assert Result("i", "success", 1) == Result("i", "success", 1) != Result("i", "success", 2)
    assert packet != 5
    with pytest.raises(AttributeError):
        packet.group = "cf"  # type: ignore[misc]


def test_metadata_may_stay_json() -> None:
    raw = msgspec.Raw(b'{"key":"k",  "big":12345678901234567890123}')
    packet = Packet("df", "x", metadata=raw, id="i")
    assert bytes(packet.raw_metadata or b"") == bytes(raw)
    assert bytes(raw) in encode_message("submit", 1, packet)
    assert packet.metadata == {"key": "k", "big": 12345678901234567890123}
    assert Packet("df", "x").raw_metadata is None
    with pytest.raises(InvalidPacket, match="metadata: expected an object"):
        Packet("df", "x", metadata=msgspec.Raw(b"[1]"))
    with pytest.raises(InvalidPacket):
        encode_message("submit", 1, Packet("df", "x", metadata=msgspec.Raw(b'{"no json')))


def _submit(extra: str, outside: str = "") -> bytes:
    return (
        '{"type":"submit","seq":1,"payload":{"version":"1.0","id":"a","group":"df","element":"x","data":1,"priority":5'
        f"{extra}}}{outside}}}"
    ).encode()


@pytest.mark.parametrize(
    ("most", "more", "expected"),
    [
        (
            _submit(f',"metadata":{{"a":"{"x" * 65_528}"}}'),
            _submit(f',"metadata":{{"a":"{"x" * 65_529}"}}'),
            "65536 bytes",
        ),
        (
            _submit("".join(f',"k{n}":1' for n in range(256))),
            _submit("".join(f',"k{n}":1' for n in range(257))),
            "at most 256 keys",
        ),
        (
            _submit("", "".join(f',"k{n}":1' for n in range(256))),
            _submit("", "".join(f',"k{n}":1' for n in range(257))),
            "at most 256 keys",
        ),
    ],
    ids=["metadata", "keys of a payload", "keys of a frame"],
)
def test_what_would_be_decoded_without_end_is_bounded(most: bytes, more: bytes, expected: str) -> None:
    assert decode_message(most).type == "submit"
    with pytest.raises(InvalidPacket) as caught:
        decode_message(more)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"heartbeat","seq":1,"payload":{},"unknown":[}',
        b'{"unknown":tru,"type":"heartbeat","seq":1,"payload":{}}',
        b'{"type":"result","seq":1,"payload":{"packet_id":"a","status":"success","data":1,"duration_ms":0,"unknown":[}}',
        compact(change(SUBMIT, "payload.group", "cx")),
        compact(change(SUBMIT, "payload.group", "xf")),
    ],
)
def test_what_nobody_asks_about_is_read_all_the_same(frame: bytes) -> None:
    with pytest.raises(InvalidPacket):
        read(frame)
