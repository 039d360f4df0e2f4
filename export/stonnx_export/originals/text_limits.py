"""How long a text may be: the tokenizer's limit, or the network's number of positions if that is smaller."""

from __future__ import annotations

import logging

from stonnx._errors import UnsupportedError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx_export.checkpoint.module_files import transformer_settings
from stonnx_export.checkpoint.modules import Transformer
from stonnx_export.checkpoint.processing import fixes_length
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.originals.original import Original

logger = logging.getLogger("stonnx")

# From this number on, a tokenizer's limit means "unlimited": transformers writes 1e30 for that.
_NO_LIMIT = 1_000_000
# Tables of positions are no longer than this; a network for more tokens computes its positions.
_LONGEST_TABLE = 4096


def text_limit(checkpoint: Checkpoint, route: str, original: Original) -> int | None:
    """The longest text of a route in tokens; None if texts are never cut, as for a table of vectors.

    Raises:
        UnsupportedError: Nothing limits the length.
    """
    limit = original.tokenizer(route).max_length
    if limit is not None and limit > _NO_LIMIT:
        limit = None
    if not isinstance(checkpoint.routes[route][0], Transformer):
        return limit
    limits = [number for number in (limit, checkpoint.max_positions) if number]
    if not limits:
        raise UnsupportedError("Neither the checkpoint nor its tokenizer limits the length of a text.")
    return int(min(limits))


def limits_of_tasks(checkpoint: Checkpoint, route: str, *, chat: bool) -> tuple[int | None, int | None]:
    """The longest query and the longest document in tokens, if they have limits of their own.

    Args:
        checkpoint: The checkpoint.
        route: The route of its texts.
        chat: Whether texts are put into a chat template.
    """
    first, positions = checkpoint.routes[route][0], checkpoint.max_positions
    if not isinstance(first, Transformer):
        return None, None
    query, document, expansion = first.query_length, first.document_length, first.query_expansion
    if fixes_length(transformer_settings(checkpoint.folders[route]).get("processing_kwargs") or {}, chat=chat):
        query = document = None
    if expansion is not None:
        query = expansion.length if expansion.fixed else query and max(query, expansion.length)
    limits = (query, document)
    if positions is None:
        return limits
    own, other = (limit and min(limit, positions) for limit in limits)
    return own, other


def respect_positions(checkpoint: Checkpoint, original: Original) -> None:
    """Cut the original's texts after the last position of its network, as the bundle cuts its texts.

    RoBERTa and its kin have two positions fewer than their configuration says. With a limit of 514 tokens, which
    sentence-transformers also takes if a model has no limit, the original fails at 513.

    Raises:
        UnsupportedError: The original reads texts that are longer than its positions, and the bundle would not.
    """
    for route in checkpoint.routes:
        written, limit = original.tokenizer(route).max_length, text_limit(checkpoint, route, original)
        if written is None or limit is None or written <= limit:
            continue
        if not _fails_beyond(checkpoint, route, original, written, limit):
            raise UnsupportedError(
                f"{checkpoint.directory} reads up to {written} tokens, but has max_position_embeddings for {limit} in "
                f"its config.json. Decide on a limit: set max_seq_length in its sentence_bert_config.json to {limit} "
                "or less."
            )
        original.set_max_length(route, limit)
        logger.warning(
            "The settings of %s allow %d tokens, and it has positions for %d: sentence-transformers fails for longer "
            "texts. The bundle cuts them to %d tokens.",
            *(checkpoint.directory, written, limit, limit),
        )


def _fails_beyond(checkpoint: Checkpoint, route: str, original: Original, written: int, limit: int) -> bool:
    """Whether the original fails for a text of more tokens than its network has positions."""
    if limit > _LONGEST_TABLE:
        return False
    text = " ".join(["a"] * (limit + 1))
    texts: list[Text] = [(text, "a") if TASKS[checkpoint.task].reads_pairs else text]
    original.set_max_length(route, limit)
    original.outputs(route, texts)
    original.set_max_length(route, min(written, limit + 1))
    try:
        original.outputs(route, texts)
    except Exception:  # of PyTorch or onnxruntime, for an index beyond the table
        return True
    original.set_max_length(route, written)
    return False
