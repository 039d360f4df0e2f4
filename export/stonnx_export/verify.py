"""A bundle against the original: the same ids, the same vectors, alone and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import stonnx
from stonnx._bundle import Fidelity
from stonnx._errors import FidelityError

# Vectors are compared up to this length: the original takes minutes for longer ones on a laptop. Ids are compared at
# the model's true limit in any case.
_LONGEST = 1024

_TEXTS = (
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "UPPER CASE, MiXeD cAsE and lower case",
    "naïve café – “quoted” — ½ … №1",
    "Ein kleines Mädchen spielt im Garten, während die Großmutter liest.",
    "Сегодня утром в парке было тихо, и только дети кормили уток.",
    "今日は天気がいいので、公園まで歩いて行きました。",
    "我们昨天晚上在河边看到了很多星星。",
    "أعيش في مدينة صغيرة قرب البحر.",
    "आज शाम को हम बाज़ार जाएँगे।",
    "오늘은 도서관에서 책을 읽었습니다.",
    "emoji 👩‍👩‍👧 🇩🇪 and e\u0301 combining",
    "https://example.org/a?b=c&d=%20 user@example.org #tag 12,345.67 C++ a_b-c/d",
    "tabs\tand\nnew\r\nlines\u00a0and\u2003spaces",
    "line with NUL \0 and control \x07 characters",
    "antidisestablishmentarianism" * 8,
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name;",
    "A man is playing a large flute on the stage while a crowd of people listens to the music in the evening.",
)


def verification_texts(max_seq_length: int, special_tokens: int) -> list[str]:
    """Built-in texts: empty, one token, many scripts, and lengths up to, at and beyond the limit."""
    limit = min(max_seq_length, _LONGEST) - special_tokens
    counts = sorted({1, 2, 3, 5, 8, 16, 31, 32, 33, 64, 100, 128, 200, limit - 1, limit, limit + 1, limit + 40})
    return [*_TEXTS, *(" ".join(["a"] * count) for count in counts if 0 < count <= limit + 40)]


def verify_embeddings(
    bundle: stonnx.SentenceTransformer, original: Any, tolerance: Mapping[str, float], compared_with: str
) -> Fidelity:
    """Compare a bundle with the ``sentence_transformers.SentenceTransformer`` that it was made from.

    Raises:
        FidelityError: Ids differ, or a vector is outside the tolerance.
    """
    limit = bundle.max_seq_length
    texts = verification_texts(limit, bundle.tokenizer.num_special_tokens_to_add(False))
    _compare_ids(bundle, original, [*texts, " ".join(["a"] * (limit + 8))])
    shortened = limit > _LONGEST
    if shortened:
        original.max_seq_length = bundle.max_seq_length = _LONGEST
    try:
        expected = _original_vectors(original, texts)
        batched = np.asarray(bundle.encode(texts), dtype=np.float32)
        alone = np.stack([bundle.encode(text) for text in texts])
    finally:
        if shortened:
            original.max_seq_length = bundle.max_seq_length = limit
    fidelity = measure(expected, batched, alone, tolerance, compared_with)
    check(fidelity)
    return fidelity


def measure(
    expected: npt.NDArray[np.float32],
    batched: npt.NDArray[np.float32],
    alone: npt.NDArray[np.float32],
    tolerance: Mapping[str, float],
    compared_with: str,
) -> Fidelity:
    """The fidelity report of vectors [texts, dim]. Differences are relative to the largest value if that is over 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    cosines = np.concatenate([_cosines(expected, batched), _cosines(expected, alone)])
    return Fidelity(
        compared_with=compared_with,
        texts=len(expected),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        max_abs_difference=float(max(np.abs(expected - batched).max(), np.abs(expected - alone).max()) / scale),
        batch_invariance=float(np.abs(batched - alone).max() / scale),
        tolerance=tolerance,
    )


def check(fidelity: Fidelity) -> None:
    """Raise FidelityError where a report is outside its tolerance."""
    limits = fidelity.tolerance
    problems = []
    if not fidelity.cosine_min >= limits["cosine_min"]:  # a NaN is a problem too
        problems.append(f"lowest cosine {fidelity.cosine_min:.7f}, allowed is at least {limits['cosine_min']}")
    for name in ("max_abs_difference", "batch_invariance"):
        value = getattr(fidelity, name)
        if not value <= limits[name]:
            problems.append(f"{name} {value:.3g}, allowed is at most {limits[name]:.3g}")
    if problems:
        raise FidelityError(
            f"The bundle differs from {fidelity.compared_with}: {'; '.join(problems)}. Nothing was written. "
            "This is a bug of the exporter for this architecture: please report it with the name of the model."
        )


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    # Two zero vectors are equal; a zero vector beside another has the cosine 0.
    both_zero = (norms == 0) & ~wide.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, (wide * other).sum(axis=1) / np.maximum(norms, 1e-30))
    return cosines


def _original_vectors(original: Any, texts: list[str]) -> npt.NDArray[np.float32]:
    # One at a time: no padding, so nothing that the original itself does to padded texts can be mistaken for ours.
    with torch.inference_mode():
        vectors = [original.encode(text, show_progress_bar=False) for text in texts]
    return np.asarray(np.stack(vectors), dtype=np.float32)


def _compare_ids(bundle: stonnx.SentenceTransformer, original: Any, texts: list[str]) -> None:
    for text in texts:
        expected = original.preprocess([text]) if hasattr(original, "preprocess") else original.tokenize([text])
        expected_ids = expected["input_ids"][0].tolist()
        ids = bundle.tokenizer.encode(text).ids
        if ids != expected_ids:
            raise FidelityError(
                f"The tokenizer differs from the original's for {text[:60]!r}: {len(ids)} ids instead of "
                f"{len(expected_ids)}, starting {ids[:8]} instead of {expected_ids[:8]}. Nothing was written."
            )
