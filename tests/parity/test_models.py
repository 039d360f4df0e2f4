"""Every model of the table, from checkpoint to result, against sentence-transformers: one test a property."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from zoo import ROWS, ModelRow, build_checkpoint, parameter

import stonnx
from stonnx._engine import Engine
from stonnx_export.checkpoint import read_checkpoint
from stonnx_export.original_torch import TorchOriginal
from stonnx_export.verify import verification_texts, verify

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
    from huggingface_hub.utils import WeakFileLock

    from stonnx_export import export

    checkpoint = build_checkpoint(row, shared_directory / "zoo")
    bundle = shared_directory / "zoo" / f"{row.slug}-fp32"
    with WeakFileLock(bundle.with_suffix(".lock")):
        if not bundle.exists():
            export(checkpoint, bundle, name=row.name)
    ours = getattr(stonnx, CLASSES[row.task])(bundle)
    original = getattr(sentence_transformers, CLASSES[row.task])(str(checkpoint), device="cpu")
    return Case(row, checkpoint, bundle, ours, original)


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


def test_ids_equal_the_original_around_the_limit(case: Case) -> None:
    original = TorchOriginal(read_checkpoint(case.checkpoint, case.row.task))
    engine = Engine(case.bundle)
    for name in engine.manifest.routes:
        route = engine.route(name)
        limit = min(route.tokenizer.max_seq_length or 100, 600)
        for count in (1, limit - 3, limit - 2, limit - 1, limit, limit + 1, limit + 50):
            text: Any = " ".join(["a"] * count)
            text = (text, "a b c") if case.row.task == "rerank" else text
            assert route.tokenizer.encode([text])[0].ids == original.token_ids(name, text), (name, count)


def test_prompts(case: Case) -> None:
    if case.row.task == "rerank":
        pytest.skip("rerankers of the table have no prompts")
    texts = ["why does bread rise", "Brot geht durch Hefe auf."]
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


def test_a_difference_is_refused(case: Case) -> None:
    """Verification is able to fail for each model: an original that differs by a thousandth is refused."""

    class Different(TorchOriginal):
        def outputs(self, route: str, texts: Any) -> np.ndarray:
            result = super().outputs(route, texts)
            noise = np.random.default_rng(0).normal(size=result.shape) * np.abs(result).max() * 1e-2
            return (result + noise).astype(np.float32)

    different = Different(read_checkpoint(case.checkpoint, case.row.task))
    tolerance = stonnx._bundle.read_manifest(case.bundle).fidelity.tolerance
    with pytest.raises(stonnx.FidelityError, match=r"lowest cosine|max_abs_difference"):
        verify(Engine(case.bundle), different, tolerance)
