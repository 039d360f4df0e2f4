"""stonnx beside its peers: speed, accuracy, invariance, start-up, memory and size, in one run.

    make bench                                   # everything, with a table and plots
    make bench BENCH="--rounds 1 --systems stonnx,openvino --workloads short"

Every system has a process of its own, and only one works at a time. In each round and for each workload all systems
take a turn, in a new order, so that what slows the machine down slows all of them; the ratio to the reference is taken
within the round. Median and range over the rounds are reported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import environments, models, report
from benchmarks.peers.environments import CACHE
from benchmarks.peers.systems import CORES, REFERENCE, SYSTEMS, TASKS, WORKLOADS, Batching, System, Task, Workload
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.questions import accuracy
from stonnx._device.int8_speed import measure_int8_speed
from stonnx._device.wheels import import_onnxruntime

# A pause before a turn, in which the threads of the system that had the last turn stop spinning.
_SETTLE_SECONDS = 0.05
# Fresh processes of each system, if there is time; at least one.
_STARTS = 3
# The share of the time limit after which the turns of each task end. The rest is for start-up and sizes.
_SHARE_OF_TIME: dict[Task, float] = {"embedding": 0.53, "rerank": 0.65, "sparse": 0.76}
_FEWEST_ROUNDS = 3
# A worker that has more resident memory than this after calibration starts again: all wait in memory for their turns.
_LARGE_MB = 1000
# For each system and workload, each candidate has one turn. After this time, the best do not get a second one.
_CALIBRATION_SECONDS = 4.0
# A share of the best rate so far. After a batch that is slower than this, larger ones are not tried.
_CLEARLY_SLOWER = 0.85


@dataclass
class Results:
    """Everything that was measured, as it is written to results.json. Outer keys are names of systems.

    Attributes:
        turns: For each workload, one figure a round: inputs a second, or for latencies [p50, p95, p99] in milliseconds.
        batching: The batching that calibration chose for each workload.
        missing: For each task, or for "all", why a system was not measured.
        idle_share: Processor time that a system used while others measured, as a share of that time.
        footprint: Medians: import and first vector in seconds, peak memory, model and environment in MB.
        starts: How many fresh processes of each system these are medians of.
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    rounds: int
    accuracy_data: str
    seconds: float = 0.0
    turns: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    batching: dict[str, dict[str, Batching]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    idle_share: dict[str, float] = field(default_factory=dict)
    footprint: dict[str, dict[str, float]] = field(default_factory=dict)
    starts: int = 0

    def miss(self, system: System, task: str, reason: str) -> None:
        """Record why a system is not in a table."""
        say(f"{system.name}, {task}: missing: {reason}")
        self.missing.setdefault(system.name, {})[task] = reason


def say(message: str) -> None:
    """Print progress to standard error."""
    print(f"{datetime.datetime.now():%H:%M:%S} {message}", file=sys.stderr, flush=True)


def measure(
    results: Results,
    task: Task,
    systems: Sequence[System],
    workloads: Sequence[Workload],
    stsb: Path | None,
    deadline: float,
) -> None:
    """Start the systems of a task, check and calibrate each, and let them take turns as long as there is time."""
    workers = start(results, task, systems)
    data = accuracy.sample(task, stsb)
    reference: accuracy.Array | None = None
    for name, worker in list(workers.items()):
        say(f"{name}, {task}: accuracy and calibration")
        try:
            for workload in workloads:
                if not workload.alone:
                    results.batching.setdefault(name, {})[workload.name] = calibrate(worker, workload)
            batching = results.batching.get(name, {}).get(workloads[0].name, {})
            everyone = range(len(data.inputs))
            rows = worker.vectors(data.inputs, [list(everyone)], batching)
            reference = rows if reference is None else reference
            figures = accuracy.compare(task, data, reference, rows)
            figures = replace(figures, invariance=invariance(worker, task))
            results.accuracy.setdefault(name, {})[task] = asdict(figures)
            # The largest batches were tried here. Some libraries keep the memory of these until they end.
            if worker.ask("memory") > _LARGE_MB:
                worker.close()
                workers[name] = Worker(worker.system, task, CACHE / "models", CACHE / "logs")
        except WorkerError as error:
            results.miss(worker.system, task, str(error))
            workers.pop(name).close()
    for turn in range(results.rounds):
        if turn >= _FEWEST_ROUNDS and time.perf_counter() > deadline:
            say(f"{task}: no time for more than {turn} rounds")
            break
        for workload in workloads:
            order = random.Random(f"{turn}/{workload.name}").sample(list(workers), len(workers))
            say(f"round {turn + 1}, {workload.name}")
            for name in order:
                time.sleep(_SETTLE_SECONDS)
                try:
                    batching = results.batching.get(name, {}).get(workload.name, {})
                    figure = take_turn(workers[name], workload, batching)
                except WorkerError as error:
                    results.miss(workers[name].system, task, str(error))
                    workers.pop(name).close()
                    continue
                results.turns.setdefault(workload.name, {}).setdefault(name, []).append(figure)
    for name, worker in workers.items():
        results.idle_share[name] = max(results.idle_share.get(name, 0), worker.idle_share)
        worker.close()


def start(results: Results, task: Task, systems: Sequence[System]) -> dict[str, Worker]:
    """Workers of the systems that can do a task, by name. This does not time anything: several start at once."""

    def one(system: System) -> Worker | WorkerError:
        try:
            return Worker(system, task, CACHE / "models", CACHE / "logs")
        except WorkerError as error:
            return error

    say(f"{task}: starting the systems")
    able = [system for system in systems if task in system.models]
    with ThreadPoolExecutor(CORES) as executor:
        outcomes = dict(zip([system.name for system in able], executor.map(one, able), strict=True))
    workers: dict[str, Worker] = {}
    for system in systems:
        outcome = outcomes.get(system.name)
        if isinstance(outcome, Worker):
            workers[system.name] = outcome
        elif outcome is not None:
            results.miss(system, task, str(outcome))
        # If its model could not be made, that is the reason.
        elif task not in results.missing.get(system.name, {}):
            results.miss(system, task, system.cannot)
    return workers


def take_turn(worker: Worker, workload: Workload, batching: Batching) -> float | list[float]:
    """Inputs a second; if inputs are encoded one at a time, the p50, p95 and p99 in milliseconds."""
    if workload.alone:
        times = sorted(worker.ask("latencies", workload=workload.name))
        return [times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 0.99)]
    return float(worker.ask("rate", workload=workload.name, batching=batching))


