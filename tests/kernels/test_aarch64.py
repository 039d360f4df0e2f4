"""The variants for AArch64 in an emulator: their results beside those of this machine, and which one a CPU gets."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .builds import build_cases, can_build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_build() or None in map(shutil.which, ("qemu-aarch64", "aarch64-linux-gnu-g++")),
        reason="needs CMake, a C++ compiler, qemu-user and g++-aarch64-linux-gnu",
    ),
]
_ROOT = "/usr/aarch64-linux-gnu"
_TYPES = {"float32": 1, "int8": 3, "int64": 7, "uint16": 16}  # of onnx.proto; bfloat16 is in bits
_ATTENTION, _FEED_FORWARD = 0, 1
_INT8, _BFLOAT16, _FLOAT = 0, 1, 2


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """The command lines that run a case: here, and on three emulated CPUs."""
    directory = tmp_path_factory.mktemp("aarch64")
    here = build_cases(directory / "here")
    there = build_cases(
        directory / "there",
        "CMAKE_SYSTEM_NAME=Linux",
        "CMAKE_SYSTEM_PROCESSOR=aarch64",
        "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )
    emulated = {
        cpu: ["qemu-aarch64", "-L", _ROOT, "-cpu", cpu, str(there)] for cpu in ("max", "neoverse-n1", "cortex-a53")
    }
    return {"here": [str(here)], **emulated}


def write_case(path: Path, operator: int, weights: int, tensors: Mapping[int, Any], **attributes: Any) -> None:
    """A case as ``kernels/src/run_case.cc`` reads it."""

    def text(value: str) -> bytes:
        return struct.pack("<i", len(value)) + value.encode()

    parts = [struct.pack("<iii", operator, weights, 2)]
    for name, value in attributes.items():
        if isinstance(value, str):
            parts.append(b"t" + text(name) + text(value))
        else:
            kind, form = ("f", "<f") if isinstance(value, float) else ("i", "<q")
            parts.append(kind.encode() + text(name) + struct.pack(form, value))
    for index, array in tensors.items():
        head = struct.pack("<iii", index, _TYPES[array.dtype.name], array.ndim)
        shape = struct.pack(f"<{array.ndim}q", *array.shape)
        parts.append(b"T" + head + shape + struct.pack("<q", array.nbytes) + array.tobytes())
    path.write_bytes(b"".join(parts))


def run(program: list[str], case: Path, variant: str = "") -> np.ndarray:
    result = case.with_suffix(".result")
    subprocess.run([*program, str(case), str(result), *filter(None, [variant])], check=True, capture_output=True)
    data = result.read_bytes()
    (rank,) = struct.unpack_from("<i", data)
    shape = struct.unpack_from(f"<{rank}q", data, 4)
    return np.frombuffer(data, np.float32, offset=4 + 8 * rank).reshape(shape)


def matrix(rng: np.random.Generator, kind: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the scale of each column."""
    if kind == _INT8:
        return rng.integers(-127, 128, (rows, columns)).astype(np.int8), rng.uniform(5e-4, 2e-3, columns).astype("f4")
    floats = rng.normal(0, 0.08, (rows, columns)).astype(np.float32)
    bits = floats.view(np.uint32)
    if kind == _BFLOAT16:
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), np.ones(columns, np.float32)
    return floats, np.ones(columns, np.float32)


