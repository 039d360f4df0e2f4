"""Opens sessions: a graph is loaded for a device, or for the best device that works, and checked that it runs there."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stonnx._arguments import device_name
from stonnx._bundle.manifest import Scalar
from stonnx._device import kernels as native
from stonnx._device import nvidia, saturation, tensorrt
from stonnx._device.block_weights import BlockWeights
from stonnx._device.cpus import available_cpus, require_threads
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.gpu_run import DeviceRun
from stonnx._device.provider import CPU, BuiltEngine, Device, Setup
from stonnx._device.providers import check_precision, check_version, devices_for, providers_of
from stonnx._device.session import Session, give_back_memory
from stonnx._device.wheels import import_onnxruntime, installed_wheels
from stonnx._errors import BundleFormatError, DeviceError, UnsupportedError
from stonnx._limits import Limits

logger = logging.getLogger("stonnx")

# The operators with nearly all of the work. One of them on the CPU, between others on a GPU, costs more than the rest.
HEAVY = frozenset(
    (
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FusedGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "Attention",
        "MultiHeadAttention",
        "Softmax",
        "LayerNormalization",
        "SkipLayerNormalization",
        "Gelu",
        "Erf",
    )
)


def open_session(
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
) -> Session:
    """Load a graph for a device, and check that it runs there.

    Args:
        graph: The ONNX file.
        name: Its name in messages. None: its path.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``tensorrt``, ``openvino``. None: the best that works.
        threads: Threads of one run on the CPU. None: as many as the process may use CPUs.
        saturation_safe: Initializers to replace if 8-bit products saturate.
        form: Which form of an int8 graph runs. None: the one that this CPU needs.
        facts: The facts of the bundle about the graph.
        options: How to use the device.
        spin_microseconds: How long a thread of the CPU waits for work before it sleeps.
        kernels: Whether native kernels may run, if there are any for this graph. False: the file as it is.
        refused: Why they may not run although they could, for ``fallbacks``. Empty: they may.

    Raises:
        DeviceError: The device does not work. The message names what is missing and how to install it.
        UnsupportedError: The device does not run bundles of this precision.
        BundleFormatError: onnxruntime does not read the graph.
    """
    ort = import_onnxruntime()
    # Only `None` means "choose for me". `device=0` is a GPU in PyTorch and must not silently become the CPU.
    devices = devices_for(None if device is None else device_name(device), ort.get_available_providers())
    threads = require_threads(available_cpus() if threads is None else threads)
    wanted = _Wanted(
        ort,
        graph,
        name or graph,
        threads,
        saturation_safe or {},
        form,
        facts or GraphFacts(),
        options or DeviceOptions(),
        spin_microseconds,
        kernels,
        refused,
    )
    do_not_work: list[str] = []
    for choice in devices[:-1]:
        try:
            return _open(wanted, choice, do_not_work)
        except (DeviceError, UnsupportedError) as error:
            do_not_work.append(str(error))
    return _open(wanted, devices[-1], do_not_work)


@dataclass(frozen=True)
class _Wanted:
    """onnxruntime, and the arguments of :func:`open_session` other than the device."""

    ort: Any
    graph: Path
    name: Path
    threads: int
    saturation_safe: Mapping[str, Scalar]
    form: Literal["full-range", "saturation-safe"] | None
    facts: GraphFacts
    options: DeviceOptions
    spin_microseconds: int
    may_use_kernels: bool
    refused: str

    @property
    def version(self) -> str:
        """The version of onnxruntime."""
        return str(self.ort.__version__)


@dataclass(frozen=True)
class _Loaded:
    """onnxruntime's session, the objects that it keeps pointers to, its native kernels, and why blocks run without."""

    inference: Any
    held: list[Any]
    kernels: str = ""
    without_kernels: str = ""


