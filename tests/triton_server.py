"""A real Triton server, of the wheel nvidia-pytriton, which carries its binary and the Python backend.

The server and the models need an environment of their own, because the stub in the wheel works with numpy 1 only.
`make test-integrations` makes ``.venv-triton``; the variable ``STONNX_TRITON`` names another.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ENVIRONMENT = Path(os.environ.get("STONNX_TRITON") or Path(__file__).parents[1] / ".venv-triton")
_DTYPES = {"FP32": np.float32, "INT32": np.int32}


def packages() -> Path:
    """The site-packages of the environment with the server; skips if there is none."""
    found = sorted(ENVIRONMENT.glob("lib/python*/site-packages/pytriton/tritonserver"))
    if not found:
        pytest.skip(f"{ENVIRONMENT} has no tritonserver; make test-integrations installs it")
    return found[0].parents[1]


class InferError(Exception):
    """An answer that is an error: the status and the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Triton:
    """A running server."""

    def __init__(self, port: int, repository: Path, log: Path) -> None:
        self._url, self.repository, self._log = f"http://127.0.0.1:{port}", repository, log

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def infer(
        self, model: str, inputs: Mapping[str, Sequence[str | bytes]], patience: float = 60, **parameters: Any
    ) -> dict[str, Any]:
        """The outputs for columns of texts, through the binary extension of the protocol."""
        blobs, tensors = [], []
        for name, texts in inputs.items():
            pieces = [text.encode() if isinstance(text, str) else text for text in texts]
            blobs.append(b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces))
            size = {"binary_data_size": len(blobs[-1])}
            tensors.append({"name": name, "shape": [len(pieces), 1], "datatype": "BYTES", "parameters": size})
        header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True, **parameters}}).encode()
        request = urllib.request.Request(
            f"{self._url}/v2/models/{model}/infer",
            header + b"".join(blobs),
            {"Inference-Header-Content-Length": str(len(header))},
        )
        try:
            with urllib.request.urlopen(request, timeout=patience) as answer:
                length, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise InferError(error.code, json.loads(error.read())["error"]) from None
        outputs, start = {}, length
        for output in json.loads(body[:length])["outputs"]:
            dtype = np.dtype(_DTYPES[output["datatype"]])
            count = int(np.prod(output["shape"]))
            outputs[output["name"]] = np.frombuffer(body, dtype, count, start).reshape(output["shape"])
            start += count * dtype.itemsize
        return outputs


@contextlib.contextmanager
def triton(repository: Path, directory: Path, *, ready: bool = True) -> Iterator[Triton]:
    """A server of a model repository. ``directory`` is for its files. ``ready``: wait for all models."""
    place = packages()
    backend = directory / "backends" / "python"
    if not backend.exists():
        shutil.copytree(place / "pytriton/tritonserver/backends/python", backend)
        stub = "python_backend_stubs/{}.{}/triton_python_backend_stub".format(*sys.version_info[:2])
        shutil.copy(place / "pytriton/tritonserver" / stub, backend)
    port, metrics = _free_ports(2)
    environment = os.environ | {
        # The interpreter in the backend takes the packages of the first python3 in PATH.
        "PATH": os.pathsep.join((str(ENVIRONMENT / "bin"), os.environ["PATH"])),
        "LD_LIBRARY_PATH": str(place / "nvidia_pytriton.libs"),
    }
    log = directory / "tritonserver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                place / "pytriton/tritonserver/bin/tritonserver",
                *("--model-repository", repository, "--backend-directory", backend.parent),
                *("--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false"),
                *("--metrics-port", str(metrics), "--strict-readiness", "true", "--exit-on-error", "false"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        server = Triton(port, repository, log)
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                server.get(f"/v2/health/{'ready' if ready else 'live'}")
                break
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"tritonserver did not get ready:\n{server.log()[-5000:]}")
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
