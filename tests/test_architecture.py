"""Who may import whom, which libraries enter through which room, and how long a file may be: docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {"stonnx": ROOT / "stonnx", "stonnx_export": ROOT / "export" / "stonnx_export"}

# The rooms of the runtime, the lowest first. A room imports rooms of lower levels only.
RUNTIME = (
    ("_background", "_disk", "_errors", "_limits", "_progress", "_tasks", "_version"),
    ("_arguments", "_arrow", "_cache", "_arrays", "_decode", "_exporter"),
    ("_guide",),
    ("_files",),
    ("_bundle", "util"),
    ("_device", "_text"),
    ("_images",),
    ("_engine",),
    ("_results",),
    ("_hub",),
    ("_model",),
    ("sentence_transformer", "sparse_encoder", "cross_encoder", "multi_vector_encoder"),
    ("_batcher",),
    ("__init__",),
    ("_load",),
    ("serve",),
    ("integrations",),
    ("cli",),
    ("__main__",),
)
# Those of the exporter, above all of these but what they are called from.
EXPORTER = (
    ("stages", "texts", "graph"),
    ("checkpoint", "passes"),
    ("heads",),
    ("originals",),
    ("calibration",),
    ("lower_precision",),
    ("fp16", "int8", "verify"),
    ("kernels",),
    ("recipes",),
    ("write", "recheck"),
    ("image_graph",),
    ("pipeline",),
    ("__init__",),
)
# The runtime calls the exporter, if it is installed, from these files, and imports it when it does.
CALLS_EXPORTER = {"stonnx._hub.first_use", "stonnx.cli.export"}
# Where the exporter may reach into the runtime: not into what callers see.
BELOW_EXPORTER = {
    "_model",
    "sentence_transformer",
    "sparse_encoder",
    "cross_encoder",
    "multi_vector_encoder",
    "serve",
    "cli",
    "integrations",
}

# The libraries that enter through one room each.
LIBRARIES = {
    "onnxruntime": {"_device"},
    "tokenizers": {"_text"},
    "huggingface_hub": {"_hub"},
    "tqdm": {"_progress"},
    "scipy": {"_arrays", "_results"},
    # encode(convert_to_tensor=True), in to_torch alone.
    "torch": {"_results"},
    "transformers": set(),
    "sentence_transformers": set(),
    "onnx": set(),
    "safetensors": set(),
    # Parquet, and batches of other engines.
    "pyarrow": {"_arrow", "integrations"},
    "PIL": {"_images"},
    "ray": {"integrations"},
    "pyspark": {"integrations"},
    "dask": {"integrations"},
    "daft": {"integrations"},
}
# The doctor reports where the Hub's cache is.
LIBRARY_EXCEPTIONS = {("stonnx.cli.doctor", "huggingface_hub")}

# Private modules that tests of other rooms, and benchmarks, may import. A test may import everything of its own room.
DOORS = {
    "stonnx._arrays",
    "stonnx._batcher.workers",
    "stonnx._bundle.bundle",
    "stonnx._bundle.external_data",
    "stonnx._bundle.held_file",
    "stonnx._bundle.integrity",
    "stonnx._bundle.manifest",
    "stonnx._cache",
    "stonnx._device.cpus",
    "stonnx._device.facts",
    "stonnx._device.int8_speed",
    "stonnx._device.memory",
    "stonnx._device.kernels",
    "stonnx._device.nvidia",
    "stonnx._device.device_options",
    "stonnx._device.provider",
    "stonnx._device.providers",
    "stonnx._device.opening",
    "stonnx._device.session",
    "stonnx._device.wheels",
    "stonnx._disk",
    "stonnx._engine.engine",
    "stonnx._engine.graph_session",
    "stonnx._engine.probe",
    "stonnx._errors",
    "stonnx._guide.guide",
    "stonnx._hub.download",
    "stonnx._hub.find",
    "stonnx._hub.names",
    "stonnx._limits",
    "stonnx._load",
    "stonnx._model.compatibility",
    "stonnx._model.model",
    "stonnx._model.work",
    "stonnx._results.activations",
    "stonnx._results.sparse",
    "stonnx._tasks",
    "stonnx._text.batching",
    "stonnx._text.chat",
    "stonnx._text.tokenizer",
    "stonnx.util._matrix",
    "stonnx.util._nearest",
}

LONGEST = 400
REASON = re.compile(r"over 400 lines", re.IGNORECASE)


@dataclass(frozen=True)
class Import:
    """One import: who, what, and where it stands."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported} in line {self.line}"


@cache
def modules() -> dict[str, Path]:
    """Every module of both packages, by its name. A package is ``name.__init__``."""
    found = {}
    for package, place in PLACES.items():
        for path in place.rglob("*.py"):
            found[".".join((package, *path.relative_to(place).with_suffix("").parts))] = path
    return found


def exists(name: str) -> bool:
    return name in modules() or f"{name}.__init__" in modules()


