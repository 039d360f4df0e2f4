"""Batches to arrays: an ONNX Runtime session and its threads. The only file that knows ``onnxruntime``."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import Scalar
from stonnx._device import kernels as native
from stonnx._device import nvidia, saturation, tensorrt
from stonnx._device.cpus import available_cpus, require_threads
from stonnx._device.facts import GraphFacts
from stonnx._device.gpu_run import DeviceRun
from stonnx._device.options import DeviceOptions
from stonnx._device.provider import CPU, BuiltEngine, Device, Setup
from stonnx._device.providers import check_precision, check_version, devices_for, providers_of
from stonnx._device.wheels import import_onnxruntime, installed_wheels
from stonnx._errors import BundleFormatError, DeviceError, RunError, StonnxError, UnsupportedError
from stonnx._limits import Limits

logger = logging.getLogger("stonnx")

# The operators with nearly all of the work. One of them on the CPU, between others on a GPU, costs more than the rest.
HEAVY = frozenset(
    (
        *(
            "MatMul",
            "FusedMatMul",
            "Gemm",
            "FusedGemm",
            "MatMulInteger",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
        ),
        *("Attention", "MultiHeadAttention", "Softmax", "LayerNormalization", "SkipLayerNormalization", "Gelu", "Erf"),
    )
)


class Session:
    """One graph, loaded for one device. ``run`` may be called from many threads at once.

    Args:
        graph: The ONNX file.
        name: Its name in messages. None: its path.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``tensorrt``, ``openvino``. None: the best that works.
        threads: Threads of one run on the CPU. None: as many as the process may use CPUs.
        saturation_safe: Initializers to replace if 8-bit products saturate.
        form: Which form of an int8 graph runs. None: the one that this CPU needs.
        facts: The facts of the bundle about the graph.
        spin_microseconds: How long a thread of the CPU waits for work before it sleeps.
        options: How to use the device.
        kernels: Whether native kernels may run, if there are any for this graph. False: the file as it is.
        refused: Why they may not run although they could, for ``fallbacks``. Empty: they may.

    Attributes:
        device: The device that it runs on.
        fallbacks: Devices and kernels that do not work here, and why: with ``device=None`` the devices that were tried
            before, and native kernels that cannot be used.
        kernels: The instructions that native kernels use (``avx512_vnni``); empty if none run.
        form: Which of two forms of an int8 graph runs, ``full-range`` or ``saturation-safe``; empty if there is one.
        required: The inputs that the graph needs, with their shapes.
        output_shapes: The shapes of its outputs, as far as the graph says.
        operators: The number of operators by provider and kind: {(provider, operator): count}. Empty on the CPU.

    Raises:
        DeviceError: The device does not work. The message names what is missing and how to install it.
        UnsupportedError: The device does not run bundles of this precision.
        BundleFormatError: onnxruntime does not read the graph.
    """

    def __init__(
        self,
        graph: Path,
        *,
        name: Path | None = None,
        device: str | None = None,
        threads: int | None = None,
        saturation_safe: Mapping[str, Scalar] | None = None,
        form: Literal["full-range", "saturation-safe"] | None = None,
        facts: GraphFacts | None = None,
        options: DeviceOptions | None = None,
        spin_microseconds: int = Limits.spin_microseconds,
        kernels: bool = True,
        refused: str = "",
    ) -> None:
        self._ort = import_onnxruntime()
        # Only `None` means "choose for me". `device=0` is a GPU in PyTorch and must not silently become the CPU.
        devices = devices_for(None if device is None else str(device), self._ort.get_available_providers())
        self.threads = available_cpus() if threads is None else threads
        require_threads(self.threads)
        self.version: str = self._ort.__version__
        self._saturation_safe, self._form = saturation_safe or {}, form
        self._spin_microseconds = spin_microseconds
        self._facts, self._options = facts or GraphFacts(), options or DeviceOptions()
        self.fallbacks: tuple[str, ...] = ()
        self._may_use_kernels, self._refused, self.kernels = kernels, refused, ""
        for choice in devices:
            try:
                self._open(graph, choice, name or graph)
            except (DeviceError, UnsupportedError) as error:
                if choice is devices[-1]:
                    raise
                self.fallbacks += (str(error),)
            else:
                break
        for reason in self.fallbacks:
            logger.warning("Running on %s instead: %s", self.device, reason)
        if self._unused:
            logger.warning("Running %s", self._unused)
            self.fallbacks += (self._unused,)

    def _open(self, graph: Path, device: Device, name: Path) -> None:
        """Load the graph for a device, and check that it runs there."""
        provider = device.provider
        check_version(device, self.version, installed_wheels())
        check_precision(device, self._facts.precision)
        missing = provider.load_libraries(self._ort)
        if missing is not None:
            raise DeviceError(f"device {str(device)!r} needs {provider.name}, and {missing}")
        self.device, self.form = str(device), ""
        self._engine: BuiltEngine | None = None
        if self._saturation_safe:
            self.form = self._form or ("saturation-safe" if products_saturate() else "full-range")
        providers = self._providers(device)
        # Why native kernels do not run, although there are some for this graph.
        self._unused = ""
        choice = self._choose_kernels(device)
        try:
            if choice.library is None or not self._load_with_kernels(graph, device, choice, name):
                self._load(graph, self._settings(device), providers)
        except DeviceError:  # the caller wants bfloat16, and the kernels cannot be loaded
            raise
        except Exception as error:  # onnxruntime's errors share no public base class, and a manifest may hold anything
            told = str(error).replace(str(graph), str(name))
            if provider.name != CPU:
                reason = nvidia.why_not_loaded(self._ort, provider.name) if provider.nvidia else None
                raise DeviceError(
                    f"onnxruntime {self.version} cannot load {name} on device {self.device!r}: {reason or told} "
                    "See `stonnx doctor`. device='cpu' runs every bundle, and bundles exported with --dtype fp16 have "
                    "plain operators only, which all devices run."
                ) from error
            raise BundleFormatError(
                f"onnxruntime {self.version} cannot load {name}: {told} "
                "If the bundle is intact, a newer onnxruntime may help: pip install -U onnxruntime"
            ) from error
        # Inputs with a default inside the graph are not in get_inputs().
        self._required = self._session.get_inputs()
        optional = self._session.get_overridable_initializers()
        self.inputs = {node.name for node in (*self._required, *optional)}
        self.outputs = {node.name for node in self._session.get_outputs()}
        self.required = {node.name: tuple(node.shape) for node in self._required}
        self.output_shapes = {node.name: tuple(node.shape) for node in self._session.get_outputs()}
        self.operators: dict[tuple[str, str], int] = {}
        self._device_run: DeviceRun | None = None
        if provider.name != CPU:
            self._check_device(device)
        _give_back_memory()

    def _load(self, graph: Path, settings: Any, providers: Any) -> None:
        if self.form == "saturation-safe":
            self._replaced = _replace_initializers(self._ort, settings, self._saturation_safe)
        # Without `enable_fallback=0`, onnxruntime prints an error and goes on with the CPU.
        self._session = self._ort.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)

    def _choose_kernels(self, device: Device) -> native.Choice:
        # A form that is named is one of stock operators: kernels have none.
        if device.provider.name != CPU or not self._may_use_kernels or self._form is not None:
            return native.Choice()
        facts, choice = self._facts, native.Choice(fallback=self._refused)
        if not self._refused:
            choice = native.choose(facts.kernels, facts.precision, bfloat16=self._options.bfloat16)
        self._unused = choice.fallback
        return choice

    def _load_with_kernels(self, graph: Path, device: Device, choice: native.Choice, name: Path) -> bool:
        """Load the graph with native kernels for its blocks. False if they do not work with onnxruntime."""
        settings, library = self._settings(device), choice.library
        assert library is not None
        try:
            blocks = self._facts.kernels.blocks if self._facts.kernels is not None else None
            as_bfloat16 = choice.float_as_bfloat16
            with library.session(settings, self.threads, float_as_bfloat16=as_bfloat16, blocks=blocks):
                self._load(graph, settings, self._providers(device))
        except Exception as error:  # onnxruntime's errors share no public base class
            reason = f"stonnx-kernels {library.version} does not load {name}: {error}"
            if choice.float_as_bfloat16:
                raise DeviceError(f"device_options bfloat16=True needs native kernels, and {reason}") from error
            self._unused = f"{native.WITHOUT}{reason}"
            return False
        self.kernels = library.variant
        return True

    def _settings(self, device: Device) -> Any:
        ort = self._ort
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.log_severity_level = 3
        # The exporter has optimized the graph. Higher levels put back fused kernels that are slower on the CPU.
        levels = ort.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if device.provider.fused else levels.ORT_ENABLE_BASIC
        # Memory patterns are cached for each input shape, and ours always differ.
        settings.enable_mem_pattern = False
        # Not set: session.set_denormal_as_zero. It changes the arithmetic of the thread that makes the session.
        settings.add_session_config_entry("session.intra_op.spin_duration_us", str(self._spin_microseconds))
        if device.provider.name != CPU:
            # Not set: session.disable_cpu_ep_fallback. It refuses every graph with a Shape operator, which belongs on
            # the CPU. _check_device looks at the operators that matter.
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return settings

    def _providers(self, device: Device) -> list[tuple[str, dict[str, Any]]]:
        """The device's provider and those for missing operators, with options. onnxruntime adds the CPU itself."""
        providers = []
        for row in providers_of(device):
            one, facts = Device(row, device.index), self._facts
            setup = Setup(
                one,
                row is device.provider,
                self._options,
                self.threads,
                self.version,
                facts.sha256,
                facts.precision,
                facts.inputs,
                facts.max_seq_length,
            )
            configured = row.configure(setup)
            self._engine = configured.engine or self._engine
            providers.append((row.name, {**one.options, **configured.options}))
        return providers

    def _check_device(self, device: Device) -> None:
        """Check that the device does the work, by onnxruntime's report and by a run. Raise DeviceError otherwise."""
        running = self._session.get_providers()[0]
        if running != device.provider.name:
            reason = nvidia.why_not_loaded(self._ort, device.provider.name) if device.provider.nvidia else None
            raise DeviceError(
                f"device {self.device!r} needs {device.provider.name}, but onnxruntime {self.version} runs on "
                f"{running} instead: {reason or 'only its log says why.'} See `stonnx doctor`."
            )
        assigned = [
            (part.ep_name, node)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        self.operators = dict(Counter((provider, node.op_type) for provider, node in assigned))
        astray = sorted({kind for provider, kind in self.operators if provider == CPU and kind in HEAVY})
        if astray:
            raise DeviceError(
                f"device {self.device!r} would leave {', '.join(astray)} of this graph to the CPU, with copies to and "
                f"fro: onnxruntime {self.version} has no such kernels for it. Use device='cpu', or export another "
                "form: stonnx export MODEL --dtype fp16"
            )
        if device.provider.nvidia:
            shapes = None if self._engine is None else tensorrt.largest(self._facts.max_seq_length)
            self._device_run = DeviceRun(
                self._ort, self._session, device.index or 0, shapes, graphs=self._options.cuda_graphs
            )
        try:
            self._run_smallest()
        except Exception as error:
            raise DeviceError(
                f"device {self.device!r} loads the graph but does not run it: {error} "
                "See `stonnx doctor`: the driver or the GPU may be older or newer than onnxruntime expects."
            ) from error
        if self._engine is not None:
            self._engine.remember()

    @property
    def engine_directory(self) -> Path | None:
        """The directory of the TensorRT engine; None on other devices."""
        return None if self._engine is None else self._engine.directory

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, npt.NDArray[Any] | None],
        control: RunControl | None = None,
        *,
        free_memory: bool = False,
    ) -> list[npt.NDArray[Any]]:
        """Run the graph.

        Args:
            outputs: Names of the outputs.
            feeds: The inputs. Those that are None, or that the graph does not have, are left out.
            control: The object that can stop the run.
            free_memory: Whether to give back unused memory at the end.

        Raises:
            RunError: The run failed. If it was stopped instead, onnxruntime's own error is raised.
        """
        known = {name: value for name, value in feeds.items() if value is not None and name in self.inputs}
        if free_memory:
            control = control or self.control()
        options = None if control is None else control.freeing if free_memory else control.keeping
        try:
            if self._device_run is not None:
                return self._device_run(outputs, known, options)
            results: list[npt.NDArray[Any]] = self._session.run(list(outputs), known, options)
            return results
        except StonnxError:
            raise
        except Exception as error:  # onnxruntime's errors share no public base class
            if control is not None and control.stopped:
                raise
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in known.items())
            raise RunError(
                f"onnxruntime {self.version} failed to run {shapes} on device {self.device!r}: {error} If it ran out "
                "of memory, load the model with a lower max_batch_tokens, cut texts with max_seq_length, or call "
                "trim() to give back what earlier runs took."
            ) from error

    def control(self) -> RunControl:
        """An object that can stop runs of this graph while they are in progress."""
        return RunControl(self._ort.RunOptions(), self._freeing())

    def trim(self) -> None:
        """Give back the memory that earlier, larger runs needed. The next run of that size takes it again.

        With CUDA graphs, the GPU's memory stays, because the recordings contain its addresses.
        """
        self._run_smallest(self._freeing())
        _give_back_memory()

    def _freeing(self) -> Any:
        """Options of a run that shrinks the arenas to the memory in use at its end."""
        options = self._ort.RunOptions()
        arenas = ["cpu:0"]
        if self._device_run is not None and not self._options.cuda_graphs:
            arenas.insert(0, f"gpu:{self._device_run.index}")
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
        return options

    def _run_smallest(self, options: Any = None) -> None:
        """Run a single token once."""
        feeds = {
            node.name: np.ones([size if isinstance(size, int) else 1 for size in node.shape], dtype=np.int64)
            for node in self._required
        }
        if self._device_run is not None and self._options.cuda_graphs:
            # Without this it would be recorded like any other run, with inputs that are gone when it is replayed.
            options = options or self._ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", "-1")
        self._session.run(None, feeds, options)


@dataclass(frozen=True)
class RunControl:
    """onnxruntime's options of runs: for those that keep memory for the next run, and for those that free it."""

    keeping: Any
    freeing: Any

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return bool(self.keeping.terminate)

    def stop(self) -> None:
        """Have the runs end with an error after their current operation."""
        self.keeping.terminate = self.freeing.terminate = True


@functools.cache
def products_saturate() -> bool:
    """Whether 8-bit products can saturate on this CPU, so that int8 graphs need their saturation-safe form."""
    return saturation.saturates(import_onnxruntime())


def _replace_initializers(ort: Any, settings: Any, scalars: Mapping[str, Scalar]) -> list[Any]:
    """Have onnxruntime create a session with other values of some initializers.

    Returns:
        Objects that must live as long as the session, because onnxruntime keeps pointers to them.
    """
    values = []
    for name, scalar in scalars.items():
        values.append(ort.OrtValue.ortvalue_from_numpy(np.array(scalar.value, dtype=scalar.dtype)))
        settings.add_initializer(name, values[-1])
    return values


def _give_back_memory() -> None:
    """Have the C library return free memory to the system. After loading a graph, that is about half of its size."""
    # Only glibc has it. Windows does not accept a library without a name: that is the TypeError.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
