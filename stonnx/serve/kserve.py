"""KServe's open inference protocol, version 2, over HTTP, with the binary extension that tritonclient uses."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

import stonnx
from stonnx._tasks import ResultKind
from stonnx.serve.context import Call, Reply
from stonnx.serve.endpoint import Endpoint
from stonnx.serve.errors import Dialect, Kind, RequestError
from stonnx.serve.near import refuse_near_misses
from stonnx.serve.operations import embed, embed_sparse, embed_tokens, score
from stonnx.serve.served import Served

_PARAMETERS = ("prompt_name", "input_type", "normalize", "dimensions", "truncate", "raw_scores", "binary_data_output")
HEADER_LENGTH = "inference-header-content-length"


def _error(error: RequestError, status: int) -> dict[str, Any]:
    return {"error": error.message}


DIALECT = Dialect("kserve", _error)


class InferInput(msgspec.Struct):
    """A tensor of texts: ``text``; of rerankers also ``query``, with one text."""

    name: str
    shape: list[int]
    datatype: str
    data: Annotated[list[Any] | None, msgspec.Meta(description="the texts, as nested as the shape")] = None
    parameters: dict[str, Any] | None = None


class InferOutput(msgspec.Struct):
    """A tensor that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """Tensors in."""

    inputs: Annotated[
        list[InferInput],
        msgspec.Meta(description="tensors of texts: `name`, `shape`, `datatype`, `data`, `parameters`"),
    ]
    id: Annotated[str | None, msgspec.Meta(description="comes back in the reply")] = None
    outputs: Annotated[
        list[InferOutput] | None, msgspec.Meta(description="only these, each with `name` and `parameters.binary_data`")
    ] = None
    parameters: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(description=", ".join(_PARAMETERS)),
    ] = None


class InferTensor(msgspec.Struct):
    """A tensor of results."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float | int]


class InferReply(msgspec.Struct):
    """Tensors out."""

    model_name: str
    model_version: str
    outputs: list[InferTensor]
    id: str | None = None


class TensorMetadata(msgspec.Struct):
    """The form of a tensor."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """This server."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct):
    """Whether the server lives."""

    live: bool


class Ready(msgspec.Struct):
    """Whether it answers."""

    ready: bool


async def server(call: Call) -> Reply:
    """This server."""
    return Reply({"name": "stonnx", "version": stonnx.__version__, "extensions": ["binary_tensor_data"]})


async def model_ready(call: Call) -> Reply:
    """Whether a model answers, which it does if it exists."""
    served = call.models.choose(call.request.path_params["model"]).served
    return Reply({"name": served.name, "ready": True})


async def model_metadata(call: Call) -> Reply:
    """The inputs and outputs of a model."""
    served = call.models.choose(call.request.path_params["model"]).served
    inputs, outputs = _tensors(served)
    return Reply(
        {
            "name": served.name,
            "versions": ["1"],
            "platform": "stonnx",
            "inputs": [dict(zip(("name", "datatype", "shape"), tensor, strict=True)) for tensor in inputs],
            "outputs": [dict(zip(("name", "datatype", "shape"), tensor, strict=True)) for tensor in outputs],
        }
    )


_Tensors = list[tuple[str, str, list[int]]]
_Texts = dict[str, list[str]]
_Options = dict[str, Any]
_Results = dict[str, npt.NDArray[Any]]


def _tensors(served: Served) -> tuple[_Tensors, _Tensors]:
    """Its inputs and outputs."""
    inputs: _Tensors = [("query", "BYTES", [1]), ("text", "BYTES", [-1])]
    return inputs if served.row.reads_pairs else inputs[1:], _OUTPUTS[served.row.kind](served)


_OUTPUTS: dict[ResultKind, Callable[[Served], _Tensors]] = {
    "dense": lambda served: [("embedding", "FP32", [-1, served.dimension or -1])],
    # The rows one after the other. `counts` says how many values each has.
    "sparse": lambda _: [("counts", "INT64", [-1]), ("indices", "INT32", [-1]), ("values", "FP32", [-1])],
    # The vectors of all texts one after the other. `counts` says how many each has.
    "rows": lambda served: [("counts", "INT64", [-1]), ("embedding", "FP32", [-1, served.dimension or -1])],
    "scores": lambda served: [("scores", "FP32", [-1, len(served.labels)])],
}


async def infer(call: Call, body: InferRequest) -> Reply:
    """Tensors of texts to tensors of results."""
    served = call.models.choose(call.request.path_params["model"]).served
    options = body.parameters or {}
    refuse_near_misses(options, _PARAMETERS)
    texts = _texts(body, call.binary)
    expected = [name for name, _, _ in _tensors(served)[0]]
    if sorted(texts) != sorted(expected):
        raise RequestError(
            Kind.INVALID,
            f"The model takes the inputs {', '.join(expected)}; got {', '.join(texts) or 'none'}.",
            "inputs",
        )
    return _reply(body, served, await _RUN[served.row.kind](call, texts, options))


async def _dense(call: Call, texts: _Texts, options: _Options) -> _Results:
    dimensions = options.get("dimensions")
    embedded = await embed(
        call,
        call.request.path_params["model"],
        texts["text"],
        **_for_texts(options),
        normalize=bool(options.get("normalize")),
        dimensions=dimensions if isinstance(dimensions, int) else None,
    )
    return {"embedding": embedded.vectors}


