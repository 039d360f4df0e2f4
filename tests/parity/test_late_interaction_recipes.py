"""Late interaction in fp16, bf16 and int8 beside the original: rows, ranks by MaxSim; and native kernels."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("sentence_transformers", "6.2", reason="earlier versions lack the class MultiVectorEncoder")

from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder as Original
from zoo.late_checkpoints import build_late_checkpoint
from zoo.late_interaction import row

from stonnx import DeviceOptions, MultiVectorEncoder
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import Fidelity, read_manifest
from stonnx._device import kernels as native
from stonnx._engine.engine import Engine
from stonnx._engine.probe import rows_of_texts
from stonnx._errors import FidelityError
from stonnx._tasks import TASKS
from stonnx.util import maxsim
from stonnx_export import RECIPES, export
from stonnx_export.verify.figures import ToleranceError, check, measure, spearman

# Tokens fill up the queries of the first two. Those of the first are not attended to, those of the second are.
STANFORD, ATTENDED, PYLATE, CAUSAL = (
    "colbert-ir/colbertv2.0",
    "answerdotai/answerai-colbert-small-v1",
    "lightonai/GTE-ModernColBERT-v1",
    "zoo/late-interaction-causal",
)
EXPORTED = [
    *((STANFORD, dtype) for dtype in ("fp16", "int8")),
    *((ATTENDED, dtype) for dtype in ("bf16", "int8")),
    *((PYLATE, dtype) for dtype in ("fp16", "bf16", "int8")),
]
# Not the texts by which the exporter verifies.
PASSAGES = (Path(__file__).parents[2] / "examples" / "passages.txt").read_text(encoding="utf-8").splitlines()
DOCUMENTS = [*PASSAGES, "", "Die Fähre verlässt den Hafen im Morgengrauen.", " ".join(PASSAGES)]
QUERIES = ["How do I bake sourdough?", "the moon", "", *(passage.partition(",")[0] for passage in PASSAGES[::4])]

Rows = list[np.ndarray]
Bundles = Callable[[str, str], Path]
Originals = Callable[[str], tuple[Rows, Rows]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    directory = tmp_path_factory.mktemp("late-recipes")

    def of(name: str, dtype: str) -> Path:
        bundle = directory / f"{row(name).slug}-{dtype}"
        if not bundle.exists():
            export(build_late_checkpoint(row(name), directory), bundle, dtype=dtype, name=name)
        return bundle

    return of


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    """The original's vectors of the queries and the documents."""
    directory = tmp_path_factory.mktemp("late-originals")
    known: dict[str, tuple[Rows, Rows]] = {}

    def of(name: str) -> tuple[Rows, Rows]:
        if name not in known:
            model = Original(str(build_late_checkpoint(row(name), directory)), device="cpu")
            known[name] = (
                model.encode_query(QUERIES, convert_to_numpy=True),
                model.encode_document(DOCUMENTS, convert_to_numpy=True),
            )
        return known[name]

    return of


def cosines(some: Rows, others: Rows) -> np.ndarray:
    """The cosine of each row with its counterpart."""
    assert [rows.shape for rows in some] == [rows.shape for rows in others]
    a, b = np.concatenate(some), np.concatenate(others)
    norms = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    result: np.ndarray = (a * b).sum(axis=1) / norms
    return result


@pytest.mark.parametrize(("name", "dtype"), EXPORTED)
def test_rows_and_ranks_are_within_the_bounds_of_the_recipe(
    name: str, dtype: str, bundles: Bundles, originals: Originals
) -> None:
    """By stock operators, as the exporter measures it."""
    bounds = RECIPES[dtype].tolerance["multivector"]
    bundle = open_bundle(bundles(name, dtype))
    route, prompts = Engine(bundle, device="cpu", threads=1, kernels=False).route(), bundle.manifest.prompts
    found = [
        rows_of_texts(route, TASKS["multivector"], task, [f"{prompts[task]}{text}" for text in texts])
        for task, texts in (("query", QUERIES), ("document", DOCUMENTS))
    ]
    expected = originals(name)
    for mine, theirs in zip(found, expected, strict=True):
        close = cosines(mine, theirs)
        assert close.mean() >= bounds["cosine_mean"]
        assert np.percentile(close, 1) >= bounds.get("cosine_p1", 0)
    scores = [maxsim(queries, documents) for queries, documents in (found, expected)]
    correlations = [spearman(mine, theirs) for mine, theirs in zip(*scores, strict=True)]
    assert min(correlations) >= bounds["rank_correlation"]
    # The figures are of this recipe, not of float32.
    assert cosines(found[1], expected[1]).min() < 1 - 1e-7


@pytest.mark.parametrize(("name", "dtype"), EXPORTED)
def test_a_text_does_not_depend_on_its_batch(name: str, dtype: str, bundles: Bundles) -> None:
    model = MultiVectorEncoder(bundles(name, dtype), threads=1)
    for encode, texts in ((model.encode_query, QUERIES), (model.encode_document, DOCUMENTS)):
        alone = [encode(text) for text in texts]
        assert cosines(encode(texts), alone).min() >= RECIPES[dtype].tolerance["multivector"]["invariance_cosine"]


