"""The types of requests and responses in the dialect of text-embeddings-inference."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

_Inputs = Annotated[str | list[str | int | list[int]], msgspec.Meta(description="a text, or a list of texts")]
_Model = Annotated[
    str | None, msgspec.Meta(description="name or alias; may be left out if one model can do it; not in TEI")
]
_Truncate = Annotated[bool | None, msgspec.Meta(description="false refuses texts that are too long")]
_Direction = Annotated[
    Literal["right", "left", "Right", "Left"] | None,
    msgspec.Meta(description="the side that the model cuts; the other is refused"),
]
_PromptName = Annotated[str | None, msgspec.Meta(description="a prompt of the model, by name")]
_RawScores = Annotated[
    bool, msgspec.Meta(description="logits, instead of the sigmoid of one label or the softmax of several")
]


class EmbedRequest(msgspec.Struct):
    """Texts to dense vectors."""

    inputs: _Inputs
    model: _Model = None
    truncate: _Truncate = None
    truncation_direction: _Direction = None
    prompt_name: _PromptName = None
    normalize: Annotated[bool | None, msgspec.Meta(description="scale vectors to length 1; true if left out")] = None
    dimensions: Annotated[int | None, msgspec.Meta(description="cut vectors to so many numbers")] = None


class EmbedAllRequest(msgspec.Struct):
    """Texts to vectors of their tokens."""

    inputs: _Inputs
    model: _Model = None
    truncate: _Truncate = None
    truncation_direction: _Direction = None
    prompt_name: _PromptName = None


class EmbedSparseRequest(msgspec.Struct):
    """Texts to sparse vectors."""

    inputs: _Inputs
    model: _Model = None
    truncate: _Truncate = None
    truncation_direction: _Direction = None
    prompt_name: _PromptName = None


class SparseValue(msgspec.Struct):
    """One number of a sparse vector."""

    index: int
    value: float


class RerankRequest(msgspec.Struct):
    """A query and texts to scores. With ``documents`` instead of ``texts`` it is Cohere's and Jina's request."""

    query: Annotated[str, msgspec.Meta(description="what the texts are ranked for")]
    texts: Annotated[list[str] | None, msgspec.Meta(description="the texts; the reply is TEI's list")] = None
    documents: Annotated[
        list[str | dict[str, Any]] | None, msgspec.Meta(description="the texts; the reply is Cohere's object")
    ] = None
    model: _Model = None
    truncate: _Truncate = None
    truncation_direction: _Direction = None
    raw_scores: _RawScores = False
    return_text: Annotated[bool, msgspec.Meta(description="return the texts as well")] = False
    top_n: Annotated[int | None, msgspec.Meta(description="with documents: only so many of the best")] = None
    return_documents: Annotated[bool | None, msgspec.Meta(description="with documents: return them as well")] = None


class Rank(msgspec.Struct):
    """A text and its score."""

    index: int
    score: float
    text: str | None = None


class PredictRequest(msgspec.Struct):
    """Pairs of texts to the scores of all labels."""

    inputs: Annotated[str | list[str | list[str]], msgspec.Meta(description="a pair of texts, or a list of pairs")]
    model: _Model = None
    truncate: _Truncate = None
    truncation_direction: _Direction = None
    raw_scores: _RawScores = False


class Prediction(msgspec.Struct):
    """A label and its score."""

    score: float
    label: str


class SimilarityInputs(msgspec.Struct):
    """A text, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct):
    """How the texts are read."""

    truncate: _Truncate = None
    truncation_direction: _Direction = None
    prompt_name: _PromptName = None


class SimilarityRequest(msgspec.Struct):
    """How similar texts are to one."""

    inputs: Annotated[SimilarityInputs, msgspec.Meta(description="`source_sentence`, a text, and `sentences`, a list")]
    parameters: Annotated[
        SimilarityParameters | None, msgspec.Meta(description="`truncate`, `truncation_direction`, `prompt_name`")
    ] = None
    model: _Model = None


class TokenizeRequest(msgspec.Struct):
    """Texts to tokens, as a whole: what the model cuts off is there too."""

    inputs: Annotated[str | list[str], msgspec.Meta(description="a text, or a list of texts")]
    model: _Model = None
    add_special_tokens: Annotated[bool, msgspec.Meta(description="with those that the model adds")] = True
    prompt_name: _PromptName = None


class Token(msgspec.Struct):
    """One token; of special ones ``start`` and ``stop`` are null."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(msgspec.Struct):
    """Token ids to texts."""

    ids: Annotated[list[int | list[int]], msgspec.Meta(description="ids of one text, or of several")]
    model: _Model = None
    skip_special_tokens: Annotated[bool, msgspec.Meta(description="leave out special tokens")] = True


class InfoReply(msgspec.Struct):
    """The first served model, or that of ``?model=``. All of them are in ``models``."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    models: list[dict[str, Any]]
    limits: dict[str, Any]
