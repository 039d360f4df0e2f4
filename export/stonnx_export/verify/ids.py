"""Compares the ids that a bundle and its original make of texts."""

from __future__ import annotations

from collections.abc import Sequence

from stonnx._engine.route import LoadedRoute
from stonnx._errors import FidelityError
from stonnx._text.tokens import Text
from stonnx_export.originals.original import Original
from stonnx_export.texts import LONGEST


def compare_ids(
    route: LoadedRoute,
    original: Original,
    name: str,
    texts: Sequence[Text],
    task: str | None = None,
    prompt: str = "",
) -> None:
    """Compare the ids of texts, of one with all special tokens, and of one beyond the limit.

    Args:
        route: The bundle's route.
        original: The original.
        name: The name of the route.
        texts: The texts.
        task: ``query`` or ``document``, if they are called that.
        prompt: The prompt before each.

    Raises:
        FidelityError: Ids differ.
    """
    tokenizer = route.tokenizer_of(task)
    # The last text is beyond the limit, however long that is.
    long = " ".join(["a"] * ((tokenizer.max_seq_length or LONGEST) + 8))
    special = [tokenizer.backend.id_to_token(index) for index in route.spec.tokenizer.special_token_ids]
    written = f"a {' b '.join(token for token in special if token)} c"
    more = [(each, "a b c") if isinstance(texts[0], tuple) else each for each in (written, long)]
    for text in [*texts, *more]:
        expected = original.token_ids(name, text, task, prompt)
        (encoding,) = tokenizer.encode(tokenizer.prompted([text], prompt, task))
        if [*encoding.ids] != expected:
            raise FidelityError(
                f"The tokenizer differs from the original's for {f'the {task} ' if task else ''}{str(text)[:60]!r}: "
                f"{len(encoding.ids)} ids instead of {len(expected)}, starting {encoding.ids[:8]} instead of "
                f"{expected[:8]}."
            )
