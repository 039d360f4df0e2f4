"""The variant for AMX on machines without it: the same source, with the tile instructions in plain C++."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .builds import ROOT, build, can_build


@pytest.mark.slow
@pytest.mark.skipif(not can_build(), reason="this machine has no CMake, or no C++ compiler")
def test_every_operator(tmp_path: Path) -> None:
    package = build(tmp_path, "STONNX_EMULATE_AMX=ON")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels", "-k", "amx_emulated"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout
