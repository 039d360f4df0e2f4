"""A bundle against the original: the same ids, the same vectors, alone, in batches and with padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stonnx._bundle import DEFAULT_ROUTE, OUTPUT_OF_TASK, Fidelity, Manifest, Task
from stonnx._engine import Engine, LoadedRoute
from stonnx._errors import FidelityError
from stonnx._tokenize import Text
from stonnx_export.original import Original, in_front
from stonnx_export.sentences import sentences

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

# Padding that must change nothing, in tokens.
_PADDINGS = (64, 256)

# What is compared once more in each way of calling the model, with the prompt and the route that belong to it.
_CALLED_TEXTS = (_TEXTS[0], _TEXTS[4], _TEXTS[7], " ".join(["a"] * 100))


class ToleranceError(FidelityError):
    """A figure is outside its tolerance; a more precise bundle may be inside. ``fidelity`` is the whole report."""

    def __init__(self, message: str, fidelity: Fidelity | None = None) -> None:
        super().__init__(message)
        self.fidelity = fidelity


# The figures of a report, bounded from below or from above, as messages call them.
_AT_LEAST = {
    "cosine_mean": "mean cosine",
    "cosine_p1": "1st percentile of the cosine",
    "cosine_min": "lowest cosine",
    "invariance_cosine": "lowest cosine of a text alone and in a batch or with padding",
    "neighbours_overlap": "overlap of the ten nearest neighbours",
    "active_overlap": "overlap of active dimensions",
    "rank_correlation": "rank correlation of the logits",
}
_AT_MOST = {
    "max_abs_difference": "max_abs_difference",
    "batch_invariance": "batch_invariance",
    "spearman_drop": "drop of Spearman's correlation x 100",
}


def verification_texts(max_seq_length: int, special_tokens: int) -> list[str]:
    """Built-in texts: empty, one token, many scripts, and lengths up to, at and beyond the limit."""
    limit = min(max_seq_length, _LONGEST) - special_tokens
    counts = sorted({1, 2, 3, 5, 8, 16, 31, 32, 33, 64, 100, 128, 200, limit - 1, limit, limit + 1, limit + 40})
    return [*_TEXTS, *(" ".join(["a"] * count) for count in counts if 0 < count <= limit + 40)]


def verify(
    engine: Engine,
    original: Original,
    tolerance: Mapping[str, float],
    *,
    known: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Fidelity:
    """Compare a bundle with the original that it was made from, and refuse it where it is too far away.

    The arguments are those of :func:`compare`.

    Raises:
        FidelityError: Ids differ.
        ToleranceError: A vector or logit is outside the tolerance.
    """
    fidelity = compare(engine, original, tolerance, known=known)
    check(fidelity)
    return fidelity


def compare(
    engine: Engine,
    original: Original,
    tolerance: Mapping[str, float],
    *,
    known: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Fidelity:
    """Compare a bundle with the original that it was made from.

    Args:
        engine: The bundle.
        original: What it was made from.
        tolerance: Bounds, by the names of the report's figures.
        known: What the original gave for all texts, by route: filled by the first call, and read by the next ones.

    Raises:
        FidelityError: Ids differ, so that nothing else can be compared.
    """
    manifest = engine.manifest
    known = {} if known is None else known
    reports = []
    for name in manifest.routes:
        route = engine.route(name)
        limit = route.tokenizer.max_seq_length
        special = (
            route.tokenizer.backend.num_special_tokens_to_add(False) if route.spec.tokenizer.add_special_tokens else 0
        )
        texts: list[Text] = [*verification_texts(limit or _LONGEST, special), *sentences()]
        called: list[Text] = [*_CALLED_TEXTS]
        if manifest.task == "rerank":
            # Each text beside one of another length, so that both sides of a pair get to be the longer one.
            texts, called = _pairs(texts, 7), _pairs(called, 1)
        calls = _calls(manifest, name)
        _compare_ids(route, original, name, texts, limit)
        for call in calls:
            _compare_ids(route, original, name, [in_front(call.prompt, text) for text in called], limit, call.task)
        shortened = limit is not None and limit > _LONGEST
        if shortened:
            route.tokenizer.max_seq_length = _LONGEST
            original.set_max_length(name, _LONGEST)
        if name not in known:
            parts = [original.outputs_as_called(call.task, called) for call in calls]
            known[name] = np.concatenate([*parts, original.outputs(name, texts)])
        expected = known[name]
        batched, alone = (
            np.concatenate(
                [
                    *(outputs(route, manifest.task, called, size, prompt=call.prompt) for call in calls),
                    outputs(route, manifest.task, texts, size),
                ]
            )
            for size in (32, 1)
        )
        if shortened and limit is not None:
            route.tokenizer.max_seq_length = limit
            original.set_max_length(name, limit)
        padded = _padded(route, manifest.task, texts)
        agreement = _agreement(manifest.task, expected, alone)
        compared = len(expected)
        if manifest.task == "rerank":
            # A cosine says nothing about a single number: take those of each label's logits over all pairs.
            expected, batched, alone, padded = expected.T, batched.T, alone.T, padded.transpose(0, 2, 1)
        report = measure(expected, batched, alone, padded, tolerance, original.name)
        reports.append(dataclasses.replace(report, texts=compared, **agreement))  # type: ignore[arg-type]
    return _worst(reports)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A way of calling the model that puts a prompt in front or says what texts are for; None: neither."""

    task: str | None
    prompt: str


