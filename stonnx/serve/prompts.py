"""The default prompt, which goes before a text if its request names no prompt and no task."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stonnx._errors import InvalidArgumentError
from stonnx._model.model import Model
from stonnx.serve.settings import ModelSettings

logger = logging.getLogger("stonnx.serve")


def set_default_prompt(model: Model, entry: ModelSettings, of_all: str | None) -> None:
    """Set the default prompt of a model: its own, or else that of all models if the model has such a prompt.

    Args:
        model: The model.
        entry: Its settings.
        of_all: The ``default_prompt`` of the server.

    Raises:
        InvalidArgumentError: The model does not have the prompt that its own settings name.
    """
    default = entry.default_prompt or of_all
    if default and default in model.prompts:
        model.default_prompt_name = default
    elif entry.default_prompt:
        raise InvalidArgumentError(
            f"default_prompt {default!r} of {entry.bundle} is not among its prompts: {_names(model)}."
        )


def refuse_unknown_default(models: Mapping[str, Model], of_all: str | None) -> None:
    """Refuse a default prompt that none of the models has.

    Raises:
        InvalidArgumentError: No model has it.
    """
    if not of_all or any(of_all in model.prompts for model in models.values()):
        return
    listed = "; ".join(f"{name} has {_names(model)}" for name, model in models.items())
    raise InvalidArgumentError(
        f"No model has the prompt {of_all!r} of default_prompt. The prompts are: {listed}. Name one of these, or "
        "define it in the --config file: a table [model.prompts] after its [[model]]."
    )


def warn_without_default(name: str, model: Model, entry: ModelSettings, of_all: str | None) -> None:
    """Say that the default prompt of all models does not apply to this one."""
    if not of_all or entry.default_prompt or of_all in model.prompts:
        return
    own = model.default_prompt_name
    logger.warning(
        "The model %s does not have the prompt %r of default_prompt: its texts get %s. Its prompts: %s",
        name,
        of_all,
        "no prompt" if own is None else f"its own default prompt {own!r}",
        _names(model),
    )


def _names(model: Model) -> str:
    return ", ".join(model.prompts) or "none"
