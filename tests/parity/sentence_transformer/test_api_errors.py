"""SentenceTransformer has the API of the original: the same errors, or better ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from same_results import TEXTS

import stonnx
from stonnx import InvalidArgumentError, InvalidInputError, StonnxError, UnsupportedError

Call = Callable[[Any], Any]

# Arguments that both refuse: stonnx with a subclass of the builtin that the original raises.
SAME_ERRORS: dict[str, Call] = {
    "precision": lambda model: model.encode(TEXTS, precision="int4"),
    "precision ''": lambda model: model.encode(TEXTS, precision=""),
    "precision, no inputs": lambda model: model.encode([], precision="int4"),
    "precision of everything": lambda model: model.encode(TEXTS, output_value=None, precision="int8"),
    "batch_size 0": lambda model: model.encode(TEXTS, batch_size=0),
    "batch_size -1": lambda model: model.encode_query([], batch_size=-1),
    "prompt_name": lambda model: model.encode(TEXTS, prompt_name="unknown"),
    "prompt_name, no inputs": lambda model: model.encode_document([], prompt_name="unknown"),
    "prompt": lambda model: model.encode(TEXTS, prompt=5),
    "keyword": lambda model: model.encode(TEXTS, unknown=1),
    "keyword, no inputs": lambda model: model.encode([], unknown=None),
    "keyword of a query": lambda model: model.encode_query(TEXTS, unknown=1),
    "None": lambda model: model.encode(None),
    "None in a list": lambda model: model.encode(["text", None]),
    "int": lambda model: model.encode([1, 2]),
    "bytes": lambda model: model.encode(b"text"),
    "three texts": lambda model: model.encode([("a", "b", "c")]),
    "a pair with None": lambda model: model.encode([("a", None)]),
    "a dict of more": lambda model: model.encode({"text": "a", "title": "b"}),
    "a message": lambda model: model.encode([{"role": "user", "content": "hello"}]),
    "an array of floats": lambda model: model.encode(np.zeros(3)),
    "an array of no dimension": lambda model: model.encode(np.array("text")),
    "an array of three columns": lambda model: model.encode(np.array([["a", "b", "c"]])),
    "a tensor": lambda model: model.encode([torch.zeros(3)]),
    "a generator": lambda model: model.encode(text for text in TEXTS),
    "lone surrogate": lambda model: model.encode(["text", "\ud800"]),
}


def builtin_of(error: BaseException) -> type[BaseException]:
    return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


@pytest.mark.parametrize("name", SAME_ERRORS)
def test_errors(minilm: Any, minilm_original: Any, name: str) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        SAME_ERRORS[name](minilm_original)
    with pytest.raises(StonnxError) as actual:
        SAME_ERRORS[name](minilm)
    assert isinstance(actual.value, builtin_of(expected.value))
    # An input that is not a text is a TypeError by the language's own rules, and a ValueError in the original.
    if isinstance(actual.value, InvalidInputError):
        assert isinstance(actual.value, TypeError)
        assert isinstance(actual.value, ValueError)


# Where the original fails by accident, with a builtin that says nothing about the argument, stonnx says what is wrong
# with a ValueError: (call, what the original raises, what stonnx raises).
OTHER_ERRORS: dict[str, tuple[Call, type[Exception], type[StonnxError]]] = {
    "output_value": (lambda model: model.encode(TEXTS, output_value="unknown"), KeyError, InvalidArgumentError),
    "batch_size 1.5": (lambda model: model.encode(TEXTS, batch_size=1.5), TypeError, InvalidArgumentError),
    "batch_size '32'": (lambda model: model.encode(TEXTS, batch_size="32"), TypeError, InvalidArgumentError),
    "batch_size None": (lambda model: model.encode(TEXTS, batch_size=None), TypeError, InvalidArgumentError),
    "precision []": (lambda model: model.encode(TEXTS, precision=["int8"]), TypeError, InvalidArgumentError),
    "device": (lambda model: model.encode(TEXTS, device="unknown"), RuntimeError, UnsupportedError),
    "device ''": (lambda model: model.encode(TEXTS, device=""), RuntimeError, UnsupportedError),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_other_errors(minilm: Any, minilm_original: Any, name: str) -> None:
    call, theirs, ours = OTHER_ERRORS[name]
    with pytest.raises(theirs):
        call(minilm_original)
    with pytest.raises(ours) as error:
        call(minilm)
    assert isinstance(error.value, ValueError)


# Errors of the language itself, or of the numpy slice.
@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.encode(),
        lambda model: model.encode(TEXTS, sentences=TEXTS),
        lambda model: model.encode_query(TEXTS, task="document"),
        lambda model: model.encode(TEXTS, prompt_name=["query"]),
        lambda model: model.encode(TEXTS, truncate_dim=1.5),
        lambda model: model.encode(TEXTS, truncate_dim="8"),
    ],
    ids=["no arguments", "both names", "task twice", "list as a name", "float as a width", "str as a width"],
)
def test_type_errors(minilm: Any, minilm_original: Any, call: Call) -> None:
    for model in (minilm_original, minilm):
        with pytest.raises(TypeError):
            call(model)


@pytest.mark.parametrize(
    "options",
    [
        {"default_prompt_name": "unknown"},
        {"default_prompt_name": ""},
        {"prompts": ["query"]},
        {"similarity_fn_name": "maxsim"},
        {"similarity_fn_name": ""},
        {"backend": "unknown"},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_constructor_errors(minilm_bundle: Path, minilm_checkpoint: Path, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        sentence_transformers.SentenceTransformer(str(minilm_checkpoint), device="cpu", **options)
    with pytest.raises(builtin_of(expected.value)):
        stonnx.SentenceTransformer(minilm_bundle, **options)


def test_one_token_argument_is_enough(minilm_bundle: Path, minilm_checkpoint: Path) -> None:
    for kind, path in (
        (sentence_transformers.SentenceTransformer, str(minilm_checkpoint)),
        (stonnx.SentenceTransformer, minilm_bundle),
    ):
        with pytest.warns(FutureWarning, match="use_auth_token"), pytest.raises(ValueError, match="use_auth_token"):
            kind(path, token="a", use_auth_token="b")


@pytest.mark.parametrize(
    "name",
    ["model_kwargs", "processor_kwargs", "tokenizer_kwargs", "config_kwargs", "model_card_data"],
)
def test_options_that_change_the_network_are_refused(minilm_bundle: Path, name: str) -> None:
    # A bundle is built already: ignoring the option would give other vectors than the original does.
    expected = "processor_kwargs" if name == "tokenizer_kwargs" else name
    with pytest.raises(UnsupportedError, match=f"^{expected} changes how"):
        stonnx.SentenceTransformer(minilm_bundle, **{name: {"dtype": "float16"}})


def test_modules_besides_a_name_are_ignored(minilm_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: Any = {"modules": [torch.nn.Identity()]}
    model = stonnx.SentenceTransformer(minilm_bundle, **options)
    assert model.encode(TEXTS[:1]).shape == (1, 384)
    (told,) = [record.message for record in caplog.records if record.name == "stonnx"]
    assert told.startswith("Both `model_name_or_path` and `modules` were provided. ")
    assert told.endswith("so the `modules` argument is ignored.")


def test_two_tokens(minilm_bundle: Path, minilm_checkpoint: Path) -> None:
    options: Any = {"token": "a", "use_auth_token": "b"}
    models = [(sentence_transformers.SentenceTransformer, minilm_checkpoint)]
    models += [(stonnx.SentenceTransformer, minilm_bundle)]
    for kind, path in models:
        with (
            pytest.warns(FutureWarning, match="The `use_auth_token` argument is deprecated"),
            pytest.raises(ValueError, match=r"Both `token` and `use_auth_token` are specified\. Please"),
        ):
            kind(str(path), **options)


def test_trust_remote_code_has_no_effect(minilm_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    stonnx.SentenceTransformer(minilm_bundle, trust_remote_code=True)
    assert "stonnx never runs code" in caplog.text


class TestDevice:
    """A model does not move; saying where it is already is not an error, since scripts do so."""

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=["str", "torch"])
    def test_where_it_is(self, minilm: Any, device: Any) -> None:
        assert minilm.to(device) is minilm
        assert minilm.to(device).eval().cpu() is minilm

    @pytest.mark.parametrize(
        ("move", "named"),
        [
            (lambda model: model.to("cuda"), "'cuda'"),
            (lambda model: model.to(0), "'cuda:0'"),
            (lambda model: model.to(torch.device("cuda:1")), "'cuda:1'"),
            (lambda model: model.to(torch.float16), "'torch.float16'"),
            (lambda model: model.cuda(), "'cuda'"),
            (lambda model: model.cuda(1), "'cuda:1'"),
        ],
    )
    def test_elsewhere(self, minilm: Any, move: Any, named: str) -> None:
        with pytest.raises(stonnx.UnsupportedError, match=rf"cannot move to {named}.*device=\.\.\."):
            move(minilm)
