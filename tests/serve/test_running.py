"""A server while it runs: keys, signals, replaced bundles, logs."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from toy_bundles import dense_bundle, dense_graph, toy_table, write_bundle

from serve.conftest import Process
from stonnx import SentenceTransformer

_PROBES = ("/health", "/health/live", "/health/ready", "/ping", "/v2/health/live", "/v2/health/ready", "/", "/metrics")


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
    return result


def test_work_needs_a_key_and_probes_do_not(start: Callable[..., Process], dense_path: Path, tmp_path: Path) -> None:
    """Pain 16; keys as each client sends them."""
    file = tmp_path / "keys"
    file.write_text("# comment\nfrom-file\n", encoding="utf-8")
    process = start(
        dense_path, "--api-key", "one", "--api-key-file", file, environment={"STONNX_PROTECT_METRICS": "false"}
    )
    client, body = process.client, {"input": "a"}
    refused = client.post("/v1/embeddings", json=body)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert refused.json()["error"]["code"] == "invalid_api_key"
    for headers, status in (
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer from-file"}, 200),
        ({"authorization": "one"}, 200),  # LlamaIndex
        ({"x-api-key": "from-file"}, 200),
        ({"authorization": "Bearer on"}, 401),
        ({"authorization": "Bearer  one"}, 200),
        ({"authorization": "Basic one"}, 401),
        ({"authorization": "Bearer é".encode("latin-1")}, 401),
        ({"x-api-key": "# comment"}, 401),
    ):
        assert client.post("/v1/embeddings", json=body, headers=headers).status_code == status, headers
    for path in _PROBES:
        assert client.get(path).status_code == 200
    for path in ("/v1/models", "/info"):
        assert client.get(path).status_code == 401
    # The file is read again.
    file.write_text("rotated\n", encoding="utf-8")
    process.process.send_signal(signal.SIGHUP)
    until(lambda: client.post("/embed", json={"inputs": "a"}, headers={"x-api-key": "rotated"}).status_code == 200)
    assert client.post("/embed", json={"inputs": "a"}, headers={"x-api-key": "from-file"}).status_code == 401
    assert "one" not in process.log.replace("None", "")


def test_metrics_can_be_protected(start: Callable[..., Process], dense_path: Path) -> None:
    environment = {"STONNX_API_KEYS": "one, two"}
    client = start(dense_path, "--protect-metrics", environment=environment).client
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer two"}).status_code == 200
    assert client.get("/health").status_code == 200


def test_sigterm_ends_the_server_after_the_requests_in_progress(start: Callable[..., Process], slow_path: Path) -> None:
    """Pain 30: what was accepted is answered, new requests while it drains too, ready says 503, and the status is 0."""
    process = start(slow_path, "--drain-delay", "3")
    texts = [f"the river {index} flows and the sun shines" for index in range(600)]
    statuses: list[int] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=process.url, timeout=60) as client:
            for _ in range(100):
                try:
                    statuses.append(client.post("/embed", json={"inputs": f"what {number} is"}).status_code)
                except httpx.ConnectError:
                    return  # the server does not listen any more
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    return  # it closed a connection that was idle just when the next request was sent

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        job = pool.submit(lambda: httpx.post(process.url + "/embed", json={"inputs": texts}, timeout=60))
        others = [pool.submit(ask, number) for number in range(4)]
        until(lambda: len(statuses) > 3 and 'lane="bulk"} 0.0' not in process.client.get("/metrics").text)
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("Ending")
        ready = process.client.get("/health/ready")
        assert ready.status_code == 503
        assert "retry-after" in ready.headers
        assert process.client.get("/health/live").status_code == 200
        answer = job.result(60)
        for other in others:
            other.result(60)
    assert answer.status_code == 200
    assert len(answer.json()) == 600
    assert set(statuses) == {200}
    assert process.process.wait(60) == 0


def test_draining_has_a_bound(start: Callable[..., Process], slow_path: Path) -> None:
    process = start(slow_path, "--drain-delay", "0", "--drain-timeout", "1", "--request-timeout", "600")
    texts = [f"the river {index} flows " * 10 for index in range(2048)]

    def ask() -> None:
        answer = httpx.post(process.url + "/embed", json={"inputs": texts}, timeout=120)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(ask)
        until(lambda: 'lane="bulk"} 0.0' not in process.client.get("/metrics").text)
        assert process.end() == 0
        job.result(60)
    assert process.wait_for("Ended").string.endswith(
        "Ended. 1 requests did not end within drain_timeout (1 s) and were cut off"
    )
    assert "Traceback" not in process.log


def test_a_second_signal_ends_the_server_at_once(start: Callable[..., Process], slow_path: Path) -> None:
    process = start(slow_path, "--drain-delay", "60")
    process.process.send_signal(signal.SIGTERM)
    process.wait_for("Ending")
    assert process.end() == 128 + signal.SIGTERM


def _replace(bundle: Path, seed: int) -> None:
    """Put another bundle in the place of one, as `mv` does."""
    fresh = write_bundle(
        bundle.with_name("fresh"), {"default": dense_graph(toy_table(8, seed))}, task="embedding", embedding_dimension=8
    )
    old = bundle.with_name("old")
    bundle.rename(old)
    fresh.rename(bundle)
    shutil.rmtree(old)


@pytest.mark.parametrize("how", ["watch", "sighup"])
def test_a_replaced_bundle_is_loaded_without_a_dropped_request(
    start: Callable[..., Process], tmp_path: Path, how: str
) -> None:
    bundle = dense_bundle(tmp_path / "bundle")
    process = start(f"toy={bundle}", *(["--watch"] if how == "watch" else []))
    before = SentenceTransformer(bundle).encode("the river")
    statuses: set[int] = set()
    vectors: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=process.url, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/v1/embeddings", json={"input": "the river"})
                statuses.add(response.status_code)
                vectors.append(response.json()["data"][0]["embedding"])

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask) for _ in range(3)]
        try:
            until(lambda: len(vectors) > 20)
            _replace(bundle, 6)
            after = SentenceTransformer(bundle).encode("the river")
            if how == "sighup":
                process.process.send_signal(signal.SIGHUP)
            process.wait_for("toy was replaced")
            seen = len(vectors)
            until(lambda: len(vectors) > seen + 20)
        finally:
            stop.set()
        for client in clients:
            client.result(60)
    assert statuses == {200}
    np.testing.assert_allclose(vectors[0], before, atol=1e-6)
    np.testing.assert_allclose(vectors[-1], after, atol=1e-6)
    assert "stonnx_reloads_total 1.0" in process.client.get("/metrics").text


def test_a_bundle_that_cannot_be_loaded_replaces_nothing(start: Callable[..., Process], tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "bundle")
    process = start(f"toy={bundle}")
    wanted = process.client.post("/embed", json={"inputs": "the river"}).json()
    intact = (bundle / "default.onnx").read_bytes()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"damaged")
    fresh.replace(bundle / "default.onnx")
    for _ in range(2):
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("toy was not replaced")
    assert process.log.count("was not replaced") == 1
    assert process.client.post("/embed", json={"inputs": "the river"}).json() == wanted
    fresh.write_bytes(intact)
    fresh.replace(bundle / "default.onnx")
    process.process.send_signal(signal.SIGHUP)
    process.wait_for("toy was replaced")


def test_the_file_is_read_again(
    start: Callable[..., Process], dense_path: Path, sparse_path: Path, rerank_path: Path, tmp_path: Path
) -> None:
    """SIGHUP: models that are new, gone or have other settings, keys, limits; what cannot change is said."""
    file = tmp_path / "serve.toml"

    def write(text: str, *models: str) -> None:
        file.write_text("\n".join([text, *(f"[[model]]\n{model}" for model in models)]), encoding="utf-8")

    def again(pattern: str) -> None:
        lines = len(process.lines)
        process.process.send_signal(signal.SIGHUP)
        process.wait_for(pattern, start=lines)
        process.wait_for("Read again|not read again", start=lines)

    dense, sparse, rerank = (f'bundle = "{path}"' for path in (dense_path, sparse_path, rerank_path))
    write("max_texts = 4", f'name = "a"\n{dense}', f'name = "b"\n{sparse}')
    process = start("--config", file)
    client = process.client
    wanted = client.post("/embed", json={"inputs": "the river"}).json()
    write(
        'max_texts = 2\napi_key = ["secret"]\ndevice = "cuda"',
        f'name = "a"\naliases = ["other"]\nmax_seq_length = 4\n{dense}',
        f'name = "c"\n{rerank}',
    )
    again("device was not changed: that needs a restart")
    assert client.post("/embed", json={"inputs": "a"}).status_code == 401
    client.headers["x-api-key"] = "secret"
    assert client.post("/embed", json={"inputs": "the river"}).json() == wanted
    names = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    assert set(names) == {"a", "c"}
    assert (names["a"]["aliases"], names["a"]["max_input_tokens"]) == (["other"], 4)
    assert client.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200
    assert client.post("/embed_sparse", json={"inputs": "a", "model": "b"}).status_code == 404
    assert client.post("/embed", json={"inputs": ["a", "b", "c"]}).status_code == 413
    assert client.get("/health/ready").status_code == 200
    for text, message in (("prot = 1", "prot is not known"), ('alias = ["x=nope"]', "there is no model 'nope'")):
        write(text, f'name = "d"\n{dense}')
        again(f"The settings were not read again: .*{message}")
        assert {entry["id"] for entry in client.get("/v1/models").json()["data"]} == {"a", "c"}
    # A model that cannot be loaded does not stop the others.
    write('api_key = ["secret"]', f'name = "a"\n{dense}', 'name = "e"\nbundle = "/nothing/here"')
    again("The model e was not loaded: ")
    assert {entry["id"] for entry in client.get("/v1/models").json()["data"]} == {"a"}
    assert client.post("/embed", json={"inputs": ["a", "b", "c"]}).status_code == 200


def test_the_log_has_requests_and_no_texts(start: Callable[..., Process], dense_path: Path) -> None:
    process = start(dense_path, "--log-format", "json")
    trace = "0af7651916cd43dd8448eb211c80319c"
    process.client.post(
        "/v1/embeddings",
        json={"input": ["confidential words", "b"]},
        headers={"x-request-id": "my-id-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"},
    )
    process.wait_for("my-id-1")
    entry = next(json.loads(line) for line in process.lines if "my-id-1" in line)
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/embeddings", 200)
    assert (entry["texts"], entry["model"], entry["trace_id"]) == (2, "toy-dense", trace)
    assert entry["tokens"] > 4
    assert {"time", "level", "ms", "queue_ms", "run_ms", "client"} < set(entry)
    assert "confidential" not in process.log
    # Probes that are answered are not worth a line.
    process.client.get("/health")
    process.client.get("/v1/models")
    process.wait_for("/v1/models")
    assert '"/health"' not in process.log
    # An id that could end the line is replaced.
    response = process.client.post("/embed", json={"inputs": "a"}, headers={"x-request-id": "a b"})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_responses_say_where_the_time_went(client: httpx.Client) -> None:
    response = client.post("/embed", json={"inputs": ["a", "b"]}, headers={"x-request-id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    for name in ("x-compute-type", "x-compute-time", "x-compute-tokens", "x-total-time", "x-queue-time"):
        assert name in response.headers
    assert response.headers["x-compute-tokens"] == "6"
    assert re.fullmatch(r"total;dur=[\d.]+, tokenization;dur=.*", response.headers["server-timing"])


def test_pages_of_other_origins_are_let_in_if_the_operator_says_so(
    start: Callable[..., Process], client: httpx.Client, dense_path: Path
) -> None:
    headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/embed", headers=headers).headers
    process = start(dense_path, "--cors-origin", "https://example.org")
    allowed = process.client.options("/embed", headers=headers | {"access-control-request-headers": "authorization"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    answered = process.client.post("/embed", json={"inputs": "a"}, headers={"origin": "https://example.org"})
    assert answered.headers["access-control-allow-origin"] == "https://example.org"
    assert "x-truncated" in answered.headers["access-control-expose-headers"]


def test_another_address_without_a_key_is_warned_of(start: Callable[..., Process], dense_path: Path) -> None:
    process = start(dense_path, "--host", "0.0.0.0")
    assert "no --api-key is set" in process.log
    assert "no --api-key is set" not in start(dense_path, "--host", "0.0.0.0", "--api-key", "k").log


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    process = Process([str(tmp_path)])
    try:
        assert process.process.wait(60) == 1
        process._reader.join(10)
        assert "stonnx serve: " in process.log
        assert "Traceback" not in process.log
    finally:
        process.close()


def test_a_port_that_is_taken_is_named(server: Process, dense_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "stonnx", "serve", str(dense_path), "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


def test_the_server_connects_to_nothing(dense_path: Path) -> None:
    """Pain 32: no telemetry. An audit hook sees every connection that Python makes."""
    code = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: event == 'socket.connect' and seen.append(args[1]))\n"
        "from stonnx.cli import main\n"
        f"status = main(['serve', {str(dense_path)!r}, '--port', '0', '--drain-delay', '0'])\n"
        "print(status, seen)\n"
    )
    log, pipe = "", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            log += line
            if "Ready on" in line:  # before, the signal would end the process without a word
                time.sleep(3)
                process.terminate()
        assert process.stdout.read() == "0 []\n", log
    assert "Ready on" in log


def test_without_the_extra_the_message_says_what_to_install(dense_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['starlette'] = None\n"
        "from stonnx.cli import main\n"
        f"sys.exit(main(['serve', {str(dense_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'pip install "stonnx[cpu,serve]"' in done.stderr
