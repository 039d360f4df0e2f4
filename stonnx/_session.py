"""Batches to arrays: an ONNX Runtime session and its threads. The only file that knows ``onnxruntime``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonnx import _int8_product
from stonnx._bundle import Scalar
from stonnx._cpus import available_cpus
from stonnx._errors import BundleFormatError, DeviceError, InvalidArgumentError, MissingDependencyError
from stonnx._providers import provider_for

if TYPE_CHECKING:
    import onnxruntime

# Every one of these wheels installs the same directory `onnxruntime`; the last one installed wins.
_WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
_INSTALL = 'pip install "stonnx[cpu]"  (or "stonnx[gpu]" for NVIDIA GPUs)'


class Session:
    """One graph, loaded for one device. ``run`` may be called from many threads at once.

    Args:
        graph: The ONNX file.
        device: See :func:`stonnx._providers.provider_for`.
        threads: Threads of one run. None: as many as the process may use CPUs.
        saturation_safe: Initializers that are replaced where 8-bit products saturate.

    Attributes:
        form: Which of two forms of an int8 graph runs, ``full-range`` or ``saturation-safe``; empty where there is one.
    """

    def __init__(
        self,
        graph: Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        saturation_safe: Mapping[str, Scalar] | None = None,
    ) -> None:
        ort = _import_onnxruntime()
        # `None` alone means the default: 0, which is a GPU in PyTorch, must not become the CPU.
        provider, options = provider_for(None if device is None else str(device), ort.get_available_providers())
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidArgumentError(f"threads must be a positive integer or None, got {threads!r}.")
        self.device = provider.device if device is None else str(device)
        self.threads = threads or available_cpus()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.log_severity_level = 3
        # The exporter finished the graph. Higher levels would put back fused kernels that are slower on the CPU.
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Memory patterns are cached for each input shape, and ours always differ.
        settings.enable_mem_pattern = False
        self.form = ""
        if saturation_safe:
            self.form = "saturation-safe" if products_saturate() else "full-range"
        providers: list[Any] = [(provider.name, options)]
        if provider.device != "cpu":
            providers.append("CPUExecutionProvider")
        try:
            if saturation_safe and self.form == "saturation-safe":
                self._replaced = _replace_initializers(ort, settings, saturation_safe)
            self._session = ort.InferenceSession(str(graph), settings, providers=providers)
        except Exception as error:  # onnxruntime's errors share no public base class, and a manifest may hold anything
            if provider.device != "cpu":
                raise DeviceError(
                    f"onnxruntime {ort.__version__} cannot load {graph} on device {self.device!r}: {error} "
                    "See whether the device and its driver work, and whether device='cpu' loads the bundle."
                ) from error
            raise BundleFormatError(
                f"onnxruntime {ort.__version__} cannot load {graph}: {error} "
                "If the bundle is intact, a newer onnxruntime may help: pip install -U onnxruntime"
            ) from error
        if self._session.get_providers()[0] != provider.name:
            raise DeviceError(
                f"device {self.device!r} was asked for, but onnxruntime runs on {self._session.get_providers()[0]}: "
                f"a library that {provider.name} needs is missing. Install it with: {provider.install}"
            )
        # Inputs with a default inside the graph are not in get_inputs().
        optional = {node.name for node in self._session.get_overridable_initializers()}
        self.inputs = {node.name for node in self._session.get_inputs()} | optional
        self.outputs = {node.name for node in self._session.get_outputs()}
        self.version: str = ort.__version__

    def run(self, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any] | None]) -> list[npt.NDArray[Any]]:
        """Run the graph. Feeds that are None, or that the graph does not have, are left out."""
        known = {name: value for name, value in feeds.items() if value is not None and name in self.inputs}
        results: list[npt.NDArray[Any]] = self._session.run(list(outputs), known)
        return results


@functools.cache
def products_saturate() -> bool:
    """Whether 8-bit products can saturate on this CPU, so that int8 graphs need their saturation-safe form."""
    return _int8_product.saturates(_import_onnxruntime())


def _replace_initializers(ort: Any, settings: Any, scalars: Mapping[str, Scalar]) -> list[Any]:
    """Have a session be created with other values of some initializers.

    Returns:
        What must live as long as the session: onnxruntime keeps pointers to it.
    """
    values = []
    for name, scalar in scalars.items():
        values.append(ort.OrtValue.ortvalue_from_numpy(np.array(scalar.value, dtype=scalar.dtype)))
        settings.add_initializer(name, values[-1])
    return values


def _import_onnxruntime() -> onnxruntime:
    installed = [wheel for wheel in _WHEELS if _is_installed(wheel)]
    if len(installed) > 1:
        warnings.warn(
            f"{' and '.join(installed)} are both installed and overwrite each other's files: which devices work is "
            f"chance. Repair it with: pip uninstall -y {' '.join(installed)} && {_INSTALL}",
            RuntimeWarning,
            stacklevel=2,
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported: {error}. Install it with: {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # What is left of the directory after one of two wheels was uninstalled.
        raise MissingDependencyError(
            "onnxruntime is only partly installed, as happens when one of two onnxruntime wheels is uninstalled. "
            f"Repair it with: pip uninstall -y {' '.join(_WHEELS[:2])} && {_INSTALL}"
        )
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
