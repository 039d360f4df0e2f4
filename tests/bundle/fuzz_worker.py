"""Loads mutated bundles, one case after the other, and prints what came of each: see test_fuzz.py.

A process of its own, because a native library may end it. ``python fuzz_worker.py BUNDLES SCRATCH CACHE FIRST LAST``
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message

import stonnx
from stonnx import StonnxError
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME

CLASSES = {
    "embedding": stonnx.SentenceTransformer,
    "sparse": stonnx.SparseEncoder,
    "rerank": stonnx.CrossEncoder,
}
# What a case may take: seconds, and bytes of address space.
SECONDS = 60
MEMORY = 16 << 30

# The bundle that is being loaded: whatever is written meanwhile has to be in the cache.
watched: list[Path] = []

ODD = (
    *(None, True, False, -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "\0", "\ud800", "x" * 100_000, "../x", "default.onnx", "[UNK]"),
    *("embedding", "sparse", "rerank", "default", "left", "int64", "float32", "float16", [], {}, [[]], [{}], {"": {}}),
    *({"type": "Sequence"}, {"type": "Nothing"}, [0] * 10_000, ["x", 1]),
)


# --- bytes ---


def flip(content: bytes, rng: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    piece = rng.choice((b"\0", b"\xff", b"\x80", rng.randbytes(1))) * rng.choice((1, 2, 4, 8, 10))
    return content[:start] + piece + content[start + len(piece) :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def drop(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 2, 16, 256)) :]


def splice(content: bytes, rng: random.Random) -> bytes:
    start, target = rng.randrange(len(content)), rng.randrange(len(content))
    return content[:target] + content[start : start + rng.choice((1, 4, 32, 512))] + content[target:]


BYTES = (flip, overwrite, cut, drop, splice)


# --- JSON ---


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value. Of a long list or object, its first ones."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:20]:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    data = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        everywhere = list(places(data))
        *parents, last = rng.choice(everywhere)
        target = data
        for key in parents:
            target = target[key]
        match rng.choice(("replace", "replace", "replace", "remove", "add", "move", "repeat")):
            case "replace":
                target[last] = rng.choice(ODD)
            case "remove":
                del target[last]
            case "add" if isinstance(target, dict):
                target[rng.choice(("", "type", "file", "\ud800", "x" * 1000))] = rng.choice(ODD)
            case "move":
                other = data
                for key in rng.choice(everywhere[: len(everywhere) // 2]):
                    other = other[key] if isinstance(other, dict | list) else other
                target[last] = json.loads(json.dumps(other))
            case _ if isinstance(target, list):
                target += [target[last]] * rng.choice((1, 100))
    text = json.dumps(data)
    # What no Python value is written as.
    start = rng.choice([index for index, character in enumerate(text) if character in ",{["] or [0])
    match rng.choice(("", "", "", "deep", "twice", "number")):
        case "deep":
            depth = rng.choice((100, 100_000))
            text = f"{text[: start + 1]}{'[' * depth}{']' * depth},{text[start + 1 :]}"
        case "twice":
            text = text.replace('"type"', '"type": 5, "type"').replace('"files"', '"files": {}, "files"')
        case "number":
            text = text.replace(" 0", rng.choice((" 1e999", " -0", " 0" * 2, " 1" + "0" * 5000)), 1)
    return text.encode()


# --- graphs ---


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                yield from messages(child)


def mutated_graph(content: bytes, rng: random.Random) -> bytes:
    """Fields that get another value of their own type, vanish, or come twice."""
    model = onnx.load_from_string(content)
    strings = [node.name for node in (*model.graph.input, *model.graph.initializer)]
    strings += ["", "../x", "location", "MatMul", "Loop", "If", "com.microsoft", "*/_ORT_MEM_ADDR_/*", *"abc"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        message = rng.choice([one for one in messages(model) if one.ListFields()])
        field, value = rng.choice(message.ListFields())
        odd: Any
        if field.message_type is not None:
            odd = ()
        elif field.enum_type is not None or isinstance(value, int) or (field.is_repeated and isinstance(value[0], int)):
            odd = (-1, 0, 1, 2, 3, 7, 8, 16, 100, 2**31 - 1)
            odd += () if field.enum_type is not None or field.cpp_type == field.CPPTYPE_INT32 else (2**62, 2**63 - 1)
        elif field.cpp_type == field.CPPTYPE_FLOAT:
            odd = (0.0, -1.0, float("nan"), float("inf"))
        elif field.type == field.TYPE_BYTES:
            odd = (b"", b"\0", rng.randbytes(64))
        else:
            odd = strings
        change = rng.choice(("replace", "replace", "clear", "repeat"))
        if change == "clear" or (change == "repeat" and not field.is_repeated) or (not odd and change == "replace"):
            message.ClearField(field.name)
        elif change == "repeat":
            value.extend(list(value)[:3])
        elif field.is_repeated:
            value[rng.randrange(len(value))] = rng.choice(odd)
        else:
            setattr(message, field.name, rng.choice(odd))
    if rng.random() < 0.2 and model.graph.initializer:
        tensor = rng.choice(model.graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key in ("location", "offset", "length"):
            tensor.external_data.add(key=key, value=rng.choice(("weights", "0", "-1", str(2**64), *strings)))
    return bytes(model.SerializeToString())


# --- probes ---


def mutated_probe(content: bytes, rng: random.Random) -> bytes:
    arrays = dict(np.load(io.BytesIO(content)))
    name = rng.choice(list(arrays))
    texts = [None, 5, [], {}, [5], [None], ["x" * 100_000], ["\ud800"], [["a"]], [["a", "b"]], [["a", "b", "c"]], "x"]
    match rng.choice(("remove", "texts", "array", "values")):
        case "remove":
            del arrays[name]
        case "texts":
            arrays["texts"] = np.frombuffer(json.dumps(rng.choice(texts)).encode(), dtype=np.uint8)
        case "array":
            odd = [np.zeros(0), np.zeros((3, 0)), np.array(5), np.zeros((1, 1, 1)), np.zeros(4_000_000)]
            odd += [np.array(["x"]), np.array([1 + 2j]), np.array([0], "datetime64[Y]"), np.array([{}], dtype=object)]
            arrays[name] = rng.choice(odd)
        case _:
            vectors = next(value for key, value in arrays.items() if key != "texts")
            vectors[rng.randrange(len(vectors))] = rng.choice((0.0, -1.0, np.nan, np.inf, 1e38))
    file = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(file, **arrays)
    return file.getvalue()


AWARE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    MANIFEST_NAME: mutated_json,
    "tokenizer.json": mutated_json,
    "default.onnx": mutated_graph,
    "probe.npz": mutated_probe,
}


def mutate(directory: Path, rng: random.Random, name: str) -> None:
    """Change a file, and have the manifest say that it has to be so."""
    path = directory / name
    mutations = [AWARE[name]] * 3 + [rng.choice(BYTES)]
    for _ in range(rng.choice((1, 1, 2))):
        try:
            path.write_bytes(rng.choice(mutations)(path.read_bytes() or b"\0", rng))
        except (ValueError, RecursionError, DecodeError):  # what bytes have made of it cannot be parsed any more
            path.write_bytes(rng.choice(BYTES)(path.read_bytes(), rng))
        except Exception:
            if not path.read_bytes():
                break
            path.write_bytes(flip(path.read_bytes(), rng))
    if name != MANIFEST_NAME:
        manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        manifest["files"][name] = dataclasses.asdict(hash_files(directory, [name])[name])
        (directory / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")


def run(case: int, bundles: list[Path], scratch: Path) -> str:
    """What came of a case, ``loads``, ``refused`` or ``escaped``, and the details."""
    rng = random.Random(case)
    original = bundles[case % len(bundles)]
    directory = Path(shutil.copytree(original, scratch / "bundle"))
    before: dict[Path, bytes] = {}
    try:
        mutate(directory, rng, list(AWARE)[case // len(bundles) % len(AWARE)])
        before = {path: path.read_bytes() for path in directory.iterdir()}
        watched.append(directory)
        CLASSES[original.name](directory, device="cpu", threads=1)
        outcome = "loads"
    except StonnxError as error:
        outcome = f"refused {type(error).__name__}"
    except BaseException as error:  # PyO3 raises panics of Rust as such
        outcome = f"escaped {type(error).__name__}: {str(error)[:200]!r}"
    finally:
        watched.clear()
    after = {path: path.read_bytes() for path in directory.iterdir()}
    if before != after or list(Path.cwd().iterdir()):
        outcome = f"escaped: wrote into {directory} or {Path.cwd()}"
    shutil.rmtree(directory)
    return outcome


def main() -> None:
    bundles, scratch = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2])
    cache = sys.argv[3]

    def refuse_to_write(event: str, arguments: tuple[Any, ...]) -> None:
        if not watched:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.symlink"):
            path = str(Path(str(arguments[0])).absolute())
            if not path.startswith(cache):
                raise AssertionError(f"{event} of {path}")

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, also inside native code
    sys.addaudithook(refuse_to_write)
    for case in range(int(sys.argv[4]), int(sys.argv[5])):
        signal.alarm(SECONDS)
        print(case, run(case, bundles, scratch), flush=True)


if __name__ == "__main__":
    main()