async def _sparse(call: Call, texts: _Texts, options: _Options) -> _Results:
    rows = await embed_sparse(call, call.request.path_params["model"], texts["text"], **_for_texts(options))
    return {
        "counts": np.array([len(row.columns) for row in rows], dtype=np.int64),
        "indices": np.concatenate([row.columns for row in rows]),
        "values": np.concatenate([row.values for row in rows]),
    }


async def _rows(call: Call, texts: _Texts, options: _Options) -> _Results:
    rows = await embed_tokens(
        call,
        call.request.path_params["model"],
        texts["text"],
        **_for_texts(options),
    )
    return {"counts": np.array([len(each) for each in rows], dtype=np.int64), "embedding": np.concatenate(rows)}


async def _scores(call: Call, texts: _Texts, options: _Options) -> _Results:
    if len(texts["query"]) != 1:
        raise RequestError(Kind.INVALID, "The input query must have one text.", "inputs")
    scores, _ = await score(
        call,
        call.request.path_params["model"],
        [(texts["query"][0], text) for text in texts["text"]],
        field="text",
        raw=bool(options.get("raw_scores")),
        truncate=options.get("truncate"),
        one_label=False,
    )
    return {"scores": scores}


_RUN: dict[ResultKind, Callable[[Call, _Texts, _Options], Awaitable[_Results]]] = {
    "dense": _dense,
    "sparse": _sparse,
    "rows": _rows,
    "scores": _scores,
}


def _for_texts(options: _Options) -> dict[str, Any]:
    """The arguments of operations on texts."""
    named = {name: options.get(name) for name in ("prompt_name", "input_type")}
    texts = {name: None if value is None else str(value) for name, value in named.items()}
    return {"field": "text", "truncate": options.get("truncate"), **texts}


def _texts(body: InferRequest, binary: bytes) -> dict[str, list[str]]:
    """The texts of each input, from JSON or from the bytes after it."""
    texts = {}
    start = 0
    for index, tensor in enumerate(body.inputs):
        param = f"inputs[{index}]"
        if tensor.datatype != "BYTES":
            raise RequestError(Kind.INVALID, f"{tensor.name} must be of the datatype BYTES, a text each.", param)
        size = (tensor.parameters or {}).get("binary_data_size")
        if isinstance(size, int) and not isinstance(size, bool):
            values = list(_strings(binary[start : start + size], param))
            start += size
        else:
            values = list(_flat(tensor.data or []))
        if not all(isinstance(value, str) for value in values):
            raise RequestError(Kind.INVALID, f"{tensor.name} must hold texts.", param)
        if len(values) != int(np.prod(tensor.shape)):
            raise RequestError(
                Kind.INVALID, f"{tensor.name} has the shape {tensor.shape}, and {len(values)} texts.", param
            )
        texts[tensor.name] = values
    return texts


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _strings(data: bytes, param: str) -> Iterator[str]:
    """Texts from bytes in which each text follows its length in four bytes."""
    start = 0
    while start < len(data):
        if len(data) - start < 4:
            raise RequestError(Kind.INVALID, "The binary data of the tensor ends within a length.", param)
        (length,) = struct.unpack_from("<I", data, start)
        piece = data[start + 4 : start + 4 + length]
        if len(piece) < length:
            raise RequestError(Kind.INVALID, "The binary data of the tensor ends within a text.", param)
        try:
            yield piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(Kind.INVALID, f"A text of the tensor is not UTF-8: {error.reason}.", param) from error
        start += 4 + length


_DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def _reply(body: InferRequest, served: Served, results: dict[str, npt.NDArray[Any]]) -> Reply:
    wanted = {output.name: output.parameters or {} for output in body.outputs or []}
    unknown = [name for name in wanted if name not in results]
    if unknown:
        raise RequestError(Kind.INVALID, f"There is no output {unknown[0]!r}: {', '.join(results)}.", "outputs")
    as_binary = bool((body.parameters or {}).get("binary_data_output"))
    outputs, blobs = [], []
    for name, array in results.items():
        if wanted and name not in wanted:
            continue
        array = np.ascontiguousarray(array)
        tensor: dict[str, Any] = {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if wanted.get(name, {}).get("binary_data", as_binary):
            blobs.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = array.reshape(-1)
        outputs.append(tensor)
    content = {"model_name": served.name, "model_version": "1", "outputs": outputs}
    if body.id is not None:
        content["id"] = body.id
    numbers = sum(array.size for array in results.values())
    if not blobs:
        return Reply(content, numbers=numbers)
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(
        b"".join([header, *blobs]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


ENDPOINTS = (
    Endpoint("GET", "/v2", server, DIALECT, "This server", None, ServerMetadata, needs_models=False),
    Endpoint("GET", "/v2/models/{model}/ready", model_ready, DIALECT, "Whether a model answers", None, Ready),
    Endpoint("GET", "/v2/models/{model}", model_metadata, DIALECT, "What a model takes and gives", None, ModelMetadata),
    Endpoint(
        "POST", "/v2/models/{model}/infer", infer, DIALECT, "Tensors of texts to results", InferRequest, InferReply
    ),
)
