"""The output buffer frames what it is given, for any length, masked or not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packetflow.conformance.wire import split
from pfcore.memory.buffers import OutputBuffer

EDGES = [0, 1, 2, 15, 16, 17, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 100_000]


@pytest.mark.parametrize("masked", [False, True])
def test_messages_of_every_header_length(masked: bool) -> None:
    buffer = OutputBuffer(masked=masked)
    payloads = [bytes(n % 251 for n in range(length)) for length in EDGES]
    for payload in payloads:
        buffer.add(payload)
    data = buffer.take()
    assert split(data) == [(1, payload) for payload in payloads]
    assert bool(data[1] & 0x80) == masked
    assert len(buffer) == 0


@given(st.lists(st.tuples(st.sampled_from([1, 2, 8, 9, 10]), st.binary(max_size=300)), max_size=20), st.booleans())
def test_any_messages_come_out_as_they_went_in(messages: list[tuple[int, bytes]], masked: bool) -> None:
    buffer = OutputBuffer(masked=masked)
    for opcode, payload in messages:
        buffer.add(payload, opcode)
    assert split(buffer.take()) == messages


def test_every_message_has_a_mask_of_its_own() -> None:
    buffer = OutputBuffer(masked=True)
    masks = set()
    for _ in range(1000):
        buffer.add(b"x")
        masks.add(buffer.take()[2:6])
    assert len(masks) > 990


def test_the_limit_is_kept_and_what_was_complete_stays() -> None:
    buffer = OutputBuffer(limit=1024)
    buffer.add(b"x" * 900)
    with pytest.raises(BufferError, match="limit of 1024"):
        buffer.add(b"y" * 900)
    assert split(buffer.take()) == [(1, b"x" * 900)]
    buffer.add(b"y" * 900)
    assert split(buffer.take()) == [(1, b"y" * 900)]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="opcode"):
        OutputBuffer().add(b"", 3)
    with pytest.raises(ValueError, match="limit"):
        OutputBuffer(limit=1)
    with pytest.raises(TypeError):
        OutputBuffer().add("text")  # type: ignore[arg-type]
