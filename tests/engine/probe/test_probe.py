"""The probe of a bundle: run if this machine has not run it, remembered, and an error if the vectors differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_session import Sessions
from probed_bundles import WIDTH, edit, graphs, load, with_probe
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

from stonnx import ProbeError, SentenceTransformer
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, Probe, read_manifest, write_manifest
from stonnx._engine import probe as probe_module


class TestRemembered:
    def test_run_once_for_every_route_and_not_again(self, any_bundle: Path, runs: list[str]) -> None:
        engine = load(any_bundle)
        assert runs == [engine.manifest.task] * len(engine.manifest.routes)
        load(any_bundle)
        assert len(runs) == len(engine.manifest.routes)

    def test_what_is_written(self, any_bundle: Path) -> None:
        manifest = read_manifest(any_bundle)
        assert manifest.probe == Probe("probe.npz", 0.999)
        assert "probe.npz" in manifest.files
        with np.load(any_bundle / "probe.npz", allow_pickle=False) as arrays:
            texts = json.loads(bytes(arrays["texts"]))
            vectors = {name: arrays[name] for name in arrays if name != "texts"}
        count = 8 if manifest.task == "rerank" else 4
        assert len(texts) == count
        assert all(len(text) == 2 if manifest.task == "rerank" else isinstance(text, str) for text in texts)
        assert vectors.keys() == {f"route.{name}" for name in manifest.routes}
        for array in vectors.values():
            assert (array.dtype, array.shape) == (np.float32, (count, 3 if manifest.task == "rerank" else WIDTH))
            assert len(np.unique(array, axis=0)) == count

    def test_a_bundle_without_one_loads(self, bundle: Path, runs: list[str], home: Path) -> None:
        write_manifest(bundle, dataclasses.replace(read_manifest(bundle), probe=None))
        load(bundle)
        # As it was written before there were probes.
        data = json.loads((bundle / MANIFEST_NAME).read_text())
        del data["probe"]
        (bundle / MANIFEST_NAME).write_text(json.dumps(data))
        load(bundle)
        assert runs == []
        assert not (home / "probes").exists()

    @pytest.mark.parametrize(
        "change",
        [{"version": "9.9.9"}, {"device": "cuda"}, {"form": "saturation-safe"}],
        ids=["onnxruntime", "device", "form"],
    )
    def test_run_again_where_the_session_is_another(
        self, bundle: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
    ) -> None:
        load(bundle)
        Sessions(monkeypatch, **change)
        load(bundle)
        assert len(runs) == 2
        load(bundle)
        assert len(runs) == 2

    @pytest.mark.parametrize(
        ("name", "value"), [("cpu_name", "Another CPU"), ("cpu_features", ("avx2",)), ("cpu_features", ())]
    )
    def test_run_again_on_another_cpu(
        self, bundle: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: Any
    ) -> None:
        """A home directory may be on a file server, or in an image that moves from machine to machine."""
        load(bundle)
        monkeypatch.setattr(probe_module, name, lambda: value)
        load(bundle)
        load(bundle)
        assert len(runs) == 2

    @pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1), ("tensorrt", 0)])
    def test_run_again_on_another_gpu(
        self, bundle: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, device: str, index: int
    ) -> None:
        """As on two machines of a cluster with one home directory."""
        Sessions(monkeypatch, device=device)
        gpus = ["NVIDIA A (8.0)", "NVIDIA A (8.0)"]
        monkeypatch.setattr("stonnx._device.nvidia.gpu_names", lambda: gpus)
        load(bundle)
        load(bundle)
        assert len(runs) == 1
        gpus[index] = "NVIDIA B (9.0)"
        load(bundle)
        load(bundle)
        assert len(runs) == 2
        gpus[1 - index] = "another that is not used"
        load(bundle)
        assert len(runs) == 2

    def test_run_again_for_another_bundle_at_the_same_place(self, bundle: Path, runs: list[str]) -> None:
        load(bundle)
        onnx.save(dense_graph(toy_table(WIDTH, 7)), bundle / "default.onnx")
        files = hash_files(bundle, ["default.onnx", "tokenizer.json", "probe.npz"])
        write_manifest(bundle, dataclasses.replace(read_manifest(bundle), files=files))
        with pytest.raises(ProbeError):
            load(bundle)
        assert len(runs) == 2

    def test_not_run_again_for_a_copy(self, bundle: Path, runs: list[str], tmp_path: Path) -> None:
        load(bundle)
        bundle.rename(tmp_path / "elsewhere")
        load(tmp_path / "elsewhere")
        assert len(runs) == 1

    def test_a_failure_is_not_remembered(self, bundle: Path, runs: list[str]) -> None:
        edit(bundle, lambda arrays: arrays.update({"route.default": -arrays["route.default"]}))
        for _ in range(2):
            with pytest.raises(ProbeError):
                load(bundle)
        assert len(runs) == 2


class TestWhereNothingCanBeRemembered:
    """The probe runs at every start, and nothing fails."""

    @pytest.fixture(autouse=True)
    @staticmethod
    def _loads_twice(bundle: Path, runs: list[str]) -> Any:
        yield
        for _ in range(2):
            load(bundle)
        assert len(runs) == 2

    def test_a_file_is_in_the_way(self, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("STONNX_HOME", str(tmp_path / "file" / "home"))

    def test_read_only(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Root may write anywhere, so the refusal is made up."""

        def refuse(self: Path, *arguments: Any, **options: Any) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(Path, "touch", refuse)

    def test_no_home_directory(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A container that runs as a user whom its system does not know."""

        def unknown() -> Path:
            raise RuntimeError("Could not determine home directory.")

        for name in ("STONNX_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", unknown)


class TestOtherVectors:
    def turned(self, vectors: np.ndarray, cosine: float) -> np.ndarray:
        """Vectors with this cosine to others; of the first text only."""
        unit = vectors[0] / np.linalg.norm(vectors[0])
        other = np.eye(len(unit))[0] - unit[0] * unit
        other /= np.linalg.norm(other)
        result = vectors.copy()
        result[0] = np.linalg.norm(vectors[0]) * (cosine * unit + np.sqrt(1 - cosine**2) * other)
        return result

    @pytest.mark.parametrize(("cosine", "passes"), [(0.9995, True), (0.9985, False), (-1.0, False)])
    def test_the_bound(self, bundle: Path, cosine: float, passes: bool) -> None:
        edit(
            bundle,
            lambda arrays: arrays.update({"route.default": self.turned(arrays["route.default"], cosine)}),
        )
        if passes:
            load(bundle)
            return
        with pytest.raises(ProbeError) as raised:
            load(bundle)
        message = str(raised.value)
        for part in (
            str(bundle),
            f"cosine {cosine:.4f}",
            "at least 0.999",
            "onnxruntime",
            "cpu",
            "--dtype fp32",
            "doctor",
        ):
            assert part in message

    def test_the_length_of_vectors_does_not_matter(self, bundle: Path) -> None:
        edit(bundle, lambda arrays: arrays.update({"route.default": 3 * arrays["route.default"]}))
        load(bundle)

    @pytest.mark.parametrize("route", ["document", "query"])
    def test_every_route_counts(self, tmp_path: Path, route: str) -> None:
        directory = with_probe(write_bundle(tmp_path / "bundle", graphs("sparse"), task="sparse"))
        edit(directory, lambda arrays: arrays.update({f"route.{route}": arrays[f"route.{route}"][::-1]}))
        with pytest.raises(ProbeError):
            load(directory)

    def test_texts_without_active_dimensions(self, tmp_path: Path) -> None:
        """Zero beside zero is right, and beside anything else it is not."""
        graph = {"default": sparse_graph(-np.abs(toy_table(WIDTH, 5)))}
        directory = with_probe(write_bundle(tmp_path / "bundle", graph, task="sparse"))
        load(directory)
        edit(directory, lambda arrays: arrays["route.default"].__setitem__((0, 0), 1))
        with pytest.raises(ProbeError, match=r"cosine 0\.0"):
            load(directory)

    def test_logits_are_compared_together(self, tmp_path: Path) -> None:
        """A single logit has no angle: that of all pairs' logits shows another order and other proportions."""
        graph = {"default": pair_graph(toy_table(1, 5), np.ones(1, dtype=np.float32), "Sigmoid")}
        directory = with_probe(write_bundle(tmp_path / "bundle", graph, task="rerank"))
        load(directory)
        edit(directory, lambda arrays: arrays.update({"route.default": arrays["route.default"][::-1]}))
        with pytest.raises(ProbeError):
            load(directory)

    def test_logits_are_compared_with_how_much_they_vary(self) -> None:
        """Those of rerankers are often all about -11: the same error is more where they differ by less."""
        varying = np.array([[8], [7], [-11], [-10]], dtype=np.float32)
        near = np.array([[-10.5], [-11], [-10], [-11.5]], dtype=np.float32)
        error = np.array([[1], [-1], [-1], [1]], dtype=np.float32)
        assert probe_module.lowest_cosine("rerank", varying, varying + error) > 0.99
        assert probe_module.lowest_cosine("rerank", near, near + error) < 0.9
        # A shift of all is not a change of their order, but their activation shows it.
        assert probe_module.lowest_cosine("rerank", varying, varying + 6) < 0.9

    def test_logits_that_are_all_the_same(self) -> None:
        """As a network of random weights may give: what is left of their differences is noise."""
        constant = np.full((4, 1), 2, dtype=np.float32)
        assert probe_module.lowest_cosine("rerank", constant, constant) == 1
        assert probe_module.lowest_cosine("rerank", constant, constant + 1e-4) > 0.9999
        assert probe_module.lowest_cosine("rerank", constant, constant + 1) < 0.9
        assert probe_module.lowest_cosine("rerank", np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)) == 1

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_none(self, bundle: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
        """A broken provider gives these."""
        original = probe_module.outputs_of

        def broken(*arguments: Any) -> np.ndarray:
            result = original(*arguments)
            result[1, 2] = value
            return result

        monkeypatch.setattr(probe_module, "outputs_of", broken)
        with pytest.raises(ProbeError, match="cosine nan"):
            load(bundle)

    def test_before_a_model_is_there(self, bundle: Path) -> None:
        edit(bundle, lambda arrays: arrays.update({"route.default": -arrays["route.default"]}))
        with pytest.raises(ProbeError):
            SentenceTransformer(bundle)
