"""``make test-sanitize``: the tests of the operators, with AddressSanitizer and UndefinedBehaviorSanitizer.

Python itself is built without them, so the library of the sanitizer is loaded first, and then that of C++, in which the
sanitizer looks for what throws exceptions when it starts: onnxruntime throws some, and Python has none. Leaks are not
looked for: Python and onnxruntime keep memory until the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .builds import ROOT, build


def main() -> None:
    first = [_library("libasan.so"), _library("libstdc++.so")]
    with tempfile.TemporaryDirectory() as directory:
        package = build(Path(directory), "STONNX_SANITIZE=ON", "STONNX_EMULATE_AMX=ON")
        environment = {
            "LD_PRELOAD": " ".join(first),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONPATH": str(package.parent),
        }
        files = [f"tests/kernels/test_{name}.py" for name in ("operators", "vocabulary")]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *sys.argv[1:]]
        sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode)


def _library(name: str) -> str:
    """The path of a library that belongs to the compiler."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
