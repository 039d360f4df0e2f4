"""Triton Inference Server: the Python model of a repository that ``stonnx triton`` writes.

It runs inside of Triton's Python backend, which brings ``triton_python_backend_utils``. Triton merges requests into one
call of :meth:`TritonModel.execute`, and stonnx forms runs of its texts. A faulty request gets an error of its own, and
does not disturb the others; nothing is raised, because Triton's backend leaks shared memory then.

| task | inputs, BYTES [n, 1] | outputs |
|---|---|---|
| embedding | ``text`` | ``embedding`` FP32 [n, dimensions] |
| sparse | ``text`` | ``indices`` INT32 [n, m], padded with -1; ``values`` FP32 [n, m], padded with 0 |
| rerank | ``query``, ``text`` | ``scores`` FP32 [n, labels] |

Parameters of a request: ``input_type`` (``"query"`` or ``"document"``), ``prompt_name``, ``normalize``, ``truncate``
(false: a text that is too long is an error), ``raw_scores`` (logits of a reranker).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as backend

from stonnx._errors import InvalidArgumentError, InvalidInputError, TextTooLongError, UnsupportedError
from stonnx._load import load_model
from stonnx.cross_encoder import CrossEncoder
from stonnx.sparse_encoder import SparseEncoder

# The faults of a client.
_INVALID = (InvalidInputError, InvalidArgumentError, TextTooLongError, UnsupportedError)


@dataclass(frozen=True)
class _Options:
    """The parameters of a request. Requests with equal ones run together."""

    input_type: str | None = None
    prompt_name: str | None = None
    normalize: bool = False
    truncate: bool = True
    raw_scores: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> _Options:
        """The parameters that are known. A server may forward others, as headers of HTTP."""
        options = cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})
        for name in ("normalize", "truncate", "raw_scores"):
            if not isinstance(getattr(options, name), bool):
                raise InvalidArgumentError(
                    f"The parameter {name!r} must be true or false, got {getattr(options, name)!r:.60}."
                )
        if options.input_type not in (None, "query", "document"):
            raise InvalidArgumentError(
                f"The parameter 'input_type' must be 'query' or 'document', got {options.input_type!r:.60}."
            )
        return options


class TritonModel:
    """The methods that Triton's Python backend calls. Its file ``model.py`` makes a subclass of it."""

    bundle: Path
    _model: Any

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle. An error makes the model unavailable, and Triton reports the message."""
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        device = settings["device"]
        if args["model_instance_kind"] == "GPU":
            device = f"{device}:{args['model_instance_device_id']}"
        threads = int(settings["threads"]) if "threads" in settings else None
        self._model = load_model(self.bundle, device=device, threads=threads)
        self._inputs = [one["name"] for one in config["input"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, in their order."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[_Options, list[tuple[int, list[Any]]]] = {}
        for index, request in enumerate(requests):
            try:
                if request.is_cancelled():
                    responses[index] = _failed("The request was cancelled.", backend.TritonError.CANCELLED)
                    continue
                options = _Options.of(json.loads(request.parameters() or "{}"))
                groups.setdefault(options, []).append((index, self._rows(request)))
            except Exception as error:
                responses[index] = _response_to(error)
        for options, members in groups.items():
            self._answer(options, members, responses)
        return responses

    def _rows(self, request: Any) -> list[Any]:
        columns = []
        for name in self._inputs:
            values = backend.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            columns.append([_text(name, index, value) for index, value in enumerate(values)])
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def _answer(self, options: _Options, members: list[tuple[int, list[Any]]], responses: list[Any]) -> None:
        """Run requests together; if that fails, each by itself, so that only the faulty ones get an error."""
        try:
            outputs = self._compute([row for _, rows in members for row in rows], options)
        except Exception as error:
            if len(members) == 1:
                responses[members[0][0]] = _response_to(error)
            else:
                for member in members:
                    self._answer(options, [member], responses)
            return
        start = 0
        for index, rows in members:
            end = start + len(rows)
            tensors = [backend.Tensor(name, array[start:end]) for name, array in outputs.items()]
            responses[index] = backend.InferenceResponse(tensors)
            start = end

    def _compute(self, rows: list[Any], options: _Options) -> dict[str, npt.NDArray[Any]]:
        too_long = "truncate" if options.truncate else "error"
        common: dict[str, Any] = {
            "prompt_name": options.prompt_name,
            "too_long": too_long,
            "show_progress_bar": False,
        }
        if isinstance(self._model, CrossEncoder):
            if options.raw_scores:
                common["activation_fn"] = "identity"
            scores = self._model.predict(rows, **common)
            return {"scores": np.asarray(scores, dtype=np.float32).reshape(len(rows), -1)}
        method = "encode" if options.input_type is None else f"encode_{options.input_type}"
        encode = getattr(self._model, method)
        if isinstance(self._model, SparseEncoder):
            return _padded(encode(rows, **common))
        return {"embedding": encode(rows, normalize_embeddings=options.normalize, **common)}


def _text(name: str, index: int, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"Text {index} of the input {name!r} is not UTF-8: {error.reason}.", index) from error


def _padded(matrix: Any) -> dict[str, npt.NDArray[Any]]:
    """The rows of a scipy CSR matrix, each filled up to the longest."""
    counts = np.diff(matrix.indptr)
    kept = np.arange(max(counts, default=0)) < counts[:, None]
    indices, values = np.full(kept.shape, -1, np.int32), np.zeros(kept.shape, np.float32)
    indices[kept], values[kept] = matrix.indices, matrix.data
    return {"indices": indices, "values": values}


def _response_to(error: Exception) -> Any:
    if isinstance(error, _INVALID):
        return _failed(str(error), backend.TritonError.INVALID_ARG)
    return _failed(f"{type(error).__name__}: {error}", backend.TritonError.INTERNAL)


def _failed(message: str, code: Any) -> Any:
    return backend.InferenceResponse(output_tensors=[], error=backend.TritonError(message, code))
