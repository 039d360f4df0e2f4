"""docs/compatibility.md lists every public name and parameter that differs from sentence-transformers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import sentence_transformers.util
import torch

import stonnx
import stonnx.util

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
CLASSES = ("SentenceTransformer", "SparseEncoder", "CrossEncoder")


def public_names(kind: type) -> list[str]:
    # What PyTorch's own classes bring along is no API of sentence-transformers. Looked up late: transformers adds some.
    inherited = set(dir(torch.nn.Sequential))
    return [name for name in dir(kind) if not name.startswith("_") and name not in inherited]


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


@pytest.mark.parametrize("name", CLASSES)
def test_every_different_signature_is_listed(name: str) -> None:
    ours, original = getattr(stonnx, name), getattr(sentence_transformers, name)
    unlisted = []
    for method in ["__init__", *public_names(original)]:
        pair = [inspect.getattr_static(kind, method, None) for kind in (ours, original)]
        if not all(callable(getattr(item, "__func__", item)) for item in pair) or None in pair:
            continue
        for parameter in differences(getattr(ours, method), getattr(original, method)):
            entries = [f"{owner}.{method}({parameter})" for owner in (name, "*")]
            unlisted += [] if any(map(listed, entries)) else entries[:1]
    assert unlisted == []


def test_every_different_function_of_util_is_listed() -> None:
    unlisted = []
    for name in stonnx.util.__all__:
        original = getattr(sentence_transformers.util, name, None)
        if original is None:
            unlisted += [] if listed(f"util.{name}") else [name]
        elif inspect.isfunction(original):
            entries = [f"util.{name}({p})" for p in differences(getattr(stonnx.util, name), original)]
            unlisted += [entry for entry in entries if not listed(entry)]
    assert unlisted == []


def test_nothing_is_listed_that_is_the_same() -> None:
    """A name under "Not there" that is there is out of date."""
    for entry in re.findall(r"`\*\.(\w+)`", PAGE):
        assert not any(hasattr(getattr(stonnx, name), entry) for name in CLASSES), entry
