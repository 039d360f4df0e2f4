"""What callers get wrong: the error says what was found, what is allowed and what to do, and has the right index."""

from __future__ import annotations

import collections
import decimal
import importlib.util
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from stonnx import (
    DeviceError,
    InvalidArgumentError,
    InvalidInputError,
    MissingDependencyError,
    ModelNotFoundError,
    SentenceTransformer,
)
from stonnx._device.opening import open_session

ALLOWED = "Allowed are str, a pair of str, or {'text': str}."
CONVERT = "Convert it first: str(value)."
MISSING = "Missing values have to be dropped or replaced first, for example by ''."
DECODE = "Decode bytes first: data.decode('utf-8')."
ONLY_TEXT = "Pass only the text of it."
IMAGES = "SentenceTransformer.encode reads images, with the bundle of a model that reads both"
LIST = "To encode many texts, pass a list."
PARTS = "To encode its parts each by itself, put them into the list directly."

# What pandas has in columns of text; the tests need not install it.
NA = type("NAType", (), {"__repr__": lambda self: "<NA>", "__ne__": lambda self, other: self})()

# No text, wherever it is: (value, what was found, what to do).
NO_TEXT: dict[str, tuple[Any, str, str]] = {
    "None": (None, "None", MISSING),
    "NaN": (float("nan"), "float (nan)", MISSING),
    "NaN of numpy": (np.float32("nan"), "float32 (np.float32(nan))", MISSING),
    "NA of pandas": (NA, "NAType (<NA>)", MISSING),
    "int": (7, "int (7)", CONVERT),
    "float": (1.5, "float (1.5)", CONVERT),
    "bool": (True, "bool (True)", CONVERT),
    "Decimal": (decimal.Decimal("1.5"), "Decimal (Decimal('1.5'))", CONVERT),
    "path": (Path("a"), f"{type(Path()).__name__} ({Path('a')!r})", CONVERT),
    "bytes": (b"text", "bytes (b'text')", DECODE),
    "bytearray": (bytearray(b"text"), "bytearray (bytearray(b'text'))", DECODE),
    "no keys": ({}, "dict ({})", ONLY_TEXT),
    "other keys": ({"image": "cat.jpg"}, "dict ({'image': 'cat.jpg'})", IMAGES),
    "more keys": ({"text": "a", "id": 1}, "dict ({'text': 'a', 'id': 1})", ONLY_TEXT),
    "a dict of None": ({"text": None}, "None", MISSING),
    "a dict of texts": ({"text": ["a", "b", "c"]}, "list (['a', 'b', 'c'])", ""),
    "a pair of other things": ({"text": ("a", 1)}, "tuple (('a', 1))", ""),
}

# Lists within lists; as an argument of its own a list is many texts.
NESTED: dict[str, tuple[Any, str]] = {
    "three texts": (["a", "b", "c"], "list (['a', 'b', 'c'])"),
    "one text": (("a",), "tuple (('a',))"),
    "no list": ([], "list ([])"),
    "no tuple": ((), "tuple (())"),
    "a list of a pair": ([("a", "b")], "list ([('a', 'b')])"),
    "a pair with None": (("a", None), "tuple (('a', None))"),
    "a pair of lists": ([["a"], ["b"]], "list ([['a'], ['b']])"),
    "a pair of bytes": ((b"a", b"b"), "tuple ((b'a', b'b'))"),
}

