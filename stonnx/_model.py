"""What the three model classes share: loading, prompts, limits, and the checks of a call."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import tokenizers

from stonnx._bundle import Task
from stonnx._engine import Engine, LoadedRoute
from stonnx._errors import InvalidArgumentError, UnsupportedError
from stonnx._hub import find_bundle

logger = logging.getLogger("stonnx")

_CLASS_OF_TASK = {"embedding": "SentenceTransformer", "sparse": "SparseEncoder", "rerank": "CrossEncoder"}


@dataclass(frozen=True)
class ModelInfo:
    """What is running: for logs and bug reports."""

    directory: str
    source: str
    task: str
    architecture: str
    precision: str
    device: str
    threads: int
    onnxruntime: str

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())


class Model:
    """A loaded bundle with the properties that sentence-transformers' models have. Use one of its subclasses."""

    default_huggingface_organization: ClassVar[str]
    _task: ClassVar[Task]

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        modules: None,
        device: str | None,
        prompts: Mapping[str, str] | None,
        default_prompt_name: str | None,
        cache_folder: str | None,
        trust_remote_code: bool,
        revision: str | None,
        local_files_only: bool,
        token: bool | str | None,
        model_kwargs: Mapping[str, Any] | None,
        processor_kwargs: Mapping[str, Any] | None,
        config_kwargs: Mapping[str, Any] | None,
        model_card_data: None,
        backend: Literal["onnx", "torch"],
        dtype: str | None,
        threads: int | None,
    ) -> None:
        refused = {
            "modules": modules,
            "model_kwargs": model_kwargs,
            "processor_kwargs": processor_kwargs,
            "config_kwargs": config_kwargs,
            "model_card_data": model_card_data,
        }
        for name, value in refused.items():
            if value:
                raise UnsupportedError(
                    f"{name} changes how the PyTorch model is built, and a bundle is built already. Apply it to the "
                    "checkpoint and export that; for the precision use dtype='...'."
                )
        if trust_remote_code:
            logger.warning("trust_remote_code=True has no effect: stonnx never runs code from a model repository.")
        directory = find_bundle(
            model_name_or_path,
            task=self._task,
            dtype=dtype,
            cache_folder=cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME"),
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        self._engine = Engine(directory, device=device, threads=threads)
        manifest = self._engine.manifest
        if manifest.task != self._task:
            raise InvalidArgumentError(
                f"{directory} is a bundle for the task {manifest.task!r}. Load it with "
                f"stonnx.{_CLASS_OF_TASK[manifest.task]}, not with {type(self).__name__}."
            )
        self.prompts: dict[str, str] = self._initial_prompts() | dict(manifest.prompts) | dict(prompts or {})
        self.default_prompt_name = manifest.default_prompt_name if default_prompt_name is None else default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InvalidArgumentError(
                f"default_prompt_name {self.default_prompt_name!r} is not among the prompts: {list(self.prompts)}."
            )

    def _initial_prompts(self) -> dict[str, str]:
        return {"query": "", "document": ""}

    @property
    def info(self) -> ModelInfo:
        """What is running: directory, source, precision, device, threads, onnxruntime version."""
        manifest, session = self._engine.manifest, self._route.session
        return ModelInfo(
            directory=str(self._engine.directory),
            source=manifest.source.name,
            task=manifest.task,
            architecture=manifest.architecture,
            precision=manifest.precision,
            device=session.device,
            threads=session.threads,
            onnxruntime=session.version,
        )

    @property
    def device(self) -> str:
        """The device that the model runs on."""
        return self._route.session.device

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The ``tokenizers.Tokenizer``, with the model's own truncation and no padding."""
        return self._route.tokenizer.backend

    @property
    def max_seq_length(self) -> int | None:
        """Texts are cut to this many tokens, special tokens included. It can be set, up to the model's positions."""
        return self._route.tokenizer.max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        for route in self._engine.routes:
            route.tokenizer.max_seq_length = value

    def get_max_seq_length(self) -> int | None:
        """Old name of :attr:`max_seq_length`."""
        return self.max_seq_length

    def get_backend(self) -> str:
        """Always ``"onnx"``."""
        return "onnx"

    def get_model_kwargs(self) -> list[str]:
        """Further keyword arguments that ``encode`` takes for this model: none."""
        return []

    @property
    def modalities(self) -> list[str]:
        """What the model reads: text."""
        return ["text"]

    def supports(self, modality: str) -> bool:
        """Whether the model reads a modality."""
        return modality in self.modalities

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.info})"

    @property
    def _route(self) -> LoadedRoute:
        return self._engine.route()

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        if prompt is not None:
            if prompt_name is not None:
                logger.warning("Both prompt and prompt_name were given: prompt_name=%r is ignored.", prompt_name)
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return None
        if name not in self.prompts:
            raise InvalidArgumentError(f"prompt_name {name!r} is not among the prompts: {list(self.prompts)}.")
        return self.prompts[name]

    def _excluded_prompt(self, route: LoadedRoute, prompt: str | None) -> int:
        """Tokens of the prompt that the pooling leaves out: only models with include_prompt=False leave out any."""
        if not prompt or "prompt_length" not in route.session.inputs:
            return 0
        return route.tokenizer.prompt_length(prompt)

    def _check_call(self, batch_size: int, device: str | None, unknown: Mapping[str, Any]) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size <= 0:
            raise InvalidArgumentError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if device is not None and str(device) != self.device:
            raise UnsupportedError(
                f"This model was loaded for {self.device!r} and cannot move to {device!r} for one call. "
                f"Load it again with device={device!r}."
            )
        if unknown:
            raise InvalidArgumentError(
                f"{type(self).__name__} does not take the argument{'s' * (len(unknown) > 1)} {', '.join(unknown)}."
            )
