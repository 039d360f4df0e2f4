"""Checkpoints of late interaction as data: what each layout says, and what is refused, by name and with a remedy."""

from __future__ import annotations

import json
import logging
import shutil
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

from safetensors.torch import load_file, save_file
from zoo.late_checkpoints import build_late_checkpoint, build_routed_checkpoint
from zoo.late_interaction import row

import stonnx
from stonnx_export import export
from stonnx_export.checkpoint.modules import (
    Dense,
    HierarchicalTokenPooling,
    MultiVectorMask,
    Normalize,
    Transformer,
)
from stonnx_export.checkpoint.read import Checkpoint, read_checkpoint

Make = Callable[..., Path]


@pytest.fixture
def make(shared_directory: Path, tmp_path: Path) -> Make:
    """``make(name, file=..., **settings)``: the checkpoint of a row, with other settings in one of its files."""

    def make(name: str, file: str = "config_sentence_transformers.json", **settings: Any) -> Path:
        source = build_late_checkpoint(row(name), shared_directory / "late")
        directory = shutil.copytree(source, tmp_path / "checkpoint", dirs_exist_ok=True)
        if settings:
            path = directory / file
            path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))
        return directory

    return make


STANFORD, PYLATE, CONVERTED, NATIVE = (
    "colbert-ir/colbertv2.0",
    "lightonai/GTE-ModernColBERT-v1",
    "lightonai/colbertv2.0",
    "zoo/late-interaction-native",
)


def transformer(checkpoint: Checkpoint) -> Transformer:
    first = checkpoint.chain[0]
    assert isinstance(first, Transformer)
    return first


def mask(checkpoint: Checkpoint) -> MultiVectorMask:
    (found,) = [module for module in checkpoint.chain if isinstance(module, MultiVectorMask)]
    return found


class TestLayouts:
    @pytest.mark.parametrize("name", [STANFORD, PYLATE, CONVERTED, NATIVE])
    def test_the_task_is_that_of_the_checkpoint(self, name: str, make: Make) -> None:
        checkpoint = read_checkpoint(make(name))
        assert checkpoint.task == "multivector"
        assert [type(module) for module in checkpoint.chain] == [Transformer, Dense, MultiVectorMask, Normalize]
        assert checkpoint.similarity_fn_name is None

    def test_stanford(self, make: Make) -> None:
        checkpoint = read_checkpoint(make(STANFORD, "artifact.metadata", query_maxlen=40, attend_to_mask_tokens=True))
        first = transformer(checkpoint)
        assert checkpoint.prompts == {"query": "[unused0] ", "document": "[unused1] "}
        assert (first.query_length, first.document_length) == (None, 180)
        assert first.query_expansion is not None
        expansion = first.query_expansion
        assert (expansion.length, expansion.fixed, expansion.attend, expansion.token) == (40, True, True, None)
        assert mask(checkpoint).skiplist_words == tuple(string.punctuation)

    def test_stanford_without_its_settings(self, make: Make, caplog: pytest.LogCaptureFixture) -> None:
        directory = make(STANFORD)
        (directory / "artifact.metadata").unlink()
        with caplog.at_level(logging.WARNING, "stonnx"):
            checkpoint = read_checkpoint(directory)
        assert "has no artifact.metadata" in caplog.text
        assert transformer(checkpoint).document_length is None
        assert transformer(checkpoint).query_expansion is not None

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"do_query_expansion": False}, (None, 32)),
            ({"do_query_expansion": True}, ((32, False), None)),
            ({"do_query_expansion": True, "attend_to_expansion_tokens": True}, ((32, True), None)),
            ({"query_expansion": None}, (None, 32)),
            ({"query_expansion": {"strategy": "min", "length": 8}}, ((8, False), 32)),
        ],
    )
    def test_expansion_of_pylate(self, settings: Mapping[str, Any], expected: tuple[Any, Any], make: Make) -> None:
        first = transformer(read_checkpoint(make(PYLATE, **settings)))
        found = first.query_expansion
        assert (found and (found.length, found.attend), first.query_length) == expected

    def test_what_the_module_says_wins(self, make: Make) -> None:
        make(PYLATE, "sentence_bert_config.json", query_length=7, document_length=None)
        first = transformer(read_checkpoint(make(PYLATE)))
        assert (first.query_length, first.document_length) == (32, 300), "a fresh copy"
        directory = make(PYLATE, "sentence_bert_config.json", query_length=7, document_length=None)
        first = transformer(read_checkpoint(directory))
        assert (first.query_length, first.document_length) == (7, None)

    @pytest.mark.parametrize(
        ("name", "words", "expected"),
        [
            (PYLATE, None, string.punctuation),
            (PYLATE, [], ""),
            (PYLATE, [".", "x"], ".x"),
            (CONVERTED, None, string.punctuation),
        ],
    )
    def test_skiplist_of_pylate(self, name: str, words: Any, expected: str, make: Make) -> None:
        assert "".join(mask(read_checkpoint(make(name, skiplist_words=words))).skiplist_words) == expected

    def test_prompts_after_the_prefix(self, make: Make) -> None:
        prompts = {"query": "[Q] find: ", "document": "text: ", "other": "x"}
        checkpoint = read_checkpoint(make(PYLATE, prompts=prompts))
        assert checkpoint.prompts == {"query": "[Q] find: ", "document": "[D] text: ", "other": "x"}

    def test_pylate_as_an_embedding_model(self, make: Make) -> None:
        """SentenceTransformer loads such a checkpoint too, so the caller may ask for that."""
        checkpoint = read_checkpoint(make(CONVERTED), "embedding")
        assert checkpoint.task == "embedding"
        assert [type(module) for module in checkpoint.chain] == [Transformer, Dense]

    def test_a_sentence_transformer_with_a_dense_layer(self, make: Make) -> None:
        directory = make(CONVERTED)
        settings = directory / "config_sentence_transformers.json"
        settings.write_text(json.dumps({"prompts": {"query": "find: "}}))
        assert read_checkpoint(directory).task == "embedding"
        checkpoint = read_checkpoint(directory, "multivector")
        assert [type(module) for module in checkpoint.chain] == [Transformer, Dense, MultiVectorMask, Normalize]
        assert mask(checkpoint).skiplist_words == ()
        assert transformer(checkpoint).query_expansion is None

    def test_pooling_of_tokens(self, make: Make) -> None:
        checkpoint = read_checkpoint(make("zoo/late-interaction-pooled"))
        pooling = checkpoint.chain[-1]
        assert pooling == HierarchicalTokenPooling(2.0, 1, normalize_embeddings=True, tasks=("document",))


