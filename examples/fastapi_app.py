"""Embeddings inside a FastAPI application of your own, with ``stonnx.Batcher``.

    pip install fastapi uvicorn
    MODEL=all-MiniLM-L6-v2-int8 uvicorn examples.fastapi_app:app

The batcher runs texts of concurrent requests together. A text does not wait for others, a large request does not hold
up the small ones, and a client that goes away takes its texts out of the queue. If you do not need routes of your own,
``stonnx serve`` is a complete server. Without ``MODEL``, the embedded all-MiniLM-L6-v2 is exported and used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import stonnx
from examples.semantic_search import demo_bundle


class Texts(BaseModel):
    texts: list[str] = Field(max_length=2048)
    is_query: bool = False


class Vectors(BaseModel):
    vectors: list[list[float]]


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model when the server starts, and end its threads when the server stops."""
    model = stonnx.SentenceTransformer(os.environ.get("MODEL") or demo_bundle())
    model.warmup()
    with stonnx.Batcher(model) as batcher:
        app.state.batcher = batcher
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/embed")
async def embed(request: Request, body: Texts) -> Vectors:
    """The vectors of some texts."""
    batcher: stonnx.Batcher = request.app.state.batcher
    task: Any = "query" if body.is_query else "document"
    vectors = await batcher.encode(body.texts, task=task, normalize_embeddings=True, timeout=30)
    return Vectors(vectors=vectors.tolist())


@app.get("/load")
async def load(request: Request) -> dict[str, int]:
    """How much waits: to scale by, or to send work elsewhere."""
    return {"queued_tokens": request.app.state.batcher.load().queued_tokens}


@app.exception_handler(stonnx.StonnxError)
async def refuse(request: Request, error: stonnx.StonnxError) -> JSONResponse:
    """Errors of stonnx as answers of HTTP."""
    headers = {}
    if isinstance(error, stonnx.OverloadedError):
        status, headers["Retry-After"] = 429, str(max(1, round(error.retry_after)))
    elif isinstance(error, stonnx.TooManyTokensError):
        status = 413
    elif isinstance(error, stonnx.DeadlineError):
        status = 504
    elif isinstance(error, stonnx.InvalidInputError | stonnx.InvalidArgumentError | stonnx.TextTooLongError):
        status = 400
    else:
        status = 500
    return JSONResponse({"error": str(error)}, status, headers)
