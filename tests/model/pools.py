"""Pools of a stand-in for a model, whose texts say what happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stonnx._errors import DeviceError
from stonnx._model import pool as pool_module
from stonnx._model.pool import run_in_pool, start_pool

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
TEXTS = [f"{'several words, ' * (index % 7)}and number {index}" for index in range(40)]


class UnpicklableError(Exception):
    """Two arguments, of which pickle keeps one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Fake:
    """In place of a model: its texts say what happens to them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "load" in state:
            state["load"]()

    def _answer(self, call: tuple[str, tuple[Any, ...]], texts: list[str]) -> Any:
        method, arguments = call
        return getattr(self, method)(texts, *arguments)

    def upper(self, texts: list[str], suffix: str = "") -> list[str]:
        return [text.upper() + suffix for text in texts]

    def act(self, texts: list[str]) -> list[Any]:
        return [ACTIONS[text]() if text in ACTIONS else text for text in texts]

    def touch_and_sleep(self, texts: list[str]) -> list[Any]:
        """Create the files of these names, so that somebody sees that the work has begun."""
        for text in texts:
            Path(text).touch()
        return [time.sleep(60)]

    def refuse_bad(self, texts: list[str]) -> list[str]:
        for text in texts:
            if text.startswith("bad"):
                raise ValueError(text)
        return texts


def fail() -> None:
    raise DeviceError("the device is on holiday")


def fail_unpicklably() -> None:
    raise UnpicklableError("cannot", "travel")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: time.sleep(60),
    "fail": fail,
    "fail unpicklably": fail_unpicklably,
    "return unpicklable": lambda: lambda: None,
    "exit": lambda: sys.exit(3),
    "kill": kill,
    "pid": os.getpid,
    "rayon": lambda: os.environ["RAYON_NUM_THREADS"],
}


def start(count: int = 2, **state: Any) -> pool_module.Pool:
    return start_pool(Fake, [(f"cpu {number}", state) for number in range(count)], [1] * count)


def run(
    pool: pool_module.Pool, method: str, texts: list[str], *arguments: Any, chunk_size: int | None = 1
) -> list[Any]:
    chunks = run_in_pool(pool, (method, arguments), texts, chunk_size=chunk_size, advance=lambda count: None)
    return [item for chunk in chunks for item in chunk]


def notes(error: BaseException) -> str:
    return "\n".join(error.__notes__)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to ask for the exit code does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return Path("/proc/self").exists() is False


def all_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def script(tmp_path: Path, text: str) -> list[str]:
    """The arguments of an interpreter that runs a text as a main script, with this module's names."""
    path = tmp_path / "main_script.py"
    here = Path(__file__)
    path.write_text(f"import sys\nsys.path.insert(0, {str(here.parent)!r})\nfrom {here.stem} import *\n{text}\n")
    return [str(path)]
