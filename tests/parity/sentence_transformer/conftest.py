"""all-MiniLM-L6-v2 in stonnx and in the original, made with the same options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from same_results import PROMPTS

import stonnx


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of PyTorch wait for each other by spinning: beside other work, a short text takes ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def build(minilm_bundle: Path, minilm_checkpoint: Path) -> Callable[..., tuple[Any, Any]]:
    """(stonnx, original), both made with the same options."""

    def make(**options: Any) -> tuple[Any, Any]:
        original = sentence_transformers.SentenceTransformer(str(minilm_checkpoint), device="cpu", **options)
        return stonnx.SentenceTransformer(minilm_bundle, **options), original

    return make


@pytest.fixture(scope="module")
def prompted(build: Callable[..., tuple[Any, Any]]) -> tuple[Any, Any]:
    """(stonnx, original) with prompts."""
    return build(prompts=PROMPTS)
