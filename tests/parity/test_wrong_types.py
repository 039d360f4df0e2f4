"""Arguments of wrong types: a result as for the original, or an error that names the argument. Never a bare one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_bundles import bundles_of_classes

import stonnx
import stonnx.util
from stonnx import InvalidArgumentError, InvalidInputError, StonnxError

TEXTS, VECTORS = ["the city", "bread rises", "river flows"], np.eye(3, 8, dtype=np.float32) + 0.5
WRONG = (
    *(1.5, float("nan"), -1, 0, 2, 10**30, True, np.float32(2), np.int64(2), np.array([1.5]), np.array("x")),
    *("x", b"x", ("a",), [], [1], {}, {"a": 1}, {1, 2}, None, object(), b""),
)
CLASSES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder")
# These start processes, or the whole call is one argument's business.
SKIPPED = {"start_multi_process_pool", "stop_multi_process_pool", "encode_multi_process"}
# Arguments that a call needs, by name; then those of single functions.
NEEDED = {
    "inputs": TEXTS, "texts": TEXTS, "sentences": TEXTS, "query": "bread", "documents": TEXTS, "device": "cpu",
    "modality": "text", "truncate_dim": 4, "max_active_dims": 2, "precision": "uint8", "ranges": None,
    **dict.fromkeys(("embeddings", "embeddings1", "embeddings2", "embeddings_2", "a", "b", "x", "y"), VECTORS),
    **dict.fromkeys(("query_embeddings", "corpus_embeddings"), VECTORS), "embeddings_1": VECTORS[0],
    "model": SimpleNamespace(encode=lambda texts, **options: VECTORS),
}  # fmt: skip
NEEDED_BY = {"predict": {"inputs": [("bread", text) for text in TEXTS]}, "cuda": {"device": "cpu"}}
# What messages call an argument whose name says nothing.
OTHER_NAMES = {**dict.fromkeys("abxy", "embeddings_queries"), "max_length": "max_seq_length"}
OPTIONS_BY = {
    "semantic_search_faiss": {"corpus_embeddings": VECTORS, "rescore": False},
    "semantic_search_usearch": {"corpus_embeddings": VECTORS, "rescore": False},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bundles_of_classes(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def models(bundles: dict[str, Path]) -> dict[str, Any]:
    return {name: getattr(stonnx, name)(directory) for name, directory in bundles.items()}


def methods() -> Iterator[str]:
    """Every public method of the classes, and every function of stonnx.util."""
    for name in CLASSES:
        for method in dir(getattr(stonnx, name)):
            item = inspect.getattr_static(getattr(stonnx, name), method)
            if not method.startswith("_") and method not in SKIPPED and callable(getattr(item, "__func__", item)):
                yield f"{name}.{method}"
    yield from (f"util.{name}" for name in stonnx.util.__all__ if inspect.isfunction(getattr(stonnx.util, name)))


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in inspect.signature(function).parameters.items() if p.kind not in variable}


def use(result: Any) -> None:
    if isinstance(result, Iterator):
        list(result)
    if hasattr(result, "__enter__"):
        with result:
            pass


def check(name: str, value: Any, call: Callable[[], Any]) -> None:
    """A result, or an error of stonnx, or a TypeError, whose message has a part of the argument's name."""
    try:
        use(call())
    except (StonnxError, TypeError) as error:
        said = str(error)
    else:
        return
    parts = [part.rstrip("s0123456789").lower() for part in OTHER_NAMES.get(name, name).split("_")]
    assert re.match(rf"{name}\b", said) or any(part in said.lower() for part in parts), (
        f"{name}={value!r:.40}: nothing is named in: {said}"
    )
    assert not re.search(r"unhashable|slice indices|not supported between|object is not", said), said


@pytest.mark.parametrize("function", list(methods()))
def test_wrong_types_have_errors_that_name_the_argument(function: str, models: dict[str, Any]) -> None:
    owner, _, name = function.partition(".")
    called = getattr(stonnx.util if owner == "util" else models[owner], name)
    needed = NEEDED | NEEDED_BY.get(name, {})
    parameters = parameters_of(called)
    given = {key: needed[key] for key, parameter in parameters.items() if parameter.default is parameter.empty}
    given |= OPTIONS_BY.get(name, {}) | ({"device": "cpu"} if name == "cuda" else {})
    use(called(**given))
    for parameter in parameters:
        for value in WRONG:
            if parameter == "device" and isinstance(value, list) and value:
                continue  # one process for each
            check(parameter, value, lambda p=parameter, v=value: called(**{**given, p: v}))


