"""The common part of adapters: load the model once, on first use, and keep its name for the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

from stonnx._errors import InvalidArgumentError

_Model = TypeVar("_Model")


class LazyModel(Generic[_Model]):
    """A model that is loaded on first use. It can be copied and pickled: the copy loads the bundle again.

    Args:
        kind: The class of the model.
        model: The directory of a bundle, a Hub id, or a loaded model of this class.
        options: Keyword arguments of the class.

    Raises:
        InvalidArgumentError: ``model`` has another class, or is a loaded model and comes with options.
    """

    def __init__(self, kind: type[_Model], model: Any, options: Mapping[str, Any] | None = None) -> None:
        self._kind, self._options = kind, dict(options or {})
        self._loaded: _Model | None = None
        if isinstance(model, kind):
            if self._options:
                raise InvalidArgumentError(
                    f"A loaded model takes no options, got {', '.join(self._options)}. Load it with them: "
                    f"stonnx.{kind.__name__}(..., {next(iter(self._options))}=...)"
                )
            self._loaded = model
            self.name = str(cast(Any, model).info.directory)
        elif isinstance(model, str | os.PathLike):
            self.name = os.fspath(model)
        else:
            raise InvalidArgumentError(
                f"model must be the directory of a bundle, a Hub id or a stonnx.{kind.__name__}, "
                f"got {type(model).__name__}."
            )

    def __call__(self) -> _Model:
        if self._loaded is None:
            self._loaded = cast(Any, self._kind)(self.name, **self._options)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyModel[_Model]:
        return self  # hosts copy their settings; the model is shared

    def __repr__(self) -> str:
        return f"{self._kind.__name__}({self.name!r})"
