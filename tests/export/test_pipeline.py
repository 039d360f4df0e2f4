"""``export()`` and ``stonnx export`` as a whole: the bundle against sentence-transformers, and all or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from sentence_transformers import SentenceTransformer

import stonnx
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import SCHEMA_VERSION, Fidelity, Manifest, ModuleSpec, read_manifest
from stonnx._disk import create, try_lock
from stonnx._errors import ExportError, InvalidArgumentError, ModelNotFoundError, UnsupportedError
from stonnx_export import RECIPES, export, pipeline
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.graph.builder import OPSET
from stonnx_export.originals import load
from stonnx_export.write import bundle as bundle_writer
from stonnx_export.write import model_card, staging

Run = Callable[..., list[np.ndarray]]
Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]

FILES = ["README.md", "model.onnx", "probe.npz", "stonnx.json", "tokenizer.json"]
STAGES = [
    "reading the checkpoint",
    "reading the network",
    "building the graph",
    "writing the files",
    "verifying against the original",
    "writing the manifest",
    "opening the bundle",
]
TEXTS = [
    "",
    "a",
    "The weather is lovely today.",
    "A man is playing a large flute on the stage " * 6,
    "Сегодня утром в парке было тихо. 我们昨天晚上在河边看到了很多星星。",
]
FIDELITY = Fidelity("nothing", 1, 1.0, 1.0, 0.0, 0.0, RECIPES["fp32"].tolerance["embedding"])


@pytest.fixture
def quick(traced_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the tiny checkpoint that neither trace nor verify."""
    monkeypatch.setattr(pipeline, "verify_fidelity", lambda *arguments, **options: FIDELITY)
    monkeypatch.setattr(pipeline, "try_bundle", lambda *arguments: None)


@pytest.fixture
def old_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that is in the way at ``tmp_path / "bundle"``, with a file of its own."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").write_text("of the old bundle")
    return tmp_path / "bundle"


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, and every empty directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


