"""The common part of the three model classes: loading, prompts, limits, and the checks of a call."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_choice, check_integer, check_no_more, check_prompts, check_text, check_texts
from stonnx._bundle.bundle import open_bundle
from stonnx._bundle.manifest import TokenizerSpec
from stonnx._bundle.replaced import is_bundle
from stonnx._device.device_options import DeviceOptions
from stonnx._engine.call import TooLong
from stonnx._engine.engine import Engine
from stonnx._engine.request import ImageRequest, Request, run_images, run_request
from stonnx._engine.route import LoadedRoute
from stonnx._engine.stats import CallStats, Counters
from stonnx._errors import BundleIntegrityError, InvalidArgumentError, ModelNotFoundError, UnsupportedError
from stonnx._hub.find import find_bundle
from stonnx._images.pixels import sendable
from stonnx._limits import Limits
from stonnx._model.call import is_same_device, warn_of_truncation
from stonnx._model.compatibility import Compatibility, refuse_torch_arguments
from stonnx._model.info import ModelInfo
from stonnx._model.modality_errors import naming_modalities
from stonnx._model.pool import Pool, check_chunk_size
from stonnx._model.pooled import Pooled
from stonnx._model.processing import take_limit
from stonnx._model.serving import Servable
from stonnx._progress import progress_bar
from stonnx._tasks import TASKS, Task, TaskRow
from stonnx._text.chat import Chat
from stonnx._text.inputs import parse_inputs
from stonnx._text.messages import is_message

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger("stonnx")

_Result = TypeVar("_Result")
_Kind = TypeVar("_Kind", bound="Model")


def with_limits(kind: type[_Kind], **limits: Any) -> type[_Kind]:
    """A model class with other :class:`stonnx._limits.Limits`, for tests and measurements.

    Example:
        >>> from stonnx import SentenceTransformer
        >>> Hasty = with_limits(SentenceTransformer, tokens_before_second_session=0)
    """
    return type(kind.__name__, (kind,), {"_limits": replace(kind._limits, **limits)})


class Model(Pooled, Servable, Compatibility):
    """A loaded bundle with the properties that sentence-transformers' models have. Use one of its subclasses."""

    default_huggingface_organization: ClassVar[str | None]
    _task: ClassVar[Task]
    # A subclass may have others, as tests do.
    _limits: ClassVar[Limits] = Limits()

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
        max_batch_tokens: int | None,
        too_long: TooLong,
        device_options: DeviceOptions | None,
    ) -> None:
        check_choice("too_long", too_long, get_args(TooLong))
        max_batch_tokens = check_integer("max_batch_tokens", max_batch_tokens, optional=True)
        check_text("default_prompt_name", default_prompt_name)
        check_prompts(prompts)
        refuse_torch_arguments(
            modules=modules,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            model_card_data=model_card_data,
            backend=backend,
            trust_remote_code=trust_remote_code,
        )
        bundle = find_bundle(
            model_name_or_path,
            task=self._task,
            dtype=dtype,
            cache_folder=cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME"),
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        manifest = bundle.manifest
        if manifest.task != self._task:
            raise InvalidArgumentError(
                f"{bundle.directory} is a bundle for the task {manifest.task!r}. Load it with "
                f"stonnx.{TASKS[manifest.task].class_name}, not with {type(self).__name__}."
            )
        self.too_long = too_long
        # Pickling keeps these options. The path is resolved: another process may have another working directory.
        self._directory = bundle.directory.resolve()
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "max_batch_tokens": max_batch_tokens,
            "device_options": device_options,
        }
        self._engine, self._last = Engine(bundle, **self._options, limits=self._limits), threading.local()
        # Every model of vectors has these two, as in sentence-transformers.
        empty = {} if self._row.gives_labels else {"query": "", "document": ""}
        self.prompts: dict[str, str] = empty | dict(manifest.prompts)
        for name, prompt in (prompts or {}).items():
            # None stands for the model's own prompt, if it has one.
            self.prompts[name] = self.prompts.get(name, "") if prompt is None else prompt
        self.default_prompt_name = manifest.default_prompt_name if default_prompt_name is None else default_prompt_name
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InvalidArgumentError(
                f"Default prompt name {self.default_prompt_name!r} not found in the configured prompts dictionary "
                f"with keys {list(self.prompts)}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """The path and the options of the model, for pickle: the weights stay in the bundle."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_last")}
        return state | {"_bundle": self._engine.bundle.identity, "_max_seq_lengths": self._engine.max_seq_lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the model from the bundle that it was pickled with.

        Raises:
            ModelNotFoundError: The bundle is missing, for example on another machine.
            BundleIntegrityError: Another bundle has taken its place.
        """
        own = dict(state)
        identity, lengths = own.pop("_bundle"), own.pop("_max_seq_lengths")
        self.__dict__.update(own)
        if not is_bundle(self._directory):
            raise ModelNotFoundError(
                f"{self._directory} is not a bundle here. A pickled model is the path of its bundle and its options: "
                "copy the bundle there, or load the model by the path that it has here."
            )
        bundle = open_bundle(self._directory)
        if bundle.identity != identity:
            raise BundleIntegrityError(
                f"{self._directory} is another bundle than when the model was pickled, or its pool started. "
                "Load the model again."
            )
        self._engine, self._last = Engine(bundle, **self._options, limits=self._limits), threading.local()
        self._engine.max_seq_lengths = lengths

    def _infer(
        self,
        request: Request[_Result],
        *,
        show: bool | None,
        pool: Pool | None,
        device: str | list[str] | None,
        chunk_size: int | None,
    ) -> _Result | None:
        """The result of a request, from this process or from a pool. None if the request has no texts."""
        texts = request.texts
        counters, result = Counters(len(texts)), None
        if pool is None and not isinstance(device, list):
            if texts:
                with progress_bar(len(texts), show, self._row.unit) as advance:
                    result, counters = run_request(self._engine, request, advance)
        else:
            chunk_size = check_chunk_size(chunk_size)
            if not texts:
                return None
            with self._pool_of(pool, device) as used:
                assert used is not None
                sent = replace(request, texts=())
                replies = self._replies(sent, texts, unit=self._row.unit, show=show, pool=used, chunk_size=chunk_size)
            counters.add_parts([part for _, part in replies])
            result = request.collect.join([part for part, _ in replies])
        counters.finish()
        self._last.counters = counters
        if request.too_long == "warn":
            stats = counters.stats()
            warn_of_truncation(stats.truncated, stats.texts)
        return result

    def _infer_images(
        self, request: ImageRequest, *, show: bool | None, pool: Pool | None, chunk_size: int | None
    ) -> npt.NDArray[np.float32]:
        """The vectors of images, from this process or from a pool."""
        if pool is None:
            with progress_bar(len(request.images), show, "image") as advance:
                return run_images(self._engine, request, advance)
        images = [(place, sendable(image, place)) for place, image in request.images]
        sent = replace(request, images=())
        return np.concatenate(self._replies(sent, images, unit="image", show=show, pool=pool, chunk_size=chunk_size))

    @property
    def info(self) -> ModelInfo:
        """Directory, source, precision, form, device and why not a better one, threads, and version of the model."""
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
            form=session.form,
            kernels=session.kernels,
            fallbacks=session.fallbacks,
        )

    @property
    def last_stats(self) -> CallStats | None:
        """Counts of this thread's last call: tokens, padding, truncated texts, times. None before the first call."""
        counters: Counters | None = getattr(self._last, "counters", None)
        return None if counters is None else counters.stats()

    @property
    def too_long(self) -> TooLong:
        """How to treat a text of more tokens than the model reads, unless a call says something else.

        ``"truncate"`` cuts it, ``"warn"`` cuts it and logs which texts were cut, ``"error"`` raises TextTooLongError.
        """
        return self._too_long

    @too_long.setter
    def too_long(self, value: TooLong) -> None:
        check_choice("too_long", value, get_args(TooLong))
        self._too_long = value

    def count_tokens(self, inputs: Any, prompt: str | None = None, *, task: str | None = None) -> Any:
        """The number of tokens of each whole text, including those that the model would cut off.

        Args:
            inputs: A text or a pair of texts, or a list of them.
            prompt: A text to put before each.
            task: ``"query"`` or ``"document"`` picks the route of a model that has several.

        Returns:
            int64 array [texts], special tokens included; an int for a single text.

        Example:
            >>> counts = model.count_tokens(texts)  # doctest: +SKIP
            >>> long = np.flatnonzero(counts > model.max_seq_length)  # doctest: +SKIP
        """
        texts, single = parse_inputs(inputs, prompt, self._chat(task))
        counts = self._engine.route_of_call(task).tokenizer.count(texts)
        return int(counts[0]) if single else counts

    def warmup(self) -> None:
        """Do the work that the first calls would otherwise do first, so that they are as fast as later ones.

        It loads the second session that large calls use on the CPU, and runs the shortest and the longest texts.
        """
        for route in self._engine.routes:
            route.warmup()

    def trim(self) -> None:
        """Give back memory that earlier calls needed and nothing needs now. Later calls take it again."""
        self._engine.trim()

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
        return self._route.limit

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        for route in self._engine.routes:
            route.tokenizer.max_seq_length = value

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The network's input for some texts.

        Args:
            inputs: Texts or pairs of texts.
            prompt: A text to put before each.
            **kwargs: ``task="query"`` or ``"document"`` picks the route of a model that has several, and the limits of
                such texts. ``processing_kwargs`` have a limit for this call.

        Returns:
            ``input_ids``, ``attention_mask`` and, if the network takes them, ``token_type_ids``: int64 arrays
            [texts, longest], padded on the right; ``modality``; with a prompt, its ``prompt_length`` in tokens, unless
            a chat template has a place for it. ``query_expansion_positions``: where tokens fill up queries, bool.
        """
        task = kwargs.pop("task", None)
        limit, _ = take_limit(kwargs, self._tokenizer_spec(task), task, None)
        if kwargs:
            raise InvalidArgumentError(
                f"preprocess does not take {', '.join(kwargs)}. Allowed: task, processing_kwargs."
            )
        # Here, a message is an input, also at the beginning of a list.
        inputs = [[item] if is_message(item) else item for item in check_texts("inputs", inputs)]
        chat = self._chat(task)
        with naming_modalities(self, inputs, are_many=True):
            texts, _ = parse_inputs(inputs, prompt, chat)
        if not texts:
            return {}
        route = self._engine.route_of_call(task)
        tokenizer = route.tokenizer_of(task, limit)
        tokens = tokenizer.pad(tokenizer.encode(texts))
        features: dict[str, Any] = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        if "token_type_ids" in route.session.inputs:
            types = tokens.token_type_ids
            features["token_type_ids"] = np.zeros_like(tokens.input_ids) if types is None else types
        if tokens.own is not None:
            features["query_expansion_positions"] = tokens.filling(route.query_rows(task) or 0)
        features["modality"] = "text" if chat is None else "message"
        if prompt and chat is None:
            features["prompt_length"] = route.tokenizer.prompt_length(prompt)
        return features

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.info})"

    @property
    def _row(self) -> TaskRow:
        return TASKS[self._task]

    @property
    def _route(self) -> LoadedRoute:
        return self._engine.route()

    def _chat(self, task: str | None = None) -> Chat | None:
        """The chat template of the route of a call; None if there is none, or no such route, as the run will say."""
        route = self._engine.named_routes.get(task, self._route) if isinstance(task, str) else self._route
        return None if route.tokenizer.chat is None else route.tokenizer.chat.of(task)

    def _tokenizer_spec(self, task: str | None = None) -> TokenizerSpec:
        """The settings of the tokenizer of the route of a call, or of the default one."""
        route = self._engine.named_routes.get(task, self._route) if isinstance(task, str) else self._route
        return route.spec.tokenizer

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        if prompt is not None:
            if prompt_name is not None:
                logger.warning(
                    "Provide either a `prompt`, a `prompt_name`, or neither, but not both. "
                    "Ignoring the `prompt_name` in favor of `prompt`."
                )
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        check_text("prompt_name", name)
        if name is None:
            return None
        if name not in self.prompts:
            raise InvalidArgumentError(
                f"Prompt name {name!r} not found in the configured prompts dictionary with keys {list(self.prompts)}."
            )
        return self.prompts[name]

    def _check_call(
        self, batch_size: int, device: str | list[str] | None, too_long: TooLong | None, unknown: Mapping[str, Any]
    ) -> int:
        """The batch size of a call as a Python integer, after the arguments that all calls have in common."""
        batch_size = check_integer("batch_size", batch_size)
        if too_long is not None:
            check_choice("too_long", too_long, get_args(TooLong))
        if device is not None and not isinstance(device, list) and not is_same_device(device, self.device):
            raise UnsupportedError(
                f"This model was loaded for {self.device!r} and cannot move to {device!r} for one call. "
                f"Load it again with device={device!r}."
            )
        method = "predict" if self._row.gives_labels else "encode"
        check_no_more(type(self).__name__, method, unknown, self.get_model_kwargs())
        return batch_size
