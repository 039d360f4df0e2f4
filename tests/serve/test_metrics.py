"""Metrics: what is counted, and that series do not grow; traces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.conftest import Process
from stonnx.serve.app import Server
from stonnx.serve.settings import ModelSettings, Settings
from stonnx.serve.tracing import Tracing, trace_id_of


def samples(text: str) -> dict[str, float]:
    """Values by name and labels."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def total(values: dict[str, float], pattern: str) -> float:
    return sum(value for name, value in values.items() if re.search(pattern, name))


def mixed(client: httpx.Client, count: int) -> None:
    """Requests of all kinds, good and bad, some for models and paths that nobody has."""
    for number in range(count):
        client.post("/v1/embeddings", json={"input": [f"the river {number}"] * (number % 7)})
        client.post("/embed", json={"inputs": "a", "model": f"model-{number}"})
        client.post("/rerank", json={"query": "a", "texts": ["b", f"c {number}"]})
        client.get(f"/nope/{number}")
        client.get(f"/v1/models/model-{number}")
        client.post(f"/v2/models/model-{number}/infer", json={"inputs": []})
        client.request("PATCH", "/embed")


def test_series_do_not_grow_with_what_clients_send(client: httpx.Client) -> None:
    """Pain 22: neither paths nor unknown models nor lengths make series."""
    mixed(client, 8)
    client.get("/metrics")
    before = set(samples(client.get("/metrics").text))
    mixed(client, 40)
    after = set(samples(client.get("/metrics").text))
    assert after == before
    assert not [name for name in after if "model-1" in name or "nope" in name]


def test_requests_are_counted_once(client: httpx.Client) -> None:
    """Pain 23: by status they add up to those that were sent, in our names and in TEI's."""
    before = samples(client.get("/metrics").text)
    for number in range(10):
        client.post("/embed", json={"inputs": [f"the sun {number}", "a"]})
        client.post("/embed", json={"inputs": []})
        client.post("/predict", json={"inputs": [["a", "b"]]})
    after = samples(client.get("/metrics").text)

    def gained(pattern: str) -> float:
        return total(after, pattern) - total(before, pattern)

    assert gained(r'^stonnx_requests_total\{.*route="/embed"') == 20
    assert gained(r'^stonnx_requests_total\{code="200",model="dense",route="/embed"') == 10
    assert gained(r'^stonnx_requests_total\{code="400",.*route="/embed"') == 10
    assert gained(r'^stonnx_request_seconds_count\{route="/embed"') == 20
    assert gained(r'^stonnx_texts_total\{model="dense"') == 20
    assert gained(r"^te_request_count_total") == 30
    assert gained(r"^te_request_success_total") + gained(r"^te_request_failure_total") == 30
    assert gained(r"^te_request_duration_count") == 20
    assert gained(r"^stonnx_tokens_total") > 0
    assert gained(r"^stonnx_padded_tokens_total") >= gained(r"^stonnx_tokens_total")
    assert after["stonnx_requests_in_progress"] == 1
    assert after['stonnx_queued_texts{device="cpu"}'] == 0
    assert after['stonnx_tokens_per_second{device="cpu"}'] > 0


def test_the_models_are_named(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    for name, task in (("dense", "embedding"), ("sparse", "sparse"), ("rerank", "rerank")):
        assert (
            f'stonnx_model_info{{device="cpu",model="{name}",precision="fp32",source="toy",task="{task}"}} 1.0' in text
        )
    assert "process_resident_memory_bytes" in text


def test_names_of_tei_are_there_on_request_only(start: Callable[..., Process], dense_path: Path) -> None:
    client = start(dense_path).client
    client.post("/embed", json={"inputs": "a"})
    text = client.get("/metrics").text
    assert "te_request" not in text
    assert "stonnx_requests_total" in text


def test_a_malformed_trace_context_is_ignored() -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    assert trace_id_of({"traceparent": f"00-{trace}-{span}-01"}) == trace
    for wrong in ("", "00", f"00-{trace}", f"00-{trace.upper()}-{span}-01", f"00-{'0' * 32}-{span}-01"):
        assert trace_id_of({"traceparent": wrong}) is None


def test_spans_belong_to_the_trace_of_the_caller(dense_path: Path) -> None:
    """Pain 24: one span for the request, and its parts below it."""
    pytest.importorskip("opentelemetry.sdk", reason='needs the extra "trace"')
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def main() -> None:
        settings = Settings(models=(ModelSettings(str(dense_path)),), access_log=False)
        server = Server(settings, Tracing(exporter=exporter))
        server.models.load()
        server.health.loaded = True
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            assert (await client.post("/embed", json={"inputs": ["a", "b"]}, headers=headers)).status_code == 200
        server.close()

    asyncio.run(main())
    spans: dict[str, Any] = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /embed", "tokenize", "queue", "run"}
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {trace}
    request = spans["POST /embed"]
    assert format(request.parent.span_id, "016x") == "b7ad6b7169203331"
    assert request.attributes["stonnx.texts"] == 2
    assert request.attributes["http.response.status_code"] == 200
    assert all(spans[name].parent.span_id == request.context.span_id for name in ("tokenize", "queue", "run"))


def test_spans_arrive_over_http(start: Callable[..., Process], dense_path: Path) -> None:
    """OTLP over HTTP, with a collector of three lines."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason='needs the extra "trace"')
    import http.server
    import threading

    arrived: list[tuple[str, bytes]] = []
    received = threading.Event()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            received.set()

        def log_message(self, *_: Any) -> None:
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        process = start(dense_path, "--otlp-endpoint", url, "--drain-delay", "0")
        process.client.post("/embed", json={"inputs": "a"})
        assert process.end() == 0
        assert received.wait(30)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert arrived[0][0] == "/v1/traces"
    assert b"POST /embed" in arrived[0][1]


def test_tracing_without_its_extra_says_what_to_install(dense_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from stonnx.cli import main\n"
        f"sys.exit(main(['serve', {str(dense_path)!r}, '--otlp-endpoint', 'http://localhost:1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'pip install "stonnx[trace]"' in done.stderr