# Many texts that are not list, tuple or array of strings. The original refuses them too.
COLLECTIONS: dict[str, Callable[[], Any]] = {
    "set": lambda: {"a", "b"},
    "generator": lambda: (text for text in "ab"),
    "iterator": lambda: iter(["a", "b"]),
    "map": lambda: map(str, [1, 2]),
    "range": lambda: range(3),
    "dict_keys": lambda: {"a": 1, "b": 2}.keys(),
    "deque": lambda: collections.deque(["a", "b"]),
    "an array of floats": lambda: np.zeros((2, 3)),
    "an empty array of floats": lambda: np.array([]),
    "an array without dimensions": lambda: np.array("text"),
    "an array of StringDType": lambda: np.array(["a", "b"], np.dtypes.StringDType()),
    "tensor": lambda: torch.zeros(2, 3),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_no_text(minilm: Any, name: str) -> None:
    value, found, remedy = NO_TEXT[name]
    with pytest.raises(InvalidInputError) as error:
        minilm.encode(value)
    assert str(error.value).startswith(f"The input is not a text but {found}. {ALLOWED} {remedy}")
    assert error.value.index is None
    for texts in (["a", "b", value], ("a", ("b", "c"), value, None), np.array(["a", "b", value], dtype=object)):
        with pytest.raises(InvalidInputError) as error:
            minilm.encode(texts)
        assert str(error.value).startswith(f"Input 2 is not a text but {found}. {ALLOWED} {remedy}")
        assert error.value.index == 2


@pytest.mark.parametrize("name", NESTED)
def test_lists_in_lists(minilm: Any, name: str) -> None:
    value, found = NESTED[name]
    with pytest.raises(InvalidInputError) as error:
        minilm.encode([["a", "pair"], value])
    assert str(error.value) == f"Input 1 is not a text but {found}. {ALLOWED} {PARTS}"
    assert error.value.index == 1


@pytest.mark.parametrize("name", COLLECTIONS)
def test_collections_that_are_no_list(minilm: Any, name: str) -> None:
    value = COLLECTIONS[name]()
    with pytest.raises(InvalidInputError) as error:
        minilm.encode(value)
    assert str(error.value).startswith(f"The input is not a text but {type(value).__name__} (")
    assert f"). {ALLOWED} {LIST}" in str(error.value)
    assert error.value.index is None
    with pytest.raises(InvalidInputError, match=f"^Input 1 is not a text but {type(value).__name__}") as error:
        minilm.encode(["a", COLLECTIONS[name]()])
    assert error.value.index == 1


def test_a_long_value_is_not_in_the_message(minilm: Any) -> None:
    with pytest.raises(InvalidInputError) as error:
        minilm.encode([["text" * 1000] * 1000])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("prompt", [5, b"query: ", ["query: "], False], ids=repr)
def test_a_prompt_that_is_no_text(minilm: Any, prompt: Any) -> None:
    with pytest.raises(InvalidInputError) as error:
        minilm.encode(["a"], prompt=prompt)
    assert str(error.value).startswith(f"The prompt is not a text but {type(prompt).__name__} ({prompt!r}).")
    assert error.value.index is None


# --- Unicode ---

MANY = [f"text number {index}" for index in range(2500)]
LONE = "\ud800"


@pytest.mark.parametrize(
    ("inputs", "index", "character"),
    [
        (LONE, None, 0),
        ("text \udfff", None, 5),
        ({"text": ("a", f"b{LONE}")}, None, 1),
        ([f"é{LONE}"], 0, 1),
        ([("a", "b"), ("a", f"bc{LONE}d")], 1, 2),
        # Two halves beside each other are not character either: UTF-8 has none of them.
        (["a", "\ud83d\ude00"], 1, 0),
        ([*MANY[:2100], f"x{LONE}", *MANY[2100:], LONE], 2100, 1),
    ],
    ids=["alone", "at the end", "in a dict", "in a list", "in a pair", "two halves", "among thousands"],
)
@pytest.mark.parametrize("prompt", [None, "query: "])
@pytest.mark.parametrize("output_value", ["sentence_embedding", None])
def test_lone_surrogates(
    minilm: Any, inputs: Any, index: int | None, character: int, prompt: str | None, output_value: str | None
) -> None:
    with pytest.raises(InvalidInputError, match="half of a surrogate pair") as error:
        minilm.encode(inputs, prompt=prompt, output_value=output_value)
    where = "The input" if index is None else f"Input {index}"
    assert str(error.value).startswith(f"{where} is not valid Unicode: ")
    assert f"at character {character} " in str(error.value)
    assert "text.encode('utf-8', 'replace').decode()" in str(error.value)
    assert error.value.index == index


def test_a_lone_surrogate_in_the_prompt(minilm: Any) -> None:
    for output_value in ("sentence_embedding", None):
        with pytest.raises(InvalidInputError, match=r"^The prompt is not valid Unicode") as error:
            minilm.encode(["a", "b"], prompt=LONE, output_value=output_value)
        assert error.value.index is None


def test_the_remedy_for_lone_surrogates_works(minilm: Any) -> None:
    np.testing.assert_array_equal(
        minilm.encode(f"a {LONE} b".encode("utf-8", "replace").decode()), minilm.encode("a ? b")
    )


# Texts that are unusual, and allowed.
UNUSUAL = {
    "nothing": "",
    "spaces": " \t\n\r ",
    "a no-break space": "\xa0",
    "NUL": "\0",
    "NUL in a text": "a\0b",
    "all control characters": "".join(map(chr, range(32))),
    "a byte order mark": "\ufeff",
    "private use": "\ue000\uf8ff",
    "no characters": "\ufffe\uffff",
    "the last character": "\U0010ffff",
    "special tokens": "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "right to left": "\u202eabc\u202c שלום مرحبا",
    "no spaces between words": "漢字かな交じり文" * 50,
    "many marks on a letter": "e" + "\u0301" * 100_000,
    "many emoji": "😀" * 100_000,
    "a megabyte in a word": "x" * 1_000_000,
    "a megabyte of words": "word " * 200_000,
}


@pytest.fixture(scope="module")
def expected_of_unusual(minilm_original: Any) -> Iterator[dict[str, np.ndarray]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # they spin while they wait, and tests run side by side
    yield {name: minilm_original.encode(text) for name, text in UNUSUAL.items()}
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_texts(minilm: Any, expected_of_unusual: dict[str, np.ndarray], name: str) -> None:
    vector = minilm.encode(UNUSUAL[name])
    assert np.isfinite(vector).all()
    np.testing.assert_allclose(vector, expected_of_unusual[name], rtol=0, atol=1e-5)
    np.testing.assert_allclose(minilm.encode(["a", UNUSUAL[name]])[1], vector, rtol=0, atol=1e-6)


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"batch_size": "32"}, "batch_size must be a positive integer, got '32'"),
        ({"precision": "int4"}, "'int4' is not supported. Allowed: float32, int8, uint8, binary, ubinary"),
        ({"output_value": "logits"}, "'logits' is not known. Allowed: 'sentence_embedding', 'token_embeddings', None"),
        ({"output_value": None, "precision": "binary"}, "not in precision 'binary'. Leave out precision, or ask for"),
        ({"prompt_name": "unknown"}, r"'unknown' not found in .* with keys \['query', 'document'\]"),
        ({"device": "cuda"}, "loaded for 'cpu' and cannot move to 'cuda' .* Load it again with device='cuda'"),
        ({"normalise": True}, r"SentenceTransformer\.encode\(\) has been called with .* not use: \['normalise'\]"),
        ({"a": 1, "b": 2}, r"does not use: \['a', 'b'\]"),
    ],
    ids=repr,
)
def test_arguments_of_encode(minilm: Any, options: dict[str, Any], message: str) -> None:
    # Also without a text, so that a mistake does not wait for the first one.
    for inputs in (["a", "b"], []):
        with pytest.raises(ValueError, match=message):
            minilm.encode(inputs, **options)


