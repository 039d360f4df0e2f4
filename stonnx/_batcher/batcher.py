"""``stonnx.Batcher``: one model for all tasks of an event loop, with results that do not depend on the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from stonnx._arguments import check_integer, check_number, check_texts, described
from stonnx._batcher.scheduler import Answer, Scheduler
from stonnx._batcher.workers import Load
from stonnx._errors import InvalidArgumentError, InvalidInputError
from stonnx._model.call import warn_of_truncation
from stonnx._model.embedding_model import EmbeddingModel
from stonnx._model.model import Model
from stonnx._model.work import Work
from stonnx._results.activations import finish_scores
from stonnx._results.dense import Precision, finish_embeddings
from stonnx._results.sparse import CsrRows, SparseRows
from stonnx._results.token_rows import Finish
from stonnx._text.inputs import is_batch, parse_pairs
from stonnx.cross_encoder import CrossEncoder
from stonnx.multi_vector_encoder.model import MultiVectorEncoder
from stonnx.sparse_encoder import SparseEncoder


class Batcher:
    """The model of a server: tasks of an event loop await single texts. Texts that come together run together.

    A text does not wait for others: while a thread is free, it runs at once; while all are busy, a queue forms.
    Requests take turns, so that a large one does not hold up the others. A cancelled task leaves the queue. Results
    are those of the model's own methods.

    Args:
        model: A model on any device. Do not change its ``max_seq_length`` or prompts while texts wait.
        max_queued_tokens: The most waiting tokens, counted separately for single texts and for bulk work. None: 10
            seconds of work.

    Example:
        >>> async def handler(text):
        ...     return await batcher.encode(text)  # in a server
        >>> batcher = Batcher(SentenceTransformer("path/to/bundle"))  # doctest: +SKIP
    """

    def __init__(self, model: Model, *, max_queued_tokens: int | None = None) -> None:
        if not isinstance(model, Model):
            raise InvalidArgumentError(f"Batcher takes a model of stonnx, got {type(model).__name__}.")
        max_queued_tokens = check_integer("max_queued_tokens", max_queued_tokens, optional=True)
        self.model = model
        self._scheduler = Scheduler(model.work_slots, max_queued_tokens=max_queued_tokens)

    async def encode(
        self,
        inputs: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        task: Literal["query", "document"] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        timeout: float | None = None,
        bulk: bool | None = None,
        truncate: bool | None = None,
    ) -> Any:
        """The result of ``model.encode`` for these arguments.

        Args:
            inputs: A text, or a list of texts.
            prompt_name, prompt: As for the model.
            task: Encode as ``encode_query`` or ``encode_document``.
            normalize_embeddings, truncate_dim, precision: As for the model; dense vectors only.
            timeout: After this many seconds, texts that have not run are dropped, and DeadlineError is raised.
            bulk: Whether other requests go first. None: if there are more than 8 texts.
            truncate: Cut texts that are too long, instead of raising TextTooLongError. None: see ``model.too_long``.

        Raises:
            OverloadedError: Too many tokens wait; ``retry_after`` says when to try again.
            TooManyTokensError: This request alone has more tokens than may wait.
            DeadlineError: ``timeout`` passed.
            InvalidInputError, InvalidArgumentError, TextTooLongError, RunError: As for the model.
        """
        if not isinstance(self.model, EmbeddingModel):
            raise InvalidArgumentError("encode is for models that give vectors. This one scores pairs: use predict.")
        work = self.model.work(prompt_name=prompt_name, prompt=prompt, task=task)
        is_single = not is_batch(inputs)
        truncate_dim = check_integer("truncate_dim", truncate_dim, least=None, optional=True)
        answer = await self._compute(work, work.texts([inputs] if is_single else inputs), timeout, bulk, truncate)
        if isinstance(self.model, SparseEncoder):
            return _sparse(self.model, answer, is_single)
        if isinstance(self.model, MultiVectorEncoder):
            finish = Finish(normalize=normalize_embeddings)
            vectors = [finish(each, task) for each in answer.rows]
            return vectors[0] if is_single else vectors
        if not answer.rows:
            return np.array([])
        width = getattr(self.model, "truncate_dim", None) if truncate_dim is None else truncate_dim
        rows = finish_embeddings(np.stack(answer.rows), width, normalize_embeddings, precision)
        return rows[0] if is_single else rows

    async def encode_query(self, inputs: Any, **options: Any) -> Any:
        """:meth:`encode` for search queries."""
        return await self.encode(inputs, task="query", **options)

    async def encode_document(self, inputs: Any, **options: Any) -> Any:
        """:meth:`encode` for documents."""
        return await self.encode(inputs, task="document", **options)

    async def predict(
        self,
        inputs: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        apply_softmax: bool = False,
        timeout: float | None = None,
        bulk: bool | None = None,
        truncate: bool | None = None,
    ) -> Any:
        """The result of ``model.predict`` for these arguments: the scores of a pair, or of a list of pairs.

        Args:
            inputs: A pair of texts, or a list of pairs.
            prompt_name, prompt, apply_softmax: As for the model.
            timeout, bulk, truncate: As for :meth:`encode`, whose errors it raises.
        """
        if not isinstance(self.model, CrossEncoder):
            raise InvalidArgumentError("predict is for models that score pairs. This one gives vectors: use encode.")
        work = self.model.work(prompt_name=prompt_name, prompt=prompt)
        pairs, is_single = parse_pairs(inputs, work.prompt, work.route.tokenizer.chat)
        answer = await self._compute(work, pairs, timeout, bulk, truncate)
        if not answer.rows:
            return np.array([])
        scores = finish_scores(np.stack(answer.rows), self.model.num_labels, apply_softmax)
        return scores[0] if is_single else scores

    async def rank(
        self, query: str, documents: Sequence[str], *, top_k: int | None = None, **options: Any
    ) -> list[dict[str, int | float]]:
        """The result of ``model.rank``: documents by descending score. ``options`` are those of :meth:`predict`."""
        top_k = check_integer("top_k", top_k, least=0, optional=True)
        if not isinstance(query, str):
            raise InvalidInputError(f"query must be a str, got {described(query)}.")
        texts = check_texts("documents", documents)
        if isinstance(self.model, CrossEncoder) and self.model.num_labels != 1:
            raise InvalidArgumentError(f"rank needs a model with one label, and this one has {self.model.num_labels}.")
        scores = (await self.predict([(query, text) for text in texts], **options)).tolist()
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top_k]
        return [{"corpus_id": index, "score": scores[index]} for index in order]

    def load(self) -> Load:
        """The load at this moment: for metrics, and to decide whether to send work here."""
        return self._scheduler.load()

    def close(self) -> None:
        """End the threads after the runs in progress. Await or cancel all calls first."""
        self._scheduler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _compute(
        self, work: Work, texts: Sequence[Any], timeout: float | None, bulk: bool | None, truncate: bool | None
    ) -> Answer:
        deadline = None if timeout is None else time.perf_counter() + check_number("timeout", timeout)
        cut = self.model.too_long != "error" if truncate is None else truncate
        answer = await self._scheduler.compute(work, texts, bulk=bulk, deadline=deadline, truncate=cut)
        if truncate is None and self.model.too_long == "warn":
            warn_of_truncation(answer.truncated, len(texts))
        return answer


def _sparse(model: SparseEncoder, answer: Answer, is_single: bool) -> Any:
    from stonnx._results.sparse import csr_row, empty_csr

    width = model.get_embedding_dimension()
    assert width is not None  # a sparse model has one
    if not answer.rows:
        return empty_csr(width)
    rows = CsrRows(len(answer.rows), width)
    counts = np.array([len(row.columns) for row in answer.rows])
    columns = np.concatenate([row.columns for row in answer.rows])
    values = np.concatenate([row.values for row in answer.rows])
    rows.add(np.arange(len(counts)), SparseRows(counts, columns, values))
    matrix = rows.matrix()
    return csr_row(matrix, 0) if is_single else matrix
