"""Endpoints: the four schemes and their defaults."""

from __future__ import annotations

import pytest

from packetflow.endpoint import parse_endpoint


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://127.0.0.1:9000/x", "ws://127.0.0.1:9000/x"), ("ws://h", "ws://h:80/packetflow/v1"),
        ("wss://h/", "wss://h:443/packetflow/v1"), ("packetflow://h", "ws://h:8443/packetflow/v1"),
        ("packetflows://h:1/p?handles=df:x", "wss://h:1/p?handles=df:x"), ("packetflow://[::1]", "ws://[::1]:8443/packetflow/v1"),
        ("ws://h:0", "ws://h:0/packetflow/v1"),
    ],
)  # fmt: skip
def test_urls(url: str, expected: str) -> None:
    assert parse_endpoint(url).url == expected


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert parse_endpoint(f"ws://{host}:1/").is_loopback == loopback


@pytest.mark.parametrize("url", ["", "x", "http://h", "ws:///p", "ws://h:99999", "ws://h:x", "ws://h/#a", "ws://u@h"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoint(url)


def test_not_a_url_at_all() -> None:
    with pytest.raises(TypeError, match="expected a URL"):
        parse_endpoint(5)  # type: ignore[arg-type]
