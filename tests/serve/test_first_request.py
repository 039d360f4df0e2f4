"""The first request after the server is ready finds everything loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import asyncio, sys
import httpx
from stonnx.serve.app import Server
from stonnx.serve.settings import ModelSettings, Settings

async def main():
    server = Server(Settings(models=(ModelSettings(sys.argv[1]),), access_log=False))
    ready = asyncio.Event()
    server.on_ready = server.on_failure = ready.set
    async with server.app.router.lifespan_context(server.app):
        await ready.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://server") as client:
            await client.get("/health/ready")
            before = set(sys.modules)
            (await client.post(sys.argv[2], json={"input": "a", "inputs": "a"})).raise_for_status()
            print(*sorted(set(sys.modules) - before))

asyncio.run(main())
"""


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_the_first_request_imports_nothing(dense_path: Path, path: str) -> None:
    """Pain 17: it is as fast as the others. `make bench-serve` has the times."""
    command = [sys.executable, "-c", _CODE, str(dense_path), path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
