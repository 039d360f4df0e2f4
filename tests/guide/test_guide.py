"""The guide: every row complete, a recommendation for every leaf of the chart, and a table that fits a terminal."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from stonnx import cli
from stonnx._errors import InvalidArgumentError
from stonnx._guide import guide
from stonnx._guide import table as table_module
from stonnx._guide.guide import Answer, Figure, GuideError, Query, read_guide, recommend
from stonnx._guide.table import table


def load_zoo() -> Any:
    """The table of the zoo alone: its package imports PyTorch."""
    path = Path(__file__).parents[1] / "zoo" / "table.py"
    spec = importlib.util.spec_from_file_location("zoo_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


ZOO = load_zoo()
GUIDE = read_guide()
DATA = json.loads(Path(guide.__file__).with_name("guide.json").read_text(encoding="utf-8"))
NAMES = [model.name for model in GUIDE.models]
LANGUAGES = [(), ("en",), ("de",), ("fi",), ("haw",), ("de", "fr")]


def names(answer: Answer) -> list[str]:
    return [model.name for model in answer.models]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["models", *arguments]) == 0
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["models", *arguments]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


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


@pytest.mark.parametrize("row", [row for row in ZOO.PUBLISHED if row.name in NAMES], ids=lambda row: row.name)
def test_rows_agree_with_the_configurations_of_the_zoo(row: Any) -> None:
    model = GUIDE.model(row.name)
    assert model.task == row.task
    assert row.max_seq_length in (None, model.max_seq_length)
    if row.task == "embedding":
        dense = [module.out_features for module in row.chain if isinstance(module, ZOO.Dense)]
        assert model.dimension == (dense or [row.backbone.published.hidden])[-1]
        assert model.normalized == any(isinstance(module, ZOO.Normalize) for module in row.chain)
    if row.task != "rerank":
        assert model.similarity == row.similarity


def test_the_zoo_has_all_models_of_the_guide() -> None:
    assert set(NAMES) <= {row.name for row in ZOO.PUBLISHED}


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


# --- recommendations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(use="general"), "all-MiniLM-L6-v2"),
        (Query(use="general", prefer="best"), "all-mpnet-base-v2"),
        (Query(use="general", prefer="fast"), "paraphrase-MiniLM-L3-v2"),
        (Query(use="search"), "multi-qa-mpnet-base-cos-v1"),
        (Query(use="search", prefer="fast"), "multi-qa-MiniLM-L6-cos-v1"),
        (Query(use="search", max_dim=400), "multi-qa-MiniLM-L6-cos-v1"),
        (Query(use="web-search"), "msmarco-distilbert-dot-v5"),
        (Query(use="web-search", prefer="best"), "msmarco-bert-base-dot-v5"),
        (Query(use="scientific"), "allenai-specter"),
        (Query(use="paraphrase", languages=("de",)), "paraphrase-multilingual-mpnet-base-v2"),
        (Query(use="multilingual"), "distiluse-base-multilingual-cased-v1"),
        (Query(use="multilingual", languages=("de",)), "distiluse-base-multilingual-cased-v1"),
        (Query(use="multilingual", languages=("fi",)), "distiluse-base-multilingual-cased-v2"),
        (Query(use="multilingual", languages=("de", "fi")), "distiluse-base-multilingual-cased-v2"),
        (Query(use="multilingual", prefer="best"), "paraphrase-multilingual-mpnet-base-v2"),
        (Query(use="multilingual", languages=("sw",)), "LaBSE"),
        (Query(use="bitext"), "LaBSE"),
        (Query(use="sparse-search"), "naver/splade-cocondenser-ensembledistil"),
        (Query(use="rerank"), "cross-encoder/ms-marco-MiniLM-L6-v2"),
        (Query(use="rerank", max_dim=100), "cross-encoder/ms-marco-MiniLM-L6-v2"),  # it has no vectors
        (Query(task="embedding"), "all-MiniLM-L6-v2"),
        (Query(task="sparse"), "naver/splade-cocondenser-ensembledistil"),
        (Query(task="rerank"), "cross-encoder/ms-marco-MiniLM-L6-v2"),
        (Query(languages=("en",)), "all-MiniLM-L6-v2"),
        (Query(languages=("pt_BR",)), "distiluse-base-multilingual-cased-v1"),
        (Query(languages=("NB",)), "distiluse-base-multilingual-cased-v2"),
        (Query(languages=("no",)), "distiluse-base-multilingual-cased-v2"),
        (Query(prefer="best"), "all-mpnet-base-v2"),
        (Query(max_dim=384), "all-MiniLM-L6-v2"),
    ],
    ids=str,
)
def test_the_leaves_of_the_chart(query: Query, expected: str) -> None:
    assert names(recommend(GUIDE, query))[0] == expected


def test_answers_are_filtered_and_ranked() -> None:
    assert names(recommend(GUIDE, Query(use="general", prefer="best", max_dim=500))) == [
        "all-MiniLM-L12-v2",
        "all-MiniLM-L6-v2",
        "paraphrase-MiniLM-L3-v2",
    ]
    # No figure that could be compared: last, whichever way it is ranked.
    for prefer in ("best", "fast"):
        assert names(recommend(GUIDE, Query(use="search", prefer=prefer)))[-1] == "BAAI/bge-large-en"
    answer = recommend(GUIDE, Query(languages=("fi",)))
    assert {*names(answer), *(model.name for model in answer.others)} == {
        "distiluse-base-multilingual-cased-v2",
        "paraphrase-multilingual-mpnet-base-v2",
        "LaBSE",
    }
    answer = recommend(GUIDE, Query(task="embedding"))
    assert len(answer.models) + len(answer.others) == 19
    assert recommend(GUIDE, Query(use="general")).others == ()


@pytest.mark.parametrize(
    ("query", "expected", "note"),
    [
        (
            Query(use="search", languages=("de",), prefer="fast"),
            "distiluse-base-multilingual-cased-v1",
            "No model of the guide for search knows de; multilingual models do.",
        ),
        (
            Query(use="search", languages=("de",)),
            "paraphrase-multilingual-mpnet-base-v2",
            "No model of the guide for search knows de; multilingual models do.",
        ),
        (
            Query(use="web-search", languages=("de", "sw")),
            "LaBSE",
            "No model of the guide for web-search knows de and sw; multilingual models do.",
        ),
        (Query(use="search", languages=("en",)), "multi-qa-mpnet-base-cos-v1", ""),
        (Query(use="paraphrase", languages=("de",)), "paraphrase-multilingual-mpnet-base-v2", ""),
    ],
    ids=str,
)
def test_multilingual_models_stand_in_where_a_language_is_not_known(query: Query, expected: str, note: str) -> None:
    answer = recommend(GUIDE, query)
    assert (answer.models[0].name, answer.note) == (expected, note)
    assert answer.use.name == ("multilingual" if note else query.use)
    shown = table(GUIDE, answer).splitlines()
    assert shown[0].startswith(note or "Recommended for")


def test_what_stands_in_is_compared_by_the_purpose_that_was_asked_for() -> None:
    """By how well they search, where that was published; better paraphrases do not make better search."""
    answer = recommend(GUIDE, Query(use="search", languages=("de",)))
    assert answer.use.quality == "search"
    figures = [model.figures["search"] for model in answer.models]
    assert [figure and figure.value for figure in figures] == [41.68, 29.87, 27.35, None]
    assert answer.why == "the most accurate of the 4 that fit (41.68)"
    shown = table(GUIDE, answer)
    assert "quality: mean over 6 semantic search data sets" in shown
    assert re.search(r"paraphrase-multilingual-mpnet-base-v2 .* 41\.68 \[1\]", shown)
    # Turned around, the other measure would put the other model first.
    worse = dataclasses.replace(
        GUIDE.model("distiluse-base-multilingual-cased-v1"),
        figures={"sentences": Figure(99.0, "sbert-dense"), "search": Figure(1.0, "sbert-dense"), "sentences_gpu": None},
    )
    models = tuple(worse if model.name == worse.name else model for model in GUIDE.models)
    changed = recommend(dataclasses.replace(GUIDE, models=models), Query(use="search", languages=("de",)))
    assert [model.name for model in changed.models[:2]] == [
        "paraphrase-multilingual-mpnet-base-v2",
        "distiluse-base-multilingual-cased-v2",
    ]
    # Nobody has published how well they find web pages.
    assert recommend(GUIDE, Query(use="web-search", languages=("de",))).use.quality == "sentences"


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (Query(use="general"), "five times as fast as all-mpnet-base-v2, for 1.5 points less"),
        (Query(use="general", prefer="best"), "the most accurate of the 4 that fit (69.57)"),
        (Query(use="general", prefer="fast"), "the fastest of the 4 that fit (19,000 sentences/s on a V100 GPU)"),
        (Query(use="scientific", prefer="best"), "made from citations between papers"),
        (
            Query(use="multilingual", languages=("fi",)),
            "the first in the guide's order that fits: more than 50 languages",
        ),
        (
            Query(use="search", max_dim=400),
            "the only one of the guide that fits: questions and answers, small and fast",
        ),
    ],
    ids=str,
)
def test_recommendations_say_why(query: Query, why: str) -> None:
    assert recommend(GUIDE, query).why == why


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "cooking"], "--for 'cooking' is not known. Allowed: general, search, web-search, paraphrase"),
        (["--task", "generation"], "--task 'generation' is not known. Allowed: embedding, sparse, rerank."),
        (["--language", "tlh"], "--language 'tlh' is not known. Allowed: af, am, ar,"),
        (["--max-dim", "0"], "--max-dim must be a positive number of dimensions, got 0."),
        (
            ["--for", "rerank", "--language", "de"],
            "No model of the guide fits --for rerank --language de. Leave one out: without --for rerank "
            "there is distiluse-base-multilingual-cased-v1, distiluse-base-multilingual-cased-v2, "
            "paraphrase-multilingual-mpnet-base-v2, LaBSE; without --language de there is cross-encoder/ms-marco-",
        ),
        (
            ["--for", "search", "--language", "haw", "--max-dim", "500"],
            "Leave one out: without --language haw there is",
        ),
        (["--for", "search", "--language", "de", "--max-dim", "3"], "Ask for less at a time."),
        (["--for", "bitext", "--max-dim", "3", "--task", "sparse"], "Ask for less at a time."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_answered(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    error = fails(capsys, *arguments)
    assert error.startswith("stonnx models: ")
    assert message in error


def test_two_preferences_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["models", "--fast", "--best"])
    assert "not allowed with argument" in capsys.readouterr().err


# --- output ----------------------------------------------------------------------------------------------------------


def test_the_table_has_every_model_and_the_source_of_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    rows = [line for line in lines if line.partition(" ")[0] in NAMES]
    assert sorted(row.split()[0] for row in rows) == sorted(NAMES)
    assert lines[0].split() == ["model", "task", "dim", "tokens", "score", "norm", "langs", "quality", "speed"]
    row = next(row for row in rows if row.startswith("msmarco-bert"))
    assert row.split() == [
        "msmarco-bert-base-dot-v5",
        "embedding",
        "768",
        "512",
        "dot",
        "no",
        "en",
        "38.08",
        "[1]",
        "170",
        "[2]",
    ]
    row = next(row for row in rows if row.startswith("BAAI"))
    assert row.split() == ["BAAI/bge-large-en", "embedding", "1024", "512", "cosine", "yes", "en", "63.98a", "[3]", "-"]
    assert "a: not comparable, mean over 56 MTEB data sets" in lines
    assert any(line.startswith("[2] MSMARCO Models (version 5): https://www.sbert.net/") for line in lines)
    numbers = {cell for row in rows for cell in row.split() if cell.startswith("[")}
    assert numbers == {line.split()[0] for line in lines if line.startswith("[")}
    for use in GUIDE.uses:
        assert any(line.startswith(f"{use.name}: {use.summary}") for line in lines)


def test_an_answer_says_first_what_to_take_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "--for", "search", "--fast", "--max-dim", "800", "--language", "en").splitlines()
    assert lines[:3] == [
        "Recommended for search: multi-qa-MiniLM-L6-cos-v1, the fastest of the 3 that fit "
        "(750 queries/s on an 8-core CPU).",
        "Export it with: stonnx export multi-qa-MiniLM-L6-cos-v1",
        "",
    ]
    ranked = [line.split()[:2] for line in lines if line[:1].isdigit()]
    assert ranked == [
        ["1.", "multi-qa-MiniLM-L6-cos-v1"],
        ["2.", "multi-qa-distilbert-cos-v1"],
        ["3.", "multi-qa-mpnet-base-cos-v1"],
    ]


def every_query() -> list[Query]:
    return [
        Query(task, use, languages, prefer, max_dim)
        for task in (None, "embedding")
        for use in (None, *(use.name for use in GUIDE.uses))
        for languages in LANGUAGES
        for prefer in (None, "fast", "best")
        for max_dim in (None, 384, 512)
    ]


def test_every_answer_fits_120_columns_and_is_about_what_was_asked() -> None:
    answered = 0
    assert max(map(len, table(GUIDE).splitlines())) <= 120
    for query in every_query():
        try:
            answer = recommend(GUIDE, query)
        except InvalidArgumentError:
            continue
        answered += 1
        text = table(GUIDE, answer)
        assert max(map(len, text.splitlines())) <= 120, text
        start = f"{answer.note}\n" if answer.note else ""
        assert text.startswith(f"{start}Recommended for {answer.use.name}: {answer.models[0].name}, ")
        for model in (*answer.models, *answer.others):
            assert all(GUIDE.languages[model.languages].include(code) for code in query.languages)
            assert query.max_dim is None or model.dimension is None or model.dimension <= query.max_dim
    assert answered > 200


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "--json"))
    assert found["recommendation"] is None
    assert [row["name"] for row in found["models"]] == NAMES
    row = next(row for row in found["models"] if row["name"] == "LaBSE")
    assert (row["dimension"], row["normalized"], row["languages"]["label"]) == (768, True, "109")
    assert row["uses"] == ["bitext", "multilingual"]
    assert row["figures"] == {"sentences": None, "search": None, "sentences_gpu": None}
    row = next(row for row in found["models"] if row["name"] == "all-MiniLM-L6-v2")
    assert row["figures"]["sentences"] == {"value": 68.06, "source": "sbert-dense"}
    assert found["sources"]["sbert-dense"]["url"].endswith("/sentence_transformer/pretrained_models.html")
    found = json.loads(run(capsys, "--json", "--for", "rerank"))
    assert found["recommendation"] == {
        "name": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "use": "rerank",
        "why": "reads query and passage together",
        "note": "",
        "command": "stonnx export cross-encoder/ms-marco-MiniLM-L6-v2",
    }
    assert len(found["models"]) == 1


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
        ("models.0.dimension", ..., r"guide\.models\[0\] must have the fields name, task, dimension"),
        ("models.0.extra", 1, "must have the fields .* found .*extra"),
        ("models.0.dimension", "768", r"guide\.models\[0\]\.dimension must be <class 'int'>, found '768'"),
        ("models.0.dimension", True, "must be <class 'int'>"),
        ("models.0.normalized", 1, "must be <class 'bool'>"),
        ("models.0.task", "chat", "The task of all-mpnet-base-v2 is 'chat'. Known are: embedding, sparse"),
        ("models.0.summary", "", "must be <class 'str'>"),
        ("models.0.max_seq_length", None, "must be <class 'int'>, found None"),
        ("models.0.name", "all-MiniLM-L6-v2", "has a name twice"),
        ("models.0.languages", "klingon", "The languages of all-mpnet-base-v2 is 'klingon'. Known are: english"),
        ("models.0.figures.sentences.value", "69", "must be <class 'float'>"),
        ("models.0.figures.sentences.value", -1, "must be <class 'float'>"),
        ("models.0.figures.sentences.source", "hearsay", "The source of sentences of all-mpnet-base-v2 is 'hearsay'"),
        ("models.0.figures.sentences", 69.57, "Figure.*, found 69.57"),
        (
            "models.0.figures.sentences",
            ...,
            "A measure of general, a key of all-mpnet-base-v2's figures, is 'sentences'",
        ),
        ("models.0.figures.taste", None, "A figure of all-mpnet-base-v2 is 'taste'"),
        ("uses.0.models", ["gpt"], "A model of general is 'gpt'"),
        ("uses.0.models", [], "uses.*models must be"),
        ("uses.0.quality", "sentences_gpu", "general has 'sentences_gpu' as quality"),
        ("uses.6.models", ["LaBSE"], "allenai-specter is for no use"),
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
