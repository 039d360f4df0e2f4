"""MTEB: bundles as encoders and cross-encoders of its benchmarks.

Example:
    >>> import mteb
    >>> from stonnx.integrations.mteb import StonnxEncoder
    >>> mteb.evaluate(StonnxEncoder("all-MiniLM-L6-v2-int8"), mteb.get_tasks(["STSBenchmark"]))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mteb.models.abs_encoder import get_prompt_name
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from stonnx.cross_encoder import CrossEncoder
from stonnx.integrations._models import LazyModel
from stonnx.sentence_transformer import SentenceTransformer

_SCORING = {
    "cosine": ScoringFunction.COSINE,
    "dot": ScoringFunction.DOT_PRODUCT,
    "euclidean": ScoringFunction.EUCLIDEAN,
    "manhattan": ScoringFunction.MANHATTAN,
}


def _texts(inputs: Any) -> list[str]:
    """The texts of MTEB's loader, in order. A task with images, sound or video does not have texts."""
    texts: list[str] = []
    for batch in inputs:
        if "text" not in batch:
            raise ValueError(f"This model reads text, and the task gives {', '.join(map(str, batch))}.")
        texts += batch["text"]
    return texts


def _meta(name: str, revision: str | None, **fields: Any) -> ModelMeta:
    """The facts that MTEB writes next to results. MTEB wants a name of the form organization/name."""
    label = name.rstrip("/").rsplit("/", 1)[-1] if "/" not in name or name.startswith(("/", ".")) else name
    overwrites = {"name": label if "/" in label else f"stonnx/{label}", "revision": revision or "bundle", **fields}
    return ModelMeta.create_empty(overwrites=overwrites)


class StonnxEncoder:
    """A dense embedding model for MTEB. Prompts are chosen by MTEB's own rules from those of the model.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.SentenceTransformer`.
        revision: The model's revision in MTEB's notes; for a Hub id, the revision to load.
        device: The device of the model.
        **model_kwargs: Keyword arguments of :class:`stonnx.SentenceTransformer`.
    """

    def __init__(self, model: Any, revision: str | None = None, *, device: str | None = None, **model_kwargs: Any):
        if device is not None:
            model_kwargs["device"] = device
        if revision is not None and not isinstance(model, SentenceTransformer):
            model_kwargs["revision"] = revision
        lazy = LazyModel(SentenceTransformer, model, model_kwargs)
        self.model = lazy()
        self.mteb_model_meta = _meta(
            self.model.info.source if isinstance(model, SentenceTransformer) else lazy.name,
            revision,
            max_tokens=self.model.max_seq_length,
            embed_dim=self.model.get_embedding_dimension(),
            similarity_fn_name=_SCORING[str(self.model.similarity_fn_name)],
            framework=["ONNX"],
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[Any]:
        """The vectors of MTEB's inputs, [texts, dimensions]. ``kwargs`` are those of ``encode``."""
        prompts = {name: text for name, text in self.model.prompts.items() if text}
        name = get_prompt_name(prompts, task_metadata, prompt_type)
        options = {"show_progress_bar": kwargs.get("show_progress_bar", False)}
        if "batch_size" in kwargs:
            options["batch_size"] = kwargs["batch_size"]
        encode = {PromptType.query: self.model.encode_query, PromptType.document: self.model.encode_document}.get(
            prompt_type,
            self.model.encode,
        )
        vectors: npt.NDArray[Any] = encode(_texts(inputs), prompt=prompts[name] if name else None, **options)
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity, [first, second]."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity of rows, [rows]."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)


class StonnxCrossEncoder:
    """A reranker for MTEB.

    Args:
        model: The directory of a bundle, a Hub id, or a loaded :class:`stonnx.CrossEncoder`.
        revision: The model's revision in MTEB's notes; for a Hub id, the revision to load.
        device: The device of the model.
        **model_kwargs: Keyword arguments of :class:`stonnx.CrossEncoder`.
    """

    def __init__(self, model: Any, revision: str | None = None, *, device: str | None = None, **model_kwargs: Any):
        if device is not None:
            model_kwargs["device"] = device
        if revision is not None and not isinstance(model, CrossEncoder):
            model_kwargs["revision"] = revision
        lazy = LazyModel(CrossEncoder, model, model_kwargs)
        self.model = lazy()
        self.mteb_model_meta = _meta(
            self.model.info.source if isinstance(model, CrossEncoder) else lazy.name,
            revision,
            max_tokens=self.model.max_seq_length,
            model_type=["cross-encoder"],
            framework=["ONNX"],
        )

    def predict(
        self,
        inputs1: Any,
        inputs2: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[Any]:
        """The scores of pairs of MTEB's inputs, [pairs]. ``kwargs`` are those of ``predict``."""
        options = {"show_progress_bar": kwargs.get("show_progress_bar", False)}
        if "batch_size" in kwargs:
            options["batch_size"] = kwargs["batch_size"]
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        return np.asarray(self.model.predict(pairs, **options))
