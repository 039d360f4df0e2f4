"""The one fake of a session: it stands in for one that the engine has opened, and a test says what its runs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stonnx._device.session import RunControl
from stonnx._engine import engine as engine_module
from stonnx._engine.graph_session import GraphSession

_ATTRIBUTES = [name for name, value in vars(GraphSession).items() if isinstance(value, property)]


@dataclass(frozen=True)
class Run:
    """A run that the engine asked for."""

    session: FakeSession
    outputs: Sequence[str]
    feeds: Mapping[str, Any]
    control: RunControl | None
    free_memory: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.feeds["input_ids"].shape

    @property
    def threads(self) -> int:
        return self.session.threads

    def go(self) -> list[np.ndarray]:
        """Do it with the real session."""
        return self.session.real.run(self.outputs, self.feeds, self.control, free_memory=self.free_memory)


class FakeSession:
    """A :class:`~stonnx._engine.graph_session.GraphSession` with another one inside.

    Args:
        real: The one inside.
        answer: What a run does; :meth:`Run.go` runs the one inside.
        changes: Attributes that it has in place of those of the one inside.
    """

    def __init__(self, real: GraphSession, answer: Callable[[Run], list[np.ndarray]] = Run.go, **changes: Any) -> None:
        self.real, self._answer = real, answer
        assert changes.keys() <= {*_ATTRIBUTES}
        for name in _ATTRIBUTES:
            setattr(self, name, changes.get(name, getattr(real, name)))

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Any], control: Any = None, *, free_memory: bool = False
    ) -> list[np.ndarray]:
        return self._answer(Run(self, outputs, feeds, control, free_memory))

    def control(self) -> RunControl:
        return self.real.control()

    def trim(self) -> None:
        self.real.trim()


class Sessions:
    """Fakes for all sessions that the engine opens until the test ends, and for those of some loaded models.

    Args:
        monkeypatch: Puts the real ones back.
        models: The loaded models.
        answer: What a run does.
        when_opened: Is called after a session was opened.
        changes: Attributes of the fakes.

    Attributes:
        runs: Their runs, as they were asked for.
        opened: The fakes of sessions that were opened.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *models: Any,
        answer: Callable[[Run], list[np.ndarray]] = Run.go,
        when_opened: Callable[[], None] = lambda: None,
        **changes: Any,
    ) -> None:
        self.runs: list[Run] = []
        self.opened: list[FakeSession] = []
        open_real = engine_module.open_session

        def noted(run: Run) -> list[np.ndarray]:
            self.runs.append(run)
            return answer(run)

        def open_fake(*arguments: Any, **options: Any) -> FakeSession:
            self.opened.append(FakeSession(open_real(*arguments, **options), noted, **changes))
            when_opened()
            return self.opened[-1]

        monkeypatch.setattr(engine_module, "open_session", open_fake)
        for runner in (route._runner for model in models for route in model._engine.named_routes.values()):
            for name in ("_all_threads", "_single_thread"):
                if (real := getattr(runner, name)) is not None:
                    monkeypatch.setattr(runner, name, FakeSession(real, noted, **changes))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [run.shape for run in self.runs]

    @property
    def threads(self) -> list[int]:
        return [run.threads for run in self.runs]

    @property
    def opened_threads(self) -> list[int]:
        return [session.threads for session in self.opened]
