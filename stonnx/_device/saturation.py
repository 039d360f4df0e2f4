"""Whether this CPU's 8-bit matrix products saturate, measured with a product of known result.

On x86 without VNNI, onnxruntime's kernel multiplies unsigned by signed bytes with ``vpmaddubsw``, which adds two
products in 16 bits: 2 * 255 * 127 becomes 32,767. AVX512-VNNI, AVX-VNNI and AMX add in 32 bits. So do the kernels for
AArch64, where the same graph is fast and needs no other form: UDOT (Armv8.2) and UMMLA (i8mm) flip the sign bit of the
weights and add unsigned products in 32 bits; the kernel for older cores flips that of the activations instead, and two
products of signed bytes fit into 16 bits (onnxruntime/core/mlas/lib: platform.cpp, qgemm_kernel_*.cpp; seen so on an
emulated Cortex-A57 and on one with all extensions).

A measurement is better than the CPU's flags: it is right on every system, in an emulator, and when kernels change.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

# products[rows, 32] = MatMulIntegerToFloat(rows[rows, 64] uint8, int8[64, 32] of 127, scales[rows, 1], 1): the operator
# of int8 bundles. tests/device/test_int8_product.py builds the same graph.
GRAPH = base64.b64decode(
    "CAo6lwIKNgoFc2hhcGUSB3dlaWdodHMiD0NvbnN0YW50T2ZTaGFwZSoTCgV2YWx1ZSoHCAEQA0oBf6ABBApNCgRyb3dzCgd3ZWlnaHRzCgZzY2"
    "FsZXMKBXNjYWxlEghwcm9kdWN0cyIUTWF0TXVsSW50ZWdlclRvRmxvYXQ6DWNvbS5taWNyb3NvZnQSBGludDgqHQgCEAdCBXNoYXBlShBAAAAA"
    "AAAAACAAAAAAAAAAKg8QAUIFc2NhbGVKBAAAgD9aGgoEcm93cxISChAIAhIMCgYSBHJvd3MKAghAWhwKBnNjYWxlcxISChAIARIMCgYSBHJvd3"
    "MKAggBYh4KCHByb2R1Y3RzEhIKEAgBEgwKBhIEcm93cwoCCCBCBAoAEBVCEQoNY29tLm1pY3Jvc29mdBAB"
)
_WIDTH = 64
_WEIGHT = 127


def saturates(onnxruntime: Any, activation: int = 255) -> bool:
    """Whether products of bytes up to ``activation`` come out too small.

    Activations of at most 127 (7 bits) cannot saturate, whatever the CPU: that is the saturation-safe form.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(GRAPH, settings, providers=["CPUExecutionProvider"])
    for rows in (1, 8):  # a single row has a kernel of its own
        feeds = {
            "rows": np.full((rows, _WIDTH), activation, dtype=np.uint8),
            "scales": np.ones((rows, 1), dtype=np.float32),
        }
        (products,) = session.run(None, feeds)
        if not np.array_equal(products, np.full_like(products, activation * _WEIGHT * _WIDTH)):
            return True
    return False
