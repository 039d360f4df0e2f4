"""Causal language models as rerankers: from plain and saved checkpoints, and what of them is refused."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sentence_transformers
import torch
from transformers import AutoModelForCausalLM

import stonnx
from stonnx._bundle.manifest import read_manifest
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint

pytestmark = pytest.mark.needs("sentence-transformers", "6", "LogitScore")

TEMPLATE = (
    'judge {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("this") }} : '
    'query {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }} . '
    'document {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }} [SEP] yes ?'
)
QUERY, DOCUMENTS = "who plays", ["A man is playing a large flute.", "", "rain " * 80, "So sunny outside!"]


@pytest.fixture
def checkpoint(build_small: Any) -> Path:
    """A plain causal language model whose vocabulary has the answers."""
    directory: Path = build_small(
        "qwen3", max_length=48, auto=AutoModelForCausalLM, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True
    )
    return directory


def with_answers(checkpoint: Path, *names: str) -> Path:
    """The checkpoint with these tokens in place of others of its vocabulary."""
    file = checkpoint / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    for place, name in enumerate(names, start=len(vocabulary) - len(names)):
        old = next(token for token, index in vocabulary.items() if index == place)
        del vocabulary[old]
        vocabulary[name] = place
    file.write_text(json.dumps(content), encoding="utf-8")
    return checkpoint


def with_template(checkpoint: Path, template: str = TEMPLATE) -> Path:
    (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    return checkpoint


def check(bundle: Path, checkpoint: Path, **options: Any) -> stonnx.CrossEncoder:
    """Scores and ranks are those of the original, one pair at a time: it pads on the left."""
    ours, original = stonnx.CrossEncoder(bundle), sentence_transformers.CrossEncoder(str(checkpoint), device="cpu")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    expected = np.array([original.predict([pair], **options)[0] for pair in pairs])
    np.testing.assert_allclose(ours.predict(pairs, **options), expected, atol=1e-5)
    ranked = ours.rank(QUERY, DOCUMENTS, **options)
    assert [row["corpus_id"] for row in ranked] == np.argsort(-expected, kind="stable").tolist()
    return ours


def test_a_plain_checkpoint_answers_yes_or_no(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_template(with_answers(checkpoint, "yes", "no"))
    bundle = export(checkpoint, tmp_path / "bundle", task="rerank")
    model = check(bundle, checkpoint)
    check(bundle, checkpoint, prompt="the weather")
    assert model.num_labels == 1
    assert model.last_stats is not None
    assert model.last_stats.truncated == (2,)
    manifest = read_manifest(bundle)
    assert [module.type for module in manifest.modules] == ["Transformer", "LogitScore"]
    assert (manifest.schema_version, manifest.activation) == (2, "sigmoid")
    # The vocabulary is in the graph once, as the table of the tokens, and not as a product.
    rows = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    graph = onnx.load(bundle / "model.onnx").graph
    assert [list(one.dims) for one in graph.initializer if rows in one.dims] == [[rows, 32]]
    # The card has code without stonnx, and the template in it.
    (code,) = re.findall(r"```python\n(import numpy.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(bundle)
    names: dict[str, Any] = {}
    exec(code, names)
    wanted = model.predict([("How is the weather?", "It's so sunny outside!")])
    np.testing.assert_allclose(names["scores"][:, 0], wanted, atol=1e-5)
    features = model.preprocess([(QUERY, "a")], prompt="the weather")
    assert features["modality"] == "message"
    assert "prompt_length" not in features


def test_without_a_template_a_pair_is_read_as_by_other_rerankers(checkpoint: Path, tmp_path: Path) -> None:
    with_answers(checkpoint, "yes", "no")
    bundle = export(checkpoint, tmp_path / "bundle", task="rerank")
    check(bundle, checkpoint)
    check(bundle, checkpoint, prompt="find: ")
    assert read_manifest(bundle).schema_version == 1


def test_a_saved_checkpoint_with_one_answer(checkpoint: Path, tmp_path: Path) -> None:
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    with_template(checkpoint)
    transformer = Transformer(str(checkpoint), transformer_task="text-generation")
    original = sentence_transformers.CrossEncoder(
        modules=[transformer, LogitScore(true_token_id=7)], device="cpu", prompts={"ask": "is it so"}
    )
    original.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    bundle = export(tmp_path / "saved", tmp_path / "bundle")
    check(bundle, tmp_path / "saved", prompt_name="ask")


@pytest.mark.parametrize(("dtype", "furthest"), [("bf16", 0.02), ("int8", 0.1)])
def test_other_precisions(checkpoint: Path, tmp_path: Path, dtype: str, furthest: float) -> None:
    """Logits are off by at most a part of their spread."""
    with_template(with_answers(checkpoint, "yes", "no"))
    bundle = export(checkpoint, tmp_path / "bundle", task="rerank", dtype=dtype)
    original = sentence_transformers.CrossEncoder(str(checkpoint), device="cpu", activation_fn=torch.nn.Identity())
    pairs = [(QUERY, document) for document in (*DOCUMENTS, "a", "who plays the flute", "the park was quiet")]
    expected = np.array([original.predict([pair])[0] for pair in pairs])
    found = stonnx.CrossEncoder(bundle).predict(pairs, activation_fn="identity")
    assert np.abs(found - expected).max() <= furthest * np.ptp(expected)


def test_a_batcher_asks_in_the_template(checkpoint: Path, tmp_path: Path) -> None:
    bundle = export(with_template(with_answers(checkpoint, "yes", "no")), tmp_path / "bundle", task="rerank")
    model = stonnx.CrossEncoder(bundle)
    pairs = [(QUERY, document) for document in DOCUMENTS]

    async def ask() -> list[Any]:
        with stonnx.Batcher(model) as batcher:
            return [await batcher.predict(pairs), await batcher.predict(pairs, prompt="the weather")]

    plain, prompted = asyncio.run(ask())
    np.testing.assert_allclose(plain, model.predict(pairs), atol=1e-6)
    np.testing.assert_allclose(prompted, model.predict(pairs, prompt="the weather"), atol=1e-6)
    assert np.abs(plain - prompted).max() > 1e-3


@pytest.mark.parametrize(("names", "missing"), [((), "'yes' and 'no'"), (("yes",), "'no'")])
def test_a_vocabulary_without_the_answers_is_refused(checkpoint: Path, names: tuple[str, ...], missing: str) -> None:
    with_answers(checkpoint, *names)
    with pytest.raises(stonnx.UnsupportedError, match=rf"its vocabulary lacks {missing}\..*LogitScore\(true_token_id"):
        read_checkpoint(checkpoint, "rerank")


def test_a_template_without_its_markers_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with_template(with_answers(checkpoint, "yes", "no"), "{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(
        stonnx.UnsupportedError, match=r"cannot carry a 'query'/'document' pair and has no place"
    ) as raised:
        export(checkpoint, tmp_path / "bundle", task="rerank")
    assert "the roles 'query' and 'document'" in str(raised.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "change",
    [
        ("| first }} [SEP]", "| first | truncate(400) }} [SEP]"),
        ("judge", "{{ 'ask' if messages[-1].content.endswith('whether?') else 'judge' }}"),
        ("judge", "{{ 'ask' if '【' in messages[0].content else 'judge' }}"),
        ("judge", "{{ 'ask' if messages[-1].content.split() | length > 900 else 'judge' }}"),
    ],
)
def test_a_template_that_depends_on_its_texts_is_refused(
    checkpoint: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    """The strings and numbers in the template say which texts it treats in another way."""
    assert change[0] in TEMPLATE
    with_template(with_answers(checkpoint, "yes", "no"), TEMPLATE.replace(*change))
    with pytest.raises(stonnx.UnsupportedError, match="does more with its texts than to put them in their places"):
        export(checkpoint, tmp_path / "bundle", task="rerank")


def test_an_answer_beyond_the_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    transformer = Transformer(str(checkpoint), transformer_task="text-generation")
    original = sentence_transformers.CrossEncoder(modules=[transformer, LogitScore(7, 8)], device="cpu")
    saved = tmp_path / "saved"
    original.save_pretrained(str(saved), create_model_card=False)
    file = saved / "1_LogitScore" / "config.json"
    file.write_text(json.dumps({"true_token_id": 7, "false_token_id": 70_000}), encoding="utf-8")
    with pytest.raises((stonnx.UnsupportedError, stonnx.ExportError), match=r"reads the token 70000|out of bounds"):
        export(saved, tmp_path / "bundle")
    file.write_text(json.dumps({"true_token_id": "yes"}), encoding="utf-8")
    with pytest.raises(stonnx.UnsupportedError, match="true_token_id='yes'"):
        export(saved, tmp_path / "bundle")
