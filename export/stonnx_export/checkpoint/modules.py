"""The modules of a checkpoint as data, each read from its own folder. Nothing here imports torch.

A module that stonnx can put into a graph has a dataclass, a reader, and a builder in ``heads``. The exporter refuses
every other module by name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonnx._results.activations import TORCH_CLASSES

FloatArray = npt.NDArray[np.float32]

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

# The class that holds a chain for each route, and its name in older checkpoints.
ROUTERS = ("Router", "Asym")

# torch class of an activation -> the name that the graph's builder and the manifest use.
ACTIVATIONS = {torch_class: name for torch_class, (name, _) in TORCH_CLASSES.items()}


@dataclass(frozen=True)
class QueryExpansion:
    """Tokens that fill up queries to ``length`` tokens.

    ``fixed`` cuts longer queries to that length. ``attend``: other tokens attend to them. ``token`` is their name; None
    is the mask token, or the end of the text if there is no such token.
    """

    length: int
    fixed: bool
    attend: bool
    token: str | None


@dataclass(frozen=True)
class Transformer:
    """The network itself. Texts are cut to ``max_seq_length`` tokens; if that is None, the tokenizer has the limit.

    ``do_lower_case`` puts texts into lower case before the tokenizer reads them. ``code`` names the module's class if
    that class is code of the repository. Queries and documents may have limits of their own.
    """

    max_seq_length: int | None = None
    do_lower_case: bool = False
    code: str | None = None
    query_length: int | None = None
    document_length: int | None = None
    query_expansion: QueryExpansion | None = None


@dataclass(frozen=True)
class LogitScore:
    """The logit of one token of the vocabulary after the last token of a text, less that of another if there is one."""

    true_token_id: int
    false_token_id: int | None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The rows of the vocabulary that it reads."""
        return (self.true_token_id,) if self.false_token_id is None else (self.true_token_id, self.false_token_id)


@dataclass(frozen=True)
class CLIPModel(Transformer):
    """A network with a half for texts and a half for images. Each gives a vector directly, without a Pooling."""


@dataclass(frozen=True)
class StaticEmbedding:
    """A table with one row for each token; the vector of a text is the mean of its rows."""

    weight: FloatArray


@dataclass(frozen=True)
class SparseStaticEmbedding:
    """A weight for each token of the vocabulary; a text has the weights of the tokens that occur in it."""

    weight: FloatArray


@dataclass(frozen=True)
class WeightedLayerPooling:
    """The weighted mean of the hidden states from ``layer_start`` on."""

    layer_start: int
    weights: FloatArray


@dataclass(frozen=True)
class Pooling:
    """Token embeddings to one vector, the results of several modes concatenated."""

    modes: tuple[str, ...]
    include_prompt: bool


@dataclass(frozen=True)
class SpladePooling:
    """log1p(relu(logits)), once or twice, pooled over the tokens by ``max`` or ``sum``."""

    strategy: str
    twice: bool


@dataclass(frozen=True)
class SparseAutoEncoder:
    """The k largest of (x - pre_bias) W^T + latent_bias, after a ReLU; the rest is zero."""

    pre_bias: FloatArray
    weight: FloatArray
    latent_bias: FloatArray
    k: int
    normalize: bool


@dataclass(frozen=True)
class Dense:
    """activation(x W^T + b), and x (or x R^T) added to it if the layer is residual.

    x is the vector of each token if ``tokens``, else that of the text. None: nobody wrote it down.
    """

    weight: FloatArray
    bias: FloatArray | None
    activation: str
    residual: bool
    residual_weight: FloatArray | None
    # The feature that it writes, if that is another one than it reads: "scores", of a CrossEncoder.
    output: str | None = None
    tokens: bool | None = None


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalization of the sentence embedding."""

    weight: FloatArray
    bias: FloatArray
    epsilon: float


@dataclass(frozen=True)
class Normalize:
    """Division by the L2 norm: of the vector of each token if ``tokens``, else that of the text."""

    tokens: bool = False


@dataclass(frozen=True)
class MultiVectorMask:
    """Which tokens' vectors are the result of late interaction.

    Those of ``skiplist_words`` are not, for texts of ``skiplist_tasks``. Of documents, only those of
    ``keep_only_token_ids`` are, if there are such ids.
    """

    skiplist_words: tuple[str, ...] = ()
    skiplist_tasks: tuple[str, ...] = ("document",)
    keep_only_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class HierarchicalTokenPooling:
    """Means of clusters of a text's vectors. The runtime computes them."""

    pool_factor: float
    num_protected_tokens: int
    normalize_embeddings: bool
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """A module that is code of the repository. Only running it shows its effect."""

    reference: str


Module = (
    Transformer
    | CLIPModel
    | StaticEmbedding
    | SparseStaticEmbedding
    | WeightedLayerPooling
    | Pooling
    | SpladePooling
    | SparseAutoEncoder
    | Dense
    | LayerNorm
    | Normalize
    | LogitScore
    | MultiVectorMask
    | HierarchicalTokenPooling
    | Code
)


def is_code(chain: tuple[Module, ...]) -> bool:
    """Whether a chain has modules that are code of the repository."""
    return any(isinstance(module, Code) or (isinstance(module, Transformer) and module.code) for module in chain)


def reads_images(chain: tuple[Module, ...]) -> bool:
    """Whether a chain reads images as well as texts."""
    return isinstance(chain[0], CLIPModel)


def describe(module: Module) -> tuple[str, dict[str, Any]]:
    """Name and settings of a module, without its weights: for the manifest."""
    settings: dict[str, Any] = {}
    for key, value in vars(module).items():
        if value is None or isinstance(value, np.ndarray):
            continue
        settings[key] = list(value) if isinstance(value, tuple) else value
        if isinstance(value, QueryExpansion):
            settings[key] = dataclasses.asdict(value)
    if isinstance(module, Dense):
        settings |= {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    return type(module).__name__, settings
