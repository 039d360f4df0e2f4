"""Names to directories, with a small Hub of our own: organizations, downloads, offline, export on first use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server that answers what huggingface_hub asks for: repositories are directories."""

    url: str
    repositories: dict[str, Path]
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            state.requests.append(self.path)
            path = self.path.split("?")[0].removeprefix("/")
            if path.startswith("api/models/"):
                name = path.removeprefix("api/models/").split("/revision/")[0].split("/tree/")[0]
                root = state.repositories.get(name)
                files = [] if root is None else [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
                siblings = [{"rfilename": file} for file in files]
                answer: object = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False}
                if "/tree/" in path and root is not None:
                    answer = [{"type": "file", "path": f, "size": (root / f).stat().st_size, "oid": f} for f in files]
                body = json.dumps(answer).encode()
                self._send(200 if root else 404, body if root else b"{}", {}, send, missing="RepoNotFound")
                return
            name, _, rest = path.partition("/resolve/")
            root, file = state.repositories.get(name), rest.partition("/")[2]
            if root is None:
                self._send(404, b"", {}, send, missing="RepoNotFound")
            elif not (root / file).is_file():
                self._send(404, b"", {"X-Repo-Commit": COMMIT}, send, missing="EntryNotFound")
            else:
                body = (root / file).read_bytes()
                tag = hashlib.sha256(body).hexdigest()
                self._send(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}, send)

        def _send(self, status: int, body: bytes, headers: dict[str, str], send: bool, missing: str = "") -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if status == 404:
                self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hub(f"http://127.0.0.1:{server.server_address[1]}", {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


ENCODE = """
import sys
import stonnx
model = stonnx.SentenceTransformer(sys.argv[1], **eval(sys.argv[2]))
print(model.info.source, model.encode("Hello").shape)
"""


def run(hub: Hub, cache: Path, name: str, options: str = "{}", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "hf"), "STONNX_HOME": str(cache / "stonnx")}
    environment |= {"HF_HUB_DISABLE_XET": "1"} | more
    return subprocess.run(
        [sys.executable, "-c", ENCODE, name, options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        timeout=300,  # eight processes import PyTorch at once
    )


def test_a_bundle_on_the_hub_is_downloaded_once_and_works_offline(
    hub: Hub, minilm_bundle: Path, tmp_path: Path
) -> None:
    hub.repositories["sentence-transformers/mini"] = minilm_bundle
    first = run(hub, tmp_path, "mini")  # a bare name belongs to sentence-transformers
    assert first.returncode == 0, first.stderr
    assert "(384,)" in first.stdout
    downloads = [path for path in hub.requests if path.endswith("model.onnx")]
    assert downloads
    hub.requests.clear()
    again = run(hub, tmp_path, "sentence-transformers/mini", "{'local_files_only': True}")
    assert again.returncode == 0, again.stderr
    assert hub.requests == []
    offline = run(hub, tmp_path, "mini", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nobody/nothing", "{}", "nobody/nothing is no directory here"),
        ("nobody/nothing", "{'local_files_only': True}", "in the local cache"),
        ("a/b/c", "{}", "no directory here"),
        ("./missing", "{}", "no directory here"),
    ],
)
def test_what_is_not_there(hub: Hub, tmp_path: Path, name: str, options: str, message: str) -> None:
    result = run(hub, tmp_path, name, options)
    assert result.returncode == 1
    assert message in result.stderr
    assert "ModelNotFoundError" in result.stderr


def test_a_checkpoint_on_the_hub_is_exported_on_first_use(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/tiny"] = tiny_model
    first = run(hub, tmp_path, "somebody/tiny")
    assert first.returncode == 0, first.stderr
    assert "somebody/tiny" in first.stdout
    (bundle,) = (tmp_path / "stonnx").glob("tiny-fp32-*/stonnx.json")
    written = bundle.stat().st_mtime_ns
    again = run(hub, tmp_path, "somebody/tiny")
    assert again.returncode == 0, again.stderr
    assert bundle.stat().st_mtime_ns == written


def test_processes_that_start_at_once_make_one_export(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: run(hub, tmp_path, str(tiny_model)), range(8)))
    assert [result.returncode for result in results] == [0] * 8, results[0].stderr
    assert len({result.stdout for result in results}) == 1
    assert sum("Exporting" in result.stderr for result in results) == 1
    assert len(list((tmp_path / "stonnx").glob("*/stonnx.json"))) == 1


def test_a_changed_checkpoint_is_exported_again(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert run(hub, tmp_path, str(copy)).returncode == 0
    os.utime(copy / "model.safetensors", (1, 1))
    assert run(hub, tmp_path, str(copy)).returncode == 0
    assert len(list((tmp_path / "stonnx").glob("*/stonnx.json"))) == 2


@pytest.fixture(scope="module")
def tiny_model(shared_directory: Path) -> Path:
    """A small checkpoint: the quickest of the table to export."""
    from zoo import build_checkpoint, row

    return build_checkpoint(row("all-MiniLM-L6-v2"), shared_directory / "zoo")
