"""Does an int8 bundle hold on a CPU without VNNI? Runs it on an emulated one, in both of its forms.

    apt-get install qemu-user
    python -m benchmarks.emulated_cpu --bundle DIR [--cpu Haswell]

The exit status is 0 where the CPU saturates, the safe form is chosen by itself, and its vectors are right.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.texts import texts

# The lowest cosine that the safe form, with one bit less, may have to the full range of this machine.
_SAFE = 0.97


def vectors(bundle: Path, *, saturates: bool | None = None) -> dict[str, Any]:
    """Encode some texts: their vectors, and the form that runs. ``saturates`` overrides what the CPU is found to do."""
    import stonnx
    from stonnx import _engine, _session

    # The probe would refuse the very thing that is to be seen here.
    _engine._probe.check = lambda *arguments: None  # type: ignore[attr-defined]
    found = _session.products_saturate()
    if saturates is not None:
        _session.products_saturate = lambda: saturates  # type: ignore[assignment]
    model = stonnx.SentenceTransformer(bundle, device="cpu", threads=1)
    data = [text for words in (6, 20, 60) for text in texts(4, words)]
    return {"saturates": found, "form": model._route.session.form, "vectors": model.encode(data).tolist()}


def emulated(cpu: str, bundle: Path, form: str) -> dict[str, Any]:
    """The same on an emulated CPU, in the form that it chooses or in the full range."""
    command = ["qemu-x86_64", "-cpu", cpu, sys.executable, "-m", "benchmarks.emulated_cpu", "--bundle", str(bundle)]
    result = subprocess.run([*command, "--print", form], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="an int8 bundle of an embedding model")
    parser.add_argument("--cpu", default="Haswell", help="as qemu-x86_64 -cpu help lists them (default: Haswell)")
    parser.add_argument("--print", choices=("chosen", "full-range"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.print:
        print(json.dumps(vectors(arguments.bundle, saturates=False if arguments.print == "full-range" else None)))
        return 0

    reference = np.array(vectors(arguments.bundle, saturates=False)["vectors"])
    lowest = {}
    for form in ("full-range", "chosen"):
        result = emulated(arguments.cpu, arguments.bundle, form)
        cosines = (np.array(result["vectors"]) * reference).sum(1)
        cosines /= np.linalg.norm(result["vectors"], axis=1) * np.linalg.norm(reference, axis=1)
        lowest[form] = float(cosines.min())
        print(f"{arguments.cpu}, {form + ':':<12}{result['form']:<17} cosine to this machine's full range ", end="")
        print(f"mean {cosines.mean():.4f}, lowest {cosines.min():.4f}")
    right = result["saturates"] and result["form"] == "saturation-safe" and lowest["chosen"] >= _SAFE
    harmed = lowest["full-range"] < lowest["chosen"]
    print("pass" if right and harmed else "FAIL: the form that was chosen is not the right one for this CPU")
    return int(not (right and harmed))


if __name__ == "__main__":
    sys.exit(main())
