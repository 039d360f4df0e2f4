"""A small Hub of our own, and processes that load models from it."""

from __future__ import annotations

import contextlib
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
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A server that answers what huggingface_hub asks for: repositories are directories."""

    url: str
    repositories: dict[str, Path]
    commit: str = COMMIT
    # What branches and tags of a repository, called NAME@REVISION in `repositories`, are commits of.
    revisions: dict[str, str] = field(default_factory=dict)
    # The token without which nothing is there, as for a private repository.
    token: str | None = None
    # The paths of all requests, and of those for the contents of a file; the tokens that were shown.
    requests: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def repository(self, name: str, revision: str) -> tuple[Path | None, str]:
        """The directory of a revision, and its commit."""
        named = {commit: other for other, commit in self.revisions.items()}.get(revision, revision)
        if named in self.revisions:
            return self.repositories.get(f"{name}@{named}"), self.revisions[named]
        return self.repositories.get(name) if revision in ("", "main", self.commit) else None, self.commit

    # So many requests more are answered with 503.
    busy: int = 0
    # A file of this name is sent by half; the other half waits for `go_on`.
    stalls: str | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub without repositories."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_GET(self) -> None:
            self._answer(send=True)

        def _answer(self, *, send: bool) -> None:
            state.requests.append(self.path)
            if state.busy:
                state.busy -= 1
                self._send(503, b"", {}, send)
                return
            shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
            state.tokens |= {shown} if shown else set()
            path = self.path.split("?")[0].removeprefix("/")
            if path.startswith("api/models/"):
                name, _, rest = path.removeprefix("api/models/").replace("/tree/", "/revision/").partition("/revision/")
                root, commit = state.repository(name, unquote(rest.split("/")[0]))
                root = root if state.token in (None, shown) else None
                files = [] if root is None else [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
                siblings = [{"rfilename": file} for file in files]
                answer: object = {"id": name, "sha": commit, "siblings": siblings, "private": False}
                if "/tree/" in path and root is not None:
                    answer = [{"type": "file", "path": f, "size": (root / f).stat().st_size, "oid": f} for f in files]
                body = json.dumps(answer).encode()
                self._send(200 if root else 404, body if root else b"{}", {}, send, missing="RepoNotFound")
                return
            name, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            root, commit = state.repository(name, unquote(revision))
            if root is None or state.token not in (None, shown):
                self._send(404, b"", {}, send, missing="RepoNotFound")
            elif not (root / file).is_file():
                self._send(404, b"", {"X-Repo-Commit": commit}, send, missing="EntryNotFound")
            else:
                if send:
                    state.downloads.append(file)
                body = (root / file).read_bytes()
                tag = hashlib.sha256(body).hexdigest()
                headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                if start:  # the rest of a download that was interrupted
                    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self._send(206 if start else 200, body[start:], headers, send)

        def _send(self, status: int, body: bytes, headers: dict[str, str], send: bool, missing: str = "") -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if status == 404:
                self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not send:
                return
            if state.stalls is not None and self.path.endswith("/" + state.stalls):
                half = len(body) // 2
                self.wfile.write(body[:half])
                state.stalled.set()
                state.go_on.wait(300)
                body = body[half:]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may have been killed
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Hub(f"http://127.0.0.1:{server.server_address[1]}", {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


ENCODE = """
import sys
import stonnx
model = stonnx.SentenceTransformer(sys.argv[1], **eval(sys.argv[2]))
print(model.info.source, model.encode("Hello").shape)
"""


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """The variables of a process that asks this Hub and has caches of its own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    caches = {"HF_HOME": str(cache / "hf"), "STONNX_HOME": str(cache / "stonnx")}
    return inherited | caches | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}


def run(hub: Hub, cache: Path, name: str, options: str = "{}", **more: str) -> subprocess.CompletedProcess[str]:
    """Load a model and encode a text, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", ENCODE, name, options],
        capture_output=True,
        text=True,
        env=environment(hub, cache) | more,
        cwd=cache,
        timeout=300,  # eight processes import PyTorch at once
    )
