"""``MultiVectorEncoder`` beside the original, in every layout of checkpoints and with every kind of query."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

import torch
from sentence_transformers import MultiVectorEncoder as Original
from sentence_transformers.multi_vector_encoder import modules as original_modules
from zoo.late_checkpoints import build_late_checkpoint
from zoo.late_interaction import ROWS, LateRow, row

import stonnx
from stonnx import MultiVectorEncoder
from stonnx._bundle.manifest import read_manifest
from stonnx.multi_vector_encoder.modules import HierarchicalTokenPooling, LambdaTokenPooling
from stonnx_export import export

TEXTS = [
    "What is the capital of Portugal?",
    "",
    "hello, world! (a test).",
    "The quick answer is no; the long answer takes an afternoon, a pen, and all of the paper in the house. " * 12,
    "Die Fähre verlässt den Hafen im Morgengrauen.",
    "hello, world! (a test).",
]
CLOSE = 2e-5
METHODS = ("encode_query", "encode_document", "encode")

Models = Callable[[str], tuple[MultiVectorEncoder, Original]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The model of a row, exported at fp32, and the original."""
    directory = tmp_path_factory.mktemp("late")
    loaded: dict[str, tuple[MultiVectorEncoder, Original]] = {}

    def load(name: str) -> tuple[MultiVectorEncoder, Original]:
        if name not in loaded:
            late = row(name)
            checkpoint = build_late_checkpoint(late, directory)
            bundle = export(checkpoint, directory / f"{late.slug}-fp32", task="multivector", name=name)
            loaded[name] = MultiVectorEncoder(bundle, threads=1), Original(str(checkpoint), device="cpu")
        return loaded[name]

    return load


@pytest.fixture
def native(models: Models) -> tuple[MultiVectorEncoder, Original]:
    return models("zoo/late-interaction-native")


def assert_close(ours: list[np.ndarray], theirs: list[Any]) -> None:
    assert [each.shape for each in ours] == [tuple(each.shape) for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, np.asarray(other), atol=CLOSE)


@pytest.mark.parametrize("late", [pytest.param(late, id=late.name) for late in ROWS])
class TestRows:
    def test_vectors_are_those_of_the_original(self, late: LateRow, models: Models) -> None:
        ours, theirs = models(late.name)
        for method in METHODS:
            assert_close(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))

    def test_scores_are_those_of_the_original(self, late: LateRow, models: Models) -> None:
        ours, theirs = models(late.name)
        found = ours.similarity(ours.encode_query(TEXTS), ours.encode_document(TEXTS))
        expected = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3)

    def test_a_text_does_not_depend_on_its_batch(self, late: LateRow, models: Models) -> None:
        ours, _ = models(late.name)
        for method in METHODS:
            together = getattr(ours, method)(TEXTS)
            for text, rows in zip(TEXTS, together, strict=True):
                np.testing.assert_allclose(getattr(ours, method)(text), rows, atol=1e-6)

    def test_attributes_are_those_of_the_original(self, late: LateRow, models: Models) -> None:
        ours, theirs = models(late.name)
        names = ("similarity_fn_name", "default_prompt_name", "prompts", "max_seq_length", "modalities")
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name), name
        assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
        assert ours.default_huggingface_organization is theirs.default_huggingface_organization is None
        assert ours.SUPPORTED_SIMILARITY_FN_NAMES == theirs.SUPPORTED_SIMILARITY_FN_NAMES

    def test_the_report_has_rows_and_ranks(self, late: LateRow, models: Models) -> None:
        ours, _ = models(late.name)
        manifest = read_manifest(Path(ours.info.directory))
        fidelity = manifest.fidelity
        assert fidelity is not None
        assert fidelity.cosine_min > 0.99999
        assert fidelity.neighbours_overlap is not None
        assert fidelity.neighbours_overlap > 0.99
        assert fidelity.rank_correlation is not None
        assert fidelity.rank_correlation > 0.9999
        assert manifest.unused_weights == ()


