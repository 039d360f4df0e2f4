"""Published models of late interaction in every layout: the table, which needs neither PyTorch nor a checkpoint."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .table import BERT, MINILM_L12, MODERNBERT, QWEN3, XLM_ROBERTA, Backbone

Layout = Literal["native", "pylate", "pylate-sentence-transformer", "stanford", "sentence-transformer"]


@dataclass(frozen=True)
class LateRow:
    """One published model of late interaction.

    `settings` are those of its layout: arguments of the Transformer, PyLate's settings, or Stanford's metadata.
    `markers` are tokens that the tokenizer gets. The layers after the network give `dimensions`, published.
    """

    name: str
    backbone: Backbone
    layout: Layout
    dimensions: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    markers: tuple[str, ...] = ()
    residual: bool = False
    pooling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mask: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def slug(self) -> str:
        """The name as one folder name."""
        return self.name.replace("/", "__")


_PYLATE = {
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 300,
    "attend_to_expansion_tokens": False,
    "similarity_fn_name": "MaxSim",
}

ROWS: tuple[LateRow, ...] = (
    LateRow(
        "colbert-ir/colbertv2.0",
        BERT,
        "stanford",
        (128,),
        {"query_maxlen": 32, "doc_maxlen": 180, "mask_punctuation": True, "attend_to_mask_tokens": False},
        markers=("[unused0]", "[unused1]"),
    ),
    LateRow(
        "answerdotai/answerai-colbert-small-v1",
        MINILM_L12,
        "stanford",
        (96,),
        {"query_maxlen": 32, "doc_maxlen": 300, "mask_punctuation": True, "attend_to_mask_tokens": True},
        markers=("[unused0]", "[unused1]"),
    ),
    LateRow("lightonai/colbertv2.0", BERT, "pylate-sentence-transformer", (128,), _PYLATE, markers=("[Q] ", "[D] ")),
    LateRow(
        "lightonai/GTE-ModernColBERT-v1",
        MODERNBERT,
        "pylate",
        (128,),
        {**_PYLATE, "do_query_expansion": False, "skiplist_words": list(string.punctuation)},
        markers=("[Q] ", "[D] "),
    ),
    LateRow(
        "mixedbread-ai/mxbai-edge-colbert-v0-17m",
        MODERNBERT,
        "pylate",
        (512, 48),
        {**_PYLATE, "query_length": 48, "attend_to_expansion_tokens": True},
        markers=("[Q] ", "[D] "),
        residual=True,
    ),
    LateRow(
        "zoo/late-interaction-native",
        XLM_ROBERTA,
        "native",
        (128,),
        {
            "query_length": 40,
            "document_length": 120,
            "query_expansion": {"strategy": "min", "length": 24, "attend": False, "token": None},
        },
        {"query": "query: ", "document": "passage: "},
        mask={"skiplist_words": [".", ",", "▁.", "▁,"], "skiplist_tasks": ["query", "document"]},
    ),
    LateRow(
        "zoo/late-interaction-causal",
        QWEN3,
        "native",
        (128,),
        {"query_expansion": {"strategy": "fixed", "length": 16, "attend": False, "token": None}},
        mask={"skiplist_words": ["."]},
    ),
    LateRow(
        "zoo/late-interaction-pooled",
        BERT,
        "native",
        (128,),
        {},
        {"query": "", "document": ""},
        pooling={"pool_factor": 2.0, "num_protected_tokens": 1},
    ),
)


def row(name: str) -> LateRow:
    """The row of a name."""
    return next(candidate for candidate in ROWS if candidate.name == name)
