"""Sparse embeddings: ``SparseEncoder``, with the API of sentence-transformers 6 and scipy's arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer
from stonnx._device.device_options import DeviceOptions
from stonnx._engine.call import TooLong
from stonnx._engine.request import Collector, Request
from stonnx._errors import BundleFormatError, UnsupportedError
from stonnx._model.embedding_model import EmbeddingModel, encode_for
from stonnx._model.modality_errors import naming_modalities
from stonnx._model.old_arguments import accept_old_arguments
from stonnx._model.pool import Pool
from stonnx._model.processing import take_limit
from stonnx._results import sparse
from stonnx._tasks import TASKS
from stonnx._text.inputs import parse_inputs

# Keywords of older versions of sentence-transformers.
_OLD_NAMES = {"sentences": "inputs"}


class SparseEncoder(EmbeddingModel):
    """Text to sparse vectors, one dimension for each token of the vocabulary (SPLADE) or latent (CSR), from a bundle.

    The original returns a torch COO tensor; this returns a ``scipy.sparse.csr_array``, which needs
    ``pip install "stonnx[sparse]"``. Dense results and their similarity do not need scipy.

    Args:
        model_name_or_path: The directory of a bundle, or a Hub id. A bare name belongs to ``sparse-encoder/``.
            A checkpoint without a bundle is exported on first use if the exporter is installed.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"``, ``"tensorrt:1"`` or ``"openvino"``: the model runs
            there, or DeviceError is raised. None: CUDA if it works, otherwise the CPU, and :attr:`info` says why.
        prompts: Texts to put before each input, by name. They win over those of the model.
        default_prompt_name: The prompt that :meth:`encode` uses unless the call names another.
        cache_folder: The directory for downloads. None: the Hugging Face cache.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never ask the network.
        token: Hub token.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``. None: the model's own, or dot.
        max_active_dims: Keep only this many values of each vector, those of largest magnitude.
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
        >>> model = SparseEncoder("naver/splade-v3")  # doctest: +SKIP
        >>> embeddings = model.encode(["The weather is lovely today.", "He drove to the stadium."])  # doctest: +SKIP
        >>> embeddings.shape, embeddings.nnz  # doctest: +SKIP
        ((2, 30522), 96)
    """

    _task = "sparse"
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
        max_active_dims: int | None = None,
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
        if manifest.embedding_dimension is None:
            raise BundleFormatError(
                f"{self._engine.directory} has no embedding_dimension. Export the model again with: stonnx export"
            )
        self.similarity_fn_name = manifest.similarity_fn_name if similarity_fn_name is None else similarity_fn_name
        wanted = manifest.max_active_dims if max_active_dims is None else max_active_dims
        self.max_active_dims = self._check_active_dims(wanted) or self._active_dims_of_graph

    @overload
    def encode(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: Literal[True] = True,
        *,
        convert_to_sparse_tensor: Literal[False],
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
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: str | list[str] | None = None,
        max_active_dims: int | None = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Sparse vectors of texts.

        The call needs memory for the result, twice while it puts the parts together, and for one run in each thread,
        whose dense vectors take at most 8 MB, however many texts there are. A dense result is held only once.

        Args:
            inputs: A text, or a list, tuple or array of texts.
            prompt_name: Name of the prompt to put before each text.
            prompt: The prompt itself; wins over ``prompt_name``.
            batch_size: Size of a run in units of 16 padded tokens, 256 on a GPU: 32 stands for at most 512 tokens on
                the CPU. Results do not depend on it.
            show_progress_bar: None shows it when the logger ``stonnx`` is at INFO or DEBUG.
            convert_to_tensor: False returns a list with one vector for each text. No torch tensor is ever returned.
            convert_to_sparse_tensor: False returns dense numpy arrays instead of sparse ones.
            save_to_cpu: Accepted; results are always on the CPU.
            device: None, or the device that the model was loaded for. A list of devices encodes in one process for
                each of them, started for this call; :meth:`start_multi_process_pool` starts them for many calls.
            max_active_dims: Keep only this many values of each vector, those of largest magnitude; of equal ones the
                first. None: the model's :attr:`max_active_dims`.
            pool: Encode in the processes that :meth:`start_multi_process_pool` started; ``device`` is not used then.
            chunk_size: Texts that a process gets at a time. None: a tenth of its share, at most 5,000.
            too_long: How to treat a text of more tokens than the model reads: ``"truncate"``, ``"warn"`` or
                ``"error"``. None: :attr:`too_long`.
            processing_kwargs: Arguments of the tokenizer for this call: ``{"text": {"max_length": 256}}`` and
                ``{"text": {"truncation": False}}`` are followed.
            task: ``"query"`` or ``"document"``: which half of a model with a Router encodes. None: its default one.

        Returns:
            A float32 ``scipy.sparse.csr_array`` [texts, dim], or [dim] for a single text; with
            ``convert_to_sparse_tensor=False`` a float32 numpy array of that shape. No texts: a csr_array [0, dim], an
            array of shape (0,), or an empty list.

        Raises:
            InvalidInputError: An input is not a text; ``.index`` says which.
            InvalidArgumentError: An argument is outside what is allowed.
            TextTooLongError: A text is too long, and ``too_long`` is ``"error"``.
            UnsupportedError: ``max_active_dims`` is larger than the number of values that the model's graph gives.
            MissingDependencyError: scipy is not installed.
            RunError: A run failed, usually because memory ran out.
            PoolError: A process of the pool died, or the pool was stopped.
        """
        inputs, task = self._take_task(inputs, kwargs.pop("task", None), kwargs)
        too_long = kwargs.pop("too_long", None)
        limit, too_long = take_limit(kwargs, self._tokenizer_spec(task), task, too_long)
        batch_size = self._check_call(batch_size, device if pool is None else None, too_long, kwargs)
        active = self._check_active_dims(self.max_active_dims if max_active_dims is None else max_active_dims)
        prompt = self._resolve_prompt(prompt, prompt_name)
        with naming_modalities(self, inputs):
            texts, single = parse_inputs(inputs, prompt, self._chat(task))
        collect: Collector[Any] = (sparse.CsrMatrix if convert_to_sparse_tensor else sparse.DenseMatrix)(self._width)
        request = Request(
            texts,
            [self._row.output],
            collect,
            prompt,
            task,
            sparse.Strongest(active),
            batch_size,
            self.too_long if too_long is None else too_long,
            limit,
        )
        result = self._infer(request, show=show_progress_bar, pool=pool, device=device, chunk_size=chunk_size)
        if not convert_to_sparse_tensor:
            rows: Any = result if texts else np.zeros(0, dtype=np.float32)
            return rows[0] if single else rows if convert_to_tensor else list(rows)
        matrix = result if texts else sparse.empty_csr(self._width)
        if single:
            return sparse.csr_row(matrix, 0)
        return matrix if convert_to_tensor else [sparse.csr_row(matrix, index) for index in range(len(texts))]

    # Both have the arguments of `encode`, its types included.
    encode_query = encode_for("query", encode, renamed=_OLD_NAMES)
    encode_document = encode_for("document", encode, renamed=_OLD_NAMES)

    @staticmethod
    def sparsity(embeddings: Any) -> dict[str, float]:
        """How sparse vectors are.

        Args:
            embeddings: [dim] or [texts, dim]: a scipy sparse array, a numpy array or a torch tensor.

        Returns:
            ``"active_dims"``, the mean number of non-zero values of a vector, and ``"sparsity_ratio"``, the mean share
            of zeros. Zeros that a sparse array stores count as active, as in the original. No vectors: 0 and 1.

        Raises:
            InvalidInputError: ``embeddings`` is none of these; it is a TypeError, as in the original.
            InvalidArgumentError: It does not have one or two dimensions.

        Example:
            >>> SparseEncoder.sparsity(np.array([[0.0, 1.5, 0.0, 0.5], [2.0, 0.0, 0.0, 0.0]]))
            {'active_dims': 1.5, 'sparsity_ratio': 0.625}
        """
        return sparse.sparsity(embeddings)

    @staticmethod
    def intersection(embeddings_1: Any, embeddings_2: Any) -> Any:
        """The overlap of a vector with others: the product in each dimension, if it is positive, otherwise 0.

        Args:
            embeddings_1: [dim]: a scipy sparse array, a numpy array or a torch tensor.
            embeddings_2: [dim] or [texts, dim] likewise.

        Returns:
            A csr_array of the shape of ``embeddings_2``, float32 (float64 for dense float64 input); a sparse torch
            tensor if a tensor was passed.

        Raises:
            InvalidInputError: An argument is none of these.
            InvalidArgumentError: ``embeddings_1`` is not a single vector, or the dimensions differ.

        Example:
            >>> SparseEncoder.intersection(np.array([0.0, 2.0, 3.0]), np.array([1.0, 2.0, 0.0])).toarray()
            array([0., 4., 0.])
        """
        return sparse.intersection(embeddings_1, embeddings_2)

    def decode(
        self, embeddings: Any, top_k: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The tokens that the dimensions of vectors stand for, with their weights.

        Args:
            embeddings: [dim] or [texts, dim]: a scipy sparse array, a numpy array or a torch tensor.
            top_k: At most this many tokens of each vector. None: all that are not zero.

        Returns:
            (token, weight) by descending weight, of equal weights the lower token id first; a list of such lists for
            [texts, dim]. As in the original, a latent of a CSR model gets the token of the same number, which means
            nothing, or None if the number is beyond the vocabulary.

        Raises:
            InvalidInputError: ``embeddings`` is none of these; it is a TypeError, as in the original.
            InvalidArgumentError: It does not have one or two dimensions, or ``top_k`` is not positive.

        Example:
            >>> model.decode(model.encode("lovely weather"), top_k=2)  # doctest: +SKIP
            [('weather', 2.76), ('lovely', 2.58)]
        """
        top_k = check_integer("top_k", top_k, optional=True)
        matrix, single = sparse.read_sparse(embeddings)
        token: Callable[[int], Any] = self.tokenizer.id_to_token
        decoded = []
        for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            weights = matrix.data[start:end]
            order = np.argsort(-weights, kind="stable")[:top_k]
            columns = matrix.indices[start:end][order]
            decoded.append([(token(int(i)), float(w)) for i, w in zip(columns, weights[order], strict=True)])
        return decoded[0] if single else decoded

    def get_embedding_dimension(self) -> int | None:
        """Number of dimensions of the vectors."""
        return self._width

    def get_sentence_embedding_dimension(self) -> int | None:
        """Old name of :meth:`get_embedding_dimension`."""
        return self.get_embedding_dimension()

    @property
    def _width(self) -> int:
        width = self._engine.manifest.embedding_dimension
        assert width is not None  # the constructor checked it
        return width

    def _kept_dims(self) -> int | None:
        return self.max_active_dims

    @property
    def _active_dims_of_graph(self) -> int | None:
        """The most values that the graph itself gives: the ``k`` of a SparseAutoEncoder."""
        modules = self._engine.manifest.modules
        return next((module.settings.get("k") for module in modules if module.type == "SparseAutoEncoder"), None)

    def _check_active_dims(self, value: int | None) -> int | None:
        active = check_integer("max_active_dims", value, optional=True)
        if active is None:
            return None
        limit = self._active_dims_of_graph
        if limit is not None and active > limit:
            raise UnsupportedError(
                f"max_active_dims={active} is more than the {limit} values that this bundle's graph gives. For more, "
                "set k in the config.json of the checkpoint's SparseAutoEncoder and export it again."
            )
        return active
