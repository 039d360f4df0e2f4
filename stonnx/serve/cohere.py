"""The dialect of Cohere, which Jina and others share for reranking: ``/v2/rerank``, ``/v2/embed`` and their kin."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from stonnx._results.dense import Precision, finish_embeddings
from stonnx._tasks import ResultKind
from stonnx.serve.context import Call, Reply
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError
from stonnx.serve.operations import choose_ranker, cut, embed, score


def _error(error: RequestError, status: int) -> dict[str, Any]:
    return {"message": error.message}


DIALECT = Dialect("cohere", _error)

_BITS: dict[str, Precision] = {"binary": "binary", "ubinary": "ubinary"}


class RerankRequest(msgspec.Struct):
    """A query and documents to scores."""

    query: Annotated[str, msgspec.Meta(description="what the documents are ranked for")]
    documents: Annotated[
        list[str | dict[str, Any]], msgspec.Meta(description="texts, or objects with the text in `rank_fields`")
    ]
    model: Annotated[str | None, msgspec.Meta(description="name or alias; may be left out if one model can do it")] = (
        None
    )
    top_n: Annotated[int | None, msgspec.Meta(description="only so many of the best")] = None
    return_documents: Annotated[bool | None, msgspec.Meta(description="return the texts as well")] = None
    rank_fields: Annotated[
        list[str] | None, msgspec.Meta(description="fields of a document that are ranked; text if left out")
    ] = None
    max_tokens_per_doc: Annotated[
        int | None, msgspec.Meta(description="cut documents after so many tokens; what the model reads if left out")
    ] = None
    max_chunks_per_doc: Annotated[int | None, msgspec.Meta(description="taken and not used")] = None
    priority: Annotated[
        int | None, msgspec.Meta(description="0 goes before bulk work, more waits with it; by size if left out")
    ] = None
    truncate: Annotated[bool | None, msgspec.Meta(description="false refuses pairs that are too long")] = None
    raw_scores: Annotated[
        bool, msgspec.Meta(description="logits, instead of what the model's activation makes of them")
    ] = False


class Document(msgspec.Struct):
    """A document's text."""

    text: str


