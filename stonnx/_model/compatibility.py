"""Members and arguments that exist only so that code written for sentence-transformers runs unchanged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from stonnx._arguments import device_name
from stonnx._bundle.manifest import DEFAULT_ROUTE
from stonnx._errors import UnsupportedError
from stonnx._model.call import is_same_device
from stonnx._model.old_arguments import warn_once
from stonnx._text.inputs import is_batch
from stonnx._text.modalities import Modality, supports

if TYPE_CHECKING:
    from stonnx._engine.engine import Engine

logger = logging.getLogger("stonnx")


# The advice for each member that sentence-transformers has and stonnx does not. Any other name belongs to
# torch.nn.Module, or does not exist.
_TRAIN = "Train with sentence-transformers, and export what you saved: stonnx export CHECKPOINT."
_COPY = "A bundle is a directory of files: copy or upload the one in model.info.directory."
_CALL = "Call encode, or predict for a reranker. The network itself is the bundle's ONNX graph."
_ADAPTER = "Merge the adapter into the checkpoint before you export it."
_PRECISION = "The precision is that of the bundle: export another one with --dtype."
_OTHER = "It runs a bundle, and is not a torch.nn.Module."
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("fit", "old_fit", "train", "evaluate", "get_sentence_features", "model_card_data"), _TRAIN),
    **dict.fromkeys(("smart_batching_collate", "smart_batching_collate_text_only", "model_card_data_class"), _TRAIN),
    **dict.fromkeys(("gradient_checkpointing_enable",), _TRAIN),
    **dict.fromkeys(("save", "save_pretrained", "save_to_hub", "push_to_hub"), _COPY),
    **dict.fromkeys(("load",), "Pass the name or path to the class itself."),
    **dict.fromkeys(("active_adapter", "active_adapters", "add_adapter", "load_adapter", "set_adapter"), _ADAPTER),
    **dict.fromkeys(("delete_adapter", "enable_adapters", "disable_adapters", "get_adapter_state_dict"), _ADAPTER),
    **dict.fromkeys(("check_peft_compatible_model", "has_peft_compatible_model", "merge"), _ADAPTER),
    **dict.fromkeys(("half", "float", "double", "bfloat16", "dtype", "set_keep_in_fp32_modules"), _PRECISION),
    **dict.fromkeys(("forward", "model", "transformers_model", "auto_model", "compile", "modules", "children"), _CALL),
    **dict.fromkeys(("parameters", "named_parameters", "state_dict", "config", "processor"), _CALL),
}


class ModuleAccessError(UnsupportedError, TypeError):
    """Code reached for the PyTorch modules of a model, which a bundle does not have."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} reaches for the PyTorch modules, and a bundle has none: its network is one ONNX graph. The model "
            "itself has what is mostly wanted of them: model.tokenizer, model.max_seq_length, "
            "model.get_embedding_dimension(), model.encode(...)."
        )


