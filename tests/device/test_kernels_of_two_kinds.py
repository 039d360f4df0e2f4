"""int8 bundles of which some blocks are in bfloat16, which not all kernels multiply."""

from __future__ import annotations

from pathlib import Path

import pytest

from stonnx._bundle.manifest import Kernels
from stonnx._device import kernels as native

MIXED = Kernels(1, {"AttentionInt8": 3, "FeedForwardInt8": 4, "AttentionBFloat16": 1})


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_runs_without(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.Library(Path("lib.so"), "0.1.0", "avx2", ("avx2",), bfloat16)
    monkeypatch.setattr(native, "find", lambda operators=1: library)
    choice = native.choose(MIXED, "int8", bfloat16=False)
    assert choice.library is library
    assert choice.kinds == (("Int8", "BFloat16") if bfloat16 else ("Int8",))
    if bfloat16:
        assert not choice.fallback
    else:
        begin = (
            "some blocks without native kernels: 1 of 8 are in bfloat16 for accuracy, and those that run here (avx2) "
        )
        assert choice.fallback.startswith(begin)
        assert choice.fallback.endswith("They run in float32.")
