"""Each module behind the network, as a graph, against the module of sentence-transformers that it comes from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    WeightedLayerPooling,
)
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, SpladePooling

from stonnx._errors import UnsupportedError
from stonnx._tasks import Task
from stonnx_export.checkpoint import modules
from stonnx_export.checkpoint.modules import ACTIVATIONS, POOLING_MODES
from stonnx_export.graph.builder import OPSET, GraphBuilder
from stonnx_export.heads import graft, tables

Run = Callable[..., list[np.ndarray]]

HIDDEN = 6
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
BATCHES = {
    "ragged": (9, 1, 4, 7),
    "full": (5, 5, 5),
    "one text": (8,),
    "one token": (1,),
}
PAIRS = tuple(itertools.combinations(POOLING_MODES, 2))
PROMPT_LENGTHS = (0, 1, 3, 20)

# These are computed along a dimension.
ALONG = ("Softmax", "Softmin", "LogSoftmax")


def network(layers: int = 1) -> ir.Model:
    """A graph that gives its input ``hidden_states`` [batch, sequence, 6] back, in place of a network; the outputs of
    further layers are its multiples."""

    def value(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))

    states = value("hidden_states", ir.DataType.FLOAT, "batch", "sequence", HIDDEN)
    mask = value("attention_mask", ir.DataType.INT64, "batch", "sequence")
    graph = ir.Graph([states, mask], [], nodes=[], opset_imports={"": OPSET}, name="network")
    op = GraphBuilder(graph)
    for layer in range(1, layers + 1):
        output = op.Mul(states, op.constant(np.array(layer, dtype=np.float32)))
        output.shape, output.type = states.shape, states.type
        graph.outputs.append(output)
    return ir.Model(graph, ir_version=11)


def grafted(*chain: modules.Module, task: Task = "embedding") -> ir.Model:
    model = network()
    graft.graft(model, (modules.Transformer(), *chain), task=task)
    return model


def batch(lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Random token embeddings, also where there is padding, and the mask."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    states = np.random.default_rng(seed).normal(size=(*mask.shape, HIDDEN)).astype(np.float32)
    return {"hidden_states": states, "attention_mask": mask}


def in_torch(chain: list[torch.nn.Module], feeds: dict[str, np.ndarray], **features: Any) -> np.ndarray:
    features["token_embeddings"] = torch.from_numpy(feeds["hidden_states"].copy())
    features["attention_mask"] = torch.from_numpy(feeds["attention_mask"].copy())
    with torch.inference_mode():
        for module in chain:
            features = module(features)
    return features["sentence_embedding"].numpy()


def vectors(lengths: tuple[int, ...] = (9, 1, 4, 7)) -> tuple[dict[str, np.ndarray], Pooling, modules.Pooling]:
    """What the modules behind a pooling are tested on: the mean of random tokens."""
    return batch(lengths), Pooling(HIDDEN, "mean"), modules.Pooling(("mean",), True)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("modes", [*((mode,) for mode in POOLING_MODES), *PAIRS, POOLING_MODES], ids="+".join)
def test_pooling(run: Run, modes: tuple[str, ...], lengths: tuple[int, ...]) -> None:
    feeds = batch(lengths)
    vector, tokens = run(grafted(modules.Pooling(modes, True)), **feeds)
    expected = in_torch([Pooling(HIDDEN, modes)], feeds)
    assert vector.shape == (len(lengths), HIDDEN * len(modes))
    np.testing.assert_allclose(vector, expected, **TOLERANCE)
    np.testing.assert_array_equal(tokens, feeds["hidden_states"])


@pytest.mark.parametrize("prompt_length", PROMPT_LENGTHS)
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_without_the_prompt(run: Run, mode: str, prompt_length: int) -> None:
    """A prompt longer than some of the texts, and than all of them, too."""
    feeds = batch((9, 1, 4, 7))
    model = grafted(modules.Pooling((mode,), False))
    vector, _ = run(model, **feeds, prompt_length=np.array(prompt_length))
    expected = in_torch([Pooling(HIDDEN, mode, include_prompt=False)], feeds, prompt_length=prompt_length)
    np.testing.assert_allclose(vector, expected, **TOLERANCE)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_prompt_length_is_optional_and_zero(run: Run, mode: str) -> None:
    feeds = batch((9, 1, 4, 7))
    vector, _ = run(grafted(modules.Pooling((mode,), False)), **feeds)
    np.testing.assert_allclose(vector, in_torch([Pooling(HIDDEN, mode)], feeds), **TOLERANCE)


@pytest.mark.parametrize("mode", [mode for mode in POOLING_MODES if mode != "lasttoken"])
def test_an_excluded_prompt_changes_the_vector(run: Run, mode: str) -> None:
    feeds = batch((9, 5, 4, 7))
    feeds["hidden_states"][:, :3] += 5
    model = grafted(modules.Pooling((mode,), False))
    (without, _), (with_prompt, _) = (run(model, **feeds, prompt_length=np.array(length)) for length in (3, 0))
    assert (np.abs(without - with_prompt).max(axis=1) > 1e-2).all()


def test_prompt_length_is_an_input_only_where_it_is_needed() -> None:
    names = [[value.name for value in grafted(modules.Pooling(("mean",), flag)).graph.inputs] for flag in (True, False)]
    assert names == [["hidden_states", "attention_mask"], ["hidden_states", "attention_mask", "prompt_length"]]


@pytest.mark.parametrize(("mode", "other"), PAIRS)
def test_another_pooling_mode_is_told_apart(run: Run, mode: str, other: str) -> None:
    """The comparisons above would see the modes mixed up."""
    feeds = batch((9, 3, 4, 7))
    vector, _ = run(grafted(modules.Pooling((mode,), True)), **feeds)
    assert (np.abs(vector - in_torch([Pooling(HIDDEN, other)], feeds)).max(axis=1) > 1e-2).all()


def test_padding_does_not_matter(run: Run) -> None:
    model = grafted(modules.Pooling(POOLING_MODES, True))
    feeds = batch((9, 1, 4, 7))
    loud = dict(feeds, hidden_states=np.where(feeds["attention_mask"][..., None] > 0, feeds["hidden_states"], 1e4))
    np.testing.assert_array_equal(run(model, **feeds)[0], run(model, **loud)[0])


def dense_modules(out_features: int, activation: torch.nn.Module, bias: bool, residual: bool) -> tuple[Dense, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        original = Dense(HIDDEN, out_features, bias, activation, **({"use_residual": True} if residual else {}))
        for parameter in original.parameters():
            torch.nn.init.normal_(parameter)
    state = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    return original, modules.Dense(
        weight=state["linear.weight"],
        bias=state.get("linear.bias"),
        activation=ACTIVATIONS[type(activation).__name__],
        residual=residual,
        residual_weight=state.get("residual.weight"),
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_activations(run: Run, name: str, bias: bool) -> None:
    feeds, original_mean, mean = vectors()
    activation = getattr(torch.nn, name)(**({"dim": -1} if name in ALONG else {}))
    original, ours = dense_modules(4, activation, bias, residual=False)
    vector, _ = run(grafted(mean, ours), **feeds)
    assert vector.shape == (4, 4)
    np.testing.assert_allclose(vector, in_torch([original_mean, original], feeds), **TOLERANCE)


@pytest.mark.parametrize("scale", [1e-4, 30.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_from_one(run: Run, name: str, scale: float) -> None:
    """Where exponentials saturate, and where results are tiny."""
    feeds, original_mean, mean = vectors()
    feeds["hidden_states"] *= scale
    activation = getattr(torch.nn, name)(**({"dim": -1} if name in ALONG else {}))
    original, ours = dense_modules(4, activation, False, residual=False)
    vector, _ = run(grafted(mean, ours), **feeds)
    expected = in_torch([original_mean, original], feeds)
    np.testing.assert_allclose(vector, expected, rtol=1e-6, atol=1e-6 * max(scale, 0.1))


@pytest.mark.needs("sentence-transformers", "6", "use_residual")
@pytest.mark.parametrize("out_features", [HIDDEN, 4], ids=["equal", "projected"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_dense_residual(run: Run, out_features: int, bias: bool) -> None:
    feeds, original_mean, mean = vectors()
    original, ours = dense_modules(out_features, torch.nn.Tanh(), bias, residual=True)
    assert (ours.residual_weight is None) == (out_features == HIDDEN)
    vector, _ = run(grafted(mean, ours), **feeds)
    np.testing.assert_allclose(vector, in_torch([original_mean, original], feeds), **TOLERANCE)


def layer_norm_modules(size: int) -> tuple[LayerNorm, modules.LayerNorm]:
    original = LayerNorm(size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        original.norm.weight.copy_(torch.randn(size, generator=generator))
        original.norm.bias.copy_(torch.randn(size, generator=generator))
    norm = original.norm
    return original, modules.LayerNorm(norm.weight.detach().numpy(), norm.bias.detach().numpy(), norm.eps)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3], ids=["usual", "tiny", "large"])
def test_layer_norm(run: Run, scale: float) -> None:
    feeds, original_mean, mean = vectors()
    feeds["hidden_states"] *= scale  # for tiny vectors, epsilon decides
    original, ours = layer_norm_modules(HIDDEN)
    vector, _ = run(grafted(mean, ours), **feeds)
    np.testing.assert_allclose(vector, in_torch([original_mean, original], feeds), **TOLERANCE)


def test_normalize(run: Run) -> None:
    feeds, original_mean, mean = vectors()
    feeds["hidden_states"][1] = 0
    feeds["hidden_states"][2] *= 1e-14  # shorter than the epsilon that torch divides by
    vector, _ = run(grafted(mean, modules.Normalize()), **feeds)
    expected = in_torch([original_mean, Normalize()], feeds)
    np.testing.assert_allclose(vector, expected, **TOLERANCE)
    np.testing.assert_array_equal(vector[1], 0)
    np.testing.assert_allclose(np.linalg.norm(vector[[0, 3]], axis=1), 1, rtol=1e-6)
    assert np.linalg.norm(vector[2]) < 0.1


def test_a_chain_of_every_module(run: Run) -> None:
    """Order and dimensions: Pooling with two modes, Dense, LayerNorm, Dense, Normalize."""
    feeds = batch((9, 1, 4, 7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, last = Dense(2 * HIDDEN, 8), Dense(8, 3, activation_function=torch.nn.Identity())
    original_norm, norm = layer_norm_modules(8)
    model = grafted(
        modules.Pooling(("cls", "mean"), True),
        modules.Dense(first.linear.weight.detach().numpy(), first.linear.bias.detach().numpy(), "tanh", False, None),
        norm,
        modules.Dense(last.linear.weight.detach().numpy(), last.linear.bias.detach().numpy(), "identity", False, None),
        modules.Normalize(),
    )
    chain = [Pooling(HIDDEN, ("cls", "mean")), first, original_norm, last, Normalize()]
    vector, _ = run(model, **feeds)
    np.testing.assert_allclose(vector, in_torch(chain, feeds), **TOLERANCE)
    described = [(value.name, [str(size) for size in value.shape]) for value in model.graph.outputs]
    assert described == [("sentence_embedding", ["batch", "3"]), ("token_embeddings", ["batch", "sequence", "6"])]


DENSE = modules.Dense(np.eye(HIDDEN, dtype=np.float32), None, "identity", False, None)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        pytest.param((DENSE, modules.Pooling(("mean",), True)), "Dense before", id="Dense before Pooling"),
        pytest.param((modules.Normalize(),), "Normalize before", id="Normalize alone"),
        pytest.param((), "without a Pooling", id="no module at all"),
    ],
)
def test_refused_chains(chain: tuple[modules.Module, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        grafted(*chain)


def test_an_output_takes_its_name_from_a_value_of_the_network(run: Run) -> None:
    """A network may use the names of the bundle's outputs for values of its own."""
    model = network()
    model.graph.outputs[0].name = "sentence_embedding"
    graft.graft(model, (modules.Transformer(), modules.Pooling(("cls",), True)))
    feeds = batch((3, 2))
    vector, tokens = run(model, **feeds)
    np.testing.assert_array_equal(vector, feeds["hidden_states"][:, 0])
    np.testing.assert_array_equal(tokens, feeds["hidden_states"])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3], ids=["tiny", "usual", "large"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_splade(run: Run, strategy: str, activation: str, scale: float) -> None:
    """Relative: log(1 + x) as it stands would lose all digits of a tiny x."""
    feeds = batch((9, 1, 4, 7))
    feeds["hidden_states"] *= scale
    feeds["hidden_states"][2] = -np.abs(feeds["hidden_states"][2])  # a text without any term
    module = modules.SpladePooling(strategy, activation == "log1p_relu")
    (vector,) = run(grafted(module, task="sparse"), **feeds)
    np.testing.assert_allclose(vector, in_torch([SpladePooling(strategy, activation)], feeds), rtol=2e-6, atol=0)
    assert not vector[2].any()
    assert vector[0].any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_sparse_auto_encoder(run: Run, k: int, normalize: bool) -> None:
    feeds = batch((9, 1, 4, 7))
    original = SparseAutoEncoder(HIDDEN, 20, k=k, normalize=normalize).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    module = modules.SparseAutoEncoder(state["pre_bias"], state["encoder.weight"], state["latent_bias"], k, normalize)
    (vector,) = run(grafted(modules.Pooling(("mean",), True), module, task="sparse"), **feeds)
    assert ((vector > 0).sum(axis=1) <= k).all()
    assert (vector > 0).any()
    np.testing.assert_allclose(vector, in_torch([Pooling(HIDDEN, "mean"), original], feeds), rtol=1e-5, atol=1e-5)


def test_weighted_layers(run: Run) -> None:
    feeds = batch((9, 1, 4, 7))
    original = WeightedLayerPooling(HIDDEN, num_hidden_layers=4, layer_start=2)
    with torch.no_grad():
        original.layer_weights.copy_(torch.tensor([0.5, 2.0, 1.5]))
    model = network(layers=5)
    module = modules.WeightedLayerPooling(2, original.layer_weights.detach().numpy())
    graft.graft(model, (modules.Transformer(), module, modules.Pooling(("mean",), True)))
    layers = [torch.from_numpy(feeds["hidden_states"]) * layer for layer in range(1, 6)]
    expected = in_torch([original, Pooling(HIDDEN, "mean")], feeds, all_layer_embeddings=layers)
    vector, tokens = run(model, **feeds)
    np.testing.assert_allclose(vector, expected, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(tokens, original({"all_layer_embeddings": layers})["token_embeddings"].detach(), 1e-5)


def test_other_layers_than_weights_are_refused() -> None:
    model = network(layers=4)
    module = modules.WeightedLayerPooling(2, np.ones(3, dtype=np.float32))
    with pytest.raises(UnsupportedError, match="3 weights for 2 layers"):
        graft.graft(model, (modules.Transformer(), module, modules.Pooling(("mean",), True)))


class TestTables:
    """Models without a network. Id 0 is padding and a token of the second text; the last text has no token."""

    IDS = np.array([[1, 4, 4, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
    MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])

    def test_static_embedding(self, run: Run) -> None:
        weight = np.random.default_rng(0).normal(size=(5, HIDDEN)).astype(np.float32)
        model = tables.static_embedding(weight)
        graft.graft(model, (modules.StaticEmbedding(weight),))
        (vector,) = run(model, input_ids=self.IDS, attention_mask=self.MASK)
        ids, offsets = torch.from_numpy(self.IDS[self.MASK > 0]), torch.tensor([0, 4, 6])
        expected = torch.nn.functional.embedding_bag(ids, torch.from_numpy(weight), offsets, mode="mean").numpy()
        assert [output.name for output in model.graph.outputs] == ["sentence_embedding"]
        np.testing.assert_allclose(vector, expected, **TOLERANCE)
        assert not vector[2].any()

    def test_sparse_static_embedding(self, run: Run) -> None:
        weight = np.array([0.5, 1, 2, 3, 4], dtype=np.float32)
        model = tables.sparse_static_embedding(weight)
        graft.graft(model, (modules.SparseStaticEmbedding(weight),), task="sparse")
        (vector,) = run(model, input_ids=self.IDS, attention_mask=self.MASK)
        assert [output.name for output in model.graph.outputs] == ["sparse_embedding"]
        np.testing.assert_array_equal(vector, [[0, 1, 2, 0, 4], [0.5, 0, 0, 3, 0], [0] * 5])


@pytest.mark.parametrize("name", ["Sigmoid", "Identity", "Softmax", "Tanh"])
def test_scores(run: Run, name: str) -> None:
    """The outputs of a reranker, from a network that gives its token embeddings for logits."""
    feeds = batch((5, 5))
    model = network()
    model.graph.outputs[0] = GraphBuilder(model.graph).ReduceMax(
        model.graph.outputs[0], GraphBuilder(model.graph).vector([1]), keepdims=0
    )
    model.graph.outputs[0].shape = ir.Shape(("batch", HIDDEN))
    graft.graft_scores(model, ACTIVATIONS[name])
    logits, scores = run(model, **feeds)
    activation = getattr(torch.nn, name)(**({"dim": -1} if name in ALONG else {}))
    np.testing.assert_array_equal(logits, feeds["hidden_states"].max(axis=1))
    np.testing.assert_allclose(scores, activation(torch.from_numpy(logits)).numpy(), **TOLERANCE)
    assert [output.name for output in model.graph.outputs] == ["logits", "scores"]
