"""Every error that stonnx raises on purpose.

Each one names the fault, the allowed values, and a remedy. Each is also the builtin error that people already catch::

    StonnxError
    ├── ModelNotFoundError        (FileNotFoundError)   a name or path without a bundle or checkpoint
    │   └── ModelFileError        (NotADirectoryError)  the path of a file
    ├── BundleError               (ValueError)          a bundle that cannot be used
    │   ├── BundleFormatError                           its manifest is not a manifest, or of a newer schema
    │   └── BundleIntegrityError  (OSError)             a file is missing, truncated or changed
    ├── InvalidInputError         (TypeError, ValueError)   an input that is not a text; carries its index
    │   ├── TokenIdError          (IndexError)          a text with a token that the network has no row for
    │   └── TokenizerError                              a text that the tokenizers package cannot read
    ├── TextTooLongError          (ValueError)          a text over the model's limit, if that should be an error
    ├── InvalidArgumentError      (ValueError)          an argument outside what is allowed
    │   └── ArgumentTypeError     (TypeError)           an argument of a wrong type
    ├── UnsupportedError          (ValueError, NotImplementedError)   something stonnx does not do, by name
    ├── DeviceError               (RuntimeError)        a requested device that does not work
    ├── RunError                  (RuntimeError)        a run that failed on a device that had loaded the graph
    ├── ProbeError                (RuntimeError)        a bundle that gives other vectors here than it should
    ├── PoolError                 (RuntimeError)        a pool whose process died, or that was stopped
    ├── OverloadedError           (RuntimeError)        a batcher in which too many tokens wait; says when to try again
    ├── TooManyTokensError        (ValueError)          a request of more tokens than may ever wait in a batcher
    ├── DeadlineError             (TimeoutError)        a request whose deadline passed before all of it had run
    ├── MissingDependencyError    (ImportError)         a package that has to be installed first
    └── ExportError               (RuntimeError)        an export that failed; nothing was written
        └── FidelityError                               the bundle is too far from the original
"""

from __future__ import annotations


class StonnxError(Exception):
    """Base of all errors that stonnx raises on purpose."""


class ModelNotFoundError(StonnxError, FileNotFoundError):
    """A name or path does not lead to a model."""


class ModelFileError(ModelNotFoundError, NotADirectoryError):
    """A path that should be the directory of a model is that of a file."""


class BundleError(StonnxError, ValueError):
    """A bundle cannot be used."""


class BundleFormatError(BundleError):
    """A manifest cannot be read, or was written by a newer schema than this version knows."""


class BundleIntegrityError(BundleError, OSError):
    """A file of a bundle is missing, truncated or changed."""


class InvalidInputError(StonnxError, TypeError, ValueError):
    """An input is not a text. ``index`` is its position in the list, or None for a single input."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class TokenIdError(InvalidInputError, IndexError):
    """A text has a token that the network has no row for: its checkpoint's tokenizer has more tokens than its table.

    Attributes:
        index: Position of the text in the list.
        token: The token.
        token_id: Its id.
        rows: The rows of the table.
    """

    index: int

    def __init__(self, index: int, token: str, token_id: int, rows: int) -> None:
        super().__init__("", index)
        self.args = (index, token, token_id, rows)
        self.token, self.token_id, self.rows = token, token_id, rows

    def __str__(self) -> str:
        return (
            f"Text {self.index} has the token {self.token!r} with the id {self.token_id}, and the network has rows for "
            f"{self.rows} tokens only: the checkpoint's tokenizer knows tokens that its weights do not. Leave that "
            "token out of the text, or export a checkpoint with resized embeddings."
        )


class TokenizerError(InvalidInputError):
    """The tokenizers package failed on a text, as some splitters do on millions of spaces.

    Attributes:
        index: Position of the text in the list.
        reason: The message of the package.
    """

    index: int

    def __init__(self, index: int, reason: str) -> None:
        super().__init__("", index)
        self.args = (index, reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Text {self.index} cannot be tokenized: the tokenizers package says {self.reason!r}. Split the text, or "
            "replace long runs of the same character in it."
        )


class TextTooLongError(StonnxError, ValueError):
    """A text has more tokens than the model reads, and ``too_long`` is ``"error"``.

    Attributes:
        index: Position of the text in the list.
        tokens: Its tokens, special tokens included.
        limit: The tokens that the model reads.
    """

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(index, tokens, limit)
        self.index, self.tokens, self.limit = index, tokens, limit

    def shift(self, start: int) -> None:
        """Change an index that counts from ``start`` into one that counts from the beginning of the list."""
        self.index += start
        self.args = (self.index, self.tokens, self.limit)

    def __str__(self) -> str:
        return (
            f"Text {self.index} has {self.tokens:,} tokens, and the model reads {self.limit:,}. Split it, or have "
            "its end cut off with too_long='truncate'; max_seq_length can be raised if the model has more positions."
        )


class InvalidArgumentError(StonnxError, ValueError):
    """An argument is outside what is allowed."""


class ArgumentTypeError(InvalidArgumentError, TypeError):
    """An argument is of a type that is not allowed."""


class UnsupportedError(StonnxError, ValueError, NotImplementedError):
    """Something that stonnx does not do; the message names it and says what works instead."""


class DeviceError(StonnxError, RuntimeError):
    """A requested device does not work here."""


class RunError(StonnxError, RuntimeError):
    """A run of the graph failed, though the device had loaded it. Usually because memory ran out."""


class PoolError(StonnxError, RuntimeError):
    """A pool of processes cannot be used: one of them died, or the pool was stopped."""


class OverloadedError(StonnxError, RuntimeError):
    """Too many tokens wait in a batcher. It did not compute any part of the request.

    Attributes:
        queued_tokens: Tokens that wait.
        limit: How many may.
        retry_after: Seconds until half of them have run, by the measured speed.
    """

    def __init__(self, queued_tokens: int, limit: int, retry_after: float) -> None:
        super().__init__(queued_tokens, limit, retry_after)
        self.queued_tokens, self.limit, self.retry_after = queued_tokens, limit, retry_after

    def __str__(self) -> str:
        return (
            f"{self.queued_tokens:,} tokens wait already, and at most {self.limit:,} may (max_queued_tokens). "
            f"Try again in {self.retry_after:.1f} s."
        )


class TooManyTokensError(StonnxError, ValueError):
    """A request has more tokens than may ever wait in a batcher. Split it.

    Attributes:
        tokens: Tokens of the request.
        limit: How many may wait.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(tokens, limit)
        self.tokens, self.limit = tokens, limit

    def __str__(self) -> str:
        return (
            f"The request has about {self.tokens:,} tokens, and at most {self.limit:,} may wait at a time "
            "(max_queued_tokens). Split it into several requests."
        )


class DeadlineError(StonnxError, TimeoutError):
    """The deadline of a request passed before all of its texts had run. The remaining texts were dropped."""

    def __str__(self) -> str:
        return "The deadline of the request passed before all of its texts had run."


class MissingDependencyError(StonnxError, ImportError):
    """A package has to be installed first; the message has the command."""


class ExportError(StonnxError, RuntimeError):
    """An export failed. Nothing was written to the output directory."""


class FidelityError(ExportError):
    """The exported bundle is further from the original than its recipe tolerates. Nothing was written."""


class ProbeError(StonnxError, RuntimeError):
    """A bundle gives other vectors on this machine than on the machine that exported it.

    Attributes:
        reason: What was found, without the advice that the message ends with.
    """

    reason: str = ""
