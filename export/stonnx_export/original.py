"""The checkpoint in sentence-transformers itself: what is traced, and what the bundle is compared with.

The places where its versions 5 and 6 differ are in this file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch

from stonnx._bundle import DEFAULT_ROUTE
from stonnx._tokenize import Text
from stonnx_export.checkpoint import Checkpoint

_CLASSES = {"embedding": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}


def load_original(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint in float32 on the CPU."""
    kind = getattr(sentence_transformers, _CLASSES[checkpoint.task])
    with _silence():
        model = kind(
            str(checkpoint.directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
    return model.float().eval()


def route_modules(original: Any, route: str) -> list[Any]:
    """The modules of a route, the first of which is the network or a table."""
    if not _is_sequential(original):  # a CrossEncoder of version 5 is no chain of modules
        return [_Network(original.model)]
    modules = list(original)
    if route == DEFAULT_ROUTE:
        return modules
    return [*modules[0].sub_modules[route], *modules[1:]]


def route_tokenizer(original: Any, route: str) -> Any:
    """The tokenizer of a route: one of transformers, or a bare ``tokenizers.Tokenizer``."""
    return route_modules(original, route)[0].tokenizer if _is_sequential(original) else original.tokenizer


def token_ids(original: Any, route: str, text: Text) -> list[int]:
    """The ids that the original makes of a text."""
    tokenizer = route_tokenizer(original, route)
    if not _is_sequential(original):
        ids = tokenizer(*text, truncation="longest_first", max_length=original.max_length)["input_ids"]
        return list(ids)
    module = route_modules(original, route)[0]
    preprocess = module.preprocess if hasattr(module, "preprocess") else module.tokenize
    ids = preprocess([text])["input_ids"]
    return [int(token) for token in ids.reshape(-1)]


def set_max_seq_length(original: Any, route: str, limit: int) -> None:
    """Let the original cut texts at a length."""
    if _is_sequential(original):
        route_modules(original, route)[0].max_seq_length = limit
    else:
        original.max_length = limit


def outputs(original: Any, task: str, route: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
    """What the original makes of texts, one at a time, without prompts: vectors or logits, [texts, features].

    One at a time means no padding, so nothing that the original does to padded texts can be mistaken for ours.
    """
    known_task = None if route == DEFAULT_ROUTE else route
    rows = []
    with torch.inference_mode():
        for text in texts:
            if task == "rerank":
                row = original.predict([text], activation_fn=torch.nn.Identity(), show_progress_bar=False)
            elif task == "sparse":
                row = original.encode(
                    [text], prompt="", task=known_task, convert_to_sparse_tensor=False, show_progress_bar=False
                )
            else:
                row = original.encode([text], prompt="", task=known_task, show_progress_bar=False)
            rows.append(np.asarray(row, dtype=np.float32).reshape(-1))
    return np.stack(rows)


class _Network:
    def __init__(self, model: torch.nn.Module) -> None:
        self.auto_model = model


def _is_sequential(original: Any) -> bool:
    return isinstance(original, torch.nn.Sequential)


@contextmanager
def _silence() -> Iterator[None]:
    """transformers draws a progress bar while it loads weights; our own stages say enough."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
