"""The guide as it is shipped, and `stonnx models` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stonnx import cli
from stonnx._guide import guide
from stonnx._guide.guide import Answer, read_guide

GUIDE = read_guide()
DATA = json.loads(Path(guide.__file__).with_name("guide.json").read_text(encoding="utf-8"))
NAMES = [model.name for model in GUIDE.models]


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
