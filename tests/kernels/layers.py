"""One layer of a transformer of any kind, written by hand as the exporter leaves it, and its runs with and without
kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from small_graphs import graph_of, linear, random, shaped

from stonnx._device import kernels as native
from stonnx_export.calibration.measure import options
from stonnx_export.graph.builder import GraphBuilder
from stonnx_export.graph.read import QUERY_ROWS
from stonnx_export.int8 import products as products_module
from stonnx_export.int8.scales import Quantization
from stonnx_export.kernels import bfloat16, outline
from stonnx_export.passes import fuse_rms_norm

VOCABULARY = 64
TOKENS = ("batch", "sequence")


@dataclass(frozen=True)
class Layer:
    """What a layer is like. ``norm`` is where the norms stand: behind the residual connections, or in front. What they
    leave is as large as ``loud``. Tokens that no token attends to fill up a ``filled`` one's texts."""

    hidden: int = 64
    heads: int = 2
    head_size: int = 32
    kv_heads: int = 2
    inner: int = 128
    norm: str = "post"
    rms: bool = False
    pieces: bool = False
    biases: bool = True
    activation: str = "gelu"
    gated: bool = False
    fused: bool = False
    rotary: bool = False
    head_norms: bool = False
    causal: bool = False
    window: int | None = None
    position_bias: bool = False
    token_limit: bool = False
    loud: float = 1
    filled: bool = False
    seed: int = 0

    def model(self) -> ir.Model:
        """Embeddings and the layer: the output is [B, S, hidden], or of the first tokens."""
        inputs = [(name, ir.DataType.INT64, TOKENS) for name in ("input_ids", "attention_mask")]
        model, op, (ids, mask) = graph_of(*inputs)
        rng = np.random.default_rng(self.seed)
        if self.filled:
            op.optional_input(QUERY_ROWS, np.array(-1, dtype=np.int64), ())
        lengths = op.ReduceSum(mask, op.vector([1]), keepdims=0)
        table = op.constant(random(rng, VOCABULARY, self.hidden), "embeddings")
        x = self._norm(op, shaped(op.Gather(table, ids), *TOKENS, self.hidden), rng)
        limit = None
        if self.token_limit:
            # It is for the last layer: another one is in front.
            x = self._network(op, x, rng)
            limit = op.optional_input("token_limit", np.array([1 << 40]), (1,))
        x = self._attention(op, x, ids, mask, lengths, limit, rng)
        x = self._network(op, x, rng)
        if self.norm == "pre":
            x = self._norm(op, x, rng)
        op.name_output(x, "output", list(x.shape or ()))
        model.graph.outputs.append(x)
        return model

    def _norm(self, op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
        assert x.shape is not None
        width = int(x.shape[-1])  # type: ignore[arg-type]
        weights = [op.constant(np.float32(self.loud) * (1 + random(rng, width, scale=0.3)), "gamma")]
        if not self.rms:
            weights.append(op.constant(random(rng, width, scale=0.3), "beta"))
        if self.pieces:
            return _rms_norm(op, x, weights[0])
        kind = op.RMSNormalization if self.rms else op.LayerNormalization
        return shaped(kind(x, *weights, axis=-1, epsilon=1e-6), *x.shape)

    def _around(self, op: GraphBuilder, x: ir.Value, rng: np.random.Generator, inside: Any, first: Any) -> ir.Value:
        """A residual connection, with its norm in front or behind."""
        read = self._norm(op, x, rng) if self.norm == "pre" else x
        result = inside(read)
        total = shaped(op.Add(result, first(x)), *(result.shape or ()))
        return self._norm(op, total, rng) if self.norm == "post" else total

    def _attention(
        self,
        op: GraphBuilder,
        x: ir.Value,
        ids: ir.Value,
        mask: ir.Value,
        lengths: ir.Value,
        limit: ir.Value | None,
        rng: np.random.Generator,
    ) -> ir.Value:
        def first(value: ir.Value) -> ir.Value:
            if limit is None:
                return value
            cut = op.Slice(value, op.vector([0]), limit, op.vector([1]))
            return shaped(cut, "batch", "tokens", int((value.shape or ())[2]))  # type: ignore[arg-type]

        rest = self._rest(op, ids, mask, lengths)
        causal = self.causal and not self.filled
        attributes: dict[str, Any] = {"scale": 1 / float(np.sqrt(self.head_size)), "is_causal": int(causal)}

        def inside(read: ir.Value) -> ir.Value:
            widths = [heads * self.head_size for heads in (self.heads, self.kv_heads, self.kv_heads)]
            parts = [linear(op, read, width, rng, bias=self.biases) for width in widths]
            if not (self.rotary or self.head_norms):
                heads = {"q_num_heads": self.heads, "kv_num_heads": self.kv_heads}
                query, key, value = first(parts[0]), *parts[1:]
                mixed = op.Attention(query, key, value, *rest, **heads, **attributes)
                shape = (query.shape or ())[:2]
                mixed = shaped(mixed, *shape, widths[0])
            else:
                tables = self._tables(op, ids)
                query, key = (self._heads(op, part, ids, rng, tables) for part in parts[:2])
                value = self._heads(op, parts[2], ids, rng, None)
                mixed = op.Attention(query, key, value, *rest, **attributes)
                mixed = shaped(mixed, "batch", self.heads, "sequence", self.head_size)
                mixed = op.Transpose(mixed, perm=[0, 2, 1, 3])
                shape = op.Concat(*_counts(op, ids), op.vector([widths[0]]), axis=0)
                mixed = shaped(op.Reshape(mixed, shape), *TOKENS, widths[0])
            return linear(op, mixed, self.hidden, rng, bias=self.biases)

        return self._around(op, x, rng, inside, first)

    def _rest(self, op: GraphBuilder, ids: ir.Value, mask: ir.Value, lengths: ir.Value) -> tuple[ir.Value | None, ...]:
        """The inputs of attention behind queries, keys and values."""
        width = op.Squeeze(op.Shape(ids, start=1, end=2))
        positions = op.Range(op.scalar(0), width, op.scalar(1))
        distance = op.Abs(op.Sub(op.Unsqueeze(positions, op.vector([0])), op.Unsqueeze(positions, op.vector([1]))))
        if self.window is not None:
            near = op.LessOrEqual(distance, op.scalar(self.window))
            real = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([1, 2]))
            allowed = op.And(op.Unsqueeze(near, op.vector([0, 1])), real)
            return (shaped(allowed, "batch", 1, "sequence", "sequence", dtype=ir.DataType.BOOL),)
        if self.causal and self.filled:
            before = op.LessOrEqual(op.Unsqueeze(positions, op.vector([0])), op.Unsqueeze(positions, op.vector([1])))
            real = op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), op.vector([1, 2]))
            allowed = op.And(op.Unsqueeze(before, op.vector([0, 1])), real)
            return (shaped(allowed, "batch", 1, "sequence", "sequence", dtype=ir.DataType.BOOL),)
        if self.causal:
            return ()
        bias = None
        if self.position_bias:
            table = op.constant(random(np.random.default_rng(self.seed), 1024, self.heads), "position_bias")
            bias = op.Unsqueeze(op.Transpose(op.Gather(table, distance), perm=[2, 0, 1]), op.vector([0]))
            bias = shaped(bias, 1, self.heads, "sequence", "sequence")
        return bias, None, None, lengths

    def _heads(
        self,
        op: GraphBuilder,
        part: ir.Value,
        ids: ir.Value,
        rng: np.random.Generator,
        tables: Sequence[ir.Value] | None,
    ) -> ir.Value:
        """[B, heads, S, D], with tables normalized and rotated, and repeated for groups of queries."""
        size, heads = self.head_size, int((part.shape or ())[2]) // self.head_size  # type: ignore[arg-type]
        shape = op.Concat(*_counts(op, ids), op.vector([heads, size]), axis=0)
        value = shaped(op.Reshape(part, shape), *TOKENS, heads, size)
        if self.head_norms and tables is not None:
            gamma = op.constant(1 + random(rng, size, scale=0.3), "gamma")
            if self.pieces:
                value = _rms_norm(op, value, gamma)
            else:
                value = shaped(op.RMSNormalization(value, gamma, axis=-1, epsilon=1e-6), *TOKENS, heads, size)
        value = shaped(op.Transpose(value, perm=[0, 2, 1, 3]), "batch", heads, "sequence", size)
        if self.rotary and tables is not None:
            value = self._rotated(op, value, tables)
        if heads != self.heads:
            groups = self.heads // heads
            value = shaped(op.Unsqueeze(value, op.vector([2])), "batch", heads, 1, "sequence", size)
            start, end = _counts(op, ids)
            target = op.Concat(start, op.vector([heads, groups]), end, op.vector([size]), axis=0)
            value = shaped(op.Expand(value, target), "batch", heads, groups, "sequence", size)
            target = op.Concat(start, op.vector([self.heads]), end, op.vector([size]), axis=0)
            value = shaped(op.Reshape(value, target), "batch", self.heads, "sequence", size)
        return value

    def _tables(self, op: GraphBuilder, ids: ir.Value) -> list[ir.Value]:
        """cos and sin of the rotation, [1, 1, S, D]."""
        size = self.head_size
        frequencies = op.constant((100.0 ** -(np.arange(size // 2) / (size // 2))).astype(np.float32), "frequencies")
        width = op.Squeeze(op.Shape(ids, start=1, end=2))
        positions = op.Cast(op.Range(op.scalar(0), width, op.scalar(1)), to=ir.DataType.FLOAT)
        angles = op.Mul(op.Unsqueeze(positions, op.vector([0, 2])), frequencies)
        both = shaped(op.Concat(angles, angles, axis=-1), 1, "sequence", size)
        tables = [shaped(function(both), 1, "sequence", size) for function in (op.Cos, op.Sin)]
        return [shaped(op.Unsqueeze(table, op.vector([1])), 1, 1, "sequence", size) for table in tables]

    def _rotated(self, op: GraphBuilder, value: ir.Value, tables: Sequence[ir.Value]) -> ir.Value:
        size = self.head_size
        shape = value.shape or ()
        last, one = op.vector([3]), op.vector([1])
        first_half = op.Slice(value, op.vector([0]), op.vector([size // 2]), last, one)
        second_half = op.Slice(value, op.vector([size // 2]), op.vector([1 << 40]), last, one)
        turned = shaped(op.Concat(op.Neg(second_half), first_half, axis=-1), *shape)
        straight = shaped(op.Mul(value, tables[0]), *shape)
        return shaped(op.Add(straight, shaped(op.Mul(turned, tables[1]), *shape)), *shape)

    def _network(self, op: GraphBuilder, x: ir.Value, rng: np.random.Generator) -> ir.Value:
        def inside(read: ir.Value) -> ir.Value:
            shape = (read.shape or ())[:2]
            if self.fused:
                both = linear(op, read, 2 * self.inner, rng, bias=self.biases)
                halves = op.multiple("Split", both, outputs=2, axis=2, num_outputs=2)
                up, gate = (shaped(half, *shape, self.inner) for half in halves)
            else:
                up = linear(op, read, self.inner, rng, bias=self.biases)
                gate = linear(op, read, self.inner, rng, bias=self.biases) if self.gated else None  # type: ignore[assignment]
            active = shaped(self._activated(op, up), *shape, self.inner)
            if self.fused or self.gated:
                active = shaped(op.Mul(active, gate), *shape, self.inner)
            return linear(op, active, self.hidden, rng, bias=self.biases)

        return self._around(op, x, rng, inside, lambda value: value)

    def _activated(self, op: GraphBuilder, x: ir.Value) -> ir.Value:
        if self.activation == "silu":
            return op.Mul(x, shaped(op.Sigmoid(x), *(x.shape or ())))
        if self.activation == "relu":
            return op.Relu(x)
        return op.Gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


def _rms_norm(op: GraphBuilder, x: ir.Value, gamma: ir.Value) -> ir.Value:
    """The norm in pieces, as the tracer has it."""
    square = shaped(op.ReduceMean(op.Pow(x, op.constant(np.array(2, np.float32), "two")), op.vector([-1]), keepdims=1))
    root = op.Sqrt(op.Add(square, op.constant(np.array(1e-6, np.float32), "epsilon")))
    return shaped(op.Mul(gamma, shaped(op.Mul(x, op.Reciprocal(root)), *(x.shape or ()))), *(x.shape or ()))


def _counts(op: GraphBuilder, ids: ir.Value) -> list[ir.Value]:
    """The numbers of texts and of tokens, [1] each, as the tracer has them."""
    return [op.Shape(ids, start=index, end=index + 1) for index in (0, 1)]


@dataclass(frozen=True)
class Runs:
    """A layer in float32 by stock operators, in its form for kernels by stock operators, and by kernels."""

    plain: np.ndarray
    body: np.ndarray
    kernel: np.ndarray


class Compared:
    """A layer, ready to run in three ways.

    Args:
        layer: What it is like.
        dtype: ``int8``, ``bf16``, or ``fp32`` for float32 weights that run in bfloat16.
        threads: Threads of a run with kernels.
        poison: What one number of the embedding of token 1 is, if it is none.
    """

    def __init__(
        self,
        layer: Layer,
        dtype: str,
        library: native.Library,
        *,
        threads: int = 1,
        poison: float | None = None,
    ) -> None:
        plain = layer.model()
        model = plain.clone()
        if dtype != "fp32":  # as the recipes do
            fuse_rms_norm.run(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products_module, "_SMALLEST", 1)
            patch.setattr(bfloat16, "_SMALLEST", 1)
            if dtype == "int8":
                rng = np.random.default_rng(layer.seed)
                sequences = [rng.integers(0, VOCABULARY, 24).tolist() for _ in range(4)]
                model, _, _ = Quantization(model, sequences).apply()
            elif dtype == "bf16":
                bfloat16.run(model)
        model.graph.sort()
        self.found = outline.run(model, {"int8": {"Int8"}, "bf16": {"BFloat16"}, "fp32": {"Float"}}[dtype])
        self.model = model
        if poison is not None:
            table = next(value for name, value in model.graph.initializers.items() if "embeddings" in name)
            assert table.const_value is not None
            array = table.const_value.numpy().copy()
            array[1, 0] = poison
            table.const_value = ir.tensor(array, name=table.name)
        self._plain = session_of(plain)
        self._body = session_of(model)
        self._kernel = session_of(model, library, threads=threads, float_as_bfloat16=dtype == "fp32")

    def run(self, feeds: Mapping[str, np.ndarray]) -> Runs:
        """All three, [B, S, hidden] each, with zeros for padding, of which nobody reads the values."""
        found = [self._zeroed(session, feeds) for session in (self._plain, self._body, self._kernel)]
        return Runs(*found)

    def kernel(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The kernels alone."""
        return self._zeroed(self._kernel, feeds)

    @staticmethod
    def _zeroed(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        known = {value.name for value in [*session.get_inputs(), *session.get_overridable_initializers()]}
        (result,) = session.run(None, {name: array for name, array in feeds.items() if name in known})
        mask = feeds["attention_mask"][:, : result.shape[1], None] > 0
        mask |= (np.arange(result.shape[1]) < feeds.get(QUERY_ROWS, -1))[:, None]
        zeroed: np.ndarray = np.where(mask, result, 0)
        return zeroed


def session_of(
    model: ir.Model | str,
    library: native.Library | None = None,
    *,
    threads: int = 1,
    float_as_bfloat16: bool = False,
) -> onnxruntime.InferenceSession:
    """A session as the runtime makes it, with kernels or without."""
    settings = options()
    settings.intra_op_num_threads = threads
    source = model if isinstance(model, str) else ir.to_proto(model).SerializeToString()

    def load() -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])

    if library is None:
        return load()
    with library.session(settings, threads, float_as_bfloat16=float_as_bfloat16):
        return load()


def feeds_of(lengths: Sequence[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Random ids of texts of these lengths, padded on the right to the longest."""
    width = max(lengths, default=0)
    mask = (np.arange(width) < np.array(lengths, dtype=np.int64)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, mask.shape)
    return {"input_ids": np.where(mask > 0, ids, 0), "attention_mask": mask}