def test_signatures_are_those_of_the_original() -> None:
    for name in (*METHODS, "similarity", "similarity_pairwise", "get_embedding_dimension"):
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (MultiVectorEncoder, Original))
        assert list(ours) == list(theirs), name
        for parameter in theirs.values():
            assert ours[parameter.name].default == parameter.default, (name, parameter.name)
            assert ours[parameter.name].kind == parameter.kind, (name, parameter.name)
    ours, theirs = (inspect.signature(kind).parameters for kind in (MultiVectorEncoder, Original))
    assert set(theirs) <= set(ours)


class TestCalls:
    def test_kinds_of_input(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        assert ours.encode_query([]) == theirs.encode_query([]) == []
        single = ours.encode_document("a text")
        assert single.ndim == 2
        for inputs in (("a text", "another"), np.array(["a text", "another"]), [{"text": "a text"}, "another"]):
            found = ours.encode_document(inputs)
            assert [type(each) for each in found] == [np.ndarray, np.ndarray]
            np.testing.assert_array_equal(found[0], single)

    def test_prompts(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        for options in ({"prompt": "title: "}, {"prompt_name": "document"}, {"prompt": ""}):
            assert_close(ours.encode_query(TEXTS[:2], **options), theirs.encode_query(TEXTS[:2], **options))
        with pytest.raises(stonnx.InvalidArgumentError, match="nothing"):
            ours.encode_query("a", prompt_name="nothing")

    def test_task_of_encode(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        for task in ("query", "document", None):
            assert_close(ours.encode(TEXTS, task=task), theirs.encode(TEXTS, task=task))
        with pytest.raises(ValueError, match="task must be one of 'query', 'document'"):
            ours.encode("a", task="passage")

    def test_normalized(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native
        (rows,) = ours.encode_document(["a text"], normalize_embeddings=True)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)

    def test_features(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        for method in METHODS:
            found = getattr(ours, method)(TEXTS, output_value=None)
            expected = getattr(theirs, method)(TEXTS, output_value=None)
            for mine, other in zip(found, expected, strict=True):
                assert mine.keys() == other.keys() - {"token_type_ids"} | (mine.keys() & {"token_type_ids"})
                length = len(mine["input_ids"])
                assert not other["attention_mask"][length:].any()
                for name in ("input_ids", "attention_mask", "query_expansion_positions"):
                    if name in other:
                        np.testing.assert_array_equal(mine[name], other[name][:length], err_msg=name)
                np.testing.assert_allclose(mine["token_embeddings"], other["token_embeddings"][:length], atol=CLOSE)

    def test_preprocess(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        for task in ("query", "document", None):
            mine, other = (model.preprocess(TEXTS, task=task) for model in native)
            for name in other.keys() - {"modality", "token_type_ids"}:
                np.testing.assert_array_equal(mine[name], other[name], err_msg=f"{task} {name}")

    def test_limits_follow_max_seq_length_as_in_the_original(self, models: Models) -> None:
        ours, theirs = models("zoo/late-interaction-pooled")
        before = ours.max_seq_length
        for model in (ours, theirs):
            model.max_seq_length = 12
        try:
            for method in METHODS:
                assert_close(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))
        finally:
            for model in (ours, theirs):
                model.max_seq_length = before

    def test_too_long(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native
        with pytest.raises(stonnx.TextTooLongError) as caught:
            ours.encode_document(TEXTS, too_long="error")
        assert (caught.value.index, caught.value.limit) == (3, 120)
        ours.encode_query("short", too_long="error")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"convert_to_tensor": True}, "nothing to stack"),
            ({"batch_size": 0}, "batch_size must be a positive integer"),
            ({"output_value": "sentence_embedding"}, "output_value 'sentence_embedding' is not known"),
            ({"truncate_dim": 8}, r"does not use: \['truncate_dim'\]"),
            ({"token_pooling": "mean"}, "token_pooling must be one of stonnx.multi_vector_encoder.modules"),
        ],
    )
    def test_wrong_arguments(
        self, options: dict[str, Any], said: str, native: tuple[MultiVectorEncoder, Original]
    ) -> None:
        ours, theirs = native
        with pytest.raises(ValueError, match=said):
            ours.encode_query(["a"], **options)
        with pytest.raises((ValueError, AttributeError)):
            theirs.encode_query(["a"], **options)

    def test_similarity_names(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        for name in ("meanmaxsim", stonnx.SimilarityFunction.MAXSIM, None):
            ours.similarity_fn_name = name
            theirs.similarity_fn_name = getattr(name, "value", name)
            assert ours.similarity_fn_name == theirs.similarity_fn_name
            queries, documents = ours.encode_query(TEXTS[:3]), ours.encode_document(TEXTS[:3])
            np.testing.assert_allclose(
                ours.similarity_pairwise(queries, documents),
                theirs.similarity_pairwise(queries, documents).numpy(),
                rtol=1e-5,
            )
        for name in ("cosine", "xtr"):
            with pytest.raises(ValueError, match="similarity_fn_name must be one of 'maxsim', 'meanmaxsim'"):
                ours.similarity_fn_name = name
        scores = ours.similarity(queries, documents, length_normalize=True)
        np.testing.assert_allclose(scores, theirs.similarity(queries, documents, length_normalize=True), rtol=1e-5)

    def test_pool_and_pickle(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native
        expected = ours.encode_query(TEXTS)
        pool = ours.start_multi_process_pool(["cpu", "cpu"])
        try:
            found = ours.encode_query(TEXTS, pool=pool, chunk_size=2)
        finally:
            ours.stop_multi_process_pool(pool)
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)

    def test_stream(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native
        found = [rows for window in ours.encode_stream(iter(TEXTS), task="document") for rows in window]
        for mine, other in zip(found, ours.encode_document(TEXTS), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-6)

    def test_batcher(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native

        async def found() -> list[list[np.ndarray]]:
            with stonnx.Batcher(ours) as batcher:
                return [await batcher.encode_query(TEXTS), await batcher.encode_document(TEXTS)]

        for some, method in zip(asyncio.run(found()), METHODS[:2], strict=True):
            for mine, other in zip(some, getattr(ours, method)(TEXTS), strict=True):
                np.testing.assert_allclose(mine, other, atol=1e-6)


class TestTokenPooling:
    @pytest.mark.parametrize("factor", [1, 1.5, 2, 7])
    @pytest.mark.parametrize("protected", [0, 1, 3])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_clusters_are_those_of_the_original(self, factor: float, protected: int, normalize: bool) -> None:
        rng = np.random.default_rng(3)
        texts = [rng.standard_normal((rows, 16)).astype(np.float32) for rows in (1, 2, 9, 40)]
        texts = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in texts]
        options = {"num_protected_tokens": protected, "normalize_embeddings": normalize}
        ours = HierarchicalTokenPooling(factor, **options).pool(texts)
        theirs = original_modules.HierarchicalTokenPooling(factor, **options).pool([*map(torch.from_numpy, texts)])
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other.numpy(), atol=1e-6)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_padded_arrays(self, side: str, masked: bool) -> None:
        rng = np.random.default_rng(4)
        array = rng.standard_normal((3, 8, 4)).astype(np.float32)
        mask = np.ones((3, 8), dtype=bool)
        for number, rows in enumerate((8, 5, 0)):
            mask[number, rows:] = False
        if side == "left":
            mask = mask[:, ::-1].copy()
        array[~mask] = 0
        options = {"attention_mask": mask} if masked else {}
        found = HierarchicalTokenPooling(2).pool(array, padding_side=side, **options)
        expected = original_modules.HierarchicalTokenPooling(2).pool(
            torch.from_numpy(array),
            padding_side=side,
            **({"attention_mask": torch.from_numpy(mask)} if masked else {}),
        )
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
        tensors = HierarchicalTokenPooling(2).pool(torch.from_numpy(array), padding_side=side)
        assert isinstance(tensors, torch.Tensor)

    def test_per_call(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, theirs = native
        mine, other = HierarchicalTokenPooling(2), original_modules.HierarchicalTokenPooling(2)
        assert_close(
            ours.encode_document(TEXTS, token_pooling=mine), theirs.encode_document(TEXTS, token_pooling=other)
        )
        assert_close(ours.encode_query(TEXTS, token_pooling=mine), theirs.encode_query(TEXTS, token_pooling=other))
        (features,) = ours.encode_document(["a longer text"], token_pooling=mine, output_value=None)
        assert features["token_embeddings"].shape[0] == len(features["attention_mask"])

    def test_one_of_the_original(self, models: Models, caplog: pytest.LogCaptureFixture) -> None:
        """It takes tensors and gives tensors."""
        ours, theirs = models("zoo/late-interaction-pooled")
        pooling = original_modules.HierarchicalTokenPooling(3)
        with caplog.at_level("WARNING", "stonnx"):
            assert_close(ours.encode_query(TEXTS, token_pooling=pooling), theirs.encode_query(TEXTS))
            assert not caplog.records
            found = ours.encode_document(TEXTS, token_pooling=pooling)
        assert_close(found, theirs.encode_document(TEXTS, token_pooling=pooling))
        assert "compounding with the model's own pooling" in caplog.text
        pool = ours.start_multi_process_pool(["cpu", "cpu"])
        try:
            pooled = ours.encode_document(TEXTS, token_pooling=pooling, pool=pool)
        finally:
            ours.stop_multi_process_pool(pool)
        assert [rows.shape for rows in pooled] == [rows.shape for rows in found]

    def test_of_a_function(self, native: tuple[MultiVectorEncoder, Original]) -> None:
        ours, _ = native
        halves = LambdaTokenPooling(lambda rows: rows[::2], tasks=["query", "document"])
        for method in METHODS:
            whole, half = (getattr(ours, method)("a text", token_pooling=pooling) for pooling in (None, halves))
            np.testing.assert_array_equal(half, whole[::2])

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: HierarchicalTokenPooling(0.5), "pool_factor must be >= 1"),
            (lambda: HierarchicalTokenPooling(2, num_protected_tokens=-1), "num_protected_tokens must be >= 0"),
            (lambda: HierarchicalTokenPooling(2).pool(np.ones((2, 3))), "must be 3D"),
            (lambda: HierarchicalTokenPooling(2).pool([np.ones(3)]), "list entries"),
            (lambda: HierarchicalTokenPooling(2).pool("a"), "embeddings must be"),
            (lambda: HierarchicalTokenPooling(2).pool(np.ones((1, 2, 3)), padding_side="up"), "padding_side"),
        ],
    )
    def test_bad_arguments(self, make: Callable[[], Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            make()

    def test_other_tasks_pass(self) -> None:
        pooling, rows = HierarchicalTokenPooling(2, tasks="query"), [np.ones((4, 2))]
        assert pooling.tasks == ["query"]
        assert pooling.pool(rows) is rows
        assert len(pooling.pool(rows, task="query")[0]) < 4


def test_a_call_has_a_limit_of_its_own(native: tuple[MultiVectorEncoder, Original]) -> None:
    ours, original = native
    kwargs = {"text": {"max_length": 6}}
    for method in ("encode_document", "encode"):
        found, expected = (getattr(model, method)(TEXTS, processing_kwargs=kwargs) for model in native)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, np.asarray(other), atol=CLOSE)
    assert original.encode_query(TEXTS[:1], processing_kwargs=kwargs) is not None
    if ours.manifest.routes["default"].tokenizer.expansion is not None:
        with pytest.raises(stonnx.UnsupportedError, match="fills up to a number of tokens of its own"):
            ours.encode_query(TEXTS, processing_kwargs=kwargs)
