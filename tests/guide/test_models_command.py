"""`stonnx models`: a table that fits a terminal, an answer that says what to type, and JSON."""

from __future__ import annotations

import json

import pytest
from guides import GUIDE, NAMES, run

from stonnx._errors import InvalidArgumentError
from stonnx._guide.guide import Query, recommend
from stonnx._guide.table import table

LANGUAGES = [(), ("en",), ("de",), ("fi",), ("haw",), ("de", "fr")]


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
