"""Functions that a worker process finds by their names."""

from __future__ import annotations

import os
from typing import Any


def square(data: int) -> int:
    if data < 0:
        raise ValueError("negative")
    return data * data


def process_id(data: Any) -> int:
    return os.getpid()
