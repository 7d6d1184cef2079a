"""Packets, results and messages as objects: what cannot be one is refused by name, and each equals its like only."""

from __future__ import annotations

from typing import Any

import pytest

from pfcore.errors import InvalidPacket
from pfcore.wire.frames import decode_message, encode_message
from pfcore.wire.packets import Message, Packet, Result


@pytest.mark.parametrize("one", [Packet("df", "x", id="a"), Result("a"), Message("heartbeat", 1, {})], ids=repr)
def test_none_equals_what_is_no_such_thing(one: Any) -> None:
    assert one == eval(repr(one))
    assert one != "a"
    assert one is not None and one != 1


def test_an_error_is_an_object() -> None:
    with pytest.raises(InvalidPacket, match="error: expected an object with code and message, found 'no'"):
        Result("a", "error", error="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["\ud800", "2.0", ""])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    with pytest.raises(InvalidPacket, match="version"):
        Packet("df", "x", version=version)


@pytest.mark.parametrize("priority", [0.5, 11.0, float("nan"), float("inf")])
def test_a_priority_may_be_a_whole_float_and_no_other(priority: float) -> None:
    assert Packet("df", "x", priority=3.0).priority == 3  # type: ignore[arg-type]
    with pytest.raises(InvalidPacket, match="priority"):
        Packet("df", "x", priority=priority)  # type: ignore[arg-type]


@pytest.mark.parametrize("payload", [7, [1, 2], "ab", None])
def test_what_is_no_mapping_is_no_result(payload: Any) -> None:
    with pytest.raises(InvalidPacket, match="result"):
        encode_message("result", 1, payload)


def test_a_version_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidPacket, match="version"):
        encode_message("submit", 1, {"version": None, "group": "df", "element": "x"})


def test_a_packet_off_the_wire_goes_out_again_as_it_came() -> None:
    packet = Packet("df", "x", {"a": 1}, id="a", metadata={"b": 2})
    frame = encode_message("submit", 1, packet)
    again = decode_message(frame).payload
    assert again == packet
    assert encode_message("submit", 1, again) == frame
    assert encode_message("submit", 1, packet) == frame  # each remembers what was found out about it


def test_an_id_of_any_length_is_the_same_to_read() -> None:
    for n in (1, 36, 48, 49, 128):
        message = decode_message(encode_message("result", 1, Result("i" * n)))
        assert message.payload.packet_id == "i" * n
