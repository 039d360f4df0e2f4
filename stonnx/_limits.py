"""The sizes and times that a loaded model works with, in one place. They decide speed and memory, never results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes and times of a loaded model. Tests and measurements pass others; all other code uses these.

    Attributes:
        first_window: Texts that are tokenized before the first run. It is small, so that the first batch runs soon.
        window: Texts that are tokenized at a time after that: enough to find texts of equal length, and few enough to
            bound memory.
        window_characters: The most characters of such a window, unless it is a single text.
        tokenized_characters: Characters that one call into the tokenizer gets: a tenth of a second on a busy machine.
            Ctrl-C comes through after that.
        patience_seconds: How long a call that ends early waits for the texts that are being tokenized: longer than they
            take, unless one of them is as long as a book.
        tokens_before_second_session: Tokens that a model reads before it loads its single-thread session: about a
            second of work for a small model, and loading that session takes a tenth of it.
        second_copy_bytes: The most bytes of weights that are held twice.
        uninterrupted_tokens: A run of more tokens takes so long for a large model that Ctrl-C must be able to end it.
        spin_microseconds: How long a thread waits for the next piece of work before it sleeps. That covers the gaps
            inside a run. The next run comes later, and waking up for it costs less than onnxruntime's own 16 ms take
            from everybody else: two models in turns took 1.4 times as long as alone with those, and 1.0 times with
            this (benchmarks/questions/threads.py).
        stream_texts: Texts of a stream that are encoded at a time: enough to find texts of equal length.
        stream_characters: The most characters of these: together with their vectors, about 100 MB.
    """

    first_window: int = 128
    window: int = 1024
    window_characters: int = 1 << 18
    tokenized_characters: int = 1 << 16
    patience_seconds: float = 0.5
    tokens_before_second_session: int = 20_000
    second_copy_bytes: int = 512 << 20
    uninterrupted_tokens: int = 64
    spin_microseconds: int = 100
    stream_texts: int = 8192
    stream_characters: int = 16 << 20
