from typing_extensions import Buffer

__all__ = ["validate"]

def validate(buffer: Buffer, max_depth: int = 64) -> tuple[int, str] | None: ...
