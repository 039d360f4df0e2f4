"""Dense embeddings: ``SentenceTransformer``, with the API of sentence-transformers 6."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer, check_texts
from stonnx._device.device_options import DeviceOptions
from stonnx._engine.call import TooLong
from stonnx._engine.request import ImageRequest, Request
from stonnx._errors import InvalidArgumentError, UnsupportedError
from stonnx._images.inputs import parse_mixed
from stonnx._model.embedding_model import EmbeddingModel, encode_for
from stonnx._model.images import image_features, image_rows, parse_for, refuse_images
from stonnx._model.modality_errors import naming_modalities, why_not
from stonnx._model.old_arguments import accept_old_arguments
from stonnx._model.pool import Pool, check_chunk_size
from stonnx._model.processing import take_limit
from stonnx._results.dense import PRECISIONS, Precision, Rows, finish_embeddings, finish_token_embeddings, to_torch
from stonnx._results.features import TokenFeatures
from stonnx._tasks import TASKS

logger = logging.getLogger("stonnx")


# Keywords of older versions of sentence-transformers.
_OLD_NAMES = {"sentences": "inputs"}


class SentenceTransformer(EmbeddingModel):
    """Text to dense vectors, from a bundle; images as well, if the model reads them.

    Args:
        model_name_or_path: The directory of a bundle, or a Hub id. A bare name belongs to ``sentence-transformers/``.
            A checkpoint without a bundle is exported on first use if the exporter is installed.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"``, ``"tensorrt:1"`` or ``"openvino"``: the model runs
            there, or DeviceError is raised. None: CUDA if it works, otherwise the CPU, and :attr:`info` says why.
        prompts: Texts to put before each input, by name. They win over those of the model.
        default_prompt_name: The prompt that :meth:`encode` uses unless the call names another.
        cache_folder: The directory for downloads. None: the Hugging Face cache.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never ask the network.
        token: Hub token.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``. None: the model's own.
        truncate_dim: Cut vectors to this many dimensions.
        dtype: The recipe for an export on first use; with an existing bundle, the recipe it must have.
        threads: Threads that run the graph on the CPU. None: as many as the CPUs that this process may use.
            Tokenization has threads of its own, which all models of a process share. To bound them to one, set the
            environment variable ``RAYON_NUM_THREADS=1`` before the first call, or ``TOKENIZERS_PARALLELISM=false``.
        max_batch_tokens: The most tokens of a run, padding included, whatever ``batch_size`` says. Only a single text
            may have more. It bounds the memory: each thread has one run at a time. None: no such bound.
        too_long: How to treat a text of more tokens than the model reads: ``"truncate"`` cuts it, ``"warn"`` cuts it
            and logs which were cut, ``"error"`` raises TextTooLongError.
        device_options: How to use the device. An option without a meaning on the device that you name is refused.
        modules, trust_remote_code, model_kwargs, processor_kwargs, config_kwargs, model_card_data, backend: Accepted so
            that code written for sentence-transformers runs; anything that would change the result is refused.

    Raises:
        ModelNotFoundError: No model has that name.
        BundleError: The bundle is damaged, or of a newer schema.
        DeviceError: The device does not work here.
        InvalidArgumentError: An argument is outside what is allowed.

    Example:
        >>> model = SentenceTransformer("all-MiniLM-L6-v2-fp32")  # doctest: +SKIP
        >>> model.encode(["The weather is lovely today.", "He drove to the stadium."]).shape  # doctest: +SKIP
        (2, 384)
    """

    _task = "embedding"
    default_huggingface_organization = TASKS[_task].organization

    @accept_old_arguments(renamed={"tokenizer_kwargs": "processor_kwargs"})
    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        modules: None = None,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        use_auth_token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: None = None,
        backend: Literal["onnx", "torch"] = "onnx",
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        too_long: TooLong = "truncate",
        device_options: DeviceOptions | None = None,
    ) -> None:
        if use_auth_token is not None:
            warnings.warn(
                "The `use_auth_token` argument is deprecated, use `token` instead.", FutureWarning, stacklevel=2
            )
            if token is not None:
                raise InvalidArgumentError(
                    "Both `token` and `use_auth_token` are specified. Please only specify the `token` argument."
                )
            token = use_auth_token
        super().__init__(
            model_name_or_path,
            modules=modules,
            device=device,
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            cache_folder=cache_folder,
            trust_remote_code=trust_remote_code,
            revision=revision,
            local_files_only=local_files_only,
            token=token,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            model_card_data=model_card_data,
            backend=backend,
            dtype=dtype,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            too_long=too_long,
            device_options=device_options,
        )
        manifest = self._engine.manifest
        self.truncate_dim = manifest.truncate_dim if truncate_dim is None else truncate_dim
        self.similarity_fn_name = manifest.similarity_fn_name if similarity_fn_name is None else similarity_fn_name

    @overload
    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding"] = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Any,
    ) -> npt.NDArray[Any]: ...

    @overload
    def encode(self, inputs: Any = ..., *arguments: Any, **options: Any) -> Any: ...

    # The last overload stands for all other calls, whose arguments the implementation checks.
    @accept_old_arguments(renamed=_OLD_NAMES)  # type: ignore[misc]
    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Precision = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Vectors of texts.

        Args:
            inputs: A text, or a list, tuple or array of texts. A pair of texts is one input of two segments. If
                :attr:`modalities` has ``image``, images too, as PIL images, arrays [height, width, 3] of uint8, paths,
                data URIs or ``{"image": ...}``, in any mixture with texts. They need pillow: ``stonnx[image]``.
            prompt_name: Name of the prompt to put before each text.
            prompt: The prompt itself; wins over ``prompt_name``.
            batch_size: Size of a run in units of 16 padded tokens, 256 on a GPU: 32 stands for at most 512 tokens on
                the CPU. Results do not depend on it.
            show_progress_bar: None shows it when the logger ``stonnx`` is at INFO or DEBUG.
            output_value: ``"sentence_embedding"``, ``"token_embeddings"`` (a list of [tokens, hidden]), or None for a
                dict of everything for each text.
            precision: ``"float32"``, or ``"int8"``, ``"uint8"``, ``"binary"``, ``"ubinary"`` to quantize the vectors.
                int8 and uint8 take their ranges from the texts of the call, of which there should be 100 or more.
            convert_to_numpy: False returns a list with one vector for each text.
            convert_to_tensor: Return a torch tensor; needs torch.
            device: None, or the device that the model was loaded for. A list of devices encodes in one process for
                each of them, started for this call; :meth:`start_multi_process_pool` starts them for many calls.
            normalize_embeddings: Scale vectors to length 1.
            truncate_dim: Cut vectors to this many dimensions.
            pool: Encode in the processes that :meth:`start_multi_process_pool` started; ``device`` is not used then.
            chunk_size: Texts that a process gets at a time. None: a tenth of its share, at most 5,000.
            too_long: How to treat a text of more tokens than the model reads: ``"truncate"``, ``"warn"`` or
                ``"error"``. None: :attr:`too_long`.
            processing_kwargs: Arguments of the tokenizer for this call: ``{"text": {"max_length": 256}}`` and
                ``{"text": {"truncation": False}}`` are followed.

        Returns:
            float32 array [texts, dim], or [dim] for a single text. No texts: ``np.array([])``, as the original does.

        Raises:
            InvalidInputError: An input is not a text or image; ``.index`` says which.
            MissingDependencyError: There are images, and pillow is not installed.
            InvalidArgumentError: An argument is outside what is allowed.
            TextTooLongError: A text is too long, and ``too_long`` is ``"error"``.
            RunError: A run failed, usually because memory ran out.
            PoolError: A process of the pool died, or the pool was stopped.
        """
        inputs, task = self._take_task(inputs, kwargs.pop("task", None), kwargs)
        too_long = kwargs.pop("too_long", None)
        limit, too_long = take_limit(kwargs, self._tokenizer_spec(task), task, too_long)
        batch_size = self._check_call(batch_size, device if pool is None else None, too_long, kwargs)
        if precision is not None and precision not in PRECISIONS:
            raise InvalidArgumentError(f"precision {precision!r} is not supported. Allowed: {', '.join(PRECISIONS)}.")
        if output_value not in ("sentence_embedding", "token_embeddings", None):
            raise InvalidArgumentError(
                f"output_value {output_value!r} is not known. Allowed: 'sentence_embedding', 'token_embeddings', None."
            )
        if output_value is None and precision not in (None, "float32"):
            raise InvalidArgumentError(
                f"output_value=None gives everything as it is, not in precision {precision!r}. Leave out precision, or "
                "ask for 'sentence_embedding' or 'token_embeddings'."
            )
        prompt = self._resolve_prompt(prompt, prompt_name)
        with naming_modalities(self, inputs):
            parsed = parse_for(self._engine, inputs, prompt, self._chat(task))
        refuse_images(parsed, output_value)
        texts, single = parsed.texts, parsed.single
        too_long = self.too_long if too_long is None else too_long
        where: dict[str, Any] = {"show": show_progress_bar, "pool": pool, "device": device, "chunk_size": chunk_size}
        width = check_integer("truncate_dim", truncate_dim, least=None, optional=True)  # below 1 as in the original
        width = self.truncate_dim if width is None else width
        if output_value == "sentence_embedding":
            rows = Rows(self._engine.manifest.embedding_dimension or 0)
            outputs = [self._row.output]
            request = Request(texts, outputs, rows, prompt, task, None, batch_size, too_long, limit)
            if parsed.images:
                check_chunk_size(chunk_size)
                with self._pool_of(pool, device) as used:
                    here: dict[str, Any] = {"show": show_progress_bar, "pool": used, "chunk_size": chunk_size}
                    embeddings: npt.NDArray[np.float32] | None = image_rows(
                        parsed,
                        rows.width,
                        lambda: self._infer(request, device=None, **here),
                        lambda images: self._infer_images(ImageRequest(images, batch_size), **here),
                    )
            else:
                embeddings = self._infer(request, **where)
            result: Any = np.array([])
            if embeddings is not None:
                result = finish_embeddings(embeddings, width, normalize_embeddings, precision)
            if convert_to_tensor:
                result = to_torch(result.astype(np.float32) if not len(parsed) else result)
            elif not convert_to_numpy:
                result = list(result)
            return result[0] if single else result
        outputs = [self._row.output]
        route = self._engine.route_of_call(task) if texts else self._route
        if "token_embeddings" in route.session.outputs:
            outputs.insert(0, "token_embeddings")
        elif output_value == "token_embeddings":
            raise UnsupportedError(
                "This model has no token_embeddings: its network gives a vector for the whole text only. Leave out "
                "output_value."
            )
        everything = Request(texts, outputs, TokenFeatures(), prompt, task, None, batch_size, too_long, limit)
        items: list[Any] = self._infer(everything, **where) or []
        if output_value == "token_embeddings":
            items = finish_token_embeddings([item["token_embeddings"] for item in items], precision)
        else:
            for item in items:
                item["sentence_embedding"] = item["sentence_embedding"][:width]
        return items[0] if single else items

    # Both have the arguments of `encode`, its types included.
    encode_query = encode_for("query", encode, renamed=_OLD_NAMES)
    encode_document = encode_for("document", encode, renamed=_OLD_NAMES)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The network's input for some texts: as for other models. Or for some images, if the model reads them.

        Returns:
            For images ``pixel_values``, float32 [images, 3, height, width], and ``modality``.

        Raises:
            UnsupportedError: There are texts and images.
        """
        if self._engine.manifest.image is not None:
            inputs = list(check_texts("inputs", inputs))
            with naming_modalities(self, inputs, are_many=True):
                features = image_features(self._engine.manifest.image, parse_mixed(inputs), why_not(self, inputs))
            if features is not None:
                return features
        return super().preprocess(inputs, prompt, **kwargs)

    def encode_multi_process(
        self,
        sentences: list[str],
        pool: Pool,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        chunk_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> npt.NDArray[Any]:
        """Old name of :meth:`encode` with a ``pool``."""
        warnings.warn(
            "encode_multi_process is deprecated, use encode with the same arguments instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        embeddings: npt.NDArray[Any] = self.encode(
            sentences,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            pool=pool,
            chunk_size=chunk_size,
        )
        return embeddings

    @property
    def truncate_dim(self) -> int | None:
        """Vectors are cut to this many dimensions. None: they keep all."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        self._truncate_dim = check_integer("truncate_dim", value, least=None, optional=True)

    def get_embedding_dimension(self) -> int | None:
        """Number of dimensions of the vectors, after ``truncate_dim``."""
        dimension = self._engine.manifest.embedding_dimension
        if self.truncate_dim is None or dimension is None:
            return self.truncate_dim if dimension is None else dimension
        return min(dimension, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int | None:
        """Old name of :meth:`get_embedding_dimension`."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Within this context, vectors are cut to ``truncate_dim`` dimensions."""
        before = self.truncate_dim
        self.truncate_dim = truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    @contextmanager
    def truncate_sentence_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Old name of :meth:`truncate_embeddings`."""
        with self.truncate_embeddings(truncate_dim):
            yield
