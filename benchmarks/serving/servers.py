"""The servers of the comparison, each in a process of its own, on the loopback address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.environments import CACHE, ROOT

_HOST = "127.0.0.1"
_START_SECONDS, _STOP_SECONDS = 180.0, 60.0
_STONNX = "import sys; from stonnx.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Spec:
    """How to start a server and send it requests. ``{port}`` in ``command`` stands for its port."""

    name: str
    command: Sequence[str]
    path: str
    ready: str
    model: str
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """A running server."""

    spec: Spec
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def resident_mb(self) -> float:
        """Resident memory (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    def cpu_seconds(self) -> float:
        """CPU time of all its threads (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def stonnx(bundle: Path) -> Spec:
    """``stonnx serve``."""
    options = ["--port", "{port}", "--no-access-log"]
    command = [sys.executable, "-c", _STONNX, "serve", f"model={bundle}", *options]
    return Spec(f"stonnx {bundle.name.rsplit('-', 1)[-1]}", command, "/v1/embeddings", "/health/ready", "model")


def fastapi(checkpoint: Path) -> Spec:
    """The file that people write: FastAPI around sentence-transformers."""
    application = "benchmarks.serving.fastapi_app:app"
    command = [sys.executable, "-m", "uvicorn", application, "--port", "{port}", "--no-access-log"]
    variables = {"MODEL": str(checkpoint)}
    return Spec("FastAPI + sentence-transformers", command, "/v1/embeddings", "/health", "model", variables)


def infinity(python: Path, checkpoint: Path) -> Spec:
    """infinity-emb on its PyTorch engine, without its telemetry and without downloads."""
    program = python.parent / "infinity_emb"
    options = ["v2", "--model-id", str(checkpoint), "--served-model-name", "model", "--engine", "torch"]
    command = [str(program), *options, "--device", "cpu", "--host", _HOST, "--port", "{port}", "--no-bettertransformer"]
    variables = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
    return Spec("infinity-emb 0.0.78", command, "/embeddings", "/health", "model", variables)


@contextmanager
def running(spec: Spec) -> Iterator[Server]:
    """A server that is ready within the block and stopped after it.

    Raises:
        RuntimeError: The server does not start. The message has the end of its log.
    """
    with socket.socket() as free:
        free.bind((_HOST, 0))
        port = free.getsockname()[1]
    log = CACHE / "serving" / f"{spec.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [part.format(port=port) for part in spec.command]
    with log.open("wb") as output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **spec.variables}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    server = Server(spec, port, process, log)
    try:
        _wait(server)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + _START_SECONDS
    address = f"http://{_HOST}:{server.port}{server.spec.ready}"
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{server.spec.name} does not start: {server.log.read_text(errors='replace')[-2000:]}")
