"""Does a device keep what stonnx promises for it? Strictness, parity, speed and memory, checked on the real hardware.

    python -m benchmarks.questions.gpu --device cuda --bundle FP16_DIR --reference FP32_DIR [--int8 INT8_DIR]

The reference is the same model in fp32, run on the CPU. For TensorRT, build the engines first, the second one for the
check of the memory limit: stonnx build FP16_DIR; stonnx build FP16_DIR --memory-limit 2147483648.
The exit status is 0 if every check passes. Without a GPU, --device cpu tries the script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stonnx
from benchmarks.texts import texts
from stonnx._cache import cache_directory
from stonnx._device import nvidia
from stonnx._device.device_options import DeviceOptions
from stonnx._device.opening import HEAVY
from stonnx._device.provider import CPU
from stonnx._device.providers import devices_for
from stonnx._device.session import Session
from stonnx._device.wheels import import_onnxruntime

# The lowest cosine to the reference on the CPU, by the precision of the bundle.
_PARITY = {"float32": 0.99999, "float16": 0.999}
# A text alone and the same text in a batch.
_INVARIANCE = 0.9999
_MEMORY_LIMIT = 2 << 30
_WORKLOADS = (("short", 12, 512), ("passages", 73, 256), ("long", 254, 64))


class Report:
    """Checks, printed as they come."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, name: str, passed: bool, detail: str) -> None:
        """Print a check and remember it if it failed."""
        print(f"  {'pass' if passed else 'FAIL'}  {name}: {detail}", flush=True)
        if not passed:
            self.failed.append(name)

    def refused(self, name: str, action: Callable[[], object], *words: str) -> None:
        """Check that something is refused, with a message that has these words."""
        try:
            action()
        except stonnx.StonnxError as error:
            self.check(name, all(word in str(error) for word in words), f"{type(error).__name__}: {error}")
        else:
            self.check(name, False, "it was not refused")


def load(bundle: str | Path, device: str | None, **options: Any) -> stonnx.SentenceTransformer:
    """A model on a device."""
    return stonnx.SentenceTransformer(bundle, device=device, device_options=DeviceOptions(**options))


def strictness(report: Report, arguments: argparse.Namespace) -> stonnx.SentenceTransformer:
    """Check that the named device runs all heavy operators, or that the model is refused."""
    print("strictness")
    start = time.perf_counter()
    model = load(arguments.bundle, arguments.device)
    seconds = time.perf_counter() - start
    session = model._route.session
    assert isinstance(session, Session)
    (device,) = devices_for(arguments.device, session.ort.get_available_providers())
    running = session.inference.get_providers()
    report.check("provider", running[0] == device.provider.name, f"{running}, loaded in {seconds:.1f} s")
    on_cpu = {kind: count for (name, kind), count in session.operators.items() if name == CPU}
    report.check("operators left to the CPU", not set(on_cpu) & HEAVY, str(dict(on_cpu)) if on_cpu else "none")
    kind = device.provider.device
    if device.provider.indexed:
        report.refused("a device that is not there", lambda: load(arguments.bundle, f"{kind}:99"), f"{kind}:99")
    if arguments.int8 and kind != "cpu":
        report.refused("an int8 bundle", lambda: load(arguments.int8, arguments.device), "--dtype")
    if device.provider.automatic:
        automatic = load(arguments.bundle, None)
        report.check("device=None", automatic.device == kind, f"{automatic.device}, {automatic.info}")
    return model


def parity(report: Report, arguments: argparse.Namespace, model: stonnx.SentenceTransformer) -> None:
    """Check that vectors equal those of the reference on the CPU, whatever else is in the batch."""
    print("parity")
    data = [text for words in (1, 6, 12, 40, 73, 254, 600) for text in texts(8, words)]
    expected = load(arguments.reference, "cpu").encode(data, normalize_embeddings=True)
    together = model.encode(data, normalize_embeddings=True)
    alone = np.concatenate([model.encode([text], normalize_embeddings=True) for text in data])
    cosines, limit = (expected * together).sum(1), _PARITY[model.info.precision]
    report.check("cosine to the CPU", cosines.min() >= limit, f"lowest {cosines.min():.7f}, at least {limit}")
    cosines = (alone * together).sum(1)
    report.check("alone and in a batch", cosines.min() >= _INVARIANCE, f"lowest cosine {cosines.min():.7f}")
    if arguments.device.startswith(("cuda", "tensorrt")):
        recorded = load(arguments.bundle, arguments.device, cuda_graphs=True)
        for turn in ("recording", "replaying", "replaying again"):
            cosines = (recorded.encode(data, normalize_embeddings=True) * together).sum(1)
            report.check(f"CUDA graphs, {turn}", cosines.min() >= _INVARIANCE, f"lowest cosine {cosines.min():.7f}")


def speed(arguments: argparse.Namespace, models: dict[str, stonnx.SentenceTransformer]) -> None:
    """Measure texts a second and latency of each model, in turns."""
    print("speed")
    for name, words, count in _WORKLOADS:
        rates = in_turns(models, texts(count, words), arguments.rounds)
        print(f"  {name:<22}" + "".join(f"{key} {count / seconds:>10,.0f}/s   " for key, seconds in rates.items()))
    times = in_turns(models, texts(1, 12), 20 * arguments.rounds)
    print(f"  {'one text, p50':<22}" + "".join(f"{key} {seconds * 1e3:>9.2f} ms   " for key, seconds in times.items()))


