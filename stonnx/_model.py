"""What the three model classes share: loading, prompts, limits, and the checks of a call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import tokenizers

from stonnx._bundle import CLASS_OF_TASK, MANIFEST_NAME, FileEntry, Task
from stonnx._cpus import available_cpus
from stonnx._engine import Engine, LoadedRoute
from stonnx._errors import BundleIntegrityError, InvalidArgumentError, ModelNotFoundError, UnsupportedError
from stonnx._hub import find_bundle
from stonnx._inputs import is_batch, parse_inputs
from stonnx._pool import Pool, borrowed, check_chunk_size, run_in_pool, start_pool, stop_pool, thread_shares
from stonnx._progress import progress_bar

logger = logging.getLogger("stonnx")

# As many CPU processes as sentence-transformers starts, where there are that many CPUs.
_POOL_PROCESSES = 4

_T = TypeVar("_T")


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
        if backend not in ("onnx", "torch"):
            raise UnsupportedError(f"backend {backend!r} is not known. A bundle runs with 'onnx'; leave backend out.")
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
        # What pickling keeps of the engine. Resolved: another process may have another working directory.
        self._directory, self._device, self._threads = directory.resolve(), device, threads
        self._engine = Engine(directory, device=device, threads=threads)
        manifest = self._engine.manifest
        if manifest.task != self._task:
            raise InvalidArgumentError(
                f"{directory} is a bundle for the task {manifest.task!r}. Load it with "
                f"stonnx.{CLASS_OF_TASK[manifest.task]}, not with {type(self).__name__}."
            )
        self.prompts: dict[str, str] = self._initial_prompts() | dict(manifest.prompts)
        for name, prompt in dict(prompts or {}).items():
            # None stands for the model's own prompt, where it has one.
            self.prompts[name] = self.prompts.get(name, "") if prompt is None else prompt
        self.default_prompt_name = manifest.default_prompt_name if default_prompt_name is None else default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InvalidArgumentError(
                f"default_prompt_name {self.default_prompt_name!r} is not among the prompts: {list(self.prompts)}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """The path and the options of the model, for pickle: the weights stay in the bundle."""
        state = {name: value for name, value in self.__dict__.items() if name != "_engine"}
        return state | {"_files": self._engine.manifest.files, "_max_seq_lengths": self._max_seq_lengths()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the model from the bundle that it was pickled with.

        Raises:
            ModelNotFoundError: The bundle is not there, as on another machine.
            BundleIntegrityError: There is another bundle by now.
        """
        own = dict(state)
        files, lengths = own.pop("_files"), own.pop("_max_seq_lengths")
        self.__dict__.update(own)
        if not (self._directory / MANIFEST_NAME).is_file():
            raise ModelNotFoundError(
                f"{self._directory} is no bundle here. A pickled model is the path of its bundle and its options: copy "
                "the bundle there, or load the model by the path that it has here."
            )
        self._engine = Engine(self._directory, device=self._device, threads=self._threads)
        if self._engine.manifest.files != files:
            raise BundleIntegrityError(
                f"{self._directory} is another bundle than when the model was pickled, or its pool started. "
                "Load the model again."
            )
        self._set_max_seq_lengths(lengths)

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> Pool:
        """Start processes that encode together, each with a model of its own from the same bundle.

        It pays for many texts. The first process that calls it must be guarded by ``if __name__ == "__main__":`` in
        the main script, because the new processes import that script.

        Args:
            target_devices: One process is started for each, ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 8``. None: for a
                model on the CPU as many processes as there are CPUs, at most 4; for one on a GPU one process there.
                Processes share the CPUs: each has an equal part of them as threads, whatever ``threads`` the model has.

        Returns:
            What the ``pool`` of the other methods takes. Its ``"processes"`` are the processes.

        Raises:
            InvalidArgumentError: ``target_devices`` is no list of devices.
            PoolError: A process ended before it was ready.

        Example:
            >>> pool = model.start_multi_process_pool()  # doctest: +SKIP
            >>> embeddings = model.encode(texts, pool=pool)  # doctest: +SKIP
            >>> model.stop_multi_process_pool(pool)  # doctest: +SKIP
        """
        cpus = available_cpus()
        if target_devices is None:
            devices = ["cpu"] * min(_POOL_PROCESSES, cpus) if self.device == "cpu" else [self.device]
        elif isinstance(target_devices, list | tuple) and target_devices:
            devices = [str(device) for device in target_devices]
        else:
            raise InvalidArgumentError(
                f"The devices of a pool must be a list with at least one, as ['cpu', 'cpu']; got {target_devices!r}."
            )
        logger.info("Starting a pool of processes on: %s", ", ".join(devices))
        state, threads = self.__getstate__(), thread_shares(cpus, len(devices))
        states = [
            (device, state | {"_device": device, "_threads": count})
            for device, count in zip(devices, threads, strict=True)
        ]
        return start_pool(type(self), states, threads)

    @staticmethod
    def stop_multi_process_pool(pool: Pool) -> None:
        """Stop the processes of a pool. A call that uses it in another thread raises PoolError."""
        stop_pool(pool)

    def _infer(
        self,
        compute: Callable[..., _T],
        texts: Sequence[Any],
        *arguments: Any,
        show: bool | None,
        pool: Pool | None,
        device: str | list[str] | None,
        chunk_size: int | None,
    ) -> list[_T]:
        """``compute(texts, *arguments, show)``, a method of this model, here or in pieces in the processes of a pool.

        Returns:
            The results in the order of the texts: one where it is done here, one for each chunk with a pool or a list
            of devices, none where there are no texts.
        """
        if pool is None and not isinstance(device, list):
            return [compute(texts, *arguments, show)] if texts else []
        check_chunk_size(chunk_size)
        if not texts:
            return []
        identity = (self._engine.manifest.files, self._max_seq_lengths())
        call = (*identity, compute.__name__, arguments)
        with (
            borrowed(pool, lambda: self.start_multi_process_pool(device if isinstance(device, list) else None)) as used,
            progress_bar(len(texts), show) as advance,
        ):
            return run_in_pool(used, "_infer_chunk", texts, call, chunk_size=chunk_size, advance=advance)

    def _infer_chunk(
        self,
        texts: Sequence[Any],
        files: Mapping[str, FileEntry],
        max_seq_lengths: Sequence[int | None],
        method: str,
        arguments: tuple[Any, ...],
    ) -> Any:
        """What a process of a pool does for :meth:`_infer`."""
        if files != self._engine.manifest.files:
            raise InvalidArgumentError(
                f"This pool was started by another model, {self._engine.manifest.source.name} from {self._directory}. "
                "Start one with start_multi_process_pool() of the model that uses it."
            )
        self._set_max_seq_lengths(max_seq_lengths)
        return getattr(self, method)(texts, *arguments, False)

    def _max_seq_lengths(self) -> list[int | None]:
        return [route.tokenizer.max_seq_length for route in self._engine.routes]

    def _set_max_seq_lengths(self, lengths: Sequence[int | None]) -> None:
        for route, length in zip(self._engine.routes, lengths, strict=True):
            if route.tokenizer.max_seq_length != length:
                route.tokenizer.max_seq_length = length

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

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """What the network reads of some texts.

        Args:
            inputs: Texts or pairs of texts.
            prompt: A text to put in front of each.
            **kwargs: ``task="query"`` or ``"document"`` picks the route of a model that has several.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the network takes them, ``token_type_ids``: int64 arrays
            [texts, longest], padded on the right; ``modality``; with a prompt, its ``prompt_length`` in tokens.
        """
        task = kwargs.pop("task", None)
        if kwargs:
            raise InvalidArgumentError(f"preprocess does not take {', '.join(kwargs)}. Allowed: task.")
        texts, _ = parse_inputs(list(inputs), prompt)
        if not texts:
            return {}
        route = self._engine.route(task)
        tokens = route.tokenizer.pad(route.tokenizer.encode(texts))
        features: dict[str, Any] = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        if "token_type_ids" in route.session.inputs:
            types = tokens.token_type_ids
            features["token_type_ids"] = np.zeros_like(tokens.input_ids) if types is None else types
        features["modality"] = "text"
        if prompt:
            features["prompt_length"] = route.tokenizer.prompt_length(prompt)
        return features

    def tokenize(self, texts: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
        """Old name of :meth:`preprocess`."""
        return self.preprocess(texts, **kwargs)

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether an argument is one input rather than a batch."""
        return not is_batch(inputs)

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

    def _check_call(self, batch_size: int, device: str | list[str] | None, unknown: Mapping[str, Any]) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size <= 0:
            raise InvalidArgumentError(f"batch_size must be a positive integer, got {batch_size!r}.")
        if device is not None and not isinstance(device, list) and str(device) != self.device:
            raise UnsupportedError(
                f"This model was loaded for {self.device!r} and cannot move to {device!r} for one call. "
                f"Load it again with device={device!r}."
            )
        if unknown:
            raise InvalidArgumentError(
                f"{type(self).__name__} does not take the argument{'s' * (len(unknown) > 1)} {', '.join(unknown)}."
            )
