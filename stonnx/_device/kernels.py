"""The library of native kernels, ``stonnx-kernels``: whether it is installed and fits, and its instructions.

onnxruntime loads the library, as operators of the domain ``stonnx.kernels``. This file asks it for its properties
through ctypes. Without a library that fits, onnxruntime runs the stock operators that a bundle has for each block.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import Kernels
from stonnx._device.wheels import import_onnxruntime
from stonnx._errors import DeviceError, UnsupportedError

# The version of kernels/OPERATORS.md up to which this runtime knows blocks.
OPERATORS = 2
# The first one whose attention computes rows that a text's tokens do not attend to.
_ATTENDED = 2
# The oldest onnxruntime with which they are right: 1.26.0 and 1.27.0 give their attention other values.
_ATTENDED_RUNTIME = (1, 28)
_PACKAGE = "stonnx_kernels"
# Reasons why stock operators run open with this.
WITHOUT = "without native kernels: "
INSTALL = 'pip install "stonnx[kernels]"'
UPGRADE = 'pip install -U "stonnx[kernels]"'
# The library registers each operator under this many names: NAME, NAME_1 and so on.
_MOST_BODIES = 24
# The reason why older bundles of late interaction run without kernels.
_SKIPS_PADDING = (
    "the blocks of this bundle are from a version of stonnx whose kernels skip the tokens that fill up its queries"
)
_FLOAT_BLOCKS = ("AttentionFloat", "FeedForwardFloat")


@dataclass(frozen=True)
class Library:
    """A usable library, and its properties.

    ``variant`` names the instructions that it uses here, of the ``variants`` that this CPU can run, best first;
    ``bfloat16`` says whether they multiply bfloat16. It runs blocks up to the version ``operators`` of their contract.
    """

    path: Path
    version: str
    variant: str
    variants: tuple[str, ...]
    bfloat16: bool
    operators: int = OPERATORS

    @contextlib.contextmanager
    def session(
        self, settings: Any, threads: int, *, float_as_bfloat16: bool, blocks: Mapping[str, int] | None = None
    ) -> Iterator[None]:
        """Have a session that is made in this context use the kernels, with so many threads for a run.

        Args:
            settings: onnxruntime's ``SessionOptions``.
            threads: Threads of a run.
            float_as_bfloat16: Whether to run float32 blocks too, in bfloat16.
            blocks: The blocks of the graph, counted by operator. None: any. onnxruntime takes a third of a millisecond
                for each name of an operator, and there are a hundred.

        Raises:
            Exception: onnxruntime, or the library, refuses the other.
        """
        functions = _functions(self.path)
        # They hold for sessions that are made on this thread.
        functions.stonnx_kernels_threads(threads)
        functions.stonnx_kernels_float_as_bf16(int(float_as_bfloat16))
        functions.stonnx_kernels_names(",".join(_names(blocks or {})).encode())
        try:
            settings.register_custom_ops_library(str(self.path))
            yield
        finally:
            functions.stonnx_kernels_names(None)
            functions.stonnx_kernels_float_as_bf16(0)
            functions.stonnx_kernels_threads(1)

    def seconds_of_a_layer(self, hidden: int, inner: int, heads: int, tokens: int, *, bfloat16: bool) -> float | None:
        """The seconds of a layer with random weights and one thread; None if this variant cannot run it."""
        seconds: float = _functions(self.path).stonnx_kernels_bench(hidden, inner, heads, tokens, int(bfloat16))
        return seconds if seconds >= 0 else None


def _names(blocks: Mapping[str, int]) -> list[str]:
    """Names that blocks may have: each body of an operator has one, and there are at most as many as blocks."""
    return [
        f"{operator}_{body}" if body else operator
        for operator, count in blocks.items()
        for body in range(min(count, _MOST_BODIES))
    ]


@dataclass(frozen=True)
class Unusable:
    """The reason why no library can be used. ``unexpected`` is False if it is not installed or was turned off."""

    reason: str
    unexpected: bool


def find(operators: int = 1) -> Library | Unusable:
    """The library, if blocks of this version of the contract can run on it."""
    found = _load()
    if isinstance(found, Unusable):
        return found
    if operators > found.operators:
        return Unusable(
            f"the bundle has blocks of version {operators}, and stonnx-kernels {found.version} runs those up to "
            f"version {found.operators}. Install a newer one: {UPGRADE}",
            unexpected=True,
        )
    if operators >= _ATTENDED:
        version = import_onnxruntime().__version__
        if tuple(int(part) for part in version.split(".")[:2]) < _ATTENDED_RUNTIME:
            return Unusable(
                f"the blocks of this bundle need onnxruntime {'.'.join(map(str, _ATTENDED_RUNTIME))} or newer, and "
                f"this is {version}. Install a newer one: pip install -U onnxruntime",
                unexpected=True,
            )
    return found


@dataclass(frozen=True)
class Choice:
    """The library that a session uses, if any, and the reason if a useful one is missing, or cannot run all blocks."""

    library: Library | None = None
    float_as_bfloat16: bool = False
    fallback: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of weights for which the library has operators, as the names of operators end."""
        bfloat16 = self.library is not None and self.library.bfloat16
        return ("Int8", *(["BFloat16"] if bfloat16 else []), *(["Float"] if self.float_as_bfloat16 else []))


