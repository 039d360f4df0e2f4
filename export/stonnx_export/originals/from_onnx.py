"""The original as an ONNX file that lies in the checkpoint already: it needs neither PyTorch nor transformers.

onnxruntime runs that file without optimizations as the network. numpy runs the checkpoint's modules after it. So a
bundle is compared with the file that it was made from, and its heads with a second implementation.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import tokenizers

from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._device.wheels import import_onnxruntime
from stonnx._errors import ModelNotFoundError, UnsupportedError
from stonnx._tasks import TASKS
from stonnx._text.tokens import Text
from stonnx_export.checkpoint.files import optional_object
from stonnx_export.checkpoint.module_files import transformer_settings
from stonnx_export.checkpoint.modules import (
    POOLING_MODES,
    LogitScore,
    Module,
    Normalize,
    Pooling,
    SparseStaticEmbedding,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
    is_code,
)
from stonnx_export.checkpoint.processing import text_arguments
from stonnx_export.checkpoint.read import Checkpoint
from stonnx_export.heads import tables
from stonnx_export.originals import numpy_modules, onnx_file
from stonnx_export.originals.onnx_file import SENTENCE_EMBEDDING, OnnxFile, Wanted
from stonnx_export.originals.original import LoadReport, OriginalTokenizer, in_front
from stonnx_export.originals.tokenizer_files import TokenizerFiles, read_tokenizer
from stonnx_export.originals.transformers_ids import compare_with_transformers

logger = logging.getLogger("stonnx")

# From this number on, a tokenizer's limit means "unlimited": transformers writes 1e30 for that.
_NO_LIMIT = 1_000_000
# Texts that tell an unknown pooling from others: they have one to many tokens, in an order that a mean does not keep.
_SAMPLES = ("a", "Hello, world!", "The quick brown fox jumps over the lazy dog.", "tea for two, and two for tea " * 4)
_SAME = 1e-5
_CHAINS: tuple[tuple[Module, ...], ...] = tuple(
    (Transformer(), Pooling((mode,), include_prompt=True), *rest)
    for rest in ((), (Normalize(),))
    for mode in POOLING_MODES
)
# Arguments for the network and its configuration in the settings of a Transformer module, and those of them that change
# no result.
_ARGUMENTS = ("model_args", "model_kwargs", "config_args", "config_kwargs")
_HARMLESS = {"attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "device_map", "low_cpu_mem_usage"}
_HARMLESS |= {"use_cache", "revision", "code_revision", "file_name", "provider", "export", "unpad_inputs"}
_COPY = (
    "To have all of the original, copy modules.json, config_sentence_transformers.json, sentence_bert_config.json and "
    "the folders that modules.json names from the checkpoint into that directory."
)


def is_exportable(checkpoint: Checkpoint) -> bool:
    """Whether every network of a checkpoint is there as an ONNX file. Tables of vectors do not need one."""
    return all(
        onnx_file.find(checkpoint.folders[route]) is not None
        for route, chain in checkpoint.routes.items()
        if isinstance(chain[0], Transformer)
    )


class OnnxOriginal:
    """A checkpoint with an ONNX file. Implements ``Original``.

    Raises:
        ModelNotFoundError: The checkpoint has no ONNX file.
        UnsupportedError: The file, or the chain after it, cannot become a bundle.
        ExportError: The file is damaged.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.task == "multivector":
            raise _no_late_interaction(checkpoint)
        self._checkpoint = checkpoint
        self._tokenizers: dict[str, TokenizerFiles] = {}
        self._encoders: dict[str, tokenizers.Tokenizer] = {}
        self._files: dict[str, OnnxFile] = {}
        for route, chain in checkpoint.routes.items():
            files = read_tokenizer(checkpoint.folders[route], chain[0])
            self._tokenizers[route] = files
            # A copy, because this tokenizer cuts texts.
            self._encoders[route] = tokenizers.Tokenizer.from_str(files.tokenizer.backend.to_str())
            self._encoders[route].no_padding()
            if isinstance(chain[0], Transformer):
                self._encoders[route].no_truncation()
                compare_with_transformers(
                    checkpoint.folders[route],
                    self._encoders[route],
                    pairs=TASKS[checkpoint.task].reads_pairs,
                    do_lower_case=chain[0].do_lower_case,
                    add_special_tokens=files.tokenizer.add_special_tokens,
                )
            positions = checkpoint.max_positions if isinstance(chain[0], Transformer) else None
            self._cut(route, _limit(files.tokenizer.max_length, positions))
            if isinstance(chain[0], Transformer):
                self._files[route] = _open(checkpoint, route)
        if checkpoint.task == "embedding" and not (checkpoint.directory / "modules.json").is_file():
            self._checkpoint = self._with_own_head(self._files[DEFAULT_ROUTE])

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint. If it has no modules.json, its chain is the one that its ONNX file turned out to have."""
        return self._checkpoint

    @property
    def name(self) -> str:
        root = self._checkpoint.directory
        names = dict.fromkeys(file.path.relative_to(root).as_posix() for file in self._files.values())
        if not names:
            return "the checkpoint's tables in numpy"
        heads = "" if TASKS[self._checkpoint.task].gives_labels else ", heads in numpy"
        return f"{' and '.join(names)} of the checkpoint with onnxruntime {import_onnxruntime().__version__}{heads}"

    @property
    def loaded(self) -> LoadReport:
        return LoadReport()

    def graph(self, route: str) -> ir.Model:
        match self._checkpoint.routes[route][0]:
            case StaticEmbedding(weight=weight):
                return tables.static_embedding(weight)
            case SparseStaticEmbedding(weight=weight):
                return tables.sparse_static_embedding(weight)
        return self._files[route].network(token_types=self._tokenizers[route].token_types)

    def images(self) -> None:
        """A network that reads images is exported from PyTorch only."""
        return

    def tokenizer(self, route: str) -> OriginalTokenizer:
        return self._tokenizers[route].tokenizer

    def token_ids(self, route: str, text: Text, task: str | None = None, prompt: str = "") -> list[int]:
        return list(self._encode(route, in_front(prompt, text)).ids)

    def outputs(self, route: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        return np.stack([self._output(route, text) for text in texts])

    def outputs_as_called(self, task: str | None, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        checkpoint = self._checkpoint
        name = task or checkpoint.default_prompt_name
        prompt = checkpoint.prompts.get(name) or "" if name else ""
        route = task if task is not None and task in checkpoint.routes else checkpoint.default_route
        return np.stack([self._output(route, in_front(prompt, text), self._length(route, prompt)) for text in texts])

    def results(self, method: str, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        checkpoint = self._checkpoint
        rows = self.outputs_as_called(method.partition("_")[2] or None, texts)
        if checkpoint.task == "rerank":
            return np.asarray(
                numpy_modules.ACTIVATIONS[checkpoint.activation or "identity"](rows.astype(np.float64)),
                dtype=np.float32,
            )
        if checkpoint.task == "embedding":
            return rows[:, : checkpoint.truncate_dim]
        return numpy_modules.keep_largest(rows, checkpoint.max_active_dims)

    def rows(self, task: str | None, texts: Sequence[Text]) -> list[npt.NDArray[np.float32]]:
        raise _no_late_interaction(self._checkpoint)  # the constructor has refused it already

    def outputs_as_loaded(self, route: str, texts: Sequence[Text]) -> None:
        return None

    def facts(self) -> Mapping[str, Any]:
        return {}

    def set_max_length(self, route: str, limit: int) -> None:
        self._cut(route, limit)

    def _cut(self, route: str, limit: int | None) -> None:
        if limit is None:
            self._encoders[route].no_truncation()
        else:
            side = self._tokenizers[route].tokenizer.truncation_side
            self._encoders[route].enable_truncation(limit, strategy="longest_first", direction=side)

    def _encode(self, route: str, text: Text) -> tokenizers.Encoding:
        first, second = text if isinstance(text, tuple) else (text, None)
        special = self._tokenizers[route].tokenizer.add_special_tokens
        return self._encoders[route].encode(first, second, add_special_tokens=special)

    def _length(self, route: str, prompt: str) -> int:
        """Tokens of a prompt before a text, without the special token that ends it if it stands alone."""
        ids = self.token_ids(route, prompt) if prompt else []
        return len(ids) - (ids[-1:] != [] and ids[-1] in self._tokenizers[route].tokenizer.special_token_ids)

    def _output(self, route: str, text: Text, prompt_length: int = 0) -> npt.NDArray[np.float32]:
        """The vector or the logits of one text."""
        chain = self._checkpoint.routes[route]
        match chain[0]:
            case StaticEmbedding(weight=weight):
                states = numpy_modules.static_embedding(weight, self.token_ids(route, text))[None]
            case SparseStaticEmbedding(weight=weight):
                states = numpy_modules.sparse_static_embedding(weight, self.token_ids(route, text))[None]
            case _:
                states = self._run(route, text)[self._files[route].output]
        if not TASKS[self._checkpoint.task].gives_labels:
            # A text alone does not have padding.
            states = numpy_modules.run(chain, states, np.ones(states.shape[:2], dtype=np.int64), prompt_length)
        row: npt.NDArray[np.float32] = states[0]
        return row

    def _run(self, route: str, text: Text) -> dict[str, npt.NDArray[np.float32]]:
        """All outputs of the file for one text."""
        encoding = self._encode(route, text)
        types = np.array([encoding.type_ids]) if self._tokenizers[route].token_types else None
        return self._files[route].run(np.array([encoding.ids], dtype=np.int64), types)

    def _with_own_head(self, file: OnnxFile) -> Checkpoint:
        """The checkpoint with the pooling that its ONNX file has, if no modules.json names it.

        optimum-cli copies neither modules.json nor the files that belong to it. But its graph for a model of
        sentence-transformers computes the sentence embedding too. Computing all poolings shows which one gives that.
        """
        checkpoint = self._checkpoint
        if not file.has_head:
            return checkpoint  # a plain transformers network, for which sentence-transformers takes the mean
        given = [self._run(DEFAULT_ROUTE, text) for text in _SAMPLES]
        expected = np.concatenate([outputs[SENTENCE_EMBEDDING] for outputs in given])
        masks = [np.ones(outputs[file.output].shape[:2], dtype=np.int64) for outputs in given]
        for chain in _CHAINS:
            vectors = [numpy_modules.run(chain, row[file.output], mask) for row, mask in zip(given, masks, strict=True)]
            if vectors[0].shape[1] != expected.shape[1]:
                continue
            if np.abs(np.concatenate(vectors) - expected).max() <= _SAME * max(1.0, float(np.abs(expected).max())):
                logger.warning(
                    "%s has no modules.json. The graph's own sentence_embedding is %s, which the bundle gets. Prompts, "
                    "similarity and a max_seq_length below the tokenizer's stay unknown. %s",
                    *(checkpoint.directory, " > ".join(str(module) for module in chain[1:]), _COPY),
                )
                return dataclasses.replace(checkpoint, routes={DEFAULT_ROUTE: chain})
        raise UnsupportedError(
            f"{checkpoint.directory} has no modules.json, and the sentence_embedding of its ONNX file is not a pooling "
            f"of the tokens, with or without normalization. {_COPY}"
        )


def _no_late_interaction(checkpoint: Checkpoint) -> UnsupportedError:
    return UnsupportedError(
        f"{checkpoint.directory} is a model of late interaction, which cannot be exported from an ONNX file: that has "
        "neither the rows of query expansion nor the skiplist. Export the PyTorch weights instead: --source torch"
    )


def _open(checkpoint: Checkpoint, route: str) -> OnnxFile:
    """The ONNX file of a route, loaded."""
    folder, chain = checkpoint.folders[route], checkpoint.routes[route]
    if is_code(chain):
        raise UnsupportedError(
            "Modules that are code of the model repository cannot be exported together with an ONNX file: only PyTorch "
            "can run them. Export the PyTorch weights instead: --source torch --trust-remote-code"
        )
    if any(isinstance(module, LogitScore) for module in chain) or reads_messages(checkpoint, folder):
        raise UnsupportedError(
            f"{folder} is a chat model: it scores by its next token, or reads its texts in a chat template. Only the "
            "export from PyTorch can do that: --source torch"
        )
    if any(isinstance(module, WeightedLayerPooling) for module in chain):
        raise UnsupportedError(
            "WeightedLayerPooling needs the hidden states of every layer, and an ONNX file gives those of the last. "
            "Export the PyTorch weights instead: --source torch"
        )
    _refuse_arguments(folder)
    path = onnx_file.find(folder)
    if path is None:
        others = [file.relative_to(folder).as_posix() for file in sorted(folder.glob("**/*.onnx"))]
        found = f" It has {', '.join(others)}, but a precision is never picked silently." if others else ""
        raise ModelNotFoundError(
            f"{folder} has no onnx/model.onnx and no model.onnx.{found} Put the float32 graph of the network there, or "
            "export the PyTorch weights: --source torch"
        )
    pooled = any(isinstance(module, Pooling) for module in chain)
    wanted: Wanted = "tokens" if checkpoint.task == "embedding" or pooled else "vocabulary"
    return OnnxFile(path, "labels" if TASKS[checkpoint.task].gives_labels else wanted)


def reads_messages(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether sentence-transformers puts texts into the chat template of a folder."""
    if (checkpoint.directory / "modules.json").is_file():
        return "message" in (transformer_settings(folder).get("modality_config") or {})
    named = optional_object(folder / "tokenizer_config.json").get("chat_template")
    return bool(named) or (folder / "chat_template.jinja").is_file()


def _refuse_arguments(folder: Path) -> None:
    """Raise UnsupportedError if sentence-transformers would load another network or tokenizer than lies in a folder."""
    settings = transformer_settings(folder)
    passed = {name for key in _ARGUMENTS for name in settings.get(key) or {}} - _HARMLESS
    passed |= text_arguments(settings.get("processing_kwargs") or {}, folder, chat=False).keys()
    passed |= {name for name in ("query_length", "document_length") if settings.get(name)}
    if settings.get("tokenizer_name_or_path"):
        passed.add("tokenizer_name_or_path")
    if passed:
        raise UnsupportedError(
            f"The settings of the Transformer module in {folder} have {', '.join(sorted(passed))}, and stonnx cannot "
            "tell whether the ONNX file was made with them. Export the PyTorch weights instead: --source torch"
        )


def _limit(max_length: int | None, max_positions: int | None) -> int | None:
    limits = [limit for limit in (max_length, max_positions) if limit is not None and limit <= _NO_LIMIT]
    return min(limits, default=None)
