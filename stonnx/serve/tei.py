"""The dialect of text-embeddings-inference: ``/embed``, ``/rerank``, ``/predict`` and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

import stonnx
from stonnx._model.work import SparseRow
from stonnx._tasks import ResultKind
from stonnx.serve import cohere
from stonnx.serve.context import Call, Reply
from stonnx.serve.decoding import Decoder
from stonnx.serve.endpoint import SAMPLE_TEXT, Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError
from stonnx.serve.operations import check_prompt_name, choose_ranker, embed, embed_sparse, embed_tokens, score
from stonnx.serve.served import Choice, Served
from stonnx.serve.tei_types import (
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    EmbedSparseRequest,
    InfoReply,
    Prediction,
    PredictRequest,
    Rank,
    RerankRequest,
    SimilarityParameters,
    SimilarityRequest,
    SparseValue,
    Token,
    TokenizeRequest,
)

_TYPES = {
    Kind.EMPTY: "Empty",
    Kind.WRONG_TASK: "Backend",
    Kind.OVERLOADED: "Overloaded",
    Kind.INTERNAL: "Backend",
    Kind.UNAVAILABLE: "Unhealthy",
    Kind.TIMEOUT: "Backend",
    Kind.UNAUTHORIZED: "Unauthorized",
    Kind.NOT_FOUND: "NotFound",
    Kind.MODEL_NOT_FOUND: "NotFound",
}


def _error(error: RequestError, status: int) -> dict[str, Any]:
    return {"error": error.message, "error_type": _TYPES.get(error.kind, "Validation")}


# TEI's clients expect 422 for a mistake in the request, and 424 for a model with another task.
DIALECT = Dialect("tei", _error, {Kind.INVALID: 422, Kind.WRONG_TASK: 424})


def _direction(choice: Choice, direction: str | None) -> None:
    """Refuse to cut texts on the side on which the model does not cut."""
    if direction is None:
        return
    side = choice.served.truncation_side
    if direction.lower() != side:
        raise RequestError(
            Kind.INVALID,
            f"truncation_direction {direction!r} is not what this model's tokenizer does: it cuts on the {side}. "
            "Leave it out, or cut the texts yourself.",
            "truncation_direction",
        )


async def embed_dense(call: Call, body: EmbedRequest) -> Reply:
    """Dense vectors."""
    _direction(call.models.choose(body.model, "dense"), body.truncation_direction)
    embedded = await embed(
        call,
        body.model,
        body.inputs,
        field="inputs",
        prompt_name=body.prompt_name,
        normalize=body.normalize is not False,
        dimensions=body.dimensions,
        truncate=body.truncate,
    )
    return Reply(embedded.vectors, numbers=embedded.vectors.size)


async def embed_all(call: Call, body: EmbedAllRequest) -> Reply:
    """Vectors of tokens."""
    _direction(call.models.choose(body.model, "rows", "dense"), body.truncation_direction)
    rows = await embed_tokens(
        call, body.model, body.inputs, field="inputs", prompt_name=body.prompt_name, truncate=body.truncate
    )
    return Reply([np.ascontiguousarray(row) for row in rows], numbers=sum(row.size for row in rows))


async def sparse(call: Call, body: EmbedSparseRequest) -> Reply:
    """Sparse vectors."""
    _direction(call.models.choose(body.model, "sparse"), body.truncation_direction)
    rows = await embed_sparse(
        call, body.model, body.inputs, field="inputs", prompt_name=body.prompt_name, truncate=body.truncate
    )
    numbers = 4 * sum(len(row.columns) for row in rows)
    return Reply(await call.off_loop(lambda: [_values(row) for row in rows], numbers), numbers=numbers)


def _values(row: SparseRow) -> list[dict[str, Any]]:
    pairs = zip(row.columns.tolist(), row.values.tolist(), strict=True)
    return [{"index": index, "value": value} for index, value in pairs]


async def rerank(call: Call, body: RerankRequest) -> Reply:
    """Texts by descending score for a query."""
    if body.texts is not None and body.documents is not None:
        raise RequestError(
            Kind.MALFORMED, "Both texts (as in TEI) and documents (as in Cohere) are there. Send one of them.", "texts"
        )
    if body.documents is not None:
        call.dialect = cohere.DIALECT
        return await cohere.rerank(
            call,
            cohere.RerankRequest(
                query=body.query,
                documents=body.documents,
                model=body.model,
                top_n=body.top_n,
                return_documents=body.return_documents,
                truncate=body.truncate,
                raw_scores=body.raw_scores,
            ),
        )
    if body.texts is None:
        raise RequestError(Kind.INVALID, "texts is missing: the texts to rank (or documents, as in Cohere).", "texts")
    _direction(choose_ranker(call, body.model), body.truncation_direction)
    pairs = [(body.query, text) for text in body.texts]
    scores, _ = await score(
        call,
        body.model,
        pairs,
        field="texts",
        raw=body.raw_scores,
        as_probabilities=True,
        truncate=body.truncate,
    )
    values = scores[:, 0].tolist()
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    text = {index: {"text": body.texts[index]} if body.return_text else {} for index in order}
    return Reply([{"index": index, "score": values[index], **text[index]} for index in order])


async def predict(call: Call, body: PredictRequest) -> Reply:
    """Scores of all labels."""
    _direction(call.models.choose(body.model, "scores"), body.truncation_direction)
    inputs: list[Any] = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    is_single = not any(isinstance(item, list) for item in inputs)
    pairs = [inputs] if is_single and inputs else inputs
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RequestError(
                Kind.INVALID,
                "This model scores pairs of texts: inputs must be [a, b], or a list of such pairs.",
                "inputs" if is_single else f"inputs[{index}]",
            )
    scores, served = await score(
        call,
        body.model,
        [(pair[0], pair[1]) for pair in pairs],
        field="inputs",
        raw=body.raw_scores,
        as_probabilities=True,
        truncate=body.truncate,
        one_label=False,
    )
    results = []
    for row in scores.tolist():
        order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
        results.append([{"score": row[index], "label": served.labels[index]} for index in order])
    return Reply(results[0] if is_single else results)


async def similarity(call: Call, body: SimilarityRequest) -> Reply:
    """Similarities by the model's own function."""
    parameters = body.parameters or SimilarityParameters()
    if not body.inputs.sentences:
        raise RequestError(Kind.EMPTY, "sentences is an empty list. Send at least one.", "inputs.sentences")
    embedded = await embed(
        call,
        body.model,
        [body.inputs.source_sentence, *body.inputs.sentences],
        field="inputs",
        prompt_name=parameters.prompt_name,
        truncate=parameters.truncate,
    )
    model: Any = embedded.served.model
    return Reply(np.ascontiguousarray(model.similarity(embedded.vectors[:1], embedded.vectors[1:])[0]))


