"""The original in sentence-transformers and PyTorch.

Only this file deals with the differences between versions 5 and 6 of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import sentence_transformers
import tokenizers
import torch

from stonnx._bundle.manifest import DEFAULT_ROUTE, ChatTemplate
from stonnx._errors import MissingDependencyError, UnsupportedError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx_export.checkpoint.late_interaction import weights_beside_network
from stonnx_export.checkpoint.modules import (
    CLIPModel,
    LogitScore,
    Pooling,
    SparseStaticEmbedding,
    StaticEmbedding,
    WeightedLayerPooling,
    is_code,
    reads_images,
)
from stonnx_export.checkpoint.processing import text_arguments
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.heads import tables
from stonnx_export.originals.adapter import CONFIG, check_adapter, merged
from stonnx_export.originals.chat import chat_template
from stonnx_export.originals.original import LoadReport, OriginalTokenizer, bare_tokenizer, in_front
from stonnx_export.originals.trace import Output, trace, trace_answers, trace_chain, trace_texts
from stonnx_export.originals.weights import has_sixteen_bits, refuse_missing, refuse_random, unexpected, watch_loading

if TYPE_CHECKING:
    from stonnx_export.originals.images import ImageOriginal

# The setting that cuts the results of a task short, unless it is None.
_SETTINGS = {"embedding": "truncate_dim", "sparse": "max_active_dims"}


class TorchOriginal:
    """A checkpoint loaded in float32 on the CPU. Implements ``Original``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        with watch_loading() as networks:
            self._model = _load(checkpoint)
        self._chats: dict[str, ChatTemplate | None] = {}
        # Clusters of vectors are not what the graph gives, and hide how close it is.
        self._poolings = [(module, module.tasks) for module in self._model.modules() if hasattr(module, "pool_factor")]
        self._pool(on=False)
        self._setting = _SETTINGS.get(checkpoint.task)
        self._value = getattr(self._model, self._setting) if self._setting else None
        trusted = checkpoint.trust is not None
        if trusted and not networks:
            refuse_random(self._model, _load(checkpoint), checkpoint.directory)
        if checkpoint.base is not None:
            for folder in set(checkpoint.folders.values()):
                if (folder / CONFIG).is_file():
                    check_adapter(self._model, folder, checkpoint.base)
            self._refuse_random_base(checkpoint.base)
        refuse_missing(networks, self._example, checkpoint.directory)
        of_others = weights_beside_network(checkpoint.directory, checkpoint.chain)
        self._loaded = LoadReport(checkpoint.code if trusted else (), unexpected(networks, of_others))

    @property
    def name(self) -> str:
        versions = {name: metadata.version(name) for name in ("sentence-transformers", "torch")}
        peer, engine = versions["sentence-transformers"], versions["torch"]
        return f"sentence-transformers {peer} with PyTorch {engine}, float32, on the CPU"

    @property
    def loaded(self) -> LoadReport:
        return self._loaded

    def _example(self) -> npt.NDArray[np.float32]:
        """The results of all routes for some texts."""
        texts: list[Text] = ["a b c", "The weather is lovely today."]
        if self._checkpoint.task == "rerank":
            texts = [("a b c", "The weather is lovely today.")]
        return np.concatenate([self.outputs(route, texts).reshape(-1) for route in self._checkpoint.routes])

    def _refuse_random_base(self, base: str) -> None:
        """Raise UnsupportedError if neither an adapter nor its model has a weight that the results depend on."""
        model, results = self._model, self._example()
        self._model = _load(self._checkpoint)
        again = self._example()
        self._model = model
        if not np.array_equal(results, again):
            raise UnsupportedError(
                f"{self._checkpoint.directory.name} is an adapter for {base!r}, and neither of them has all weights of "
                "the network: each time it is loaded, the rest is random. An adapter that was trained with a new head "
                "has it if modules_to_save names that head. Save it with its head, or merge it where it was trained."
            )

    def graph(self, route: str) -> ir.Model:
        chain = self._checkpoint.routes[route]
        if is_code(chain):
            key = "scores" if self._checkpoint.task == "rerank" else "sentence_embedding"
            names = self._tokenizer(route).model_input_names
            return trace_chain(self._modules(route), key, token_types="token_type_ids" in names)
        match chain[0]:
            case CLIPModel():
                return trace_texts(self._modules(route)[0].model)
            case StaticEmbedding():
                return tables.static_embedding(chain[0].weight)
            case SparseStaticEmbedding():
                return tables.sparse_static_embedding(chain[0].weight)
        layered = any(isinstance(module, WeightedLayerPooling) for module in chain)
        answers = next((module for module in chain if isinstance(module, LogitScore)), None)
        if answers is not None:
            network = self._modules(route)[0].auto_model
            with merged(network):
                return trace_answers(network, answers.token_ids)
        # SPLADE starts from logits; a sparse model with a Pooling (CSR) from token embeddings.
        task = TASKS[self._checkpoint.task]
        of_tokens = "token_embeddings" in (task.output, task.token_output)
        dense = of_tokens or any(isinstance(module, Pooling) for module in chain)
        output: Output = "hidden_states" if layered else "last_hidden_state" if dense else "logits"
        network = self._modules(route)[0].auto_model if self._is_chain else self._model.model
        token_types = "token_type_ids" in self._tokenizer(route).model_input_names
        with merged(network):
            return trace(network, token_types=token_types, output=output)

    def images(self) -> ImageOriginal | None:
        if not reads_images(self._checkpoint.chain):
            return None
        from stonnx_export.originals.images import ImageOriginal

        return ImageOriginal(self._modules(DEFAULT_ROUTE), self._model, str(self._checkpoint.directory))

    def tokenizer(self, route: str) -> OriginalTokenizer:
        source = self._tokenizer(route)
        first = self._checkpoint.routes[route][0]
        if isinstance(source, tokenizers.Tokenizer):  # StaticEmbedding has a bare one, without padding
            return bare_tokenizer(source)
        backend = getattr(source, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedError(
                f"{type(source).__name__} is a tokenizer in Python, and a bundle needs one with a tokenizer.json. Load "
                "the checkpoint with a fast tokenizer, AutoTokenizer.from_pretrained(DIRECTORY), and save it beside."
            )
        if getattr(source, "split_special_tokens", False):
            raise UnsupportedError(
                "The tokenizer has split_special_tokens: special tokens that are written in a text are words there. A "
                "tokenizer.json cannot say that, so the model cannot be exported. Set it to false if texts have none."
            )
        chat = self._chat(route)
        processing = getattr(self._modules(route)[0] if self._is_chain else None, "processing_kwargs", None) or {}
        arguments = text_arguments(processing, self._checkpoint.folders[route], chat=chat is not None)
        limit = source.model_max_length if self._is_chain else self._model.max_length
        return OriginalTokenizer(
            backend=backend,
            max_length=arguments.get("max_length", limit),
            pad_token_id=source.pad_token_id if source.pad_token_id is not None else 0,
            pad_token_type_id=source.pad_token_type_id,
            truncation_side=source.truncation_side,
            special_token_ids=tuple(sorted(set(source.all_special_ids))),
            # A chat template has all special tokens in it.
            add_special_tokens=chat is None and not isinstance(first, SparseStaticEmbedding),
            chat=chat,
            unknown_token_id=source.unk_token_id,
            filling_token_id=source.eos_token_id if source.mask_token_id is None else source.mask_token_id,
            pads_left=source.padding_side == "left",
        )

    def token_ids(self, route: str, text: Text, task: str | None = None, prompt: str = "") -> list[int]:
        if not self._is_chain:
            text = in_front(prompt, text)
            options = {"truncation": "longest_first", "max_length": self._model.max_length}
            return list(self._tokenizer(route)(*text, **options)["input_ids"])
        module = self._modules(route)[0]
        # Version 5 knows tasks in a Router only, and the route has been chosen already.
        if hasattr(module, "preprocess"):
            features = module.preprocess([text], prompt=prompt or None, task=task)
        else:
            features = module.tokenize([in_front(prompt, text)])
        ids = features["input_ids"].reshape(-1)
        if "attention_mask" in features:  # a table of vectors has none
            read = features["attention_mask"].reshape(-1) > 0
            # Tokens that fill up a query are no padding, even if no other token attends to them.
            filling = features.get("query_expansion_positions")
            ids = ids[read if filling is None else read | filling.reshape(-1)]
        return [int(token) for token in ids]

    def outputs(self, route: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        # An empty prompt keeps the default one away. A CrossEncoder of version 5 does not know prompts.
        options: dict[str, Any] = {"prompt": ""} if self._is_chain else {}
        return self._one_at_a_time(texts, **options, **({} if route == DEFAULT_ROUTE else {"task": route}))

    def outputs_as_called(self, task: str | None, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        return self._one_at_a_time(texts, f"encode_{task}" if task else None)

    def _one_at_a_time(
        self, texts: Sequence[Text], method: str | None = None, **options: Any
    ) -> npt.NDArray[np.float32]:
        """Vectors with all their dimensions, or logits, from encode or predict, unless another method is named."""
        match self._checkpoint.task:
            case "rerank":
                options["activation_fn"] = torch.nn.Identity()
            case "sparse":
                options["convert_to_sparse_tensor"] = False
        if self._setting:
            # As many values as the graph gives, which may be more than the k of the autoencoder.
            setattr(self._model, self._setting, self._checkpoint.most_active_dims)
        run = getattr(self._model, method or ("predict" if self._checkpoint.task == "rerank" else "encode"))
        return self._run(run, texts, options)

    def _pool(self, *, on: bool) -> None:
        """Turn the poolings of the vectors of tokens on or off."""
        for module, tasks in self._poolings:
            module.tasks = tasks if on else []

    def _run(self, run: Any, texts: Sequence[Text], options: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = [run([text], show_progress_bar=False, **options) for text in texts]
        if TASKS[self._checkpoint.task].row_mask is not None:
            return np.concatenate([row[0].numpy() for row in rows])
        return np.stack([np.asarray(row, dtype=np.float32).reshape(-1) for row in rows])

    def rows(self, task: str | None, texts: Sequence[Text]) -> list[npt.NDArray[np.float32]]:
        run = getattr(self._model, f"encode_{task}" if task else "encode")
        with torch.inference_mode():
            return [run(text, show_progress_bar=False).numpy() for text in texts]

    def results(self, method: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        options: dict[str, Any] = {}
        if self._setting:
            setattr(self._model, self._setting, self._value)
        if self._checkpoint.task == "sparse":
            options["convert_to_sparse_tensor"] = False
        self._pool(on=True)
        try:
            return self._run(getattr(self._model, method), texts, options)
        finally:
            self._pool(on=False)

    def outputs_as_loaded(self, route: str, texts: Sequence[Text]) -> tuple[str, npt.NDArray[np.float32]] | None:
        if not any(map(has_sixteen_bits, set(self._checkpoint.folders.values()))):
            return None
        model = _load(self._checkpoint, None)
        dtype = next(model.parameters()).dtype
        if dtype not in (torch.float16, torch.bfloat16):  # transformers 4 loads everything in float32
            return None
        before, self._model = self._model, model
        try:
            return str(dtype).removeprefix("torch."), self.outputs(route, texts)
        finally:
            self._model = before

    def facts(self) -> Mapping[str, Any]:
        names = ("num_labels",) if self._checkpoint.task == "rerank" else ("similarity_fn_name", "default_prompt_name")
        return {name: getattr(self._model, name) for name in names}

    def set_max_length(self, route: str, limit: int) -> None:
        source = self._tokenizer(route)
        if isinstance(source, tokenizers.Tokenizer):
            source.enable_truncation(limit, direction=(source.truncation or {}).get("direction", "right"))
        elif self._is_chain:
            module = self._modules(route)[0]
            module.max_seq_length = limit
            for arguments in (getattr(module, "processing_kwargs", None) or {}).values():
                if "max_length" in arguments:
                    arguments["max_length"] = limit
        else:
            self._model.max_length = limit

    def _chat(self, route: str) -> ChatTemplate | None:
        """The chat template of a route, which is rendered many times to find it."""
        if route not in self._chats:
            row, folder = TASKS[self._checkpoint.task], self._checkpoint.folders[route]
            module = self._modules(route)[0]
            self._chats[route] = chat_template(module, folder, reads_pairs=row.reads_pairs) if self._is_chain else None
        return self._chats[route]

    @property
    def _is_chain(self) -> bool:
        """Whether the model is a chain of modules; a CrossEncoder of version 5 is not."""
        return isinstance(self._model, torch.nn.Sequential)

    def _modules(self, route: str) -> list[Any]:
        return [part for module in self._model for part in _parts(module, route)]

    def _tokenizer(self, route: str) -> Any:
        return self._modules(route)[0].tokenizer if self._is_chain else self._model.tokenizer


def _parts(module: Any, route: str) -> list[Any]:
    """The modules of a route within a Router; another module is itself."""
    routes = getattr(module, "sub_modules", None)
    if routes is None:
        return [module]
    if hasattr(module, "route_mappings"):  # since version 5.4
        return [*routes[module._resolve_route(task=None if route == DEFAULT_ROUTE else route, modality="text")]]
    return [*routes[route]]


def _load(checkpoint: Checkpoint, dtype: torch.dtype | None = torch.float32) -> Any:
    """The model in sentence-transformers, in the given precision; for None, in its default precision.

    It runs code of the repository only if the caller trusts it.
    """
    name = TASKS[checkpoint.task].class_name
    kind = getattr(sentence_transformers, name, None)
    if kind is None:
        raise MissingDependencyError(
            f"sentence-transformers {sentence_transformers.__version__} has no {name}. Install a newer one: pip "
            "install -U sentence-transformers"
        )
    trust = checkpoint.trust
    with _silence():
        model = kind(
            str(checkpoint.directory),
            device="cpu",
            # Code may lie in a repository of its own.
            local_files_only=trust is None or trust.local_files_only,
            trust_remote_code=trust is not None,
            model_kwargs={} if dtype is None else {"dtype": dtype},
        )
    if not isinstance(model, torch.nn.Module):
        return model
    return model.eval() if dtype is None else model.to(dtype).eval()


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the progress bar that transformers draws while it loads weights; our own stages say enough."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