class Result(msgspec.Struct):
    """A document and its score."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankReply(msgspec.Struct):
    """Documents by descending score."""

    id: str
    model: str
    results: list[Result]
    usage: dict[str, int]
    meta: dict[str, Any]


class EmbedRequest(msgspec.Struct):
    """Texts to vectors of several types."""

    texts: Annotated[list[str], msgspec.Meta(description="the texts")]
    model: Annotated[str | None, msgspec.Meta(description="name or alias; may be left out if one model can do it")] = (
        None
    )
    input_type: Annotated[
        str | None, msgspec.Meta(description="search_query or search_document, for the prompt; others have none")
    ] = None
    embedding_types: Annotated[
        list[Literal["float", "base64", "binary", "ubinary", "int8", "uint8"]] | None,
        msgspec.Meta(description="float, base64, binary, ubinary; int8 and uint8 are refused"),
    ] = None
    output_dimension: Annotated[
        int | None, msgspec.Meta(description="cut vectors to so many numbers, then scale them to length 1")
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None, msgspec.Meta(description="NONE refuses texts that are too long")
    ] = None
    max_tokens: Annotated[
        int | None, msgspec.Meta(description="cut texts after so many tokens; what the model reads if left out")
    ] = None
    priority: Annotated[
        int | None, msgspec.Meta(description="0 goes before bulk work, more waits with it; by size if left out")
    ] = None
    images: Annotated[list[str] | None, msgspec.Meta(description="refused: models here read text")] = None


class EmbedReply(msgspec.Struct):
    """Vectors by type; a plain list of them on /v1/embed without embedding_types."""

    id: str
    embeddings: dict[str, Any] | list[list[float]]
    texts: list[str]
    meta: dict[str, Any]
    response_type: str


async def rerank(call: Call, body: RerankRequest) -> Reply:
    """Documents by descending score."""
    if body.top_n is not None and body.top_n < 1:
        raise RequestError(Kind.INVALID, f"top_n must be at least 1, got {body.top_n}.", "top_n")
    if body.priority is not None:
        call.bulk = body.priority > 0
    texts = [_text(document, body.rank_fields, index) for index, document in enumerate(body.documents)]
    ranker = choose_ranker(call, body.model)
    read = await cut(call, ranker.served, texts, body.max_tokens_per_doc, "max_tokens_per_doc")
    scores, served = await score(
        call,
        body.model,
        [(body.query, text) for text in read],
        field="documents",
        raw=body.raw_scores,
        truncate=body.truncate,
    )
    values = scores[:, 0].tolist()
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)[: body.top_n]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": values[index]} for index in order]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return Reply(
        {
            "id": call.request_id,
            "model": served.name,
            "results": results,
            "usage": {"prompt_tokens": call.tokens, "total_tokens": call.tokens},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }
    )


def _text(document: str | dict[str, Any], fields: list[str] | None, index: int) -> str:
    if isinstance(document, str):
        return document
    wanted = fields or ["text"]
    parts = [document.get(name) for name in wanted]
    if not all(isinstance(part, str) for part in parts):
        raise RequestError(
            Kind.INVALID,
            f"documents[{index}] must have a text in {', '.join(wanted)}. It has: {', '.join(document)[:200]}.",
            f"documents[{index}]",
        )
    return "\n".join(map(str, parts))


async def embed_types(call: Call, body: EmbedRequest) -> Reply:
    """Vectors of several types."""
    if body.images:
        raise RequestError(Kind.INVALID, "Models here read text, not images.", "images")
    types = list(body.embedding_types or ["float"])
    refused = [kind for kind in types if kind in ("int8", "uint8")]
    if refused:
        raise RequestError(
            Kind.INVALID,
            f"{refused[0]} needs ranges that hold for all texts ever, and a request has only its own: the same text "
            "would get other numbers in another request. Ask for float and quantize with ranges that you keep, or "
            "for binary.",
            "embedding_types",
        )
    if body.truncate == "START":
        raise RequestError(Kind.INVALID, "truncate START is not supported; END and NONE are.", "truncate")
    if body.priority is not None:
        call.bulk = body.priority > 0
    texts = await cut(call, call.models.choose(body.model, "dense").served, body.texts, body.max_tokens, "max_tokens")
    embedded = await embed(
        call,
        body.model,
        texts,
        field="texts",
        input_type=body.input_type,
        dimensions=body.output_dimension,
        dimensions_field="output_dimension",
        truncate=body.truncate != "NONE",
    )
    vectors = embedded.vectors

    def of_types() -> dict[str, Any]:
        return {kind: _as_type(vectors, kind) for kind in types}

    of_type = await call.off_loop(of_types, vectors.size * len(types))
    is_plain = call.request.url.path.startswith("/v1/") and body.embedding_types is None
    return Reply(
        {
            "id": call.request_id,
            "embeddings": of_type["float"] if is_plain else of_type,
            "texts": body.texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": call.tokens}},
            "response_type": "embeddings_floats" if is_plain else "embeddings_by_type",
        },
        numbers=vectors.size,
    )


def _as_type(vectors: npt.NDArray[Any], kind: str) -> Any:
    """Vectors as one of Cohere's types."""
    if kind == "float":
        return vectors
    if kind == "base64":
        return [base64.b64encode(row).decode("ascii") for row in vectors.astype("<f4", copy=False)]
    return np.ascontiguousarray(finish_embeddings(vectors, None, False, _BITS[kind]))


def _post(path: str, call: Any, summary: str, body: Any, reply: Any, *gives: ResultKind) -> Endpoint:
    return Endpoint("POST", path, call, DIALECT, summary, body, reply, gives=gives)


ENDPOINTS = (
    _post("/v2/rerank", rerank, "Documents by their score for a query", RerankRequest, RerankReply, "scores", "rows"),
    _post("/v1/rerank", rerank, "Documents by their score for a query", RerankRequest, RerankReply, "scores", "rows"),
    _post("/v2/embed", embed_types, "Vectors of several types", EmbedRequest, EmbedReply, "dense"),
    _post("/v1/embed", embed_types, "Vectors of several types", EmbedRequest, EmbedReply, "dense"),
)
