"""The command line as somebody meets it who types what seems right: every command of the page, and every wrong turn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, sparse_graph, toy_table, write_bundle

from stonnx import CrossEncoder, SentenceTransformer, SparseEncoder, cli
from stonnx.util import semantic_search

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
PASSAGES = ["The tides follow the moon.", "Bread rises because of yeast.", "Sourdough needs no bought yeast."]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            status = int(str(error.code))
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def place(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the page has in it; the reranker is a toy."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "all-MiniLM-L6-v2-fp32").symlink_to(minilm_bundle)
    pairs = {"default": pair_graph(toy_table(1, 3), np.ones(1, np.float32), "Sigmoid")}
    reranker = {"task": "rerank", "num_labels": 1, "labels": ("relevant",), "activation": "sigmoid"}
    write_bundle(directory / "ms-marco-MiniLM-L6-v2-fp32", pairs, **reranker)
    dense_bundle(directory / "dense")
    write_bundle(directory / "sparse", {"default": sparse_graph(toy_table(8, 3))}, task="sparse", embedding_dimension=8)
    for name, content in re.findall(r"^\$ cat (\S+)\n(.*?)(?=^\$|^```)", PAGE, re.M | re.S):
        (directory / name).write_text(content)
    return directory


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(place)
    return place


def test_the_examples_of_the_page_run(place: Path) -> None:
    """All of them in one shell, from top to bottom. Where the page shows the output, it is that."""
    blocks = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.S))
    examples = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", blocks, re.M)
    assert len(examples) > 12
    for command, shown in examples:
        typed = command.replace("stonnx ", f"{Path(sys.executable).with_name('stonnx')} ", 1)
        result = subprocess.run(
            typed, shell=True, capture_output=True, text=True, encoding="utf-8", cwd=place, timeout=120
        )
        assert (command, result.returncode) == (command, 0), result.stderr
        if shown:
            assert result.stdout == shown, command


def test_the_page_has_every_command(run: Run) -> None:
    _, out, _ = run("--help")
    commands = re.findall(r"^    (\w+) ", out, re.M)
    assert {"export", "search", "rank", "doctor"} <= {*commands}
    assert [name for name in commands if not re.search(rf"^(?:\$ )?stonnx {name} ", PAGE + " ", re.M)] == ["doctor"] * (
        "stonnx doctor\n" not in PAGE
    )


def test_without_a_command_it_lists_them(run: Run) -> None:
    _, listed, _ = run("--help")
    assert run() == (2, "", listed)


def hits_of(run: Run, *arguments: object) -> list[dict[str, Any]]:
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (0, "")
    hits: list[dict[str, Any]] = json.loads(out)
    return hits


def test_search_finds_what_the_library_finds(run: Run) -> None:
    model = SentenceTransformer("dense")
    query = model.encode_query(["the bread"])
    (expected,) = semantic_search(query, model.encode_document(PASSAGES), top_k=2, score_function=model.similarity)
    hits = hits_of(run, "search", "dense", "the bread", "passages.txt", "-k", 2)
    assert [hit["corpus_id"] for hit in hits] == [hit["corpus_id"] for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in expected])
    assert [hit["text"] for hit in hits] == [PASSAGES[hit["corpus_id"]] for hit in expected]


def test_search_with_a_sparse_encoder(run: Run) -> None:
    model = SparseEncoder("sparse")
    query = model.encode_query(["the bread"])
    (expected,) = semantic_search(query, model.encode_document(PASSAGES), top_k=3, score_function=model.similarity)
    hits = hits_of(run, "search", "sparse", "the bread", "passages.txt")
    assert [(hit["corpus_id"], pytest.approx(hit["score"])) for hit in hits] == [
        (hit["corpus_id"], hit["score"]) for hit in expected
    ]


def test_search_among_stored_vectors(run: Run, tmp_path: Path) -> None:
    assert run("encode", "dense", "passages.txt", "-o", tmp_path / "a.npy", "--document", "--quiet")[0] == 0
    arguments = ("search", "dense", "the bread", "passages.txt")
    assert hits_of(run, *arguments, "--embeddings", tmp_path / "a.npy") == hits_of(run, *arguments)


@pytest.mark.parametrize("command", ["search", "rank"])
def test_the_file_before_the_query(run: Run, command: str) -> None:
    model = {"search": "dense", "rank": "ms-marco-MiniLM-L6-v2-fp32"}[command]
    status, _, err = run(command, model, "passages.txt", "the bread")
    assert (status, err) == (
        1,
        f"stonnx {command}: 'the bread' is not a file. The query comes before the file: "
        f"stonnx {command} {model} 'the bread' passages.txt\n",
    )


def test_stored_vectors_in_place_of_the_file(run: Run, tmp_path: Path) -> None:
    status, _, err = run("search", "dense", "the bread", tmp_path / "a.npy")
    assert status == 1
    assert err.endswith(f"stonnx search dense 'the bread' FILE --embeddings {tmp_path / 'a.npy'}\n")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 8), np.float32), "2 vectors, and the file 3 passages"),
        (np.zeros((3, 7), np.float32), "vectors of 7 dimensions, and dense gives 8"),
        (np.zeros((3, 1), np.uint8), "holds uint8 of the shape"),
        (np.zeros(3, np.float32), "holds float32 of the shape"),
        (b"\x93NUMPY?", "not a .npy file of vectors"),
        (None, "No such file"),
    ],
)
def test_stored_vectors_that_do_not_fit(run: Run, vectors: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    if isinstance(vectors, bytes):
        path.write_bytes(vectors)
    elif vectors is not None:
        np.save(path, vectors)
    status, out, err = run("search", "dense", "the bread", "passages.txt", "--embeddings", path)
    assert (status, out) == (1, "")
    assert message in err


def test_rank_orders_as_the_library(run: Run) -> None:
    expected = CrossEncoder("ms-marco-MiniLM-L6-v2-fp32").rank("the bread", PASSAGES, top_k=2)
    hits = hits_of(run, "rank", "ms-marco-MiniLM-L6-v2-fp32", "the bread", "passages.txt", "--top-k", 2)
    assert [{"corpus_id": hit["corpus_id"], "score": hit["score"]} for hit in hits] == expected


def test_records_come_back_whole(run: Run) -> None:
    for command, model in (("search", "dense"), ("rank", "ms-marco-MiniLM-L6-v2-fp32")):
        hits = hits_of(run, command, model, "the bread", "passages.csv", "--column", "body")
        assert sorted(hit["record"]["id"] for hit in hits) == ["1", "2"]
        assert all(hit["record"]["body"] == hit["text"] for hit in hits)


def test_the_table(run: Run) -> None:
    status, out, _ = run("search", "dense", "the bread", "passages.txt", "-k", 2)
    assert status == 0
    head, *lines = out.splitlines()
    assert head.split() == ["score", "row", "text"]
    hits = hits_of(run, "search", "dense", "the bread", "passages.txt", "-k", 2)
    assert [line.split(maxsplit=3) for line in lines] == [
        [str(place), f"{hit['score']:.4f}", str(hit["corpus_id"] + 1), hit["text"]]
        for place, hit in enumerate(hits, start=1)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("rank", "dense", "q", "passages.txt"),
            "for the task 'embedding'. rank needs a reranker.*stonnx search dense q passages.txt$",
        ),
        (
            ("search", "ms-marco-MiniLM-L6-v2-fp32", "why so?", "passages.txt"),
            r"for the task 'rerank'. .*stonnx rank ms-marco-MiniLM-L6-v2-fp32 'why so\?' passages.txt$",
        ),
        (("search", "dense", "q", "nothing.txt"), "Cannot read nothing.txt: No such file"),
        (("search", "dense", "q", "empty.txt"), "empty.txt has no passages"),
        (("rank", "ms-marco-MiniLM-L6-v2-fp32", "q", "passages.csv"), 'no column "text".* "id", "body"'),
        (
            ("search", "dense", "q", "passages.json"),
            "stonnx does not read passages.json as it is. Write one record a line: jq",
        ),
        (("encode", "dense", "passages.feather", "-o", "x.npy"), r"pandas.read_feather\(FILE\).to_json"),
        (("encode", "sparse", "passages.txt", "-o", "x.npy"), "fits into npz, parquet, jsonl"),
        (("encode", "ms-marco-MiniLM-L6-v2-fp32", "passages.txt", "-o", "x.npy"), 'a query in "query" and a text in'),
        (
            ("encode", "nothere", "passages.txt", "-o", "x.npy"),
            "'nothere' is not a directory here. As the name of a model",
        ),
        (("encode", "dense", "passages.txt", "-o", "-", "--output-format", "npy"), "-o FILE.npy"),
        (("encode", "dense", "passages.txt", "-o", "."), "is a directory. For a file in it, end its name with /"),
        (
            ("info", "nothere"),
            "nothere does not exist. stonnx info takes the directory of a bundle. If .*stonnx export nothere -o",
        ),
        (("info", "./nothere"), r"\./nothere does not exist\. .*Make one with: stonnx export MODEL -o DIRECTORY$"),
        (("info", "empty"), "empty is not a bundle: it has no stonnx.json. Make one with: stonnx export MODEL"),
        (("info", "passages.txt"), "and info takes the directory of a bundle. Make one with: stonnx export MODEL"),
        (("export", "checkpoint", "--dtype", "int9"), "dtype must be one of 'fp32', 'fp16', 'bf16', 'int8', got"),
        (("info", "dense/stonnx.json"), "is a file of a bundle, and .*: stonnx info dense$"),
        (("info", "."), "is not a bundle: it has no stonnx.json. It contains bundles: all-MiniLM-L6-v2-fp32, dense, "),
        (("info", "checkpoint"), "It is a checkpoint. Make a bundle of it with: stonnx export checkpoint -o DIRECTORY"),
        (
            ("build", "checkpoint"),
            "It is a checkpoint. Make a bundle of it with: stonnx export checkpoint -o DIRECTORY",
        ),
        (("export", "dense"), "dense is a bundle already, of toy in fp32. Look at it with: stonnx info dense"),
    ],
)
def test_wrong_turns_say_where_to_go(run: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    (here / "empty.txt").touch()
    (here / "empty").mkdir(exist_ok=True)
    (here / "checkpoint").mkdir(exist_ok=True)
    (here / "checkpoint" / "modules.json").write_text("[]")
    before = sorted(here.iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert re.search(message, " ".join(err.split()), re.M), err
    assert "%" not in err, "there is no bar before an error that needs no work"
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "dense", "passages.txt", "-o", "x.npy", "--truncate-dim"),
        ("encode", "dense", "passages.txt", "-o", "x.npy", "--batch-size"),
        ("encode", "dense", "passages.txt", "-o", "x.npy", "--threads"),
        ("search", "dense", "q", "passages.txt", "--top-k"),
        ("rank", "dense", "q", "passages.txt", "--top-k"),
        ("build", "dense", "--memory-limit"),
    ],
)
def test_counts_are_positive(run: Run, arguments: tuple[str, ...], number: str) -> None:
    status, _, err = run(*arguments, number)
    assert status == 2
    assert f"{arguments[-1]}: '{number}' is not a positive integer" in err


def test_encode_to_standard_output(run: Run, here: Path, tmp_path: Path) -> None:
    status, out, err = run("encode", "dense", "passages.csv", "--field", "body", "-o", "-", "--quiet")
    assert (status, err) == (0, "")
    assert run("encode", "dense", "passages.csv", "--field", "body", "-o", tmp_path / "a.jsonl", "--quiet")[0] == 0
    assert out == (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert not (here / "-").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_overwriting_cannot_replace_is_not_offered_to_it(run: Run, overwrite: bool, tmp_path: Path) -> None:
    """A file, or a directory of something else: the advice would be refused."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for target in ("file", "full"):
        arguments = ("export", "nothere/model", "-o", tmp_path / target, *(["--overwrite"] * overwrite))
        status, _, err = run(*arguments)
        assert status == 1
        assert "is not a bundle, so --overwrite does not replace it" in err
    status, _, err = run("encode", "dense", "passages.txt", "-o", tmp_path / "full", "--output-format", "npy")
    assert (status, "--overwrite" in err) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "command", "nearest"),
    [
        (("export", "x", "--dtpe", "int8"), "export", "--dtype"),
        (("serve", "--prot", "x"), "serve", "--port"),
        (("encode", "dense", "passages.txt", "-o", "x.npy", "--over"), "encode", "--overwrite"),
        (("search", "dense", "x", "passages.txt", "--topk=2"), "search", "--top-k"),
        (("encod", "x"), "[-h]", "encode"),
        (("export", "x", "--task", "rerankr"), "export", "rerank"),
    ],
)
def test_a_mistyped_word(run: Run, here: Path, arguments: tuple[str, ...], command: str, nearest: str) -> None:
    """It is never taken for the beginning of another option, and gets the usage of its command."""
    before = sorted(here.iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"usage: stonnx {command} ")
    assert f"Did you mean {nearest}?" in err
    assert sorted(here.iterdir()) == before