@pytest.mark.filterwarnings("ignore:The `use_auth_token` argument:FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_wrong_types_for_constructors(name: str, bundles: dict[str, Path]) -> None:
    kind, directory = getattr(stonnx, name), bundles[name]
    for parameter in list(parameters_of(kind.__init__))[1:]:
        for value in WRONG if parameter != "threads" else WRONG[:3]:
            given = {"model_name_or_path": directory, "local_files_only": True} | {parameter: value}
            check(parameter, value, lambda given=given: kind(**given))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "attribute",
    [
        "truncate_dim",
        "max_seq_length",
        "max_length",
        "similarity_fn_name",
        "too_long",
        "max_active_dims",
        "activation_fn",
    ],
)
def test_wrong_types_for_attributes(name: str, attribute: str, models: dict[str, Any]) -> None:
    model = models[name]
    if not hasattr(model, attribute):
        pytest.skip(f"{name} has no {attribute}")
    before = getattr(model, attribute)
    inputs = [("bread", "rises")] if name == "CrossEncoder" else ["bread"]
    for value in WRONG:

        def assign(value: Any = value) -> None:
            setattr(model, attribute, value)
            (model.predict if name == "CrossEncoder" else model.encode)(inputs)

        try:
            check(attribute, value, assign)
        finally:
            setattr(model, attribute, before)


@pytest.mark.parametrize("wrong", [[], {}, 1.5, np.array(["query"])])
def test_names_that_cannot_be_looked_up(wrong: Any, models: dict[str, Any]) -> None:
    model = models["SentenceTransformer"]
    with pytest.raises(InvalidArgumentError, match="prompt_name must be a str or None"):
        model.encode(TEXTS, prompt_name=wrong)
    with pytest.raises(InvalidArgumentError, match=r"task (must be|.*is not known)"):
        model.encode(TEXTS, task=wrong)
    with pytest.raises(InvalidArgumentError, match="default_prompt_name must be a str or None"):
        stonnx.SentenceTransformer(model.info.directory, default_prompt_name=wrong)


@pytest.mark.parametrize("wrong", [1.5, "3", True, [4]])
def test_numbers_that_are_not_counts(wrong: Any, models: dict[str, Any]) -> None:
    model = models["SentenceTransformer"]
    for call in (
        lambda: model.encode(TEXTS, truncate_dim=wrong),
        lambda: setattr(model, "truncate_dim", wrong),
        lambda: stonnx.SentenceTransformer(model.info.directory, truncate_dim=wrong),
        lambda: model.truncate_embeddings(wrong).__enter__(),
        lambda: stonnx.util.truncate_embeddings(VECTORS, wrong),
    ):
        with pytest.raises(InvalidArgumentError, match=r"truncate_dim must be an? (positive )?integer or None, got"):
            call()
    assert model.encode(TEXTS).shape == (3, 8)


@pytest.mark.parametrize("wrong", ["bread", b"bread", {"bread": 1}, 3, None])
def test_preprocess_takes_many_texts(wrong: Any, models: dict[str, Any]) -> None:
    """The original tokenizes the characters of a str, each as a text."""
    for model in models.values():
        for call in (model.preprocess, model.tokenize, lambda texts, m=model: m.preprocess(texts, task="query")):
            with pytest.raises(InvalidInputError, match=r"inputs (is a single str|must be a list of texts)"):
                call(wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_communities_of_what_is_no_number(bad: float, kind: str) -> None:
    rows: Any = VECTORS.copy()
    rows[1, 4] = bad
    if kind == "sparse":
        rows = pytest.importorskip("scipy.sparse").csr_array(rows)
    with pytest.raises(InvalidArgumentError, match=r"^Row 1 of embeddings holds NaN or infinity"):
        stonnx.util.community_detection(rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantizing_what_is_no_number(bad: float, precision: Any) -> None:
    rows = np.tile(VECTORS, (50, 1))
    rows[77, 3] = bad
    with pytest.raises(InvalidArgumentError, match=r"^Row 77 of embeddings holds NaN or infinity"):
        stonnx.quantize_embeddings(rows, precision)
    with pytest.raises(InvalidArgumentError, match=r"^Row 0 of embeddings holds NaN or infinity"):
        stonnx.quantize_embeddings(rows[77], precision, ranges=[[0.0] * 8, [1.0] * 8])
    assert stonnx.quantize_embeddings(rows, "float32").shape == rows.shape
    if precision in ("int8", "uint8"):
        good = np.tile(VECTORS, (50, 1))
        with pytest.raises(InvalidArgumentError, match=r"^Row 1 of ranges holds NaN or infinity"):
            stonnx.quantize_embeddings(good, precision, ranges=[[0.0] * 8, [1.0] * 7 + [bad]])
        with pytest.raises(InvalidArgumentError, match=r"^Row 77 of calibration_embeddings holds NaN or infinity"):
            stonnx.quantize_embeddings(good, precision, calibration_embeddings=rows)
