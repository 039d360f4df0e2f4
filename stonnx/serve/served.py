"""One model of a server: its name, what it can do, and the queue that runs its texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stonnx._batcher.scheduler import Scheduler
from stonnx._batcher.waiting import Lane
from stonnx._model.model import Model
from stonnx._model.work import Work
from stonnx._tasks import Task, TaskRow
from stonnx.serve.settings import ModelSettings

# The number of texts that measure the speed before the first request, and of their words.
_WORDS_OF_WARMUP = 24


@dataclass(eq=False)
class Served:
    """A model that is served.

    Attributes:
        name: The name that clients use.
        settings: The settings from the user.
        model: The loaded model.
        row: Its task.
        scheduler: The scheduler that runs its texts.
        created: The time of loading, in seconds since 1970.
        identity: A text that changes when the files of the bundle do.
    """

    name: str
    settings: ModelSettings
    model: Model
    row: TaskRow
    scheduler: Scheduler
    created: int
    identity: str
    directory: Path
    problem: str | None = None
    _works: dict[Any, Work] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The name of its task."""
        return self.row.name

    @property
    def labels(self) -> Sequence[str]:
        """The label of each score of a pair; empty for models that give vectors."""
        return self.model.manifest.label_names

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompts by name."""
        return self.model.prompts

    @property
    def dimension(self) -> int | None:
        """Numbers of a vector; None for rerankers."""
        return getattr(self.model, "get_embedding_dimension", lambda: None)()

    @property
    def ranks(self) -> bool:
        """Whether its results give an order of documents, which the scores of several labels do not."""
        return self.row.kind == "rows" or len(self.labels) == 1

    @property
    def prompt_suffixes(self) -> list[str]:
        """The words that may follow a colon after its name."""
        return list(dict.fromkeys([*(() if self.row.reads_pairs else ("query", "document")), *self.prompts]))

    @property
    def truncation_side(self) -> str:
        """The side on which texts that are too long are cut."""
        manifest = self.model.manifest
        return manifest.routes[manifest.default_route].tokenizer.truncation_side

    @property
    def pooling(self) -> str:
        """How vectors of tokens become one, in the words of text-embeddings-inference."""
        settings = next((each.settings for each in self.model.manifest.modules if each.type == "Pooling"), {})
        mode = settings.get("pooling_mode", "mean")
        name = mode if isinstance(mode, str) else "+".join(map(str, mode))
        return {"lasttoken": "last_token"}.get(name, name)

    @property
    def usual_work(self) -> Work:
        """The work of a request that does not name a task; of a model that needs a task, the work for queries."""
        return self.work(task="query") if self.model.manifest.needs_task else self.work()

    @property
    def max_queued_tokens(self) -> dict[str, int]:
        """The most tokens that may wait for it, of small requests and of large ones."""
        pace = self.scheduler.pace(self.usual_work)
        return {lane.value: self.scheduler.max_queued_tokens(lane, pace) for lane in Lane}

    def work(self, output: str | None = None, prompt_name: str | None = None, task: str | None = None) -> Work:
        """The work that the model should do: see :meth:`Model.work`."""
        key = (output, prompt_name, task)
        found = self._works.get(key)
        if found is None:
            found = self.model.work(output, prompt_name=prompt_name, task=task)
            # Unknown names have raised an error, so there are only as many entries as the model has prompts.
            self._works[key] = found
        return found


@dataclass(frozen=True)
class Choice:
    """The model of a request, and what its name says about the prompt."""

    served: Served
    prompt_name: str | None = None
    task: str | None = None


def measured_speed(served: Served) -> float:
    """Tokens a second of a usual run, with all slots in use and a warm tokenizer."""
    text = "warm " * _WORDS_OF_WARMUP
    work = served.usual_work
    (item,) = work.tokenize([(text, text) if served.row.reads_pairs else text])
    most_tokens, most_texts = work.limits
    items = [item] * max(1, min(most_tokens // len(item), most_texts))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        work.run(items, alone=False)
        seconds.append(time.perf_counter() - start)
    return len(item) * len(items) * served.model.work_slots / min(seconds)
