"""SPLADE's maximum over the tokens of a product with the vocabulary: the body of its function is the oracle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from small_graphs import graph_of, random, shaped

from stonnx._device import kernels as native
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.int8 import products as products_module
from stonnx_export.int8 import tables as tables_module
from stonnx_export.int8.scales import Quantization
from stonnx_export.kernels import bfloat16, outline
from stonnx_export.kernels.products import WeightKind
from stonnx_export.passes import splade_chunks

from .layers import TOKENS, feeds_of, session_of

KINDS: Mapping[str, WeightKind] = {"int8": "Int8", "fp32": "Float", "bf16": "BFloat16"}
# Words, and the width of a token: of whole panels and steps, and of neither.
SIZES = [(256, 64), (250, 54), (301, 130)]
# Rows of the feeds of layers are below this.
FEWEST_WORDS = 64


def head(words: int, width: int) -> ir.Model:
    """Embeddings, a norm, and the product with the same table."""
    model, op, (ids, mask) = graph_of(*((name, ir.DataType.INT64, TOKENS) for name in ("input_ids", "attention_mask")))
    rng = np.random.default_rng(words)
    table = op.constant(random(rng, words, width), "embeddings")
    x = shaped(op.Gather(table, ids), *TOKENS, width)
    gamma, beta = (op.constant(start + random(rng, width, scale=0.3)) for start in (1, 0))
    x = shaped(op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=1e-6), *TOKENS, width)
    logits = shaped(op.MatMul(x, op.Transpose(table, perm=[1, 0])), *TOKENS, words)
    logits = shaped(op.Add(logits, op.constant(random(rng, words))), *TOKENS, words)
    kept = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([2]))
    lowest = op.constant(np.array(-np.inf, dtype=np.float32))
    highest = shaped(op.ReduceMax(op.Where(kept, logits, lowest), op.vector([1]), keepdims=0), "batch", words)
    result = op.Relu(highest)
    op.name_output(result, "output", ["batch", words])
    model.graph.outputs.append(result)
    return model


class Vocabulary:
    """The head in float32, as the exporter leaves it, outlined, and with kernels."""

    def __init__(self, words: int, width: int, dtype: str, library: native.Library, *, threads: int = 1) -> None:
        plain = head(words, width)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products_module, "_SMALLEST", 1)
            patch.setattr(tables_module, "_SMALLEST", 1)
            patch.setattr(bfloat16, "_SMALLEST", 1)
            patch.setattr(splade_chunks, "CHUNK", 100)
            model = plain.clone()
            splade_chunks.run(model)
            if dtype == "int8":
                sequences = [np.random.default_rng(0).integers(0, FEWEST_WORDS, 24).tolist() for _ in range(4)]
                model, _, _ = Quantization(model, sequences).apply()
            if dtype == "bf16":
                assert bfloat16.run(model).fired == 1
        model.graph.sort()
        stock = model.clone()
        self.found = outline.run(model, {KINDS[dtype]})
        self.model = model
        as_bfloat16 = dtype == "fp32"
        self.plain, self.stock, self.body = session_of(plain), session_of(stock), session_of(model)
        self.kernel = session_of(model, library, threads=threads, float_as_bfloat16=as_bfloat16)


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    (result,) = session.run(None, dict(feeds))
    return np.asarray(result)


@pytest.fixture(scope="module", params=KINDS)
def dtype(request: pytest.FixtureRequest, library: native.Library) -> str:
    if request.param != "int8" and not library.bfloat16:
        pytest.skip(f"{library.variant} does not multiply bfloat16")
    return str(request.param)


@pytest.mark.parametrize(("words", "width"), SIZES)
def test_against_the_body(words: int, width: int, dtype: str, library: native.Library) -> None:
    form = Vocabulary(words, width, dtype, library)
    assert dict(form.found.blocks) == {f"Vocabulary{KINDS[dtype]}": 1}
    (node,) = (node for node in form.model.graph if node.op_type.startswith("Vocabulary"))
    table = node.inputs[2]
    assert table is not None
    assert table.const_value is not None
    assert table.const_value.shape == (words, width)
    for lengths in ((1,), (7, 2), (33, 1, 17, 64), (300, 5, 40)):
        feeds = feeds_of(lengths)
        plain, stock, body, kernel = (run(each, feeds) for each in (form.plain, form.stock, form.body, form.kernel))
        np.testing.assert_array_equal(body, stock)
        assert not np.array_equal(kernel, body)
        size = np.abs(plain).max()
        of_body, of_kernel = np.abs(body - plain).max() / size, np.abs(kernel - plain).max() / size
        assert of_kernel <= (1.5 * of_body + 0.005 if dtype == "int8" else 0.01)


def test_alone_padded_in_batches_and_with_threads(dtype: str, library: native.Library) -> None:
    forms = [Vocabulary(301, 130, dtype, library, threads=threads) for threads in (1, 3)]
    lengths = (19, 3, 300, 1, 33)
    feeds = feeds_of(lengths)
    together = run(forms[0].kernel, feeds)
    for number, length in enumerate(lengths):
        alone = {key: array[number : number + 1, :length] for key, array in feeds.items()}
        padded = {key: np.pad(array, ((0, 0), (0, 13))) for key, array in alone.items()}
        for form in forms:
            np.testing.assert_array_equal(run(form.kernel, feeds), together)
            np.testing.assert_array_equal(run(form.kernel, alone)[0], together[number])
            np.testing.assert_array_equal(run(form.kernel, padded)[0], together[number])


def test_no_texts_and_a_text_without_tokens(dtype: str, library: native.Library) -> None:
    form = Vocabulary(256, 64, dtype, library)
    empty = np.zeros((0, 4), dtype=np.int64)
    assert run(form.kernel, {"input_ids": empty, "attention_mask": empty}).shape == (0, 256)
    feeds = feeds_of((0, 6))
    found = run(form.kernel, feeds)
    assert not found[0].any()
    np.testing.assert_array_equal(found[1:], run(form.kernel, {key: array[1:] for key, array in feeds.items()}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(value: float, dtype: str, library: native.Library) -> None:
    """They spoil the text that has them and no other."""
    form = Vocabulary(256, 64, dtype, library)
    feeds = feeds_of((7, 5))
    feeds["input_ids"][0, 2], feeds["input_ids"][1] = 1, 2
    expected = run(form.kernel, feeds)[1]
    poisoned = form.model.clone()
    graph = poisoned.graph
    norm = next(node for node in graph if node.op_type == "LayerNormalization")
    ids = next(each for each in graph.inputs if each.name == "input_ids")
    op = GraphBuilder(graph, before=norm)
    is_one = op.Unsqueeze(op.Equal(ids, op.scalar(1)), op.vector([2]))
    norm.replace_input_with(0, op.Where(is_one, op.constant(np.array(value, np.float32)), norm.inputs[0]))
    graph.sort()
    found = run(session_of(poisoned, library, float_as_bfloat16=dtype == "fp32"), feeds)
    assert not np.isfinite(found[0]).any()
    np.testing.assert_array_equal(found[1], expected)
