"""How close all-MiniLM-L6-v2 with native kernels is to float32, by kind of text; the exporter's tests have stock form.

Bounds are a little below what was measured on AVX-512 and AVX2. None of these texts is among those of calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import stonnx
from stonnx import DeviceOptions
from stonnx._device import kernels as native
from stonnx_export import export
from stonnx_export.texts import TEXTS, sentences

KINDS: Mapping[str, tuple[str, ...]] = {
    "sentences": tuple(sentences()),
    "questions": (
        "Which planet has the most moons?",
        "how do I unblock a kitchen sink without chemicals",
        "When did people start to drink coffee in Europe?",
        "What does a notary charge for a signature?",
        "can you freeze cooked rice",
        "Why is my bicycle chain squeaking after the rain?",
    ),
    "German, Russian, Chinese": (
        "Der Zug nach Hamburg hält heute leider nicht in Göttingen.",
        "Zwei Bäcker streiten seit Jahren um das beste Brot der Stadt.",
        "Вчера вечером на площади играл духовой оркестр.",
        "Эта книга стоит дороже, чем я думал.",
        "小猫在窗台上睡了一个下午。",
        "这家餐厅的面条又便宜又好吃。",
    ),
    "code": (
        "for (size_t i = 0; i < rows.size(); ++i) { sum += rows[i] * weights[i]; }",
        "def area(radius: float) -> float:\n    return math.pi * radius ** 2",
        "git rebase --interactive HEAD~3 && git push --force-with-lease",
        '{"city": "Lyon", "population": 522250, "twinned": ["Milan", "Leipzig"]}',
    ),
    "passages": (
        "Lighthouses were once lit with wood, later with coal and whale oil. In 1822 Fresnel's lens made one lamp "
        "visible at a distance of thirty kilometres. Today most of them run without a keeper, and satellites have "
        "taken over the navigation of large ships, but sailors of small boats still look for the beam at night.",
        "Honey bees tell each other where flowers are by dancing. The angle of the dance to the vertical is the angle "
        "between the flowers and the sun, and its length says how far they are. The hive decides together: the more "
        "bees dance for a place, the more of them fly there, until a better one is found.",
        "The parcel arrived on Tuesday with a broken corner. I wrote to the shop the same evening, with two pictures, "
        "and got an answer within the hour: a new lamp would be sent at once, and I could keep the old one for parts. "
        "It has been on my desk for three weeks now and gives a warm, even light.",
    ),
    "lists": (
        "eggs, flour, butter, 200 g sugar, two lemons, baking powder",
        "Mon 9:30 dentist; Tue 14:00 call with the bank; Wed off; Thu 8:15 train; Fri review",
        "red green blue yellow cyan magenta black white",
    ),
    "words": ("harbour", "Wednesday", "photosynthesis", "quickly", "Zurich"),
    "odd": tuple(text for text in TEXTS if text.strip()),
}


Compared = Callable[[stonnx.SentenceTransformer], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def cosines(minilm_bundle: Path) -> Compared:
    """``cosines(model)``: of a model's vectors and those of float32 without kernels, [texts], by the kind of text."""
    exact = stonnx.SentenceTransformer(minilm_bundle, device="cpu")
    assert not exact.info.kernels
    expected = {kind: exact.encode(list(texts)) for kind, texts in KINDS.items()}

    def cosines(model: stonnx.SentenceTransformer) -> dict[str, np.ndarray]:
        return {kind: (model.encode(list(texts)) * expected[kind]).sum(axis=1) for kind, texts in KINDS.items()}

    return cosines


@pytest.fixture
def chosen(library: native.Library, monkeypatch: pytest.MonkeyPatch) -> native.Library:
    """The library of which a model takes the variant at hand."""
    monkeypatch.setattr(native, "find", lambda operators=1: library)
    return library


@pytest.fixture(scope="module")
def bfloat16_bundle(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(minilm_checkpoint, tmp_path_factory.mktemp("minilm") / "bf16", dtype="bf16")


def test_int8(minilm_int8_bundle: Path, chosen: native.Library, cosines: Compared) -> None:
    model = stonnx.SentenceTransformer(minilm_int8_bundle, device="cpu")
    assert model.info.kernels == chosen.variant
    found = cosines(model)
    # The stock form has 0.99935 in all; single words have the lowest mean, 0.99936.
    assert np.concatenate([*found.values()]).mean() >= 0.9995
    assert min(values.mean() for values in found.values()) >= 0.9992
    assert min(values.min() for values in found.values()) >= 0.998


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_bfloat16(stored: str, chosen: native.Library, cosines: Compared, request: pytest.FixtureRequest) -> None:
    if not chosen.bfloat16:
        pytest.skip(f"{chosen.variant} does not multiply bfloat16")
    bundle = request.getfixturevalue("bfloat16_bundle" if stored == "bfloat16" else "minilm_bundle")
    options = DeviceOptions(bfloat16=stored == "float32")
    model = stonnx.SentenceTransformer(bundle, device="cpu", device_options=options)
    assert model.info.kernels == chosen.variant
    found = cosines(model)
    assert min(values.mean() for values in found.values()) >= 0.99997
    assert min(values.min() for values in found.values()) >= 0.9999
