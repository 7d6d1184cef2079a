"""Ids are random UUIDv4 text, in a forked child as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import pytest

from pfcore.memory.ids import new_id, siphash13


def test_ids_are_uuid4_text() -> None:
    for _ in range(1000):
        text = new_id()
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def test_ids_do_not_repeat_and_every_random_bit_varies() -> None:
    numbers = [uuid.UUID(new_id()).int for _ in range(20_000)]
    assert len(set(numbers)) == len(numbers)
    fixed = 0b1111 << 76 | 0b11 << 62
    always, never = (1 << 128) - 1, 0
    for number in numbers:
        always &= number
        never |= number
    assert (always & ~fixed, ~never & ~fixed & ((1 << 128) - 1)) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_draws_others() -> None:
    new_id()
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, new_id().encode())
        os._exit(0)
    os.wait()
    assert os.read(read, 36).decode() != new_id()
    os.close(read)
    os.close(write)
    sys.stdout.flush()


def test_the_hash_of_every_table_is_siphash_1_3() -> None:
    """CPython's own, under a key of zeros, is the oracle."""
    texts = [bytes(range(n)) for n in (*range(1, 33), 63, 64, 65, 200)]
    program = f"import sys; assert sys.hash_info.algorithm == 'siphash13'; print([hash(t) for t in {texts!r}])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    assert done.returncode == 0, done.stderr
    expected = [value % 2**64 for value in json.loads(done.stdout)]
    assert [siphash13(text, 0, 0) for text in texts] == expected
