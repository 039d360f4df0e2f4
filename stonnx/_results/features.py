"""All features of each text: its ids, the vectors of its tokens, and its own vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from stonnx._engine.call import BatchResult
from stonnx._engine.request import Request
from stonnx._engine.route import LoadedRoute

Features: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class TokenFeatures:
    """Collects ``token_embeddings`` and ``sentence_embedding``, without padding, a dict for each text."""

    def collect(
        self, request: Request[list[Features]], route: LoadedRoute, batches: Iterator[BatchResult]
    ) -> list[Features]:
        """The features of the texts of a request."""
        result: list[Features] = [{} for _ in request.texts]
        is_chat = route.tokenizer.chat is not None
        prompt_length = route.tokenizer.prompt_length(request.prompt) if request.prompt and not is_chat else None
        has_token_types = "token_type_ids" in route.session.inputs
        for batch in batches:
            types = batch.tokens.token_type_ids
            for row, index in enumerate(batch.indices):
                length = int(batch.tokens.attention_mask[row].sum())
                item = result[index]
                item["input_ids"] = batch.tokens.input_ids[row, :length]
                if has_token_types:
                    item["token_type_ids"] = np.zeros(length, np.int64) if types is None else types[row, :length]
                item["attention_mask"] = batch.tokens.attention_mask[row, :length]
                item["modality"] = "message" if is_chat else "text"
                if prompt_length is not None:
                    item["prompt_length"] = prompt_length
                for name, output in zip(request.outputs, batch.outputs, strict=True):
                    item[name] = output[row, :length] if name == "token_embeddings" else output[row]
        return result

    def join(self, parts: list[list[Features]]) -> list[Features]:
        """The features of all texts."""
        return [item for part in parts for item in part]
