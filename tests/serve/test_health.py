"""Health tells the truth: threads that are frozen or dead, numbers that are wrong, runs that fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from toy_bundles import dense_bundle

import stonnx
from stonnx import SentenceTransformer
from stonnx._batcher import workers as workers_module
from stonnx._model.work import Work
from stonnx.serve.app import Server
from stonnx.serve.settings import ModelSettings, Settings


@contextlib.asynccontextmanager
async def running(path: Path, **settings: Any) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server in this process, with its models loaded, and a client without a socket."""
    server = Server(Settings(models=(ModelSettings(str(path), "toy"),), access_log=False, **settings))
    ready = asyncio.Event()
    server.on_ready = server.on_failure = ready.set
    async with server.app.router.lifespan_context(server.app):
        await ready.wait()
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield server, client


def run(check: Callable[[Server, httpx.AsyncClient], Awaitable[None]], path: Path, **settings: Any) -> None:
    async def main() -> None:
        async with running(path, **settings) as (server, client):
            await check(server, client)

    asyncio.run(main())


async def statuses(client: httpx.AsyncClient) -> tuple[int, int, int]:
    """Those of live, ready and health."""
    paths = ("/health/live", "/health/ready", "/health")
    live, ready, health = [(await client.get(path)).status_code for path in paths]
    return live, ready, health


