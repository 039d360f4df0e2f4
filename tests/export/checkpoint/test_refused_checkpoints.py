"""Checkpoints that are refused, by name: unknown modules, files that are damaged, and weights that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from written_checkpoints import LEGACY, only, saved, write

from stonnx._errors import ExportError, ModelNotFoundError, UnsupportedError
from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.read import read_checkpoint


class TestRefusals:
    @pytest.mark.parametrize(
        "reference",
        [
            "sentence_transformers.models.CNN",
            "sentence_transformers.models.LSTM",
            "sentence_transformers.models.BoW",
            "sentence_transformers.sentence_transformer.modules.word_weights.WordWeights",
        ],
    )
    def test_unknown_modules(self, tmp_path: Path, reference: str) -> None:
        with pytest.raises(UnsupportedError, match=r"Modules that can: .*Dense, Dropout") as raised:
            read_checkpoint(write(tmp_path, reference))
        assert repr(reference) in str(raised.value)

    @pytest.mark.parametrize(
        "reference",
        ["custom_st.Transformer", "sentence_transformers_models.Pooling", "Pooling.", ".Pooling", "os.system"],
    )
    def test_code_of_the_repository(self, tmp_path: Path, reference: str) -> None:
        (tmp_path / "custom_st.py").write_text("raise SystemExit('this must not run')")
        with pytest.raises(UnsupportedError, match="--trust-remote-code") as raised:
            read_checkpoint(write(tmp_path, reference))
        assert repr(reference) in str(raised.value)

    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            ({"pooling_mode": "median"}, "median"),
            ({"pooling_mode": ["mean", "median"]}, "median"),
            ({"pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
            ({"pooling_mode_mean_tokens": True, "pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
        ],
    )
    def test_unknown_pooling_modes(self, tmp_path: Path, settings: dict[str, Any], name: str) -> None:
        with pytest.raises(UnsupportedError, match=f"'{name}'.*weightedmean"):
            read_checkpoint(write(tmp_path, "Pooling", **{"1_Pooling/config.json": settings}))

    def test_an_unknown_pooling_mode_that_is_off(self, tmp_path: Path) -> None:
        settings = {"pooling_mode_mean_tokens": True, "pooling_mode_median_tokens": False}
        assert only(write(tmp_path, "Pooling", **{"1_Pooling/config.json": settings})) == modules.Pooling(
            ("mean",), True
        )

    @pytest.mark.parametrize(
        "reference", ["torch.nn.modules.activation.PReLU", "custom.Tanh", "torch.nn.functional.tanh", "Tanh"]
    )
    def test_unknown_activations(self, tmp_path: Path, reference: str) -> None:
        saved(tmp_path, "Dense", Dense(4, 3))
        (tmp_path / "1_Dense" / "config.json").write_text(json.dumps({"activation_function": reference}))
        with pytest.raises(UnsupportedError, match=f"'{reference}'.*Tanh"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("key", ["module_input_name", "module_output_name"])
    @pytest.mark.parametrize(("name", "module"), [("Dense", Dense(4, 3)), ("Normalize", Normalize())])
    def test_modules_for_other_features(self, tmp_path: Path, name: str, module: Any, key: str) -> None:
        """ColBERT has them for tokens."""
        saved(tmp_path, name, module)
        file = tmp_path / f"1_{name}" / "config.json"
        # Version 5 writes no settings of Normalize.
        usual = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
        settings = json.loads(file.read_text()) if file.exists() else usual
        file.write_text(json.dumps(settings | {key: "token_embeddings"}))
        with pytest.raises(UnsupportedError, match=f"{name} module with {key}='token_embeddings'"):
            read_checkpoint(tmp_path)

    def test_what_late_interaction_does_to_queries(self, tmp_path: Path) -> None:
        settings = {"max_seq_length": 64, "query_expansion": {"strategy": "fixed", "length": 32}}
        with pytest.raises(UnsupportedError, match=r"sets query_expansion, which fills up queries"):
            read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings}))

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"text": {"stride": 4}}, "argument stride=4 in processing_kwargs cannot be exported"),
            ({"common": {"truncation": "only_second"}}, "argument truncation='only_second'"),
            ({"text": {"add_special_tokens": False}}, "argument add_special_tokens=False"),
            ({"text": {"truncation": False}}, "argument truncation=False"),
        ],
    )
    def test_arguments_of_the_tokenizer(self, tmp_path: Path, value: Any, message: str) -> None:
        settings = {"max_seq_length": 64, "processing_kwargs": value}
        with pytest.raises(UnsupportedError, match=message):
            read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings}))

    @pytest.mark.parametrize("value", [{"text": {"max_length": "16"}}, {"text": [16]}])
    def test_arguments_that_are_wrong(self, tmp_path: Path, value: Any) -> None:
        settings = {"max_seq_length": 64, "processing_kwargs": value}
        with pytest.raises(ExportError, match="processing_kwargs must"):
            read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings}))

    @pytest.mark.parametrize("value", [None, {}])
    def test_what_a_transformer_could_do_and_does_not(self, tmp_path: Path, value: Any) -> None:
        names = ("query_length", "document_length", "query_expansion", "processing_kwargs")
        settings = dict.fromkeys(names, value)
        chain = read_checkpoint(write(tmp_path, **{"sentence_bert_config.json": settings})).chain
        assert chain == (modules.Transformer(),)

    @pytest.mark.parametrize("names", [[], ["Pooling"], ["Dropout"]], ids=["empty", "Pooling", "Dropout"])
    def test_no_network_first(self, tmp_path: Path, names: list[str]) -> None:
        write(tmp_path)
        rows = [{"idx": 0, "name": "0", "path": "1_Pooling", "type": LEGACY + name} for name in names]
        (tmp_path / "modules.json").write_text(json.dumps(rows))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text("{}")
        with pytest.raises(UnsupportedError, match="first module must be one of Transformer"):
            read_checkpoint(tmp_path)


class TestDamage:
    @pytest.mark.parametrize("exists", [True, False], ids=["empty directory", "no directory"])
    def test_no_checkpoint(self, tmp_path: Path, exists: bool) -> None:
        with pytest.raises(ModelNotFoundError, match=r"neither modules\.json nor config\.json"):
            read_checkpoint(tmp_path if exists else tmp_path / "missing")

    FILES = (
        "modules.json",
        "config.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
    )

    @staticmethod
    def whole(directory: Path) -> Path:
        """A checkpoint that can be read."""
        (directory / "2_Dense").mkdir(parents=True)
        Dense(4, 3).save(str(directory / "2_Dense"))
        files: dict[str, Any] = {
            "config_sentence_transformers.json": {},
            "sentence_bert_config.json": {"max_seq_length": 12},
            "1_Pooling/config.json": {"pooling_mode": "mean"},
        }
        write(directory, "Pooling", "Dense", **files)
        read_checkpoint(directory)
        return directory

    @pytest.mark.parametrize("content", [b"", b"{", b'{"a": ', b"\xff\xfe{}", b"[1, 2"], ids=repr)
    @pytest.mark.parametrize("name", FILES)
    def test_broken_json(self, tmp_path: Path, name: str, content: bytes) -> None:
        self.whole(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match="not readable JSON") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    @pytest.mark.parametrize("content", [b"null", b"[1]", b'"text"', b"7"], ids=repr)
    @pytest.mark.parametrize("name", FILES)
    def test_json_of_another_kind(self, tmp_path: Path, name: str, content: bytes) -> None:
        self.whole(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExportError, match="is no") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    @pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "2_Dense/config.json"])
    def test_missing_files(self, tmp_path: Path, name: str) -> None:
        (self.whole(tmp_path) / name).unlink()
        with pytest.raises(ExportError, match="lacks") as raised:
            read_checkpoint(tmp_path)
        assert str(tmp_path / name) in str(raised.value)

    def test_a_module_without_weights(self, tmp_path: Path) -> None:
        (self.whole(tmp_path) / "2_Dense" / "model.safetensors").unlink()
        with pytest.raises(ExportError, match="2_Dense has no weights"):
            read_checkpoint(tmp_path)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        (write(tmp_path) / "model.safetensors").unlink()
        with pytest.raises(ExportError, match="has no weights"):
            read_checkpoint(tmp_path)

    def test_other_weights_than_expected(self, tmp_path: Path) -> None:
        save_file({"weight": torch.ones(3, 4)}, self.whole(tmp_path) / "2_Dense" / "model.safetensors")
        with pytest.raises(ExportError, match=r"linear\.weight"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
    def test_damaged_weights(self, tmp_path: Path, name: str) -> None:
        folder = self.whole(tmp_path) / "2_Dense"
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"\0" * 20)
        with pytest.raises(ExportError) as raised:
            read_checkpoint(tmp_path)
        assert str(folder / name) in str(raised.value)

    @pytest.mark.parametrize("path", ["../../x", "..", "1_Pooling/../../other", "ABSOLUTE"])
    @pytest.mark.parametrize("row", [0, 1], ids=["first", "second"])
    def test_paths_that_lead_outside(self, tmp_path: Path, row: int, path: str) -> None:
        """The folder outside has all the files, so that nothing else stops it."""
        self.whole(tmp_path / "a" / "inside")
        for outside in ("a", "a/other", "x"):
            (tmp_path / outside).mkdir(exist_ok=True)
            for name in ("config.json", "sentence_bert_config.json"):
                (tmp_path / outside / name).write_text("{}")
        directory = tmp_path / "a" / "inside"
        rows = json.loads((directory / "modules.json").read_text())
        rows[row]["path"] = str(tmp_path / "x") if path == "ABSOLUTE" else path
        (directory / "modules.json").write_text(json.dumps(rows))
        with pytest.raises(ExportError, match="outside"):
            read_checkpoint(directory)


class TestWeightsHash:
    @staticmethod
    def hash(directory: Path) -> str:
        return read_checkpoint(directory).weights_sha256

    def test_depends_on_weights_and_their_names_only(self, tmp_path: Path) -> None:
        TestDamage.whole(tmp_path / "a")
        before = self.hash(tmp_path / "a")
        assert len(before) == 64
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b" / "README.md").write_text("text")
        (tmp_path / "b" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
        assert self.hash(tmp_path / "b") == before

    @pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors", "pytorch_model.bin"])
    def test_changes_with_one_byte_of_any_file(self, tmp_path: Path, name: str) -> None:
        TestDamage.whole(tmp_path)
        (tmp_path / "pytorch_model.bin").write_bytes(b"1234")
        before = self.hash(tmp_path)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert self.hash(tmp_path) != before

    def test_changes_with_names(self, tmp_path: Path) -> None:
        TestDamage.whole(tmp_path)
        before = self.hash(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
        assert self.hash(tmp_path) != before
