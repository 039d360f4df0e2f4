"""Processes that are killed while they download or export, and many that start at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bad_conditions import FILES
from small_hub import ENCODE, Hub, environment, run


@pytest.mark.parametrize("file", ["stonnx.json", "default.onnx", "tokenizer.json"])
def test_killed_in_the_middle_of_a_download(hub: Hub, bundle: Path, tmp_path: Path, file: str) -> None:
    hub.repositories["somebody/toy"] = bundle
    hub.stalls = file
    command = [sys.executable, "-c", ENCODE, "somebody/toy", "{}"]
    with subprocess.Popen(command, env=environment(hub, tmp_path), stderr=subprocess.DEVNULL) as process:
        assert hub.stalled.wait(120)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    hub.stalls = None
    hub.go_on.set()
    # What is there by half is not taken for whole where the rest cannot be had.
    offline = run(hub, tmp_path, "somebody/toy", HF_HUB_OFFLINE="1")
    assert "ModelNotFoundError" in offline.stderr
    again = run(hub, tmp_path, "somebody/toy")
    assert again.returncode == 0, again.stderr


def test_processes_that_start_at_once_make_one_download(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/toy"] = bundle
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: run(hub, tmp_path, "somebody/toy"), range(8)))
    assert [result.returncode for result in results] == [0] * 8, results[0].stderr
    assert sorted(hub.downloads) == sorted(["stonnx.json", *FILES])


# Exports a bundle that is there already, and waits in the middle of writing it.
EXPORT = """
import sys, time
from pathlib import Path
from stonnx_export.write.staging import staging_directory

def export(source, target, **options):
    with staging_directory(Path(target), overwrite=False) as directory:
        for file in sorted(Path(sys.argv[2]).iterdir()):
            (directory / file.name).write_bytes(file.read_bytes())
            if sys.argv[3] == "wait":
                print("in the middle", flush=True)
                time.sleep(300)

import stonnx_export
stonnx_export.export = export
import stonnx
print(stonnx.SentenceTransformer(sys.argv[1]).encode("the sun").shape)
"""


@pytest.mark.usefixtures("pytorch")
def test_killed_in_the_middle_of_an_export(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    command = [sys.executable, "-c", EXPORT, str(checkpoint), str(bundle)]
    with subprocess.Popen([*command, "wait"], env=environment(hub, tmp_path), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in the middle\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = subprocess.run([*command, "go on"], env=environment(hub, tmp_path), capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "stonnx").iterdir() if path.is_dir())
    assert left in (["checkpoint"], ["checkpoint", "verified"])
