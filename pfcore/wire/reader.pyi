from typing import Final

__all__ = ["GROUP_CODES"]

GROUP_CODES: Final[tuple[str, ...]]
