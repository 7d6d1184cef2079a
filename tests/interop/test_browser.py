"""A web page with plain WebSocket and no library is a reactor like any other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from packetflow import Access, Gateway, Identity, Reactor, Role
from packetflow.gateway import hash_token
from tests.interop.peers import HERE, PEERS, Browser

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = HERE.parent.parent / "examples" / "browser"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(PAGE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Any]:
    browser = await Browser.start("", "")
    yield browser
    await browser.stop()


@contextlib.asynccontextmanager
async def gateway_for(*origins: str, access: Access | None = None) -> AsyncIterator[Gateway]:
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", allowed_origins=origins, access=access) as gateway:
        gateway.register("df", "uppercase", str.upper)
        gateway.register("df", "echo", lambda data: data)
        yield gateway


def page(site: str, gateway: Gateway, **more: str) -> str:
    return f"{site}/?{urlencode({'endpoint': gateway.endpoint, **more})}"


async def test_a_page_submits_and_handles(browser: Any, site: str) -> None:
    async with gateway_for(site) as gateway, Reactor(gateway.endpoint) as client:
        assert (await browser.open(page(site, gateway))).startswith("connected")
        await gateway.wait_for_reactor("browser")
        assert await browser.press("hello world") == "HELLO WORLD\n"
        assert await client.call("ed", "greet", "Ada") == "hello Ada, from PacketFlow in a browser"


async def test_every_json_type_both_ways(browser: Any, site: str) -> None:
    value = [
        None,
        True,
        0,
        -1,
        10**15,
        1e-300,
        0.5,
        "",
        "".join(map(chr, range(32))) + "é\u2028🧪",
        [],
        {},
        {"a": [{}]},
    ]
    async with gateway_for(site) as gateway, Reactor(gateway.endpoint) as client:
        await browser.open(page(site, gateway))
        await gateway.wait_for_reactor("browser")
        assert (await browser.submit("df", "echo", data=value))["data"] == value
        await browser.register("df", "page.echo")
        while not gateway.switch.reactors_for("df:page.echo"):
            await asyncio.sleep(0.01)
        assert await client.call("df", "page.echo", value) == value
        large = "x" * 500_000
        assert await client.call("df", "page.echo", large) == large
        # a page may handle what it submits
        assert (await browser.submit("df", "page.echo", data=5))["data"] == 5
        assert await browser.flood("df", "page.echo", 1000, 64) == 1000
        assert await browser.flood("df", "echo", 1000, 64) == 1000


async def test_failures_reach_a_page(browser: Any, site: str) -> None:
    async with gateway_for(site) as gateway:
        await browser.open(page(site, gateway))
        assert (await browser.submit("df", "nobody"))["error"]["code"] == "PF001"
        assert (await browser.submit("mc", "tune"))["error"]["code"] == "PF403"


@pytest.mark.parametrize("language", ["typescript", "elixir"])
async def test_a_page_and_the_other_languages(browser: Any, site: str, language: str) -> None:
    async with gateway_for(site) as gateway:
        worker = await PEERS[language].start(gateway.endpoint, "worker")
        try:
            await browser.open(page(site, gateway))
            await gateway.wait_for_reactor("browser")
            assert (await browser.submit("df", "transform", data="abc"))["data"] == "ABC"
            assert (await worker.submit("ed", "greet", data="Ada"))["data"] == "hello Ada, from PacketFlow in a browser"
        finally:
            await worker.stop()


async def test_a_page_of_a_foreign_origin_is_kept_out(browser: Any, site: str) -> None:
    async with gateway_for("https://elsewhere.example") as gateway:
        assert (await browser.open(page(site, gateway))).startswith("PF502: cannot connect")
        assert gateway.counts["refused_origin"] > 0


async def test_a_token_in_the_subprotocol(browser: Any, site: str) -> None:
    access = Access.of([Role("web", submit=("df:*",))], [Identity("page", "web", tokens=(hash_token("s3cret-token"),))])
    async with gateway_for(site, access=access) as gateway:
        assert (await browser.open(page(site, gateway, token="wrong"))).startswith("PF502: cannot connect")
        assert (await browser.open(page(site, gateway, token="s3cret-token"))).startswith("connected")
        assert await browser.press("hi") == "HI\n"
        assert (await browser.submit("rm", "lock"))["error"]["code"] == "PF403"
