"""Bundles and caches that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_conditions import LOAD, python
from small_hub import ENCODE, Hub, environment, run

# Root may write everywhere, unless it gives that up.
AS_ANYBODY = """
import ctypes, os
if os.geteuid() == 0:
    version_3, this_process, none = 0x20080522, 0, (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version_3, this_process), none) == 0
import stonnx._bundle.held_file
stonnx._bundle.held_file._COARSEST_CLOCK = 0  # there is something to remember, and no place for it
"""


def lock(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_bundle_and_a_cache_that_cannot_be_written(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "stonnx").mkdir()
    lock(tmp_path / "stonnx")
    lock(bundle)
    code = AS_ANYBODY + "\nimport sys\nassert not os.access(sys.argv[1], os.W_OK, effective_ids=True)\n" + LOAD
    try:
        result = python(code, str(bundle), env=environment(hub, tmp_path), cwd=tmp_path)
    finally:
        bundle.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "stonnx").iterdir()) == []


@pytest.mark.parametrize("offline", [{"HF_HUB_OFFLINE": "1"}, {}], ids=["offline", "online"])
def test_a_hub_cache_that_cannot_be_written(hub: Hub, bundle: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    lock(tmp_path / "hf")
    (tmp_path / "stonnx").touch()  # no directory, and nobody can make one
    code = AS_ANYBODY + ENCODE
    result = python(code, "somebody/toy", "{}", env=environment(hub, tmp_path) | offline, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
