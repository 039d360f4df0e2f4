"""The models that a server has, by the names that clients call them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stonnx._batcher.scheduler import Scheduler
from stonnx._batcher.workers import RunReport
from stonnx._bundle.manifest import MANIFEST_NAME
from stonnx._errors import InvalidArgumentError
from stonnx._load import load_model
from stonnx._model.model import Model
from stonnx._tasks import TASKS, ResultKind, tasks_giving
from stonnx.serve.errors import Kind, RequestError
from stonnx.serve.names import aliases_of, names_of
from stonnx.serve.prompts import refuse_unknown_default, set_default_prompt, warn_without_default
from stonnx.serve.served import Choice, Served, measured_speed
from stonnx.serve.settings import ModelSettings, Settings

logger = logging.getLogger("stonnx.serve")


class Models:
    """All models of a server. It starts empty; :meth:`load` loads them.

    Args:
        settings: The settings of the server.
        report: The function that gets a report of each run.
        paths: The paths of the server by the form of their result, for messages.
    """

    def __init__(
        self,
        settings: Settings,
        report: Callable[[RunReport], None],
        paths: Mapping[ResultKind, Sequence[str]] | None = None,
    ) -> None:
        self._settings, self._report, self._paths = settings, report, paths or {}
        self._served: dict[str, Served] = {}
        self._aliases: dict[str, str] = {}
        # Replacements of a model's files that could not be loaded. They are not tried again.
        self._refused: dict[str, str] = {}
        # One scheduler for the CPU, and one for each GPU.
        self._schedulers: dict[str, Scheduler] = {}
        self._changing = threading.Lock()
        self.names = names_of(settings)

    def load(self) -> None:
        """Load and warm up all models. Call it in a thread of its own."""
        loaded = [(name, entry, *self._open(entry)) for name, entry in self.names.items()]
        refuse_unknown_default({name: model for name, _, model, _ in loaded}, self._settings.default_prompt)
        slots: dict[str, int] = {}
        for *_, model, _ in loaded:
            slots[model.device] = max(slots.get(model.device, 1), model.work_slots)
        for device, count in slots.items():
            self._add_scheduler(device, count)
        served = [self._serve(name, entry, model, identity) for name, entry, model, identity in loaded]
        aliases = aliases_of(self._settings, self.names)
        self._served = {entry.name: entry for entry in served}
        self._aliases = aliases

    def change(self, settings: Settings) -> list[str]:
        """Serve the models of other settings. Models of equal settings and requests in progress are not disturbed.

        Returns:
            The names of the models that are new, loaded with other settings, or not served any more.

        Raises:
            InvalidArgumentError: Two models have one name, or an alias is wrong. Then nothing changes.
        """
        with self._changing:
            names = names_of(settings)
            aliases = aliases_of(settings, names)
            self._settings = settings
            for scheduler in self._schedulers.values():
                scheduler.limit = settings.max_queued_tokens
            served: dict[str, Served] = {}
            for name, entry in names.items():
                old = self._served.get(name)
                if old is not None and old.settings == entry:
                    served[name] = old
                    continue
                try:
                    served[name] = self._load_one(name, entry)
                except Exception as error:  # any fault of one model: the others are served
                    logger.error("The model %s was not loaded: %s", name, error)
                    if old is not None:
                        served[name] = old
            changes = [name for name in self._served | served if self._served.get(name) is not served.get(name)]
            for name in changes:
                done = "is not served any more" if name not in served else "was loaded"
                logger.info("The model %s %s", name, done)
            # Requests see either all of the old models or all of the new ones.
            self._served, self.names = served, names
            self._aliases = {alias: name for alias, name in aliases.items() if name.partition(":")[0] in served}
        return changes

    def _load_one(self, name: str, entry: ModelSettings) -> Served:
        model, identity = self._open(entry)
        if model.device not in self._schedulers:
            self._add_scheduler(model.device, model.work_slots)
        return self._serve(name, entry, model, identity)

    def _add_scheduler(self, device: str, slots: int) -> None:
        limit = self._settings.max_queued_tokens
        self._schedulers[device] = Scheduler(slots, max_queued_tokens=limit, report=self._report)

    def reload(self) -> list[str]:
        """Load bundles again whose files were replaced. Other models and requests in progress are not disturbed.

        Returns:
            The names of the models that were replaced.
        """
        with self._changing:
            return self._reload()

    def _reload(self) -> list[str]:
        replaced = []
        for name, old in list(self._served.items()):
            now = _identity(old.directory)
            # Either there is nothing, because a directory is being moved, or these files could not be loaded before.
            if now in ("", old.identity) or self._refused.get(name) == now:
                continue
            try:
                model, identity = self._open(old.settings)
                if model.device not in self._schedulers:
                    raise InvalidArgumentError(f"it would run on {model.device}, not on {old.model.device}")
                fresh = self._serve(name, old.settings, model, identity)
            except Exception as error:  # any fault of the new files: the old model still works
                logger.error("The model %s was not replaced: %s", name, error)
                self._refused[name] = now
                continue
            if fresh.task != old.task:
                logger.error("The model %s was not replaced: the new bundle is for the task %s", name, fresh.task)
                self._refused[name] = now
                continue
            self._served[name] = fresh
            replaced.append(name)
            logger.info("The model %s was replaced", name)
        return replaced

    def _open(self, entry: ModelSettings) -> tuple[Model, str]:
        options: dict[str, Any] = {
            "device": entry.device or self._settings.device,
            "threads": entry.threads or self._settings.threads,
            "max_batch_tokens": entry.max_batch_tokens,
            "prompts": dict(entry.prompts) or None,
            "dtype": entry.dtype,
        }
        # Taken before loading, so that files that are replaced meanwhile are loaded once more.
        identity = _identity(Path(entry.bundle))
        model = load_model(entry.bundle, entry.task, revision=entry.revision, **options)
        set_default_prompt(model, entry, self._settings.default_prompt)
        if entry.max_seq_length is not None:
            model.max_seq_length = entry.max_seq_length
        return model, identity

    def _serve(self, name: str, entry: ModelSettings, model: Model, identity: str) -> Served:
        warn_without_default(name, model, entry, self._settings.default_prompt)
        model.warmup()
        row, scheduler = TASKS[model.manifest.task], self._schedulers[model.device]
        served = Served(name, entry, model, row, scheduler, int(time.time()), identity, Path(model.info.directory))
        scheduler.pace(served.usual_work).tokens_per_second = measured_speed(served)
        return served

    def choose(self, name: str | None, *kinds: ResultKind, ranks: bool = False) -> Choice:
        """The model that a request means.

        Args:
            name: The name as the client wrote it. None or empty: the only model that gives such results, of the first
                of ``kinds`` that a model gives.
            kinds: The forms of results that will do. None of them: any.
            ranks: Whether the results have to give an order of documents. A model that cannot is chosen by its name or
                if there is no other, so that the operation says why it cannot.

        Raises:
            RequestError: The model does not exist or gives other results, or several models give such.
        """
        wanted = tasks_giving(*kinds) if kinds else tuple(TASKS)
        able = [served for served in self._served.values() if served.task in wanted]
        if ranks:
            able = [served for served in able if served.ranks] or able
        if not name:
            first = (tasks_giving(kind) for kind in kinds)
            preferred = ([served for served in able if served.task in tasks] for tasks in first)
            usual = next(filter(None, preferred), able)
            if len(usual) == 1:
                return Choice(usual[0])
            if not able:
                raise RequestError(
                    Kind.WRONG_TASK,
                    f"No model here can do that. It needs a model for the task {' or '.join(wanted)}. There is: "
                    + "; ".join(f"{served.name}, which {self._can_do(served)}" for served in self._served.values()),
                    "model",
                )
            names = ", ".join(served.name for served in able)
            raise RequestError(
                Kind.MODEL_NOT_FOUND, f"Several models can do that: say which one in `model`: {names}.", "model"
            )
        choice = self._named(name)
        if choice is None:
            raise RequestError(Kind.MODEL_NOT_FOUND, self._unknown(name), "model")
        if choice.served.task not in wanted:
            can = ", ".join(served.name for served in able) or "none"
            raise RequestError(
                Kind.WRONG_TASK,
                f"The model {choice.served.name!r} {self._can_do(choice.served)}, and cannot do that. Models that can: "
                f"{can}.",
                "model",
            )
        return choice

    def _unknown(self, name: str) -> str:
        """Why there is no model of a name: there is no such model, or it does not have the prompt after the colon."""
        target = self._aliases.get(name, name)
        base, _, suffix = target.rpartition(":")
        served = self._served.get(self._aliases.get(base, base))
        if served is None:
            known = ", ".join([*self._served, *self._aliases])
            return f"The model {name[:100]!r} does not exist. There is: {known}."
        names = [f"{base}:{each}" for each in served.prompt_suffixes]
        return (
            f"The model {name[:100]!r} does not exist: {served.name} has no prompt {suffix[:100]!r}. "
            f"There is: {', '.join([base, *names])}."
        )

    @property
    def paths(self) -> list[str]:
        """The paths that the models answer; while they are loaded, those that models of any task answer."""
        kinds = {served.row.kind for served in self._served.values()} or self._paths
        return list(dict.fromkeys(path for kind in self._paths if kind in kinds for path in self._paths[kind]))

    def _can_do(self, served: Served) -> str:
        paths = ", ".join(self._paths.get(served.row.kind, ()))
        return f"{served.row.does} ({paths})" if paths else served.row.does

    def _named(self, name: str) -> Choice | None:
        target = self._aliases.get(name, name)
        if target in self._served:
            return Choice(self._served[target])
        # NAME:query and NAME:document are for clients that can only change the name. An alias works the same way.
        base, colon, suffix = target.rpartition(":")
        base = self._aliases.get(base, base)
        served = self._served.get(base) if colon else None
        if served is None:
            return None
        if suffix in ("query", "document"):
            return Choice(served, task=suffix)
        return Choice(served, prompt_name=suffix) if suffix in served.prompts else None

    def __iter__(self) -> Any:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def aliases_of(self, name: str) -> list[str]:
        """Other names of a model."""
        return [alias for alias, target in self._aliases.items() if target == name]

    @property
    def aliases(self) -> Mapping[str, str]:
        """The name that each alias stands for."""
        return self._aliases

    @property
    def schedulers(self) -> Mapping[str, Scheduler]:
        """The queues, by the device of their models."""
        return self._schedulers

    def queued_tokens(self) -> int:
        """Tokens that wait on all devices."""
        loads = [scheduler.load() for scheduler in self._schedulers.values()]
        return sum(load.queued_tokens + load.queued_bulk_tokens for load in loads)

    def close(self) -> None:
        """End all threads after the runs in progress."""
        for scheduler in self._schedulers.values():
            scheduler.close(timeout=5.0)


def _identity(directory: Path) -> str:
    """A text that changes when a file of a bundle does; empty while the bundle is not complete."""
    try:
        files = [(file.name, file.stat()) for file in sorted(directory.iterdir())]
    except OSError:
        return ""
    if MANIFEST_NAME not in (name for name, _ in files):
        return ""
    return " ".join(f"{name}:{stat.st_mtime_ns}:{stat.st_size}:{stat.st_ino}" for name, stat in files)