def imports_of(path: Path, importer: str, *, of_types: bool = False) -> Iterator[Import]:
    """The imports of a file, those inside functions too. Those for type checkers never run: they are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = set()
    for node in ast.walk(tree):
        if not of_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left_out |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (Import(importer, name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield Import(importer, inner if exists(inner) else node.module, node.lineno)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in imports_of(path, name))


def room_of(module: str) -> str:
    """``_engine`` of ``stonnx._engine.call``; ``__init__`` of the package itself."""
    return [*module.split("."), "__init__"][1]


def test_every_room_has_a_level() -> None:
    for package, levels in (("stonnx", RUNTIME), ("stonnx_export", EXPORTER)):
        there = {room_of(name) for name in modules() if name.startswith(f"{package}.")}
        assert there == {room for level in levels for room in level}, f"the rooms of {package}"


def test_no_import_runs_up() -> None:
    level_of = {
        (package, room): number
        for package, levels in (("stonnx", RUNTIME), ("stonnx_export", EXPORTER))
        for number, level in enumerate(levels)
        for room in level
    }
    wrong = []
    for found in all_imports():
        package, target = found.importer.split(".")[0], found.imported.split(".")[0]
        if target not in PLACES:
            continue
        own, other = room_of(found.importer), room_of(found.imported)
        if package == "stonnx" and target == "stonnx_export":
            allowed = found.importer in CALLS_EXPORTER
        elif package != target:
            allowed = other not in BELOW_EXPORTER
        else:
            allowed = own == other or level_of[package, other] < level_of[package, own]
        if not allowed:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_circle() -> None:
    """Among files, too: within a room as well as between them."""
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in all_imports():
        target = found.imported if found.imported in graph else f"{found.imported}.__init__"
        if target in graph and not (found.importer in CALLS_EXPORTER and target.startswith("stonnx_export")):
            graph[found.importer].add(target)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_libraries_enter_through_their_rooms() -> None:
    wrong = []
    for found in all_imports():
        library = found.imported.split(".")[0]
        if found.importer.startswith("stonnx.") and library in LIBRARIES:
            exception = (found.importer, library) in LIBRARY_EXCEPTIONS
            if room_of(found.importer) not in LIBRARIES[library] and not exception:
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_torch_is_imported_only_when_a_tensor_is_asked_for() -> None:
    places = [found for found in all_imports() if found.importer.startswith("stonnx.") and found.imported == "torch"]
    assert [found.importer for found in places] == ["stonnx._results.dense"]
    tree = ast.parse(modules()["stonnx._results.dense"].read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "to_torch"]
    assert function.lineno < places[0].line <= (function.end_lineno or 0)


def outside_files() -> list[Path]:
    return [path for place in ("tests", "benchmarks", "examples") for path in sorted((ROOT / place).rglob("*.py"))]


def is_private(module: str) -> bool:
    return any(part.startswith("_") and part != "__init__" for part in module.split("."))


def is_own_room(path: Path, module: str) -> bool:
    """Whether a test lies in the room of a module: ``tests/engine`` in that of ``stonnx._engine.call``."""
    parts = path.relative_to(ROOT).parts
    return parts[0] == "tests" and len(parts) > 2 and parts[1] == room_of(module).lstrip("_")


def test_private_rooms_are_entered_through_their_doors() -> None:
    wrong = []
    for path in outside_files():
        for found in imports_of(path, str(path.relative_to(ROOT)), of_types=True):
            private = found.imported.startswith("stonnx.") and is_private(found.imported)
            if private and found.imported not in DOORS and not is_own_room(path, found.imported):
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_every_door_is_used() -> None:
    used = {found.imported for path in outside_files() for found in imports_of(path, "", of_types=True)}
    strings = "\n".join(path.read_text(encoding="utf-8") for path in outside_files() if path != Path(__file__))
    assert not {door for door in DOORS if door not in used and door not in strings}


def test_private_names_stay_in_their_room() -> None:
    """``module._name`` outside the room of the module, whose tests may look inside."""
    wrong = []
    for path in outside_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    if exists(f"{node.module}.{name.name}") and node.module.split(".")[0] in PLACES:
                        names[name.asname or name.name] = f"{node.module}.{name.name}"
                    elif node.module.split(".")[0] in PLACES and name.name.startswith("_") and name.name[1] != "_":
                        names[name.name] = node.module
        used = {
            (names[node.value.id], node.attr, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        }
        of_exporter = path.relative_to(ROOT).parts[:2] == ("tests", "export")
        for module, name, line in used:
            own = of_exporter if module.startswith("stonnx_export") else is_own_room(path, module)
            if name.startswith("_") and not name.startswith("__") and not own:
                wrong.append(f"{path.relative_to(ROOT)} uses {module}.{name} in line {line}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("place", ["stonnx", "export", "tests", "benchmarks", "examples"])
def test_long_files_give_a_reason(place: str) -> None:
    wrong = []
    for path in sorted((ROOT / place).rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > LONGEST and not REASON.search("\n".join(lines[:12])):
            wrong.append(f"{path.relative_to(ROOT)} has {len(lines)} lines; split it, or say why it has over 400 lines")
    assert not wrong, "\n".join(wrong)


def test_names_of_test_files_are_their_own() -> None:
    """pytest imports a test file by its bare name, unless its directory is a package: two of one name cannot run."""
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if not (path.parent / "__init__.py").is_file() and path.name != "conftest.py":
            places.setdefault(path.name, []).append(path.relative_to(ROOT).as_posix())
    wrong = [" and ".join(paths) for paths in places.values() if len(paths) > 1]
    assert not wrong, f"rename one of {'; '.join(wrong)}"
