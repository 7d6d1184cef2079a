"""The whole gateway in simulated time under random scripts: whatever is said, every table stays in order."""

from __future__ import annotations

import random
import time

import pytest

from tests.scripts import Broken, minimal, play


def held(data: bytes) -> None:
    """Plays a script; where it fails, a smaller one that fails, too, is shown."""
    try:
        play(data)
    except Broken:
        smaller, broken = minimal(data, tries=60)
        raise AssertionError(f"python fuzz/fuzz_fabric.py --play {smaller.hex()}\n{broken}") from None


@pytest.mark.parametrize("seed", range(10))
def test_every_table_is_in_order_after_every_step_and_empty_in_the_end(seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(20):
        held(generator.randbytes(generator.choice([40, 120, 400])))


def test_a_script_plays_the_same_again() -> None:
    heard: list[list[str]] = [[], []]
    for times in heard:
        for seed in range(5):
            play(random.Random(seed).randbytes(400), heard=times)
    assert len(heard[0]) > 100
    assert heard[0] == heard[1]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_minutes_of_random_scripts() -> None:
    ends = time.monotonic() + 600
    seed = random.SystemRandom().getrandbits(40)
    while time.monotonic() < ends:
        generator = random.Random(seed)
        held(generator.randbytes(generator.choice([40, 120, 400, 1200])))
        seed += 1
