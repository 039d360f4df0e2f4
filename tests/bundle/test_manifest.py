"""Manifests that are damaged, forged or of another version: a BundleError that names the field, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_manifests import FILES, change

from stonnx import BundleError, BundleFormatError
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Fidelity,
    Manifest,
    ModuleSpec,
    Route,
    Source,
    TensorSpec,
    TokenizerSpec,
    read_manifest,
    write_manifest,
)

# --- manifests that are fine ---


def test_round_trip(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (bundle / MANIFEST_NAME).read_bytes()
    assert manifest.source.name == "模型/model"
    assert manifest.routes["default"].outputs[0].shape == ("batch", 384)


def test_round_trip_of_an_exported_bundle(minilm_bundle: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, read_manifest(minilm_bundle))
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (minilm_bundle / MANIFEST_NAME).read_bytes()


def test_fields_of_later_versions_are_left_alone(own: Path) -> None:
    manifest = read_manifest(own)
    for path in ("new", "source.new", "modules.0.new", "routes.default.new", "routes.default.tokenizer.new"):
        change(own, path, {"a": [1, None]})
    assert read_manifest(own) == manifest


def test_fields_that_have_a_default_may_be_missing(own: Path) -> None:
    manifest = read_manifest(own)
    for path in ("default_route", "modules.1.settings", "routes.default.inputs.0.optional"):
        change(own, path, ...)
    assert read_manifest(own) == manifest


@pytest.mark.parametrize(
    "path", ["source.revision", "truncate_dim", "routes.default.tokenizer.max_seq_length", "fidelity"]
)
def test_null_where_it_is_allowed(own: Path, path: str) -> None:
    change(own, path, None)
    read_manifest(own)


# --- manifests that are not ---


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"schema_version": 1' + b"0" * 5000 + b"}", b"\0"],
    ids=["nothing", "cut off", "UTF-16", "byte order mark", "deep", "a long number", "NUL"],
)
def test_not_json(own: Path, content: bytes) -> None:
    (own / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(
        BundleFormatError, match=r"stonnx\.json is not readable JSON .*stonnx export MODEL -o DIRECTORY"
    ):
        read_manifest(own)


@pytest.mark.parametrize(
    "content", ["[]", "null", "1", '"text"', "{}", '{"schema_version": null}', '{"schema_version": 0}']
)
def test_json_that_is_no_manifest(own: Path, content: str) -> None:
    (own / MANIFEST_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(BundleFormatError, match="is not a stonnx manifest: it has no schema_version"):
        read_manifest(own)


def test_a_newer_schema(own: Path) -> None:
    # Whatever else is in it: only an upgrade helps.
    (own / MANIFEST_NAME).write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}), encoding="utf-8")
    with pytest.raises(
        BundleFormatError,
        match=rf"schema_version {SCHEMA_VERSION + 1}; .* up to {SCHEMA_VERSION}. .*pip install -U stonnx",
    ):
        read_manifest(own)


def field_names(kind: Any, prefix: str = "") -> list[str]:
    return [
        prefix + field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


@pytest.mark.parametrize(
    "path",
    [
        *(path for path in field_names(Manifest) if path != "schema_version"),
        *field_names(Source, "source."),
        *field_names(Route, "routes.default."),
        *field_names(TokenizerSpec, "routes.default.tokenizer."),
        *field_names(TensorSpec, "routes.default.outputs.0."),
        *field_names(ModuleSpec, "modules.0."),
        *field_names(Fidelity, "fidelity."),
    ],
)
def test_missing_fields(own: Path, path: str) -> None:
    change(own, path, ...)
    name = path.replace(".0.", "[0].")
    with pytest.raises(BundleFormatError) as error:
        read_manifest(own)
    assert f"stonnx.json lacks the field {name!r}. " in str(error.value)
    assert "stonnx export MODEL -o DIRECTORY" in str(error.value)


def test_missing_fields_of_a_file(own: Path) -> None:
    data = json.loads((own / MANIFEST_NAME).read_text(encoding="utf-8"))
    del data["files"]["model.onnx"]["sha256"]
    (own / MANIFEST_NAME).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BundleFormatError, match=r"lacks the field 'files\.model\.onnx\.sha256'"):
        read_manifest(own)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema_version", True, "schema_version must be int, found bool"),
        ("task", "chat", "task is 'chat', allowed are 'embedding', 'sparse', 'rerank'"),
        ("task", ["embedding"], "task is ['embedding'], allowed are"),
        ("source", "a/b", "source must be an object, found str"),
        ("source.name", None, "source.name must be str, found null"),
        ("source.revision", 1, "source.revision must be str, found int"),
        ("modules", {}, "modules must be a list, found dict"),
        ("modules.1", "Normalize", "modules[1] must be an object, found str"),
        ("modules.0.settings", [], "modules[0].settings must be an object, found list"),
        ("routes", [], "routes must be an object, found list"),
        ("routes.default", None, "routes.default must be an object, found null"),
        ("routes.default.opset", "20", "routes.default.opset must be int, found str"),
        ("routes.default.opset", 20.0, "routes.default.opset must be int, found float"),
        ("routes.default.inputs.1", [], "routes.default.inputs[1] must be an object, found list"),
        ("routes.default.inputs.1.optional", 1, "routes.default.inputs[1].optional must be bool, found int"),
        ("routes.default.outputs.0.shape", "batch", "routes.default.outputs[0].shape must be a list, found str"),
        ("routes.default.outputs.0.shape.1", None, "routes.default.outputs[0].shape[1] must be str, found null"),
        ("routes.default.tokenizer", [], "routes.default.tokenizer must be an object, found list"),
        (
            "routes.default.tokenizer.special_token_ids.2",
            "102",
            "routes.default.tokenizer.special_token_ids[2] must be int, found str",
        ),
        (
            "routes.default.tokenizer.truncation_side",
            "middle",
            "routes.default.tokenizer.truncation_side is 'middle', allowed are 'left', 'right'",
        ),
        ("routes.default.tokenizer.max_seq_length", True, "tokenizer.max_seq_length must be int, found bool"),
        ("routes.default.tokenizer.max_seq_length", 0, "max_seq_length must be a number of tokens, found 0"),
        ("routes.default.tokenizer.max_seq_length", -1, "max_seq_length must be a number of tokens, found -1"),
        ("routes.default.tokenizer.max_seq_length", 10**30, "max_seq_length must be a number of tokens, found 1"),
        ("prompts.query", 5, "prompts.query must be str, found int"),
        ("truncate_dim", "8", "truncate_dim must be int, found str"),
        ("normalized", "yes", "normalized must be bool, found str"),
        ("labels", "a", "labels must be a list, found str"),
        ("files", [], "files must be an object, found list"),
        ("exporter.stonnx", 1, "exporter.stonnx must be str, found int"),
        ("fidelity", [], "fidelity must be an object, found list"),
        ("fidelity.cosine_min", "1.0", "fidelity.cosine_min must be float, found str"),
        ("default_route", "query", "has the default route 'query' but no graph for it"),
        ("default_route", None, "default_route must be str, found null"),
        ("routes", {}, "has the default route 'default' but no graph for it"),
    ],
)
def test_wrong_values(own: Path, path: str, value: Any, message: str) -> None:
    change(own, path, value)
    with pytest.raises(BundleFormatError) as error:
        read_manifest(own)
    assert str(own / MANIFEST_NAME) in str(error.value)
    assert message in str(error.value)


BAD_NAMES = [
    "",
    ".",
    "..",
    "../model.onnx",
    "a/../../model.onnx",
    "/etc/passwd",
    "a/b",
    "model.onnx/",
    "./model.onnx",
    "a\\b",
    "..\\model.onnx",
    "C:\\model.onnx",
    "C:model.onnx",
    "model.onnx:stream",
    "model.onnx\0",
    "model\n.onnx",
    "\ud800",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("place", ["files", "routes.default.graph", "routes.default.tokenizer.file"])
def test_names_outside_the_bundle(own: Path, place: str, name: str) -> None:
    if place == "files":
        data = json.loads((own / MANIFEST_NAME).read_text(encoding="utf-8"))
        change(own, "files", data["files"] | {name: data["files"]["model.onnx"]})
    else:
        change(own, place, name)
    with pytest.raises(BundleFormatError, match="which is not a file directly inside the bundle") as error:
        read_manifest(own)
    assert repr(name) in str(error.value)


def test_unusual_names_are_allowed(own: Path) -> None:
    for name in ("..model", "модель 1.onnx", "~model", "a b.onnx", ".hidden"):
        change(own, "routes.default.graph", name)
        data = json.loads((own / MANIFEST_NAME).read_text(encoding="utf-8"))
        (own / name).write_bytes(FILES["model.onnx"])
        change(own, "files", data["files"] | {name: data["files"]["model.onnx"]})
        check_files(own, read_manifest(own))


def test_a_graph_without_a_hash(own: Path) -> None:
    change(own, "routes.default.graph", "other.onnx")
    with pytest.raises(BundleFormatError, match=r"uses 'other\.onnx' without listing its hash"):
        read_manifest(own)


# --- whatever else ---

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["embedding", "default", "model.onnx", "tokenizer.json", *BAD_NAMES]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in children for place in [(*path, key), *_places(child, (*path, key))]]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutations_load_or_raise_a_bundle_error(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    original = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    places = _places(original)
    mutated = copy.deepcopy(original)
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        target = mutated
        try:
            for key in place[:-1]:
                target = target[key]
            kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if kind == "remove":
                del target[place[-1]]
            elif kind == "add" and isinstance(target, dict):
                target[data.draw(st.text(max_size=8) | st.sampled_from(BAD_NAMES))] = data.draw(_JSON)
            else:
                target[place[-1]] = data.draw(_JSON)
        except (LookupError, TypeError):  # an earlier mutation took the place away
            continue
    text = json.dumps(mutated).encode()
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(st.binary(max_size=4)) + text[start + data.draw(st.integers(0, 4)) :]
    directory = tmp_path_factory.getbasetemp() / "mutated-bundle"
    if not directory.exists():
        shutil.copytree(bundle, directory)
    (directory / MANIFEST_NAME).write_bytes(text)
    with contextlib.suppress(BundleError):
        manifest = read_manifest(directory)
        check_files(directory, manifest)
        assert set(manifest.files) <= set(FILES)
