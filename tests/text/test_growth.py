"""Tokenizers that make texts far longer are refused; real ones are not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import tokenizers
from toy_bundles import toy_tokenizer
from zoo.table import TokenizerKind
from zoo.tokenizers import build_tokenizer

from stonnx import BundleFormatError
from stonnx._bundle.manifest import TokenizerSpec
from stonnx._text.growth import check_growth
from stonnx._text.tokenizer import Tokenizer


def charsmap(*texts: str) -> str:
    """A map of SentencePiece with an empty table."""
    return base64.b64encode(bytes(4) + b"\0".join(text.encode() for text in texts)).decode()


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [*parts]}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


MAP = {"type": "Precompiled", "precompiled_charsmap": charsmap("b" * 200)}
DOUBLE = replace({"String": "a"}, "aa")


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        pytest.param(sequence(*[DOUBLE] * 30), None, id="doubles"),
        pytest.param(sequence(*[sequence(DOUBLE, DOUBLE)] * 15), None, id="doubles in sequences"),
        pytest.param(replace({"String": "a"}, "a" * 20_000), None, id="one long text"),
        pytest.param(sequence(*[replace({"Regex": "a|"}, "aaa")] * 15), None, id="expressions"),
        pytest.param(
            sequence(*[{"type": "Precompiled", "precompiled_charsmap": charsmap("b" * 200)}] * 3), None, id="maps"
        ),
        pytest.param(sequence(*[{"type": "ByteLevel"}] * 20), None, id="bytes"),
        pytest.param(
            None,
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
                ]
                * 20,
            },
            id="bytes of splitters",
        ),
    ],
)
def test_refused(tmp_path: Path, normalizer: Any, pre_tokenizer: Any) -> None:
    data = json.loads(toy_tokenizer().to_str())
    data |= {"normalizer": normalizer} if normalizer else {"pre_tokenizer": pre_tokenizer}
    spec = TokenizerSpec("tokenizer.json", 32, 64, 0, 0, "right", True, ())
    with pytest.raises(
        BundleFormatError, match=r"can make a text .* times as long, up to 10,000 is allowed|package can read"
    ):
        Tokenizer(lambda: json.dumps(data).encode(), spec, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", get_args(TokenizerKind))
def test_tokenizers_of_real_families(kind: TokenizerKind) -> None:
    check_growth(build_tokenizer(kind))


def test_albert() -> None:
    """More of them one after the other than any other family has."""
    data = json.loads(toy_tokenizer().to_str())
    data["normalizer"] = sequence(
        replace({"String": "``"}, '"'),
        replace({"String": "''"}, '"'),
        {"type": "NFKD"},
        {"type": "StripAccents"},
        {"type": "Lowercase"},
        replace({"Regex": " {2,}"}, " "),
    )
    check_growth(tokenizers.Tokenizer.from_str(json.dumps(data)))
