"""The language-neutral frames of tests/vectors, against our codec. The peers of tests/interop run the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pfcore.errors import InvalidPacket
from pfcore.wire.frames import decode_message
from pfcore.wire.packets import Message, Packet, Result

VECTORS = Path(__file__).parent / "vectors"
VALID = json.loads((VECTORS / "valid.json").read_text())["frames"]
INVALID = json.loads((VECTORS / "invalid.json").read_text())["frames"]


def plain(message: Message) -> dict[str, Any]:
    """The message as `decodes` writes it."""
    payload = message.payload
    if isinstance(payload, Packet):
        fields = {name: getattr(payload, name) for name in ("version", "id", "group", "element", "data", "priority")}
        optional = {
            "timeout_ms": payload.timeout_ms,
            "dependencies": list(payload.dependencies) or None,
            "metadata": payload.metadata,
        }
    elif isinstance(payload, Result):
        fields = {"packet_id": payload.packet_id, "status": payload.status, "duration_ms": payload.duration_ms}
        optional = {"error": payload.error}
        if payload.ok:
            fields["data"] = payload.data
    else:
        fields, optional = dict(payload), {}
    fields |= {name: value for name, value in optional.items() if value is not None}
    return {"type": message.type, "seq": message.seq, "payload": fields}


@pytest.mark.parametrize("vector", VALID, ids=lambda vector: vector["name"])
@pytest.mark.parametrize("predict", [True, False], ids=["predicted", "scanned"])
def test_valid(vector: dict[str, Any], predict: bool) -> None:
    decoded = plain(decode_message(vector["frame"].encode(), predict=predict))
    assert decoded == vector["decodes"]
    # 1 and 1.0 and true are equal in Python; their JSON is not
    assert json.dumps(decoded["payload"].get("data")) == json.dumps(vector["decodes"]["payload"].get("data"))


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: vector["name"])
@pytest.mark.parametrize("predict", [True, False], ids=["predicted", "scanned"])
def test_invalid(vector: dict[str, Any], predict: bool) -> None:
    frame = bytes.fromhex(vector["hex"]) if "hex" in vector else vector["frame"].encode()
    with pytest.raises(InvalidPacket) as caught:
        decode_message(frame, predict=predict)
    assert caught.value.code == vector["code"], caught.value.message
    assert caught.value.message


def test_names_are_told_apart() -> None:
    names = [vector["name"] for vector in VALID + INVALID]
    assert len(names) == len(set(names))
