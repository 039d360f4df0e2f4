"""The part of a session that the engine uses. ``stonnx._device.opening`` opens real ones, and tests have a fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Protocol

import numpy.typing as npt

from stonnx._device.session import RunControl


class GraphSession(Protocol):
    """A loaded graph that runs. The attributes are those of :class:`stonnx._device.session.Session`."""

    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def version(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def kernels(self) -> str: ...
    @property
    def fallbacks(self) -> tuple[str, ...]: ...
    @property
    def inputs(self) -> Set[str]: ...
    @property
    def outputs(self) -> Set[str]: ...
    @property
    def required(self) -> Mapping[str, tuple[int | str, ...]]: ...
    @property
    def output_shapes(self) -> Mapping[str, tuple[int | str, ...]]: ...

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, npt.NDArray[Any] | None],
        control: RunControl | None = None,
        *,
        free_memory: bool = False,
    ) -> list[npt.NDArray[Any]]:
        """Run the graph, for any number of threads at once."""
        ...

    def control(self) -> RunControl:
        """An object that can stop runs while they are in progress."""
        ...

    def trim(self) -> None:
        """Give back the memory that earlier, larger runs needed."""
        ...