async def tokenize(call: Call, body: TokenizeRequest) -> Reply:
    """Tokens."""
    served = _named_or_first(call, body.model)
    call.use(served)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not texts:
        raise RequestError(Kind.EMPTY, "inputs is an empty list. Send at least one text.", "inputs")
    check_prompt_name(served, body.prompt_name)
    work = served.work(prompt_name=body.prompt_name)
    with_prompt = work.texts(texts)
    characters = sum(map(len, texts))
    tokens = await call.off_loop(lambda: served.model.tokens(with_prompt, body.add_special_tokens), characters)
    return Reply(
        [
            [dict(zip(("id", "text", "special", "start", "stop"), token, strict=True)) for token in one]
            for one in tokens
        ],
        numbers=characters,
    )


async def decode(call: Call, body: DecodeRequest) -> Reply:
    """Texts of token ids."""
    served = _named_or_first(call, body.model)
    call.use(served)
    rows: list[Any] = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]
    size = served.model.tokenizer.get_vocab_size()
    for index, row in enumerate(rows):
        if not isinstance(row, list) or not all(isinstance(number, int) and 0 <= number < size for number in row):
            raise RequestError(Kind.INVALID, f"ids must be numbers from 0 to {size - 1}.", f"ids[{index}]")
    return Reply([served.model.tokenizer.decode(row, skip_special_tokens=body.skip_special_tokens) for row in rows])


def _named_or_first(call: Call, model: str | None) -> Served:
    """The model of a request that every model can answer. A request without a name is for the first model."""
    return call.models.choose(model or next(iter(call.models)).name).served


