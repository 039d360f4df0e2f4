"""Ray Data: vectors and scores for ``Dataset.map_batches``, with an actor for each copy of the model.

Example:
    >>> from stonnx.integrations.ray import Embed
    >>> actors = ray.data.ActorPoolStrategy(size=2)  # doctest: +SKIP
    >>> ray.data.read_parquet("passages/").map_batches(  # doctest: +SKIP
    ...     Embed, fn_constructor_args=["all-MiniLM-L6-v2-int8"], compute=actors, num_cpus=4, batch_size=1024,
    ...     batch_format="pyarrow",
    ... ).write_parquet("vectors/")
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import ray

from stonnx._errors import ModelNotFoundError
from stonnx.integrations._columns import Columns, EmbedColumns, RankColumns, SparseColumns, Task

__all__ = ["Embed", "Rank", "Sparse"]


class Embed(EmbedColumns):
    """A column of texts to a column of dense vectors.

    An actor loads the model once, when it starts. It computes with as many threads as Ray gives it CPUs.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        column: The column with the texts.
        output_column: The column to write: float32 [dim] in each row, with ``batch_format="pyarrow"`` a list of fixed
            size. One that exists already is replaced.
        task: ``"query"`` and ``"document"`` encode with the prompt that the model has for them; None as ``encode``.
        error_column: None: a row that is not a text is an error that names the row, and ends the job. A name: such a
            row gets null (NaN in arrays), and this column says why; it is null for the other rows.
        encode_kwargs: Keyword arguments of ``encode``, as ``{"normalize_embeddings": True}``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`, as ``device``. ``threads`` is the
            actor's ``num_cpus``, if it is not given.

    Raises:
        ModelNotFoundError: The node of the actor does not have the model.
        InvalidArgumentError: An argument is outside what is allowed, or the column does not exist.
        InvalidInputError: A row is not a text, and there is no ``error_column``.
    """

    def __init__(
        self,
        model: Any,
        *,
        column: str = "text",
        output_column: str = "embedding",
        task: Task | None = None,
        error_column: str | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            column=column,
            output_column=output_column,
            task=task,
            error_column=error_column,
            encode_kwargs=encode_kwargs,
            **with_threads(model_kwargs),
        )
        _load(self)


class Sparse(SparseColumns):
    """A column of texts to two columns of sparse vectors: the indices and the values that are not zero.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        column: The column with the texts.
        output_columns: The columns to write: int32 indices and float32 values, lists of equal length in each row.
        task: As in :class:`Embed`.
        error_column: As in :class:`Embed`.
        encode_kwargs: Keyword arguments of ``encode``, as ``{"max_active_dims": 64}``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.

    Raises:
        As for :class:`Embed`.
    """

    def __init__(
        self,
        model: Any,
        *,
        column: str = "text",
        output_columns: tuple[str, str] = ("indices", "values"),
        task: Task | None = None,
        error_column: str | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            column=column,
            output_columns=output_columns,
            task=task,
            error_column=error_column,
            encode_kwargs=encode_kwargs,
            **with_threads(model_kwargs),
        )
        _load(self)


class Rank(RankColumns):
    """Columns of queries and of texts to a column of a reranker's scores.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        query_column: The column with the first text of each pair.
        column: The column with the second one.
        output_column: The column to write: float32, or float32 [labels] for a model with several labels.
        error_column: As in :class:`Embed`.
        predict_kwargs: Keyword arguments of ``predict``.
        **model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.

    Raises:
        As for :class:`Embed`.
    """

    def __init__(
        self,
        model: Any,
        *,
        query_column: str = "query",
        column: str = "text",
        output_column: str = "score",
        error_column: str | None = None,
        predict_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            query_column=query_column,
            column=column,
            output_column=output_column,
            error_column=error_column,
            predict_kwargs=predict_kwargs,
            **with_threads(model_kwargs),
        )
        _load(self)


def with_threads(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a model class with ``threads``: those given, or the CPUs that Ray gives this actor."""
    options = dict(model_kwargs)
    cpus = assigned_cpus()
    if options.get("threads") is None and cpus is not None:
        options["threads"] = cpus
    if options.get("threads") is not None:
        # The tokenizers package would start a thread for each CPU of the node.
        os.environ.setdefault("RAYON_NUM_THREADS", str(options["threads"]))
    return options


def assigned_cpus() -> int | None:
    """The CPUs that Ray gives this actor or task, at least 1; None outside of one."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None and context.get_task_id() is None:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))


def _load(columns: Columns[Any]) -> None:
    """Load the model, so that an actor that cannot find it ends before it gets texts."""
    try:
        columns.model()
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error} This is the node {socket.gethostname()}, in {os.getcwd()}: every node needs the bundle under the "
            "same absolute path, or a Hub id."
        ) from error
