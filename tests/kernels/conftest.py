"""The library of kernels, as it is installed, in each variant that this CPU can run."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator

import pytest

from stonnx._device import kernels as native


def installed() -> native.Library | None:
    found = native.find()
    return found if isinstance(found, native.Library) else None


VARIANTS = library.variants if (library := installed()) is not None else ("none",)


def select(library: native.Library, variant: str) -> native.Library:
    """The library with another variant for the sessions that are made from now on."""
    functions = ctypes.CDLL(str(library.path))
    functions.stonnx_kernels_reason.restype = ctypes.c_char_p
    assert functions.stonnx_kernels_select(variant.encode()) == 0, functions.stonnx_kernels_reason()
    return dataclasses.replace(library, variant=variant, bfloat16=bool(functions.stonnx_kernels_bf16()))


@pytest.fixture(scope="module", params=VARIANTS)
def library(request: pytest.FixtureRequest) -> Iterator[native.Library]:
    """The library, once with each of its variants."""
    found = native.find()
    if isinstance(found, native.Unusable):
        pytest.skip(f"there are no native kernels: {found.reason}")
    yield select(found, request.param)
    select(found, found.variant)