def exact(kind: int, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The matrix that weights stand for."""
    if kind == _BFLOAT16:
        weight = (weight.astype(np.uint32) << 16).view(np.float32)
    return weight.astype(np.float64) * scale


def attention_case(
    path: Path, kind: int, hidden: int, heads: int, lengths: list[int], attended: list[int]
) -> np.ndarray:
    """Write a case; what float64 gives for it."""
    rng = np.random.default_rng(hidden)
    size, count = hidden // heads, max(lengths)
    x = rng.normal(0, 1, (len(lengths), count, hidden)).astype(np.float32)
    tensors: dict[int, Any] = {0: x, 1: np.array(lengths), 39: np.array(attended)}
    products = {}
    for index, name in ((5, "q"), (8, "k"), (11, "v"), (19, "o")):
        weight, scale = matrix(rng, kind, hidden, hidden)
        tensors |= {index: weight, index + 2: rng.normal(0, 0.1, hidden).astype(np.float32)}
        if kind == _INT8:
            tensors[index + 1] = scale
        products[name] = (exact(kind, weight, scale), tensors[index + 2])
    write_case(path, _ATTENTION, kind, tensors, heads=heads, head_size=size)
    result = np.zeros(x.shape)
    for text, (length, keys) in enumerate(zip(lengths, attended, strict=True)):
        rows = x[text, :length].astype(np.float64)
        q, k, v = (
            (rows @ w + b).reshape(length, heads, size).transpose(1, 0, 2)
            for w, b in (products[name] for name in "qkv")
        )
        scores = q @ k[:, :keys].transpose(0, 2, 1) / np.sqrt(size)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v[:, :keys]
        w, b = products["o"]
        result[text, :length] = mixed.transpose(1, 0, 2).reshape(length, hidden) @ w + b + rows
    return result


def feed_forward_case(path: Path, kind: int, hidden: int, inner: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    x = rng.normal(0, 1, (rows, hidden)).astype(np.float32)
    (up, up_scale), (down, down_scale) = matrix(rng, kind, hidden, inner), matrix(rng, kind, inner, hidden)
    tensors: dict[int, Any] = {0: x, 4: up, 10: down}
    if kind == _INT8:
        tensors |= {5: up_scale, 11: down_scale}
    write_case(path, _FEED_FORWARD, kind, tensors, activation="relu")
    active = np.maximum(x @ exact(kind, up, up_scale), 0)
    return active @ exact(kind, down, down_scale) + x


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


CASES = [(64, 2, [1], [1]), (96, 3, [17, 5, 30], [9, 5, 1]), (54, 3, [33, 2], [33, 2]), (128, 1, [9, 9], [4, 9])]


@pytest.mark.parametrize(("variant", "kind"), [("neon_dot", _INT8), *(("neon_i8mm", k) for k in (_INT8, 1, 2))])
class TestResults:
    @pytest.mark.parametrize("case", CASES)
    def test_attention(
        self, case: Any, variant: str, kind: int, programs: Mapping[str, list[str]], tmp_path: Path
    ) -> None:
        expected = attention_case(tmp_path / "case", kind, *case)
        self._check(programs, tmp_path / "case", variant, kind, expected)

    @pytest.mark.parametrize(("hidden", "inner", "rows"), [(64, 128, 1), (50, 70, 7), (96, 256, 16), (256, 64, 37)])
    def test_feed_forward(
        self,
        hidden: int,
        inner: int,
        rows: int,
        variant: str,
        kind: int,
        programs: Mapping[str, list[str]],
        tmp_path: Path,
    ) -> None:
        expected = feed_forward_case(tmp_path / "case", kind, hidden, inner, rows)
        self._check(programs, tmp_path / "case", variant, kind, expected)
        if kind == _INT8:  # the same sums, and the same steps around them
            found = (run(programs["max"], tmp_path / "case", name) for name in ("neon_dot", "neon_i8mm"))
            np.testing.assert_array_equal(*found)

    def _check(
        self, programs: Mapping[str, list[str]], case: Path, variant: str, kind: int, expected: np.ndarray
    ) -> None:
        found = run(programs["max"], case, variant)
        assert found.shape == expected.shape
        assert distance(found, expected) < (0.02 if kind == _INT8 else 0.01)
        if variant == "neon_dot" and platform.machine() == "x86_64":
            # Sums of codes are exact. The last bits of what comes before and after may turn a code over.
            assert distance(found, run(programs["here"], case, "avx2")) < 3e-3


class TestChoice:
    """``AT_HWCAP2`` says whether a CPU has i8mm and bf16."""

    def test_the_best_variant_runs(self, programs: Mapping[str, list[str]], tmp_path: Path) -> None:
        feed_forward_case(tmp_path / "case", _INT8, 64, 128, 9)
        best = run(programs["max"], tmp_path / "case")
        np.testing.assert_array_equal(best, run(programs["max"], tmp_path / "case", "neon_i8mm"))
        # It has bfloat16, which the other one does not have.
        feed_forward_case(tmp_path / "case", _BFLOAT16, 64, 128, 9)
        run(programs["max"], tmp_path / "case")
        self._refused(programs["max"], tmp_path / "case", "neon_dot", "the variant has no bfloat16 products")

    def test_a_cpu_without_i8mm(self, programs: Mapping[str, list[str]], tmp_path: Path) -> None:
        feed_forward_case(tmp_path / "case", _INT8, 64, 128, 9)
        found = run(programs["neoverse-n1"], tmp_path / "case")
        np.testing.assert_array_equal(found, run(programs["max"], tmp_path / "case", "neon_dot"))
        self._refused(programs["neoverse-n1"], tmp_path / "case", "neon_i8mm", "i8mm, bf16); it can run: neon_dot")

    def test_a_cpu_without_dot_products(self, programs: Mapping[str, list[str]], tmp_path: Path) -> None:
        feed_forward_case(tmp_path / "case", _INT8, 64, 128, 9)
        self._refused(programs["cortex-a53"], tmp_path / "case", "", "the CPU lacks the dot product instructions")

    def _refused(self, program: list[str], case: Path, variant: str, reason: str) -> None:
        command = [*program, str(case), str(case.with_suffix(".result")), *filter(None, [variant])]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 1
        assert reason in found.stderr