def calibrate(worker: Worker, workload: Workload) -> Batching:
    """The fastest way to batch a workload. Small batches come first, as long as larger ones are not clearly slower.
    Then come the best on one stream, and the best two once more, if there is time."""

    def rate(batching: Batching) -> float:
        return float(worker.ask("rate", workload=workload.name, batching=batching))

    end = time.perf_counter() + _CALIBRATION_SECONDS
    tried: list[tuple[float, Batching]] = []
    for batching in worker.system.batching:
        tried.append((rate(batching), batching))
        if tried[-1][0] < _CLEARLY_SLOWER * max(found for found, _ in tried):
            break
    if len(tried) == 1:
        return tried[0][1]
    tried.sort(key=lambda pair: -pair[0])
    best = [batching for _, batching in tried[:2]]
    further = [{**best[0], "streams": 1}, *best] if "streams" in best[0] else best
    for batching in further:
        if time.perf_counter() > end:
            break
        tried.append((rate(batching), batching))
    return max(tried, key=lambda pair: pair[0])[1]


def invariance(worker: Worker, task: Task) -> float:
    """See ``Accuracy.invariance``: the worst over two ways to put the same inputs into batches."""
    inputs, alone, ways = accuracy.invariance_inputs(task)
    everything = {"tokens": 1 << 20} if "tokens" in worker.system.batching[0] else {"batch_size": 1 << 12}
    rows = worker.vectors(inputs, alone, {})
    return min(accuracy.agreement(task, rows, worker.vectors(inputs, groups, everything)) for groups in ways)


def footprint(results: Results, systems: Sequence[System], deadline: float) -> None:
    """Start-up in fresh processes, memory after the mixed workload, sizes on disk; systems take turns."""
    systems = [system for system in systems if "embedding" in results.accuracy.get(system.name, {})]
    seconds: dict[str, dict[str, list[float]]] = {system.name: {"import": [], "first": []} for system in systems}
    peak: dict[str, float] = {}
    turn_seconds = 0.0
    for turn in range(_STARTS):
        began = time.perf_counter()
        if turn and began + turn_seconds > deadline:
            say(f"no time for more than {turn} starts")
            break
        results.starts = turn + 1
        for system in systems:
            say(f"start {turn + 1}, {system.name}")
            begin = time.perf_counter()
            command = [str(environments.python(system.environment)), "-c", f"import {system.driver}"]
            subprocess.run(
                command, cwd=environments.ROOT, env=environments.variables(), check=True, capture_output=True
            )
            seconds[system.name]["import"].append(time.perf_counter() - begin)
            worker = Worker(system, "embedding", CACHE / "models", CACHE / "logs")
            seconds[system.name]["first"].append(worker.start_seconds)
            if turn == 0:
                batching = results.batching[system.name].get("mix", {})
                worker.ask("rate", workload="mix", batching=batching)
                peak[system.name] = worker.ask("memory")
            worker.close()
        turn_seconds = time.perf_counter() - began
    for system in systems:
        model = CACHE / "models" / system.models["embedding"]
        results.footprint[system.name] = {
            "import_seconds": statistics.median(seconds[system.name]["import"]),
            "first_vector_seconds": statistics.median(seconds[system.name]["first"]),
            "peak_mb": peak[system.name],
            "model_mb": sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) / 1e6,
            "environment_mb": environments.installed(system.environment).size_mb,
        }