def test_weights_that_harm_the_ranks_stay_in_float32(bundles: Bundles) -> None:
    """In bf16, the ranks of this checkpoint change if all weights are rounded."""
    bundle = bundles(PYLATE, "bf16")
    manifest = read_manifest(bundle)
    types = {str(value.name): value.dtype for value in ir.load(bundle / "model.onnx").graph.initializers.values()}
    assert manifest.kept
    assert {types[name] for name in manifest.kept} == {ir.DataType.FLOAT}
    narrow = [name for name, dtype in types.items() if dtype == ir.DataType.BFLOAT16]
    assert len(narrow) >= len(manifest.kept)
    assert f"In float32 for accuracy: the weights `{manifest.kept[0]}`" in (bundle / "README.md").read_text("utf-8")
    assert manifest.fidelity is not None
    assert manifest.fidelity.rank_correlation is not None
    assert manifest.fidelity.rank_correlation >= 0.999


def test_ranks_that_change_are_refused(tmp_path: Path) -> None:
    """Weights around a large number that normalizations take out again: exact in float32, lost in bfloat16.

    More than half of the weights are so, which is what the exporter keeps in float32 at most.
    """
    checkpoint = shutil.copytree(build_late_checkpoint(row(STANFORD), tmp_path), tmp_path / "hostile")
    weights = load_file(checkpoint / "model.safetensors")
    hostile = tuple(
        f"{name}.weight"
        for name in ("query", "key", "value", "intermediate.dense", "word_embeddings", "position_embeddings")
    )
    for name, weight in weights.items():
        if "LayerNorm" in name:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(hostile):
            weight += 16
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        FidelityError, match=r"rank correlation of the scores 0\.9.*Half of its layers were kept"
    ) as raised:
        export(checkpoint, tmp_path / "bundle", dtype="bf16")
    assert "--calibrate" not in str(raised.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize(("figure", "value"), [("rank_correlation", 0.97), ("neighbours_overlap", 0.89)])
def test_other_ranks_are_refused_whatever_the_rows_are(dtype: str, figure: str, value: float) -> None:
    bounds = RECIPES[dtype].tolerance["multivector"]
    same = Fidelity("the original", 333, 1.0, 1.0, 0.0, 0.0, bounds, 1.0, 1.0, 1.0, None, 1.0)
    check(same)
    with pytest.raises(ToleranceError, match="allowed is at least"):
        check(dataclasses.replace(same, **{figure: value}))


def test_a_single_row_may_be_far_away_and_one_in_fifty_may_not() -> None:
    """A row is one of many terms of a score."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, 16)).astype(np.float32)
    bounds = RECIPES["bf16"].tolerance["multivector"]
    for step, refused in ((5000, False), (50, True)):
        other = rows.copy()
        other[::step] += 0.05 * rng.standard_normal(other[::step].shape)
        report = measure(rows, other, other, other[np.newaxis, :1], bounds, "the original")
        with pytest.raises(ToleranceError, match="1st percentile") if refused else nullcontext():
            check(report)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", [STANFORD, ATTENDED, CAUSAL])
def test_native_kernels_give_what_float32_gives(name: str, dtype: str, bundles: Bundles) -> None:
    """Kernels run int8 as it is, and float32 in bfloat16, both of queries and of documents."""
    library = native.find()
    if isinstance(library, native.Unusable):
        pytest.skip(f"there are no native kernels: {library.reason}")
    bfloat16 = dtype != "int8"
    if bfloat16 and not library.bfloat16:
        pytest.skip("this CPU does not multiply bfloat16")
    bundle = open_bundle(bundles(name, dtype))
    if dtype == "fp32" and not (bundle.manifest.kernels and "AttentionFloat" in bundle.manifest.kernels.blocks):
        pytest.skip("kernels have no float32 block of this network")
    options = DeviceOptions(bfloat16=True) if dtype == "fp32" else None
    by_kernels = Engine(bundle, device="cpu", threads=1, device_options=options).route()
    by_stock = Engine(bundle, device="cpu", threads=1, kernels=False).route()
    assert by_kernels.session.kernels == library.variant
    assert by_stock.session.kernels == ""
    in_float32 = Engine(open_bundle(bundles(name, "fp32")), device="cpu", threads=1, kernels=False).route()
    for task, texts in (("query", QUERIES), ("document", DOCUMENTS), (None, DOCUMENTS)):
        found, expected, exact = (
            rows_of_texts(route, TASKS["multivector"], task, texts) for route in (by_kernels, by_stock, in_float32)
        )
        # In 8 bits, single rows of stock operators are further from float32 than those of kernels.
        close = cosines(found, exact)
        assert close.mean() >= (0.9999 if bfloat16 else RECIPES["int8"].tolerance["multivector"]["cosine_mean"])
        assert close.min() >= (0.999 if bfloat16 else 0.98)
        # Kernels run queries too, with the tokens that fill them up.
        assert any(not np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
