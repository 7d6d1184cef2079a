"""How much the standard elements take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Bounds"]


@dataclass(frozen=True)
class Bounds:
    """How much the standard elements take; past each the answer is PF429 or PF400 and names it.

    Of one outermost packet with all that it sets off, nested packets and reactions
    to its signals included: `steps`; `iterations` of its loops, maps and folds;
    `result_bytes` of results kept at once; `evaluation_steps` of expressions and
    references, some 0.2 µs each. `nesting` of elements; `waiters` of a name; `names`
    of a kind; `value` and `cache`: bytes of a value, and of all that is cached;
    `stream_items`, `stream_bytes`: of one stream; `timers`: timers and reactions of
    a link; `leases`: of a link.
    """

    steps: int = 1000
    nesting: int = 16
    iterations: int = 10_000
    waiters: int = 10_000
    names: int = 100_000
    value: int = 1_048_576
    cache: int = 256 * 1_048_576
    stream_items: int = 100_000
    stream_bytes: int = 64 * 1_048_576
    timers: int = 10_000
    leases: int = 10_000
    result_bytes: int = 16 * 1_048_576
    evaluation_steps: int = 5_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
