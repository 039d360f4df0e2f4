"""Late interaction (ColBERT): ``MultiVectorEncoder``, with the API of sentence-transformers 6."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal

from stonnx._arguments import check_choice, described
from stonnx._device.device_options import DeviceOptions
from stonnx._engine.call import TooLong
from stonnx._engine.request import Request
from stonnx._errors import InvalidArgumentError
from stonnx._model.embedding_model import EmbeddingModel, encode_for
from stonnx._model.modality_errors import naming_modalities
from stonnx._model.old_arguments import accept_old_arguments
from stonnx._model.pool import Pool
from stonnx._model.processing import take_limit
from stonnx._results.token_pooling import BaseTokenPooling, HierarchicalTokenPooling, TensorTokenPooling
from stonnx._results.token_rows import Finish, KeptRows, RowFeatures, TokenRows
from stonnx._tasks import TASKS
from stonnx._text.inputs import parse_inputs

logger = logging.getLogger("stonnx")


class MultiVectorEncoder(EmbeddingModel):
    """Text to a vector for each token, from a bundle. Queries and documents are compared by MaxSim.

    Args:
        model_name_or_path: The directory of a bundle, or a Hub id. A checkpoint without a bundle is exported on first
            use if the exporter is installed: one of sentence-transformers 6, of PyLate, or of Stanford's ColBERT.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"``, ``"tensorrt:1"`` or ``"openvino"``: the model runs
            there, or DeviceError is raised. None: CUDA if it works, otherwise the CPU, and :attr:`info` says why.
        prompts: Texts to put before each input, by name. They win over those of the model, which has its markers of
            queries and documents there.
        default_prompt_name: The prompt that :meth:`encode` uses unless the call names another.
        cache_folder: The directory for downloads. None: the Hugging Face cache.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never ask the network.
        token: Hub token.
        similarity_fn_name: ``"maxsim"`` or ``"meanmaxsim"``. None: the model's own.
        dtype: The recipe for an export on first use; with an existing bundle, the recipe it must have.
        threads: Threads that run the graph on the CPU. None: as many as the CPUs that this process may use.
        max_batch_tokens: The most tokens of a run, padding included, whatever ``batch_size`` says. Only a single text
            may have more. None: no such bound.
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
        >>> model = MultiVectorEncoder("answerai-colbert-small-v1-fp32")  # doctest: +SKIP
        >>> queries = model.encode_query(["What is the capital of France?"])  # doctest: +SKIP
        >>> documents = model.encode_document(["Paris is its capital.", "He plays chess."])  # doctest: +SKIP
        >>> model.similarity(queries, documents)  # doctest: +SKIP
        array([[30.1, 27.3]], dtype=float32)
    """

    _task = "multivector"
    SUPPORTED_SIMILARITY_FN_NAMES = ("maxsim", "meanmaxsim")
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
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: None = None,
        backend: Literal["onnx", "torch"] = "onnx",
        similarity_fn_name: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        too_long: TooLong = "truncate",
        device_options: DeviceOptions | None = None,
    ) -> None:
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
        self.similarity_fn_name = manifest.similarity_fn_name if similarity_fn_name is None else similarity_fn_name
        self._poolings = tuple(
            HierarchicalTokenPooling(
                spec.pool_factor,
                num_protected_tokens=spec.num_protected_tokens,
                normalize_embeddings=spec.normalize_embeddings,
                tasks=spec.tasks,
            )
            for spec in manifest.token_poolings
        )

    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["token_embeddings"] | None = "token_embeddings",
        convert_to_numpy: bool = False,
        device: str | list[str] | None = None,
        normalize_embeddings: bool = False,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        token_pooling: BaseTokenPooling | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The vectors of texts, one for each token.

        Use :meth:`encode_query` and :meth:`encode_document` for search: they put the model's markers before the texts.

        Args:
            inputs: A text, or a list, tuple or array of texts.
            prompt_name: Name of the prompt to put before each text.
            prompt: The prompt itself; wins over ``prompt_name``.
            batch_size: Size of a run in units of 16 padded tokens, 256 on a GPU: 32 stands for at most 512 tokens on
                the CPU. Results do not depend on it.
            show_progress_bar: None shows it when the logger ``stonnx`` is at INFO or DEBUG.
            output_value: ``"token_embeddings"``, or None for a dict of everything for each text: its ids, all vectors,
                and in ``attention_mask`` which of them count.
            convert_to_numpy: Accepted; results are always numpy arrays.
            device: None, or the device that the model was loaded for. A list of devices encodes in one process for
                each of them, started for this call; :meth:`start_multi_process_pool` starts them for many calls.
            normalize_embeddings: Scale vectors to length 1.
            pool: Encode in the processes that :meth:`start_multi_process_pool` started; ``device`` is not used then.
            chunk_size: Texts that a process gets at a time. None: a tenth of its share, at most 5,000.
            token_pooling: Makes fewer vectors of a text's, as
                :class:`~stonnx.multi_vector_encoder.modules.HierarchicalTokenPooling`, if it is for such texts. One
                of sentence-transformers, which gets and gives tensors, works too.
            task: ``"query"`` or ``"document"``. None: the model's limit of all texts, and the skiplist of documents.
            too_long: How to treat a text of more tokens than the model reads: ``"truncate"``, ``"warn"`` or
                ``"error"``. None: :attr:`too_long`.
            processing_kwargs: Arguments of the tokenizer for this call: ``{"text": {"max_length": 256}}`` and
                ``{"text": {"truncation": False}}`` are followed.

        Returns:
            A list with a float32 array [rows, dimension] for each text, of unequal length; the array itself for a
            single text.

        Raises:
            InvalidInputError: An input is not a text; ``.index`` says which.
            InvalidArgumentError: An argument is outside what is allowed.
            TextTooLongError: A text is too long, and ``too_long`` is ``"error"``.
            RunError: A run failed, usually because memory ran out.
            PoolError: A process of the pool died, or the pool was stopped.
        """
        inputs, task = self._take_task(inputs, task, kwargs)
        limit, too_long = take_limit(kwargs, self._tokenizer_spec(task), task, kwargs.pop("too_long", None))
        if "convert_to_tensor" in kwargs:
            raise InvalidArgumentError(
                f"{type(self).__name__}.encode() has no `convert_to_tensor`: texts have unequal numbers of vectors, so "
                "there is nothing to stack. Leave it out: encoding returns a list of arrays."
            )
        batch_size = self._check_call(batch_size, device if pool is None else None, too_long, kwargs)
        if output_value not in ("token_embeddings", None):
            raise InvalidArgumentError(
                f"output_value {output_value!r} is not known. Allowed: 'token_embeddings', None."
            )
        if task is not None:
            check_choice("task", task, ("query", "document"))
        token_pooling = self._checked_pooling(token_pooling, task)
        prompt = self._resolve_prompt(prompt, prompt_name)
        with naming_modalities(self, inputs):
            texts, single = parse_inputs(inputs, prompt, self._chat(task))
        finish = Finish(self._poolings, normalize_embeddings and output_value is not None, token_pooling)
        everything = output_value is None
        request: Request[list[Any]] = Request(
            texts,
            [self._row.output, str(self._row.row_mask)],
            RowFeatures(finish) if everything else TokenRows(finish),
            prompt,
            task,
            reduce=None if everything else KeptRows(),
            batch_size=batch_size,
            too_long=self.too_long if too_long is None else too_long,
            limit=limit,
        )
        items = self._infer(request, show=show_progress_bar, pool=pool, device=device, chunk_size=chunk_size) or []
        return items[0] if single else items

    encode_query = encode_for("query", encode, "The model's expansion of queries is applied.")
    encode_document = encode_for(
        "document",
        encode,
        "Texts are cut to the model's length of documents, and words of its skiplist have no vector.",
    )

    def _checked_pooling(self, pooling: Any, task: str | None) -> BaseTokenPooling | None:
        if pooling is None:
            return None
        if isinstance(pooling, BaseTokenPooling):
            checked = pooling
        elif callable(getattr(pooling, "pool_one", None)) and callable(getattr(pooling, "applies_to", None)):
            checked = TensorTokenPooling(pooling)
        else:
            raise InvalidArgumentError(
                f"token_pooling must be one of stonnx.multi_vector_encoder.modules, got {described(pooling)}."
            )
        if self._poolings and checked.applies_to(task):
            logger.warning(
                "token_pooling is compounding with the model's own pooling: it pools the vectors that are left once "
                "more. Leave it out to have the model's own pooling alone."
            )
        return checked

    def _finish(self) -> Finish:
        return Finish(self._poolings)

    def similarity(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Any:
        """The score of every query with every document, by :attr:`similarity_fn_name`.

        Args:
            embeddings1: Queries, as :meth:`encode_query` returns them, or [texts, rows, dimension] padded with zeros.
            embeddings2: Documents, in the same forms.
            **kwargs: Further arguments of :func:`stonnx.util.maxsim`, such as ``length_normalize``.

        Returns:
            float32 array [queries, documents]; a torch tensor if one was passed.
        """
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_fn(self.similarity_fn_name)(embeddings1, embeddings2, **kwargs)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any, **kwargs: Any) -> Any:
        """The score of ``embeddings1[i]`` with ``embeddings2[i]``: float32 array [pairs]."""
        from stonnx.util import SimilarityFunction

        return SimilarityFunction.to_similarity_pairwise_fn(self.similarity_fn_name)(embeddings1, embeddings2, **kwargs)

    def get_embedding_dimension(self) -> int | None:
        """Number of dimensions of the vectors."""
        return self._engine.manifest.embedding_dimension
