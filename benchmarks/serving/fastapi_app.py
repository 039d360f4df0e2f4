"""The server that people usually write around sentence-transformers, as a peer of the comparison.

MODEL=DIRECTORY uvicorn benchmarks.serving.fastapi_app:app
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(os.environ["MODEL"], device="cpu")


class Request(BaseModel):
    """The fields of OpenAI's request that the comparison sends."""

    input: str | list[str]
    model: str = "model"
    encoding_format: str = "float"


def health() -> dict[str, str]:
    return {"status": "ok"}


# This is a plain function, so FastAPI runs it in its thread pool, and the event loop stays free.
def embeddings(request: Request) -> dict[str, Any]:
    texts = [request.input] if isinstance(request.input, str) else request.input
    rows = model.encode(texts, show_progress_bar=False).tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": request.model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


app.get("/health")(health)
app.post("/v1/embeddings")(embeddings)
