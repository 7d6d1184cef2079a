"""The specification's listings, held against the protocol by `packetflow conformance --listen`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from packetflow.conformance import check_client
from tests.interop.peers import PEERS

pytestmark = pytest.mark.asyncio(loop_scope="session")

# what the listings leave out; everything else they keep to
ANNOUNCES = "says what it handles, in heartbeats or in the URL"
FINDS_BY_ID = "an answer with seq 0 finds its submit by packet_id"
BEATS_AT_ONCE = "sends a heartbeat at once, with a timestamp"


@pytest.mark.parametrize(
    ("language", "lacking"),
    [("typescript", {ANNOUNCES, FINDS_BY_ID}), ("elixir", {ANNOUNCES, FINDS_BY_ID, BEATS_AT_ONCE})],
)
async def test_a_listing(language: str, lacking: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packetflow.conformance.client.PATIENCE", 2.0)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start() -> Any:
        return await PEERS[language].start(await listening, "conformance")

    starting = asyncio.ensure_future(start())
    try:
        outcomes = [outcome async for outcome in check_client(on_listening=listening.set_result)]
    finally:
        await (await starting).stop()
    wrong = {outcome.name: outcome.note for outcome in outcomes if outcome.passed is False}
    assert set(wrong) == lacking, wrong
    assert all(outcome.level == "should" for outcome in outcomes if outcome.passed is False)
