"""The probe of a bundle: run where it has not been, remembered, and an error where the vectors are others."""

from __future__ import annotations

import dataclasses
import json
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from toy_bundles import dense_graph, pair_graph, sparse_graph, toy_table, write_bundle

from stonnx import BundleFormatError, BundleIntegrityError, ProbeError, SentenceTransformer
from stonnx._bundle.bundle import Bundle, open_bundle
from stonnx._bundle.integrity import hash_files
from stonnx._bundle.manifest import MANIFEST_NAME, Probe, Scalar, read_manifest, write_manifest
from stonnx._device import session as session_module
from stonnx._device.session import Session
from stonnx._engine import probe as probe_module
from stonnx._engine.engine import Engine

Arrays = dict[str, np.ndarray]

WIDTH = 8


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of this test's own."""
    monkeypatch.setenv("STONNX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The task of every probe that is run from now on, once for each route."""
    tasks: list[str] = []
    original = probe_module.outputs_of

    def run(route: Any, task: str, texts: Any) -> np.ndarray:
        tasks.append(task)
        return original(route, task, texts)

    monkeypatch.setattr(probe_module, "outputs_of", run)
    return tasks


def with_probe(directory: Path, cosine_min: float = 0.999) -> Path:
    """Give a bundle a probe, as the exporter does."""
    engine = Engine(open_bundle(directory), threads=1)
    probe_module.write(directory, engine.manifest, engine.named_routes)
    list_probe(directory, Probe(probe_module.FILE, cosine_min))
    return directory


def list_probe(directory: Path, probe: Probe) -> None:
    """State a probe and its hash in the manifest."""
    manifest = read_manifest(directory)
    files = {**manifest.files, **hash_files(directory, [probe.file])}
    write_manifest(directory, dataclasses.replace(manifest, files=files, probe=probe))


def edit(directory: Path, change: Callable[[Arrays], Any]) -> None:
    """Change the arrays of a probe, and have the manifest agree."""
    with np.load(directory / probe_module.FILE) as arrays:
        data = dict(arrays)
    change(data)
    np.savez_compressed(directory / probe_module.FILE, **data)
    probe = read_manifest(directory).probe
    assert probe is not None
    list_probe(directory, probe)


def load(directory: Path) -> Engine:
    return Engine(open_bundle(directory), threads=1)


def graphs(task: str) -> Mapping[str, onnx.ModelProto]:
    table = toy_table(WIDTH, 5)
    match task:
        case "embedding":
            return {"default": dense_graph(table)}
        case "sparse":
            return {"document": sparse_graph(table), "query": sparse_graph(toy_table(WIDTH, 6))}
        case _:
            return {"default": pair_graph(toy_table(3, 5), np.array([1, -1, 0.5], dtype=np.float32), "Sigmoid")}


@pytest.fixture(params=["embedding", "sparse", "rerank"])
def any_bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle of each task with a probe; the sparse one has two routes."""
    return with_probe(write_bundle(tmp_path / "bundle", graphs(request.param), task=request.param))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of dense vectors with a probe."""
    return with_probe(
        write_bundle(tmp_path / "bundle", graphs("embedding"), task="embedding", embedding_dimension=WIDTH)
    )


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
        [
            pytest.param(lambda session: setattr(session, "version", "9.9.9"), id="onnxruntime"),
            pytest.param(lambda session: setattr(session, "device", "cuda"), id="device"),
            pytest.param(lambda session: setattr(session, "form", "saturation-safe"), id="form"),
        ],
    )
    def test_run_again_where_the_session_is_another(
        self, bundle: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, change: Callable[[Session], None]
    ) -> None:
        load(bundle)
        initialize = Session.__init__

        def changed(self: Session, *arguments: Any, **options: Any) -> None:
            initialize(self, *arguments, **options)
            change(self)

        monkeypatch.setattr(Session, "__init__", changed)
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
        initialize = Session.__init__

        def changed(self: Session, *arguments: Any, **options: Any) -> None:
            initialize(self, *arguments, **options)
            self.device = device

        monkeypatch.setattr(Session, "__init__", changed)
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
        assert probe_module._closeness("rerank", varying, varying + error) > 0.99
        assert probe_module._closeness("rerank", near, near + error) < 0.9
        # A shift of all is not a change of their order, but their activation shows it.
        assert probe_module._closeness("rerank", varying, varying + 6) < 0.9

    def test_logits_that_are_all_the_same(self) -> None:
        """As a network of random weights may give: what is left of their differences is noise."""
        constant = np.full((4, 1), 2, dtype=np.float32)
        assert probe_module._closeness("rerank", constant, constant) == 1
        assert probe_module._closeness("rerank", constant, constant + 1e-4) > 0.9999
        assert probe_module._closeness("rerank", constant, constant + 1) < 0.9
        assert probe_module._closeness("rerank", np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32)) == 1

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