def available(results: Results, systems: Sequence[System], tasks: Sequence[Task]) -> list[System]:
    """The systems whose environment is there, with the models that could be built."""
    installed = {name: environments.installed(name) for name in environments.ENVIRONMENTS}
    results.versions = {name: environment.versions or {} for name, environment in installed.items()}
    there = []
    for system in systems:
        if error := installed[system.environment].error:
            results.miss(system, "all", error)
        else:
            there.append(system)
    wanted = [system.models[task] for system in there for task in tasks if task in system.models]
    builders = {models.MODELS[name].environment for name in wanted}
    unbuilt = {name: installed[name].error for name in builders if installed[name].error}
    wanted = [name for name in wanted if models.MODELS[name].environment not in unbuilt]
    failed = models.ensure(wanted, CACHE / "models", CACHE / "logs")
    kept = []
    for system in there:
        usable = dict(system.models)
        for task, model in system.models.items():
            reason = failed.get(model) or unbuilt.get(models.MODELS[model].environment)
            if reason and task in tasks:
                results.miss(system, task, f"its model cannot be made: {reason}")
                del usable[task]
        kept.append(replace(system, models=usable))
    return kept


def machine() -> dict[str, Any]:
    """The facts about the machine that the figures depend on."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        model, flags = facts.get("model name", model), facts.get("flags", "")
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
    return {
        "cpu": model,
        "cores": CORES,
        "features": [flag for flag in wanted if flag in flags.split()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "int8_product": str(measure_int8_speed(import_onnxruntime())),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def save(results: Results, directory: Path, begin: float) -> None:
    """Write the results so far: a run that is stopped keeps the tasks that it finished."""
    results.seconds = time.perf_counter() - begin
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    split = lambda text: text.lower().split(",")  # noqa: E731
    parser.add_argument("--rounds", type=int, default=7, help="turns of each system for each workload (default: 7)")
    parser.add_argument(
        "--minutes", type=float, default=25, help="of the whole run; fewer rounds where it is slow (default: 25)"
    )
    parser.add_argument("--systems", type=split, help="parts of names, with commas: only these, and the reference")
    parser.add_argument("--workloads", type=split, help=f"of {', '.join(workload.name for workload in WORKLOADS)}")
    parser.add_argument("--stsb", type=Path, help="CSV of sentence, sentence, score to measure accuracy on")
    parser.add_argument("--no-footprint", action="store_true", help="leave out start-up, memory and sizes")
    parser.add_argument("--output", type=Path, default=CACHE / "report", help="directory of the report")
    arguments = parser.parse_args()
    systems = [
        system
        for system in SYSTEMS
        if system.name == REFERENCE
        or not arguments.systems
        or any(part in system.name.lower() for part in arguments.systems)
    ]
    workloads = [workload for workload in WORKLOADS if not arguments.workloads or workload.name in arguments.workloads]
    (CACHE / "logs").mkdir(parents=True, exist_ok=True)
    results = Results(
        date=f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        machine=machine(),
        versions={},
        rounds=arguments.rounds,
        accuracy_data=arguments.stsb.name if arguments.stsb else "built-in sentences",
    )
    tasks = [task for task in TASKS if any(workload.task == task for workload in workloads)]
    systems = available(results, systems, tasks)
    # The time limit does not include building the models the first time.
    begin = time.perf_counter()
    for task in tasks:
        chosen = [workload for workload in workloads if workload.task == task]
        deadline = begin + 60 * arguments.minutes * _SHARE_OF_TIME[task]
        measure(results, task, systems, chosen, arguments.stsb, deadline)
        save(results, arguments.output, begin)
    if "embedding" in tasks and not arguments.no_footprint:
        footprint(results, systems, begin + 60 * arguments.minutes)
    save(results, arguments.output, begin)
    report.write(arguments.output)
    print((arguments.output / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
