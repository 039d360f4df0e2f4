"""The names and aliases of the models of a server, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stonnx._errors import InvalidArgumentError
from stonnx.serve.settings import ModelSettings, Settings


def names_of(settings: Settings) -> dict[str, ModelSettings]:
    """The models of some settings, by name.

    Raises:
        InvalidArgumentError: Two models have one name.
    """
    names: dict[str, ModelSettings] = {}
    for entry in settings.models:
        name = entry.name or Path(entry.bundle).resolve().name if _is_path(entry) else entry.name or _last(entry.bundle)
        if name in names:
            raise InvalidArgumentError(f"Two models are called {name!r}. Give one another name: NAME={entry.bundle}")
        names[name] = entry
    return names


def _is_path(entry: ModelSettings) -> bool:
    return Path(entry.bundle).is_dir()


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def aliases_of(settings: Settings, names: Mapping[str, ModelSettings]) -> dict[str, str]:
    """The name that each alias stands for.

    Raises:
        InvalidArgumentError: An alias is not well-formed, is the name of a model, or stands for none.
    """
    aliases = {alias: name for name, entry in names.items() for alias in entry.aliases}
    for text in settings.alias:
        alias, equals, target = text.partition("=")
        if not equals or not alias or not target:
            raise InvalidArgumentError(f"alias {text!r} is not of the form OTHER=NAME.")
        aliases[alias] = target
    for alias, target in aliases.items():
        base = target if target in names else target.rpartition(":")[0]
        if alias in names:
            raise InvalidArgumentError(f"alias {alias!r} is the name of a model.")
        if base not in names:
            raise InvalidArgumentError(
                f"alias {alias}={target}: there is no model {base or target!r}. The models are: {', '.join(names)}."
            )
    return aliases
