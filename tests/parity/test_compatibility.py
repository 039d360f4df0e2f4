"""docs/compatibility.md lists every public name and parameter that differs from sentence-transformers."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import sentence_transformers.util
import torch
from sentence_transformers.util import quantization

import stonnx
import stonnx.util
from stonnx._hub import names as names_module
from stonnx._model.compatibility import _REMEDIES

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
CLASSES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder", "MultiVectorEncoder")


# What callers use of torch.nn.Module, beside what the original's classes override.
OF_MODULE = ("cpu", "cuda", "eval", "train", "half", "float", "bfloat16", "parameters", "state_dict", "forward")


def public_names(kind: type) -> list[str]:
    # What PyTorch's own classes bring along is not an API of sentence-transformers, unless that overrides it. Looked up
    # late: transformers adds some.
    inherited = set(dir(torch.nn.Sequential))
    own = {name for base in kind.__mro__ if base.__module__.startswith("sentence_transformers") for name in vars(base)}
    names = {name for name in dir(kind) if name not in inherited or name in own} | {*OF_MODULE}
    return sorted(name for name in names if not name.startswith("_"))


# What a caller can do with a model besides naming a member.
OPERATORS = {
    "__len__": "len(model)",
    "__getitem__": "model[0]",
    "__iter__": "iteration over a model",
    "__call__": "model(features)",
    "_first_module": "model._first_module()",
    "_last_module": "model._last_module()",
}
# Private members that published code uses all the same.
PRIVATE = ("_first_module", "_last_module", "_target_device")


def differences(ours: Any, original: Any) -> Iterator[str]:
    """Parameters that differ in name, position, kind or default."""
    mine = [p for p in inspect.signature(ours).parameters.values() if p.name != "self"]
    theirs = [p for p in inspect.signature(original).parameters.values() if p.name != "self"]
    by_name = {p.name: p for p in theirs}
    for parameter in mine:
        other = by_name.pop(parameter.name, None)
        if other is None or (other.default, other.kind) != (parameter.default, parameter.kind):
            yield parameter.name
    yield from by_name
    common = [p.name for p in mine if p.name in {q.name for q in theirs}]
    if common != [p.name for p in theirs if p.name in common]:
        yield "order of the parameters"


def listed(entry: str) -> bool:
    return f"`{entry}`" in PAGE


@pytest.mark.parametrize("name", CLASSES)
def test_every_missing_name_is_listed(name: str) -> None:
    ours, original = getattr(stonnx, name), getattr(sentence_transformers, name)
    missing = sorted(set(public_names(original)) - set(dir(ours)))
    unlisted = [entry for entry in missing if not listed(f"{name}.{entry}") and not listed(f"*.{entry}")]
    assert unlisted == []


@pytest.fixture(scope="module")
def pairs(minilm: Any, minilm_original: Any) -> tuple[Any, Any]:
    return minilm, minilm_original


def test_every_missing_attribute_of_an_instance_is_listed(pairs: tuple[Any, Any]) -> None:
    """What the constructor sets is not in the class: model_card_data is one of them."""
    ours, original = pairs
    inherited = {*dir(torch.nn.Sequential()), *torch.nn.Sequential().__dict__}
    missing = {name for name in {*dir(original), *vars(original)} - inherited if not name.startswith("_")} - {
        *dir(ours)
    }
    assert "model_card_data" in missing
    unlisted = [
        name for name in sorted(missing) if not any(map(listed, (f"*.{name}", f"SentenceTransformer.{name}", name)))
    ]
    assert unlisted == []


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_what_reaches_for_modules_is_refused_and_listed(name: str, pairs: tuple[Any, Any]) -> None:
    ours, original = pairs
    assert callable(getattr(type(original), name))
    arguments = {"__getitem__": (0,), "__call__": ({},)}.get(name, ())
    with pytest.raises(stonnx.UnsupportedError, match=r"reaches for the PyTorch modules.*model\.tokenizer") as caught:
        getattr(ours, name)(*arguments)
    assert isinstance(caught.value, TypeError), "which Python raises for what has no such operator"
    assert OPERATORS[name] in PAGE


def test_a_model_is_true(pairs: tuple[Any, Any]) -> None:
    assert all(map(bool, pairs))


def test_no_operator_is_forgotten(pairs: tuple[Any, Any]) -> None:
    """Methods with underscores that callers invoke by syntax, and that the original has and we do not."""
    ours, original = pairs
    by_syntax = [
        name for name in dir(type(original)) if name.startswith("__") and callable(getattr(type(original), name))
    ]
    kept_by_torch = {"__add__", "__iadd__", "__imul__", "__mul__", "__rmul__", "__setitem__", "__delitem__"}
    assert {*by_syntax} - {*dir(type(ours))} - kept_by_torch <= {"__annotations__", "__class_getitem__", "__del__"}
    for name in PRIVATE:
        assert hasattr(original, name)
        assert f"model.{name}" in PAGE
    assert ours._target_device == str(original._target_device)


@pytest.mark.parametrize("name", CLASSES)
def test_members_that_are_not_there_say_what_to_do(name: str, minilm: Any) -> None:
    kind = type(name, (type(minilm),), {})
    model = kind.__new__(kind)
    missing = set(public_names(getattr(sentence_transformers, name))) - set(dir(getattr(stonnx, name)))
    for member in sorted(missing):
        with pytest.raises(AttributeError, match=rf"has no attribute '{member}'\. .*docs/compatibility\.md") as caught:
            getattr(model, member)
        assert caught.value.name == member
        assert not hasattr(model, member)
    with pytest.raises(AttributeError, match="stonnx export CHECKPOINT"):
        model.fit  # noqa: B018
    with pytest.raises(AttributeError, match="copy or upload"):
        model.save_pretrained  # noqa: B018


def test_no_remedy_is_for_a_member_that_is_there() -> None:
    for member in _REMEDIES:
        assert not all(hasattr(getattr(stonnx, name), member) for name in CLASSES), member


def test_names_of_the_package_are_loaded_when_they_are_asked_for() -> None:
    """Who only encodes does not pay for the rest. What is not there is an AttributeError that names it."""
    code = (
        "import stonnx, sys; assert 'stonnx.util' not in sys.modules; assert 'util' in dir(stonnx); "
        "stonnx.util.cos_sim; from stonnx import SimilarityFunction, quantize_embeddings; "
        "assert SimilarityFunction is stonnx.util.SimilarityFunction; assert {*stonnx.__all__} <= {*dir(stonnx)}; "
        "assert not hasattr(stonnx, 'InputExample')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert sorted(stonnx.__all__, key=str.lower) == sorted({*stonnx.__all__}, key=str.lower)


def test_every_missing_name_of_the_package_is_listed() -> None:
    missing = sorted({*sentence_transformers.__all__} - {*dir(stonnx)})
    assert [name for name in missing if not listed(name)] == []


def test_every_missing_function_is_listed() -> None:
    theirs = {name for name in sentence_transformers.util.__all__ if not name.startswith("_")}
    missing = sorted(theirs - {*stonnx.util.__all__})
    assert [name for name in missing if not listed(f"util.{name}")] == []


def differing_parameters() -> Iterator[tuple[str, str]]:
    """Each parameter that differs, as the page may list it: for the class, or for all classes."""
    for name in CLASSES:
        ours, original = getattr(stonnx, name), getattr(sentence_transformers, name)
        for method in ["__init__", *public_names(original)]:
            pair = [inspect.getattr_static(kind, method, None) for kind in (ours, original)]
            if None not in pair and all(callable(getattr(item, "__func__", item)) for item in pair):
                for parameter in differences(getattr(ours, method), getattr(original, method)):
                    yield f"{name}.{method}({parameter})", f"*.{method}({parameter})"
    for name in stonnx.util.__all__:
        original = getattr(sentence_transformers.util, name, None) or getattr(quantization, name)
        if inspect.isfunction(original):
            for parameter in differences(getattr(stonnx.util, name), original):
                yield (f"util.{name}({parameter})",) * 2


def test_every_other_place_of_a_function_is_listed() -> None:
    elsewhere = [name for name in stonnx.util.__all__ if not hasattr(sentence_transformers.util, name)]
    assert [name for name in elsewhere if not listed(f"util.{name}")] == []


def test_every_different_parameter_is_listed() -> None:
    assert [entries[0] for entries in differing_parameters() if not any(map(listed, entries))] == []


def test_every_listed_parameter_is_different() -> None:
    different = {entry for entries in differing_parameters() for entry in entries}
    owners = "|".join(("\\*", "util", *CLASSES))
    assert set(re.findall(rf"`((?:{owners})\.\w+\(\w+\))`", PAGE)) - different == set()


@pytest.mark.parametrize("name", CLASSES)
def test_new_parameters_are_named_in_calls(name: str) -> None:
    """So that calls by position, written for the original, mean the same."""
    ours, original = (inspect.signature(getattr(m, name).__init__).parameters for m in (stonnx, sentence_transformers))
    new = [parameter for key, parameter in ours.items() if key not in original]
    assert new
    assert {parameter.kind for parameter in new} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", CLASSES)
def test_bare_names_belong_to_the_same_organization(name: str) -> None:
    ours, original = getattr(stonnx, name), getattr(sentence_transformers, name)
    assert ours.default_huggingface_organization == original.default_huggingface_organization


def test_the_same_bare_names_belong_to_no_organization() -> None:
    names = sentence_transformers.util.ORIGINAL_TRANSFORMER_MODELS
    assert set(names) == names_module.WITHOUT_ORGANIZATION
    for name in (*names, names[0].upper()):
        assert names_module.full_name(name, "sparse") == name


def test_nothing_is_listed_that_is_there() -> None:
    for entry in re.findall(r"`util\.(\w+)`", PAGE.partition("## Not there")[2].partition("## Elsewhere")[0]):
        assert not hasattr(stonnx.util, entry), entry
    for entry in re.findall(r"`\*\.(\w+)`", PAGE):
        assert not any(hasattr(getattr(stonnx, name), entry) for name in CLASSES), entry
