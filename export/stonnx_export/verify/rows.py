"""Compares a bundle of late interaction with the original: ids, the vectors of tokens, and the order by MaxSim."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stonnx._bundle.manifest import DEFAULT_ROUTE, Fidelity, Manifest
from stonnx._engine.engine import Engine
from stonnx._engine.probe import rows_of_texts
from stonnx._engine.route import LoadedRoute
from stonnx._errors import FidelityError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx.util.late_interaction import maxsim
from stonnx_export.originals.original import Original, in_front
from stonnx_export.texts import CALLED_TEXTS, LONGEST, TEXTS, sentences, verification_texts
from stonnx_export.verify.figures import measure, spearman
from stonnx_export.verify.ids import compare_ids

_Rows = list[npt.NDArray[np.float32]]

# Padding, in tokens, that must not change anything.
_PADDINGS = (64, 256)
# So many sentences are queries for all others.
_QUERIES = 32
_NEIGHBOURS = 10


def compare_rows(
    engine: Engine, original: Original, tolerance: Mapping[str, float], known: dict[str, npt.NDArray[np.float32]]
) -> Fidelity:
    """The report of a bundle that gives a vector for each token. The arguments are those of ``compare``.

    Raises:
        FidelityError: Ids differ, or the number of a text's vectors, so that nothing else can be compared.
    """
    manifest = engine.manifest
    expected: _Rows = []
    batched: _Rows = []
    alone: _Rows = []
    padded: list[_Rows] = []
    of_sentences: dict[str, tuple[_Rows, _Rows]] = {}
    tasks: list[str | None] = [task for task in ("query", "document") if {task, DEFAULT_ROUTE} & {*manifest.routes}]
    for task in tasks if manifest.needs_task else [None, *tasks]:
        route = engine.route(task)
        name = task if task is not None and task in manifest.routes else manifest.default_route
        texts = _texts(route, task)
        prompt = _prompt(manifest, task)
        called = [in_front(prompt, text) for text in texts]
        compare_ids(route, original, name, called, task)
        theirs = _known(original, task, texts, known)
        one, many = (_ours(route, manifest, task, called, size) for size in (1, 32))
        _compare_counts(task, texts, theirs, one)
        expected += theirs
        alone += one
        batched += many
        padded.append(_padded(route, manifest, task, called[: len(TEXTS)]))
        last = len(sentences())
        of_sentences[task or ""] = theirs[-last:], one[-last:]
    report = measure(
        np.concatenate(expected),
        np.concatenate(batched),
        np.concatenate(alone),
        np.stack([np.concatenate(rows) for rows in zip(*padded, strict=True)]),
        tolerance,
        original.name,
    )
    # A Router may read only one of them; then its vectors are compared with each other.
    queries, documents = (of_sentences.get(task) or of_sentences[tasks[0] or ""] for task in ("query", "document"))
    overlap, correlation = _ranks(queries, documents)
    return dataclasses.replace(report, texts=len(expected), neighbours_overlap=overlap, rank_correlation=correlation)


def _texts(route: LoadedRoute, task: str | None) -> list[Text]:
    if task is None:
        return [*CALLED_TEXTS, *sentences()[:1]]
    tokenizer = route.tokenizer_of(task)
    special = tokenizer.backend.num_special_tokens_to_add(False) if route.spec.tokenizer.add_special_tokens else 0
    return [*verification_texts(tokenizer.max_seq_length or LONGEST, special), *sentences()]


def _prompt(manifest: Manifest, task: str | None) -> str:
    """The prompt that the model adds by itself."""
    name = task or manifest.default_prompt_name
    return manifest.prompts.get(name) or "" if name else ""


def _known(
    original: Original, task: str | None, texts: Sequence[Text], known: dict[str, npt.NDArray[np.float32]]
) -> _Rows:
    """The original's vectors: the first call fills ``known``, and the next calls read it."""
    keys = [f"{task}/{number}" for number in range(len(texts))]
    if keys[0] not in known:
        known.update(zip(keys, original.rows(task, texts), strict=True))
    return [known[key] for key in keys]


def _ours(route: LoadedRoute, manifest: Manifest, task: str | None, texts: Sequence[Text], size: int) -> _Rows:
    pieces = [list(texts)] if size > 1 else [[text] for text in texts]
    row = TASKS[manifest.task]
    return [rows for piece in pieces for rows in rows_of_texts(route, row, task, piece, batch_size=size)]


def _compare_counts(task: str | None, texts: Sequence[Text], theirs: _Rows, ours: _Rows) -> None:
    for text, expected, actual in zip(texts, theirs, ours, strict=True):
        if expected.shape != actual.shape:
            raise FidelityError(
                f"The bundle gives {len(actual)} vectors of {actual.shape[1]} dimensions for the {task or 'text'} "
                f"{str(text)[:60]!r}, and the original {len(expected)} of {expected.shape[1]}."
            )


def _padded(route: LoadedRoute, manifest: Manifest, task: str | None, texts: Sequence[Text]) -> _Rows:
    """The bundle's vectors of some texts, alone, with 0, 64 and 256 tokens of padding, those of all texts together."""
    row, tokenizer, spec = TASKS[manifest.task], route.tokenizer_of(task), route.spec.tokenizer
    longest = tokenizer.max_seq_length or LONGEST
    limit = min(longest, spec.max_positions or longest)
    results: _Rows = []
    for padding in (0, *_PADDINGS):
        rows = []
        for encoding in tokenizer.encode(texts):
            batch = tokenizer.pad([encoding])
            more = ((0, 0), (0, min(padding, max(0, limit - batch.input_ids.shape[1]))))
            count = route.query_rows(task)
            feeds = {
                "input_ids": np.pad(batch.input_ids, more, constant_values=spec.pad_token_id),
                "attention_mask": np.pad(batch.attention_mask, more),
                "query_rows": None if count is None else np.array(count, dtype=np.int64),
                "is_query": None if count is None else np.array(1, dtype=np.int64),
            }
            vectors, mask = route.session.run([row.output, str(row.row_mask)], feeds)
            rows.append(vectors[0][mask[0].astype(bool)])
        results.append(np.concatenate(rows))
    return results


def _ranks(queries: tuple[_Rows, _Rows], documents: tuple[_Rows, _Rows]) -> tuple[float, float]:
    """How far the original and the bundle agree about the order of documents by MaxSim.

    The share of a query's ten best documents that stay the same, and the lowest rank correlation of a query.
    """
    step = max(1, len(queries[0]) // _QUERIES)
    before, after = (maxsim(some[::step], all_) for some, all_ in zip(queries, documents, strict=True))
    nearest = [np.argsort(-scores, axis=1, kind="stable")[:, :_NEIGHBOURS].tolist() for scores in (before, after)]
    overlap = float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(*nearest, strict=True)]))
    return overlap, min(spearman(a, b) for a, b in zip(before, after, strict=True))
