"""Configuration, reloading, health, metrics, top, tokens, traces and logs."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from packetflow import Access, Gateway, Packet, Reactor, run
from packetflow.cli.top import Snapshot, fetch, render_top
from packetflow.conformance.wire import Peer
from packetflow.elements import Bounds
from packetflow.errors import PacketFlowError
from packetflow.gateway import hash_token, new_token
from packetflow.gateway.config import ConfigError, load_config
from packetflow.gateway.web import metrics
from packetflow.logs import JsonFormatter, RateLimit
from packetflow.loop import loop_factory
from packetflow.testing import pair
from packetflow.tracing import current_traceparent, inject, trace_context, trace_id_of
from tests.helpers import ROLES, TOKENS, certificate, free_port, get, identities, served

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

CONFIG = """
[gateway]
endpoint = "ws://127.0.0.1:{port}/packetflow/v1"
drain = 1.0

[limits]
max_connections = 100

[roles.worker]
submit = ["df:*"]
handle = ["df:*"]

[principals.w1]
role = "worker"
tokens = ["{digest}"]

[routing]
df = "fastest"
"""


# ---------------------------------------------------------------- configuration


def test_a_configuration_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG.format(port=0, digest="0" * 64))
    config = load_config(path)
    expected = {"endpoint": "ws://127.0.0.1:0/packetflow/v1", "max_connections": 100}
    assert config.settings == {**expected, "elements": Bounds(), "templates": []}
    assert config.drain == 1.0
    assert config.policies == {"df": "fastest"}
    assert config.access.roles["worker"].handle == ("df:*",)
    assert config.access.authenticates
    assert Gateway(access=config.access, **config.settings).endpoint.startswith("ws://127.0.0.1")


def test_every_error_of_a_configuration_is_told_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        """
        surprise = 1
        [gateway]
        endpoint = "http://x"
        insecure = "yes"
        prot = 5
        [limits]
        window = 0
        max_frame = 1.5
        [tls]
        key = "missing.pem"
        [routing]
        df = "random"
        [roles.r]
        submit = ["df"]
        [principals.p]
        role = "other"
        [principals.q]
        role = "r"
        tokens = ["plain"]
        """
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = "\n".join(caught.value.errors)
    for expected in (
        "surprise: not known here",
        "gateway.endpoint: expected a URL",
        "gateway.insecure: expected true or false, found 'yes'",
        "gateway.prot: not known here",
        "limits.window: expected an integer from 1 to 16,777,216, found 0",
        "limits.max_frame: expected an integer",
        "tls.key: expected a file",
        "tls.certificate: expected, where",
        "routing.df: expected one of least, sticky, fastest, keyed",
        "roles.r: role 'r', submit: expected patterns",
        "principals.p.role: expected one of",
    ):
        assert expected in text
    for bad, expected in (("not toml", "not TOML"), (None, "cannot be read")):
        if bad is None:
            path.unlink()
        else:
            path.write_text(bad)
        with pytest.raises(ConfigError, match=expected):
            load_config(path)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP")
def test_sighup_reads_tokens_again_and_sigterm_drains(tmp_path: Path) -> None:
    port, (old, new) = free_port(), (new_token(), new_token())
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(port=port, digest=hash_token(old)))
    endpoint = f"ws://127.0.0.1:{port}/packetflow/v1"

    async def enters(token: str) -> bool:
        try:
            async with Reactor(endpoint, token=token):
                return True
        except PacketFlowError:
            return False

    with served("--config", "gateway.toml", "--log-format", "json", cwd=tmp_path) as process:
        assert process.stderr is not None
        assert run(enters(old))
        assert not run(enters(new))
        config.write_text("[gateway]\nendpoint = 5")
        process.send_signal(signal.SIGHUP)
        while "stays as it was" not in (line := process.stderr.readline()):
            assert line
        assert json.loads(line)["level"] == "error"
        assert run(enters(old)), "a bad configuration changes nothing"
        config.write_text(CONFIG.format(port=port, digest=hash_token(new)))
        process.send_signal(signal.SIGHUP)
        while "was read again" not in (line := process.stderr.readline()):
            assert line
        assert run(enters(new))
        assert not run(enters(old))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_token_prints_a_token_and_its_digest() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "packetflow", "token"], capture_output=True, text=True)
    token, digest = (line.split()[1] for line in done.stdout.splitlines())
    assert hash_token(token) == digest
    assert len(token) == 43


# ---------------------------------------------------------------- health and metrics


async def test_health_readiness_and_metrics_on_the_same_port(gateway: Gateway, reactor: Reactor) -> None:
    assert await get(gateway, "/healthz") == (200, "ok\n")
    assert await get(gateway, "/readyz") == (200, "ready\n")
    assert (await get(gateway, "/other"))[0] == 404
    reactor.register("df", "mine", lambda data: data)
    await reactor.call("df", "transform", "x")
    while not gateway.switch.reactors_for("df:mine"):
        await asyncio.sleep(0.001)
    await reactor.call("df", "mine", "x")
    await reactor.submit({"group": "df", "element": "none"})
    status, text = await get(gateway, "/metrics")
    assert status == 200
    for line in (
        "packetflow_connections 1.0",
        "packetflow_reactors 1.0",
        "packetflow_routed_total 1.0",
        'packetflow_packets_total{element="df:mine",status="success"} 1.0',
        'packetflow_packets_total{element="df:transform",status="success"} 1.0',
        'packetflow_refusals_total{code="PF001"} 1.0',
        'packetflow_element_reactors{element="df:mine"} 1.0',
        'packetflow_latency_seconds_count{element="df:mine"} 1.0',
        'packetflow_reactor_outstanding{reactor="r1"} 0.0',
    ):
        assert line in text, line


async def test_metrics_ask_for_credentials_where_links_must() -> None:
    from packetflow import Access

    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=Access.of(ROLES, identities())) as gateway:
        assert (await get(gateway, "/healthz"))[0] == 200
        assert (await get(gateway, "/metrics"))[0] == 401
        status, _ = await get(gateway, "/metrics", {"Authorization": f"Bearer {TOKENS['client']}"})
        assert status == 200


async def test_the_metrics_show_every_budget_and_who_holds_what_of_it() -> None:
    from packetflow import Access

    access = Access.of(ROLES, identities(), anonymous=ROLES[0])
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access, max_principal_bytes=2_000_000,
                       max_total_bytes=5_000_000, max_stored_principal_bytes=3_000_000,
                       max_stored_bytes=7_000_000) as gateway:  # fmt: skip
        async with Reactor(gateway.endpoint, token=TOKENS["client"]), Reactor(gateway.endpoint):
            (nobody,) = [member for member in gateway.switch.links if member.principal.number == 0]
            named = gateway.view.principals.named["client"]
            before = float(gateway.view.budgets.held.held)
            own = float(nobody.account.held)
            assert named.account is not None
            assert named.stored is not None
            named_before = float(named.account.held)
            named.account.insist(1_000_000)
            named.stored.insist(600_000)
            nobody.account.insist(500_000)
            assert not named.account.charge(10_000_000)
            assert not nobody.account.charge(10_000_000)
            text = metrics(gateway.view)
            for line in (
                f"packetflow_held_bytes {before + 1_500_000}",
                "packetflow_held_bytes_limit 5e+06",
                "packetflow_held_principal_bytes_limit 2e+06",
                "packetflow_stored_bytes 600000.0",
                "packetflow_stored_bytes_limit 7e+06",
                "packetflow_stored_principal_bytes_limit 3e+06",
                "packetflow_stored_bytes_peak 600000.0",
                f'packetflow_principal_held_bytes{{principal="anonymous"}} {own + 500_000}',
                f'packetflow_principal_held_bytes{{principal="client"}} {named_before + 1_000_000}',
                'packetflow_principal_stored_bytes{principal="client"} 600000.0',
                'packetflow_charges_refused_total{budget="held",principal="client"} 1.0',
                'packetflow_charges_refused_total{budget="held",principal="anonymous"} 1.0',
                'packetflow_charges_refused_total{budget="stored",principal="client"} 0.0',
            ):
                assert any(float_of(line) == float_of(found) for found in text.splitlines()), line
            assert text.count("packetflow_principal_held_bytes{") == 1 + len(identities())
            named.account.release(1_000_000)
            named.stored.release(600_000)
            nobody.account.release(500_000)
        while gateway.connections:
            await asyncio.sleep(0.001)
        text = metrics(gateway.view)
        assert 'packetflow_charges_refused_total{budget="held",principal="anonymous"} 1.0' in text, (
            "kept after its link"
        )
        assert any(line.startswith("packetflow_held_bytes_peak 1") for line in text.splitlines())


def float_of(line: str) -> tuple[str, float] | None:
    name, _, value = line.rpartition(" ")
    try:
        return name, float(value)
    except ValueError:
        return None


async def test_a_name_from_outside_cannot_break_the_metrics(gateway: Gateway) -> None:
    async with gateway, Reactor(gateway.endpoint, name='evil"} 1\\nforged 7') as _:
        await gateway.wait_for_reactor('evil"} 1\\nforged 7')
        assert "\nforged 7" not in metrics(gateway.view)
        assert 'reactor="evil\\"} 1\\\\nforged 7"' in metrics(gateway.view)


async def test_a_name_with_control_characters_is_refused(gateway: Gateway) -> None:
    with pytest.raises(ValueError, match="without control characters"):
        Reactor(gateway.endpoint, name="evil\n")
    async with gateway:
        peer = await Peer.connect(gateway.endpoint)
        await peer.send({"type": "heartbeat", "seq": 7, "payload": {"reactor": 'evil"} 1\nforged 7'}})
        error = await peer.message("error")
        assert (error["seq"], error["payload"]["code"]) == (7, "PF400")
        assert "forged" not in metrics(gateway.view)
        peer.close()


async def test_top_shows_elements_and_reactors(gateway: Gateway, reactor: Reactor) -> None:
    reactor.register("df", "mine", lambda data: data)
    while not gateway.switch.reactors_for("df:mine"):
        await asyncio.sleep(0.001)
    before = await asyncio.to_thread(fetch, gateway.endpoint, None)
    for _ in range(10):
        await reactor.call("df", "mine", 1)
    now = await asyncio.to_thread(fetch, gateway.endpoint, None)
    shown = render_top(gateway.endpoint, now, Snapshot(now.at - 1, before.values))
    row = next(line for line in shown.splitlines() if line.startswith("df:mine"))
    assert row.split()[1] == "10"
    assert any(line.startswith("r1 ") for line in shown.splitlines())
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "packetflow", "top", "--once", "--interval", "0.1", "--endpoint", gateway.endpoint,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await done.communicate()
    assert done.returncode == 0
    assert b"df:mine" in out


# ---------------------------------------------------------------- traces and logs


def test_only_valid_traceparents_count() -> None:
    assert trace_id_of(TRACE) == "0af7651916cd43dd8448eb211c80319c"
    for bad in (None, 5, "", TRACE.upper(), TRACE + "-x", TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)):
        assert trace_id_of(bad) is None


async def test_a_trace_is_kept_and_passed_on_across_the_gateway(gateway: Gateway) -> None:
    seen: dict[str, Any] = {}
    async with gateway, Reactor(gateway.endpoint, name="w") as worker, Reactor(gateway.endpoint) as client:
        worker.use(trace_context)

        @worker.register("df", "outer")
        async def outer(data: Any) -> Any:
            seen["outer"] = current_traceparent()
            nested = inject({"group": "df", "element": "inner"})
            return (await worker.submit(nested)).data

        @worker.register("df", "inner")
        async def inner(data: Any, packet: Packet) -> str:
            seen["inner"] = packet.metadata["traceparent"]
            return "done"

        while not gateway.switch.reactors_for("df:inner"):
            await asyncio.sleep(0.001)
        packet = Packet("df", "outer", metadata={"traceparent": TRACE})
        assert (await client.submit(packet)).data == "done"
    assert trace_id_of(seen["outer"]) == trace_id_of(seen["inner"]) == trace_id_of(TRACE)
    assert current_traceparent() is None
    assert trace_id_of(inject({"group": "df", "element": "x"})["metadata"]["traceparent"]) is not None


async def test_opentelemetry_spans_where_the_package_is() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with pair() as (gateway, reactor):
        reactor.use(trace_context)
        reactor.register("df", "x", lambda data: data)
        await gateway.submit(Packet("df", "x", 1, metadata={"traceparent": TRACE}, id="p"), reactor="reactor")
    (span,) = [one for one in exporter.get_finished_spans() if one.attributes["packetflow.packet_id"] == "p"]
    assert span.name == "df:x"
    assert f"{span.context.trace_id:032x}" == trace_id_of(TRACE)


def test_logs_for_machines_are_one_object_a_line() -> None:
    record = logging.LogRecord("packetflow.gateway", logging.WARNING, "", 0, "lost %s", ("x\ny",), None)
    record.packet_id = "p"
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["level"], entry["message"], entry["packet_id"]) == ("warning", "lost x\ny", "p")


def test_a_flood_of_records_is_cut_and_says_so() -> None:
    limit = RateLimit(3)
    records = [logging.LogRecord("x", 20, "", 0, "n", (), None) for _ in range(10)]
    for record in records:
        record.created = 100.0
    assert [limit.filter(record) for record in records] == [True] * 3 + [False] * 7
    last = logging.LogRecord("x", 20, "", 0, "n", (), None)
    last.created = 101.0
    assert limit.filter(last)
    assert last.getMessage() == "n [7 lines before this one left out]"


async def test_a_failing_handler_is_logged_with_its_packet(
    gateway: Gateway, reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        await reactor.submit(Packet("df", "fail", "boom", id=f"p{_}"))
    records = [record for record in caplog.records if "df:fail failed" in record.getMessage()]
    assert 10 <= len(records) <= 20, "at most ten a second"
    assert records[0].packet_id == "p0"
    assert records[0].exc_info is not None
    assert "boom" in str(records[0].exc_info[1])


async def test_refused_and_failed_packets_are_logged_with_packet_and_trace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "packetflow.gateway"):
        async with Gateway("ws://127.0.0.1:0/packetflow/v1") as gateway, Reactor(gateway.endpoint) as reactor:
            gateway.register("df", "x", lambda data: data)
            await reactor.submit(Packet("df", "none", id="p1", metadata={"traceparent": TRACE}))
            await reactor.submit(Packet("df", "x", id="p2", dependencies=["never"], timeout_ms=20,
                                        metadata={"traceparent": TRACE}))  # fmt: skip
    found = {
        (record.packet_id, record.code): record.trace_id for record in caplog.records if hasattr(record, "packet_id")
    }
    assert found[("p1", "PF001")] == trace_id_of(TRACE)
    assert found[("p2", "PF424")] == trace_id_of(TRACE)


async def test_latencies_by_element_are_a_histogram_that_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with pair() as (gateway, reactor):
        gateway.register("df", "echo", lambda data: data)
        for n in range(5):
            await reactor.call("df", "echo", n)
        families = {family.name: family for family in text_string_to_metric_families(metrics(gateway.view))}
    histogram = families["packetflow_latency_seconds"]
    assert histogram.type == "histogram"
    own = [sample for sample in histogram.samples if sample.labels["element"] == "df:echo"]
    buckets = [(float(one.labels["le"]), one.value) for one in own if one.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == (float("inf"), 5)
    assert {one.name: one.value for one in own}["packetflow_latency_seconds_count"] == 5
    ended = {tuple(one.labels.values()): one.value for one in families["packetflow_packets"].samples}
    assert ended["df:echo", "success"] == 5


async def test_without_opentelemetry_the_trace_is_passed_on_by_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    async def handler(packet: Packet) -> str | None:
        return current_traceparent()

    assert await trace_context(Packet("df", "x", metadata={"traceparent": TRACE}), handler) == TRACE
    assert current_traceparent() is None
    assert trace_id_of(inject({})["metadata"]["traceparent"]) is not None


async def test_a_span_tells_the_code_that_its_packet_failed_with() -> None:
    spans: list[Any] = []

    async def handler(packet: Packet) -> None:
        from opentelemetry import trace

        spans.append(trace.get_current_span())
        raise PacketFlowError("no", code="PF418")

    with pytest.raises(PacketFlowError, match="no"):
        await trace_context(Packet("df", "x"), handler)
    assert len(spans) == 1


def test_without_uvloop_the_loop_is_asyncios_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None

    async def name() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(name()).startswith("asyncio.")


async def test_metrics_are_anyones_where_they_are_public_and_not_rendered_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("packetflow.gateway.web.MOST_TIME", 0.0)
    access = Access.of(ROLES, identities())
    async with Gateway("ws://127.0.0.1:0/packetflow/v1", access=access, public_metrics=True) as gateway:
        status, first = await get(gateway, "/metrics")
        assert status == 200
        assert (await get(gateway, "/metrics"))[1] == first, "a flood of scrapes is told what the last one was told"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGHUP")
def test_a_gateway_that_runs_does_not_begin_to_use_tls(tmp_path: Path) -> None:
    certificate(tmp_path, "gateway")
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.format(port=0, digest="0" * 64))
    with served("--config", "gateway.toml", cwd=tmp_path) as process:
        assert process.stderr is not None
        config.write_text(
            CONFIG.format(port=0, digest="0" * 64) + '[tls]\ncertificate = "gateway.pem"\nkey = "gateway.key"\n'
        )
        process.send_signal(signal.SIGHUP)
        while "cannot begin or cease to use TLS" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
