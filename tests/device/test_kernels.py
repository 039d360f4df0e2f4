"""The library of native kernels as the runtime finds it: missing, broken, of another version, turned off, or used."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import encoder

import stonnx
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import Kernels
from stonnx._device import kernels as native
from stonnx._device.device_options import DeviceOptions
from stonnx._device.facts import GraphFacts
from stonnx._device.opening import open_session
from stonnx._engine import probe
from stonnx._engine.engine import Engine
from stonnx._errors import DeviceError, InvalidArgumentError, ProbeError, UnsupportedError
from stonnx.cli import doctor
from stonnx_export.kernels import outline

FLOAT_BLOCKS = Kernels(1, {"AttentionFloat": 2, "FeedForwardFloat": 2})
INT8_BLOCKS = Kernels(1, {"AttentionInt8": 2, "FeedForwardInt8": 2})


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the library said is remembered for the process."""
    native._load.cache_clear()
    yield
    monkeypatch.undo()
    native._load.cache_clear()


class FakeLibrary:
    """What a library says about itself, as ctypes gives it."""

    def __init__(self, **changes: Any) -> None:
        says: dict[str, Any] = {
            "version": b"0.1.0",
            "operators": 1,
            "variant": b"avx2",
            "variants": b"avx512_bf16,avx2",
            "reason": b"",
            "bf16": 0,
            **changes,
        }
        for name, value in says.items():
            setattr(self, f"stonnx_kernels_{name}", lambda value=value: value)


def install(monkeypatch: pytest.MonkeyPatch, library: object = None, **module: Any) -> None:
    """A package that is importable, and the library in it."""
    package = ModuleType("stonnx_kernels")
    package.__dict__.update({"LIBRARY": Path("libstonnx_kernels.so"), "__version__": "0.1.0", **module})
    monkeypatch.setitem(sys.modules, "stonnx_kernels", package)
    if library is not None:
        monkeypatch.setattr(native, "_functions", lambda path: library)


