"""Servers for the tests: real processes on free ports, started by the command."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, rows_bundle, sparse_graph, toy_table, write_bundle

if TYPE_CHECKING:
    import httpx

# An environment that was made before the extra `serve` does not have them: pip install --group dev
_NEEDED = ("starlette", "uvicorn", "msgspec", "orjson", "prometheus_client", "httpx")
if any(importlib.util.find_spec(package) is None for package in _NEEDED):
    collect_ignore_glob = ["test_*.py"]

_START_SECONDS = 120


class Process:
    """A server: ``stonnx serve`` with some arguments, and a client for it."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        settings = {name: value for name, value in os.environ.items() if not name.startswith("STONNX_SERVE")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stonnx", "serve", *map(str, arguments), "--port", "0"],
            env=settings | {"HF_HUB_OFFLINE": "1"} | dict(environment or {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Listening on (\S+);").group(1)
        import httpx

        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, *, start: int = 0) -> re.Match[str]:
        """The first line of the log from ``start`` on that matches."""
        end = time.monotonic() + _START_SECONDS
        with self._changed:
            while True:
                for line in self.lines[start:]:
                    if found := re.search(pattern, line):
                        return found
                if self.process.poll() is not None and not self._reader.is_alive():
                    raise AssertionError(f"The server ended before {pattern!r}:\n{self.log}")
                if time.monotonic() > end:
                    raise AssertionError(f"No {pattern!r} in the log:\n{self.log}")
                self._changed.wait(0.5)

    def ready(self) -> Process:
        self.wait_for(r"Ready on")
        return self

    def end(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_bundle(tmp_path_factory.mktemp("serve") / "toy-dense")


@pytest.fixture(scope="session")
def slow_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that takes some milliseconds a text, so that work can be met while it is in progress."""
    return dense_bundle(tmp_path_factory.mktemp("serve") / "toy-slow", width=512, rounds=60, max_seq_length=64)


@pytest.fixture(scope="session")
def sparse_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "toy-sparse"
    return write_bundle(path, {"default": sparse_graph(toy_table(40, 3))}, task="sparse", embedding_dimension=40)


def _reranker(path: Path, labels: tuple[str, ...]) -> Path:
    second = np.linspace(0.1, 0.5, len(labels), dtype=np.float32)
    graph = pair_graph(toy_table(len(labels), 4), second, "Sigmoid")
    fields = {"task": "rerank", "num_labels": len(labels), "labels": labels, "activation": "sigmoid"}
    return write_bundle(path, {"default": graph}, **fields)


@pytest.fixture(scope="session")
def rerank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _reranker(tmp_path_factory.mktemp("serve") / "toy-rerank", ("LABEL_0",))


@pytest.fixture(scope="session")
def labels_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _reranker(tmp_path_factory.mktemp("serve") / "toy-labels", ("no", "maybe", "yes"))


@pytest.fixture(scope="session")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows_bundle(tmp_path_factory.mktemp("serve") / "toy-rows")


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, environment: Mapping[str, str] | None = None, wait: bool = True) -> Process:
            process = Process([str(argument) for argument in arguments], environment)
            stack.callback(process.close)
            return process.ready() if wait else process

        yield start


@pytest.fixture(scope="session")
def server(dense_path: Path, sparse_path: Path, rerank_path: Path, labels_path: Path) -> Iterator[Process]:
    """One server with toys of every task, for tests that change nothing."""
    prompts = dense_path.parent / "serve.toml"
    prompts.write_text(
        "\n".join(
            [
                f'[[model]]\nname = "dense"\nbundle = "{dense_path}"\naliases = ["text-embedding-3-small"]',
                '[model.prompts]\nquery = "question: "\ndocument = "document: "\nother = "what "',
                f'[[model]]\nname = "sparse"\nbundle = "{sparse_path}"',
                f'[[model]]\nname = "rerank"\nbundle = "{rerank_path}"',
            ]
        ),
        encoding="utf-8",
    )
    process = Process(["--config", str(prompts), "--alias", "asked=dense:query", "--tei-metrics"])
    try:
        yield process.ready()
    finally:
        process.close()


@pytest.fixture(scope="session")
def client(server: Process) -> httpx.Client:
    return server.client
