"""The elements that keep state, on a store that suspends in every operation: what they promise does not lean on luck."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from packetflow import Gateway
from tests.elements.test_cf import *  # noqa: F403
from tests.elements.test_co import *  # noqa: F403
from tests.elements.test_df import *  # noqa: F403
from tests.elements.test_ed import *  # noqa: F403
from tests.elements.test_rm import *  # noqa: F403
from tests.elements.test_rm import test_who_waits_for_a_fill_gets_it_even_when_it_has_expired
from tests.state.suspending import suspending

ONE_LOOP = "asyncio"
"""Which loop it is makes no difference here, and each takes its time."""

del test_who_waits_for_a_fill_gets_it_even_when_it_has_expired  # with a millisecond to live it may be computed twice


@pytest.fixture
async def hub() -> AsyncIterator[Gateway]:
    """In place of the one in memory."""
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", store=suspending) as gateway:
        yield gateway
