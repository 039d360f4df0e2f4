"""The command line through its console script: what it writes, prints and returns."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import SentenceTransformer
from stonnx._device.providers import PROVIDERS
from stonnx._tasks import DTYPES

TEXTS = ["The weather is lovely today.", "", "He drove to the stadium.", "Сегодня тепло."]


def stonnx(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("stonnx")
    return subprocess.run(
        [str(script), *map(str, arguments)], input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("arguments", [["models"], ["models", "--for", "rerank"]], ids=["more than a buffer", "less"])
def test_nobody_reads_the_output(arguments: list[str]) -> None:
    """As in `stonnx models | head`: no message, and the exit status of a program that the signal ends."""
    reader, writer = os.pipe()
    os.close(reader)
    script = Path(sys.executable).with_name("stonnx")
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [str(script), *arguments]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, env=buffered)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_encode_writes_the_vectors_of_encode(minilm: Any, minilm_bundle: Path, lines: Path, tmp_path: Path) -> None:
    result = stonnx("encode", minilm_bundle, lines, "-o", tmp_path / "out.npy", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert "4 x 384" in result.stdout
    assert np.abs(np.load(tmp_path / "out.npy") - minilm.encode(TEXTS)).max() <= 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_encode_reads_a_pipe_and_writes_jsonl(minilm: Any, minilm_bundle: Path, tmp_path: Path) -> None:
    records = [{"id": index, "body": text} for index, text in enumerate(TEXTS)]
    output = tmp_path / "out.jsonl"
    options = ("--input-format", "jsonl", "--field", "body", "--prompt", "query: ", "--truncate-dim", 16, "--normalize")
    stdin = "\n".join(json.dumps(record) for record in records)
    result = stonnx("encode", minilm_bundle, "-", "-o", output, *options, stdin=stdin)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [{"id": row["id"], "body": row["body"]} for row in rows] == records
    expected = minilm.encode(TEXTS, prompt="query: ", truncate_dim=16, normalize_embeddings=True)
    assert np.abs(np.array([row["embedding"] for row in rows]) - expected).max() <= 1e-6


def test_encode_writes_binary_safetensors(minilm: Any, minilm_bundle: Path, lines: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    output = tmp_path / "out.safetensors"
    assert stonnx("encode", minilm_bundle, lines, "-o", output, "--precision", "ubinary").returncode == 0
    assert np.array_equal(load_file(output)["embeddings"], minilm.encode(TEXTS, precision="ubinary"))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("encode", "no/such/model/here", "TEXTS", "-o", "OUT/x.npy"), 1, "not a directory here"),
        (("encode", "BUNDLE", "OUT/missing.txt", "-o", "OUT/x.npy"), 1, "No such file"),
        (("encode", "BUNDLE", "TEXTS", "-o", "OUT/x.csv"), 1, ".npy"),
        (("encode", "BUNDLE", "TEXTS", "-o", "OUT/x.npy", "--prompt-name", "passage"), 1, "query"),
        (("encode", "BUNDLE", "TEXTS", "-o", "OUT/x.npy", "--device", "cuda"), 1, "stonnx[gpu]"),
        (("encode", "BUNDLE", "TEXTS", "-o", "OUT/x.npy", "--precision", "int8"), 2, "invalid choice"),
        (("info", "OUT"), 1, "stonnx.json"),
        (("nonsense",), 2, "invalid choice"),
    ],
)
def test_failures_say_what_to_do(
    request: pytest.FixtureRequest,
    lines: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    places = {"TEXTS": str(lines)}
    if "BUNDLE" in arguments:  # the others need no PyTorch
        places["BUNDLE"] = str(request.getfixturevalue("minilm_bundle"))
    filled = [places.get(argument, argument.replace("OUT", str(tmp_path))) for argument in arguments]
    result = stonnx(*filled)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_info_shows_the_manifest(minilm_bundle: Path) -> None:
    result = stonnx("info", minilm_bundle)
    assert result.returncode == 0
    for expected in ("all-MiniLM-L6-v2", "Pooling", "384", "256 tokens", "cosine to PyTorch", "hashes verified"):
        assert expected in result.stdout
    assert json.loads(stonnx("info", minilm_bundle, "--json").stdout)["embedding_dimension"] == 384


def test_version() -> None:
    assert stonnx("--version").stdout.startswith("stonnx ")


def help_of(*command: str) -> str:
    return " ".join(stonnx(*command, "--help").stdout.split())


def test_the_help_says_what_the_code_does() -> None:
    text = help_of("encode")
    assert "in units of 16 tokens, 256 on a GPU (default: 32)" in text
    assert "cpu, cuda, cuda:1, tensorrt, tensorrt:1, openvino (default: the best of cpu and cuda that works)" in text
    defaults = inspect.signature(SentenceTransformer.encode).parameters
    assert defaults["batch_size"].default == 32
    assert [row.device for row in PROVIDERS if row.automatic] == ["cpu", "cuda"]


@pytest.mark.usefixtures("pytorch")
def test_the_help_of_export_knows_every_recipe() -> None:
    from stonnx_export import RECIPES

    assert tuple(RECIPES) == DTYPES
    *most, last = RECIPES
    assert f"recipe of the bundle: {', '.join(most)} or {last} (default: fp32)" in help_of("export")
