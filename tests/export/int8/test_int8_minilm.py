"""int8 from checkpoint to vectors: the real weights of all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from int8_figures import INVARIANT, cosines

import stonnx
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._device import opening
from stonnx_export import export
from stonnx_export.texts import sentences, verification_texts
from stonnx_export.verify.figures import neighbours_overlap, spearman


class TestMiniLM:
    """all-MiniLM-L6-v2 itself."""

    @pytest.fixture(scope="class")
    @staticmethod
    def bundle(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return export(minilm_checkpoint, tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2-int8", dtype="int8")

    @pytest.fixture(scope="class")
    @staticmethod
    def manifest(bundle: Path) -> Manifest:
        return read_manifest(bundle)

    @pytest.fixture(scope="class")
    @staticmethod
    def model(bundle: Path) -> stonnx.SentenceTransformer:
        return stonnx.SentenceTransformer(bundle)

    @pytest.fixture(scope="class")
    @staticmethod
    def safe_model(bundle: Path) -> Iterator[stonnx.SentenceTransformer]:
        """The form for CPUs that saturate."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(opening, "products_saturate", lambda: True)
            yield stonnx.SentenceTransformer(bundle)

    @pytest.fixture(scope="class")
    @staticmethod
    def pairs(stsb: list[tuple[str, str, float]], minilm: stonnx.SentenceTransformer) -> dict[str, np.ndarray]:
        """Sentences of STSb and their vectors in float32, the pairs by the numbers of their sentences, and scores."""
        texts = sorted({text for first, second, _ in stsb for text in (first, second)})
        numbers = {text: number for number, text in enumerate(texts)}
        return {
            "texts": np.array(texts, dtype=object),
            "expected": minilm.encode(texts),
            "pairs": np.array([(numbers[first], numbers[second]) for first, second, _ in stsb]),
            "scores": np.array([score for _, _, score in stsb]),
        }

    def test_the_size(self, bundle: Path, minilm_bundle: Path) -> None:
        sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (bundle, minilm_bundle)]
        assert sizes[0] <= 0.28 * sizes[1]
        graphs = [(path / "model.onnx").stat().st_size for path in (bundle, minilm_bundle)]
        assert graphs[0] <= 0.27 * graphs[1]

    def test_the_report(self, manifest: Manifest) -> None:
        fidelity = manifest.fidelity
        assert fidelity is not None
        assert fidelity.compared_with.startswith("sentence-transformers")
        # Of odd texts too; of plain sentences it is 0.999 (test_scored_pairs).
        assert fidelity.cosine_mean >= 0.9985
        assert fidelity.cosine_p1 >= fidelity.cosine_min >= 0.994
        assert fidelity.neighbours_overlap >= 0.97
        assert fidelity.invariance_cosine >= INVARIANT
        assert manifest.kept == ()

    @pytest.mark.needs("transformers", "5", "the graph that is counted here")
    def test_how_often_each_pass_fires(self, manifest: Manifest) -> None:
        assert dict(manifest.rewrites) == {
            "shapes": 2,
            "patches": 0,
            "fuse_attention": 0,
            "attention_lengths": 6,
            "attention_biases": 12,
            "quick_gelu": 0,
            "fuse_rms_norm": 0,
            "residual_biases": 12,
            "first_token": 0,
            "splade_chunks": 0,
            "quantize_products": 36,
            "fast_gelu": 0,
            "quantize_tables": 1,
            "flat_tokens": 40,
            "static_scales": 12,
            "outline": 12,
        }
        assert manifest.kernels is not None
        assert manifest.kernels.blocks == {"AttentionInt8": 6, "FeedForwardInt8": 6}
        assert not manifest.kernels.stock

    def test_sentences(self, model: stonnx.SentenceTransformer, minilm: stonnx.SentenceTransformer) -> None:
        expected, result = (one.encode(sentences()) for one in (minilm, model))
        found = cosines(expected, result)
        # 0.99919 if random tokens alone calibrate.
        assert found.mean() >= 0.99925
        assert found.min() >= 0.9965
        assert neighbours_overlap(expected, result) >= 0.97

    def test_scored_pairs(self, model: stonnx.SentenceTransformer, pairs: dict[str, np.ndarray]) -> None:
        result = model.encode(pairs["texts"].tolist())
        found = cosines(pairs["expected"], result)
        assert found.mean() >= 0.99925
        assert found.min() >= 0.9955
        assert neighbours_overlap(pairs["expected"], result) >= 0.96
        correlations = [
            100 * spearman(cosines(*(vectors[numbers] for numbers in pairs["pairs"].T)), pairs["scores"])
            for vectors in (pairs["expected"], result)
        ]
        assert correlations[0] > 80
        assert correlations[0] - correlations[1] <= 0.1

    def test_the_form_that_cannot_saturate(
        self, safe_model: stonnx.SentenceTransformer, minilm: stonnx.SentenceTransformer
    ) -> None:
        assert safe_model.info.form == "saturation-safe"
        found = cosines(*(one.encode(sentences()) for one in (minilm, safe_model)))
        assert found.mean() >= 0.996
        assert found.min() >= 0.98

    def test_the_form_that_cannot_saturate_on_scored_pairs(
        self, safe_model: stonnx.SentenceTransformer, pairs: dict[str, np.ndarray]
    ) -> None:
        found = cosines(pairs["expected"], safe_model.encode(pairs["texts"].tolist()))
        assert found.mean() >= 0.996
        assert found.min() >= 0.97

    @pytest.mark.parametrize("form", ["model", "safe_model"])
    def test_a_vector_does_not_depend_on_what_is_beside_it(self, form: str, request: pytest.FixtureRequest) -> None:
        model = request.getfixturevalue(form)
        texts = [*verification_texts(256, 2), *sentences()[::4]]
        alone = np.stack([model.encode(text) for text in texts])
        rng = np.random.default_rng(0)
        for batch_size in (1, 4, 32, 1024):
            order = rng.permutation(len(texts))
            together = model.encode([texts[index] for index in order], batch_size=batch_size)
            assert cosines(alone[order], together).min() >= INVARIANT

    def test_a_vector_does_not_depend_on_padding(self, bundle: Path, model: stonnx.SentenceTransformer) -> None:
        session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
        for text in ("rain", sentences()[0], "a " * 100):
            ids = np.array([model.tokenizer.encode(text).ids])
            expected = model.encode([text])
            for width in (0, 1, 13, 150):
                feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
                wider = {name: np.pad(array, ((0, 0), (0, width))) for name, array in feeds.items()}
                (result,) = session.run(["sentence_embedding"], wider)
                assert cosines(expected, result).min() >= INVARIANT
