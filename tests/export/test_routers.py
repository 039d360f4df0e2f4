"""Routers: which route a text takes, under all the names that routes have had, and what of them is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router, StaticEmbedding
from tokenizers import Tokenizer

import stonnx
from stonnx_export import export
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.checkpoint.repository_code import Trust

TEXTS = ["", "He drove to the stadium in the rain.", "flute"]
ASYM = "sentence_transformers.models.Asym"


@pytest.fixture
def tables(tiny_checkpoint: Path) -> list[StaticEmbedding]:
    """Two tables of vectors, so that the routes are told apart and nothing has to be traced."""
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    weights = np.random.default_rng(0).normal(size=(2, tokenizer.get_vocab_size(), 8)).astype(np.float32)
    return [StaticEmbedding(tokenizer, embedding_weights=weight) for weight in weights]


def save(directory: Path, tables: list[StaticEmbedding], names: tuple[str, ...], **options: Any) -> Path:
    """A checkpoint with a Router; a name without a table of its own shares the last one."""
    routes = {name: [tables[min(index, len(tables) - 1)]] for index, name in enumerate(names)}
    model = sentence_transformers.SentenceTransformer(modules=[Router(routes, **options), Normalize()], device="cpu")
    model.save_pretrained(str(directory / "checkpoint"), create_model_card=False)
    return directory / "checkpoint"


def as_of_old(checkpoint: Path) -> None:
    """The same in the files that versions before 5 wrote, where the class was Asym."""
    file = checkpoint / "router_config.json"
    config = json.loads(file.read_text())
    config["parameters"] = {"allow_empty_key": config["parameters"]["allow_empty_key"]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    file.unlink()
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules[0]["type"] = ASYM
    (checkpoint / "modules.json").write_text(json.dumps(modules))


def results(model: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The vectors of each way to call a model, or that it is an error."""
    calls = {
        "encode": model.encode,
        "encode_query": model.encode_query,
        "encode_document": model.encode_document,
        **{f"task={name}": lambda texts, name=name: model.encode(texts, task=name) for name in (*names, "other")},
    }
    found: dict[str, Any] = {}
    for call, run in calls.items():
        try:
            found[call] = run(TEXTS)
        except ValueError:
            found[call] = ValueError
    return found