@pytest.mark.parametrize("batch_size", [np.int64(2), np.uint8(1), 10**9])
def test_every_integer_is_a_batch_size(minilm: Any, batch_size: Any) -> None:
    np.testing.assert_array_equal(minilm.encode(["a", "b"], batch_size=batch_size), minilm.encode(["a", "b"]))


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True], ids=repr)
def test_threads(minilm_bundle: Path, threads: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="threads must be a positive integer or None, got"):
        SentenceTransformer(minilm_bundle, threads=threads)


@pytest.mark.parametrize("device", ["foo", "", "CPU", "cuda:", "cuda:x", "mps"], ids=repr)
def test_unknown_devices(minilm_bundle: Path, device: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"is not known\. Allowed: cpu, cuda, cuda:0"):
        SentenceTransformer(minilm_bundle, device=device)


def test_a_gpu_without_the_wheel_for_it(minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"'cuda:1' needs CUDAExecutionProvider.*pip install \"stonnx\[gpu\]\""):
        SentenceTransformer(minilm_bundle, device="cuda:1")


# --- names and paths ---


@pytest.mark.parametrize(
    "name",
    ["a/b/c", "missing/directory/", "/missing", "./missing", "../missing", "~/missing", "C:\\missing", ""],
)
def test_paths_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "cache"))
    # An empty name must not become the working directory, even where that is a model.
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ModelNotFoundError, match="is not a directory here, and not a Hub id of the form organization/name"
    ):
        SentenceTransformer(name)