class Compatibility:
    """Members of sentence-transformers' models that do nothing here, or have another name."""

    if TYPE_CHECKING:  # of the class that this is mixed into
        _engine: Engine

        @property
        def device(self) -> str: ...

        @property
        def max_seq_length(self) -> int | None: ...

        def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]: ...

    def to(self, device: Any) -> Self:
        """The model itself, for the device that it is on. It is loaded for one device, and does not move.

        Raises:
            UnsupportedError: Another device, or a dtype.
        """
        name = device_name(device)
        if not is_same_device(name, self.device):
            raise UnsupportedError(
                f"This model was loaded for {self.device!r} and cannot move to {name!r}. Load it again for another "
                f"device: {type(self).__name__}(..., device=...); another precision is another export: dtype='...'."
            )
        return self

    def cpu(self) -> Self:
        """The model itself, if it is on the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """The model itself, if it is on that GPU. None is the first GPU."""
        return self.to("cuda" if device is None else device)

    def eval(self) -> Self:
        """The model itself: a bundle is always for inference."""
        return self

    def get_max_seq_length(self) -> int | None:
        """Old name of :attr:`max_seq_length`."""
        return self.max_seq_length

    def get_backend(self) -> str:
        """Always ``"onnx"``."""
        return "onnx"

    def get_model_kwargs(self) -> list[str]:
        """Further keyword arguments of ``encode``: those that choose the route of a model that has several."""
        return [] if DEFAULT_ROUTE in self._engine.named_routes else ["task", "modality"]

    @property
    def modalities(self) -> list[Modality]:
        """The kinds of input that the model reads.

        They are ``text``, ``image`` for a model of CLIP's kind, and ``message`` for one with a chat template.
        """
        manifest = self._engine.manifest
        more = {
            "image": manifest.image is not None,
            "message": any(route.tokenizer.chat is not None for route in manifest.routes.values()),
        }
        return ["text", *(name for name, there in more.items() if there)]

    def supports(self, modality: Modality) -> bool:
        """Whether the model reads a modality, or several in one input, such as ``("image", "text")``."""
        return supports(modality, self.modalities)

    def tokenize(self, texts: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
        """Old name of :meth:`preprocess`."""
        warn_once("The `tokenize` method is deprecated, please use `preprocess` instead.")
        return self.preprocess(texts, **kwargs)

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether an argument is one input rather than a batch."""
        return not is_batch(inputs)

    @property
    def backend(self) -> str:
        """Always ``"onnx"``."""
        return "onnx"

    @property
    def trust_remote_code(self) -> bool:
        """Always False: code from a model repository never runs."""
        return False

    @property
    def _target_device(self) -> str:
        """Old name of :attr:`device`."""
        return self.device

    def __bool__(self) -> bool:
        """A model is true, like the original, whose length is the number of its modules."""
        return True

    def __len__(self) -> int:
        raise ModuleAccessError("len(model)")

    def __getitem__(self, index: Any) -> Any:
        raise ModuleAccessError("model[...]")

    def __iter__(self) -> Iterator[Any]:
        raise ModuleAccessError("Iteration over a model")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModuleAccessError("model(...)")

    def _first_module(self) -> Any:
        raise ModuleAccessError("model._first_module()")

    def _last_module(self) -> Any:
        raise ModuleAccessError("model._last_module()")

    if not TYPE_CHECKING:  # so that mypy still knows which members there are

        def __getattr__(self, name: str) -> Any:
            kind = type(self).__name__
            if name.startswith("__"):
                raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=self)
            said = (
                f"stonnx.{kind} has no attribute {name!r}. {_REMEDIES.get(name, _OTHER)} docs/compatibility.md lists "
                "what sentence-transformers has beyond it."
            )
            raise AttributeError(said, name=name, obj=self)


def refuse_torch_arguments(*, modules: Any, backend: str, trust_remote_code: bool, **arguments: Any) -> None:
    """Raise for arguments that would change how the PyTorch model is built: a bundle is built already.

    Args:
        modules: Ignored with a warning, as in the original, because the model has a name.
        backend: ``"onnx"``, or ``"torch"``, which code written for sentence-transformers may pass.
        trust_remote_code: Has no effect, which is logged.
        **arguments: The others, by name. Each must be empty.

    Raises:
        UnsupportedError: An argument would change the result.
    """
    if modules is not None:
        logger.warning(
            "Both `model_name_or_path` and `modules` were provided. The model is that of `model_name_or_path`, so the "
            "`modules` argument is ignored."
        )
    for name, value in arguments.items():
        if value:
            raise UnsupportedError(
                f"{name} changes how the PyTorch model is built, and a bundle is built already. Apply it to the "
                "checkpoint and export that; for the precision use dtype='...'."
            )
    if backend not in ("onnx", "torch"):
        raise UnsupportedError(f"backend {backend!r} is not known. A bundle runs with 'onnx'; leave backend out.")
    if trust_remote_code:
        logger.warning(
            "trust_remote_code=True has no effect: stonnx never runs code from a model repository. A model that needs "
            "it is exported once, with: stonnx export MODEL --trust-remote-code"
        )
