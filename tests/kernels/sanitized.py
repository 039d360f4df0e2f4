"""``make test-sanitize``: the tests of the operators, with AddressSanitizer and UndefinedBehaviorSanitizer.

Python itself is built without them, so the library of the sanitizer is loaded first. Leaks are not looked for: Python
and onnxruntime keep memory until the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .builds import ROOT, build


def main() -> None:
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as directory:
        package = build(Path(directory), "STONNX_SANITIZE=ON", "STONNX_EMULATE_AMX=ON")
        environment = {
            "LD_PRELOAD": found.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONPATH": str(package.parent),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels", *sys.argv[1:]]
        sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode)


if __name__ == "__main__":
    main()
