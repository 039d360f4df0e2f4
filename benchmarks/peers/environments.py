"""Makes virtual environments for the benchmark, one for each set of packages that cannot share one. It needs only the
standard library.

    python -m benchmarks.peers.environments [NAME ...]

makes the environments of `make bench`, or the named ones, under .venvs/, if they are missing or made from other rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".venvs"
CACHE = ROOT / ".cache" / "benchmarks"

# Packages that several peers share have the same version, so that a difference between peers is their own. onnxruntime
# 1.32.0 does not use AMX for products of bytes: docs/int8.md.
_RUNTIME = ("onnxruntime==1.31.1", "tokenizers==0.23.3", "numpy==2.4.6")

# A change of these makes the environment with the kernels anew.
_KERNEL_SOURCES = ("CMakeLists.txt", "pyproject.toml", "src/**/*.*", "stonnx_kernels/*.py")


@dataclass(frozen=True)
class Environment:
    """The packages of a peer: at run time (``packages``, whose size is reported), and only to build its model."""

    name: str
    packages: tuple[str, ...]
    tools: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("stonnx", (".[cpu]", *_RUNTIME), tools=("scipy==1.17.1",)),
        Environment("stonnx-kernels", (".[cpu]", "./kernels", *_RUNTIME), tools=("scipy==1.17.1",)),
        # This environment also exports checkpoints and draws the plots.
        Environment(
            "sentence-transformers-6",
            ("torch==2.13.0", "sentence-transformers==6.2.0", "transformers==5.23.0"),
            tools=(
                *("-e", ".[cpu,serve,export,demo]", *_RUNTIME, "onnx==1.23.2", "ctranslate2==4.8.5", "gguf==0.19.0"),
                *("matplotlib==3.11.2", "fastapi==0.165.0"),
            ),
        ),
        # optimum-onnx 0.1.0 needs transformers below 4.58, and sentence-transformers 6 needs at least that version.
        Environment(
            "sentence-transformers-5",
            (
                "torch==2.13.0",
                "sentence-transformers==5.7.0",
                "transformers==4.57.6",
                "optimum-onnx==0.1.0",
                "onnxruntime==1.31.1",
            ),
        ),
        Environment("onnxruntime", _RUNTIME),
        Environment("openvino", ("openvino==2026.4.1", *_RUNTIME[1:]), tools=("nncf==3.4.0",)),
        Environment("ctranslate2", ("ctranslate2==4.8.5", *_RUNTIME[1:])),
        Environment("fastembed", ("fastembed==0.9.1", "onnxruntime==1.31.1")),
        Environment("light-embed", ("light-embed==1.0.9", "onnxruntime==1.31.1")),
        Environment("ggmbed", ("ggmbed==0.2.1",)),
        Environment("candding", ("candding==0.1.0", "numpy==2.4.6")),
    )
}

# Only `make bench-serve` needs these.
SERVERS = {"infinity": Environment("infinity", ("infinity-emb[server,torch]==0.0.78", "torch==2.13.0"))}


@dataclass(frozen=True)
class Installed:
    """A finished environment: its size without pip and tools, its versions, or the reason why making it failed."""

    key: str
    size_mb: float = 0.0
    versions: dict[str, str] | None = None
    error: str = ""


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return DIRECTORY / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def variables() -> dict[str, str]:
    """The environment variables of a system's processes.

    Compiled modules are kept, as in every installation, so that a start is not a compilation, whatever the caller's
    variables say. They are not in the environments, whose sizes are measured. onnxruntime does not send usage data
    while a peer is timed.
    """
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {"ORT_DISABLE_TELEMETRY": "1"} | ours | {"PYTHONPYCACHEPREFIX": str(CACHE / "compiled")}


def installed(name: str) -> Installed:
    """The record of an environment.

    Raises:
        FileNotFoundError: The environment does not exist. ``python -m benchmarks.peers.environments`` makes it.
    """
    return Installed(**json.loads(_record(name).read_text()))


def make(name: str) -> Installed:
    """Make an environment, or return its record if it exists already and its table row has not changed."""
    environment = (ENVIRONMENTS | SERVERS)[name]
    key = _key(environment)
    if _record(name).is_file() and (found := installed(name)).key == key and not found.error:
        return found
    print(f"installing {name}: {' '.join(environment.packages)}", file=sys.stderr, flush=True)
    try:
        made = _install(environment, key)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [str(error)]
        made = Installed(key, error=f"cannot be installed: {lines[-1]}")
    _record(name).parent.mkdir(parents=True, exist_ok=True)
    _record(name).write_text(json.dumps(asdict(made), indent=2) + "\n")
    return made


def _record(name: str) -> Path:
    return DIRECTORY / name / "installed.json"


def _install(environment: Environment, key: str) -> Installed:
    directory = DIRECTORY / environment.name
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(directory)])
    _pip(environment.name, environment.packages)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6
    if environment.tools:
        _pip(environment.name, environment.tools)
    listed = _run([sys.executable, "-m", "pip", "--python", str(python(environment.name)), "list", "--format", "json"])
    return Installed(key, size, {package["name"]: package["version"] for package in json.loads(listed)})


def _key(environment: Environment) -> str:
    """What an environment is made from. Of this repository, that is what it installs: dependencies, kernel sources."""
    everything = (*environment.packages, *environment.tools)
    key = hashlib.sha256(f"{environment} {sys.version}".encode())
    if any(package.startswith(".[") for package in everything):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        key.update(f"{project['dependencies']} {project['optional-dependencies']}".encode())
    if "./kernels" in everything:
        for source in sorted(path for pattern in _KERNEL_SOURCES for path in (ROOT / "kernels").glob(pattern)):
            key.update(source.read_bytes())
    return key.hexdigest()


def _pip(name: str, packages: Iterable[str]) -> None:
    # Without compiled files, so that sizes are those of the downloads, whichever modules were imported since.
    _run([sys.executable, "-m", "pip", "--python", str(python(name)), "install", "--no-compile", "-q", *packages])


def _run(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    names = sys.argv[1:] or list(ENVIRONMENTS)
    if unknown := set(names) - set(ENVIRONMENTS | SERVERS):
        sys.exit(f"unknown environments: {', '.join(sorted(unknown))}. There are {', '.join(ENVIRONMENTS | SERVERS)}.")
    failed = {name: made.error for name in names if (made := make(name)).error}
    for name, error in failed.items():
        print(f"{name}: {error}", file=sys.stderr)
    # Everything else is built in this environment. If another is missing, only its systems are missing from the report.
    sys.exit("sentence-transformers-6" in failed)


if __name__ == "__main__":
    main()
