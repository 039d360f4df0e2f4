"""Every model of the table, from checkpoint to result, against sentence-transformers: one test a property."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import sentence_transformers
from zoo import ROWS, ModelRow, parameter
from zoo.exported import CachedOriginal, export_again, exported_once
from zoo.table import SpladePooling

import stonnx
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import read_manifest
from stonnx._engine.engine import Engine
from stonnx_export.heads import pooling, sparse
from stonnx_export.passes import splade_chunks
from stonnx_export.texts import verification_texts

CLASSES = {"embedding": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}
# Sums of sparse models and rerankers are large themselves; dense vectors are compared to their largest value.
TOLERANCE = {"embedding": 1e-5, "sparse": 1e-4, "rerank": 1e-4}


@dataclass(frozen=True)
class Case:
    """A model of the table, here and there, and how both encode a list."""

    row: ModelRow
    checkpoint: Path
    bundle: Path
    ours: Any
    original: Any

    def texts(self) -> list[Any]:
        texts: list[Any] = verification_texts(64, 2)[:30]
        return list(zip(texts, texts[5:] + texts[:5], strict=True)) if self.row.task == "rerank" else texts

    def run(self, texts: Sequence[Any], **options: Any) -> np.ndarray:
        if self.row.task == "rerank":
            return np.asarray(self.ours.predict(texts, activation_fn="identity", **options))
        if self.row.task == "sparse":
            return np.asarray(self.ours.encode_document(texts, convert_to_sparse_tensor=False, **options))
        return np.asarray(self.ours.encode(texts, **options))

    def expect(self, texts: Sequence[Any], **options: Any) -> np.ndarray:
        # One at a time: padding changes the original's own results by up to 1e-6, and a model with left padding more.
        if self.row.task == "rerank":
            import torch

            run: Callable[..., Any] = self.original.predict
            options["activation_fn"] = torch.nn.Identity()
        elif self.row.task == "sparse":
            run = self.original.encode_document
            options["convert_to_sparse_tensor"] = False
        else:
            run = self.original.encode
        return np.concatenate([np.asarray(run([text], **options)) for text in texts])


@pytest.fixture(scope="module")
def case(row: ModelRow, shared_directory: Path) -> Case:
    checkpoint, bundle = exported_once(row, shared_directory / "zoo")
    ours = getattr(stonnx, CLASSES[row.task])(bundle)
    original = getattr(sentence_transformers, CLASSES[row.task])(str(checkpoint), device="cpu")
    return Case(row, checkpoint, bundle, ours, original)


@pytest.fixture(scope="module")
def exported(row: ModelRow, shared_directory: Path, case: Case) -> CachedOriginal:
    """The original as the exporter has it."""
    return CachedOriginal(case.checkpoint, row, shared_directory / "zoo")


@pytest.fixture
def original(exported: CachedOriginal, monkeypatch: pytest.MonkeyPatch) -> CachedOriginal:
    """The same, for a test that changes it."""
    for name in ("change", "disturb"):
        monkeypatch.setattr(exported, name, getattr(exported, name))
    return exported


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("row", [parameter(row) for row in ROWS], scope="module")


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def test_results_equal_the_original(case: Case) -> None:
    texts = case.texts()
    expected, result = case.expect(texts), case.run(texts)
    assert expected.shape == result.shape
    assert _difference(expected, result) <= TOLERANCE[case.row.task]
    if case.row.task != "rerank":
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(result, axis=1)
        cosines = (expected.astype(np.float64) * result).sum(1)[norms > 0] / norms[norms > 0]
        assert cosines.min() >= 0.99999


def test_results_do_not_depend_on_batches(case: Case) -> None:
    texts = case.texts()
    together = case.run(texts)
    for batch_size in (1, 3):
        assert _difference(together, case.run(texts, batch_size=batch_size)) <= TOLERANCE[case.row.task] / 10
    backwards = case.run(texts[::-1])[::-1]
    assert _difference(together, backwards) <= TOLERANCE[case.row.task] / 10


def test_ids_equal_the_original_around_the_limit(case: Case, exported: CachedOriginal) -> None:
    engine = Engine(open_bundle(case.bundle))
    for name in engine.manifest.routes:
        route = engine.route(name)
        limit = min(route.tokenizer.max_seq_length or 100, 600)
        for count in (1, limit - 3, limit - 2, limit - 1, limit, limit + 1, limit + 50):
            text: Any = " ".join(["a"] * count)
            text = (text, "a b c") if case.row.task == "rerank" else text
            assert [*route.tokenizer.encode([text])[0].ids] == exported.token_ids(name, text), (name, count)


def test_results_around_the_limit(case: Case) -> None:
    """One token below it, exactly, and one above; the original's attention over 8,192 tokens takes minutes."""
    limit = case.ours.max_seq_length
    if limit is None or limit > 512:
        pytest.skip("has no limit, or a long one")
    pair = case.row.task == "rerank"
    # A chat template has tokens of its own around the texts.
    special = (
        case.ours.count_tokens([("a", "a")])[0] - 2 if pair else case.ours.tokenizer.num_special_tokens_to_add(False)
    )
    words = [" ".join(["a"] * (limit - special + more)) for more in (-1, 0, 1)]
    # The second text of a pair is a token of its own.
    texts = [(word[2:], "a") for word in words] if case.row.task == "rerank" else words
    assert case.ours.count_tokens(texts).tolist() == [limit - 1, limit, limit + 1]
    assert _difference(case.expect(texts), case.run(texts)) <= TOLERANCE[case.row.task]