async def info(call: Call) -> Reply:
    """The served models."""
    served = _named_or_first(call, call.request.query_params.get("model"))
    settings, manifest_info = call.settings, served.model.info
    work_tokens, work_texts = served.usual_work.limits
    return Reply(
        {
            "model_id": manifest_info.source,
            "model_sha": served.model.manifest.source.revision,
            "model_dtype": manifest_info.precision,
            "served_model_name": served.name,
            "model_type": _model_type(served),
            "max_concurrent_requests": settings.max_texts,
            "max_input_length": served.model.max_seq_length,
            "max_batch_tokens": work_tokens,
            "max_batch_requests": work_texts,
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": True,
            "tokenization_workers": 2,
            "version": stonnx.__version__,
            "sha": None,
            "docker_label": None,
            "models": [_describe(call, each) for each in call.models],
            "limits": {
                "max_body_bytes": int(settings.max_body_mb * 1e6),
                "max_texts": settings.max_texts,
                "max_text_characters": settings.max_text_characters,
                "max_queued_tokens": served.max_queued_tokens,
                "request_timeout": settings.request_timeout,
                "token_ids": settings.token_ids,
            },
        }
    )


def _model_type(served: Served) -> dict[str, Any]:
    if served.row.gives_labels:
        names = {str(index): label for index, label in enumerate(served.labels)}
        labels = {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}
        return {"reranker" if len(served.labels) == 1 else "classifier": labels}
    return {"embedding": {"pooling": "splade" if served.row.kind == "sparse" else served.pooling}}


def _describe(call: Call, served: Served) -> dict[str, Any]:
    running = served.model.info
    return {
        "name": served.name,
        "aliases": call.models.aliases_of(served.name),
        "task": served.task,
        "source": running.source,
        "precision": running.precision,
        "device": running.device,
        "dimension": served.dimension,
        "max_input_length": served.model.max_seq_length,
        "prompts": dict(served.prompts),
        "default_prompt": served.model.default_prompt_name,
    }


async def by_task(call: Call, body: msgspec.Raw) -> Reply:
    """The model's task, which Hugging Face's inference clients ask for at ``/``."""
    keys: dict[str, msgspec.Raw] = Decoder(dict[str, msgspec.Raw])(body)
    inputs = keys.get("inputs")
    if inputs is None and "query" in keys:
        return await rerank(call, Decoder(RerankRequest)(body))
    if inputs is not None and bytes(inputs).lstrip()[:1] == b"{":
        return await similarity(call, Decoder(SimilarityRequest)(body))
    kinds = {served.row.kind for served in call.models}
    endpoint = next(endpoint for endpoint in _MAIN if kinds & {*endpoint.gives})
    return await endpoint(call, Decoder(endpoint.body)(body))


def _post(
    path: str,
    call: Any,
    summary: str,
    body: Any,
    reply: Any,
    gives: tuple[ResultKind, ...] = (),
    sample: Mapping[str, Any] | None = None,
) -> Endpoint:
    return Endpoint("POST", path, call, DIALECT, summary, body, reply, gives=gives, sample=sample)


_ONE_TEXT = {"inputs": SAMPLE_TEXT}
_PAIR = {"inputs": [SAMPLE_TEXT, SAMPLE_TEXT]}
_QUERY = {"query": SAMPLE_TEXT, "texts": [SAMPLE_TEXT]}
# What `/` does, for each form of a result. With several models, the first of these that one gives.
_MAIN = (
    _post("/embed", embed_dense, "Dense vectors of texts", EmbedRequest, list[list[float]], ("dense",), _ONE_TEXT),
    _post(
        "/embed_sparse",
        sparse,
        "Sparse vectors of texts",
        EmbedSparseRequest,
        list[list[SparseValue]],
        ("sparse",),
        _ONE_TEXT,
    ),
    _post(
        "/predict",
        predict,
        "Scores of all labels",
        PredictRequest,
        list[Prediction | list[Prediction]],
        ("scores",),
        _PAIR,
    ),
    _post(
        "/embed_all",
        embed_all,
        "Vectors of the tokens of texts",
        EmbedAllRequest,
        list[list[list[float]]],
        ("rows", "dense"),
    ),
)
ENDPOINTS = (
    *_MAIN,
    _post(
        "/rerank",
        rerank,
        "Texts by their score for a query",
        RerankRequest,
        list[Rank] | cohere.RerankReply,
        ("scores", "rows"),
        _QUERY,
    ),
    _post("/similarity", similarity, "How similar texts are to one", SimilarityRequest, list[float], ("dense",)),
    _post("/tokenize", tokenize, "Tokens of texts", TokenizeRequest, list[list[Token]]),
    _post("/decode", decode, "Texts of token ids", DecodeRequest, list[str]),
    _post("/", by_task, "What the model does, for Hugging Face's clients", msgspec.Raw, Any),
    Endpoint("GET", "/info", info, DIALECT, "What is served, and its limits", None, InfoReply),
)
