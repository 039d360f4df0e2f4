"""Errors of inputs that say which modalities the model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from stonnx._errors import InvalidInputError
from stonnx._text.modalities import Modality, why_unsupported


class Reads(Protocol):
    """A model, as far as errors of inputs are about it."""

    @property
    def modalities(self) -> list[Modality]: ...

    def is_singular_input(self, inputs: Any) -> bool: ...


def why_not(model: Reads, items: Sequence[Any]) -> str:
    """Why a model does not read some inputs, in the words of the original. Empty: not because of their modality."""
    return why_unsupported(items, model.modalities, f"{type(model).__name__} model")


@contextmanager
def naming_modalities(model: Reads, inputs: Any, *, are_many: bool = False) -> Iterator[None]:
    """Add to an InvalidInputError why the model does not read such inputs, if it is because of their modality.

    ``are_many`` says that they are a list of inputs, also if it looks like a single one.
    """
    try:
        yield
    except InvalidInputError as error:
        reason = why_not(model, list(inputs) if are_many or not model.is_singular_input(inputs) else [inputs])
        if reason:
            error.args = (f"{error} {reason}",)
        raise
