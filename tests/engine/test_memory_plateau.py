"""Resident memory stays on a plateau, whatever shapes come in whatever number. Only Linux tells what is resident."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_bundles import dense_bundle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident memory of a process")

PRELUDE = """
import json, random, re, sys, threading
import numpy as np
import stonnx
from stonnx._model.model import with_limits

SideBySide = with_limits(stonnx.SentenceTransformer, tokens_before_second_session=0)
model = SideBySide(sys.argv[1], threads=3)


def resident():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\\s+(\\d+)", status.read()).group(1)) / 1024


def texts(seed, count):
    generator = random.Random(seed)
    return [f"bread {index} " * max(1, int(generator.lognormvariate(2, 1.5))) for index in range(count)]
"""


def run(script: str, *arguments: str | Path) -> Any:
    """What a script prints as JSON at its end: megabytes."""
    command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_plateau_over_thousands_of_calls_of_random_shapes(tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "dense", width=256, rounds=2, max_seq_length=300)
    script = """
def calls(first, last):
    for number in range(first, last):
        model.encode(texts(number, 1 + number % 23))
        if number % 5 == 0:
            model.encode(texts(number, 1)[0])

sizes = []
for part in range(4):
    starts = [part * 2000 + thread * 500 for thread in range(4)]
    threads = [threading.Thread(target=calls, args=(start, start + 500)) for start in starts]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    sizes.append(resident())
print(json.dumps(sizes))
"""
    first, *others = run(script, bundle)
    # A leak of one batch's activations in ten calls would be 200 MB.
    assert max(others) - first < 24


def test_a_very_long_text_leaves_no_memory_behind(tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "dense", width=512, rounds=1, max_seq_length=100_000)
    script = """
model.encode(texts(1, 50))
before = resident()
# 200 MB for each of its activations.
model.encode("a " * 99_000)
model.encode(["a " * 90_000, "b " * 80_000, "c"])
after = resident()
model.trim()
print(json.dumps([before, after, resident()]))
"""
    before, after, trimmed = run(script, bundle)
    # What is left comes from the tokens, of which there are 100,000, and goes with trim().
    assert after - before < 250
    assert trimmed - before < 80


def test_trim_gives_back_what_large_batches_took(tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "dense", width=512, rounds=1, max_seq_length=300)
    script = """
model.encode("bread")
before = resident()
model.encode(texts(1, 2000), batch_size=2000)
after = resident()
model.trim()
print(json.dumps([before, after, resident()]))
"""
    before, after, trimmed = run(script, bundle)
    assert after - before > 60
    assert trimmed - before < (after - before) / 3


def test_a_stream_of_any_length_takes_the_memory_of_a_window(tmp_path: Path) -> None:
    bundle = dense_bundle(tmp_path / "dense", width=256)
    script = """
sizes = []
for count in (20_000, 200_000):
    rows = sum(len(part) for part in model.encode_stream(f"bread {index}" for index in range(count)))
    assert rows == count
    sizes.append(resident())
print(json.dumps(sizes))
"""
    few, many = run(script, bundle)
    # All vectors of the longer one are 200 MB.
    assert many - few < 30
