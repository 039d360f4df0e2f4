"""Does a bulk job on Ray keep every row when an actor dies, stay within memory, and use its CPUs as plain processes do?

    python -m benchmarks.questions.bulk_ray --bundle DIR [--passages 100000] [--actors 2] [--rounds 3] [-o REPORT.md]

Passages of log-normal lengths are written to Parquet. Ray embeds them with an actor for each CPU and writes Parquet.
When a third of the rows are done, the script kills one actor with SIGKILL. Afterwards every id has to be there once,
and the vectors of 500 random passages have to equal those of `encode` in this process. Memory of each actor is what it
has alone, without the pages of the object store that all map.

Then actors, plain processes side by side, and one process alone take turns with --texts passages. `CPU` compares texts
for a second of CPU time, which other programs on the machine disturb less. The script exits with 1 if rows are lost,
there twice or wrong, or if memory grows: the median of the last quarter may be 5% above that of the third.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import stonnx
from benchmarks.texts import mixed_texts
from stonnx.integrations.ray import Embed

_FILES = 20
_BATCH = 1024
_COMPARED = 500
# Vectors of the same text from runs of other shapes differ in the last bits.
_TOLERANCE = 1e-5
_GROWTH = 0.05
_STEP = 0.5
_MEDIAN_WORDS = 12


class Watched(Embed):
    """An actor that says where it is and when it was busy."""

    def __init__(self, model: str, folder: str) -> None:
        super().__init__(model, task="document")
        (Path(folder) / str(os.getpid())).touch()

    def __call__(self, batch: Any) -> Any:
        start, cpu = time.time(), time.process_time()
        result = super().__call__(batch)
        facts = {"pid": os.getpid(), "start": start, "end": time.time(), "cpu": time.process_time() - cpu}
        for name, value in facts.items():
            result = result.append_column(name, pa.array([value] * len(result)))
        return result


@dataclass
class Memory:
    """Memory of the actors while a job runs, in MB, by process."""

    folder: Path
    seen: dict[int, list[float]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look every half second."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_STEP):
            for process in (int(path.name) for path in self.folder.iterdir()):
                with contextlib.suppress(OSError):
                    _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
                    self.seen.setdefault(process, []).append((int(resident) - int(shared)) * 4096 / 1e6)

    def quarters(self, process: int) -> list[float]:
        """The medians of the four quarters of a process's life."""
        values = self.seen[process]
        return [statistics.median(part) for part in np.array_split(values, 4)] if len(values) >= 8 else []


def job(source: Path, target: Path, bundle: str, folder: Path, actors: int) -> None:
    """Embed Parquet into Parquet. Small blocks give every actor work, and a dead one takes little with it."""
    blocks = ray.data.read_parquet(str(source)).repartition(target_num_rows_per_block=_BATCH)
    blocks.map_batches(
        Watched,
        fn_constructor_args=[bundle, str(folder)],
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        batch_size=_BATCH,
        batch_format="pyarrow",
    ).write_parquet(str(target))


def write_passages(folder: Path, count: int) -> list[str]:
    """Generated passages in some files, with ids."""
    folder.mkdir()
    texts = mixed_texts(count, median=_MEDIAN_WORDS)
    for number, ids in enumerate(np.array_split(np.arange(count), _FILES)):
        table = pa.table({"id": ids, "text": [texts[index] for index in ids]})
        pq.write_table(table, folder / f"{number:03}.parquet")
    return texts


def kill_one(folder: Path, target: Path, after: int, killed: list[int], over: threading.Event) -> None:
    """Kill an actor when so many rows are written."""
    while not over.wait(_STEP):
        rows = 0
        for path in target.glob("*.parquet"):
            with contextlib.suppress(pa.ArrowInvalid, OSError):  # still being written
                rows += pq.read_metadata(path).num_rows
        if rows >= after:
            process = min(int(path.name) for path in folder.iterdir())
            os.kill(process, signal.SIGKILL)
            killed.append(process)
            return