class TestForms:
    """An int8 graph has two forms, which give other vectors: each is compared with its own."""

    FACTOR = Scalar("float32", -1.0)

    @pytest.fixture
    def two_forms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A bundle whose second form is as far from the first as can be: its vectors are their negatives."""
        graph = dense_graph(toy_table(WIDTH, 5))
        (last,) = (node for node in graph.graph.node if node.op_type == "Div")
        last.output[0] = "mean"
        graph.graph.node.append(onnx.helper.make_node("Mul", ["mean", "factor"], ["sentence_embedding"]))
        graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, dtype=np.float32), "factor"))
        directory = write_bundle(tmp_path / "bundle", {"default": graph}, task="embedding", embedding_dimension=WIDTH)
        manifest = read_manifest(directory)
        routes = {"default": dataclasses.replace(manifest.routes["default"], saturation_safe={"factor": self.FACTOR})}
        write_manifest(directory, dataclasses.replace(manifest, routes=routes))
        engines = []
        for saturates in (False, True):
            monkeypatch.setattr(session_module, "products_saturate", lambda value=saturates: value)
            engines.append(load(directory))
        full, safe = engines
        probe_module.write(directory, full.manifest, full.named_routes, safe.named_routes)
        list_probe(directory, Probe(probe_module.FILE, 0.999))
        return directory

    @pytest.mark.parametrize("saturates", [False, True], ids=["full range", "saturation-safe"])
    def test_its_own_vectors(
        self, two_forms: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, saturates: bool
    ) -> None:
        monkeypatch.setattr(session_module, "products_saturate", lambda: saturates)
        assert load(two_forms).route().session.form == ("saturation-safe" if saturates else "full-range")
        assert len(runs) == 1
        edit(two_forms, lambda arrays: arrays.update({"safe.default": arrays["route.default"]}))
        if saturates:
            with pytest.raises(ProbeError):
                load(two_forms)
        else:
            load(two_forms)

    def test_a_probe_of_one_form_is_for_both(self, two_forms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the first probes were written."""
        edit(two_forms, lambda arrays: arrays.pop("safe.default"))
        monkeypatch.setattr(session_module, "products_saturate", lambda: True)
        with pytest.raises(ProbeError, match="cosine -1"):
            load(two_forms)

    @pytest.mark.parametrize(("far", "passes"), [(0.2, True), (0.5, False)])
    def test_exported_on_a_cpu_that_saturates(
        self, two_forms: Path, monkeypatch: pytest.MonkeyPatch, far: float, passes: bool
    ) -> None:
        """There is one form's vectors only, and the other one's are near them."""
        monkeypatch.setattr(session_module, "products_saturate", lambda: True)
        safe = load(two_forms)
        probe_module.write(two_forms, safe.manifest, safe.named_routes, safe.named_routes)
        with np.load(two_forms / probe_module.FILE) as arrays:
            assert sorted(arrays) == ["safe.default", "texts"]
        list_probe(two_forms, Probe(probe_module.FILE, 0.999))
        load(two_forms)

        def turn(arrays: Arrays) -> None:
            """By a small angle, from what the full range gives."""
            vectors = -arrays["safe.default"]
            across = np.roll(vectors, 1, axis=1)
            across -= (across * vectors).sum(1, keepdims=True) / np.square(vectors).sum(1, keepdims=True) * vectors
            across *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(across, axis=1, keepdims=True)
            arrays["safe.default"] = (np.cos(far) * vectors + np.sin(far) * across).astype(np.float32)

        edit(two_forms, turn)
        monkeypatch.setattr(session_module, "products_saturate", lambda: False)
        if passes:
            load(two_forms)
        else:
            with pytest.raises(ProbeError, match=r"at least 0\.97"):
                load(two_forms)


def _json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


