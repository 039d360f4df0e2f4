"""The dialect of OpenAI: ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec

from stonnx.serve.context import Call, Reply
from stonnx.serve.endpoint import SAMPLE_TEXT, Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError
from stonnx.serve.operations import embed
from stonnx.serve.served import Served

_TYPES = {
    Kind.UNAUTHORIZED: "authentication_error",
    Kind.OVERLOADED: "rate_limit_error",
    Kind.INTERNAL: "server_error",
    Kind.UNAVAILABLE: "server_error",
    Kind.TIMEOUT: "server_error",
}
_CODES = {
    Kind.MODEL_NOT_FOUND: "model_not_found",
    Kind.UNAUTHORIZED: "invalid_api_key",
    Kind.OVERLOADED: "overloaded",
    Kind.TOO_LARGE: "request_too_large",
    Kind.WRONG_TASK: "wrong_task",
    Kind.TIMEOUT: "timeout",
    Kind.UNAVAILABLE: "unavailable",
}


def _error(error: RequestError, status: int) -> dict[str, Any]:
    kind = _TYPES.get(error.kind, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": _CODES.get(error.kind)}}


DIALECT = Dialect("openai", _error)


class EmbeddingsRequest(msgspec.Struct):
    """Texts to dense vectors."""

    input: Annotated[str | list[str | int | list[int]], msgspec.Meta(description="a text, or a list of texts")]
    model: Annotated[str | None, msgspec.Meta(description="name or alias; may be left out if there is one")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, msgspec.Meta(description="numbers, or little-endian float32 in base64")
    ] = None
    dimensions: Annotated[
        int | None, msgspec.Meta(description="cut vectors to so many numbers, then scale them to length 1")
    ] = None
    user: Annotated[str | None, msgspec.Meta(description="taken and not used")] = None
    prompt_name: Annotated[str | None, msgspec.Meta(description="a prompt of the model, by name; not in OpenAI")] = None
    input_type: Annotated[str | None, msgspec.Meta(description="query or document; not in OpenAI")] = None
    truncate: Annotated[bool | None, msgspec.Meta(description="false refuses texts that are too long")] = None


class Embedding(msgspec.Struct):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct):
    """Tokens that were computed."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(msgspec.Struct):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ModelEntry(msgspec.Struct):
    """A name that ``model`` may have."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: str
    aliases: list[str]
    prompts: list[str]
    dimension: int | None
    max_input_tokens: int | None


class ModelsReply(msgspec.Struct):
    """All of them."""

    object: Literal["list"]
    data: list[ModelEntry]


async def embeddings(call: Call, body: EmbeddingsRequest) -> Reply:
    """Dense vectors."""
    embedded = await embed(
        call,
        body.model,
        body.input,
        field="input",
        prompt_name=body.prompt_name,
        input_type=body.input_type,
        dimensions=body.dimensions,
        truncate=body.truncate,
    )
    vectors = embedded.vectors

    def data() -> list[dict[str, Any]]:
        rows: list[Any] = list(vectors)
        if body.encoding_format == "base64":
            rows = [base64.b64encode(row).decode("ascii") for row in vectors.astype("<f4", copy=False)]
        return [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]

    return Reply(
        {
            "object": "list",
            "data": await call.off_loop(data, vectors.size),
            "model": embedded.served.name,
            "usage": {"prompt_tokens": call.tokens, "total_tokens": call.tokens},
        },
        numbers=vectors.size,
    )


def _entry(call: Call, served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "stonnx",
        "task": served.task,
        "aliases": call.models.aliases_of(served.name),
        "prompts": list(served.prompts),
        "dimension": served.dimension,
        "max_input_tokens": served.model.max_seq_length,
    }


async def list_models(call: Call) -> Reply:
    """All models."""
    return Reply({"object": "list", "data": [_entry(call, served) for served in call.models]})


async def one_model(call: Call) -> Reply:
    """One model, by name or alias."""
    choice = call.models.choose(call.request.path_params["model"])
    return Reply(_entry(call, choice.served))


def _embeddings(path: str) -> Endpoint:
    summary = "Dense vectors of texts"
    sample = {"input": [SAMPLE_TEXT]}
    return Endpoint(
        "POST", path, embeddings, DIALECT, summary, EmbeddingsRequest, EmbeddingsReply, gives=("dense",), sample=sample
    )


ENDPOINTS = (
    _embeddings("/v1/embeddings"),
    _embeddings("/embeddings"),
    Endpoint("GET", "/v1/models", list_models, DIALECT, "The models of this server", None, ModelsReply),
    Endpoint("GET", "/v1/models/{model:path}", one_model, DIALECT, "One model", None, ModelEntry),
)