def test_a_server_that_starts_lives_and_is_not_ready(dense_path: Path) -> None:
    """Pain 15."""

    async def check() -> None:
        server = Server(Settings(models=(ModelSettings(str(dense_path)),)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://server") as client:
            assert await statuses(client) == (200, 503, 503)
            ready = await client.get("/health/ready")
            assert "being loaded" in ready.json()["error"]
            refused = await client.post("/v1/embeddings", json={"input": "a"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/v2/health/ready")).json() == {"ready": False}
            assert (await client.get("/metrics")).status_code == 200
            server.models.load()
            server.health.loaded = True
            assert await statuses(client) == (200, 200, 200)
            server.close()

    asyncio.run(check())


def test_a_frozen_worker_is_seen_and_forgiven_when_it_goes_on(
    dense_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pains 14 and 15: live asks for a restart while a run takes much longer than it should."""
    monkeypatch.setattr(workers_module, "_FROZEN_SECONDS", 0.2)
    freeze, frozen = threading.Event(), threading.Event()
    original = Work.run

    def slow(work: Work, texts: Any, *, alone: bool) -> Any:
        if not freeze.is_set():
            frozen.set()
            assert freeze.wait(120)
        return original(work, texts, alone=alone)

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        assert await statuses(client) == (200, 200, 200)
        monkeypatch.setattr(Work, "run", slow)
        stuck = asyncio.create_task(client.post("/embed", json={"inputs": "a"}))
        await asyncio.to_thread(frozen.wait, 60)
        start = time.monotonic()
        while (await client.get("/health/live")).status_code == 200:
            assert time.monotonic() - start < 60
            await asyncio.sleep(0.02)
        live = await client.get("/health/live")
        assert "in progress for" in live.json()["error"]
        assert await statuses(client) == (503, 503, 503)
        freeze.set()
        assert (await stuck).status_code == 200
        assert await statuses(client) == (200, 200, 200)

    run(check, dense_path)


def test_a_worker_that_has_ended_is_seen(dense_path: Path) -> None:
    async def check(server: Server, client: httpx.AsyncClient) -> None:
        ended = threading.Thread(target=lambda: None, name="stonnx-batcher-9")
        ended.start()
        ended.join()
        server.models.schedulers["cpu"]._workers._threads.append(ended)
        assert await statuses(client) == (503, 503, 503)
        assert "stonnx-batcher-9 ended" in (await client.get("/health/live")).json()["error"]

    run(check, dense_path)


def test_runs_that_fail_one_after_the_other_need_a_probe_that_passes(
    dense_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = threading.Event()

    def probe(model: SentenceTransformer) -> float:
        if not passes.is_set():
            raise stonnx.ProbeError("other vectors than where it was exported")
        return 1.0

    def fail(*_: Any, **__: Any) -> None:
        raise stonnx.RunError("no memory")

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(SentenceTransformer, "run_probe", probe)
        with monkeypatch.context() as patch:
            patch.setattr(Work, "run", fail)
            for number in range(3):
                assert await statuses(client) == (200, 200, 200), number
                response = await client.post("/embed", json={"inputs": f"a {number}"})
                assert response.status_code == 500
                assert response.headers["x-request-id"] in response.json()["error"]
                assert "no memory" not in response.text
        assert await statuses(client) == (200, 503, 503)
        passes.set()
        assert await statuses(client) == (200, 200, 200)
        assert (await client.post("/embed", json={"inputs": "a"})).status_code == 200

    run(check, dense_path, probe_seconds=0)


def test_health_repeats_the_probe_of_the_bundle(dense_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose numbers have become wrong is not ready, and says which model it is."""
    is_wrong = threading.Event()

    def probe(model: SentenceTransformer) -> float:
        if is_wrong.is_set():
            raise stonnx.ProbeError("cosine 0.5")
        return 1.0

    async def until(client: httpx.AsyncClient, status: int) -> httpx.Response:
        start = time.monotonic()
        while (response := await client.get("/health/ready")).status_code != status:
            assert time.monotonic() - start < 60
            await asyncio.sleep(0.02)
        return response

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(SentenceTransformer, "run_probe", probe)
        is_wrong.set()
        refused = await until(client, 503)
        assert "probe of the model toy failed: cosine 0.5" in refused.json()["error"]
        assert (await client.get("/health/live")).status_code == 200
        assert 'stonnx_probes_total{result="failed"}' in (await client.get("/metrics")).text
        is_wrong.clear()
        await until(client, 200)

    run(check, dense_path, probe_seconds=0.05)


def test_the_probe_of_a_real_bundle_passes(minilm_bundle: Path) -> None:
    model = SentenceTransformer(minilm_bundle)
    closeness = model.run_probe()
    assert closeness is not None
    assert closeness > 0.9999


async def leaves(server: Server, body: bytes) -> None:
    """A request whose connection is closed after its body."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/embed",
        "raw_path": b"/embed",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "client": None,
        "server": ("server", 80),
    }
    await server.app(scope, receive, send)


def test_a_client_that_leaves_frees_its_place(dense_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pains 4 and 5: its texts leave the queue, and it is 499 in the metrics."""
    go_on, entered = threading.Event(), threading.Event()
    original = Work.run
    texts = 0

    def held(work: Work, items: Any, *, alone: bool) -> Any:
        nonlocal texts
        entered.set()
        assert go_on.wait(60)
        texts += len(items)
        return original(work, items, alone=alone)

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(Work, "run", held)
        stays = [asyncio.create_task(client.post("/embed", json={"inputs": f"stays {n}"})) for n in range(8)]
        await asyncio.to_thread(entered.wait, 30)
        await asyncio.gather(*(leaves(server, b'{"inputs": "leaves %d"}' % number) for number in range(100)))
        load = server.models.schedulers["cpu"].load()
        assert load.cancelled_texts == 100
        go_on.set()
        for response in await asyncio.gather(*stays):
            assert response.status_code == 200
        assert texts == 8
        metrics = (await client.get("/metrics")).text
        assert "stonnx_disconnected_total 100.0" in metrics
        assert 'code="499"' in metrics
        assert 'stonnx_texts_cancelled_total{device="cpu"} 100.0' in metrics

    run(check, dense_path)


def test_a_replaced_model_is_freed(tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "bundle")

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        assert (await client.post("/embed", json={"inputs": "a"})).status_code == 200
        old = weakref.ref(next(iter(server.models)).model)
        os.utime(bundle / "stonnx.json")
        await server.reload()
        assert (await client.post("/embed", json={"inputs": "b"})).status_code == 200
        gc.collect()
        assert old() is None

    run(check, bundle)


def test_a_request_that_fails_leaves_nothing_behind(dense_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pain 21: its texts are gone at once, not when the garbage collector comes, which many small objects call and few
    large ones do not."""

    def fail(*_: Any, **__: Any) -> None:
        raise stonnx.RunError("no memory")

    def held(work: Work, items: Any, *, alone: bool) -> Any:
        time.sleep(0.2)
        raise stonnx.RunError("no memory")

    def held_by_anybody() -> list[Any]:
        kinds = ("stonnx.serve.context.Call", "stonnx._batcher.waiting.Request", "stonnx._text.tokens.TokenIds")
        return [entry for entry in gc.get_objects() if f"{type(entry).__module__}.{type(entry).__name__}" in kinds]

    # What is left of other tests and of the start; it is kept, so that nothing else gets its address.
    others: list[Any] = []

    def left() -> list[str]:
        known = set(map(id, others))
        return [type(entry).__name__ for entry in held_by_anybody() if id(entry) not in known]

    async def check(server: Server, client: httpx.AsyncClient) -> None:
        async def nothing_is_left() -> None:
            # Threads let go of the last results a moment after they were delivered.
            end = time.monotonic() + 60
            while left():
                assert time.monotonic() < end, left()
                await asyncio.sleep(0.01)

        async def ask(status: int, body: dict[str, Any], **headers: str) -> None:
            response = await client.post("/embed", json=body, headers=headers)
            assert response.status_code == status, response.text

        many = [f"the river {number} flows" for number in range(300)]
        gc.collect()
        gc.disable()
        others.extend(held_by_anybody())
        await ask(200, {"inputs": many})
        await nothing_is_left()
        await ask(413, {"inputs": many * 10})
        await ask(422, {"inputs": ["a", "river " * 100], "truncate": False})
        await ask(404, {"inputs": many, "model": "nope"})
        await nothing_is_left()
        with monkeypatch.context() as patch:
            patch.setattr(Work, "run", fail)
            await ask(500, {"inputs": "a"})
            await ask(500, {"inputs": many})
            await nothing_is_left()
            patch.setattr(Work, "run", held)
            await ask(504, {"inputs": many}, **{"x-request-timeout-ms": "50"})
            await leaves(server, b'{"inputs": ["a b", "c d"]}')
        await nothing_is_left()

    # pytest keeps what is logged, and an error that is logged has frames.
    logging.disable(logging.CRITICAL)
    try:
        run(check, dense_path)
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