def test_a_pattern_that_matches_one_file(run: Run, here: Path) -> None:
    status, _, err = run("encode", "dense", "passages.txt", "-o", "vectors/")
    assert status == 0, err
    assert len([*(here / "vectors").glob("passages*.npy")]) == 1
    status, _, err = run("encode", "dense", "vectors", "-o", "again/")
    assert (status, "Name the files in it: stonnx encode dense vectors/* -o again/" in err) == (1, True)


@pytest.mark.parametrize("command", ["info", "doctor", "export"])
def test_a_bundle_of_nearly_that_name(run: Run, here: Path, command: str) -> None:
    (here / "minilm-fp32").mkdir(exist_ok=True)
    (here / "minilm-fp32" / "stonnx.json").write_text("{}")
    status, out, err = run(command, "minilm-fp23")
    assert status == 1
    assert "Did you mean minilm-fp32?" in out + err


def test_the_task_of_an_export(run: Run) -> None:
    status, _, err = run("export", "nothere/model", "--task", "rank")
    assert status == 2
    for task in ("embedding", "sparse", "rerank"):
        assert task in err


def test_every_command_has_an_example_or_a_description(run: Run) -> None:
    for command in ("encode", "search", "rank"):
        _, out, _ = run(command, "--help")
        assert re.search(r"examples?: stonnx", out)
