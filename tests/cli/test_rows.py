"""Commands and a model that gives a vector for each token."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_bundles import rows_bundle

from stonnx import cli


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return rows_bundle(tmp_path / "rows")


def test_info(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(bundle)]) == 0
    output = capsys.readouterr().out
    assert "similarity      maxsim (not set by the model)" in output
    assert "query         up to 12 tokens" in output
    assert "document      up to 10 tokens" in output
    assert "expansion     queries are filled up to 12 tokens, which no other token attends to" in output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["encode", "BUNDLE", "texts.txt", "-o", "x.npy"], "gives a vector for each token, and a file here holds one"),
        (["triton", "BUNDLE", "-o", "repository"], "does not write models for the task 'multivector'"),
        (["search", "BUNDLE", "texts.txt", "bread"], "multivector"),
        (["rank", "BUNDLE", "bread", "texts.txt"], "multivector"),
    ],
)
def test_what_cannot_be_done_is_refused(
    command: list[str],
    said: str,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("bread rises\n", encoding="utf-8")
    code = cli.main([str(bundle) if part == "BUNDLE" else part for part in command])
    assert code != 0
    assert said in capsys.readouterr().err