class TestDamage:
    def test_a_changed_file_is_found_by_its_hash(self, bundle: Path) -> None:
        data = bytearray((bundle / "probe.npz").read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / "probe.npz").write_bytes(data)
        with pytest.raises(BundleIntegrityError, match=r"probe\.npz"):
            load(bundle)

    def test_a_missing_file(self, bundle: Path) -> None:
        (bundle / "probe.npz").unlink()
        with pytest.raises(BundleIntegrityError, match=r"probe\.npz is missing"):
            load(bundle)

    @pytest.mark.parametrize("name", ["../probe.npz", "/etc/passwd", "nothing.npz"])
    def test_a_file_that_is_no_file_of_the_bundle(self, bundle: Path, name: str) -> None:
        manifest = read_manifest(bundle)
        write_manifest(bundle, dataclasses.replace(manifest, probe=Probe(name, 0.9)))
        with pytest.raises(BundleFormatError):
            load(bundle)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda arrays: arrays.pop("texts"), id="no texts at all"),
            pytest.param(lambda arrays: arrays.update(texts=_json([])), id="an empty list"),
            pytest.param(lambda arrays: arrays.update(texts=_json(3)), id="a number"),
            pytest.param(lambda arrays: arrays.update(texts=_json([1, 2, 3, 4])), id="numbers"),
            pytest.param(lambda arrays: arrays.update(texts=_json([["a", "b", "c"]] * 4)), id="triples"),
            pytest.param(lambda arrays: arrays.update(texts=_json(["\ud800"] * 4)), id="half a character"),
            pytest.param(lambda arrays: arrays.update(texts=_json(["a"] * 4)[:-3]), id="half of it"),
            pytest.param(lambda arrays: arrays.update(texts=np.frombuffer(b"[" * 10**5, np.uint8)), id="depth"),
            pytest.param(lambda arrays: arrays.update(texts=_json(["a"] * 65)), id="too many texts"),
            pytest.param(lambda arrays: arrays.update(texts=_json(["a"] * 300_000)), id="far too many texts"),
            pytest.param(lambda arrays: arrays.update(texts=_json(["a" * 10_001] * 4)), id="too long texts"),
            pytest.param(lambda arrays: arrays.update(zeros=np.zeros(200 << 20, np.uint8)), id="zeros that pack well"),
            pytest.param(lambda arrays: arrays.update(other=arrays.pop("route.default")), id="no vectors"),
            pytest.param(lambda arrays: arrays.update({"route.default": np.array(["a"])}), id="no numbers"),
        ],
    )
    def test_contents(self, bundle: Path, change: Callable[[Arrays], Any]) -> None:
        edit(bundle, change)
        with pytest.raises(BundleFormatError, match=r"probe\.npz is not a probe that can be read"):
            load(bundle)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda vectors: vectors[:2], id="too few"),
            pytest.param(lambda vectors: vectors[:, :2], id="too short"),
            pytest.param(lambda vectors: vectors[None], id="one dimension more"),
            pytest.param(lambda vectors: vectors * np.nan, id="no numbers"),
            pytest.param(lambda vectors: vectors * 0, id="zeros"),
        ],
    )
    def test_vectors_that_cannot_be_compared(self, bundle: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
        edit(bundle, lambda arrays: arrays.update({"route.default": change(arrays["route.default"])}))
        with pytest.raises(ProbeError):
            load(bundle)

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18], ids=str)
    def test_files_that_are_no_archive(self, bundle: Path, content: bytes) -> None:
        (bundle / "probe.npz").write_bytes(content)
        list_probe(bundle, Probe("probe.npz", 0.999))
        with pytest.raises(BundleFormatError, match=r"probe\.npz"):
            load(bundle)

    def test_a_pickle_is_never_read(self, bundle: Path) -> None:
        edit(bundle, lambda arrays: arrays.update(texts=np.array([{"a": 1}], dtype=object)))
        with pytest.raises(BundleFormatError, match="not a probe that can be read"):
            load(bundle)

    def test_any_damage(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bytes that are changed, lost or put in: an error of ours, or the vectors as they were."""
        monkeypatch.setattr(probe_module, "is_remembered", lambda *_: False)
        engine = load(bundle)
        data = (bundle / "probe.npz").read_bytes()
        rng = random.Random(0)
        outcomes = []
        for _ in range(300):
            damaged = bytearray(data)
            place = rng.randrange(len(damaged))
            match rng.randrange(3):
                case 0:
                    damaged[place] ^= 1 << rng.randrange(8)
                case 1:
                    del damaged[place:]
                case _:
                    damaged[place:place] = rng.randbytes(rng.randrange(1, 9))
            monkeypatch.setattr(Bundle, "read", lambda *_, damaged=bytes(damaged): damaged)
            try:
                probe_module.run_probe(engine.bundle, engine.named_routes)
                outcomes.append("passed")
            except (BundleFormatError, ProbeError) as error:
                outcomes.append(type(error).__name__)
        assert outcomes.count("BundleFormatError") > 150

    def test_damage_inside_of_a_compressed_array(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """zlib has an error of its own, which is not a ValueError."""

        def fail(*_: Any, **__: Any) -> Any:
            raise zlib.error("Error -3 while decompressing data")

        monkeypatch.setattr(np, "load", fail)
        with pytest.raises(BundleFormatError, match="Error -3 while decompressing data"):
            load(bundle)
