"""In the ordinary suite every benchmark runs once, unmeasured, so that none can rot."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Measures only with ``--benchmark-only`` or ``--benchmark-enable``."""
    if not (config.option.benchmark_only or config.option.benchmark_enable):
        config.option.benchmark_disable = True