@pytest.mark.needs("sentence-transformers", "6", "Router")
@pytest.mark.parametrize(
    ("names", "options", "old"),
    [
        pytest.param(("query", "document"), {}, False, id="query, document"),
        pytest.param(("query", "document"), {"default_route": "document"}, False, id="default"),
        pytest.param(("query", "document"), {"allow_empty_key": False}, False, id="no default"),
        pytest.param(("query", "doc"), {}, True, id="Asym"),
        pytest.param(("query", "doc"), {"allow_empty_key": False}, True, id="Asym without default"),
        pytest.param(("question", "answer", "title"), {"default_route": "answer"}, False, id="other names"),
        pytest.param(("query",), {}, False, id="one"),
    ],
)
def test_texts_take_the_same_route(
    tables: list[StaticEmbedding], tmp_path: Path, names: tuple[str, ...], options: dict[str, Any], old: bool
) -> None:
    checkpoint = save(tmp_path, tables, names, **options)
    if old:
        as_of_old(checkpoint)
    expected = results(sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu"), names)
    found = results(stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle")), names)
    assert expected["task=other"] is ValueError
    for call, vectors in expected.items():
        if vectors is ValueError:
            assert found[call] is ValueError, call
        else:
            np.testing.assert_allclose(found[call], vectors, atol=1e-6, err_msg=call)


def test_the_error_without_a_default_says_what_to_call(tables: list[StaticEmbedding], tmp_path: Path) -> None:
    checkpoint = save(tmp_path, tables, ("query", "document"), allow_empty_key=False)
    model = stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle"))
    for call in (model.encode, model.preprocess, model.count_tokens):
        with pytest.raises(
            stonnx.InvalidArgumentError, match=r"task='query' and .*specifying the `task`.* encode_query"
        ):
            call(TEXTS)
    assert model.count_tokens(TEXTS, task="query").shape == (3,)


@pytest.mark.needs("sentence-transformers", "6", "route_mappings")
@pytest.mark.parametrize(
    ("names", "options"),
    [
        pytest.param(("text", "image"), {}, id="modalities"),
        pytest.param(("image", "text"), {}, id="texts second"),
        pytest.param(("query", "text"), {}, id="a task and a modality"),
        pytest.param(("a", "b"), {"route_mappings": {("query", "text"): "a", (None, None): "b"}}, id="one task"),
        pytest.param(("a", "b"), {"route_mappings": {("query", "text"): "a", ("document", "text"): "b"}}, id="two"),
        pytest.param(
            ("a", "b", "c"),
            {"route_mappings": {("query", "text"): "a", ("document", "text"): "b", (None, ("image", "text")): "c"}},
            id="tasks and images",
        ),
        pytest.param(
            ("a", "b"),
            {"route_mappings": {("query", "text"): "b", ("document", "image"): "a"}, "allow_empty_key": False},
            id="no default",
        ),
        pytest.param(("a", "b"), {"route_mappings": {(None, "text"): "b", (None, "image"): "a"}}, id="texts alone"),
        pytest.param(("a", "b"), {"route_mappings": {("query", None): "b", ("other", None): "a"}}, id="other tasks"),
    ],
)
def test_routes_of_texts_by_what_is_read(
    tables: list[StaticEmbedding], tmp_path: Path, names: tuple[str, ...], options: dict[str, Any]
) -> None:
    checkpoint = save(tmp_path, tables, names, **options)
    # The name of a modality is not a task of texts.
    names = tuple(name for name in names if name not in ("text", "image"))
    ours = results(stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle")), names)
    original = results(sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu"), names)
    assert ours.keys() == original.keys()
    for call, expected in original.items():
        if expected is ValueError:
            assert ours[call] is ValueError, call
        else:
            np.testing.assert_allclose(ours[call], expected, atol=1e-6, err_msg=call)


@pytest.mark.needs("sentence-transformers", "6", "a Router after other modules")
def test_a_router_after_other_modules(tables: list[StaticEmbedding], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = [Dense(8, 8), Dense(8, 8)]
    router = Router({"query": [dense[0]], "document": [dense[1], Normalize()]}, default_route="document")
    model = sentence_transformers.SentenceTransformer(modules=[tables[0], router, Normalize()], device="cpu")
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(str(checkpoint), create_model_card=False)
    ours = results(stonnx.SentenceTransformer(export(checkpoint, tmp_path / "bundle")), ())
    expected = results(model, ())
    assert {call for call, found in expected.items() if found is ValueError} == {"task=other"}
    for call, found in expected.items():
        assert (ours[call] is ValueError) if found is ValueError else np.allclose(ours[call], found, atol=1e-6), call
    assert np.abs(ours["encode_query"] - ours["encode"]).max() > 0.1


@pytest.mark.parametrize("limit", [None, 5])
def test_the_limit_of_a_table_of_vectors(tables: list[StaticEmbedding], tmp_path: Path, limit: int | None) -> None:
    tables[0].tokenizer.no_truncation()
    tables[0].embedding.weight.data /= 10  # sums of many large numbers are rounded too differently
    if limit is not None:
        tables[0].tokenizer.enable_truncation(limit)
    original = sentence_transformers.SentenceTransformer(modules=[tables[0]], device="cpu")
    original.save_pretrained(str(tmp_path / "checkpoint"), create_model_card=False)
    model = stonnx.SentenceTransformer(export(tmp_path / "checkpoint", tmp_path / "bundle"))
    text = "rain flute stadium " * 60
    np.testing.assert_allclose(model.encode(text), original.encode(text), atol=1e-5)
    # The original says in any case that it reads all.
    assert original.max_seq_length == math.inf
    assert model.max_seq_length == model.get_max_seq_length() == (math.inf if limit is None else limit)


@pytest.mark.needs("sentence-transformers", "6", "Router")
class TestCalls:
    """How a call says which route its texts take, in the words of the original."""

    @pytest.fixture
    def both(self, tables: list[StaticEmbedding], tmp_path: Path) -> list[Any]:
        checkpoint = save(tmp_path, tables, ("query", "document"), allow_empty_key=False)
        bundle = export(checkpoint, tmp_path / "bundle")
        original = sentence_transformers.SentenceTransformer(str(checkpoint), device="cpu")
        return [stonnx.SentenceTransformer(bundle), original]

    @pytest.mark.parametrize("task", ["query", "document"])
    @pytest.mark.parametrize("single", [True, False])
    def test_inputs_that_name_their_task(self, both: list[Any], task: str, single: bool) -> None:
        inputs: Any = {task: TEXTS[1]} if single else [{task: text} for text in TEXTS]
        found, expected = (model.encode(inputs) for model in both)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(found, both[0].encode(TEXTS[1] if single else TEXTS, task=task), atol=0)

    def test_inputs_of_several_tasks(self, both: list[Any]) -> None:
        for model in both:
            with pytest.raises(ValueError, match="You cannot pass a list of dictionaries with different task types"):
                model.encode([{"query": "a"}, {"document": "b"}])

    def test_the_modality_of_texts(self, both: list[Any]) -> None:
        found, expected = (model.encode(TEXTS, task="query", modality="text") for model in both)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        with pytest.raises(stonnx.UnsupportedError, match="modality='image' asks for another route"):
            both[0].encode(TEXTS, task="query", modality="image")

    def test_keywords(self, both: list[Any]) -> None:
        names = [model.get_model_kwargs() for model in both]
        assert sorted(names[0]) == sorted(names[1]) == ["modality", "task"]
        for model in both:
            with pytest.raises(
                ValueError, match=r"use: \['other'\]\. .*the valid additional keyword arguments are: \["
            ):
                model.encode(TEXTS, task="query", other=1)

    @pytest.mark.parametrize("inputs", [TEXTS, TEXTS[1], [{"text": "a"}]], ids=["many", "one", "a dict"])
    def test_without_a_task(self, both: list[Any], inputs: Any) -> None:
        with pytest.raises(ValueError, match="Could not determine route for task=None") as expected:
            both[1].encode(inputs)
        with pytest.raises(stonnx.InvalidArgumentError) as raised:
            both[0].encode(inputs)
        assert str(raised.value).startswith(str(expected.value))

    def test_another_task(self, both: list[Any]) -> None:
        with pytest.raises(ValueError, match="No route found for task type 'other'") as expected:
            both[1].encode(TEXTS, task="other")
        with pytest.raises(stonnx.InvalidArgumentError) as raised:
            both[0].encode(TEXTS, task="other")
        assert str(raised.value) == str(expected.value)


class TestRefused:
    @pytest.mark.parametrize("name", ["default", "a/b", "", "."])
    def test_names(self, tables: list[StaticEmbedding], tmp_path: Path, name: str) -> None:
        checkpoint = save(tmp_path, tables, ("query", "other"))
        file = checkpoint / "router_config.json"
        config = json.loads(file.read_text())
        config["structure"][name] = config["structure"].pop("other")
        file.write_text(json.dumps(config))
        with pytest.raises(stonnx.UnsupportedError, match=f"with the route '{name}'.*letters"):
            read_checkpoint(checkpoint)

    def test_no_route_for_texts(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("image", "audio"), allow_empty_key=False)
        with pytest.raises(stonnx.UnsupportedError, match=r"without a route for texts: it has 'image', 'audio'"):
            read_checkpoint(checkpoint)

    def test_unreadable_mappings(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("a", "b"), route_mappings={("query", "text"): "a"})
        file = checkpoint / "router_config.json"
        config = json.loads(file.read_text())
        for key, message in (("(query, text)", "cannot be read"), ("'query'", "not a pair of a task and a modality")):
            config["parameters"]["route_mappings"] = {key: "a"}
            file.write_text(json.dumps(config))
            with pytest.raises(stonnx.ExportError, match=message):
                read_checkpoint(checkpoint)

    def test_two(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("query", "document"))
        file = checkpoint / "modules.json"
        modules = json.loads(file.read_text())
        modules[1]["type"] = ASYM
        file.write_text(json.dumps(modules))
        with pytest.raises(stonnx.UnsupportedError, match="has 2 Routers"):
            read_checkpoint(checkpoint)

    def test_one_inside_another(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("query", "document"))
        file = checkpoint / "router_config.json"
        config = json.loads(file.read_text())
        config["types"] = dict.fromkeys(config["types"], ASYM)
        file.write_text(json.dumps(config))
        with pytest.raises(stonnx.UnsupportedError, match="a Router inside"):
            read_checkpoint(checkpoint)

    def test_damage(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("query", "document"))
        (checkpoint / "router_config.json").write_text('{"structure": {"query": ["absent"]}, "types": {}}')
        with pytest.raises(stonnx.ExportError, match="is damaged: KeyError"):
            read_checkpoint(checkpoint)

    def test_routes_of_unequal_sizes(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        router = Router({"query": [tables[0], Dense(8, 4)], "document": [tables[1]]})
        model = sentence_transformers.SentenceTransformer(modules=[router], device="cpu")
        model.save_pretrained(str(tmp_path / "checkpoint"), create_model_card=False)
        with pytest.raises(stonnx.UnsupportedError, match=r"unequal sizes: 4 for 'query', 8 for 'document'.*Dense"):
            export(tmp_path / "checkpoint", tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_code_after_a_table(self, tables: list[StaticEmbedding], tmp_path: Path) -> None:
        checkpoint = save(tmp_path, tables, ("query", "document"))
        file = checkpoint / "modules.json"
        modules = json.loads(file.read_text())
        modules[1]["type"] = "own_module.Own"
        file.write_text(json.dumps(modules))
        (checkpoint / "own_module.py").write_text("")
        with pytest.raises(stonnx.UnsupportedError, match=r"own code after a StaticEmbedding.*as Dense"):
            read_checkpoint(checkpoint, trust=Trust())
