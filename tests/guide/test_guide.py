"""The guide's data: every row is complete and agrees with the zoo, and a fault is refused."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from guides import DATA, GUIDE, NAMES, names
from zoo.table import PUBLISHED, Dense, Normalize

from stonnx._guide import guide
from stonnx._guide import table as table_module
from stonnx._guide.guide import GuideError, Query, read_guide, recommend

# --- rows ------------------------------------------------------------------------------------------------------------


def test_the_models_of_the_guide() -> None:
    tasks = [model.task for model in GUIDE.models]
    assert (len(NAMES), tasks.count("embedding"), tasks.count("sparse"), tasks.count("rerank")) == (21, 19, 1, 1)


@pytest.mark.parametrize("model", GUIDE.models, ids=lambda model: model.name)
def test_every_row_is_complete(model: guide.GuideModel) -> None:
    vectors = (model.dimension, model.similarity, model.normalized)
    assert (None in vectors) == (model.task == "rerank")
    assert model.max_seq_length in (128, 256, 384, 512)
    assert GUIDE.languages[model.languages].label in ("en", "15", "50+", "109")
    assert 10 <= len(model.summary) <= 80
    for measure, figure in model.figures.items():
        if figure is not None:
            assert GUIDE.sources[figure.source].url.startswith(("https://www.sbert.net/", "https://huggingface.co/"))
            assert figure.value < 100 if GUIDE.measures[measure].kind == "quality" else figure.value >= 100
    for use in GUIDE.uses_of(model):
        assert {use.quality, use.speed} <= model.figures.keys()


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.name in NAMES], ids=lambda row: row.name)
def test_rows_agree_with_the_configurations_of_the_zoo(row: Any) -> None:
    model = GUIDE.model(row.name)
    assert model.task == row.task
    assert row.max_seq_length in (None, model.max_seq_length)
    if row.task == "embedding":
        dense = [module.out_features for module in row.chain if isinstance(module, Dense)]
        assert model.dimension == (dense or [row.backbone.published.hidden])[-1]
        assert model.normalized == any(isinstance(module, Normalize) for module in row.chain)
    if row.task != "rerank":
        assert model.similarity == row.similarity


def test_the_zoo_has_all_models_of_the_guide() -> None:
    assert set(NAMES) <= {row.name for row in PUBLISHED}


@pytest.mark.parametrize(
    ("name", "measure", "value"),
    [
        ("all-mpnet-base-v2", "sentences", 69.57),
        ("all-MiniLM-L6-v2", "sentences_gpu", 14200),
        ("paraphrase-mpnet-base-v2", "sentences", 67.97),
        ("multi-qa-mpnet-base-cos-v1", "search", 57.46),
        ("multi-qa-MiniLM-L6-cos-v1", "queries_cpu", 750),
        ("msmarco-bert-base-dot-v5", "msmarco_mrr", 38.08),
        ("msmarco-distilbert-cos-v5", "msmarco_mrr", 33.79),
        ("naver/splade-cocondenser-ensembledistil", "msmarco_mrr", 38.3),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "pairs_gpu", 1800),
    ],
)
def test_published_figures(name: str, measure: str, value: float) -> None:
    figure = GUIDE.model(name).figures[measure]
    assert figure is not None
    assert figure.value == value


def test_what_a_recommendation_says_of_other_models_is_true() -> None:
    def value(name: str, measure: str) -> float:
        figure = GUIDE.model(name).figures[measure]
        assert figure is not None
        return figure.value

    small, large = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
    assert value(small, "sentences_gpu") / value(large, "sentences_gpu") == pytest.approx(5, abs=0.1)
    assert value(large, "sentences") - value(small, "sentences") == pytest.approx(1.5, abs=0.05)
    assert value("msmarco-distilbert-dot-v5", "queries_cpu") == pytest.approx(
        2 * value("msmarco-bert-base-dot-v5", "queries_cpu"), rel=0.1
    )
    for use in ("search", "paraphrase"):
        assert names(recommend(GUIDE, Query(use=use, prefer="best")))[0] == GUIDE.use(use).models[0]


# --- reading ---------------------------------------------------------------------------------------------------------


def change(path: str, value: Any) -> str:
    """The guide as JSON with one place changed; a value of ... takes the place away."""
    data = json.loads(json.dumps(DATA))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("models.0.dimension", ..., r"lacks the field .guide\.models\[0\]\.dimension"),
        ("models.0.extra", 1, "must have the fields .* found 'extra'"),
        ("models.0.dimension", "768", r"guide\.models\[0\]\.dimension must be int, found str"),
        ("models.0.dimension", True, "must be int, found bool"),
        ("models.0.normalized", 1, "must be bool, found int"),
        ("models.0.task", "chat", "The task of all-mpnet-base-v2 is 'chat'. Known are: embedding, sparse"),
        ("models.0.summary", "", "summary may not be ''"),
        ("models.0.max_seq_length", None, "must be int, found null"),
        ("models.0.name", "all-MiniLM-L6-v2", "has a name twice"),
        ("models.0.languages", "klingon", "The languages of all-mpnet-base-v2 is 'klingon'. Known are: english"),
        ("models.0.figures.sentences.value", "69", "must be float, found str"),
        ("models.0.figures.sentences.value", -1, "value may not be -1"),
        ("models.0.figures.sentences.source", "hearsay", "The source of sentences of all-mpnet-base-v2 is 'hearsay'"),
        ("models.0.figures.sentences", 69.57, "sentences must be an object, found float"),
        (
            "models.0.figures.sentences",
            ...,
            "A measure of general, a key of all-mpnet-base-v2's figures, is 'sentences'",
        ),
        ("models.0.figures.taste", None, "A figure of all-mpnet-base-v2 is 'taste'"),
        ("uses.0.models", ["gpt"], "A model of general is 'gpt'"),
        ("uses.0.models", [], r"uses\[0\].models may not be \[\]"),
        ("uses.0.quality", "sentences_gpu", "general has 'sentences_gpu' as quality"),
        ("uses.6.models", ["LaBSE"], "allenai-specter does not belong to any use"),
        ("uses.0.other_languages", "cooking", "What stands in for general is 'cooking'. Known are: general"),
        ("languages.english.source", "x", "The source of the languages 'en' is 'x'"),
        ("sources", [], "guide.sources must be"),
    ],
)
def test_a_guide_with_a_fault_is_refused(path: str, value: Any, message: str) -> None:
    read_guide(json.dumps(DATA))
    with pytest.raises(GuideError, match=message):
        read_guide(change(path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"guide"'])
def test_what_is_no_guide(text: str) -> None:
    with pytest.raises(GuideError, match="guide"):
        read_guide(text)


def test_the_data_is_frozen() -> None:
    for kind in (guide.Guide, guide.GuideModel, guide.Use, guide.Figure, guide.Query, guide.Answer):
        assert dataclasses.fields(kind)
        assert kind.__dataclass_params__.frozen
    assert set(GUIDE.sources) == {
        *(figure.source for model in GUIDE.models for figure in model.figures.values() if figure),
        *(languages.source for languages in GUIDE.languages.values()),
    }


def test_loading_models_never_touches_the_guide() -> None:
    package = Path(guide.__file__).parents[1]
    importers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        and "_guide" in f"{getattr(node, 'module', '')} {' '.join(alias.name for alias in node.names)}"
    }
    assert importers == {"cli/models.py", "_guide/table.py"}


@pytest.mark.parametrize("module", [guide, table_module])
def test_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
