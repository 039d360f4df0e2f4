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
from stonnx.integrations._columns import Columns, EmbedColumns, RankColumns, SparseColumns

__all__ = ["Embed", "Rank", "Sparse"]


class _Actor(Columns[Any]):
    """Columns in an actor of Ray: use one of its subclasses. The model is loaded when the actor starts."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **with_threads(options))
        try:
            self.model()
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{error} This is the node {socket.gethostname()}, in {os.getcwd()}: every node needs the bundle under "
                "the same absolute path, or a Hub id."
            ) from error


class Embed(_Actor, EmbedColumns):
    """A column of texts to a column of dense vectors.

    An actor loads the model once, when it starts. It computes with as many threads as Ray gives it CPUs.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        column: The column with the texts (default: ``"text"``).
        output_column: The column to write (default: ``"embedding"``): float32 [dim] in each row, with
            ``batch_format="pyarrow"`` a list of fixed size. One that exists already is replaced.
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


class Sparse(_Actor, SparseColumns):
    """A column of texts to two columns of sparse vectors: the indices and the values that are not zero.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        column: The column with the texts (default: ``"text"``).
        output_columns: The columns to write: int32 indices and float32 values, lists of equal length in each row
            (default: ``("indices", "values")``).
        task: As in :class:`Embed`.
        error_column: As in :class:`Embed`.
        encode_kwargs: Keyword arguments of ``encode``, as ``{"max_active_dims": 64}``.
        **model_kwargs: Keyword arguments of :class:`stonnx.SparseEncoder`.

    Raises:
        As for :class:`Embed`.
    """


class Rank(_Actor, RankColumns):
    """Columns of queries and of texts to a column of a reranker's scores.

    Args:
        model: The directory of a bundle, which every node must have under this path, or a Hub id.
        query_column: The column with the first text of each pair (default: ``"query"``).
        column: The column with the second one (default: ``"text"``).
        output_column: The column to write (default: ``"score"``): float32, or float32 [labels] for a model
            with several labels.
        error_column: As in :class:`Embed`.
        predict_kwargs: Keyword arguments of ``predict``.
        **model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.

    Raises:
        As for :class:`Embed`.
    """


def with_threads(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments with the ``threads`` of a model: those given, or the CPUs that Ray gives this actor."""
    options = dict(given)
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