def choose(bundle: Kernels | None, precision: str, *, bfloat16: bool, reads_padding: bool = False) -> Choice:
    """Choose the kernels for the blocks of a bundle.

    Args:
        bundle: The manifest's entry about them.
        precision: The precision of the bundle.
        bfloat16: Whether float32 blocks should run in bfloat16.
        reads_padding: Whether tokens fill up queries, and the queries' own tokens do not attend to them.

    Raises:
        UnsupportedError: They should, and the bundle does not have any.
        DeviceError: They should, and the kernels of this machine cannot do it.
    """
    blocks = bundle.blocks if bundle is not None else {}
    if bfloat16:
        return _choose_bfloat16(bundle, precision, reads_padding)
    if bundle is None or not blocks or precision == "float32":
        return Choice()
    if reads_padding and bundle.operators < _ATTENDED:
        return Choice(fallback=f"{WITHOUT}{_SKIPS_PADDING}. Export the model again with: stonnx export MODEL")
    found = find(bundle.operators)
    slow = " The blocks run in float32, as fast as those of a float32 bundle." if precision == "bfloat16" else ""
    if isinstance(found, Unusable):
        wanted = found.unexpected or precision == "bfloat16"
        return Choice(fallback=f"{WITHOUT}{found.reason}.{slow}" if wanted else "")
    if precision == "bfloat16" and not found.bfloat16:
        return Choice(fallback=f"{WITHOUT}{_no_bfloat16(found)}.{slow}")
    some = sum(count for name, count in blocks.items() if name.endswith("BFloat16"))
    if some and not found.bfloat16:
        return Choice(
            found,
            fallback=f"some blocks {WITHOUT}{some} of {sum(blocks.values())} are in bfloat16 for accuracy, and "
            f"{_no_bfloat16(found)}. They run in float32.",
        )
    return Choice(found)


def _choose_bfloat16(bundle: Kernels | None, precision: str, reads_padding: bool) -> Choice:
    reason = ""
    if precision != "float32":
        reason = f"its precision is {precision}"
    elif bundle is None:
        reason = "it was exported before there were kernels"
    elif not any(bundle.blocks.get(name) for name in _FLOAT_BLOCKS):
        reason = "it has no float32 blocks for them"
    elif reads_padding and bundle.operators < _ATTENDED:
        reason = _SKIPS_PADDING
    if bundle is None or reason:
        raise UnsupportedError(
            f"device_options bfloat16=True runs the blocks of a float32 bundle with native kernels, and {reason}. "
            "Leave it out, or export a bundle for it: stonnx export MODEL --dtype bf16"
        )
    found = find(bundle.operators)
    if isinstance(found, Library) and found.bfloat16:
        return Choice(found, float_as_bfloat16=True)
    reason = found.reason if isinstance(found, Unusable) else _no_bfloat16(found)
    raise DeviceError(
        f"device_options bfloat16=True needs native kernels that multiply bfloat16, and {reason}. Without it the "
        "bundle runs in float32; on CPUs without bfloat16, int8 is the fast form: stonnx export MODEL --dtype int8"
    )


def _no_bfloat16(library: Library) -> str:
    needed = "AVX512-BF16 and AVX512-VBMI, or AMX, or bf16 of AArch64"
    return f"those that run here ({library.variant}) cannot: it takes {needed}"


@functools.cache
def _load() -> Library | Unusable:
    try:
        package = importlib.import_module(_PACKAGE)
        path, version = Path(package.LIBRARY), str(package.__version__)
    except ModuleNotFoundError as error:
        if error.name == _PACKAGE:
            return Unusable(f"stonnx-kernels is not installed: {INSTALL}", unexpected=False)
        return Unusable(f"stonnx-kernels cannot be imported: {error}", unexpected=True)
    except Exception as error:  # a half-installed package
        return Unusable(f"stonnx-kernels cannot be imported: {type(error).__name__}: {error}", unexpected=True)
    try:
        functions = _functions(path)
        own, operators = functions.stonnx_kernels_version().decode(), functions.stonnx_kernels_operators()
        variant, reason = functions.stonnx_kernels_variant().decode(), functions.stonnx_kernels_reason().decode()
        variants = tuple(filter(None, functions.stonnx_kernels_variants().decode().split(",")))
        bfloat16 = bool(functions.stonnx_kernels_bf16())
    except (OSError, AttributeError) as error:  # the library is missing, made for another system, or another library
        return Unusable(f"stonnx-kernels {version} cannot be loaded: {error}. Install it again: {INSTALL}", True)
    if own != version:
        return Unusable(
            f"{path} is version {own}, and the package says {version}. Install it again: {UPGRADE}", unexpected=True
        )
    if not variant:
        return Unusable(reason, unexpected=os.environ.get("STONNX_KERNELS") != "0")
    return Library(path, version, variant, variants, bfloat16, operators)


@functools.cache
def _functions(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    for name in ("version", "variant", "variants", "reason"):
        getattr(library, f"stonnx_kernels_{name}").restype = ctypes.c_char_p
    for name in ("threads", "float_as_bf16"):
        function = getattr(library, f"stonnx_kernels_{name}")
        function.restype, function.argtypes = None, [ctypes.c_int]
    library.stonnx_kernels_names.restype, library.stonnx_kernels_names.argtypes = None, [ctypes.c_char_p]
    library.stonnx_kernels_bench.restype = ctypes.c_double
    library.stonnx_kernels_bench.argtypes = [ctypes.c_int] * 5
    return library