class TestRefused:
    def test_no_projection(self, make: Make) -> None:
        directory = make(STANFORD)
        weights = load_file(str(directory / "model.safetensors"))
        del weights["linear.weight"]
        save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
        with pytest.raises(stonnx.UnsupportedError, match=r"no matrix 'linear.weight'.*Download the checkpoint again"):
            read_checkpoint(directory)

    def test_a_plain_network(self, make: Make) -> None:
        directory = make(STANFORD, "config.json", architectures=["BertModel"])
        with pytest.raises(stonnx.UnsupportedError, match=r"no Dense layer.*random weights. Export a checkpoint that"):
            read_checkpoint(directory, "multivector")

    def test_a_sentence_transformer_without_a_dense_layer(self, make: Make) -> None:
        directory = make(CONVERTED)
        (directory / "config_sentence_transformers.json").write_text("{}")
        modules = json.loads((directory / "modules.json").read_text())
        (directory / "modules.json").write_text(json.dumps(modules[:1]))
        with pytest.raises(stonnx.UnsupportedError, match="no Dense layer that makes the vectors of tokens"):
            read_checkpoint(directory, "multivector")

    def test_models_that_read_images(self, make: Make) -> None:
        directory = make(STANFORD, "config.json", architectures=["ColPaliForRetrieval"])
        with pytest.raises(stonnx.UnsupportedError, match=r"reads images as well as texts \(ColPaliForRetrieval\)"):
            read_checkpoint(directory, "multivector")

    @pytest.mark.parametrize(
        ("expansion", "said"),
        [
            ({"strategy": "fixed", "length": 32, "token": "[FILL]"}, r"with '\[FILL\]', and the tokenizer has no such"),
            ({"strategy": "most", "length": 32}, "must have the strategy 'fixed' or 'min'"),
            ({"strategy": "fixed", "length": 0}, "needs length, the number of tokens of a query"),
            ({"strategy": "fixed", "length": 8, "attend": 1}, "true or false as attend"),
            ({"strategy": "fixed", "length": 8, "size": 1}, "an object with the keys attend, length, strategy, token"),
            ({"strategy": "min", "length": 64}, "query_length=32 tokens and filled up to 64 tokens"),
            (7, "must be null or an object"),
        ],
    )
    def test_an_expansion_that_cannot_be(self, expansion: Any, said: str, make: Make) -> None:
        with pytest.raises(stonnx.ExportError, match=said):
            read_checkpoint(make(PYLATE, query_expansion=expansion))

    def test_lengths_that_are_no_numbers(self, make: Make) -> None:
        directory = make(PYLATE, "sentence_bert_config.json", query_length="32")
        with pytest.raises(stonnx.ExportError, match="query_length must be a number of tokens or null, found '32'"):
            read_checkpoint(directory)

    @pytest.mark.parametrize(
        ("names", "model_type", "other", "said"),
        [
            (("query", "document"), "SentenceTransformer", {}, "has a Router, and its config_sentence_transformers"),
            (("query", "title"), "MultiVectorEncoder", {}, "the route 'title'.*'query' and 'document' can be exported"),
            (("query", "document"), "MultiVectorEncoder", {"width": 12}, "of 12 dimensions, and another one of 24"),
            (
                ("query", "document"),
                "MultiVectorEncoder",
                {"pooled": True, "inside": "everything"},
                "HierarchicalTokenPooling in some routes",
            ),
        ],
    )
    def test_a_router(
        self, names: tuple[str, str], model_type: str, other: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        directory = build_routed_checkpoint(tmp_path / "checkpoint", names=names, **other)
        file = directory / "config_sentence_transformers.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": model_type}))
        with pytest.raises(stonnx.UnsupportedError, match=said):
            read_checkpoint(directory, "multivector")

    def test_an_onnx_file(self, make: Make, tmp_path: Path) -> None:
        directory = make(STANFORD)
        (directory / "model.onnx").touch()
        with pytest.raises(stonnx.UnsupportedError, match=r"late interaction, which cannot.*--source torch"):
            export(directory, tmp_path / "bundle", source="onnx")
        assert not (tmp_path / "bundle").exists()

    def test_another_task(self, make: Make) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=r"is a MultiVectorEncoder, not a SentenceTransformer"):
            read_checkpoint(make(NATIVE), "embedding")

    def test_expansion_in_another_class(self, make: Make) -> None:
        directory = make(NATIVE, model_type="SentenceTransformer")
        with pytest.raises(stonnx.UnsupportedError, match="sets query_expansion, which fills up queries"):
            read_checkpoint(directory)

    def test_padding_on_the_left(self, make: Make, tmp_path: Path) -> None:
        directory = make("zoo/late-interaction-causal", "tokenizer_config.json", padding_side="left")
        with pytest.raises(stonnx.UnsupportedError, match=r"pads on the left.*set padding_side to 'right'"):
            export(directory, tmp_path / "bundle", show_progress=False)

    def test_a_chat_template(self, make: Make, tmp_path: Path) -> None:
        directory = make("zoo/late-interaction-causal")
        (directory / "chat_template.jinja").write_text("user: {{ messages[-1].content }} reply:")
        modes = {"text": "last_hidden_state", "message": "last_hidden_state"}
        modality = {name: {"method": "forward", "method_output_name": output} for name, output in modes.items()}
        modality["message"]["format"] = "flat"
        file = directory / "sentence_bert_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"modality_config": modality}))
        with pytest.raises(stonnx.UnsupportedError, match=r"through a chat template.*query_expansion to null"):
            export(directory, tmp_path / "bundle", show_progress=False)

    @pytest.mark.parametrize(
        ("modules", "said"),
        [
            (["2_MultiVectorMask", "2_MultiVectorMask"], "several MultiVectorMask modules"),
            (["4_HierarchicalTokenPooling", "3_Normalize"], "a module after a HierarchicalTokenPooling"),
        ],
    )
    def test_chains_that_cannot_be_exported(self, modules: list[str], said: str, make: Make) -> None:
        directory = make("zoo/late-interaction-pooled")
        entries = json.loads((directory / "modules.json").read_text())
        by_name = {str(entry["path"]): entry for entry in entries}
        chain = [entries[0], *(by_name[name] for name in modules)]
        (directory / "modules.json").write_text(json.dumps(chain))
        with pytest.raises(stonnx.UnsupportedError, match=said):
            read_checkpoint(directory)