class TestFind:
    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "stonnx_kernels", None)
        found = native.find()
        assert isinstance(found, native.Unusable)
        assert 'pip install "stonnx[kernels]"' in found.reason

    def test_nobody_misses_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> ModuleType:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(native.importlib, "import_module", missing)
        found = native.find()
        assert found == native.Unusable(f"stonnx-kernels is not installed: {native.INSTALL}", unexpected=False)
        assert native.choose(INT8_BLOCKS, "int8", bfloat16=False) == native.Choice()
        # A bundle that was made for them does.
        choice = native.choose(Kernels(1, {"AttentionBFloat16": 1}), "bfloat16", bfloat16=False)
        assert choice.library is None
        assert "not installed" in choice.fallback
        assert "run in float32" in choice.fallback

    def test_a_package_without_its_library(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        install(monkeypatch, LIBRARY=tmp_path / "libstonnx_kernels.so")
        found = native.find()
        assert isinstance(found, native.Unusable)
        assert found.unexpected
        assert "cannot be loaded" in found.reason

    def test_a_file_that_is_no_library(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "libstonnx_kernels.so"
        path.write_bytes(b"not an ELF file")
        install(monkeypatch, LIBRARY=path)
        found = native.find()
        assert isinstance(found, native.Unusable)
        assert "cannot be loaded" in found.reason

    def test_another_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, SimpleNamespace())
        found = native.find()
        assert isinstance(found, native.Unusable)
        assert "stonnx_kernels_version" in found.reason

    def test_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, FakeLibrary(version=b"0.0.9"))
        found = native.find()
        assert isinstance(found, native.Unusable)
        assert found.unexpected
        assert "Install it again" in found.reason

    def test_blocks_of_a_newer_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, FakeLibrary())
        choice = native.choose(Kernels(2, {"AttentionInt8": 1}), "int8", bfloat16=False)
        assert "up to version 1. Install a newer one: pip install -U" in choice.fallback

    def test_older_blocks_of_queries_that_are_filled_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, FakeLibrary(operators=3, bf16=1))
        old = native.choose(INT8_BLOCKS, "int8", bfloat16=False, reads_padding=True)
        assert "fill up its queries. Export the model again" in old.fallback
        assert native.choose(INT8_BLOCKS, "int8", bfloat16=False).library
        assert native.choose(Kernels(2, INT8_BLOCKS.blocks), "int8", bfloat16=False, reads_padding=True).library
        with pytest.raises(UnsupportedError, match="fill up its queries"):
            native.choose(FLOAT_BLOCKS, "float32", bfloat16=True, reads_padding=True)

    def test_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever asked for that needs no warning."""
        monkeypatch.setenv("STONNX_KERNELS", "0")
        install(monkeypatch, FakeLibrary(variant=b"", reason=b"STONNX_KERNELS=0 turns the kernels off"))
        assert native.choose(INT8_BLOCKS, "int8", bfloat16=False) == native.Choice()

    def test_a_variant_that_the_cpu_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STONNX_KERNELS", "amx")
        install(monkeypatch, FakeLibrary(variant=b"", reason=b"STONNX_KERNELS=amx, and this CPU lacks amx_int8"))
        choice = native.choose(INT8_BLOCKS, "int8", bfloat16=False)
        assert choice.library is None
        assert "this CPU lacks amx_int8" in choice.fallback


class TestChoose:
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, FakeLibrary())

    def test_int8(self) -> None:
        choice = native.choose(INT8_BLOCKS, "int8", bfloat16=False)
        assert choice.library is not None
        assert choice.library.variant == "avx2"
        assert choice.library.variants == ("avx512_bf16", "avx2")

    @pytest.mark.parametrize("bundle", [None, Kernels(1, {}, {"why not": 3})])
    def test_no_blocks(self, bundle: Kernels | None) -> None:
        assert native.choose(bundle, "int8", bfloat16=False) == native.Choice()

    def test_float32_stays_float32(self) -> None:
        assert native.choose(FLOAT_BLOCKS, "float32", bfloat16=False) == native.Choice()

    def test_bfloat16_without_instructions_for_it(self) -> None:
        with pytest.raises(DeviceError, match=r"avx2\) cannot: it takes AVX512-BF16 and.*, or AMX.*--dtype int8"):
            native.choose(FLOAT_BLOCKS, "float32", bfloat16=True)
        choice = native.choose(Kernels(1, {"AttentionBFloat16": 1}), "bfloat16", bfloat16=False)
        assert "avx2) cannot" in choice.fallback

    def test_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        native._load.cache_clear()
        install(monkeypatch, FakeLibrary(bf16=1, variant=b"amx"))
        choice = native.choose(FLOAT_BLOCKS, "float32", bfloat16=True)
        assert choice.library is not None
        assert choice.float_as_bfloat16

    @pytest.mark.parametrize(
        ("bundle", "precision", "reason"),
        [
            (INT8_BLOCKS, "int8", "its precision is int8"),
            (None, "float32", "exported before there were kernels"),
            (Kernels(1, {}), "float32", "no float32 blocks"),
        ],
    )
    def test_bfloat16_of_what_has_none(self, bundle: Kernels | None, precision: str, reason: str) -> None:
        with pytest.raises(UnsupportedError, match=reason):
            native.choose(bundle, precision, bfloat16=True)

    def test_the_option(self) -> None:
        DeviceOptions(bfloat16=True).check("cpu")
        with pytest.raises(InvalidArgumentError, match=r"bfloat16 \(for cpu\)"):
            DeviceOptions(bfloat16=True).check("cuda")
        with pytest.raises(InvalidArgumentError, match="bfloat16 must be True or False"):
            DeviceOptions(bfloat16=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 graph with blocks."""
    model = encoder()
    model.graph.sort()
    outline.run(model, {"Float"})
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    ir.save(model, path)
    return path


FACTS = GraphFacts(precision="int8", kernels=INT8_BLOCKS)


