"""The toy networks of toy_bundles.py in torch, for sentence-transformers to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from toy_bundles import MAX_SEQ_LENGTH, toy_tokenizer
from transformers import PreTrainedTokenizerFast


class ToyNetwork(InputModule):
    """A toy network as a module of sentence-transformers: ``compute`` gets ids, mask and token types."""

    def __init__(self, output: str, compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.output, self.compute, self.max_seq_length = output, compute, MAX_SEQ_LENGTH
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=toy_tokenizer(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        prompt = prompt or ""
        texts = [prompt + text if isinstance(text, str) else [prompt + text[0], text[1]] for text in inputs]
        return dict(
            self.tokenizer(
                texts,
                padding=True,
                truncation="longest_first",
                max_length=self.max_seq_length,
                return_token_type_ids=True,
                return_tensors="pt",
            )
        )

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return features | {self.output: self.compute(*(features[name] for name in names))}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def sparse_network(table: np.ndarray) -> ToyNetwork:
    """The network of :func:`sparse_graph`."""
    rows = torch.from_numpy(table)

    def compute(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        masked = torch.where(mask[..., None].bool(), rows[ids], torch.tensor(-1e9))
        return torch.relu(masked.max(dim=1).values)

    return ToyNetwork("sentence_embedding", compute)


def pair_network(table: np.ndarray, second: np.ndarray) -> ToyNetwork:
    """The network of :func:`pair_graph`, up to its logits."""
    rows, second_row = torch.from_numpy(table), torch.from_numpy(second)

    def compute(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        tokens = rows[ids] + types[..., None] * second_row
        return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    return ToyNetwork("scores", compute)
