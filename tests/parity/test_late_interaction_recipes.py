"""Late interaction in fp16 and int8 beside the original: rows, ranks by MaxSim; and native kernels, in bfloat16 too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder as Original
from zoo.late_interaction import build_late_checkpoint, row

from stonnx import DeviceOptions, MultiVectorEncoder
from stonnx._bundle.bundle import open_bundle
from stonnx._device import kernels as native
from stonnx._engine.engine import Engine
from stonnx._engine.probe import rows_of_texts
from stonnx._tasks import TASKS
from stonnx.util import maxsim
from stonnx_export import RECIPES, export
from stonnx_export.verify.figures import spearman

pytestmark = pytest.mark.needs("sentence-transformers", "6.2", "the class MultiVectorEncoder")

# Tokens fill up the queries of the first two. Those of the first are not attended to, those of the second are.
STANFORD, ATTENDED, PYLATE, CAUSAL = (
    "colbert-ir/colbertv2.0",
    "answerdotai/answerai-colbert-small-v1",
    "lightonai/GTE-ModernColBERT-v1",
    "zoo/late-interaction-causal",
)
# The verification refuses bf16 for each, and fp16 for the third: a few of some thousand rows are below 0.9999.
EXPORTED = [(STANFORD, "fp16"), (STANFORD, "int8"), (ATTENDED, "fp16"), (ATTENDED, "int8"), (PYLATE, "int8")]
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
    bounds = RECIPES[dtype].tolerance["multivector"]
    model = MultiVectorEncoder(bundles(name, dtype), threads=1)
    found, expected = (model.encode_query(QUERIES), model.encode_document(DOCUMENTS)), originals(name)
    for mine, theirs in zip(found, expected, strict=True):
        close = cosines(mine, theirs)
        assert close.mean() >= bounds.get("cosine_mean", bounds.get("cosine_min"))
        assert close.min() >= bounds.get("cosine_min", 0)
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


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("name", [STANFORD, ATTENDED, CAUSAL])
def test_native_kernels_give_what_float32_gives(name: str, dtype: str, bundles: Bundles) -> None:
    """Kernels run int8 as it is, and float32 in bfloat16, both of queries and of documents."""
    library = native.find()
    if isinstance(library, native.Unusable):
        pytest.skip(f"there are no native kernels: {library.reason}")
    bfloat16 = dtype == "fp32"
    if bfloat16 and not library.bfloat16:
        pytest.skip("this CPU does not multiply bfloat16")
    bundle = open_bundle(bundles(name, dtype))
    if bfloat16 and not (bundle.manifest.kernels and "AttentionFloat" in bundle.manifest.kernels.blocks):
        pytest.skip("kernels have no float32 block of this network")
    options = DeviceOptions(bfloat16=True) if bfloat16 else None
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