class TestSession:
    """A graph runs whatever happens to the library, and says so."""

    def test_a_library_that_onnxruntime_refuses(
        self, graph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        functions = FakeLibrary()
        calls: list[tuple[str, object]] = []
        functions.stonnx_kernels_threads = lambda count: calls.append(("threads", count))  # type: ignore[attr-defined]
        functions.stonnx_kernels_float_as_bf16 = lambda on: calls.append(("bf16", on))  # type: ignore[attr-defined]
        functions.stonnx_kernels_names = lambda names: calls.append(("names", names))  # type: ignore[attr-defined]
        install(monkeypatch, functions, LIBRARY=tmp_path / "nothing.so")
        facts = GraphFacts(precision="int8", kernels=Kernels(1, {"AttentionInt8": 2, "FeedForwardInt8": 1}))
        session = open_session(graph, device="cpu", threads=2, facts=facts)
        assert session.kernels == ""
        (reason,) = session.fallbacks
        assert reason.startswith("without native kernels: stonnx-kernels 0.1.0 does not load")
        assert "without native kernels" in caplog.text
        # The settings of the thread are as they were.
        names = b"AttentionInt8,AttentionInt8_1,FeedForwardInt8"
        before, after = [("threads", 2), ("bf16", 0), ("names", names)], [("names", None), ("bf16", 0), ("threads", 1)]
        assert calls == before + after
        ids = np.ones((1, 3), dtype=np.int64)
        (result,) = session.run(["output"], {"input_ids": ids, "attention_mask": ids})
        assert result.shape == (1, 3, 32)

    def test_without(self, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, FakeLibrary())
        session = open_session(graph, device="cpu", facts=FACTS, kernels=False)
        assert (session.kernels, session.fallbacks) == ("", ())

    def test_refused(self, graph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        install(monkeypatch, FakeLibrary())
        reason = f"{native.WITHOUT}they are wrong."
        session = open_session(graph, device="cpu", facts=FACTS, refused=reason)
        assert (session.kernels, session.fallbacks) == ("", (reason,))
        assert reason in caplog.text

    def test_bfloat16_that_cannot_be_loaded(self, graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        functions = FakeLibrary(bf16=1)
        for name in ("threads", "float_as_bf16", "names"):
            setattr(functions, f"stonnx_kernels_{name}", lambda _: None)
        install(monkeypatch, functions, LIBRARY=tmp_path / "nothing.so")
        facts = GraphFacts(precision="float32", kernels=FLOAT_BLOCKS)
        with pytest.raises(DeviceError, match=r"needs native kernels, and stonnx-kernels \S+ does not load"):
            open_session(graph, device="cpu", facts=facts, options=DeviceOptions(bfloat16=True))


def library() -> native.Library:
    found = native.find()
    if isinstance(found, native.Unusable):
        pytest.skip(f"there are no native kernels: {found.reason}")
    return found


def refuse_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kernels give other vectors, and no probe count as passed."""
    original = probe.lowest_cosine
    compared: list[Any] = []

    def outputs(route: Any, task: str, texts: Any) -> Any:
        compared.append(route.session.kernels)
        return real(route, task, texts)

    real = probe.outputs_of
    monkeypatch.setattr(probe, "outputs_of", outputs)
    monkeypatch.setattr(probe, "is_remembered", lambda kind, identity: False)
    monkeypatch.setattr(probe, "lowest_cosine", lambda *some: 0.5 if compared[-1] else original(*some))


class TestModel:
    """The real model, with the library that is installed."""

    def test_what_runs_is_named(self, minilm_int8_bundle: Path) -> None:
        model = stonnx.SentenceTransformer(minilm_int8_bundle, device="cpu")
        assert model.info.kernels == library().variant
        assert model.info.fallbacks == ()

    def test_close_to_float32(self, minilm_int8_bundle: Path, minilm: stonnx.SentenceTransformer) -> None:
        library()
        texts = [f"Sentence {number} is about {topic}." for number in range(8) for topic in ("tides", "bread", "rain")]
        expected = minilm.encode(texts)
        model = stonnx.SentenceTransformer(minilm_int8_bundle, device="cpu")
        found = model.encode(texts)
        cosines = (found * expected).sum(axis=1)
        assert cosines.mean() >= 0.9985
        assert cosines.min() >= 0.995
        for text, vector in zip(texts[:4], found, strict=False):
            np.testing.assert_array_equal(model.encode(text), vector)

    def test_bfloat16(self, minilm_bundle: Path, minilm: stonnx.SentenceTransformer) -> None:
        if not library().bfloat16:
            pytest.skip("this CPU does not multiply bfloat16")
        options = stonnx.DeviceOptions(bfloat16=True)
        model = stonnx.SentenceTransformer(minilm_bundle, device="cpu", device_options=options)
        assert model.info.kernels == library().variant
        texts = ["The tides follow the moon.", "Bread rises.", "rain"]
        cosines = (model.encode(texts) * minilm.encode(texts)).sum(axis=1)
        assert cosines.min() >= 0.9999
        assert cosines.min() < 1 - 1e-7
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.encode(texts), model.encode(texts))

    def test_kernels_that_the_probe_refuses(
        self, minilm_int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The stock form runs, in sessions that come later too, and the model says why."""
        stock = Engine(open_bundle(minilm_int8_bundle), device="cpu", kernels=False)
        variant, texts = library().variant, ["The tides follow the moon.", "Bread rises."]
        refuse_kernels(monkeypatch)
        model = stonnx.SentenceTransformer(minilm_int8_bundle, device="cpu")
        assert model.info.kernels == ""
        (reason,) = model.info.fallbacks
        assert reason.startswith(f"{native.WITHOUT}{minilm_int8_bundle} gives other vectors on this machine")
        assert "allowed is at least 0.98" in reason
        assert f"native kernels ({variant})" in reason
        assert reason in caplog.text
        expected = probe.outputs_of(stock.route(), stock.manifest.task, texts)
        np.testing.assert_array_equal(probe.outputs_of(model._engine.route(), stock.manifest.task, texts), expected)
        model.warmup()
        (finding,) = [each for each in doctor.diagnose(minilm_int8_bundle) if each.section == "bundle"]
        assert finding.problem == reason
        again = pickle.loads(pickle.dumps(model))
        assert again.info.fallbacks == (reason,)

    def test_bfloat16_that_the_probe_refuses(self, minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It was asked for by name."""
        if not library().bfloat16:
            pytest.skip("this CPU does not multiply bfloat16")
        refuse_kernels(monkeypatch)
        with pytest.raises(ProbeError, match="no device_options bfloat16"):
            stonnx.SentenceTransformer(minilm_bundle, device="cpu", device_options=stonnx.DeviceOptions(bfloat16=True))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_fork_and_trim(self, minilm_int8_bundle: Path) -> None:
        library()
        script = f"""
import os
import numpy as np, stonnx
model = stonnx.SentenceTransformer({str(minilm_int8_bundle)!r}, device="cpu", threads=2)
texts = ["The tides follow the moon.", "Bread rises."] * 3
before = model.encode(texts)
model.trim()
assert np.array_equal(model.encode(texts), before)
child = os.fork()
if not child:
    same = np.array_equal(model.encode(texts), before)
    os._exit(0 if same and model.info.kernels else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(model.encode(texts), before)
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=300)

    @pytest.mark.parametrize("value", ["0", "avx2", "no-such-variant"])
    def test_the_environment_variable(self, value: str, minilm_int8_bundle: Path) -> None:
        variants = library().variants
        script = f"""
import stonnx
model = stonnx.SentenceTransformer({str(minilm_int8_bundle)!r}, device="cpu")
model.encode("The tides follow the moon.")
print(model.info.kernels + "|" + "|".join(model.info.fallbacks))
"""
        run = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "STONNX_KERNELS": value},
            check=True,
            timeout=300,
            capture_output=True,
            text=True,
        )
        kernels, _, fallbacks = run.stdout.strip().partition("|")
        if value == "0":
            assert (kernels, fallbacks) == ("", "")
        elif value in variants:
            assert (kernels, fallbacks) == (value, "")
        else:
            assert kernels == ""
            assert value in fallbacks


def test_the_interface_is_whole() -> None:
    """Every function that OPERATORS.md promises is there."""
    functions = ctypes.CDLL(str(library().path))
    asked = ("version", "operators", "variant", "variants", "reason", "bf16")
    for name in (*asked, "float_as_bf16", "threads", "names", "bench", "select"):
        assert hasattr(functions, f"stonnx_kernels_{name}")
    assert hasattr(functions, "RegisterCustomOps")
