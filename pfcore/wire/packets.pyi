from collections.abc import Sequence
from typing import Any, Final, Literal, final

import msgspec

__all__ = [
    "MAX_ELEMENT_LENGTH",
    "MAX_ID_LENGTH",
    "MAX_TIMEOUT_MS",
    "Message",
    "Packet",
    "Result",
]

MAX_TIMEOUT_MS: Final[int]
MAX_ID_LENGTH: Final[int]
MAX_ELEMENT_LENGTH: Final[int]

@final
class Packet:
    def __init__(
        self,
        group: str,
        element: str,
        data: Any = None,
        *,
        priority: int | None = None,
        timeout_ms: int | None = None,
        dependencies: Sequence[str] | None = None,
        metadata: dict[str, Any] | msgspec.Raw | None = None,
        id: str | None = None,
        version: str = "1.0",
    ) -> None: ...
    @property
    def version(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def element(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def priority(self) -> int: ...
    @property
    def timeout_ms(self) -> int | None: ...
    @property
    def dependencies(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def metadata(self) -> dict[str, Any] | None: ...
    @property
    def raw_metadata(self) -> msgspec.Raw | None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Result:
    def __init__(
        self,
        packet_id: str,
        status: str = "success",
        data: Any = None,
        error: dict[str, Any] | None = None,
        duration_ms: float = 0,
    ) -> None: ...
    @property
    def packet_id(self) -> str: ...
    @property
    def status(self) -> Literal["success", "error"]: ...
    @property
    def ok(self) -> bool: ...
    @property
    def data(self) -> Any: ...
    @property
    def error(self) -> Any: ...
    @property
    def duration_ms(self) -> float: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Message:
    def __init__(self, type: str, seq: int, payload: Any) -> None: ...
    @property
    def type(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def payload(self) -> Any: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: None  # type: ignore[assignment]
