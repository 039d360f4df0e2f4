"""``stonnx.Batcher`` treats arguments and the settings of its model as the model does."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, toy_table, write_bundle

import stonnx
from stonnx import Batcher, CrossEncoder, SentenceTransformer

DOCUMENTS = ["the river", "bread rises", "what is the city", "", "the sun shines"]


def reranker(directory: Path, **options: Any) -> CrossEncoder:
    graph = pair_graph(toy_table(1, 4), np.ones(1, np.float32), "Sigmoid")
    fields: dict[str, Any] = {"num_labels": 1, "labels": ("a",), "activation": "sigmoid"}
    return CrossEncoder(write_bundle(directory, {"default": graph}, task="rerank", **fields), **options)


def doubled(logits: np.ndarray) -> np.ndarray:
    return 2 * logits


@pytest.mark.parametrize("activation", ["identity", "torch.nn.modules.activation.Sigmoid", "tanh", doubled])
def test_an_activation_that_was_set_is_applied(tmp_path: Path, activation: Any) -> None:
    pairs = [("what flows", document) for document in DOCUMENTS]

    async def check(batcher: Batcher, model: CrossEncoder) -> None:
        np.testing.assert_allclose(await batcher.predict(pairs), model.predict(pairs), atol=1e-6)
        np.testing.assert_allclose(await batcher.predict(pairs[0]), model.predict(pairs[0]), atol=1e-6)

    model = reranker(tmp_path / "bundle", activation_fn=activation)
    with Batcher(model) as batcher:
        asyncio.run(check(batcher, model))
        model.activation_fn = None
        asyncio.run(check(batcher, model))


def test_arguments_of_rank_are_checked_as_by_the_model(tmp_path: Path) -> None:
    model = reranker(tmp_path / "bundle")

    async def check(batcher: Batcher) -> None:
        assert await batcher.rank("a", ["b", "c"], top_k=0) == []
        assert len(await batcher.rank("a", (text for text in "bc"), top_k=np.int64(1))) == 1  # type: ignore[arg-type]
        for arguments, top_k in (
            *((("a", ["b"]), top_k) for top_k in (-1, True, 1.5, "1")),
            *((arguments, None) for arguments in ((None, ["b"]), (["a"], ["b"]), ("a", "b"), ("a", None), ("a", [1]))),
        ):
            with pytest.raises(stonnx.StonnxError) as expected:
                model.rank(*arguments, top_k=top_k)  # type: ignore[arg-type]
            with pytest.raises(type(expected.value), match=f"^{re.escape(str(expected.value))}$"):
                await batcher.rank(*arguments, top_k=top_k)  # type: ignore[arg-type]

    with Batcher(model) as batcher:
        asyncio.run(check(batcher))


def test_arguments_of_encode_are_checked(tmp_path: Path) -> None:
    async def check(batcher: Batcher) -> None:
        assert (await batcher.encode("the river", truncate_dim=np.int64(3))).shape == (3,)
        for wrong in ("3", True, 1.5):
            with pytest.raises(stonnx.InvalidArgumentError, match="truncate_dim must be an integer or None, got "):
                await batcher.encode("the river", truncate_dim=wrong)  # type: ignore[arg-type]
        with pytest.raises(stonnx.InvalidArgumentError, match="timeout must be a number, got 'soon'"):
            await batcher.encode("the river", timeout="soon")  # type: ignore[arg-type]

    with Batcher(SentenceTransformer(dense_bundle(tmp_path / "bundle"))) as batcher:
        asyncio.run(check(batcher))


def test_texts_that_are_too_long_are_treated_as_by_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = SentenceTransformer(dense_bundle(tmp_path / "bundle"), too_long="error")
    texts = ["the river", "the river " * 100]

    async def check(batcher: Batcher) -> None:
        with pytest.raises(stonnx.TextTooLongError):
            await batcher.encode(texts)
        assert len(await batcher.encode(texts, truncate=True)) == 2
        model.too_long = "warn"
        assert not caplog.messages
        assert len(await batcher.encode(texts)) == 2
        assert "1 of 2 texts have more tokens than the model reads and lost their end: 1" in caplog.messages
        model.too_long = "truncate"
        assert len(await batcher.encode(texts)) == 2
        with pytest.raises(stonnx.TextTooLongError):
            await batcher.encode(texts, truncate=False)

    with Batcher(model) as batcher:
        asyncio.run(check(batcher))
