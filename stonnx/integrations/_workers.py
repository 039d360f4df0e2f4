"""A model for the workers of a cluster: the driver finds the bundle, and each worker process loads it once."""

from __future__ import annotations

import copy
import inspect
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast

from stonnx._bundle.bundle import Bundle
from stonnx._errors import BundleIntegrityError, DeviceError, InvalidArgumentError, ModelNotFoundError, StonnxError
from stonnx._hub.find import find_bundle
from stonnx._tasks import TASKS

_Model = TypeVar("_Model")

# The options of a model that decide which bundle it loads.
_FINDING = ("dtype", "cache_folder", "revision", "token", "local_files_only")

# The models of this process, the one used last at the end. A worker lives for many jobs, and each may have another
# bundle, so only the last ones are kept.
_KEPT = 4
_loaded: dict[tuple[Any, ...], Any] = {}
_lock = threading.Lock()


class WorkerModel(Generic[_Model]):
    """A bundle that the driver has verified. It can be pickled; a call loads the model, once in each process.

    Args:
        kind: The class of the model.
        model: The directory of a bundle, which every worker has to see at the same path, or a Hub id.
        options: Keyword arguments of the class.

    Raises:
        InvalidArgumentError: ``model`` is not a name or path, or a bundle for another class; an option is unknown.
        ModelNotFoundError: The driver does not find the bundle.
    """

    #: Threads on the CPU, if the options do not say it: engines run several workers on a machine.
    threads: int | None = None
    #: The kernels of the driver's model, if that runs on a CPU; None: the driver has not loaded it.
    kernels: str | None = None

    def __init__(self, kind: type[_Model], model: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
        if not isinstance(model, str | os.PathLike):
            raise InvalidArgumentError(
                "model must be the directory of a bundle or a Hub id, because each worker loads it for itself; "
                f"got {type(model).__name__}."
            )
        known = list(inspect.signature(kind).parameters)[1:]
        for option in options:
            if option not in known:
                raise InvalidArgumentError(
                    f"stonnx.{kind.__name__} does not have an argument {option!r}. It has: {', '.join(known)}."
                )
        self._kind, self._options = kind, dict(options)
        name = os.fspath(model)
        # A worker may have another working directory.
        self.name = str(Path(name).resolve()) if name and Path(name).is_dir() else name
        bundle = self._find()
        row = TASKS[bundle.manifest.task]
        if row.class_name != kind.__name__:
            raise InvalidArgumentError(
                f"{self.name} is a bundle for the task {row.name!r}, and this needs one for stonnx.{kind.__name__}."
            )
        self._identity = bundle.identity

    def __call__(self) -> _Model:
        """The model of this process.

        Raises:
            ModelNotFoundError: This worker cannot read the bundle.
            BundleIntegrityError: This worker finds another bundle under the name than the driver did.
            DeviceError: This worker runs native kernels and the driver does not, or the other way round.
        """
        key = (self._kind, self.name, self._identity, repr(sorted(self._options.items())), self.threads)
        with _lock:
            model = _loaded.pop(key, None) or self._load()
            _loaded[key] = model
            while len(_loaded) > _KEPT:
                del _loaded[next(iter(_loaded))]
        return cast(_Model, model)

    def note_kernels(self) -> None:
        """Have workers compare their native kernels with those of this process, which is the driver."""
        info = cast(Any, self()).info
        self.kernels = info.kernels if info.device == "cpu" else None

    def on_cpu(self) -> Self:
        """The same model on the CPU, for a driver that does not have the device of the workers."""
        model = copy.copy(self)
        model._options = {name: value for name, value in self._options.items() if name != "device_options"}
        model._options["device"] = "cpu"
        return model

    def _find(self) -> Bundle:
        finding = {name: self._options[name] for name in _FINDING if name in self._options}
        task = next(row.name for row in TASKS.values() if row.class_name == self._kind.__name__)
        return find_bundle(self.name, task=task, **finding)

    def _load(self) -> _Model:
        try:
            bundle = self._find()
        except (StonnxError, OSError) as error:
            raise ModelNotFoundError(
                f"The worker on {socket.gethostname()} cannot read the bundle {self.name!r}, which the driver could "
                f"read: {error} Copy the bundle to the same path on every machine, or pass a Hub id."
            ) from error
        if bundle.identity != self._identity:
            raise BundleIntegrityError(
                f"The worker on {socket.gethostname()} finds another bundle under {self.name!r} than the driver did. "
                "Its vectors would not fit the others. Copy the same bundle to every machine, and start again."
            )
        model = cast(Any, self._kind)(bundle, **({"threads": self.threads} | self._options))
        own = model.info.kernels
        # The instructions change the last bits only; with and without kernels, int8 rounds in other places.
        if self.kernels is not None and model.info.device == "cpu" and bool(own) != bool(self.kernels):
            raise DeviceError(
                f"The worker on {socket.gethostname()} runs {self.name!r} with {own or 'no'} native kernels, and the "
                f"driver with {self.kernels or 'none'}. They round in other places, so their vectors would not fit "
                'each other. Install the kernels on every machine (pip install "stonnx[kernels]"), or set '
                "STONNX_KERNELS=0 on every machine, and start again."
            )
        return cast(_Model, model)

    def __repr__(self) -> str:
        return f"{self._kind.__name__}({self.name!r})"
