"""Bundles of toy networks, written by hand. toy_networks.py has the same networks for sentence-transformers to run.

A toy network looks up a row of a table for each token. It is small, exact, and needs no exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import models, normalizers, pre_tokenizers, processors

from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import (
    SCHEMA_VERSION,
    Expansion,
    Manifest,
    ModuleSpec,
    Route,
    Source,
    TensorSpec,
    TokenizerSpec,
    write_manifest,
)

MAX_SEQ_LENGTH, MAX_POSITIONS = 16, 24
_WORDS = ("the", "is", "of", "and", "what", "city", "bread", "rises", "river", "flows", "sun", "shines")
_OTHERS = ("question", "document", ":", "?", ".")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *_OTHERS, *_LETTERS, *(f"##{c}" for c in _LETTERS)]


def toy_tokenizer() -> tokenizers.Tokenizer:
    """An uncased WordPiece tokenizer: known words, and letters for the others."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return tokenizer


def toy_table(width: int, seed: int, *, active: float = 0.3) -> np.ndarray:
    """A random row for each token, a share of it positive: [vocabulary, width] float32, no two values equal."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.linspace(0.1, 3.0, len(VOCABULARY) * width)).reshape(len(VOCABULARY), width)
    return np.where(rng.random(values.shape) < active, values, -values).astype(np.float32)


def dense_graph(table: np.ndarray, *, rounds: int = 0) -> onnx.ModelProto:
    """The mean of table[token]: ``sentence_embedding``; and table[token]: ``token_embeddings``.

    ``rounds`` multiplications by the identity make it as slow as a large network.
    """
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows0"], axis=0)]
    nodes += [helper.make_node("MatMul", [f"rows{i}", "identity"], [f"rows{i + 1}"]) for i in range(rounds)]
    nodes += [
        helper.make_node("Identity", [f"rows{rounds}"], ["token_embeddings"]),
        helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["weights_3d"]),
        helper.make_node("Mul", ["token_embeddings", "weights_3d"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["sentence_embedding"]),
    ]
    width = table.shape[1]
    constants = {"table": table, "last": [2], "middle": [1]}
    if rounds:
        constants["identity"] = np.eye(width, dtype=np.float32)
    model = _model(nodes, ["input_ids", "attention_mask"], {"sentence_embedding": width}, constants)
    tokens = helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, ["batch", "sequence", width])
    model.graph.output.append(tokens)
    return model


def dense_bundle(directory: Path, *, width: int = 8, rounds: int = 0, max_seq_length: int = MAX_SEQ_LENGTH) -> Path:
    """A bundle for :class:`stonnx.SentenceTransformer` with vectors of this width."""
    graphs = {"default": dense_graph(toy_table(width, 5), rounds=rounds)}
    fields = {"task": "embedding", "embedding_dimension": width}
    return write_bundle(directory, graphs, max_seq_length=max_seq_length, **fields)


def bundles_of_classes(directory: Path) -> dict[str, Path]:
    """A bundle for each of the classes that give one result for a text or a pair, by the name of the class."""
    sparse = {"default": sparse_graph(toy_table(8, 3))}
    pairs = {"default": pair_graph(toy_table(1, 3), np.ones(1, np.float32), "Sigmoid")}
    reranker = {"task": "rerank", "num_labels": 1, "labels": ("relevant",), "activation": "sigmoid"}
    return {
        "SentenceTransformer": dense_bundle(directory / "dense"),
        "SparseEncoder": write_bundle(directory / "sparse", sparse, task="sparse", embedding_dimension=8),
        "CrossEncoder": write_bundle(directory / "pairs", pairs, **reranker),
    }


def sparse_graph(table: np.ndarray) -> onnx.ModelProto:
    """relu(max over tokens of table[token]): the output ``sparse_embedding``."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["kept", "last"], ["kept_rows"]),
        helper.make_node("Where", ["kept_rows", "rows", "lowest"], ["masked"]),
        helper.make_node("ReduceMax", ["masked", "middle"], ["largest"], keepdims=0),
        helper.make_node("Relu", ["largest"], ["sparse_embedding"]),
    ]
    constants = {"table": table, "last": [2], "middle": [1], "lowest": np.float32(-1e9)}
    return _model(nodes, ["input_ids", "attention_mask"], {"sparse_embedding": table.shape[1]}, constants)


