"""Scores of text pairs: ``CrossEncoder``, with the API of sentence-transformers 6."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from stonnx._arguments import check_integer, check_texts, described
from stonnx._device.device_options import DeviceOptions
from stonnx._engine.call import TooLong
from stonnx._engine.request import Request
from stonnx._errors import BundleFormatError, InvalidArgumentError, InvalidInputError, UnsupportedError
from stonnx._model.modality_errors import naming_modalities
from stonnx._model.model import Model
from stonnx._model.old_arguments import accept_old_arguments
from stonnx._model.pool import Pool
from stonnx._model.processing import take_limit
from stonnx._results.activations import ACTIVATIONS, Activation, activated, finish_scores, resolve_activation
from stonnx._results.dense import Rows, to_torch
from stonnx._tasks import TASKS
from stonnx._text.inputs import is_pair_batch, parse_pairs


@dataclass(frozen=True)
class LabelConfig:
    """The labels of a reranker, under the names of a transformers configuration."""

    num_labels: int
    id2label: Mapping[int, str]

    @property
    def label2id(self) -> dict[str, int]:
        """The index of each label."""
        return {label: index for index, label in self.id2label.items()}


class CrossEncoder(Model):
    """Pairs of texts to scores, from a bundle.

    Args:
        model_name_or_path: The directory of a bundle, or a Hub id. A bare name belongs to ``cross-encoder/``.
            A checkpoint without a bundle is exported on first use if the exporter is installed.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"``, ``"tensorrt:1"`` or ``"openvino"``: the model runs
            there, or DeviceError is raised. None: CUDA if it works, otherwise the CPU, and :attr:`info` says why.
        prompts: Texts to put before the first text of each pair, by name. They win over those of the model.
        default_prompt_name: The prompt that a call uses unless it names another.
        cache_folder: The directory for downloads. None: the Hugging Face cache.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Never ask the network.
        token: Hub token.
        num_labels: The number of labels that the bundle must have. None: any.
        max_length: Cut pairs to this many tokens, special tokens included, up to the model's positions.
        activation_fn: Turns logits into scores instead of the model's own activation: see :meth:`predict`.
        dtype: The recipe for an export on first use; with an existing bundle, the recipe it must have.
        threads: Threads that run the graph on the CPU. None: as many as the CPUs that this process may use.
            Tokenization has threads of its own, which all models of a process share. To bound them to one, set the
            environment variable ``RAYON_NUM_THREADS=1`` before the first call, or ``TOKENIZERS_PARALLELISM=false``.
        max_batch_tokens: The most tokens of a run, padding included, whatever ``batch_size`` says. Only a single text
            may have more. It bounds the memory: each thread has one run at a time. None: no such bound.
        too_long: How to treat a pair of more tokens than the model reads: ``"truncate"`` cuts it, ``"warn"`` cuts it
            and logs which were cut, ``"error"`` raises TextTooLongError.
        device_options: How to use the device. An option without a meaning on the device that you name is refused.
        modules, trust_remote_code, model_kwargs, processor_kwargs, config_kwargs, model_card_data, backend,
            keep_in_fp32_modules: Accepted so that code written for sentence-transformers runs; anything that would
            change the result is refused.

    Raises:
        ModelNotFoundError: No model has that name.
        BundleError: The bundle is damaged, or of a newer schema.
        DeviceError: The device does not work here.
        InvalidArgumentError: An argument is outside what is allowed.

    Example:
        >>> model = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")  # doctest: +SKIP
        >>> query = "How many people live in Berlin?"
        >>> model.predict([(query, "Berlin has 3.5 million inhabitants."), (query, "Its museums!")])  # doctest: +SKIP
        array([ 8.7, -4.3], dtype=float32)
    """

    _task = "rerank"
    default_huggingface_organization = TASKS[_task].organization

    @accept_old_arguments(
        renamed={
            "model_name": "model_name_or_path",
            "automodel_args": "model_kwargs",
            "tokenizer_args": "processor_kwargs",
            "tokenizer_kwargs": "processor_kwargs",
            "config_args": "config_kwargs",
            "cache_dir": "cache_folder",
            "default_activation_function": "activation_fn",
        },
        ignored=("classifier_dropout",),
        positional=("num_labels", "max_length", "activation_fn", "device"),
    )
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
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | str | None = None,
        keep_in_fp32_modules: list[str] | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        too_long: TooLong = "truncate",
        device_options: DeviceOptions | None = None,
    ) -> None:
        if keep_in_fp32_modules:
            raise UnsupportedError("keep_in_fp32_modules belongs to PyTorch. For the precision use dtype='...'.")
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
        if manifest.num_labels is None or manifest.activation not in ACTIVATIONS:
            raise BundleFormatError(
                f"{self._engine.directory} has num_labels {manifest.num_labels!r} and activation "
                f"{manifest.activation!r}; a reranker has a number and one of {', '.join(ACTIVATIONS)}. "
                "Export the model again with: stonnx export, or upgrade stonnx."
            )
        if num_labels not in (None, manifest.num_labels):
            raise UnsupportedError(
                f"num_labels={num_labels} would be another model: this one has {manifest.num_labels}. Leave it out."
            )
        if max_length is not None:
            self.max_seq_length = max_length
        self.activation_fn = activation_fn

    @overload
    def predict(
        self,
        inputs: list[tuple[str, str]] | list[list[str]],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | str | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: Literal[True] = True,
        convert_to_tensor: Literal[False] = False,
        **options: Any,
    ) -> npt.NDArray[np.float32]: ...

    @overload
    def predict(self, inputs: Any = ..., *arguments: Any, **options: Any) -> Any: ...

    # The last overload stands for all other calls, whose arguments the implementation checks.
    @accept_old_arguments(renamed={"sentences": "inputs", "activation_fct": "activation_fn"}, ignored=("num_workers",))  # type: ignore[misc]
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | str | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | list[str] | None = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores of pairs of texts.

        Args:
            inputs: A pair of texts as a list or tuple, or a list, tuple or array of pairs.
            prompt_name: Name of the prompt to put before the first text of each pair.
            prompt: The prompt itself; wins over ``prompt_name``.
            batch_size: Size of a run in units of 16 padded tokens, 256 on a GPU: 32 stands for at most 512 tokens on
                the CPU. Results do not depend on it.
            show_progress_bar: None shows it when the logger ``stonnx`` is at INFO or DEBUG.
            activation_fn: Turns logits into scores: a name as ``"sigmoid"``, the path of a torch class as
                ``"torch.nn.Sigmoid"``, an object of such a class, or a function that gets the logits of all pairs,
                float32 [pairs, labels], and returns as many rows. None: :attr:`activation_fn`.
            apply_softmax: Take the softmax over the labels, after the activation; without effect for one label.
            convert_to_numpy: False returns a list with the scores of each pair.
            convert_to_tensor: Return a torch tensor; needs torch.
            device: None, or the device that the model was loaded for. A list of devices predicts in one process for
                each of them, started for this call; :meth:`start_multi_process_pool` starts them for many calls.
            pool: Predict in the processes that :meth:`start_multi_process_pool` started; ``device`` is not used then.
            chunk_size: Pairs that a process gets at a time. None: a tenth of its share, at most 5,000.
            too_long: How to treat a pair of more tokens than the model reads: ``"truncate"``, ``"warn"`` or
                ``"error"``. None: :attr:`too_long`.
            task: Chooses the form of a chat template that reads it.
            processing_kwargs: Arguments of the tokenizer for this call: ``{"text": {"max_length": 256}}`` and
                ``{"text": {"truncation": False}}`` are followed.

        Returns:
            float32 array [pairs], or [pairs, labels] for several labels; without the first dimension, so an
            ``np.float32`` or an array [labels], for a single pair. No pairs: ``np.array([])``, as the original does.

        Raises:
            InvalidInputError: An input is not a pair of texts; ``.index`` says which.
            InvalidArgumentError: An argument is outside what is allowed.
            TextTooLongError: A pair is too long, and ``too_long`` is ``"error"``.
            UnsupportedError: The activation is not known.
            RunError: A run failed, usually because memory ran out.
            PoolError: A process of the pool died, or the pool was stopped.
        """
        task = kwargs.pop("task", None)
        limit, too_long = take_limit(kwargs, self._tokenizer_spec(task), task, kwargs.pop("too_long", None))
        batch_size = self._check_call(batch_size, device if pool is None else None, too_long, kwargs)
        activation = self._activation if activation_fn is None else resolve_activation(activation_fn)
        prompt = self._resolve_prompt(prompt, prompt_name)
        with naming_modalities(self, inputs):
            pairs, single = parse_pairs(inputs, prompt, self._chat(task))
        request = Request(
            pairs,
            [self._row.result if activation is None else self._row.output],
            Rows(self.num_labels),
            prompt,
            task,
            batch_size=batch_size,
            too_long=self.too_long if too_long is None else too_long,
            limit=limit,
        )
        logits = self._infer(request, show=show_progress_bar, pool=pool, device=device, chunk_size=chunk_size)
        scores: npt.NDArray[Any] = np.array([])
        if logits is not None:
            scores = finish_scores(activated(logits, activation), self.num_labels, bool(apply_softmax))
        if convert_to_tensor:
            tensor = to_torch(scores.astype(np.float32, copy=False))
            return tensor[0] if single else tensor
        return scores[0] if single else scores if convert_to_numpy else list(scores)

    @accept_old_arguments(
        renamed={"activation_fct": "activation_fn"},
        ignored=("num_workers", "apply_softmax", "convert_to_numpy", "convert_to_tensor"),
    )
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | str | None = None,
        device: str | list[str] | None = None,
        pool: Pool | None = None,
        chunk_size: int | None = None,
    ) -> list[dict[Literal["corpus_id", "score", "text"], int | float | str]]:
        """Documents by descending score for a query. Documents of equal score keep their order.

        Args:
            query: The first text of every pair.
            documents: The second texts.
            top_k: How many of the best to return. None: all, 0: none.
            return_documents: Return the texts as well.
            prompt_name, prompt, batch_size, show_progress_bar, activation_fn, device, pool, chunk_size: As in
                :meth:`predict`.

        Returns:
            For each document ``"corpus_id"``, its position, ``"score"``, a Python float, and, if asked for,
            ``"text"``.

        Raises:
            InvalidArgumentError: The model has several labels, and several scores do not give an order.
            InvalidInputError: ``query`` is not a text, ``documents`` is a single text, or a document is not a text;
                ``.index`` says which.

        Example:
            >>> model.rank("Who wrote Emma?", ["A novel.", "Jane Austen did."], top_k=1)  # doctest: +SKIP
            [{'corpus_id': 1, 'score': 7.93}]
        """
        if self.num_labels != 1:
            raise InvalidArgumentError(
                "CrossEncoder.rank() only works for models with num_labels=1. Consider using CrossEncoder.predict() "
                f"with input pairs instead. This model has {self.num_labels} labels."
            )
        top_k = check_integer("top_k", top_k, least=0, optional=True)
        if not isinstance(query, str):
            raise InvalidInputError(f"query must be a str, got {described(query)}.")
        texts = list(check_texts("documents", documents))
        scores = self.predict(
            [(query, text) for text in texts],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        ).tolist()
        results: list[dict[Literal["corpus_id", "score", "text"], int | float | str]] = []
        for index in sorted(range(len(texts)), key=scores.__getitem__, reverse=True)[:top_k]:
            results.append({"corpus_id": index, "score": scores[index]})
            if return_documents:
                results[-1]["text"] = texts[index]
        return results

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether an argument is one pair rather than a batch of pairs."""
        return not is_pair_batch(inputs)

    @property
    def activation_fn(self) -> Activation:
        """The function that turns logits into scores. Setting it to None restores the model's own."""
        return ACTIVATIONS[str(self._engine.manifest.activation)] if self._activation is None else self._activation

    @activation_fn.setter
    def activation_fn(self, value: Activation | str | None) -> None:
        # None stands for the model's own, which is part of the graph.
        self._activation = None if value is None else resolve_activation(value)

    @property
    def default_activation_function(self) -> Activation:
        """Old name of :attr:`activation_fn`."""
        return self.activation_fn

    def _other_activation(self) -> Activation | None:
        return self._activation

    @property
    def num_labels(self) -> int:
        """Number of scores for a pair."""
        labels = self._engine.manifest.num_labels
        assert labels is not None  # the constructor checked it
        return labels

    @property
    def config(self) -> LabelConfig:
        """Number and names of the labels; ``config.id2label[int(scores.argmax())]`` is the best one's name."""
        return LabelConfig(self.num_labels, dict(enumerate(self._engine.manifest.label_names)))

    @property
    def max_length(self) -> int | None:
        """Old name of :attr:`max_seq_length`."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int | None) -> None:
        self.max_seq_length = value
