"""One system in a process of its own, asked for one measurement at a time: both ends of the conversation.

Requests and replies are lines of JSON on the worker's standard input and output. A request names a method of
:class:`Server` and its arguments. A reply holds the result or the error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmarks.peers.environments import ROOT, python, variables
from benchmarks.peers.systems import WORKLOADS, Batching, Inputs, System, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# If a library hangs, its row says so, and the benchmark goes on.
_TIMEOUT_SECONDS = 300.0
# Inputs encoded before a turn is timed.
_WARM_UP = 8


class WorkerError(RuntimeError):
    """The system failed. The message is the last that it wrote."""


class Server:
    """The worker's end. Requests name its methods."""

    def __init__(self, driver: str, model: Path, task: Task, options: Mapping[str, Any]) -> None:
        from benchmarks.peers.drivers import DRIVERS

        self._encode = DRIVERS[driver](model, task, **options)
        self._inputs: dict[str, Inputs] = {}

    def first(self, inputs: Inputs) -> None:
        """Encode one input. After that, the system is ready."""
        self._encode(inputs)

    def rate(self, workload: str, batching: Batching) -> float:
        """Encode all inputs of a workload once. Returns inputs a second."""
        inputs = self._workload(workload)
        # Other processes have filled the caches since the last turn.
        self._encode(inputs[:_WARM_UP], **batching)
        start = time.perf_counter()
        self._encode(inputs, **batching)
        return len(inputs) / (time.perf_counter() - start)

    def latencies(self, workload: str) -> list[float]:
        """Milliseconds that each input of a workload takes alone."""
        inputs = self._workload(workload)
        for text in inputs[:_WARM_UP]:
            self._encode([text])
        times = []
        for text in inputs:
            start = time.perf_counter()
            self._encode([text])
            times.append((time.perf_counter() - start) * 1000)
        return times

    def vectors(self, inputs: Inputs, groups: Sequence[Sequence[int]], batching: Batching, output: str) -> None:
        """Encode groups of inputs, each in a call of its own. Write the rows, in the order of the inputs, to a file."""
        import numpy as np

        rows: dict[int, npt.NDArray[Any]] = {}
        for group in groups:
            result = _dense(self._encode([inputs[index] for index in group], **batching))
            rows.update(zip(group, result, strict=True))
        np.save(output, np.stack([rows[index] for index in range(len(inputs))]))

    def memory(self) -> float:
        """The largest resident memory of this process so far, in MB."""
        status = Path("/proc/self/status")
        if status.is_file():
            # getrusage would report at least the memory of the process that started this one.
            lines = status.read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

    def _workload(self, name: str) -> Inputs:
        if name not in self._inputs:
            self._inputs[name] = next(workload.inputs() for workload in WORKLOADS if workload.name == name)
        return self._inputs[name]


def _dense(rows: Any) -> npt.NDArray[np.float32]:
    import numpy as np

    if hasattr(rows, "toarray"):  # scipy
        rows = rows.toarray()
    elif hasattr(rows, "to_dense"):  # torch
        rows = rows.to_dense().numpy()
    return np.asarray(rows, dtype=np.float32)


def serve() -> None:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--driver", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--options", type=json.loads, default={})
    arguments = parser.parse_args()
    # Output that libraries print must not come between the lines of the conversation.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(arguments.driver, arguments.model, arguments.task, arguments.options)
    idle_since = time.process_time()
    for line in sys.stdin:
        # Processor time that this process used since its last reply. It takes that from the process that measures.
        reply: dict[str, Any] = {"idle_cpu": time.process_time() - idle_since}
        request = json.loads(line)
        try:
            reply["result"] = getattr(server, request.pop("method"))(**request)
        except Exception as error:
            reply["error"] = f"{type(error).__name__}: {error}"
        idle_since = time.process_time()
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """The runner's end: a system that was started for a task and is ready."""

    def __init__(self, system: System, task: Task, models: Path, logs: Path) -> None:
        self.system = system
        self.log = logs / f"{system.name}-{task}.log".replace(" ", "-").replace(",", "")
        command = [str(python(system.environment)), "-m", "benchmarks.peers.worker", "--driver", system.driver]
        command += ["--model", str(models / system.models[task]), "--task", task]
        command += ["--options", json.dumps(dict(system.options))]
        self._idle_cpu = self._idle_seconds = 0.0
        self._replied = start = time.perf_counter()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.ask(
                "first", inputs=[("where is it", "here it is")] if task == "rerank" else ["The weather is lovely."]
            )
        except WorkerError:
            self.close()
            raise
        # From starting the process to the first vector.
        self.start_seconds = time.perf_counter() - start
        self._idle_cpu = self._idle_seconds = 0.0

    @property
    def idle_share(self) -> float:
        """Processor time used between requests, as a share of that time."""
        return self._idle_cpu / max(self._idle_seconds, 1e-9)

    def ask(self, method: str, **arguments: Any) -> Any:
        """Send a request and wait for its result.

        Raises:
            WorkerError: The method raised an error in the worker, or the worker died or hangs.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        self._idle_seconds += time.perf_counter() - self._replied
        try:
            process.stdin.write(json.dumps({"method": method, **arguments}) + "\n")
            process.stdin.flush()
            line = _read_line(process.stdout)
        except BrokenPipeError:
            line = ""
        if not line:
            process.kill()
            self.close()
            raise WorkerError(self._last_words())
        reply = json.loads(line)
        self._replied = time.perf_counter()
        self._idle_cpu += reply["idle_cpu"]
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["result"]

    def vectors(self, inputs: Inputs, groups: Sequence[Sequence[int]], batching: Batching) -> npt.NDArray[np.float32]:
        """See :meth:`Server.vectors`."""
        import numpy as np

        with tempfile.TemporaryDirectory() as directory:
            output = str(Path(directory) / "vectors.npy")
            self.ask("vectors", inputs=list(inputs), groups=groups, batching=batching, output=output)
            rows: npt.NDArray[np.float32] = np.load(output)
            return rows

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError), self._process:
            pass

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with exit status {self._process.returncode}, or said nothing"


def _read_line(stream: IO[str]) -> str:
    """A line, or an empty string if none comes in time."""
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(_TIMEOUT_SECONDS) else ""


if __name__ == "__main__":
    serve()
