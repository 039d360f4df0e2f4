"""Routers: which modules a text passes, by the task that it is called by, and by the kind of input, which is a text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._errors import ExportError, UnsupportedError
from stonnx_export.checkpoint.files import read_object
from stonnx_export.checkpoint.modules import ROUTERS, Module

_MODALITIES = ("text", "image", "audio", "video", "message")
# The tasks that every model of vectors can be called for.
_TASKS = ("query", "document")
# Files of a bundle are named after its routes.
_ROUTE_NAME = re.compile(r"[A-Za-z0-9_-]+")
# No task has this name, so it tells what a Router does with names that it does not know.
_UNKNOWN = "\0"

# A row of modules.json: the class of a module, and its folder.
Row = tuple[str, str]


@dataclass(frozen=True)
class Routes:
    """The chain and the folder of the first module of each route, and the route of texts without a task."""

    chains: dict[str, tuple[Module, ...]]
    folders: dict[str, Path]
    default: str | None = DEFAULT_ROUTE


def read_router(directory: Path, rows: Sequence[Row], read: Callable[[list[Row]], tuple[Module, ...]]) -> Routes:
    """The routes of a model of which one module is a Router.

    Args:
        directory: The checkpoint.
        rows: The modules.
        read: Reads a chain of modules.

    Raises:
        UnsupportedError: It has several Routers, or no route for texts.
    """
    places = [number for number, (reference, _) in enumerate(rows) if is_router(reference)]
    if len(places) > 1:
        raise UnsupportedError(f"{directory} has {len(places)} Routers, which cannot be exported. One can.")
    (place,) = places
    path = rows[place][1]
    root = directory / path
    # Before version 5 the class was Asym, with a config.json of the same shape.
    file = root / "router_config.json"
    config = read_object(file if file.is_file() else root / "config.json")
    types, structure = config["types"], config["structure"]
    chosen, default = _routes_of_texts(root, structure, config.get("parameters") or {})
    chains, folders = {}, {}
    for name, route in chosen.items():
        parts = [(str(types[part]), f"{path}/{part}".strip("/")) for part in structure[route]]
        nested = [reference for reference, _ in parts if is_router(reference)]
        if nested:
            raise UnsupportedError(f"{root} is a Router with a Router inside, which cannot be exported.")
        whole = [*rows[:place], *parts, *rows[place + 1 :]]
        chains[name], folders[name] = read(whole), directory / whole[0][1]
    return Routes(chains, folders, default)


def is_router(reference: str) -> bool:
    """Whether a class of modules.json is a Router."""
    return reference.rpartition(".")[2] in ROUTERS


def _routes_of_texts(
    root: Path, structure: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[dict[str, str], str | None]:
    """The bundle's routes and the Router's route that each of them is; and the bundle's route without a task."""
    mappings = _mappings(root, parameters.get("route_mappings") or {})
    first = next(iter(structure)) if parameters.get("allow_empty_key", True) else None
    without_task = _route(structure, mappings, None) or parameters.get("default_route") or first
    tasks = [name for name in structure if name not in _MODALITIES]
    if mappings or len(tasks) < len(structure):
        tasks += [task for task in (*_TASKS, *(task for task, _ in mappings if task)) if task not in tasks]
    chosen = {task: route for task in tasks if (route := _route(structure, mappings, task)) is not None}
    wrong = [name for name in chosen if name == DEFAULT_ROUTE or not _ROUTE_NAME.fullmatch(name)]
    if wrong:
        raise UnsupportedError(
            f"{root} is a Router with the route {wrong[0]!r}, which cannot be exported. The name of a route has "
            f"letters, digits, _ and - only, and is not {DEFAULT_ROUTE!r}."
        )
    if without_task is not None and without_task == _route(structure, mappings, _UNKNOWN):
        # With this name, a bundle takes the route for every task that has no other.
        others = {task: route for task, route in chosen.items() if route != without_task}
        return {**others, DEFAULT_ROUTE: without_task}, DEFAULT_ROUTE
    default = next((task for task, route in chosen.items() if route == without_task), without_task)
    if default is not None and without_task is not None:
        chosen[default] = without_task
    if not chosen:
        raise UnsupportedError(
            f"{root} is a Router without a route for texts: it has {', '.join(map(repr, structure))}. Inputs other "
            "than texts cannot be exported."
        )
    return chosen, default


def _mappings(root: Path, written: Mapping[str, str]) -> dict[tuple[str | None, Any], str]:
    """The routes by task and kind of input, either of which may be None for any."""
    try:
        found = {ast.literal_eval(key): route for key, route in written.items()}
    except (ValueError, SyntaxError) as error:
        raise ExportError(f"{root} has route_mappings that cannot be read: {error}. Save the model again.") from error
    wrong = [key for key in found if not (isinstance(key, tuple) and len(key) == 2)]
    if wrong:
        raise ExportError(f"{root} has route_mappings for {wrong[0]!r}, which is not a pair of a task and a modality.")
    return found


def _route(
    structure: Mapping[str, Any], mappings: Mapping[tuple[str | None, Any], str], task: str | None
) -> str | None:
    """The Router's own route for a text with a task, in the order of sentence-transformers; None if it has none."""
    for key in ((task, "text"), (task, None), (None, "text"), (None, None)):
        if key in mappings:
            return mappings[key]
    if task is not None and task in structure:
        return task
    return "text" if "text" in structure else None