def wide_sparse_graph(width: int, seed: int) -> onnx.ModelProto:
    """A sparse graph as the exporter leaves it, which has no rows of this width for single tokens: one in a hundred
    values of a text is not zero."""
    rng = np.random.default_rng(seed)
    projection = np.where(rng.random((8, width)) < 0.01, rng.random((8, width)), 0).astype(np.float32)
    model = sparse_graph(toy_table(8, seed))
    (relu,) = [node for node in model.graph.node if node.op_type == "Relu"]
    relu.output[0] = "positive"
    model.graph.node.append(helper.make_node("MatMul", ["positive", "projection"], ["sparse_embedding"]))
    model.graph.initializer.append(numpy_helper.from_array(projection, "projection"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = width
    onnx.checker.check_model(model)
    return model


def pair_graph(table: np.ndarray, second: np.ndarray, activation: str) -> onnx.ModelProto:
    """The mean of table[token], plus ``second`` for tokens of the second text: ``logits``, and from them ``scores``."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], axis=0),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type_rows"], axis=0),
        helper.make_node("Add", ["rows", "type_rows"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["weights_3d"]),
        helper.make_node("Mul", ["tokens", "weights_3d"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["logits"]),
        helper.make_node(activation, ["logits"], ["scores"]),
    ]
    constants = {"table": table, "types": np.stack([np.zeros_like(second), second]), "last": [2], "middle": [1]}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return _model(nodes, inputs, {"logits": len(second), "scores": len(second)}, constants)


def rows_graph(table: np.ndarray) -> onnx.ModelProto:
    """table[token]: ``token_embeddings``; and in ``row_mask`` the tokens of a text and of a query's expansion."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_embeddings"], axis=0),
        helper.make_node("Shape", ["input_ids"], ["width"], start=1, end=2),
        helper.make_node("Squeeze", ["width"], ["stop"]),
        helper.make_node("Range", ["zero", "stop", "one"], ["positions"]),
        helper.make_node("Less", ["positions", "query_rows"], ["filled"]),
        helper.make_node("Cast", ["attention_mask"], ["own"], to=TensorProto.BOOL),
        helper.make_node("Or", ["own", "filled"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["row_mask"], to=TensorProto.INT64),
    ]
    constants = {"table": table, "zero": np.int64(0), "one": np.int64(1), "query_rows": np.int64(-1)}
    model = _model(nodes, ["input_ids", "attention_mask"], {}, constants)
    model.graph.input.append(helper.make_tensor_value_info("query_rows", TensorProto.INT64, []))
    sizes = ["batch", "sequence"]
    for name, kind, shape in (
        ("token_embeddings", TensorProto.FLOAT, [*sizes, table.shape[1]]),
        ("row_mask", TensorProto.INT64, sizes),
    ):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    return model


def rows_bundle(directory: Path, *, width: int = 8, length: int = 12) -> Path:
    """A bundle for :class:`stonnx.MultiVectorEncoder`: question marks fill up queries to ``length`` tokens."""
    table = toy_table(width, 7)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    filling = Expansion(VOCABULARY.index("?"), length, attend=False)
    tokenizer = {"query_length": length, "document_length": 10, "expansion": filling}
    fields = {"task": "multivector", "embedding_dimension": width, "prompts": {"query": "question: "}}
    return write_bundle(directory, {"default": rows_graph(table)}, tokenizer=tokenizer, **fields)


def _model(
    nodes: list[onnx.NodeProto], inputs: list[str], outputs: Mapping[str, int], constants: Mapping[str, Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_bundle(
    directory: Path,
    graphs: Mapping[str, onnx.ModelProto],
    *,
    max_seq_length: int = MAX_SEQ_LENGTH,
    tokenizer: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A bundle with a graph for each route. ``fields`` are those of the manifest, ``task`` among them.

    ``tokenizer`` has further fields of the manifest's entry for the tokenizer.
    """
    directory.mkdir(parents=True)
    toy_tokenizer().save(str(directory / "tokenizer.json"))
    positions = max(max_seq_length, MAX_POSITIONS)
    limits = (max_seq_length, positions, 0, 0)
    spec = TokenizerSpec("tokenizer.json", *limits, "right", True, (0, 1, 2, 3), **(tokenizer or {}))
    routes = {}
    for name, graph in graphs.items():
        onnx.save(graph, directory / f"{name}.onnx")
        inputs, outputs = (tuple(map(_spec, values)) for values in (graph.graph.input, graph.graph.output))
        routes[name] = Route(f"{name}.onnx", 18, inputs, outputs, spec)
    settings: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": Source("toy", None, None),
        "architecture": "toy",
        "modules": (ModuleSpec("Toy"),),
        "routes": routes,
        "precision": "fp32",
        "recipe": "fp32",
        "requires_cpu_features": (),
        "embedding_dimension": None,
        "normalized": False,
        "similarity_fn_name": None,
        "prompts": {},
        "default_prompt_name": None,
        "truncate_dim": None,
        "num_labels": None,
        "labels": (),
        "activation": None,
        "files": hash_files(directory, sorted(file.name for file in directory.iterdir())),
        "exporter": {},
        "fidelity": None,
        "default_route": next(iter(routes)),
    }
    write_manifest(directory, Manifest(**(settings | fields)))
    return directory


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return TensorSpec(value.name, "float32" if tensor.elem_type == TensorProto.FLOAT else "int64", shape)
