"""``export()`` as a whole: the bundle against sentence-transformers, its card, and its arguments."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fixture_types import Feeds, Run
from sentence_transformers import SentenceTransformer
from whole_exports import FILES, contents

import stonnx
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import Manifest, ModuleSpec, read_manifest
from stonnx._errors import InvalidArgumentError, ModelNotFoundError, UnsupportedError
from stonnx_export import RECIPES, export, pipeline
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.graph.builder import OPSET

TEXTS = [
    "",
    "a",
    "The weather is lovely today.",
    "A man is playing a large flute on the stage " * 6,
    "Сегодня утром в парке было тихо. 我们昨天晚上在河边看到了很多星星。",
]


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
        assert (manifest.schema_version, manifest.task, manifest.architecture) == (1, "embedding", "bert")
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
        names = ", ".join(map(repr, RECIPES))
        with pytest.raises(InvalidArgumentError, match=f"dtype must be one of {names}, got '{dtype}'"):
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
