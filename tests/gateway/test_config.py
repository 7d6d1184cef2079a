"""What a configuration refuses, key by key, and what it makes of what it takes."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from packetflow.gateway.access import ANONYMOUS
from packetflow.gateway.config import ConfigError, GatewayConfig, load_config
from tests.helpers import certificate

DIGEST = "0123456789abcdef" * 4


def read(directory: Path, text: str) -> GatewayConfig:
    path = directory / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def errors_of(directory: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(directory, text)
    return caught.value.errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('gateway = "x"', "gateway: expected a table [gateway]"),
        ('[gateway]\nhandlers = ""', "gateway.handlers: expected a text, found ''"),
        ("[gateway]\ndrain = -1", "gateway.drain: expected a number from 0 to 3600, found -1"),
        ("[gateway]\ndrain = true", "gateway.drain: expected a number from 0 to 3600, found True"),
        ("[gateway]\nallowed_hosts = [5]", "gateway.allowed_hosts: expected a list of texts, found [5]"),
        ('[gateway]\nallowed_origins = ["null"]', "gateway.allowed_origins: expected"),
        ("[limits]\nwindow = true", "limits.window: expected an integer from 1 to 16,777,216, found True"),
        ('[log]\nformat = "xml"', "log.format: expected one of text, json, found 'xml'"),
        ("roles = 5", "roles: expected tables such as [roles.worker]"),
        ("templates = []", "templates: expected tables such as [templates.worker]"),
        ("[roles]\nworker = 5", "roles.worker: expected a table [roles.worker]"),
        ('[templates.t]\ncommand = ["x"]\nenvironment = {A = 5}', "templates.t.environment: expected a table of texts"),
        ("[templates.t]\n", "templates.t: template 't', command: expected a list of at least one word"),
        (
            '[roles.r]\n[principals.p]\nrole = "r"',
            "principals.p: expected tokens or a certificate, or nobody could be this principal",
        ),
        (
            '[roles.r]\n[principals.anonymous]\nrole = "r"\ncertificate = "x"',
            "principals.anonymous: principal 'anonymous': expected another name",
        ),
        ('[roles.r]\n[anonymous]\nrole = "other"', "anonymous.role: expected one of ['r'], found 'other'"),
        ("\n".join(f"[roles.r{n}]" for n in range(61)), "roles: expected at most 60, found 61"),
    ],
)
def test_what_is_wrong_is_told_with_its_key_and_nothing_else_is(tmp_path: Path, text: str, expected: str) -> None:
    (error,) = errors_of(tmp_path, text)
    assert error.startswith(expected)


def test_a_file_that_is_no_text_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"[gateway]\n\xff")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ANONYMOUS),
        (f'[roles.r]\n[principals.p]\nrole = "r"\ntokens = ["{DIGEST}"]', None),
        (f'[roles.r]\n[principals.p]\nrole = "r"\ntokens = ["{DIGEST}"]\n[anonymous]\nrole = "r"', "r"),
    ],
)
def test_who_has_no_credentials_is_let_in_where_nobody_has_or_a_role_is_named(
    tmp_path: Path, text: str, expected: Any
) -> None:
    access = read(tmp_path, text).access
    assert access.anonymous == (access.roles["r"] if expected == "r" else expected)
    assert access.authenticates == (expected is None)


def test_the_context_of_tls_is_made_of_the_files_beside_the_configuration(tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    certificate(tmp_path, "gateway", "ca")
    text = '[tls]\ncertificate = "gateway.pem"\nkey = "gateway.key"\n'
    context = read(tmp_path, text).ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    asks = read(tmp_path, f'{text}client_ca = "ca.pem"\n').ssl_context()
    assert asks is not None
    assert asks.verify_mode is ssl.CERT_OPTIONAL, "a token will do as well"
    assert len(asks.get_ca_certs()) == 1
    assert read(tmp_path, "").ssl_context() is None
