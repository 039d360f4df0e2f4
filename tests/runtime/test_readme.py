"""The README is true: its Python blocks run, its commands exist, its files are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def directory(minilm_bundle: Path, tmp_path: Path) -> Path:
    """A directory with the bundle under the name that the README uses."""
    (tmp_path / "all-MiniLM-L6-v2-fp32").symlink_to(minilm_bundle)
    return tmp_path


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
