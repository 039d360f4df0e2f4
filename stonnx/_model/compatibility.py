"""Members and arguments that are there so that code written for sentence-transformers runs unchanged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from stonnx._errors import UnsupportedError
from stonnx._model.call import is_same_device
from stonnx._text.inputs import is_batch

logger = logging.getLogger("stonnx")


class Compatibility:
    """Members that sentence-transformers' models have: they do nothing here, or have another name."""

    if TYPE_CHECKING:  # of the class that this is mixed into

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
        name = f"cuda:{device}" if isinstance(device, int) else str(device)  # torch.device has its name as str
        if not is_same_device(name, self.device):
            raise UnsupportedError(
                f"This model was loaded for {self.device!r} and cannot move to {name!r}. Load it again for another "
                f"device: {type(self).__name__}(..., device=...); another precision is another export: dtype='...'."
            )
        return self

    def cpu(self) -> Self:
        """The model itself, where it is on the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """The model itself, where it is on that GPU; None is the first."""
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
        """Further keyword arguments that ``encode`` takes for this model: none."""
        return []

    @property
    def modalities(self) -> list[str]:
        """What the model reads: text."""
        return ["text"]

    def supports(self, modality: str) -> bool:
        """Whether the model reads a modality."""
        return modality in self.modalities

    def tokenize(self, texts: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
        """Old name of :meth:`preprocess`."""
        return self.preprocess(texts, **kwargs)

    def is_singular_input(self, inputs: Any) -> bool:
        """Whether an argument is one input rather than a batch."""
        return not is_batch(inputs)


def refuse_torch_arguments(*, backend: str, trust_remote_code: bool, **arguments: Any) -> None:
    """Raise for arguments that would change how the PyTorch model is built: a bundle is built already.

    Args:
        backend: ``"onnx"``, or ``"torch"``, which code written for sentence-transformers may pass.
        trust_remote_code: Has no effect, which is logged.
        **arguments: The others, by name. Each must be empty.

    Raises:
        UnsupportedError: An argument would change the result.
    """
    for name, value in arguments.items():
        if value:
            raise UnsupportedError(
                f"{name} changes how the PyTorch model is built, and a bundle is built already. Apply it to the "
                "checkpoint and export that; for the precision use dtype='...'."
            )
    if backend not in ("onnx", "torch"):
        raise UnsupportedError(f"backend {backend!r} is not known. A bundle runs with 'onnx'; leave backend out.")
    if trust_remote_code:
        logger.warning("trust_remote_code=True has no effect: stonnx never runs code from a model repository.")