def _open(wanted: _Wanted, device: Device, do_not_work: list[str]) -> Session:
    """The session on one device, after others did not work."""
    provider = device.provider
    check_version(device, wanted.version, installed_wheels())
    check_precision(device, wanted.facts.precision)
    missing = provider.load_libraries(wanted.ort)
    if missing is not None:
        raise DeviceError(f"device {str(device)!r} needs {provider.name}, and {missing}")
    form = ""
    if wanted.saturation_safe:
        form = wanted.form or ("saturation-safe" if products_saturate() else "full-range")
    providers, engine = _providers(wanted, device)
    loaded = _load(wanted, device, form, providers)
    inference = loaded.inference
    on_cpu = provider.name == CPU
    operators = {} if on_cpu else _operators(wanted, device, inference)
    # Inputs with a default inside the graph are not in get_inputs().
    required, optional = inference.get_inputs(), inference.get_overridable_initializers()
    session = Session(
        device=str(device),
        threads=wanted.threads,
        version=wanted.version,
        form=form,
        kernels=loaded.kernels,
        fallbacks=(*do_not_work, *filter(None, [loaded.without_kernels])),
        inputs=frozenset(node.name for node in (*required, *optional)),
        outputs=frozenset(node.name for node in inference.get_outputs()),
        required={node.name: tuple(node.shape) for node in required},
        output_shapes={node.name: tuple(node.shape) for node in inference.get_outputs()},
        operators=operators,
        engine_directory=None if engine is None else engine.directory,
        ort=wanted.ort,
        inference=inference,
        device_run=_device_run(wanted, device, inference, engine),
        cuda_graphs=wanted.options.cuda_graphs,
        held=loaded.held,
    )
    if not on_cpu:
        try:
            session.run_smallest()
        except Exception as error:
            raise DeviceError(
                f"device {session.device!r} loads the graph but does not run it: {error} "
                "See `stonnx doctor`: the driver or the GPU may be older or newer than onnxruntime expects."
            ) from error
    if engine is not None:
        engine.remember()
    give_back_memory()
    for reason in do_not_work:
        logger.warning("Running on %s instead: %s", session.device, reason)
    if loaded.without_kernels:
        logger.warning("Running %s", loaded.without_kernels)
    return session


def _load(wanted: _Wanted, device: Device, form: str, providers: Any) -> _Loaded:
    """Have onnxruntime load the graph: with native kernels if there are some for it, and they work."""
    provider, choice = device.provider, _kernels_for(wanted, device)
    try:
        if choice.library is None:
            return _load_stock(wanted, device, form, providers, choice.fallback)
        return _load_with_kernels(wanted, device, form, providers, choice)
    except DeviceError:  # the caller wants bfloat16, and the kernels cannot be loaded
        raise
    except Exception as error:  # onnxruntime's errors share no public base class, and a manifest may hold anything
        told = str(error).replace(str(wanted.graph), str(wanted.name))
        if provider.name != CPU:
            reason = nvidia.why_not_loaded(wanted.ort, provider.name) if provider.nvidia else None
            raise DeviceError(
                f"onnxruntime {wanted.version} cannot load {wanted.name} on device {str(device)!r}: {reason or told} "
                "See `stonnx doctor`. device='cpu' runs every bundle, and bundles exported with --dtype fp16 have "
                "plain operators only, which all devices run."
            ) from error
        raise BundleFormatError(
            f"onnxruntime {wanted.version} cannot load {wanted.name}: {told} "
            "If the bundle is intact, a newer onnxruntime may help: pip install -U onnxruntime"
        ) from error


def _kernels_for(wanted: _Wanted, device: Device) -> native.Choice:
    # A form that is named is one of stock operators: kernels have none.
    if device.provider.name != CPU or not wanted.may_use_kernels or wanted.form is not None:
        return native.Choice()
    if wanted.refused:
        return native.Choice(fallback=wanted.refused)
    facts = wanted.facts
    reads_padding = any(spec.name == "query_rows" for spec in facts.inputs)
    return native.choose(facts.kernels, facts.precision, bfloat16=wanted.options.bfloat16, reads_padding=reads_padding)


def _load_stock(wanted: _Wanted, device: Device, form: str, providers: Any, without_kernels: str) -> _Loaded:
    inference, held = _inference(wanted, _settings(wanted, device), form, providers)
    return _Loaded(inference, held, without_kernels=without_kernels)


def _load_with_kernels(wanted: _Wanted, device: Device, form: str, providers: Any, choice: native.Choice) -> _Loaded:
    """Load the graph with native kernels for its blocks, or without if they do not work with onnxruntime."""
    settings, library, facts = _settings(wanted, device), choice.library, wanted.facts
    assert library is not None
    try:
        blocks = facts.kernels.blocks if facts.kernels is not None else None
        as_bfloat16 = choice.float_as_bfloat16
        with contextlib.closing(BlockWeights(wanted.ort, wanted.graph, choice.kinds)) as weights:
            weights.use(settings)
            with library.session(settings, wanted.threads, float_as_bfloat16=as_bfloat16, blocks=blocks):
                inference, held = _inference(wanted, settings, form, providers)
            weights.give_back()
    except Exception as error:  # onnxruntime's errors share no public base class
        reason = f"stonnx-kernels {library.version} does not load {wanted.name}: {error}"
        if choice.float_as_bfloat16:
            raise DeviceError(f"device_options bfloat16=True needs native kernels, and {reason}") from error
        return _load_stock(wanted, device, form, providers, f"{native.WITHOUT}{reason}")
    return _Loaded(inference, [*held, weights], library.variant, choice.fallback)


