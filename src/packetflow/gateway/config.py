"""``gateway.toml``: read and checked whole, every error with its key."""

from __future__ import annotations

import ssl as ssl_module
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packetflow.elements import Bounds
from packetflow.endpoint import parse_endpoint
from packetflow.gateway.access import ANONYMOUS, Access, Identity, Role
from packetflow.gateway.door import Door
from packetflow.gateway.processes import Template

__all__ = ["ConfigError", "GatewayConfig", "load_config"]


class ConfigError(ValueError):
    """A configuration that cannot be used; `errors` has a line for each key that is wrong."""

    def __init__(self, path: str, errors: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {error}" for error in errors))
        self.errors = errors


@dataclass
class GatewayConfig:
    """What ``gateway.toml`` says.

    `settings`: keyword arguments of `Gateway`. `handlers`, `store`: ``module:function``.
    `policies`: group to routing policy. `log_format`: ``text`` or ``json``.
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    handlers: str | None = None
    store: str | None = None
    drain: float = 5.0
    policies: dict[str, str] = field(default_factory=dict)
    log_format: str = "text"

    def ssl_context(self) -> ssl_module.SSLContext | None:
        """A fresh server context of the files it names; None without them. Raises OSError, ssl.SSLError."""
        if self.certificate is None:
            return None
        # never into one that is in use: what a context trusts can be added to and not taken out,
        # and it resumes sessions of those whom it trusted once
        context = ssl_module.SSLContext(ssl_module.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl_module.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            # not CERT_REQUIRED: a token will do as well
            context.verify_mode = ssl_module.CERT_OPTIONAL
        return context


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _whole(low: int, high: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if good else f"an integer from {low:,} to {high:,}"

    return check


def _number(low: float, high: float) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return None if good else f"a number from {low:g} to {high:g}"

    return check


def _texts(value: Any) -> str | None:
    return None if isinstance(value, list) and all(isinstance(one, str) for one in value) else "a list of texts"


def _readable(read: Callable[[Any], object]) -> Callable[[Any], str | None]:
    """A list of texts that `read` takes; its ValueError begins with ``key: expected``."""

    def check(value: Any) -> str | None:
        wanted = _texts(value)
        if wanted is None:
            try:
                read(value)
            except ValueError as error:
                return str(error).partition("expected ")[2].partition(", found ")[0]
        return wanted

    return check


def _one_of(*allowed: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in allowed else "one of " + ", ".join(allowed)


def _endpoint(value: Any) -> str | None:
    try:
        parse_endpoint(value)
    except (TypeError, ValueError):
        return "a URL such as ws://127.0.0.1:8443/packetflow/v1"
    return None


_POLICIES = _one_of("least", "sticky", "fastest", "keyed")

_SECTIONS: Mapping[str, Mapping[str, Callable[[Any], str | None]]] = {
    "gateway": {
        "endpoint": _endpoint,
        "handlers": _text,
        "insecure": _flag,
        "expose_errors": _flag,
        "public_metrics": _flag,
        "allowed_hosts": _readable(Door.read_hosts),
        "allowed_origins": _readable(Door.read_origins),
        "drain": _number(0, 3600),
    },
    "limits": {
        "max_frame": _whole(1024, 1 << 28),
        "max_principal_bytes": _whole(1 << 20, 1 << 50),
        "max_total_bytes": _whole(1 << 20, 1 << 50),
        "max_stored_principal_bytes": _whole(1 << 20, 1 << 50),
        "max_stored_bytes": _whole(1 << 20, 1 << 50),
        "window": _whole(1, 1 << 24),
        "concurrency": _whole(1, 1 << 24),
        "max_queue": _whole(0, 1 << 24),
        "max_pending": _whole(1, 1 << 24),
        "max_waiting": _whole(1, 1 << 24),
        "max_flights": _whole(1, 1 << 26),
        "max_remembered": _whole(1, 1 << 24),
        "max_connections": _whole(1, 10_000_000),
        "max_per_address": _whole(1, 10_000_000),
        "handshake_timeout": _number(0.1, 3600),
        "heartbeat": _number(0.1, 86_400),
        "silence": _number(0.1, 86_400),
    },
    "tls": {"certificate": _text, "key": _text, "client_ca": _text},
    "anonymous": {"role": _text},
    "routing": {group: _POLICIES for group in ("cf", "df", "ed", "co", "mc", "rm")},
    "store": {"factory": _text},
    "log": {"format": _one_of("text", "json")},
    "elements": {
        "enabled": _flag,
        **{name: _whole(1, 1 << 40) for name in Bounds.__dataclass_fields__},
    },
}

_TEMPLATE: Mapping[str, Callable[[Any], str | None]] = {
    "command": _texts,
    "environment": lambda value: (
        None if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()) else "a table of texts"
    ),
    "directory": _text,
    "most": _whole(1, 100_000),
    "grace": _number(0, 3600),
}

_ROLE: Mapping[str, Callable[[Any], str | None]] = {
    "submit": _texts,
    "handle": _texts,
    "replace": _texts,
    "admin": _flag,
    "names": _texts,
}

_PRINCIPAL: Mapping[str, Callable[[Any], str | None]] = {
    "role": _text,
    "tokens": _texts,
    "certificate": _text,
    "rate": _number(0, 1e9),
    "burst": _number(0, 1e9),
}


def _check(
    where: str, table: Any, known: Mapping[str, Callable[[Any], str | None]], errors: list[str]
) -> dict[str, Any]:
    if not isinstance(table, dict):
        errors.append(f"{where}: expected a table [{where}]")
        return {}
    good = {}
    for key, value in table.items():
        if key not in known:
            errors.append(f"{where}.{key}: not known here; expected one of {', '.join(known)}")
            continue
        wanted = known[key](value)
        if wanted is not None:
            errors.append(f"{where}.{key}: expected {wanted}, found {value!r}")
        else:
            good[key] = value
    return good


def load_config(path: str | Path) -> GatewayConfig:
    """Reads and checks a configuration; `ConfigError` lists everything that is wrong with it."""
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not TOML: {error}"]) from None
    errors: list[str] = []
    config = GatewayConfig(path)
    known = (*_SECTIONS, "roles", "principals", "templates")
    for name in document:
        if name not in known:
            errors.append(f"{name}: not known here; expected one of {', '.join(known)}")
    tables = {name: _check(name, document.get(name, {}), keys, errors) for name, keys in _SECTIONS.items()}
    config.settings = {**tables["gateway"], **tables["limits"]}
    config.handlers = config.settings.pop("handlers", None)
    config.drain = float(config.settings.pop("drain", config.drain))
    config.store = tables["store"].get("factory")
    config.policies = tables["routing"]
    config.log_format = tables["log"].get("format", "text")
    bounds = tables["elements"]
    config.settings["elements"] = Bounds(**bounds) if bounds.pop("enabled", True) else False
    config.settings["templates"] = _read_templates(document, errors)
    _read_tls(config, tables["tls"], errors)
    config.access = _read_access(document, tables["anonymous"], errors)
    if errors:
        raise ConfigError(str(path), errors)
    return config


def _read_templates(document: dict[str, Any], errors: list[str]) -> list[Template]:
    templates = []
    for name, table in _tables(document, "templates", errors):
        good = _check(f"templates.{name}", table, _TEMPLATE, errors)
        try:
            templates.append(Template(name, **{"command": (), **good}))
        except ValueError as error:
            errors.append(f"templates.{name}: {error}")
    return templates


def _read_tls(config: GatewayConfig, table: dict[str, Any], errors: list[str]) -> None:
    for name in ("certificate", "key", "client_ca"):
        if name in table:
            file = config.path.parent / table[name]
            if not file.is_file():
                errors.append(f"tls.{name}: expected a file, there is none at {file}")
            setattr(config, name, file)
    if config.certificate is None and (config.key is not None or config.client_ca is not None):
        errors.append("tls.certificate: expected, where tls.key or tls.client_ca is given")


def _read_access(document: dict[str, Any], anonymous: dict[str, Any], errors: list[str]) -> Access:
    roles: dict[str, Role] = {}
    for name, table in _tables(document, "roles", errors):
        values = _check(f"roles.{name}", table, _ROLE, errors)
        try:
            roles[name] = Role(name, **values)
        except ValueError as error:
            errors.append(f"roles.{name}: {error}")
    identities: list[Identity] = []
    for name, table in _tables(document, "principals", errors):
        values = _check(f"principals.{name}", table, _PRINCIPAL, errors)
        if values.get("role") not in roles:
            errors.append(f"principals.{name}.role: expected one of {sorted(roles)}, found {values.get('role')!r}")
            continue
        if not values.get("tokens") and "certificate" not in values:
            errors.append(f"principals.{name}: expected tokens or a certificate, or nobody could be this principal")
            continue
        try:
            identities.append(Identity(name, **values))
        except ValueError as error:
            errors.append(f"principals.{name}: {error}")
    role: Role | None = ANONYMOUS if not identities else None
    if "role" in anonymous:
        if anonymous["role"] not in roles:
            errors.append(f"anonymous.role: expected one of {sorted(roles)}, found {anonymous['role']!r}")
        else:
            role = roles[anonymous["role"]]
    try:
        return Access(roles, tuple(identities), role)
    except ValueError as error:
        errors.append(str(error))
        return Access()


def _tables(document: dict[str, Any], name: str, errors: list[str]) -> list[tuple[str, Any]]:
    tables = document.get(name, {})
    if not isinstance(tables, dict):
        errors.append(f"{name}: expected tables such as [{name}.worker]")
        return []
    return list(tables.items())
