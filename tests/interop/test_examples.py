"""The examples, run as their READMEs say, with each other's workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from packetflow import Gateway
from tests.interop.peers import HERE, elixir_environment

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = HERE.parent.parent / "examples"
BUILD = HERE.parent.parent / "build" / "interop"

LANGUAGES = {
    "typescript": (["node", "--import", "tsx"], ["worker.ts"], ["client.ts"], {}),
    "elixir": (
        ["mix", "run", "--no-compile"],
        ["--no-halt", "worker.exs"],
        ["client.exs"],
        elixir_environment()
        | {"MIX_BUILD_ROOT": str(BUILD / "example"), "PACKETFLOW_JASON": str(HERE / "elixir" / "debian")},
    ),
}


def readme_says(language: str) -> str:
    """What the README says that the client prints."""
    text = (EXAMPLES / language / "README.md").read_text()
    return text.partition("The client prints")[2].split("```")[1].lstrip("\n")


async def run(language: str, arguments: list[str], endpoint: str) -> asyncio.subprocess.Process:
    command, _, _, environment = LANGUAGES[language]
    return await asyncio.create_subprocess_exec(
        *command, *arguments, endpoint, cwd=EXAMPLES / language, env=os.environ | environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=PIPE,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def worker(language: str, gateway: Gateway) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await run(language, LANGUAGES[language][1], gateway.endpoint)
    try:
        await gateway.wait_for_reactor(f"{language}-worker")
        yield process
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.parametrize("works", LANGUAGES)
@pytest.mark.parametrize("submits", LANGUAGES)
async def test_the_client_prints_what_its_readme_says(submits: str, works: str) -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway, worker(works, gateway):
        client = await run(submits, LANGUAGES[submits][2], gateway.endpoint)
        said, _ = await client.communicate()
        assert said.decode() == readme_says(submits)
        assert client.returncode == 0


@pytest.mark.parametrize("works", LANGUAGES)
async def test_a_worker_comes_back_to_a_gateway_that_was_away(works: str) -> None:
    gateway = Gateway("ws://127.0.0.1:0/packetflow/v1")
    await gateway.start()
    async with worker(works, gateway):
        endpoint = gateway.endpoint
        await gateway.stop()
        async with Gateway(endpoint) as another:
            await another.wait_for_reactor(f"{works}-worker")
            assert await another.call("df", "uppercase", "back") == "BACK"


async def test_the_specifications_elixir_handler() -> None:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway, worker("elixir", gateway):
        assert await gateway.call("df", "process_data", {"items": [1, 2, 3, 4, 5]}) == 30
        # a handler's fault is answered, whatever it was
        failed = await gateway.submit({"group": "df", "element": "process_data", "data": {}})
        assert failed.error is not None and failed.error["code"] == "PF500"
