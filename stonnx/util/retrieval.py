"""Search among embeddings: nearest neighbours, most similar pairs, communities. Exact, in bounded memory."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_callable, check_integer, check_number, check_texts, described
from stonnx._arrays import Embeddings, as_rows, check_finite, result_like, to_array, to_float, to_matrix
from stonnx._errors import InvalidArgumentError
from stonnx._progress import progress_bar
from stonnx.util._matrix import product, transposed, unit_rows
from stonnx.util._nearest import ScoreFunction, descending, nearest
from stonnx.util.similarity import cos_sim, dot_score


class SearchHit(TypedDict):
    """One row of the corpus and its score."""

    corpus_id: int
    score: float


class Encoder(Protocol):
    """A model, as far as :func:`paraphrase_mining` needs it."""

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Texts to embeddings [texts, dimension]."""


def semantic_search(
    query_embeddings: Embeddings,
    corpus_embeddings: Embeddings,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: ScoreFunction = cos_sim,
) -> list[list[SearchHit]]:
    """Find the rows of a corpus that score highest for each query.

    Args:
        query_embeddings: [queries, dimension], or one vector; dense or sparse.
        corpus_embeddings: [corpus, dimension]; dense or sparse.
        query_chunk_size: Queries scored at a time. Scores take ``query_chunk_size * corpus_chunk_size`` floats.
        corpus_chunk_size: Rows of the corpus scored at a time.
        top_k: Hits per query; fewer if the corpus has fewer rows. 0 gives empty lists.
        score_function: Takes [q, dimension] and [c, dimension], tensors if an input is one, and returns scores
            [q, c]; higher is better.

    Returns:
        For each query its hits, best first, equal scores in the order of the corpus.

    Raises:
        InvalidArgumentError: A size below 1, a negative ``top_k``, different dimensions, a score that is not a number
            (NaN), or a ``score_function`` that returns another shape.

    Example:
        >>> semantic_search([[1.0, 0.0]], [[0.0, 1.0], [3.0, 4.0], [2.0, 0.0]], top_k=2, score_function=dot_score)
        [[{'corpus_id': 1, 'score': 3.0}, {'corpus_id': 2, 'score': 2.0}]]
    """
    scores, ids = nearest(
        as_rows(to_array(query_embeddings)),
        as_rows(to_array(corpus_embeddings)),
        query_chunk_size,
        corpus_chunk_size,
        top_k,
        score_function,
        result_like(query_embeddings, corpus_embeddings),
    )
    return [
        [{"corpus_id": corpus_id, "score": score} for corpus_id, score in zip(*hits, strict=True)]
        for hits in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def paraphrase_mining(
    model: Encoder,
    sentences: list[str],
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[float | int]]:
    """Encode sentences and find the pairs that are most similar.

    Args:
        model: Anything with ``encode``, such as a :class:`~stonnx.SentenceTransformer`.
        sentences: The texts to compare with each other.
        show_progress_bar: As for ``encode``.
        batch_size: As for ``encode``.
        query_chunk_size: As for :func:`paraphrase_mining_embeddings`, like the next four.
        corpus_chunk_size: Rows compared with a chunk of queries at a time.
        max_pairs: Pairs returned at most.
        top_k: Neighbours considered per sentence.
        score_function: Symmetric; higher is more similar.
        truncate_dim: As for ``encode``.
        prompt_name: As for ``encode``.
        prompt: As for ``encode``.

    Returns:
        ``[score, i, j]`` for each pair of sentences ``i < j``, highest score first.

    Raises:
        InvalidArgumentError: As :func:`paraphrase_mining_embeddings`.

    Example:
        >>> import numpy as np
        >>> class FirstLetter:
        ...     def encode(self, sentences, **kwargs):
        ...         return np.array([[text[0] == letter for letter in "abc"] for text in sentences], np.float32)
        >>> paraphrase_mining(FirstLetter(), ["ant", "bee", "ape"])[0]
        [1.0, 0, 2]
    """
    _checked_mining(query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function)
    if isinstance(model, str) or not callable(getattr(model, "encode", None)):
        raise InvalidArgumentError(f"model must have a method encode, got {described(model)}.")
    check_texts("sentences", sentences)
    embeddings = model.encode(
        sentences,
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        truncate_dim=truncate_dim,
        prompt_name=prompt_name,
        prompt=prompt,
    )
    return paraphrase_mining_embeddings(
        embeddings, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )


def paraphrase_mining_embeddings(
    embeddings: Embeddings,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
) -> list[list[float | int]]:
    """Find the most similar pairs of rows.

    The search finds a pair if one of the two is among the ``top_k`` nearest of the other.

    Args:
        embeddings: [rows, dimension]; dense or sparse.
        query_chunk_size: Rows compared at a time. Scores take ``query_chunk_size * corpus_chunk_size`` floats.
        corpus_chunk_size: Rows that these are compared with at a time.
        max_pairs: Pairs returned at most.
        top_k: Neighbours considered per row.
        score_function: As for :func:`semantic_search`, and symmetric: one direction's score is kept.

    Returns:
        ``[score, i, j]`` for each pair of rows ``i < j``, highest score first, equal scores in the order of the rows.

    Raises:
        InvalidArgumentError: A chunk size below 1, a negative number of pairs or neighbours, or a score that is not a
            number (NaN).

    Example:
        >>> paraphrase_mining_embeddings([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], max_pairs=1)
        [[1.0, 0, 2]]
    """
    query_chunk_size, corpus_chunk_size, max_pairs, top_k = _checked_mining(
        query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function
    )
    rows = as_rows(to_array(embeddings))
    if score_function is cos_sim:
        rows, score_function = unit_rows(to_float(rows)), dot_score
    count = rows.shape[0]
    best_scores, best_pairs = np.empty(0), np.empty(0, np.int64)
    for start in range(0, count, query_chunk_size):
        scores, others = nearest(
            rows[start : start + query_chunk_size],
            rows,
            query_chunk_size,
            corpus_chunk_size,
            top_k + 1,  # a row is its own neighbour
            score_function,
            result_like(embeddings),
        )
        own = np.arange(start, start + len(scores))[:, None]
        wanted = others != own
        wanted &= np.cumsum(wanted, axis=1) <= top_k
        # One number per pair, in the order of (i, j).
        pairs = (np.minimum(own, others) * count + np.maximum(own, others))[wanted]
        # `unique` keeps the first of equal pairs, so a pair keeps the score that it was first found with.
        best_pairs, first = np.unique(np.concatenate((best_pairs, pairs)), return_index=True)
        best_scores = np.concatenate((best_scores, scores[wanted]))[first]
        if len(best_pairs) > max_pairs:
            kept = descending(best_scores)[:max_pairs]
            best_pairs, best_scores = best_pairs[kept], best_scores[kept]
    order = descending(best_scores)
    first_ids, second_ids = np.divmod(best_pairs[order], max(count, 1))
    return [
        [score, i, j]
        for score, i, j in zip(best_scores[order].tolist(), first_ids.tolist(), second_ids.tolist(), strict=True)
    ]


def _checked_mining(
    query_chunk_size: int, corpus_chunk_size: int, max_pairs: int, top_k: int, score_function: ScoreFunction
) -> tuple[int, int, int, int]:
    check_callable("score_function", score_function)
    return (
        check_integer("query_chunk_size", query_chunk_size),
        check_integer("corpus_chunk_size", corpus_chunk_size),
        check_integer("max_pairs", max_pairs, least=0),
        check_integer("top_k", top_k, least=0),
    )


def community_detection(
    embeddings: Embeddings,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Find groups of embeddings that are close to a common centre.

    Each row with enough rows of a cosine of at least ``threshold`` is the centre of a candidate. Candidates are
    taken from the largest to the smallest; a row belongs to the first that has it, and a centre that already belongs
    to another is skipped. Source: https://sbert.net/examples/sentence_transformer/applications/clustering/README.html

    Args:
        embeddings: [rows, dimension]; dense or sparse.
        threshold: The smallest cosine between a centre and a member.
        min_community_size: The fewest rows of a community, its centre among them.
        batch_size: Rows compared with all others at a time: scores take ``batch_size * rows`` floats.
        show_progress_bar: Whether to show a bar on standard error.

    Returns:
        Communities as lists of rows, the largest first. In each the centre comes first, then the others from the
        closest to the farthest.

    Raises:
        InvalidArgumentError: A size below 1, or an embedding with a value that is NaN or infinite, which is close to
            nothing; the message names its row.

    Example:
        >>> community_detection([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [3.0, 0.0]], min_community_size=2)
        [[0, 3, 2]]
    """
    threshold = check_number("threshold", threshold)
    min_community_size = check_integer("min_community_size", min_community_size)
    batch_size = check_integer("batch_size", batch_size)
    rows = to_matrix(embeddings)
    check_finite("embeddings", rows)
    unit = unit_rows(rows)
    count = unit.shape[0]
    candidates: list[tuple[int, npt.NDArray[np.int32]]] = []
    # In float32 even for float64 embeddings, as in the original: a threshold such as 0.7 is a little lower there.
    smallest = np.float32(threshold)
    columns = transposed(unit)
    with progress_bar(count, show_progress_bar, "row") as advance:
        for start in range(0, count, batch_size):
            scores = product(unit[start : start + batch_size], columns)
            close = scores >= smallest
            for row in np.flatnonzero(close.sum(axis=1) >= min_community_size):
                near = np.flatnonzero(close[row])
                members = near[descending(scores[row, near])].astype(np.int32)
                candidates.append((start + int(row), members))
            advance(len(scores))

    candidates.sort(key=lambda candidate: len(candidate[1]), reverse=True)
    communities = []
    is_taken = np.zeros(count, dtype=bool)
    for centre, members in candidates:
        if is_taken[centre]:
            continue
        free = members[~is_taken[members]]
        if len(free) >= min_community_size:
            community = [centre, *free[free != centre].tolist()]
            communities.append(community)
            is_taken[community] = True
    return sorted(communities, key=len, reverse=True)
