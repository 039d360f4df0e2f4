"""Compares a bundle with the original: the same ids, the same vectors, alone, in batches and with padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import DEFAULT_ROUTE, Fidelity, Manifest
from stonnx._engine.engine import Engine
from stonnx._engine.probe import rows_of_texts
from stonnx._engine.route import LoadedRoute
from stonnx._tasks import TASKS, Task
from stonnx._text.tokens import Text
from stonnx_export.originals.original import Original
from stonnx_export.texts import CALLED_TEXTS, LONGEST, TEXTS, sentences, verification_texts
from stonnx_export.verify.figures import _worst, check, measure, neighbours_overlap, spearman
from stonnx_export.verify.ids import compare_ids
from stonnx_export.verify.rows import compare_rows

# Padding, in tokens, that must not change anything.
_PADDINGS = (64, 256)
# A prompt for chat models, which may have a place of its own for it.
_INSTRUCTION = "Is this the answer to that question?"


def verify_fidelity(
    engine: Engine,
    original: Original,
    tolerance: Mapping[str, float],
    *,
    known: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Fidelity:
    """Compare a bundle with the original that it was made from, and refuse it if it is too far away.

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
        original: The original that it was made from.
        tolerance: Bounds, by the names of the report's figures.
        known: The original's results for all texts, by route. The first call fills it, and the next calls read it.

    Raises:
        FidelityError: Ids differ, so that nothing else can be compared.
    """
    manifest = engine.manifest
    known = {} if known is None else known
    if TASKS[manifest.task].row_mask is not None:
        return compare_rows(engine, original, tolerance, known)
    reports = []
    for name in manifest.routes:
        route = engine.route(name)
        limit = route.tokenizer.max_seq_length
        special = (
            route.tokenizer.backend.num_special_tokens_to_add(False) if route.spec.tokenizer.add_special_tokens else 0
        )
        texts: list[Text] = [*verification_texts(limit or LONGEST, special), *sentences()]
        called: list[Text] = [*CALLED_TEXTS]
        if TASKS[manifest.task].reads_pairs:
            # Each text comes with one of another length, so that either side of a pair is sometimes the longer one.
            texts, called = _pairs(texts, 7), _pairs(called, 1)
        calls = _calls(manifest, name)
        # In a route of its own, every text is called what the route is for.
        own = None if name == DEFAULT_ROUTE else name
        compare_ids(route, original, name, texts, own)
        chat = route.spec.tokenizer.chat
        if chat is not None and (chat.pair_with_prompt or chat.text_with_prompt):
            tasks = [call.task for call in calls] if chat.of_query is not None else []
            for task in {None, *tasks}:
                compare_ids(route, original, name, called, task, _INSTRUCTION)
        for call in calls:
            compare_ids(route, original, name, called, call.task, call.prompt)
        shortened = limit is not None and limit > LONGEST
        if shortened:
            route.tokenizer.max_seq_length = LONGEST
            original.set_max_length(name, LONGEST)
        if name not in known:
            parts = [original.outputs_as_called(call.task, called) for call in calls]
            known[name] = np.concatenate([*parts, original.outputs(name, texts)])
        expected = known[name]
        batched, alone = (
            np.concatenate(
                [
                    *(
                        outputs(route, manifest.task, called, size, prompt=call.prompt, kind=call.task)
                        for call in calls
                    ),
                    outputs(route, manifest.task, texts, size, kind=own),
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
        if TASKS[manifest.task].gives_labels:
            # A cosine says nothing about a single number: take the cosines of each label's logits over all pairs.
            expected, batched, alone, padded = expected.T, batched.T, alone.T, padded.transpose(0, 2, 1)
        report = measure(expected, batched, alone, padded, tolerance, original.name)
        reports.append(dataclasses.replace(report, texts=compared, **agreement))  # type: ignore[arg-type]
    return _worst(reports)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A way of calling the model that adds a prompt or names the task of the texts; None: neither."""

    task: str | None
    prompt: str


def _calls(manifest: Manifest, route: str) -> list[_Call]:
    """The ways of calling the model that reach a route, besides texts as they are."""
    default, prompts = manifest.default_prompt_name, manifest.prompts
    calls = []
    if default and route == manifest.default_route and not manifest.needs_task:
        calls.append(_Call(None, prompts.get(default) or ""))
    if not TASKS[manifest.task].reads_pairs:
        # A Router does not have another route for a task that it does not know.
        calls += [
            _Call(task, prompts.get(task) or "")
            for task in ("query", "document")
            if route == (task if task in manifest.routes else DEFAULT_ROUTE)
        ]
    return calls


def _pairs(texts: list[Text], apart: int) -> list[Text]:
    return list(zip(texts, texts[apart:] + texts[:apart], strict=True))  # type: ignore[arg-type]


def outputs(
    route: LoadedRoute,
    task: Task,
    texts: list[Text],
    batch_size: int = 32,
    *,
    prompt: str = "",
    kind: str | None = None,
) -> npt.NDArray[np.float32]:
    """The bundle's vectors or logits after a prompt, [texts, features]. With a batch size of 1, each text is alone.

    ``kind`` is ``query`` or ``document``, if the texts are called that.
    If a text has a vector for each token: those of all texts, one below the other.
    """
    row = TASKS[task]
    if row.row_mask is not None:
        called = route.tokenizer.prompted(texts, prompt, kind)
        pieces = [called] if batch_size > 1 else [[text] for text in called]
        found = [rows for piece in pieces for rows in rows_of_texts(route, row, None, piece, batch_size=batch_size)]
        return np.concatenate(found)
    result: dict[int, npt.NDArray[np.float32]] = {}
    texts = route.tokenizer.prompted(texts, prompt, kind)
    excluded = route.excluded_tokens(prompt)
    pieces = [texts] if batch_size > 1 else [[text] for text in texts]
    for start, piece in enumerate(pieces):
        for batch in route.stream(
            piece, [TASKS[task].output], batch_size=batch_size, task=kind, prompt_length=excluded
        ):
            result |= {start + int(index): row for index, row in zip(batch.indices, batch.outputs[0], strict=True)}
    return np.stack([result[index] for index in range(len(texts))])


def _padded(route: LoadedRoute, task: Task, texts: list[Text]) -> npt.NDArray[np.float32]:
    """The bundle's vectors or logits of the first texts, alone, with 0, 64, 256 tokens of padding: [3, texts, dim]."""
    tokenizer = route.tokenizer
    limit = tokenizer.max_seq_length or LONGEST
    batches = [tokenizer.pad([encoding]) for encoding in tokenizer.encode(texts[: len(TEXTS)])]
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
            rows.append(route.session.run([TASKS[task].output], feeds)[0][0])
        results.append(np.stack(rows))
    return np.stack(results)


def _agreement(task: Task, expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> dict[str, float]:
    """The figures of a task about more than one vector. Only the sentences, at the end, count as neighbours."""
    if TASKS[task].gives_labels:
        return {"rank_correlation": min(spearman(a, b) for a, b in zip(expected.T, actual.T, strict=True))}
    last = len(sentences())
    figures = {"neighbours_overlap": neighbours_overlap(expected[-last:], actual[-last:])}
    if task == "sparse":
        either = np.count_nonzero((expected != 0) | (actual != 0))
        figures["active_overlap"] = np.count_nonzero((expected != 0) & (actual != 0)) / either if either else 1.0
    return figures