def _calls(manifest: Manifest, route: str) -> list[_Call]:
    """What reaches a route, beside texts as they are."""
    default, prompts = manifest.default_prompt_name, manifest.prompts
    calls = []
    if default and route == manifest.default_route and not manifest.needs_task:
        calls.append(_Call(None, prompts.get(default) or ""))
    if manifest.task != "rerank":
        # A Router has no other route for a task that it does not know.
        calls += [
            _Call(task, prompts.get(task) or "") for task in ("query", "document") if route in (task, DEFAULT_ROUTE)
        ]
    return calls


def _pairs(texts: list[Text], apart: int) -> list[Text]:
    return list(zip(texts, texts[apart:] + texts[:apart], strict=True))  # type: ignore[arg-type]


def outputs(
    route: LoadedRoute, task: Task, texts: list[Text], batch_size: int = 32, *, prompt: str = ""
) -> npt.NDArray[np.float32]:
    """The bundle's vectors or logits with a prompt in front, [texts, features]: alone for a batch size of 1."""
    result: dict[int, npt.NDArray[np.float32]] = {}
    texts = [in_front(prompt, text) for text in texts]
    excluded = route.tokenizer.prompt_length(prompt) if prompt and "prompt_length" in route.session.inputs else 0
    pieces = [texts] if batch_size > 1 else [[text] for text in texts]
    for start, piece in enumerate(pieces):
        for batch in route.stream(piece, [OUTPUT_OF_TASK[task]], batch_size=batch_size, prompt_length=excluded):
            result |= {start + int(index): row for index, row in zip(batch.indices, batch.outputs[0], strict=True)}
    return np.stack([result[index] for index in range(len(texts))])


def _padded(route: LoadedRoute, task: Task, texts: list[Text]) -> npt.NDArray[np.float32]:
    """The bundle's vectors or logits of the first texts, alone, with 0, 64, 256 tokens of padding: [3, texts, dim]."""
    tokenizer = route.tokenizer
    limit = tokenizer.max_seq_length or _LONGEST
    batches = [tokenizer.pad([encoding]) for encoding in tokenizer.encode(texts[: len(_TEXTS)])]
    results = []
    for padding in (0, *_PADDINGS):
        rows = []
        for batch in batches:
            more = ((0, 0), (0, min(padding, max(0, limit - batch.input_ids.shape[1]))))
            fill = route.spec.tokenizer
            feeds: dict[str, npt.NDArray[np.int64] | None] = {
                "input_ids": np.pad(batch.input_ids, more, constant_values=fill.pad_token_id),
                "attention_mask": np.pad(batch.attention_mask, more),
            }
            if batch.token_type_ids is not None:
                feeds["token_type_ids"] = np.pad(batch.token_type_ids, more, constant_values=fill.pad_token_type_id)
            rows.append(route.session.run([OUTPUT_OF_TASK[task]], feeds)[0][0])
        results.append(np.stack(rows))
    return np.stack(results)