class TestBundle:
    @pytest.fixture(scope="module")
    @staticmethod
    def manifest(tiny_bundle: Path) -> Manifest:
        return read_manifest(tiny_bundle)

    @pytest.fixture(scope="module")
    @staticmethod
    def model(tiny_bundle: Path) -> stonnx.SentenceTransformer:
        return stonnx.SentenceTransformer(tiny_bundle, threads=1)

    @pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
    def test_vectors(self, model: stonnx.SentenceTransformer, tiny_model: SentenceTransformer, method: str) -> None:
        expected = np.stack([getattr(tiny_model, method)(text) for text in TEXTS])
        batched, alone = getattr(model, method)(TEXTS), np.stack([getattr(model, method)(text) for text in TEXTS])
        np.testing.assert_allclose(batched, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-5)
        cosines = expected @ expected.T - np.eye(len(TEXTS))
        assert cosines.max() < 0.999, "the texts have the same vectors, so the comparison says nothing"

    def test_token_embeddings(self, model: stonnx.SentenceTransformer, tiny_model: SentenceTransformer) -> None:
        ours, theirs = (one.encode(TEXTS, output_value="token_embeddings") for one in (model, tiny_model))
        for values, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(values), expected.numpy(), rtol=0, atol=2e-5)

    def test_files(self, tiny_bundle: Path, manifest: Manifest) -> None:
        assert sorted(contents(tiny_bundle)) == FILES
        assert sorted(manifest.files) == ["model.onnx", "probe.npz", "tokenizer.json"]
        check_files(tiny_bundle, manifest)

    def test_manifest(self, tiny_checkpoint: Path, tiny_original: Any, manifest: Manifest) -> None:
        assert (manifest.schema_version, manifest.task, manifest.architecture) == (SCHEMA_VERSION, "embedding", "bert")
        assert (manifest.source.name, manifest.source.revision) == ("acme/tiny", None)
        assert manifest.source.weights_sha256 == read_checkpoint(tiny_checkpoint).weights_sha256
        assert [module.type for module in manifest.modules] == ["Transformer", "Pooling", "Normalize"]
        assert manifest.modules[1] == ModuleSpec("Pooling", {"modes": ["mean"], "include_prompt": True})
        assert (manifest.precision, manifest.recipe, manifest.requires_cpu_features) == ("float32", "fp32", ())
        assert (manifest.embedding_dimension, manifest.normalized, manifest.truncate_dim) == (32, True, None)
        assert manifest.prompts == {"query": "find: ", "document": ""}
        assert (manifest.default_prompt_name, manifest.similarity_fn_name) == (None, "dot")
        assert (manifest.num_labels, manifest.labels, manifest.activation) == (None, (), None)
        assert manifest.exporter.keys() >= {"stonnx", "torch", "transformers", "sentence-transformers", "onnx-ir"}
        assert manifest.fidelity is not None
        assert manifest.fidelity.compared_with == tiny_original.name
        assert manifest.fidelity.tolerance == RECIPES["fp32"].tolerance["embedding"]
        assert 0.999999 < manifest.fidelity.cosine_min <= 1.000001
        assert 0 < manifest.fidelity.max_abs_difference < 1e-6

    def test_route(self, manifest: Manifest) -> None:
        ((name, route),) = manifest.routes.items()
        assert (name, manifest.default_route, route.graph, route.opset) == ("default", "default", "model.onnx", OPSET)
        assert [(spec.name, spec.dtype, spec.shape, spec.optional) for spec in (*route.inputs, *route.outputs)] == [
            ("input_ids", "int64", ("batch", "sequence"), False),
            ("attention_mask", "int64", ("batch", "sequence"), False),
            ("token_type_ids", "int64", ("token_type_batch", "token_type_sequence"), True),
            ("sentence_embedding", "float32", ("batch", 32), False),
            ("token_embeddings", "float32", ("batch", "sequence", 32), False),
        ]
        tokenizer = route.tokenizer
        assert (tokenizer.file, tokenizer.max_seq_length, tokenizer.max_positions) == ("tokenizer.json", 40, 64)
        assert (tokenizer.pad_token_id, tokenizer.pad_token_type_id, tokenizer.truncation_side) == (0, 0, "right")
        assert (tokenizer.add_special_tokens, tokenizer.special_token_ids) == (True, (0, 1, 2, 3, 4))

    def test_the_graph_is_plain_onnx(self, tiny_bundle: Path, tiny_feeds: Feeds, run: Run) -> None:
        """Loadable without stonnx, with ids and mask alone, and what the file says about itself is true."""
        model = onnx.load(tiny_bundle / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        opsets = [(opset.domain, opset.version) for opset in model.opset_import]
        assert opsets == [("", OPSET), ("stonnx.kernels", 1)]
        assert (model.producer_name, model.producer_version) == ("stonnx", stonnx.__version__)
        vectors, tokens = run(tiny_bundle / "model.onnx", **tiny_feeds((9, 4, 1)))
        assert (vectors.shape, tokens.shape) == ((3, 32), (3, 9, 32))

    def test_the_tokenizer_truncates_and_pads_by_itself(
        self, tiny_bundle: Path, tiny_model: SentenceTransformer
    ) -> None:
        import tokenizers

        encodings = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json")).encode_batch(TEXTS)
        expected = tiny_model.preprocess(TEXTS)
        assert [encoding.ids for encoding in encodings] == expected["input_ids"].tolist()
        assert [encoding.attention_mask for encoding in encodings] == expected["attention_mask"].tolist()

    def test_no_path_of_this_machine(self, tiny_bundle: Path, tiny_original: Any, tmp_path_factory: Any) -> None:
        """The tracer writes source files and lines into the graph; the exporter takes them out."""
        places = [Path(pipeline.__file__).parents[2], Path(sys.prefix), Path.home(), tmp_path_factory.getbasetemp()]
        needles = [str(place).encode() for place in places]
        traced = ir.to_proto(tiny_original.graph("default")).SerializeToString()
        assert any(needle in traced for needle in needles), "the traced graph has no paths to take out"
        for name, data in contents(tiny_bundle).items():
            assert not [needle for needle in needles if needle in data], name
        assert b"acme/tiny" in (tiny_bundle / "stonnx.json").read_bytes()

    @pytest.mark.usefixtures("quick")
    def test_the_same_graph_every_time(self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
        again = export(tiny_checkpoint, tmp_path / "again", name="acme/tiny")
        for name in ("model.onnx", "tokenizer.json"):
            assert (again / name).read_bytes() == (tiny_bundle / name).read_bytes()


class TestCard:
    @pytest.fixture(scope="module")
    @staticmethod
    def card(tiny_bundle: Path) -> str:
        return (tiny_bundle / "README.md").read_text(encoding="utf-8")

    def test_figures(self, card: str, tiny_bundle: Path) -> None:
        manifest = read_manifest(tiny_bundle)
        fidelity = manifest.fidelity
        assert fidelity is not None
        for part in (
            "# acme/tiny as a float32 ONNX bundle",
            "Transformer → Pooling → Normalize",
            "| dimensions | 32 |",
            "| longest text | 40 tokens",
            "| vectors of length 1 | yes |",
            "| similarity | dot |",
            "find: ",
            f"Compared with {fidelity.compared_with}, on {fidelity.texts} texts",
            f"| cosine, mean | {fidelity.cosine_mean:.7f} |",
            f"| cosine, lowest | {fidelity.cosine_min:.7f} | at least 0.99999 |",
            f"| largest difference | {fidelity.max_abs_difference:.1e} | at most 1e-05 |",
            f"| alone, batched or padded: largest difference | {fidelity.batch_invariance:.1e} | at most 1e-06 |",
            "shapes 2x, attention_lengths 2x, attention_biases 4x",
            manifest.source.weights_sha256,
            *(f"{name} {version}" for name, version in manifest.exporter.items()),
        ):
            assert part in card

    @staticmethod
    def snippets(card: str) -> tuple[str, str]:
        with_stonnx, without = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        return with_stonnx, without

    def test_the_snippet_with_stonnx(self, card: str, tiny_bundle: Path, tiny_model: SentenceTransformer) -> None:
        code = self.snippets(card)[0]
        assert "path/to/this/directory" in code
        namespace: dict[str, Any] = {}
        exec(code.replace("path/to/this/directory", str(tiny_bundle)), namespace)
        expected = tiny_model.encode(["The weather is lovely today.", "It's so sunny outside!"])
        np.testing.assert_allclose(namespace["embeddings"], expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("texts", [None, TEXTS], ids=["as it is", "with padding"])
    def test_the_snippet_without_stonnx(
        self,
        card: str,
        tiny_bundle: Path,
        tiny_model: SentenceTransformer,
        tmp_path: Path,
        texts: list[str] | None,
    ) -> None:
        code = self.snippets(card)[1]
        assert "stonnx" not in code
        own = '["The weather is lovely today."]'
        assert code.count(own) == 1
        if texts is not None:
            code = code.replace(own, repr(texts))
        code += f"\nnp.save({str(tmp_path / 'embeddings.npy')!r}, sentence_embedding)"
        result = subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code], cwd=tiny_bundle, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        expected = tiny_model.encode(json.loads(own) if texts is None else texts)
        np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("quick")
class TestArguments:
    def test_the_name_is_the_model_as_it_was_given(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        assert read_manifest(export(tiny_checkpoint, tmp_path / "bundle")).source.name == str(tiny_checkpoint)

    def test_the_revision_is_noted(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        assert read_manifest(export(tiny_checkpoint, tmp_path / "bundle", revision="v1")).source.revision == "v1"

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_output_is_named_after_the_model(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slash: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert export(f"{tiny_checkpoint}{slash}") == Path("tiny-fp32")
        assert sorted(contents(tmp_path)) == [f"tiny-fp32/{name}" for name in FILES]

    @pytest.mark.parametrize("dtype", ["fp64", "", "FP32"])
    def test_unknown_dtype(self, tiny_checkpoint: Path, tmp_path: Path, dtype: str) -> None:
        with pytest.raises(InvalidArgumentError, match=f"'{dtype}'.*{', '.join(RECIPES)}"):
            export(tiny_checkpoint, tmp_path / "bundle", dtype=dtype)
        assert not contents(tmp_path)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("FILE", "is a file"),
            ("DIRECTORY/missing", "not a directory here"),
            ("./missing", "not a directory here"),
            ("~/missing", "not a directory here"),
            ("a/b/c", "not a directory here"),
            ("", "neither modules.json nor config.json"),
            ("no-such-model-anywhere", "no-such-model-anywhere"),
            ("acme/no-such-model-anywhere", "acme/no-such-model-anywhere"),
            ("EMPTY", "neither modules.json nor config.json"),
        ],
    )
    def test_no_model(self, tmp_path: Path, model: str, message: str) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "empty").mkdir()
        places = {"FILE": "file", "EMPTY": "empty", "DIRECTORY/missing": "missing"}
        before = contents(tmp_path)
        with pytest.raises(ModelNotFoundError, match=re.escape(message)):
            export(tmp_path / places[model] if model in places else model, tmp_path / "bundle", local_files_only=True)
        assert contents(tmp_path) == before

    def test_unsupported_checkpoint(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny_checkpoint, tmp_path / "model")
        file = tmp_path / "model" / "modules.json"
        file.write_text(file.read_text().replace("normalize.Normalize", "cnn.CNN"))
        with pytest.raises(UnsupportedError, match=r"cnn\.CNN"):
            export(tmp_path / "model", tmp_path / "bundle")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def stopping_at(stage: str, error: BaseException, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one step of the pipeline raise."""
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    def fail_second(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return fail() if calls == 2 else write_manifest(*arguments)

    def fail_for_target(self: Path, destination: Path) -> Path:
        return fail() if Path(destination) == target else rename(self, destination)

    write_manifest, rename = pipeline.write_manifest, Path.rename
    match stage:
        case "graph":
            monkeypatch.setattr(load._load_original(None), "graph", fail)
        case "render":
            monkeypatch.setattr(model_card, "render", fail)
        case "first write_manifest":
            monkeypatch.setattr(pipeline, "write_manifest", fail)
        case "second write_manifest":
            monkeypatch.setattr(pipeline, "write_manifest", fail_second)
        case "fsync":
            monkeypatch.setattr(pipeline.os, "fsync", fail)
        case "rename":
            monkeypatch.setattr(Path, "rename", fail_for_target)
            monkeypatch.setattr(staging, "exchange", fail)
        case "read_checkpoint" | "_load_original":
            monkeypatch.setattr(load, stage, fail)
        case "_write_graph" | "_write_tokenizer":
            monkeypatch.setattr(bundle_writer, stage, fail)
        case _:
            monkeypatch.setattr(pipeline, stage, fail)


STEPS = [
    "read_checkpoint",
    "_load_original",
    "graph",
    "_build",
    "_write_graph",
    "_write_tokenizer",
    "_manifest",
    "first write_manifest",
    "verify_fidelity",
    "render",
    "second write_manifest",
    "fsync",
    "rename",
]
# The old bundle has been moved aside by then, and nobody moves it back.


@pytest.mark.usefixtures("quick")
class TestAllOrNothing:
    ERRORS = (RuntimeError("boom"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"))

    @staticmethod
    def expected(error: BaseException) -> AbstractContextManager[Any]:
        if isinstance(error, OSError):
            return pytest.raises(ExportError, match="No space left on device")
        return pytest.raises(type(error))

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("step", STEPS)
    def test_a_failure_leaves_nothing(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
    ) -> None:
        target = tmp_path / "bundle"
        stopping_at(step, error, target, monkeypatch)
        with self.expected(error):
            export(tiny_checkpoint, target)
        assert not contents(tmp_path)

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("step", STEPS)
    def test_a_failure_leaves_the_old_bundle(
        self,
        tiny_checkpoint: Path,
        old_bundle: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        error: BaseException,
    ) -> None:
        before = contents(old_bundle.parent)
        with monkeypatch.context() as context:
            stopping_at(step, error, old_bundle, context)
            with self.expected(error):
                export(tiny_checkpoint, old_bundle, overwrite=True)
        assert contents(old_bundle.parent) == before

    @pytest.mark.parametrize("step", STEPS)
    def test_the_next_export_succeeds(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        target = tmp_path / "bundle"
        with monkeypatch.context() as context:
            stopping_at(step, RuntimeError("boom"), target, context)
            with pytest.raises(RuntimeError, match="boom"):
                export(tiny_checkpoint, target)
        assert export(tiny_checkpoint, target) == target
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    def test_nothing_is_at_the_target_before_the_end(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "bundle"
        seen = []
        monkeypatch.setattr(pipeline, "verify_fidelity", lambda *_, **__: seen.append(target.exists()) or FIDELITY)
        monkeypatch.setattr(pipeline.os, "fsync", lambda _: seen.append(target.exists()))
        export(tiny_checkpoint, target)
        # After the files, their directory, and then the one that the bundle has been renamed in.
        assert seen == [False] * (1 + len(FILES) + 1) + [True]

    def test_a_failure_leaves_no_parent_directories(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError):
            export("./missing", tmp_path / "new" / "deep" / "bundle")
        assert not list(tmp_path.iterdir())


class TestDamagedNetwork:
    """What sentence-transformers cannot load either."""

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            pytest.param(
                lambda model: (model / "model.safetensors").rename(model / "other.safetensors"),
                "model.safetensors",
                id="weights under another name",
            ),
            pytest.param(
                lambda model: (model / "model.safetensors").write_bytes(b"\0" * 100), "model", id="damaged weights"
            ),
            pytest.param(
                lambda model: (model / "config.json").write_text('{"model_type": "nonsense"}'),
                "nonsense",
                id="unknown architecture",
            ),
        ],
    )
    def test_says_that_the_checkpoint_is_to_blame(
        self, tiny_checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
    ) -> None:
        model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
        damage(model)
        with pytest.raises(stonnx.StonnxError, match=message) as raised:
            export(model, tmp_path / "bundle")
        assert "could not be written" not in str(raised.value)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("quick")
class TestTarget:
    def test_existing_bundle(self, tiny_checkpoint: Path, old_bundle: Path) -> None:
        before = contents(old_bundle.parent)
        with pytest.raises(ExportError, match=r"exists already\..* -o.* --overwrite"):
            export(tiny_checkpoint, old_bundle)
        assert contents(old_bundle.parent) == before

    def test_overwrite(self, tiny_checkpoint: Path, old_bundle: Path) -> None:
        assert export(tiny_checkpoint, old_bundle, overwrite=True, name="new") == old_bundle
        assert sorted(contents(old_bundle.parent)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(old_bundle).source.name == "new"

    def test_overwrite_without_anything_to_overwrite(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=True)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    @pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_what_is_no_bundle_is_never_replaced(
        self, tiny_checkpoint: Path, tmp_path: Path, kind: str, overwrite: bool
    ) -> None:
        target = tmp_path / "precious"
        if kind == "file":
            target.write_text("data")
        else:
            target.mkdir()
            (target / "data.txt").write_text("data")
        before = contents(tmp_path)
        with pytest.raises(ExportError, match="is not a bundle" if overwrite else "exists already"):
            export(tiny_checkpoint, target, overwrite=overwrite)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
    def test_an_empty_directory_is_filled(self, tiny_checkpoint: Path, tmp_path: Path, overwrite: bool) -> None:
        (tmp_path / "bundle").mkdir()
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=overwrite)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]

    def test_parents_are_made(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        target = tmp_path / "new" / "deep" / "bundle"
        assert export(tiny_checkpoint, target) == target
        assert sorted(contents(target)) == FILES

    def test_a_parent_that_is_a_file(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("data")
        with pytest.raises(ExportError, match=r"Cannot write to .*file: .* -o"):
            export(tiny_checkpoint, tmp_path / "file" / "bundle")
        assert contents(tmp_path) == {"file": b"data"}

    def test_a_parent_that_cannot_be_written(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Root may write anywhere, so the refusal is made up."""

        def refuse(self: Path, *_: Any, **__: Any) -> None:
            if self != tmp_path:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(ExportError, match=r"Cannot write to .*: Permission denied\. .* -o"):
            export(tiny_checkpoint, tmp_path / "bundle")
        assert not contents(tmp_path)

    def test_a_second_export_in_the_same_process(
        self, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One starts and ends while the other verifies: the later one fails, and harms nothing."""
        target = tmp_path / "bundle"
        started = []

        def verify(*_: Any, **__: Any) -> Fidelity:
            started.append(True)
            if len(started) == 1:
                export(tiny_checkpoint, target, name="second")
            return FIDELITY

        monkeypatch.setattr(pipeline, "verify_fidelity", verify)
        with pytest.raises(ExportError, match="exists already"):
            export(tiny_checkpoint, target, name="first")
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(target).source.name == "second"

    def test_another_export_was_faster(
        self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "bundle"
        monkeypatch.setattr(
            pipeline, "verify_fidelity", lambda *_, **__: shutil.copytree(tiny_bundle, target) and FIDELITY
        )
        with pytest.raises(ExportError, match="exists already"):
            export(tiny_checkpoint, target)
        assert contents(target) == contents(tiny_bundle)
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    @pytest.mark.parametrize(
        "name",
        [
            "bundle",
            "bundle[1]",
        ],
    )
    def test_leftovers(self, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
        """Only directories of dead processes go, and only those of this target."""
        others = [tmp_path / f".{name}.partial-1a2b3c4d", tmp_path / ".other.partial-999999999"]
        dead = tmp_path / f".{name}.partial-999999999"
        for directory in (*others, dead):
            directory.mkdir()
        lock = create(tmp_path / f".{name}.partial-1a2b3c4d.lock")
        assert try_lock(lock)
        export(tiny_checkpoint, tmp_path / name)
        os.close(lock)
        assert all(directory.is_dir() for directory in others)
        assert not dead.exists()


# `stonnx export` in a process of its own, without PyTorch: the graph comes from a file, and verification waits for a
# line on standard input.
WAITING = """
import sys
import onnx_ir as ir, tokenizers
from stonnx import cli
from stonnx._bundle.manifest import Fidelity
from stonnx_export import pipeline
from stonnx_export.originals import load
from stonnx_export.originals.original import LoadReport, OriginalTokenizer

graph, tokenizer, *arguments = sys.argv[1:]

class FromFile:
    name = "a file"
    loaded = LoadReport()
    def outputs_as_loaded(self, *_):
        return None
    def graph(self, route):
        return ir.load(graph)
    def tokenizer(self, route):
        return OriginalTokenizer(tokenizers.Tokenizer.from_file(tokenizer), 40, 0, 0, "right", (), True)

def verify(*arguments, **options):
    print("verifying", flush=True)
    sys.stdin.readline()
    return Fidelity("nothing", 1, 1.0, 1.0, 0.0, 0.0, arguments[-1])

load._load_original = lambda checkpoint: FromFile()
pipeline.verify_fidelity = verify
pipeline.try_bundle = lambda *arguments: None
sys.exit(cli.main(["export", *arguments, "--quiet"]))
"""


class TestOtherProcesses:
    """Another process is in the middle of its export."""

    @pytest.fixture(scope="class")
    @staticmethod
    def traced(tiny_original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("traced") / "traced.onnx"
        ir.save(tiny_original.graph("default"), path)
        return path

    @pytest.fixture
    def verifying(self, traced: Path, tiny_checkpoint: Path) -> Callable[..., AbstractContextManager[Any]]:
        """``verifying(target, *options)``: a process that has written its files and waits in verification."""

        @contextmanager
        def verifying(target: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
            arguments = [traced, tiny_checkpoint / "tokenizer.json", tiny_checkpoint, "-o", target, *options]
            process = subprocess.Popen(
                [sys.executable, "-c", WAITING, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # A shell starts what it runs in the background with Ctrl-C ignored, and that is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "verifying\n", process.communicate()[1]
                yield process
            finally:
                process.kill()
                process.communicate()

        return verifying

    @pytest.mark.usefixtures("quick")
    def test_one_of_two_wins(self, tiny_checkpoint: Path, tmp_path: Path, verifying: Any) -> None:
        target = tmp_path / "bundle"
        with verifying(target, "--name", "slow") as slow:
            (partial,) = (path for path in tmp_path.glob(".bundle.partial-*") if path.is_dir())
            before = contents(partial)
            assert before
            export(tiny_checkpoint, target, name="fast")
            assert contents(partial) == before
            _, message = slow.communicate("\n", timeout=60)
        assert slow.returncode == 1
        assert "exists already" in message
        assert "Traceback" not in message
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        assert read_manifest(target).source.name == "fast"
        check_files(target, read_manifest(target))

    @pytest.mark.usefixtures("quick")
    def test_killed(self, tiny_checkpoint: Path, tmp_path: Path, verifying: Any) -> None:
        """What it leaves behind is hidden, and goes with the next export."""
        target = tmp_path / "bundle"
        with verifying(target) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        (partial,) = (path.name for path in tmp_path.iterdir() if path.is_dir())
        assert sorted(path.name for path in tmp_path.iterdir()) == [partial, f"{partial}.lock"]
        assert partial.startswith(".bundle.partial-")
        export(tiny_checkpoint, target)
        assert sorted(contents(tmp_path)) == [f"bundle/{name}" for name in FILES]
        check_files(target, read_manifest(target))

    def test_killed_while_overwriting(self, tiny_bundle: Path, old_bundle: Path, verifying: Any) -> None:
        before = contents(old_bundle)
        with verifying(old_bundle, "--overwrite") as process:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        assert contents(old_bundle) == before
        check_files(old_bundle, read_manifest(old_bundle))

    def test_interrupted(self, tmp_path: Path, verifying: Any) -> None:
        with verifying(tmp_path / "bundle") as process:
            process.send_signal(signal.SIGINT)
            _, message = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in message
        assert "Traceback" not in message
        assert not contents(tmp_path)


@pytest.mark.usefixtures("quick")
class TestProgress:
    def test_a_line_for_each_stage(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", show_progress=True)
        output = capsys.readouterr()
        assert output.out == ""
        assert [re.sub(r" \.\.\. \d+\.\d s$", "", line) for line in output.err.splitlines()] == STAGES

    @pytest.mark.parametrize("show", [False, None], ids=["off", "no terminal"])
    def test_nothing(
        self, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], show: bool | None
    ) -> None:
        export(tiny_checkpoint, tmp_path / "bundle", show_progress=show)
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        export(tiny_checkpoint, tmp_path / "bundle")
        assert len(capsys.readouterr().err.splitlines()) == len(STAGES)

    @pytest.mark.parametrize(
        ("step", "stage"),
        [
            ("read_checkpoint", 0),
            ("graph", 1),
            ("_build", 2),
            ("_write_graph", 3),
            ("verify_fidelity", 4),
            ("render", 5),
        ],
    )
    def test_the_stage_that_failed(
        self,
        tiny_checkpoint: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        stage: int,
    ) -> None:
        stopping_at(step, RuntimeError("boom"), tmp_path / "bundle", monkeypatch)
        with pytest.raises(RuntimeError, match="boom"):
            export(tiny_checkpoint, tmp_path / "bundle", show_progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == stage + 1
        assert lines[-1] == f"{STAGES[stage]} ... failed"


def command_line(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("stonnx")
    return subprocess.run(
        [str(script), "export", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


class TestCommandLine:
    def test_export(
        self, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, tiny_feeds: Feeds, run: Run
    ) -> None:
        """Everything for real, in a process of its own: the graph computes the same to the bit."""
        bundles = tmp_path / "tiny-fp32", tiny_bundle
        result = command_line(tiny_checkpoint, "--name", "acme/tiny", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert [line.partition(" ...")[0] for line in result.stderr.splitlines()] == STAGES
        assert result.stdout.startswith("tiny-fp32: embedding, float32, ")
        assert "cosine to PyTorch mean 1.0000000" in result.stdout
        assert len(result.stdout.splitlines()) == 1
        assert sorted(contents(tmp_path)) == [f"tiny-fp32/{name}" for name in FILES]
        assert read_manifest(tmp_path / "tiny-fp32").source.name == "acme/tiny"
        feeds = tiny_feeds((9, 4, 1))
        for ours, expected in zip(*(run(bundle / "model.onnx", **feeds) for bundle in bundles), strict=True):
            np.testing.assert_array_equal(ours, expected)

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            pytest.param(("./missing", "-o", "bundle"), 1, "not a directory here", id="no model"),
            pytest.param(("CHECKPOINT", "-o", "bundle", "--dtype", "fp64"), 1, "'fp64' is not known", id="dtype"),
            pytest.param(("CHECKPOINT", "-o", "file"), 1, "--overwrite", id="target exists"),
            pytest.param((), 2, "the following arguments are required: model", id="no arguments"),
        ],
    )
    def test_failures(
        self, tiny_checkpoint: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
    ) -> None:
        (tmp_path / "file").write_text("data")
        filled = [str(tiny_checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
        result = command_line(*filled, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (status, "")
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert contents(tmp_path) == {"file": b"data"}

    def test_errors_start_with_the_command(self, tmp_path: Path) -> None:
        assert command_line("./missing", cwd=tmp_path).stderr.splitlines()[-1].startswith("stonnx export: ")

    @pytest.mark.parametrize("package", ["onnx_ir", "torch", "sentence_transformers"])
    def test_without_the_extra(self, tiny_checkpoint: Path, tmp_path: Path, package: str) -> None:
        code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from stonnx import cli
sys.exit(cli.main(["export", *sys.argv[2:]]))
"""
        arguments = [package, str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "--quiet"]
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
        assert result.returncode == 1
        assert 'pip install "stonnx[cpu,export]"' in result.stderr
        assert package in result.stderr
        assert "Traceback" not in result.stderr
        assert not contents(tmp_path)
