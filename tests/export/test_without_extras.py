"""The exporter without the packages of extras: only the checkpoints that need one ask for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# pyproject.toml: adapters, image, parquet, serve, trace.
EXTRAS = ("PIL", "peft", "pyarrow", "starlette", "uvicorn", "msgspec", "orjson", "prometheus_client", "opentelemetry")

WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None: an import of it fails
import stonnx
from stonnx_export import export
bundle = export(sys.argv[1], sys.argv[2])
print(stonnx.SentenceTransformer(bundle).encode("one text").shape)
"""


def test_a_text_model_is_exported_and_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, str(tiny_checkpoint), str(tmp_path / "bundle")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(")
