"""A bundle against the original: the same ids, the same vectors, alone and in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stonnx._bundle import Fidelity, Task
from stonnx._engine import Engine, LoadedRoute
from stonnx._errors import FidelityError
from stonnx._tokenize import Text
from stonnx_export.original import Original

_OUTPUT_OF_TASK: Mapping[Task, str] = {
    "embedding": "sentence_embedding",
    "sparse": "sparse_embedding",
    "rerank": "logits",
}

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


def verify(engine: Engine, original: Original, tolerance: Mapping[str, float]) -> Fidelity:
    """Compare a bundle with the original that it was made from.

    Raises:
        FidelityError: Ids differ, or a vector or logit is outside the tolerance.
    """
    manifest = engine.manifest
    reports = []
    for name in manifest.routes:
        route = engine.route(name)
        limit = route.tokenizer.max_seq_length
        special = (
            route.tokenizer.backend.num_special_tokens_to_add(False) if route.spec.tokenizer.add_special_tokens else 0
        )
        texts: list[Text] = list(verification_texts(limit or _LONGEST, special))
        if manifest.task == "rerank":
            # Each text beside one of another length, so that both sides of a pair get to be the longer one.
            texts = list(zip(texts, texts[7:] + texts[:7], strict=True))  # type: ignore[arg-type]
        _compare_ids(route, original, name, texts, limit)
        shortened = limit is not None and limit > _LONGEST
        if shortened:
            route.tokenizer.max_seq_length = _LONGEST
            original.set_max_length(name, _LONGEST)
        expected = original.outputs(name, texts)
        batched, alone = _outputs(route, manifest.task, texts, 32), _outputs(route, manifest.task, texts, 1)
        if shortened and limit is not None:
            route.tokenizer.max_seq_length = limit
            original.set_max_length(name, limit)
        if manifest.task == "rerank":
            # A cosine says nothing about a single number: take those of each label's logits over all pairs.
            expected, batched, alone = expected.T, batched.T, alone.T
        report = measure(expected, batched, alone, tolerance, original.name)
        reports.append(dataclasses.replace(report, texts=len(texts)))
    fidelity = _worst(reports)
    check(fidelity)
    return fidelity


def _outputs(route: LoadedRoute, task: Task, texts: list[Text], batch_size: int) -> npt.NDArray[np.float32]:
    """The bundle's vectors or logits, [texts, features]: alone for a batch size of 1."""
    result: dict[int, npt.NDArray[np.float32]] = {}
    pieces = [texts] if batch_size > 1 else [[text] for text in texts]
    for start, piece in enumerate(pieces):
        for batch in route.stream(piece, [_OUTPUT_OF_TASK[task]], batch_size=batch_size):
            result |= {start + int(index): row for index, row in zip(batch.indices, batch.outputs[0], strict=True)}
    return np.stack([result[index] for index in range(len(texts))])


def _worst(reports: list[Fidelity]) -> Fidelity:
    """One report for all routes: the worst of each figure. numpy's minimum, unlike Python's, is NaN where one is."""
    return dataclasses.replace(
        reports[0],
        texts=sum(report.texts for report in reports),
        cosine_mean=float(np.min([report.cosine_mean for report in reports])),
        cosine_min=float(np.min([report.cosine_min for report in reports])),
        max_abs_difference=float(np.max([report.max_abs_difference for report in reports])),
        batch_invariance=float(np.max([report.batch_invariance for report in reports])),
    )


def measure(
    expected: npt.NDArray[np.float32],
    batched: npt.NDArray[np.float32],
    alone: npt.NDArray[np.float32],
    tolerance: Mapping[str, float],
    compared_with: str,
) -> Fidelity:
    """The fidelity report of vectors [texts, dim]. Differences are relative to the largest value if that is over 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):  # infinities become NaN, which check() refuses
        cosines = np.concatenate([_cosines(expected, batched), _cosines(expected, alone)])
        differences = np.abs([expected - batched, expected - alone, batched - alone]).max(axis=(1, 2)) / scale
    return Fidelity(
        compared_with=compared_with,
        texts=len(expected),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        max_abs_difference=float(differences[:2].max()),
        batch_invariance=float(differences[2]),
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


def _compare_ids(route: LoadedRoute, original: Original, name: str, texts: list[Text], limit: int | None) -> None:
    # The last one is beyond the limit, however long that is.
    long = " ".join(["a"] * ((limit or _LONGEST) + 8))
    for text in [*texts, (long, "a b c") if isinstance(texts[0], tuple) else long]:
        expected = original.token_ids(name, text)
        (encoding,) = route.tokenizer.encode([text])
        if encoding.ids != expected:
            raise FidelityError(
                f"The tokenizer differs from the original's for {str(text)[:60]!r}: {len(encoding.ids)} ids instead of "
                f"{len(expected)}, starting {encoding.ids[:8]} instead of {expected[:8]}. Nothing was written."
            )
