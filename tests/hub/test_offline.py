"""Loading needs no network if everything is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_conditions import LOAD, NETWORK_DOWN, NO_SOCKETS, python
from small_hub import COMMIT, ENCODE, Hub, environment, run


def test_a_directory_needs_no_network(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    result = python(NO_SOCKETS + LOAD, str(bundle), env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("code", "options", "variables"),
    [
        (NO_SOCKETS, "{'local_files_only': True}", {}),
        (NO_SOCKETS, "{}", {"HF_HUB_OFFLINE": "1"}),
        (NETWORK_DOWN, "{}", {}),
    ],
    ids=["local_files_only", "HF_HUB_OFFLINE", "network down"],
)
def test_a_cached_bundle_needs_no_network(
    hub: Hub, bundle: Path, tmp_path: Path, code: str, options: str, variables: dict[str, str]
) -> None:
    hub.repositories["somebody/toy"] = bundle
    assert run(hub, tmp_path, "somebody/toy").returncode == 0
    result = python(code + ENCODE, "somebody/toy", options, env=environment(hub, tmp_path) | variables)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["nothere", "somebody/nothere"])
def test_a_wrong_name_without_network_is_said_at_once(hub: Hub, tmp_path: Path, name: str) -> None:
    """No second attempt (time.sleep raises an error), no lines of the Hub's client, one traceback and one message."""
    result = python(NETWORK_DOWN + ENCODE, name, "{}", env=environment(hub, tmp_path))
    assert result.returncode == 1
    assert "Retry" not in result.stderr
    said = f"is not in the local cache, and the Hub at {hub.url} cannot be reached: "
    assert result.stderr.splitlines()[-2].count("is not a directory here") == 1
    assert said in result.stderr.splitlines()[-2]
    assert result.stderr.count("Traceback") == 1


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    hub.repositories["somebody/toy"] = bundle
    hub.busy = 1
    result = run(hub, tmp_path, "somebody/toy")
    assert result.returncode == 0, result.stderr


FIND = """
import sys
from stonnx._hub.download import download
print(download(sys.argv[1], None, None, None, False))
"""


def test_a_checkpoint_that_another_library_cached_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--somebody--plain"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "modules.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    result = python(NETWORK_DOWN + FIND, "somebody/plain", env=environment(hub, tmp_path))
    assert result.stdout.strip() == str(snapshot), result.stderr


def test_a_cached_checkpoint_that_became_a_bundle(hub: Hub, bundle: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_text("{}")
    hub.repositories["somebody/toy"] = checkpoint
    found = python(FIND, "somebody/toy", env=environment(hub, tmp_path))
    assert found.stdout.strip().endswith(COMMIT), found.stderr
    hub.repositories["somebody/toy"], hub.commit = bundle, "f" * 40
    result = run(hub, tmp_path, "somebody/toy")
    assert result.returncode == 0, result.stderr
