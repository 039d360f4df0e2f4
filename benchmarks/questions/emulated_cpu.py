"""Does an int8 bundle hold on a CPU without VNNI? Runs it on an emulated one, in both of its forms.

    apt-get install qemu-user
    python -m benchmarks.questions.emulated_cpu --bundle DIR [--cpu Haswell]

The exit status is 0 if the CPU saturates, stonnx chooses the safe form by itself, and its vectors are right.
`tests/device/test_int8_product.py` does the same with all-MiniLM-L6-v2, if qemu is installed.

AArch64 was checked by hand (2026-11, qemu-user 7.2, onnxruntime 1.26.0, all-MiniLM-L6-v2), with Debian's arm64 Python
unpacked into a directory, `qemu-aarch64 -L` that directory, and wheels from `pip download --platform
manylinux_2_28_aarch64`: cortex-a53, neoverse-n1 (which has UDOT) and max,sve=off (which has UMMLA too) do not saturate,
run the full range, and have a cosine of 0.9999 to x86 with VNNI, lowest 0.9997. It is not a test: onnxruntime 1.32
crashes there at import, because it reads the topology of the CPU from the x86 machine's /sys.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.texts import texts

# The lowest cosine to the full range of this machine that the safe form, which has one bit less, may have.
_SAFE = 0.97


def vectors(bundle: Path, *, saturates: bool | None = None) -> dict[str, Any]:
    """Encode some texts. Returns their vectors and the form that runs. ``saturates`` overrides the check of the CPU."""
    import stonnx
    from stonnx._device import opening
    from stonnx._engine import probe

    # The probe would refuse the very results that this script examines.
    probe.run_probe = lambda *arguments: None
    found = opening.products_saturate()
    if saturates is not None:
        opening.products_saturate = lambda: saturates  # type: ignore[assignment]
    model = stonnx.SentenceTransformer(bundle, device="cpu", threads=1)
    data = [text for words in (6, 20, 60) for text in texts(4, words)]
    return {"saturates": found, "form": model._route.session.form, "vectors": model.encode(data).tolist()}


def emulated(cpu: str, bundle: Path, form: str) -> dict[str, Any]:
    """Encode the same on an emulated CPU, in the form that stonnx chooses there or in the full range."""
    command = [
        "qemu-x86_64",
        "-cpu",
        cpu,
        sys.executable,
        "-m",
        "benchmarks.questions.emulated_cpu",
        "--bundle",
        str(bundle),
    ]
    root = Path(__file__).parents[2]
    # Native kernels have one form for all CPUs, and would run in place of both.
    environment = {**os.environ, "STONNX_KERNELS": "0"}
    result = subprocess.run(
        [*command, "--print", form], capture_output=True, text=True, check=False, cwd=root, env=environment
    )
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Result:
    """The findings on an emulated CPU: whether its products saturate, the form that ran, the cosines of each text."""

    saturates: bool
    form: str
    cosines: npt.NDArray[np.float64]


def compare(cpu: str, bundle: Path) -> dict[str, Result]:
    """Compare the two forms on an emulated CPU with the full range on this machine's CPU, which must not saturate."""
    reference = np.array(vectors(bundle, saturates=False)["vectors"])
    results = {}
    for form in ("full-range", "chosen"):
        result = emulated(cpu, bundle, form)
        rows = np.array(result["vectors"])
        cosines = (rows * reference).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(reference, axis=1)
        results[form] = Result(result["saturates"], result["form"], cosines)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="an int8 bundle of an embedding model")
    parser.add_argument("--cpu", default="Haswell", help="as qemu-x86_64 -cpu help lists them (default: Haswell)")
    parser.add_argument("--print", choices=("chosen", "full-range"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.print:
        print(json.dumps(vectors(arguments.bundle, saturates=False if arguments.print == "full-range" else None)))
        return 0

    found = compare(arguments.cpu, arguments.bundle)
    for form, result in found.items():
        print(f"{arguments.cpu}, {form + ':':<12}{result.form:<17} cosine to this machine's full range ", end="")
        print(f"mean {result.cosines.mean():.4f}, lowest {result.cosines.min():.4f}")
    chosen, forced = found["chosen"], found["full-range"]
    right = chosen.saturates and chosen.form == "saturation-safe" and chosen.cosines.min() >= _SAFE
    harmed = forced.cosines.min() < chosen.cosines.min()
    print("pass" if right and harmed else "FAIL: the form that was chosen is not the right one for this CPU")
    return int(not (right and harmed))


if __name__ == "__main__":
    sys.exit(main())