def test_prompts(case: Case) -> None:
    texts: list[Any] = ["why does bread rise", "Brot geht durch Hefe auf."]
    if case.row.task == "rerank":
        pairs = [(text, "yeast") for text in texts]
        for options in ({}, {"prompt": "find: "}, *({"prompt_name": name} for name in case.row.prompts)):
            expected = np.concatenate([np.atleast_1d(case.original.predict([pair], **options)) for pair in pairs])
            assert _difference(expected.reshape(2, -1), case.ours.predict(pairs, **options).reshape(2, -1)) <= 1e-4
        assert case.ours.prompts == case.original.prompts
        assert case.ours.default_prompt_name == case.original.default_prompt_name
        return
    options = {"convert_to_sparse_tensor": False} if case.row.task == "sparse" else {}
    for method in ("encode", "encode_query", "encode_document"):
        expected = np.concatenate([np.asarray(getattr(case.original, method)([text], **options)) for text in texts])
        assert _difference(expected, getattr(case.ours, method)(texts, **options)) <= TOLERANCE[case.row.task], method
    expected = np.concatenate([np.asarray(case.original.encode([t], prompt="find: ", **options)) for t in texts])
    assert _difference(expected, case.ours.encode(texts, prompt="find: ", **options)) <= TOLERANCE[case.row.task]
    for name, prompt in case.row.prompts.items():
        assert case.ours.prompts[name] == prompt


def test_truncated_vectors(case: Case) -> None:
    if case.row.task != "embedding":
        pytest.skip("truncate_dim belongs to dense vectors")
    texts = ["why does bread rise", "a"]
    for options in ({"truncate_dim": 8}, {"truncate_dim": 8, "normalize_embeddings": True}):
        result = case.ours.encode(texts, **options)
        assert result.shape == (2, 8)
        assert _difference(case.expect(texts, **options), result) <= TOLERANCE["embedding"]


def test_facts_equal_the_original(case: Case) -> None:
    if case.row.task == "rerank":
        assert case.ours.num_labels == case.original.num_labels
        scores = np.concatenate([np.atleast_1d(case.original.predict([text])) for text in case.texts()[:5]])
        assert np.abs(scores - case.ours.predict(case.texts()[:5])).max() <= 1e-4
        return
    assert case.ours.get_embedding_dimension() == case.original.get_embedding_dimension()
    assert case.ours.similarity_fn_name == case.original.similarity_fn_name
    assert case.ours.default_prompt_name == case.original.default_prompt_name
    assert {k: v for k, v in case.ours.prompts.items() if v} == {k: v for k, v in case.original.prompts.items() if v}


def test_a_difference_is_refused(case: Case, original: CachedOriginal, tmp_path: Path) -> None:
    """The export fails where its check does, for each model: an original that differs by a hundredth is refused."""

    def disturb(values: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(size=values.shape) * np.abs(values).max() * 1e-2
        return (values + noise).astype(np.float32)

    original.disturb = disturb
    with pytest.raises(stonnx.FidelityError, match=r"lowest cosine|max_abs_difference"):
        export_again(original, case.checkpoint, tmp_path / "bundle", case.row)
    assert not list(tmp_path.iterdir())


def test_splade_in_pieces(
    case: Case, original: CachedOriginal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocabularies of the table are smaller than those that are cut into pieces."""
    if not any(isinstance(module, SpladePooling) for module in case.row.chain):
        pytest.skip("no logits over a vocabulary")
    monkeypatch.setattr(splade_chunks, "CHUNK", 100)
    bundle = export_again(original, case.checkpoint, tmp_path / "bundle", case.row)
    assert read_manifest(bundle).rewrites["splade_chunks"] == 1
    assert read_manifest(case.bundle).rewrites["splade_chunks"] == 0


def ignore_mask(graph: ir.Model) -> None:
    """The network reads padding as if it were text. What follows it still has the mask."""
    mask = next(value for value in graph.graph.inputs if value.name == "attention_mask")
    uses = [*mask.uses()]
    shape = ir.node("Shape", [mask])
    one = ir.tensor(np.ones(1, dtype=np.int64))
    ones = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": one})
    graph.graph.insert_before(graph.graph[0], [shape, ones])
    for node, index in uses:
        node.replace_input_with(index, ones.outputs[0])


def move_positions(graph: ir.Model) -> None:
    """Positions are off by one in the table of a network, or farther apart where it computes them."""
    moved = 0
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if re.search("position_embeddings|rel_embeddings|relative_attention_bias", name) and array.ndim == 2:
            array = np.roll(array, 1, axis=0)
        elif "inv_freq" in name:
            array = array * np.float32(1.3)
        else:
            continue
        value.const_value = ir.tensor(array, name=name)
        moved += 1
    assert moved


@pytest.mark.parametrize("wrong", ["mask", "positions", "pooling"])
def test_a_wrong_graph_is_refused(
    case: Case, original: CachedOriginal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    model_type = case.row.backbone.model_type
    if model_type == "model2vec":
        pytest.skip("a table has neither of these")
    if wrong == "mask" and model_type in ("qwen3", "qwen2", "llama", "mistral", "gemma"):
        pytest.skip("a decoder's token never sees the padding behind it")
    if wrong == "pooling":
        if case.row.task == "rerank":
            pytest.skip("the pooling of a reranker is in its network")
        first, last = pooling.POOLINGS["cls"], pooling.POOLINGS["lasttoken"]
        for mode in ("mean", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", "max"):
            monkeypatch.setitem(pooling.POOLINGS, mode, first)
        monkeypatch.setitem(pooling.POOLINGS, "cls", last)
        monkeypatch.setattr(sparse, "maximum", pooling.mean)  # SPLADE
    else:
        original.change = {"mask": ignore_mask, "positions": move_positions}[wrong]
    with pytest.raises(stonnx.FidelityError, match=r"lowest cosine|max_abs_difference"):
        export_again(original, case.checkpoint, tmp_path / "bundle", case.row)
    assert not list(tmp_path.iterdir())
