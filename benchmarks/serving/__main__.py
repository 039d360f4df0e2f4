"""`stonnx serve` under load, beside its peers.

    make bench-serve                                              # everything: 20 minutes of soak among it
    make bench-serve BENCH="--soak-minutes 1 --seconds 4"         # short
    make bench-serve BENCH="--shapes clients,rates --no-peers"

Exports all-MiniLM-L6-v2 once, starts servers on the loopback address, and writes the report, its plot and all figures.
It compares each answer with the vector of its text alone. It exits with 1 if a line of the report is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import resource
import statistics
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import stonnx
from benchmarks.peers.environments import CACHE, python
from benchmarks.serving import report, servers
from benchmarks.serving.client import Client
from benchmarks.serving.load import Load
from benchmarks.serving.shapes import SHAPES, Trial
from benchmarks.serving.texts import Texts, known_texts
from examples.semantic_search import embedded_checkpoint

# Clients of the comparison with peers, and rounds in which all servers take turns.
_CLIENTS, _ROUNDS = 16, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which questions, with commas (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--soak-minutes", type=float, default=20.0)
    parser.add_argument(
        "--no-peers", action="store_true", help="leave out FastAPI + sentence-transformers and infinity"
    )
    infinity = python("infinity")
    parser.add_argument(
        "--infinity", type=Path, default=infinity, help=f"Python with infinity-emb (default: {infinity})"
    )
    parser.add_argument("--bundles", type=Path, default=Path("bundles"), help="made there if missing")
    parser.add_argument("-o", "--output", type=Path, default=CACHE / "serving", help="directory of the report")
    arguments = parser.parse_args()
    unknown = set(arguments.shapes.split(",")) - set(SHAPES) - {""}
    if unknown:
        parser.error(f"unknown shapes: {', '.join(sorted(unknown))}. There are {', '.join(SHAPES)}.")
    # Under overload, each request waits on a connection of its own.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bundles = {dtype: _bundle(arguments.bundles, dtype) for dtype in ("int8", "fp32")}
    results: dict[str, Any] = {"date": str(datetime.date.today()), "machine": _machine(), "seconds": arguments.seconds}
    if arguments.shapes:
        results["shapes"] = _run_shapes(arguments, bundles["int8"], known_texts(bundles["int8"]))
    if not arguments.no_peers:
        known = {dtype: known_texts(bundle, is_short=True) for dtype, bundle in bundles.items()}
        results["peers"] = _compare(arguments, bundles, known)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "serving-load.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    missed = report.write(arguments.output, results)
    print(arguments.output / "serving-load.md")
    return bool(missed)


def _bundle(directory: Path, dtype: str) -> Path:
    bundle = directory / f"all-MiniLM-L6-v2-{dtype}"
    if not (bundle / "stonnx.json").is_file():
        from stonnx_export import export

        export(embedded_checkpoint(), bundle, dtype=dtype, name="sentence-transformers/all-MiniLM-L6-v2")
    return bundle


def _machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    versions = {
        "stonnx": stonnx.__version__,
        "onnxruntime": metadata.version("onnxruntime"),
        "Python": platform.python_version(),
    }
    return {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "versions": versions}


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []


def _run_shapes(arguments: argparse.Namespace, bundle: Path, texts: Texts) -> dict[str, Any]:
    results: dict[str, Any] = {}

    async def run() -> None:
        encoder = stonnx.SentenceTransformer(bundle)
        with servers.running(servers.stonnx(bundle)) as server:
            trial = Trial(server, texts, arguments.seconds, arguments.overload_seconds, arguments.soak_minutes, encoder)
            for name, shape in SHAPES.items():
                # The other shapes use shares of the capacity that the first one measures.
                if name in arguments.shapes.split(",") or name == "clients":
                    print(f"{name} ...", file=sys.stderr, flush=True)
                    cpu = server.cpu_seconds() if server.process.poll() is None else 0.0
                    results[name] = await shape(trial)
                    if server.process.poll() is None:
                        results[name]["cpu_seconds"] = server.cpu_seconds() - cpu
            trial.client.close()

    asyncio.run(run())
    return results


def _compare(arguments: argparse.Namespace, bundles: dict[str, Path], known: dict[str, Texts]) -> dict[str, Any]:
    """Requests a second of each server, all in turns. Vectors of peers are compared with those of fp32."""
    checkpoint = embedded_checkpoint()
    specs = [servers.stonnx(bundles["int8"]), servers.stonnx(bundles["fp32"]), servers.fastapi(checkpoint)]
    if arguments.infinity.is_file():
        specs.append(servers.infinity(arguments.infinity, checkpoint))
    rounds: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        started = []
        for spec in specs:
            try:
                started.append(stack.enter_context(servers.running(spec)))
            except (RuntimeError, OSError) as error:
                failed[spec.name] = str(error)
                print(f"{spec.name}: {error}", file=sys.stderr)
        for _ in range(_ROUNDS):
            for server in started:
                texts = known["int8" if "int8" in server.spec.name else "fp32"]
                found = asyncio.run(_requests_a_second(server, texts, arguments.seconds))
                rounds.setdefault(server.spec.name, []).append(found)
                print(f"{server.spec.name}: {found}", file=sys.stderr, flush=True)
    names = ("short", "mix", "short_cpu_ms", "mix_cpu_ms")
    return {
        "failed": failed,
        "rows": {
            name: {
                **{key: statistics.median(row[key] for row in rows) for key in names},
                "largest_difference": max(row["largest_difference"] for row in rows),
                "rounds": rows,
            }
            for name, rows in rounds.items()
        },
    }


async def _requests_a_second(server: servers.Server, texts: Texts, seconds: float) -> dict[str, Any]:
    client = Client("127.0.0.1", server.port)
    load = Load(client, server.spec.path)
    # The first requests load and compile things, so they are not measured.
    await load.closed(texts.short, 4, min(1.0, seconds))
    before = server.cpu_seconds()
    short = await load.closed(texts.short, _CLIENTS, seconds / 2)
    between = server.cpu_seconds()
    mixed = await load.closed(texts.mix, _CLIENTS, seconds / 2)
    after = server.cpu_seconds()
    client.close()
    difference = max(short.largest_difference, mixed.largest_difference)
    failures = sum(count for tally in (short, mixed) for status, count in tally.statuses.items() if status != 200)
    return {
        "short": short.figures()["per_second"],
        "mix": mixed.figures()["per_second"],
        "short_p99": short.figures()["p99"],
        "mix_p99": mixed.figures()["p99"],
        "short_cpu_ms": 1000 * (between - before) / max(1, short.statuses[200]),
        "mix_cpu_ms": 1000 * (after - between) / max(1, mixed.statuses[200]),
        "largest_difference": difference,
        "failures": failures,
        "resident_mb": server.resident_mb(),
    }


if __name__ == "__main__":
    sys.exit(main())
