"""The helper for users' tests."""

from __future__ import annotations

from packetflow import Gateway
from packetflow.testing import pair


async def test_a_pair_is_connected_and_knows_each_other() -> None:
    async with pair() as (gateway, reactor):
        gateway.register("df", "up", str.upper)
        reactor.register("df", "down", str.lower)
        assert await reactor.call("df", "up", "Ab") == "AB"
        assert await gateway.call("df", "down", "Ab", reactor="reactor") == "ab"


async def test_with_a_gateway_of_ones_own() -> None:
    mine = Gateway("ws://127.0.0.1:0/packetflow/v1")
    async with pair(mine, name="x", window=5) as (gateway, _):
        assert gateway is mine
        assert list(gateway.reactors) == ["x"]
