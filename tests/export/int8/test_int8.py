"""int8 from checkpoint to vectors: models of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fixture_types import TracedOnce
from int8_figures import INVARIANT, cosines
from small_graphs import nodes_of, run_as_it_is, without_blocks
from zoo import ModelRow, build_checkpoint, row

import stonnx
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.integrity import check_files
from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._device import opening
from stonnx._engine.engine import Engine
from stonnx._errors import FidelityError
from stonnx._tasks import TASKS, Task
from stonnx_export import RECIPES, export
from stonnx_export.checkpoint.modules import SpladePooling
from stonnx_export.checkpoint.read import read_checkpoint
from stonnx_export.graph.read import constant_array
from stonnx_export.heads import graft
from stonnx_export.int8 import products as products_module
from stonnx_export.originals import load
from stonnx_export.texts import sentences, verification_texts
from stonnx_export.verify.compare import outputs

Feeds = Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
BATCHES = [(1,), (7, 2), (40, 1, 17)]


@dataclass(frozen=True)
class Counts:
    """How often each pass fires. Each network has two layers, but ModernBERT, which has four."""

    attention_lengths: int
    attention_biases: int = 0
    residual_biases: int = 0
    fuse_attention: int = 0
    fuse_rms_norm: int = 0
    first_token: int = 0
    # Where tokens have scales of their own: a product with a static one takes the bias in front of GELU.
    fast_gelu: int = 0
    # All that can be quantized: some stay in float32 where that is needed for accuracy.
    products: int = 12
    flat_tokens: int = 12
    # Attention and feed-forward networks that native kernels can run: all of them.
    blocks: int = 4


# Tanh instead of GELU in no model; SwiGLU, whose gate is the product of two products, is not a GELU.
COUNTS = {
    "all-mpnet-base-v2": Counts(2, 4, 4, fuse_attention=2),
    # CLS pooling: the last layer is for the first token.
    "BAAI/bge-small-en-v1.5": Counts(2, 4, 4, first_token=10),
    "zoo/every-pooling": Counts(2, 4, 4),
    # Rotary positions stand between the biases and attention. Every other layer of ModernBERT looks at a window.
    "nomic-ai/modernbert-embed-base": Counts(2, products=16, flat_tokens=15, blocks=8),
    "nomic-ai/nomic-embed-text-v1.5": Counts(2, products=14, flat_tokens=16),
    # Those of queries and keys too; not the last one, which is an output.
    "Qwen/Qwen3-Embedding-0.6B": Counts(2, fuse_rms_norm=8, products=14, flat_tokens=14),
    # A layer with a window, and one without; keys and values of one head are too small to be quantized.
    "google/embeddinggemma-300m": Counts(1, fuse_rms_norm=12, products=10, flat_tokens=17, blocks=2),
    "minishlab/potion-base-8M": Counts(0, products=0, flat_tokens=0, blocks=0),
    # The head of a masked language model has a GELU and two more products.
    "naver/splade-cocondenser-ensembledistil": Counts(2, 4, 4, fast_gelu=3, products=14),
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill": Counts(2, 4, 4, fast_gelu=3, products=14),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Counts(2, 4, 4, first_token=10, flat_tokens=13),
    "cross-encoder/nli-roberta-base": Counts(2, 4, 4, first_token=10, flat_tokens=13),
    "BAAI/bge-reranker-base": Counts(2, 4, 4, first_token=10, flat_tokens=13),
    "cross-encoder/ms-marco-electra-base": Counts(2, 4, 4, first_token=10, flat_tokens=13),
    # Attention of its own, with products for relative positions; shapes are numbers without a dimension in its graph.
    "zoo/deberta-v3-base": Counts(0, residual_biases=3, products=16, flat_tokens=20, blocks=2),
}
# A decoder and two encoders; the others take minutes.
QUICK = {"Qwen/Qwen3-Embedding-0.6B", "BAAI/bge-small-en-v1.5", "cross-encoder/nli-roberta-base", "zoo/deberta-v3-base"}
# What the weights of the table, random ones, reach at least.
COSINE_MEAN: Mapping[Task, float] = {"embedding": 0.998, "sparse": 0.998, "rerank": 0.998}
# The form with a bit less.
SAFE_COSINE_MEAN: Mapping[Task, float] = {"embedding": 0.98, "sparse": 0.97, "rerank": 0.98}


def candidates() -> Iterator[Any]:
    for name in COUNTS:
        needs = row(name).needs
        marks = [pytest.mark.needs(*astuple(needs))] if needs else []
        marks += [] if name in QUICK else [pytest.mark.slow]
        yield pytest.param(name, id=name, marks=marks)


@dataclass(frozen=True)
class Case:
    """A model of the table: its original, its int8 bundle, and that bundle loaded."""

    row: ModelRow
    original: TracedOnce
    bundle: Path
    manifest: Manifest
    engine: Engine

    def texts(self) -> list[Any]:
        texts: list[Any] = [*verification_texts(64, 2)[:30], *sentences()[:8]]
        return list(zip(texts, texts[5:] + texts[:5], strict=True)) if self.row.task == "rerank" else texts

    def expect(self, route: str, texts: list[Any]) -> np.ndarray:
        return self._rows(self.original.outputs(route, texts))

    def vectors(self, route: str, texts: list[Any], batch_size: int = 32, engine: Engine | None = None) -> np.ndarray:
        """Vectors [texts, dim]; of a reranker, the logits of each label over all pairs [labels, texts]."""
        return self._rows(outputs((engine or self.engine).named_routes[route], self.row.task, texts, batch_size))

    def _rows(self, array: np.ndarray) -> np.ndarray:
        return array.T if self.row.task == "rerank" else array


@pytest.fixture(scope="module", params=candidates())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = row(request.param)
    folder = tmp_path_factory.mktemp("int8")
    checkpoint = build_checkpoint(model, folder / "zoo")
    original = TracedOnce(read_checkpoint(checkpoint, model.task))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(load, "_load_original", lambda checkpoint: original)
        bundle = export(checkpoint, folder / "bundle", dtype="int8", name=model.name)
    return Case(model, original, bundle, read_manifest(bundle), Engine(open_bundle(bundle), threads=1))


class TestModels:
    @pytest.mark.needs("transformers", "5", "the graphs that are counted here")
    def test_how_often_each_pass_fires(self, case: Case) -> None:
        expected, rewrites = COUNTS[case.row.name], case.manifest.rewrites
        for name in (
            "fuse_attention",
            "attention_lengths",
            "attention_biases",
            "fuse_rms_norm",
            "residual_biases",
            "first_token",
            "fast_gelu",
        ):
            assert rewrites[name] == getattr(expected, name), name
        graphs = [ir.load(case.bundle / route.graph) for route in case.manifest.routes.values()]
        models = [without_blocks(graph) for graph in graphs]
        integers = sum(len(nodes_of(model, "MatMulIntegerToFloat")) for model in models)
        arrays = [constant_array(node.inputs[1]) for model in models for node in nodes_of(model, "MatMul")]
        # Heads work on a vector for each text, which is not worth it.
        kept = sum(len(group.products) for model in models for group in products_module.groups(model))
        assert rewrites["quantize_products"] == integers
        halved = [node for model in models for node in nodes_of(model, "MatMul") if is_bfloat16(node.inputs[1])]
        assert integers + kept + len(halved) == expected.products
        assert bool(halved) <= bool(case.manifest.halved)
        assert bool(kept) == bool(case.manifest.kept)
        assert len([array for array in arrays if array is not None]) >= kept
        if not kept and not halved:
            assert rewrites["flat_tokens"] == expected.flat_tokens
            assert rewrites["outline"] == expected.blocks

    def test_exact_passes_change_nothing(self, case: Case, tiny_feeds: Feeds) -> None:
        """One after the other: each equals the graph before it."""
        fired = 0
        for route, chain in case.original._checkpoint.routes.items():
            graph = case.original.graph(route)
            if case.row.task == "rerank":
                graft.graft_scores(graph, "identity")
            else:
                graft.graft(graph, chain, task=case.row.task)
            before = [run(graph, tiny_feeds(lengths)) for lengths in BATCHES]
            for rewrite in RECIPES["int8"].passes:
                result = rewrite(graph)
                fired += result.fired
                graph.graph.sort()
                after = [run(graph, tiny_feeds(lengths)) for lengths in BATCHES]
                for expected, values in zip(before, after, strict=True):
                    assert np.isfinite(values).all()
                    scale = max(1.0, largest_logit(float(np.abs(expected).max()), chain))
                    # Sums of float32 in another order.
                    assert np.abs(values - expected).max() <= 5e-6 * scale, result.name
                before = after
        assert fired or case.row.backbone.model_type == "model2vec"

    def test_the_report(self, case: Case) -> None:
        manifest, fidelity = case.manifest, case.manifest.fidelity
        assert (manifest.recipe, manifest.precision, manifest.task) == ("int8", "int8", case.row.task)
        check_files(case.bundle, manifest)
        assert fidelity is not None
        assert fidelity.tolerance == RECIPES["int8"].tolerance[case.row.task]
        assert fidelity.cosine_mean >= COSINE_MEAN[case.row.task]
        assert fidelity.invariance_cosine >= INVARIANT
        figure = {"embedding": "neighbours_overlap", "sparse": "active_overlap", "rerank": "rank_correlation"}
        # The texts of random weights are nearer to each other than those of trained ones.
        assert getattr(fidelity, figure[case.row.task]) >= 0.93
        # What is in the report is what there is.
        for route in manifest.routes:
            texts = case.texts()
            found = cosines(case.expect(route, texts), case.vectors(route, texts))
            assert found.mean() >= COSINE_MEAN[case.row.task] - 5e-4
            assert found.min() >= fidelity.tolerance["cosine_min"]

    def test_a_vector_does_not_depend_on_what_is_beside_it(self, case: Case) -> None:
        for route in case.manifest.routes:
            texts = case.texts()
            alone = case.vectors(route, texts, 1)
            rng = np.random.default_rng(0)
            for batch_size in (2, 32, 1024):
                order = rng.permutation(len(texts))
                shuffled = case.vectors(route, [texts[index] for index in order], batch_size)
                back = np.argsort(order)
                together = shuffled[:, back] if case.row.task == "rerank" else shuffled[back]
                assert cosines(alone, together).min() >= INVARIANT

    def test_whoever_asks_for_tokens_gets_them_all(self, case: Case) -> None:
        """Though the last layer is for the first token alone where nobody does."""
        if case.row.task != "embedding" or "token_embeddings" not in case.engine.route().session.outputs:
            return
        model, texts = stonnx.SentenceTransformer(case.bundle, device="cpu"), case.texts()
        items: list[Any] = model.encode(texts, prompt="", output_value=None)
        vectors = np.stack([item["sentence_embedding"] for item in items])
        assert cosines(vectors, case.vectors("default", texts)).min() >= INVARIANT
        for item, encoding in zip(items, case.engine.route().tokenizer.encode(texts), strict=True):
            assert len(item["token_embeddings"]) == len(encoding.ids)
            assert np.isfinite(item["token_embeddings"]).all()
        if case.manifest.rewrites["first_token"]:
            first = np.stack([item["token_embeddings"][0] for item in items])
            assert cosines(first, vectors).min() >= INVARIANT

    @pytest.mark.parametrize("companions", [0, 3], ids=["alone", "beside others"])
    def test_a_vector_does_not_depend_on_padding(self, case: Case, companions: int) -> None:
        for name, route in case.engine.named_routes.items():
            texts = case.texts()[4:16]
            alone = case.vectors(name, texts, 1)
            rows = []
            for index, text in enumerate(texts):
                batch = [text, *case.texts()[20 : 20 + companions]]
                tokens = route.tokenizer.pad(route.tokenizer.encode(batch))
                feeds = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
                if tokens.token_type_ids is not None:
                    feeds["token_type_ids"] = tokens.token_type_ids
                wider = {key: np.pad(array, ((0, 0), (0, 1 + 7 * index))) for key, array in feeds.items()}
                # The id of padding can be any: nothing looks at it.
                wider["input_ids"] = np.where(wider["attention_mask"] > 0, wider["input_ids"], index)
                rows.append(route.session.run([TASKS[case.row.task].output], wider)[0][0])
            padded = np.stack(rows)
            assert cosines(alone, padded.T if case.row.task == "rerank" else padded).min() >= INVARIANT

    @pytest.mark.parametrize("saturates", [False, True], ids=["full range", "saturation-safe"])
    def test_both_forms(self, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saturates: bool) -> None:
        """Each passes its probe on the machine that exported it, and is right and invariant."""
        needed_here = opening.products_saturate()
        monkeypatch.setenv("STONNX_HOME", str(tmp_path))
        monkeypatch.setattr(opening, "products_saturate", lambda: saturates)
        engine = Engine(open_bundle(case.bundle), threads=1)
        assert [*(tmp_path / "probes").iterdir()]
        texts = case.texts()
        for name, route in engine.named_routes.items():
            form = ("saturation-safe" if saturates else "full-range") if route.spec.saturation_safe else ""
            assert route.session.form == form
            together = case.vectors(name, texts, engine=engine)
            mean = (SAFE_COSINE_MEAN if saturates else COSINE_MEAN)[case.row.task] - 5e-4
            assert cosines(case.expect(name, texts), together).mean() >= mean
            assert cosines(case.vectors(name, texts, 1, engine), together).min() >= INVARIANT
            if form:
                other = case.vectors(name, texts)
                assert (np.abs(other - together).max() > 0) == (saturates != needed_here)

    def test_the_class_of_the_task_runs_it(self, case: Case) -> None:
        model = getattr(stonnx, TASKS[case.row.task].class_name)(case.bundle, threads=1)
        assert model.info.precision == "int8"
        texts = case.texts()[:6]
        name = case.manifest.default_route
        if case.row.task == "rerank":
            values = np.asarray(model.predict(texts, activation_fn="identity")).reshape(len(texts), -1).T
        else:
            options = {"convert_to_sparse_tensor": False} if case.row.task == "sparse" else {}
            values = np.asarray(model.encode(texts, prompt="", **options))
        assert cosines(values, case.vectors(name, texts)).min() >= INVARIANT


def is_bfloat16(weight: ir.Value) -> bool:
    """Whether a weight is stored in bfloat16."""
    cast = weight.producer()
    return cast is not None and cast.op_type == "Cast" and cast.inputs[0].dtype == ir.DataType.BFLOAT16


def largest_logit(value: float, chain: Sequence[Any]) -> float:
    """What the largest value was in front of SPLADE's logarithms: small weights have the rounding errors of that."""
    for module in chain:
        if isinstance(module, SpladePooling):
            value = float(np.expm1(np.expm1(value) if module.twice else value))
    return value


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of a graph. Token types, where they are still required, are those of a single text."""
    return run_as_it_is(model, token_type_ids=np.zeros_like(feeds["input_ids"]), **feeds)[0]


@pytest.mark.slow
def test_a_model_that_keeps_the_largest_of_its_values_is_refused(tmp_path: Path) -> None:
    """A small error changes which values those are: CSR."""
    checkpoint = build_checkpoint(row("sparse-encoder/csr-mxbai-embed-large-v1"), tmp_path / "zoo")
    with pytest.raises(FidelityError, match=r"mean cosine 0\.9.* Nothing was written\. Half of its layers"):
        export(checkpoint, tmp_path / "bundle", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]
