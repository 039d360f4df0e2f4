"""onnxruntime 1.29 and newer send usage data to Microsoft. Nothing that stonnx starts does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from packaging.version import Version
from toy_bundles import dense_bundle
from zoo import build_checkpoint, row

from stonnx._device import wheels

SENDS = pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.29"), reason="this onnxruntime sends nothing on its own"
)
ENCODE = "import sys, stonnx; stonnx.SentenceTransformer(sys.argv[1]).encode(['bread rises'])"
IMPORT = "import onnxruntime"
# What onnxruntime itself reads: it sends nothing from the machines of some CI services.
DECIDES = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "TF_BUILD", "GITHUB_ACTIONS")


def start(home: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Python with a home of its own, as on a machine where nothing is set."""
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if name not in DECIDES and not name.startswith("XDG_")}
    own |= {"HOME": str(home), "USERPROFILE": str(home), "STONNX_HOME": f"{home}-stonnx", **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], env=own, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return output


def files_in(home: Path) -> list[str]:
    return [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return dense_bundle(tmp_path / "bundle")


@SENDS
def test_onnxruntime_alone_leaves_files(tmp_path: Path) -> None:
    """So that the tests below would notice."""
    finished(start(tmp_path / "home", "-c", IMPORT))
    assert files_in(tmp_path / "home")


@pytest.mark.parametrize("command", ["encode", "doctor", "info"])
def test_a_fresh_home_stays_empty(command: str, bundle: Path, tmp_path: Path) -> None:
    command = ("-c", ENCODE) if command == "encode" else ("-m", "stonnx", command)
    finished(start(tmp_path / "home", *command, str(bundle)))
    assert files_in(tmp_path / "home") == []


def test_a_fresh_home_stays_empty_for_processes_of_a_pool(bundle: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, stonnx\n"
        "if __name__ == '__main__':\n"
        "    model = stonnx.SentenceTransformer(sys.argv[1])\n"
        "    model.encode(['bread', 'rises'], device=['cpu', 'cpu'], chunk_size=1)\n"
    )
    finished(start(tmp_path / "home", str(program), str(bundle)))
    assert files_in(tmp_path / "home") == []


def test_a_fresh_home_stays_empty_for_the_exporter(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(row("all-MiniLM-L6-v2"), tmp_path / "checkpoint")
    program = "import sys, stonnx_export; stonnx_export.export(sys.argv[1], sys.argv[2], dtype=sys.argv[3])"
    finished(start(tmp_path / "home", "-c", program, str(checkpoint), str(tmp_path / "bundle"), "int8"))
    assert files_in(tmp_path / "home") == []


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    """Where onnxruntime would go instead of looking up the name of its host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        yield server


@SENDS
def test_nothing_is_sent_or_looked_up(bundle: Path, tmp_path: Path, proxy: socket.socket) -> None:
    """onnxruntime sends some seconds after its import: a process that may send says when the other would have sent."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        ours = start_and_stay(tmp_path / "ours", nobody, ENCODE, str(bundle))
        theirs = start_and_stay(tmp_path / "theirs", proxy, IMPORT)
        try:
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(100).startswith(b"CONNECT mobile.events.data.microsoft.com")
            finished(ours)
            nobody.setblocking(False)
            with pytest.raises(BlockingIOError):
                nobody.accept()
        finally:
            for process in (ours, theirs):
                process.kill()
            theirs.communicate()


def start_and_stay(home: Path, proxy: socket.socket, program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that reaches other machines through a proxy, and lives until its standard input ends."""
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    variables = {"HTTPS_PROXY": address, "https_proxy": address, "ALL_PROXY": address, "NO_PROXY": "", "no_proxy": ""}
    return start(home, "-c", f"{program}; import sys; sys.stdin.read()", *arguments, **variables)


@SENDS
def test_who_wants_it_keeps_it(bundle: Path, tmp_path: Path) -> None:
    finished(start(tmp_path / "home", "-c", ENCODE, str(bundle), ORT_DISABLE_TELEMETRY="0"))
    assert files_in(tmp_path / "home")


@SENDS
def test_an_import_before_stonnx_is_told(bundle: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "home", "-c", f"{IMPORT}; {ENCODE}", str(bundle))
    _, errors = process.communicate(timeout=60)
    assert errors.count("Set ORT_DISABLE_TELEMETRY=1 in the environment of the process") == 1
    process = start(tmp_path / "home2", "-c", f"{IMPORT}; {ENCODE}", str(bundle), ORT_DISABLE_TELEMETRY="true")
    assert process.communicate(timeout=60) == ("", "")


@SENDS
@pytest.mark.parametrize(("value", "said"), [(None, "off: "), ("TRUE", "off: "), ("0", "on, because "), ("2", "on, ")])
def test_doctor_says_it(value: str | None, said: str, tmp_path: Path) -> None:
    variables = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    report = json.loads(finished(start(tmp_path / "home", "-m", "stonnx", "doctor", "--json", **variables)))
    (finding,) = [finding for finding in report["findings"] if finding["name"] == "telemetry"]
    assert finding["value"].startswith(said)
    assert report["ok"]
    assert bool(files_in(tmp_path / "home")) == said.startswith("on"), "doctor says what onnxruntime does"


def test_doctor_says_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.28.3")
    assert wheels.telemetry() == ("onnxruntime 1.28.3 has none", "")