def _inference(wanted: _Wanted, settings: Any, form: str, providers: Any) -> tuple[Any, list[Any]]:
    """onnxruntime's session, and the objects that it keeps pointers to."""
    held = []
    if form == "saturation-safe":
        for name, scalar in wanted.saturation_safe.items():
            held.append(wanted.ort.OrtValue.ortvalue_from_numpy(np.array(scalar.value, dtype=scalar.dtype)))
            settings.add_initializer(name, held[-1])
    # Without `enable_fallback=0`, onnxruntime prints an error and goes on with the CPU.
    make = wanted.ort.InferenceSession
    return make(str(wanted.graph), settings, providers=providers, enable_fallback=0), held


def _settings(wanted: _Wanted, device: Device) -> Any:
    settings = wanted.ort.SessionOptions()
    settings.intra_op_num_threads = wanted.threads
    settings.log_severity_level = 3
    # The exporter has optimized the graph. Higher levels put back fused kernels that are slower on the CPU.
    levels = wanted.ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if device.provider.fused else levels.ORT_ENABLE_BASIC
    # Memory patterns are cached for each input shape, and ours always differ.
    settings.enable_mem_pattern = False
    # Not set: session.set_denormal_as_zero. It changes the arithmetic of the thread that makes the session.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(wanted.spin_microseconds))
    if device.provider.name != CPU:
        # Not set: session.disable_cpu_ep_fallback. It refuses every graph with a Shape operator, which belongs on the
        # CPU. _operators looks at the operators that matter.
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def _providers(wanted: _Wanted, device: Device) -> tuple[list[tuple[str, dict[str, Any]]], BuiltEngine | None]:
    """The device's provider and those for missing operators, with options; and the engine that one of them builds.

    onnxruntime adds the CPU itself.
    """
    providers, engine, facts = [], None, wanted.facts
    for row in providers_of(device):
        one = Device(row, device.index)
        setup = Setup(
            one,
            row is device.provider,
            wanted.options,
            wanted.threads,
            wanted.version,
            facts.sha256,
            facts.precision,
            facts.inputs,
            facts.max_seq_length,
        )
        configured = row.configure(setup)
        engine = configured.engine or engine
        providers.append((row.name, {**one.options, **configured.options}))
    return providers, engine


def _operators(wanted: _Wanted, device: Device, inference: Any) -> dict[tuple[str, str], int]:
    """The number of operators by provider and kind. Raise DeviceError if the device does not do the work."""
    provider, running = device.provider, inference.get_providers()[0]
    if running != provider.name:
        reason = nvidia.why_not_loaded(wanted.ort, provider.name) if provider.nvidia else None
        raise DeviceError(
            f"device {str(device)!r} needs {provider.name}, but onnxruntime {wanted.version} runs on "
            f"{running} instead: {reason or 'only its log says why.'} See `stonnx doctor`."
        )
    parts = inference.get_provider_graph_assignment_info()
    operators = dict(Counter((part.ep_name, node.op_type) for part in parts for node in part.get_nodes()))
    astray = sorted({kind for name, kind in operators if name == CPU and kind in HEAVY})
    if astray:
        raise DeviceError(
            f"device {str(device)!r} would leave {', '.join(astray)} of this graph to the CPU, with copies to and "
            f"fro: onnxruntime {wanted.version} has no such kernels for it. Use device='cpu', or export another "
            "form: stonnx export MODEL --dtype fp16"
        )
    return operators


def _device_run(wanted: _Wanted, device: Device, inference: Any, engine: BuiltEngine | None) -> DeviceRun | None:
    if not device.provider.nvidia:
        return None
    shapes = None if engine is None else tensorrt.largest(wanted.facts.max_seq_length)
    return DeviceRun(wanted.ort, inference, device.index or 0, shapes, graphs=wanted.options.cuda_graphs)


@functools.cache
def products_saturate() -> bool:
    """Whether 8-bit products can saturate on this CPU, so that int8 graphs need their saturation-safe form."""
    return saturation.saturates(import_onnxruntime())
