"""Compares a tokenizer that was read without transformers with transformers, if that is installed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from stonnx._errors import UnsupportedError
from stonnx._text.tokens import Text
from stonnx_export.originals.tokenizer_files import lower_case, tokenizer_arguments
from stonnx_export.texts import TEXTS

logger = logging.getLogger("stonnx")


def compare_with_transformers(
    folder: Path, backend: tokenizers.Tokenizer, *, pairs: bool, do_lower_case: bool, add_special_tokens: bool
) -> None:
    """Raise UnsupportedError if transformers makes other token ids from any text.

    Args:
        folder: Where the tokenizer's files are.
        backend: The tokenizer as it was read, without truncation and padding.
        pairs: Whether the model reads pairs of texts.
        do_lower_case: The setting of the Transformer module.
        add_special_tokens: Whether texts get special tokens.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return
    try:
        theirs: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **tokenizer_arguments(folder)
        )
    except Exception as error:  # of transformers, which may know the model's configuration even less than we do
        logger.info("transformers cannot load the tokenizer in %s, so it is not compared: %s", folder, error)
        return
    if do_lower_case and getattr(theirs, "backend_tokenizer", None) is not None:
        lower_case(theirs.backend_tokenizer)
    for text in _texts(backend, pairs):
        first, second = text if isinstance(text, tuple) else (text, None)
        ours = list(backend.encode(first, second, add_special_tokens=add_special_tokens).ids)
        # A list, as sentence-transformers passes it: a single pair with an empty text is taken for one text.
        expected = list(theirs([text], add_special_tokens=add_special_tokens)["input_ids"][0])
        if ours != expected:
            raise UnsupportedError(
                f"transformers makes other token ids of {str(text)[:60]!r} than {folder / 'tokenizer.json'} says: "
                f"{expected[:12]} instead of {ours[:12]}. A setting beside that file changes what it does, and only "
                "transformers can follow it. Export the PyTorch weights (--source torch), or save the tokenizer as "
                "transformers has it: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
            )


def _texts(backend: tokenizers.Tokenizer, pairs: bool) -> Sequence[Text]:
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    texts = [*TEXTS, f"a {' b '.join(special[:20])} c"]
    return list(zip(texts, texts[3:] + texts[:3], strict=True)) if pairs else [*texts]
