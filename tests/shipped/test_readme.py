"""The README is true: its Python blocks run, its commands exist, its files are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stonnx._device.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def directory(minilm_bundle: Path, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with bundles under the names that the README uses: one real, two small ones of the same kind."""
    from zoo import build_checkpoint, row

    from stonnx_export import export

    directory = tmp_path_factory.mktemp("readme")
    (directory / "all-MiniLM-L6-v2-fp32").symlink_to(minilm_bundle)
    for name in ("naver/splade-cocondenser-ensembledistil", "cross-encoder/ms-marco-MiniLM-L6-v2"):
        checkpoint = build_checkpoint(row(name), shared_directory / "zoo")
        export(checkpoint, directory / f"{name.partition('/')[2]}-fp32", name=name)
    return directory


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=range(len(PYTHON_BLOCKS)))
def test_python_blocks_run(block: str, directory: Path) -> None:
    result = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=directory, timeout=120)
    assert result.returncode == 0, result.stderr


def test_there_are_python_blocks() -> None:
    assert len(PYTHON_BLOCKS) >= 3


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^stonnx (\w+)", README, re.M))))
def test_commands_exist(command: str) -> None:
    script = Path(sys.executable).with_name("stonnx")
    assert subprocess.run([script, command, "--help"], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (\w[\w-]*)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_device_says_whether_it_has_run_on_hardware() -> None:
    rows = re.findall(r'^\| `"(\w+)"`.*\|$', README, re.M)
    assert rows == [provider.device for provider in PROVIDERS]