def _agreement(task: Task, expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> dict[str, float]:
    """The figures of a task that are about more than one vector; neighbours are those of the sentences, at the end."""
    if task == "rerank":
        return {"rank_correlation": min(spearman(a, b) for a, b in zip(expected.T, actual.T, strict=True))}
    last = len(sentences())
    figures = {"neighbours_overlap": neighbours_overlap(expected[-last:], actual[-last:])}
    if task == "sparse":
        either = np.count_nonzero((expected != 0) | (actual != 0))
        figures["active_overlap"] = np.count_nonzero((expected != 0) & (actual != 0)) / either if either else 1.0
    return figures


def neighbours_overlap(expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32], count: int = 10) -> float:
    """The share of each text's nearest neighbours by cosine that two sets of vectors [texts, dim] agree on."""
    found = []
    for vectors in (expected, actual):
        wide = vectors.astype(np.float64)
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
        similarity = wide @ wide.T
        np.fill_diagonal(similarity, -np.inf)
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :count])
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(*map(np.ndarray.tolist, found), strict=True)]))


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two series; 1 where neither varies."""
    ranks: list[npt.NDArray[np.float64]] = []
    for series in map(np.asarray, (a, b)):
        _, places, counts = np.unique(series, return_inverse=True, return_counts=True)
        average: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
        ranks.append(average[places])
    if np.ptp(ranks[0]) == 0 or np.ptp(ranks[1]) == 0:
        return float(np.ptp(ranks[0]) == np.ptp(ranks[1]))
    correlations: npt.NDArray[np.float64] = np.corrcoef(np.stack(ranks))
    return float(correlations[0, 1])


def _worst(reports: list[Fidelity]) -> Fidelity:
    """One report for all routes: the worst of each figure. numpy's minimum, unlike Python's, is NaN where one is."""
    worst: dict[str, float | None] = {}
    for name in (*_AT_LEAST, *_AT_MOST):
        found = [value for report in reports if (value := getattr(report, name)) is not None]
        worst[name] = None if not found else float((np.min if name in _AT_LEAST else np.max)(found))
    return dataclasses.replace(reports[0], texts=sum(report.texts for report in reports), **worst)  # type: ignore[arg-type]


def measure(
    expected: npt.NDArray[np.float32],
    batched: npt.NDArray[np.float32],
    alone: npt.NDArray[np.float32],
    padded: npt.NDArray[np.float32],
    tolerance: Mapping[str, float],
    compared_with: str,
) -> Fidelity:
    """The fidelity report of vectors [texts, dim]. Differences are relative to the largest value if that is over 1.

    ``padded`` [paddings, some texts, dim] are vectors that must not depend on the padding; the first are without.
    """
    scale = max(1.0, float(np.abs(expected).max()))
    with np.errstate(invalid="ignore"):  # infinities become NaN, which check() refuses
        cosines = np.concatenate([_cosines(expected, batched), _cosines(expected, alone)])
        differences = np.abs([expected - batched, expected - alone, batched - alone]).max(axis=(1, 2)) / scale
        invariance = np.concatenate([_cosines(batched, alone), *(_cosines(padded[0], more) for more in padded[1:])])
        by_padding = float(np.abs(padded - padded[0]).max()) / scale
    return Fidelity(
        compared_with=compared_with,
        texts=len(expected),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        max_abs_difference=float(differences[:2].max()),
        # numpy's maximum, unlike Python's, is NaN where one is.
        batch_invariance=float(np.maximum(differences[2], by_padding)),
        tolerance=tolerance,
        cosine_p1=float(np.percentile(cosines, 1)),
        invariance_cosine=float(invariance.min()),
    )


def check(fidelity: Fidelity) -> None:
    """Raise ToleranceError where a report is outside its tolerance."""
    problems = []
    for name, limit in fidelity.tolerance.items():
        value = getattr(fidelity, name)
        if value is None:  # nothing that was compared has this figure
            continue
        if name in _AT_LEAST and not value >= limit:  # a NaN is a problem too
            problems.append(f"{_AT_LEAST[name]} {value:.7f}, allowed is at least {limit}")
        elif name in _AT_MOST and not value <= limit:
            problems.append(f"{_AT_MOST[name]} {value:.3g}, allowed is at most {limit:.3g}")
    if problems:
        raise ToleranceError(f"The bundle differs from {fidelity.compared_with}: {'; '.join(problems)}.", fidelity)


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    # Two zero vectors are equal; a zero vector beside another has the cosine 0.
    both_zero = (norms == 0) & ~wide.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, (wide * other).sum(axis=1) / np.maximum(norms, 1e-30))
    return cosines


def _compare_ids(
    route: LoadedRoute, original: Original, name: str, texts: list[Text], limit: int | None, task: str | None = None
) -> None:
    # The last one is beyond the limit, however long that is.
    long = " ".join(["a"] * ((limit or _LONGEST) + 8))
    for text in [*texts, (long, "a b c") if isinstance(texts[0], tuple) else long]:
        expected = original.token_ids(name, text, task) if task else original.token_ids(name, text)
        (encoding,) = route.tokenizer.encode([text])
        if encoding.ids != expected:
            raise FidelityError(
                f"The tokenizer differs from the original's for {f'the {task} ' if task else ''}{str(text)[:60]!r}: "
                f"{len(encoding.ids)} ids instead of {len(expected)}, starting {encoding.ids[:8]} instead of "
                f"{expected[:8]}."
            )
