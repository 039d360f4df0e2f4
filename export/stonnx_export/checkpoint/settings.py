"""config_sentence_transformers.json, read as sentence-transformers reads it: the settings of the model as a whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._errors import ExportError
from stonnx._tasks import TASKS, Task
from stonnx_export.checkpoint.files import optional_object

logger = logging.getLogger("stonnx")

_NAME = "config_sentence_transformers.json"
# Names that the model classes have a similarity for. sentence-transformers silently ignores any other.
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_SIMILARITIES_OF_ROWS = ("maxsim", "meanmaxsim")
# Prompts that embedding models have even if nobody wrote them down.
_PROMPTS = ("query", "document")


@dataclass(frozen=True)
class Settings:
    """The settings of a model as a whole."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str | None
    truncate_dim: int | None
    max_active_dims: int | None


def raw_settings(directory: Path) -> dict[str, Any]:
    """The file as it is; an empty object if there is none."""
    return optional_object(directory / _NAME)


def read_settings(directory: Path, task: Task) -> Settings:
    """The settings of a checkpoint that matter to a task.

    Raises:
        ExportError: A setting has a value that sentence-transformers refuses, too.
    """
    found, file = raw_settings(directory), directory / _NAME
    prompts = _prompts(found, file)
    default = found.get("default_prompt_name")
    known = {*prompts, *(() if task == "rerank" else _PROMPTS)}
    if default is not None and default not in known:
        raise ExportError(
            f"{file} has the default_prompt_name {default!r}, which is not among its prompts: {sorted(known)}. "
            "sentence-transformers refuses that, too. Correct the name, or add the prompt."
        )
    similarity = found.get("similarity_fn_name")
    known_names = _SIMILARITIES if TASKS[task].row_mask is None else _SIMILARITIES_OF_ROWS
    if similarity is not None and similarity not in known_names:
        logger.warning(
            "%s has the similarity_fn_name %r, which sentence-transformers does not know and passes over. The bundle "
            "has the default of its class. Known: %s",
            *(file, similarity, ", ".join(known_names)),
        )
        similarity = None
    return Settings(
        prompts=prompts,
        default_prompt_name=default,
        similarity_fn_name=similarity,
        truncate_dim=_integer(found, "truncate_dim", file) if task == "embedding" else None,
        max_active_dims=_active_dims(found, file) if task == "sparse" else None,
    )


def _prompts(found: Mapping[str, Any], file: Path) -> dict[str, str]:
    prompts = found.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise ExportError(f"{file}: prompts must be an object of names and texts, found {type(prompts).__name__}.")
    wrong = [name for name, prompt in prompts.items() if not isinstance(prompt, str | None)]
    if wrong:
        raise ExportError(f"{file}: the prompt {wrong[0]!r} must be a text, found {type(prompts[wrong[0]]).__name__}.")
    return {name: prompt or "" for name, prompt in prompts.items()}


def _integer(found: Mapping[str, Any], name: str, file: Path) -> int | None:
    value = found.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ExportError(f"{file}: {name} must be an integer or null, found {value!r}.")
    return value


def _active_dims(found: Mapping[str, Any], file: Path) -> int | None:
    value = _integer(found, "max_active_dims", file)
    if value is not None and value <= 0:
        raise ExportError(
            f"{file}: max_active_dims must be a positive integer or null, found {value}. sentence-transformers refuses "
            "that, too."
        )
    return value
