"""Starting and stopping the processes that encode together with a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stonnx._model.pool import Pool, plan_workers, start_pool, stop_pool

logger = logging.getLogger("stonnx")


class Pooled:
    """Members that start and stop a pool of processes."""

    if TYPE_CHECKING:  # of the class that this is mixed into
        _options: dict[str, Any]

        @property
        def device(self) -> str: ...

        def __getstate__(self) -> dict[str, Any]: ...

        def __setstate__(self, state: dict[str, Any]) -> None: ...

        def _answer(self, call: Any, texts: Any) -> Any: ...

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
