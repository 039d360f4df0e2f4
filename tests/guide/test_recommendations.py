"""A recommendation for every leaf of the chart, and what cannot be answered."""

from __future__ import annotations

import dataclasses
import re

import pytest
from guides import GUIDE, fails, names

from stonnx import cli
from stonnx._guide.guide import Figure, Query, recommend
from stonnx._guide.table import table


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