def in_turns(models: dict[str, stonnx.SentenceTransformer], data: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each model for the same texts."""
    seconds: dict[str, list[float]] = {key: [] for key in models}
    for turn in range(rounds + 1):
        for key, model in models.items():
            start = time.perf_counter()
            model.encode(data)
            if turn:
                seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


def memory(report: Report, arguments: argparse.Namespace) -> None:
    """Check that GPU memory stays under a limit over many shapes, and that trim() gives some back."""
    print("memory")
    index = int(arguments.device.partition(":")[2] or 0)
    before = used_memory(index)
    model = load(arguments.bundle, arguments.device, memory_limit=_MEMORY_LIMIT)
    generator = np.random.default_rng(0)
    for _ in range(arguments.shapes):
        model.encode(texts(int(generator.integers(1, 33)), int(generator.integers(1, 254))), batch_size=256)
    taken = used_memory(index) - before
    report.check("limit", taken <= 1.1 * _MEMORY_LIMIT, f"{taken / 1e6:,.0f} MB of {_MEMORY_LIMIT / 1e6:,.0f} MB")
    model.trim()
    left = used_memory(index) - before
    report.check("trim()", left < taken, f"{left / 1e6:,.0f} MB left")
    # A recorded CUDA graph holds addresses, whose memory must still belong to it.
    recorded = load(arguments.bundle, arguments.device, cuda_graphs=True)
    data = [text for words in (1, 12, 73) for text in texts(8, words)]
    first = recorded.encode(data)
    recorded.trim()
    # If memory was given back, another model takes it.
    model.encode(texts(256, 100), batch_size=256)
    difference = float(np.abs(recorded.encode(data) - first).max())
    report.check("trim() with CUDA graphs", difference <= 1e-3, f"largest difference {difference:.1e} after it")


def used_memory(index: int) -> float:
    """Bytes of a GPU's memory that all processes have."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={index}"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 2**20


# Loads a bundle on a device and runs it, as another start does.
_START = """
import sys
from benchmarks.questions.gpu import load
from benchmarks.texts import texts
model = load(sys.argv[1], sys.argv[2])
print(model.device, model.encode(texts(3, 12)).shape)
"""


def engines(report: Report, arguments: argparse.Namespace, model: stonnx.SentenceTransformer) -> None:
    """Check that further shapes, and another process, do not build an engine."""
    print("engines")
    before = engine_files()
    for words, count in ((1, 500), (3, 7), (40, 33), (254, 65)):
        model.encode(texts(count, words))
    after = engine_files()
    report.check("further shapes", before == after, f"{len(after)} engines, {len(before)} before")
    start = time.perf_counter()
    command = [sys.executable, "-c", _START, str(arguments.bundle), arguments.device]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - start, engine_files()
    said = (result.stdout or result.stderr).strip().splitlines()
    detail = f"{len(after)} engines, {len(before)} before; {seconds:.1f} s in all; {said[-1] if said else 'no output'}"
    report.check("another process", result.returncode == 0 and bool(before) and before == after, detail)


def engine_files() -> dict[Path, int]:
    """Every engine on disk, and when it was written."""
    return {path: path.stat().st_mtime_ns for path in (cache_directory() / "tensorrt").rglob("*.engine")}


def environment(arguments: Sequence[str]) -> None:
    """Print the subject of this report: versions, hardware and arguments."""
    onnxruntime = import_onnxruntime()
    driver = ""
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.platform()}, Python {platform.python_version()}")
    print(f"onnxruntime {onnxruntime.__version__} with CUDA {getattr(onnxruntime, 'cuda_version', '') or 'none'}")
    print(f"GPUs: {', '.join(nvidia.gpu_names()) or 'none'}{f', driver {driver}' * bool(driver)}")
    print(f"arguments: {' '.join(arguments)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bundle", type=Path, required=True, help="what runs there, as a rule in fp16")
    parser.add_argument("--reference", type=Path, required=True, help="the same model in fp32")
    parser.add_argument("--int8", type=Path, help="the same model in int8, which must be refused")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", type=int, default=1000, help="calls of the memory check (default: 1000)")
    arguments = parser.parse_args()
    environment(sys.argv[1:])
    report = Report()
    model = strictness(report, arguments)
    parity(report, arguments, model)
    models = {"CPU, fp32": load(arguments.reference, "cpu"), arguments.device: model}
    if arguments.device.startswith(("cuda", "tensorrt")):
        models[f"{arguments.device} with graphs"] = load(arguments.bundle, arguments.device, cuda_graphs=True)
    speed(arguments, models)
    if arguments.device.startswith(("cuda", "tensorrt")):
        memory(report, arguments)
    if arguments.device.startswith("tensorrt"):
        engines(report, arguments, model)
    print(f"{len(report.failed)} checks failed" + f": {', '.join(report.failed)}" * bool(report.failed))
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())
