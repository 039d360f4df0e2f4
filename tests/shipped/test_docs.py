"""README and docs are true: their Python blocks run, their commands exist, their files are there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stonnx._device.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES if page.is_file()}
# Their Python runs as it stands, in a directory that has the bundles they name.
RUN_AS_THEY_STAND = ("README.md", "docs/guide.md", "docs/integrations.md")
# Blocks that import one of these are skipped where it is not installed.
HOSTS = (
    "PIL",
    "chromadb",
    "haystack",
    "lancedb",
    "langchain_core",
    "llama_index",
    "mteb",
    "qdrant_client",
    "ray",
    "dask",
    "daft",
    "pyspark",
)
BLOCKS = [
    pytest.param(block, id=f"{name}-{index}")
    for name in RUN_AS_THEY_STAND
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", TEXTS[name], re.S))
]


@pytest.fixture(scope="module")
def directory(minilm_bundle: Path, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with bundles under the names that the pages use: one real, two small ones of the same kind."""
    from zoo import build_checkpoint, late_interaction, row
    from zoo.late_checkpoints import build_late_checkpoint

    from stonnx_export import export

    directory = tmp_path_factory.mktemp("readme")
    (directory / "all-MiniLM-L6-v2-fp32").symlink_to(minilm_bundle)
    for name in ("naver/splade-cocondenser-ensembledistil", "cross-encoder/ms-marco-MiniLM-L6-v2"):
        checkpoint = build_checkpoint(row(name), shared_directory / "zoo")
        export(checkpoint, directory / f"{name.partition('/')[2]}-fp32", name=name)
    late = late_interaction.row("answerdotai/answerai-colbert-small-v1")
    checkpoint = build_late_checkpoint(late, shared_directory / "late")
    export(checkpoint, directory / f"{late.name.partition('/')[2]}-fp32", name=late.name)
    if importlib.util.find_spec("PIL") is not None:
        from PIL import Image

        from tests.clip_checkpoints import clip_bundle

        (directory / "clip-ViT-B-32-fp32").symlink_to(clip_bundle(shared_directory)[1])
        for name in ("harbour.jpg", "dog.png"):
            Image.new("RGB", (64, 48), (20, 90, 160)).save(directory / name)
    return directory


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run_and_print_what_they_say(block: str, directory: Path) -> None:
    for host in HOSTS:
        if re.search(rf"^(?:from|import) {host}\b", block, re.M):
            pytest.importorskip(host)
    # Ray gives its workers a low priority: beside other tests they would hardly run.
    settings = {"PYSPARK_PYTHON": sys.executable, "DO_NOT_TRACK": "1", "RAY_worker_niceness": "0"}
    environment = os.environ | settings
    command = [sys.executable, "-c", block]
    result = subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    # Whole lines of comment, and the comment after a print, are what is printed.
    said = re.findall(r"^(?:print\(.*\)  )?# ([\[(].*|  ?\[.*)$", block, re.M)
    assert "".join("".join(said).split()) in "".join(result.stdout.split())


def test_there_are_python_blocks() -> None:
    assert len(BLOCKS) >= 4


COMMANDS = {
    command
    for text in TEXTS.values()
    for block in re.findall(r"```(?:bash|console|sh)\n(.*?)```", text, re.S)
    for command in re.findall(r"^(?:\$ )?stonnx ([a-z][\w-]+)", block, re.M)
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_exist(command: str) -> None:
    script = Path(sys.executable).with_name("stonnx")
    assert subprocess.run([script, command, "--help"], capture_output=True, timeout=60).returncode == 0


LINKS = {
    (name, link) for name, text in TEXTS.items() for link in re.findall(r"\]\((?!http)([^)#\s]+)(?:#[^)]*)?\)", text)
}


@pytest.mark.parametrize(("page", "link"), sorted(LINKS))
def test_links_lead_somewhere(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_files_that_are_named_are_there(page: str) -> None:
    named = re.findall(r"`((?:stonnx|export|tests|benchmarks|examples|docs|kernels)/[\w/.-]+\.\w+)`", TEXTS[page])
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", TEXTS[page], re.M):
        assert re.search(rf"^{target}:|^{target.rpartition('-')[0]}-\S*%:", makefile, re.M), target


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_lines_fit_120_columns(page: str) -> None:
    """Tables may be wider, and so may blocks."""
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.S | re.M)
    assert [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].split()) <= 700


def test_every_device_says_whether_it_has_run_on_hardware() -> None:
    rows = re.findall(r'^\| `"(\w+)"`.*\|$', TEXTS["docs/deployment.md"], re.M)
    assert rows == [provider.device for provider in PROVIDERS]