@pytest.mark.parametrize("name", ["no-such-model", "organization/no-such-model", "a name", "a\0b", "a..b", "-"])
def test_names_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        SentenceTransformer(name, local_files_only=True, cache_folder=str(tmp_path))
    assert isinstance(error.value, ModelNotFoundError)
    said = f"{name} is not a directory here, and"
    if "/" not in name:
        full_name = f"sentence-transformers/{name}"
        said = f"{name!r} is not a directory here. As the name of a model it stands for {full_name}, which"
    assert str(error.value).startswith(f"{said} was not found in the local cache: ")
    assert "stonnx export MODEL -o DIRECTORY" in str(error.value)


def test_a_file(minilm_bundle: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"is a file, not a directory\. Pass .* instead") as error:
        SentenceTransformer(minilm_bundle / "model.onnx")
    assert str(error.value).endswith(str(minilm_bundle))


def test_a_file_that_is_not_in_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "passages.txt").write_text("The tides follow the moon.\n")
    with pytest.raises(NotADirectoryError) as error:  # model and input in the wrong order, for one
        SentenceTransformer(tmp_path / "passages.txt")
    said = "is a file, not a directory. Pass the directory of a bundle, which `stonnx export` makes, or a Hub id."
    assert str(error.value) == f"Path {tmp_path / 'passages.txt'} {said}"


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "stonnx.json").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"neither stonnx\.json .* nor modules\.json or config\.json"):
        SentenceTransformer(tmp_path)


@pytest.mark.parametrize("name", [None, 5, b"model"], ids=repr)
def test_names_that_are_no_text(name: Any) -> None:
    with pytest.raises(TypeError):
        SentenceTransformer(name)


@pytest.mark.parametrize("missing", ["torch", "sentence_transformers"])
def test_a_checkpoint_without_the_exporter(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "cache"))
    absent, find_spec = {missing, "onnx", "onnx_ir", "onnxscript"}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(MissingDependencyError) as error:
        SentenceTransformer(tmp_path)
    message = str(error.value)
    assert f"{tmp_path} is a checkpoint, not a bundle" in message
    assert 'pip install "stonnx[cpu,export]"' in message
    assert f"stonnx export {tmp_path} -o DIRECTORY" in message


# --- onnxruntime ---


def test_without_onnxruntime_and_torch(minilm_bundle: Path) -> None:
    script = textwrap.dedent(
        """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("onnxruntime", "torch", "sentence_transformers", "transformers"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        import stonnx
        try:
            stonnx.SentenceTransformer(sys.argv[1])
        except ImportError as error:
            print(type(error).__name__, error)
        """
    )
    command = [sys.executable, "-c", script, str(minilm_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("MissingDependencyError onnxruntime cannot be imported: No module named")
    assert 'pip install "stonnx[cpu]"  (or "stonnx[gpu]" for NVIDIA GPUs)' in result.stdout


def test_two_wheels_of_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        directory = tmp_path / f"{wheel.replace('-', '_')}-1.26.0.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.26.0\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.warns(
            RuntimeWarning, match="onnxruntime and onnxruntime-gpu are both installed and overwrite"
        ) as caught,
        pytest.raises(InvalidArgumentError, match="threads"),
    ):
        open_session(tmp_path / "model.onnx", threads=0)
    (warning,) = caught
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in str(warning.message)


def test_what_is_left_of_two_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uninstalling one of two wheels removes the files of both, but not the directory.
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(
        MissingDependencyError, match=r"only partly installed.*pip uninstall -y onnxruntime onnxruntime-gpu"
    ):
        open_session(tmp_path / "model.onnx")