def with_a_killed_actor(bundle: str, passages: int, actors: int, space: Path) -> tuple[list[str], bool]:
    """The large job, with a murder in the middle: lines of the report, and whether all is well."""
    texts = write_passages(space / "passages", passages)
    folder, target = space / "actors", space / "vectors"
    folder.mkdir()
    target.mkdir()
    memory, killed, over = Memory(folder), list[int](), threading.Event()
    killer = threading.Thread(target=kill_one, args=(folder, target, passages // 3, killed, over))
    killer.start()
    start = time.perf_counter()
    with memory.watched():
        job(space / "passages", target, bundle, folder, actors)
    seconds = time.perf_counter() - start
    over.set()
    killer.join()
    found = pq.read_table(target, columns=["id", "pid"])
    counts = Counter(found["id"].to_pylist())
    lost, twice = passages - len(counts), sum(count > 1 for count in counts.values())
    chosen = np.random.default_rng(0).choice(passages, min(_COMPARED, passages), replace=False)
    rows = pq.read_table(target, columns=["id", "embedding"], filters=[("id", "in", chosen.tolist())]).sort_by("id")
    model = stonnx.SentenceTransformer(bundle, threads=1)
    expected = model.encode_document([texts[index] for index in sorted(chosen)])
    difference = float(np.abs(np.array(rows["embedding"].to_pylist(), np.float32) - expected).max())
    lines = [
        f"- {passages:,} passages, {actors} actors, {seconds:.0f} s with start and writing. "
        f"Killed: {'one actor' if killed else 'NONE'} after {passages // 3:,} rows.",
        f"- Lost: {lost}. Twice: {twice}. Largest difference of {len(chosen)} passages to `encode`: {difference:.1e}.",
    ]
    fine = bool(killed) and not lost and not twice and difference <= _TOLERANCE
    for process in sorted(memory.seen):
        quarters = memory.quarters(process)
        if not quarters:
            continue
        shown = ", ".join(f"{value:.0f}" for value in quarters)
        fate = " (killed)" if process in killed else ""
        lines.append(
            f"- Memory of an actor{fate} by quarter of its life: {shown} MB, at most {max(memory.seen[process]):.0f}."
        )
        fine = fine and (process in killed or quarters[3] <= quarters[2] * (1 + _GROWTH))
    return lines, fine


def throughput(bundle: str, texts: int, actors: int, rounds: int, space: Path) -> list[str]:
    """Texts a second in turns: one process, as many processes as actors, and Ray."""
    wall: dict[str, list[float]] = {"one": [], "processes": [], "ray": []}
    cpu: dict[str, list[float]] = {"one": [], "processes": [], "ray": []}
    write_passages(space / "few", texts)
    for number in range(rounds):
        for name, count in (("one", 1), ("processes", actors)):
            share = texts // actors
            workers = [
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "benchmarks.questions.bulk_ray", "--worker", "--bundle", bundle),
                        *("--texts", str(share), "--passages", str(texts), "--skip", str(share * index)),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for index in range(count)
            ]
            for worker in workers:
                assert worker.stdout is not None
                worker.stdout.readline()  # loaded and warm
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
            outcomes = [tuple(map(float, worker.communicate()[0].split())) for worker in workers]
            wall[name].append(
                count * share / (max(end for _, end, _ in outcomes) - min(start for start, *_ in outcomes))
            )
            cpu[name].append(count * share / sum(used for *_, used in outcomes))
        folder, target = space / f"actors{number}", space / f"vectors{number}"
        folder.mkdir()
        job(space / "few", target, bundle, folder, actors)
        found = pq.read_table(target, columns=["start", "end", "cpu", "pid"])
        busy = {(row["pid"], row["start"]): row for row in found.to_pylist()}.values()
        seconds = max(row["end"] for row in busy) - min(row["start"] for row in busy)
        wall["ray"].append(texts / seconds)
        cpu["ray"].append(texts / sum(row["cpu"] for row in busy))
    lines = [
        "",
        f"| {texts:,} passages, {rounds} rounds in turns | texts/s | of {actors} x one | of {actors} at once | CPU |",
        "|---|---|---|---|---|",
    ]
    for name, what in (
        ("one", "one process"),
        ("processes", f"{actors} processes"),
        ("ray", f"{actors} actors on Ray"),
    ):
        times = 1 if name == "one" else 1 / actors
        ratios = [
            statistics.median(a / b * factor for a, b in zip(mine, theirs, strict=True))
            for mine, theirs, factor in (
                (wall[name], wall["one"], times),
                (wall[name], wall["processes"], 1.0),
                (cpu[name], cpu["processes"], 1.0),
            )
        ]
        lines.append(
            f"| {what} | {statistics.median(wall[name]):.0f} | " + " | ".join(f"{x:.2f}" for x in ratios) + " |"
        )
    return lines


def work(bundle: str, texts: int, passages: int, skip: int) -> None:
    """One process without Ray: waits for a line, and prints when it began and ended and the CPU time it took."""
    model = stonnx.SentenceTransformer(bundle, threads=1)
    mine = mixed_texts(passages, median=_MEDIAN_WORDS)[skip : skip + texts]
    model.encode_document(mine[:64])
    print("ready", flush=True)
    sys.stdin.readline()
    start, cpu = time.time(), time.process_time()
    for index in range(0, len(mine), _BATCH):
        model.encode_document(mine[index : index + _BATCH])
    print(start, time.time(), time.process_time() - cpu)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", required=True, help="an embedding model")
    parser.add_argument("--passages", type=int, default=100_000, help="passages of the job; 0: none (default: 100000)")
    parser.add_argument("--actors", type=int, default=2, help="one for each CPU (default: 2)")
    parser.add_argument("--texts", type=int, default=20_000, help="passages of the comparison (default: 20000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison; 0: none (default: 3)")
    parser.add_argument("-o", "--output", type=Path, help="write the report there too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        work(arguments.bundle, arguments.texts, arguments.passages, arguments.skip)
        return 0
    bundle = str(Path(arguments.bundle).resolve())
    # Ray gives its workers the priority 15. The processes that they are compared with have 0.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, the name that Ray reads
    # Reading, writing and the actor that replaces a dead one need CPUs by Ray's count, beside those of the actors.
    ray.init(num_cpus=arguments.actors + 4, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as space:
        lines, fine = list[str](), True
        if arguments.passages:
            lines, fine = with_a_killed_actor(bundle, arguments.passages, arguments.actors, Path(space))
        if arguments.rounds:
            lines += throughput(bundle, arguments.texts, arguments.actors, arguments.rounds, Path(space))
    ray.shutdown()
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
