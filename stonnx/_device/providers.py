"""Devices: the execution provider of onnxruntime for each, its needs, and the bundles that it does not run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from stonnx._device import nvidia, tensorrt
from stonnx._device.provider import CPU, CUDA, Configured, Device, Provider, Setup
from stonnx._device.wheels import installed_wheels
from stonnx._errors import DeviceError, InvalidArgumentError, UnsupportedError


def _configure_cuda(setup: Setup) -> Configured:
    options: dict[str, int] = {}
    if setup.options.memory_limit is not None:
        options["gpu_mem_limit"] = setup.options.memory_limit
    if setup.options.cuda_graphs and setup.is_first:
        options["enable_cuda_graph"] = 1
    return Configured(options)


def _configure_tensorrt(setup: Setup) -> Configured:
    limit = setup.options.memory_limit
    built_with = tensorrt.settings(setup.inputs, setup.max_seq_length, setup.precision, limit)
    engine = tensorrt.TensorrtEngine.of(setup.sha256, setup.device, setup.onnxruntime, built_with)
    engine.require(allowed=setup.options.build)
    graphs = {"trt_cuda_graph_enable": 1} if setup.options.cuda_graphs else {}
    return Configured(engine.options() | graphs, engine)


def _configure_openvino(setup: Setup) -> Configured:
    # Its default, bf16 if the CPU has it, would be another precision than the bundle's.
    config = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "f32"}})
    return Configured({"load_config": config, "num_of_threads": setup.threads})


PROVIDERS = (
    Provider("cpu", CPU, 'pip install "stonnx[cpu]"', "onnxruntime", automatic=True),
    Provider(
        "cuda",
        CUDA,
        'pip install "stonnx[gpu]"',
        "onnxruntime-gpu",
        # An arena that grows by the requested size keeps to a memory limit. By powers of two, it takes up to twice as
        # much.
        # TensorFloat-32 keeps 10 bits of a product's factors: an fp32 bundle promises all 23.
        {"arena_extend_strategy": "kSameAsRequested", "use_tf32": 0},
        indexed=True,
        automatic=True,
        fused=True,
        nvidia=True,
        instead={"int8": "fp16"},
        load_libraries=lambda onnxruntime: nvidia.load_libraries(onnxruntime),
        configure=_configure_cuda,
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        'pip install "stonnx[gpu]"',
        "onnxruntime-gpu",
        then=(CUDA,),
        indexed=True,
        nvidia=True,
        instead={"int8": "fp16"},
        load_libraries=lambda onnxruntime: nvidia.load_libraries(onnxruntime) or nvidia.load_tensorrt(onnxruntime),
        configure=_configure_tensorrt,
    ),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "pip install onnxruntime-openvino",
        "onnxruntime-openvino",
        {"device_type": "CPU"},
        # Its kernels are its own. Older wheels do not say which operators they run.
        oldest=(1, 24),
        instead={"int8": "fp16"},
        configure=_configure_openvino,
    ),
)


def devices_for(device: str | None, available: Sequence[str]) -> list[Device]:
    """The meaning of a device name: one device or, for None, the devices to try, the best first and the CPU last.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` ..., ``tensorrt``, ``openvino``, or None.
        available: The providers of the installed onnxruntime.

    Raises:
        InvalidArgumentError: The name is not in the table.
        DeviceError: The installed onnxruntime does not have the provider.
    """
    if device is None:
        rows = [row for row in PROVIDERS if row.automatic and row.name in available]
        return [Device(row) for row in sorted(rows, key=lambda row: row.name == CPU)]
    name, colon, index = device.partition(":")
    provider = next((row for row in PROVIDERS if row.device == name), None)
    if provider is None or (colon and not (provider.indexed and index.isdecimal())):
        allowed = ", ".join(row.device + (f", {row.device}:0" if row.indexed else "") for row in PROVIDERS)
        raise InvalidArgumentError(f"device {device!r} is not known. Allowed: {allowed}.")
    if provider.name not in available:
        raise DeviceError(
            f"device {device!r} needs {provider.name}, which the installed onnxruntime does not have "
            f"(it has {', '.join(available)}). Install it with: {install_command(provider, installed_wheels())}"
        )
    return [Device(provider, int(index) if index else None)]


def install_command(provider: Provider, wheels: Sequence[str]) -> str:
    """The command that installs a provider. First it uninstalls the other wheels: they have the same directory."""
    others = [wheel for wheel in wheels if wheel != provider.wheel]
    return f"pip uninstall -y {' '.join(others)} && {provider.install}" if others else provider.install


def providers_of(device: Device) -> list[Provider]:
    """The device's provider, and those for the operators that it does not have. onnxruntime adds the CPU itself."""
    return [device.provider, *(row for name in device.provider.then for row in PROVIDERS if row.name == name)]


def check_version(device: Device, onnxruntime: str, wheels: Sequence[str]) -> None:
    """Refuse an onnxruntime that is too old for a device, as the wheel for another device may be.

    Raises:
        DeviceError: The message has the command that installs a newer one.
    """
    oldest, wheel = device.provider.oldest, device.provider.wheel
    if tuple(int(part) for part in re.findall(r"\d+", onnxruntime)[:2]) < oldest:
        newer = f"pip install -U {wheel}" if wheel in wheels else install_command(device.provider, wheels)
        raise DeviceError(
            f"device {str(device)!r} needs onnxruntime {'.'.join(map(str, oldest))} or newer, and this is "
            f"{onnxruntime}. Install it with: {newer}"
        )


def check_precision(device: Device, precision: str) -> None:
    """Refuse a bundle without kernels on the device: the CPU would run its products and copy each of them.

    Raises:
        UnsupportedError: The message names the recipe to export instead.
    """
    recipe = device.provider.instead.get(precision)
    if recipe is not None:
        raise UnsupportedError(
            f"device {str(device)!r} has no kernels for {precision} bundles, which are made for the CPU. Load it with "
            f"device='cpu', or export another: stonnx export MODEL --dtype {recipe}"
        )
