"""Starting and stopping the processes that encode together with a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonnx._engine.request import ImageRequest, Request, run_images, run_request
from stonnx._errors import InvalidArgumentError
from stonnx._model.call import PoolCall
from stonnx._model.pool import Pool, borrowed, plan_workers, run_in_pool, start_pool, stop_pool
from stonnx._progress import progress_bar

if TYPE_CHECKING:
    from stonnx._engine.engine import Engine

logger = logging.getLogger("stonnx")


class Pooled:
    """Members that start and stop a pool of processes."""

    if TYPE_CHECKING:  # of the class that this is mixed into
        _options: dict[str, Any]
        _engine: Engine
        _directory: Path

        @property
        def device(self) -> str: ...

        def __getstate__(self) -> dict[str, Any]: ...

        def __setstate__(self, state: dict[str, Any]) -> None: ...

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> Pool:
        """Start processes that encode together, each with a model of its own from the same bundle.

        It pays for many texts. The main script must guard the call with ``if __name__ == "__main__":``, because the
        new processes import that script.

        Args:
            target_devices: One process is started for each, ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 8``. None: for a
                model on the CPU as many processes as there are CPUs, at most 4; for one on a GPU one process there.
                Processes share the CPUs: each has an equal part of them as threads, whatever ``threads`` the model has.

        Returns:
            A value for the ``pool`` argument of the other methods. Its ``"processes"`` are the processes.

        Raises:
            InvalidArgumentError: ``target_devices`` is not a list of devices.
            PoolError: A process ended before it was ready.

        Example:
            >>> pool = model.start_multi_process_pool()  # doctest: +SKIP
            >>> embeddings = model.encode(texts, pool=pool)  # doctest: +SKIP
            >>> model.stop_multi_process_pool(pool)  # doctest: +SKIP
        """
        workers = plan_workers(target_devices, self.device, self._options)
        logger.info("Starting a pool of processes on: %s", ", ".join(worker.device for worker in workers))
        state = self.__getstate__()
        states = [(worker.device, state | {"_options": worker.options}) for worker in workers]
        return start_pool(type(self), states, [worker.threads for worker in workers])

    @staticmethod
    def stop_multi_process_pool(pool: Pool) -> None:
        """Stop the processes of a pool. A call that uses it in another thread raises PoolError."""
        stop_pool(pool)

    def _replies(
        self, request: Any, items: Sequence[Any], *, unit: str, show: bool | None, pool: Pool, chunk_size: int | None
    ) -> list[Any]:
        """What the processes of a pool answer to a request, for each chunk of its texts or images."""
        call = PoolCall(self._engine.bundle.identity, self._engine.max_seq_lengths, request)
        with progress_bar(len(items), show, unit) as advance:
            return run_in_pool(pool, call, items, chunk_size=chunk_size, advance=advance)

    def _answer(self, call: PoolCall[Any], items: Sequence[Any]) -> Any:
        """Do the work of a pool's process: the counterpart of :meth:`_replies`."""
        if call.bundle != self._engine.bundle.identity:
            raise InvalidArgumentError(
                f"This pool was started by another model, {self._engine.manifest.source.name} from {self._directory}. "
                "Start one with start_multi_process_pool() of the model that uses it."
            )
        self._engine.max_seq_lengths = call.max_seq_lengths
        request: Request[Any] | ImageRequest = call.request
        if isinstance(request, ImageRequest):
            return run_images(self._engine, replace(request, images=items))
        return run_request(self._engine, replace(request, texts=items))

    @contextmanager
    def _pool_of(self, pool: Pool | None, device: str | list[str] | None) -> Iterator[Pool | None]:
        """The pool of a call: the given one, or one that is started for it; None: the call runs in this process."""
        if pool is None and not isinstance(device, list):
            yield None
            return
        devices = device if isinstance(device, list) else None
        with borrowed(pool, lambda: self.start_multi_process_pool(devices)) as used:
            yield used
