"""Which inputs are images and which are texts, without pillow and without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonnx import InvalidInputError
from stonnx._images.inputs import parse_mixed

PIXELS = np.zeros((4, 5, 3), dtype=np.uint8)


def test_texts_stay_texts(tmp_path: Path) -> None:
    texts = ["a dog", "missing.png", "see https://example.org/a.png", "https://[[wrong", "https://example.org/page"]
    found = parse_mixed(texts)
    assert (found.texts, found.images, found.single) == (texts, [], False)


def test_a_file_with_the_ending_of_an_image_is_one(tmp_path: Path) -> None:
    file = tmp_path / "Photo.JPG"
    file.write_bytes(b"anything")
    other = tmp_path / "notes.txt"
    other.write_bytes(b"anything")
    found = parse_mixed([str(file), str(other), "https://example.org/a.png?x=1", "data:image/png;base64,AAAA", file])
    assert found.texts == [str(other)]
    assert found.image_places == [0, 2, 3, 4]


def test_mixtures_keep_their_places() -> None:
    found = parse_mixed(["a", PIXELS, {"text": "b"}, {"image": "c.gif"}, ("d", "e")], prompt="x: ")
    assert found.texts == ["x: a", "x: b", ("x: d", "e")]
    assert (found.text_places, found.image_places) == ([0, 2, 4], [1, 3])
    assert found.images[1] == "c.gif"
    assert len(found) == 5


@pytest.mark.parametrize("single", [PIXELS, {"image": PIXELS}, Path("a.png")], ids=["array", "dict", "path"])
def test_one_image_is_no_batch(single: Any) -> None:
    found = parse_mixed(single)
    assert found.single
    assert found.texts == []
    assert len(found.images) == 1


def test_empty() -> None:
    assert len(parse_mixed([])) == 0
    assert not parse_mixed([]).single


@pytest.mark.parametrize("wrong", [3, None, {"audio": "a.wav"}, b"bytes"])
def test_other_inputs_are_named_with_their_place(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^Input 2 is not a text") as raised:
        parse_mixed([PIXELS, "a", wrong])
    assert raised.value.index == 2


def test_a_text_and_an_image_are_two_inputs() -> None:
    with pytest.raises(InvalidInputError, match=r"Input 1 has a text and an image.*two inputs"):
        parse_mixed(["a", {"image": PIXELS, "text": "a"}])


def test_the_path_of_an_image_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text, as in the original, and a warning, because it is hardly meant."""
    missing = str(tmp_path / "harbour.jpg")
    assert parse_mixed(["a", missing]).texts == ["a", missing]
    assert caplog.messages == [f"Input 1 is read as a text: there is no file {missing!r}."]
    caplog.clear()
    assert parse_mixed("my holiday photo.jpg").texts == ["my holiday photo.jpg"]
    assert not caplog.messages
