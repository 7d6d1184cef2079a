from collections.abc import Mapping
from typing import Any, Final

from typing_extensions import Buffer

from pfcore.wire.packets import Message, Packet, Result

__all__ = ["MAX_SEQ", "decode_message", "encode_message", "scan_repeatedly"]

MAX_SEQ: Final[int]

def encode_message(type: str, seq: int, payload: Packet | Result | Mapping[str, Any]) -> bytes: ...
def decode_message(buffer: Buffer, *, max_depth: int = 64, predict: bool = True) -> Message: ...
def scan_repeatedly(frame: bytes, times: int, *, predict: bool = True) -> int: ...
