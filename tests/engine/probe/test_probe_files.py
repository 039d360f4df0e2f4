"""Which form of a graph the probe chooses, and probes that are damaged."""

from __future__ import annotations

import dataclasses
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from probed_bundles import WIDTH, Arrays, edit, list_probe, load
from toy_bundles import dense_graph, toy_table, write_bundle

from stonnx import BundleFormatError, BundleIntegrityError, ProbeError
from stonnx._bundle.bundle import Bundle
from stonnx._bundle.manifest import Probe, Scalar, read_manifest, write_manifest
from stonnx._device import opening
from stonnx._engine import probe as probe_module


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
            monkeypatch.setattr(opening, "products_saturate", lambda value=saturates: value)
            engines.append(load(directory))
        full, safe = engines
        probe_module.write(directory, full.manifest, full.named_routes, safe.named_routes)
        list_probe(directory, Probe(probe_module.FILE, 0.999))
        return directory

    @pytest.mark.parametrize("saturates", [False, True], ids=["full range", "saturation-safe"])
    def test_its_own_vectors(
        self, two_forms: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, saturates: bool
    ) -> None:
        monkeypatch.setattr(opening, "products_saturate", lambda: saturates)
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
        monkeypatch.setattr(opening, "products_saturate", lambda: True)
        with pytest.raises(ProbeError, match="cosine -1"):
            load(two_forms)

    @pytest.mark.parametrize(("far", "passes"), [(0.2, True), (0.5, False)])
    def test_exported_on_a_cpu_that_saturates(
        self, two_forms: Path, monkeypatch: pytest.MonkeyPatch, far: float, passes: bool
    ) -> None:
        """There is one form's vectors only, and the other one's are near them."""
        monkeypatch.setattr(opening, "products_saturate", lambda: True)
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
        monkeypatch.setattr(opening, "products_saturate", lambda: False)
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
