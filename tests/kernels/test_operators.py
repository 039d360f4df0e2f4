"""Every operator, variant and shape: the body of its function is what a kernel is held against."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stonnx._device import kernels as native

from .layers import Compared, Layer, feeds_of

KINDS = {
    "BERT": Layer(),
    "MPNet": Layer(position_bias=True),
    "first tokens": Layer(token_limit=True),
    "NomicBERT": Layer(biases=False, activation="silu", gated=True, rotary=True),
    "ModernBERT": Layer(norm="pre", biases=False, fused=True, rotary=True),
    "ModernBERT's window": Layer(norm="pre", biases=False, fused=True, rotary=True, window=5),
    "Qwen3": Layer(
        norm="pre", rms=True, biases=False, activation="silu", gated=True, rotary=True, head_norms=True, causal=True,
        heads=4, kv_heads=2,
    ),
    "RMS norms in pieces": Layer(
        norm="pre", rms=True, pieces=True, biases=False, activation="silu", gated=True, rotary=True, head_norms=True,
        causal=True, heads=4, kv_heads=2,
    ),
    "every head has keys": Layer(norm="pre", rms=True, activation="silu", gated=True, rotary=True, causal=True),
    "GELU with tanh": Layer(activation="gelu_tanh"),
    "ReLU": Layer(activation="relu"),
    "MiniLM's heads": Layer(hidden=96, heads=3, kv_heads=3, head_size=32, inner=384),
    "odd widths": Layer(hidden=54, heads=3, kv_heads=3, head_size=18, inner=50),
    "one head of 1": Layer(hidden=8, heads=1, kv_heads=1, head_size=1, inner=4),
    "a head of 256": Layer(hidden=64, heads=1, kv_heads=1, head_size=256, inner=64),
    "grouped": Layer(heads=4, kv_heads=1, head_size=16),
}  # fmt: skip
BATCHES = [(1,), (7, 2), (33, 1, 17, 64)]
DTYPES = ("int8", "bf16", "fp32")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The size of a difference, of the size of what is expected."""
    difference = np.linalg.norm(found.astype(np.float64) - expected)
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))


def check(compared: Compared, feeds: dict[str, np.ndarray], dtype: str) -> None:
    """The kernel is as close to float32 as what it stands for, and close to that."""
    runs = compared.run(feeds)
    assert runs.kernel.shape == runs.body.shape
    assert np.isfinite(runs.kernel).all()
    body, kernel = relative(runs.body, runs.plain), relative(runs.kernel, runs.plain)
    if dtype == "int8":
        # Rounding differs from token to token: of few tokens one can have more of it than another.
        assert kernel <= 1.5 * body + 0.01
    else:
        assert kernel <= 0.02


def skip_without_bfloat16(library: native.Library, dtype: str) -> None:
    if dtype != "int8" and not library.bfloat16:
        pytest.skip(f"{library.variant} does not multiply bfloat16")


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest, library: native.Library) -> str:
    skip_without_bfloat16(library, request.param)
    return str(request.param)


class TestKinds:
    @pytest.mark.parametrize("name", KINDS)
    def test_against_the_body(self, name: str, dtype: str, library: native.Library) -> None:
        compared = Compared(KINDS[name], dtype, library)
        assert compared.found.blocks.total() == 2 + KINDS[name].token_limit, compared.found.stock
        for lengths in BATCHES:
            feeds = feeds_of(lengths)
            check(compared, feeds, dtype)
            if KINDS[name].token_limit:
                for limit in (1, 3, 100):
                    check(compared, {**feeds, "token_limit": np.array([limit])}, dtype)

    def test_the_kernel_runs(self, dtype: str, library: native.Library) -> None:
        """It is no comparison of the body with itself."""
        runs = Compared(KINDS["BERT"], dtype, library).run(feeds_of((9, 5)))
        assert not np.array_equal(runs.kernel, runs.body)


class TestInvariance:
    """A token's result depends neither on the batch, the padding, nor the number of threads, to the last bit."""

    @pytest.mark.parametrize("name", ["BERT", "MPNet", "Qwen3", "ModernBERT's window", "odd widths"])
    def test_alone_and_in_batches(self, name: str, dtype: str, library: native.Library) -> None:
        compared = Compared(KINDS[name], dtype, library)
        threaded = Compared(KINDS[name], dtype, library, threads=3)
        lengths = (19, 3, 64, 1, 33)
        feeds = feeds_of(lengths)
        together = compared.kernel(feeds)
        np.testing.assert_array_equal(threaded.kernel(feeds), together)
        for number, length in enumerate(lengths):
            alone = {key: array[number : number + 1, :length] for key, array in feeds.items()}
            padded = {key: np.pad(array, ((0, 0), (0, 13))) for key, array in alone.items()}
            for form in (compared, threaded):
                np.testing.assert_array_equal(form.kernel(alone)[0], together[number, :length])
                np.testing.assert_array_equal(form.kernel(padded)[0, :length], together[number, :length])

    def test_many_threads_at_once(self, dtype: str, library: native.Library) -> None:
        """Sixteen, in two sessions, with texts of different lengths."""
        forms = [Compared(KINDS["MiniLM's heads"], dtype, library, threads=count) for count in (1, 2)]
        every = [feeds_of((length, 5), seed=length) for length in (1, 8, 31, 70)]
        expected = [forms[0].kernel(feeds) for feeds in every]
        wrong: list[int] = []

        def work(seed: int) -> None:
            for turn in range(6):
                index = (seed + turn) % len(every)
                found = forms[seed % 2].kernel(every[index])
                if not np.array_equal(found, expected[index]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


class TestFilledUp:
    """Tokens after the end of a query are rows of it, and no token attends to them."""

    @pytest.fixture(autouse=True)
    def _needs_attended(self) -> None:
        found = native.find(2)
        if isinstance(found, native.Unusable):
            pytest.skip(found.reason)

    @pytest.mark.parametrize("name", ["BERT", "MPNet", "ModernBERT", "ModernBERT's window", "Qwen3"])
    def test_against_the_body(self, name: str, dtype: str, library: native.Library) -> None:
        layer = dataclasses.replace(KINDS[name], filled=True)
        compared = Compared(layer, dtype, library)
        assert compared.found.blocks.total() == 2, compared.found.stock
        assert compared.found.operators == 2
        for lengths in [(1,), (7, 2), (33, 1, 17, 64), (5, 64), (0, 3)]:
            for rows in (-1, 0, 1, 16, 32, 64, 100):
                check(compared, {**filled_feeds_of(lengths), "query_rows": np.array(rows)}, dtype)

    def test_a_query_alone_padded_and_in_a_batch(self, dtype: str, library: native.Library) -> None:
        compared, threaded = (
            Compared(dataclasses.replace(KINDS["BERT"], filled=True), dtype, library, threads=threads)
            for threads in (1, 3)
        )
        feeds = {**filled_feeds_of((19, 3, 40, 0)), "query_rows": np.array(32)}
        together = compared.kernel(feeds)
        np.testing.assert_array_equal(threaded.kernel(feeds), together)
        for number, rows in enumerate((32, 32, 40, 32)):
            alone = {key: array[number : number + 1, :rows] if array.ndim else array for key, array in feeds.items()}
            np.testing.assert_array_equal(compared.kernel(alone)[0], together[number, :rows])

    def test_what_fills_up_changes_no_other_row(self, dtype: str, library: native.Library) -> None:
        compared = Compared(dataclasses.replace(KINDS["BERT"], filled=True), dtype, library)
        feeds = filled_feeds_of((9, 4))
        plain = {key: array[:, :9] for key, array in feeds.items()}
        filled = compared.kernel({**feeds, "query_rows": np.array(64)})
        np.testing.assert_array_equal(filled[0, :9], compared.kernel(plain)[0])
        assert filled[0, 9:].any(axis=-1).all()


def filled_feeds_of(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Texts of these lengths, of 64 rows at least, each of which is a token."""
    feeds = feeds_of([64] * len(lengths))
    return {**feeds, "attention_mask": feeds_of([*lengths, 64])["attention_mask"][:-1]}


class TestEdges:
    def test_no_texts(self, dtype: str, library: native.Library) -> None:
        empty = np.zeros((0, 4), dtype=np.int64)
        result = Compared(KINDS["BERT"], dtype, library).kernel({"input_ids": empty, "attention_mask": empty})
        assert result.shape == (0, 4, 64)

    def test_a_text_without_tokens(self, dtype: str, library: native.Library) -> None:
        """Zeros: nobody reads them. The text beside it is as it is alone."""
        compared = Compared(KINDS["BERT"], dtype, library)
        feeds = feeds_of((0, 6))
        found = compared.kernel(feeds)
        assert not found[0].any()
        alone = {key: array[1:] for key, array in feeds.items()}
        np.testing.assert_array_equal(found[1], compared.kernel(alone)[0])

    def test_a_long_text(self, library: native.Library) -> None:
        compared = Compared(KINDS["BERT"], "int8", library)
        check(compared, feeds_of((512, 40)), "int8")

    def test_scores_that_are_enormous(self, dtype: str, library: native.Library) -> None:
        """Of equal tokens, all have the same weight, however large the scores are."""
        if not library.bfloat16:
            pytest.skip(f"{library.variant} has attention in float32, whose scores end at 1e7")
        feeds = feeds_of((40, 1))
        feeds["input_ids"][:] = 3
        check(Compared(Layer(loud=1e17), dtype, library), feeds, dtype)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity(self, value: float, dtype: str, library: native.Library) -> None:
        """They spoil the text that has them, as they do with stock operators, and no other."""
        poisoned = Compared(KINDS["BERT"], dtype, library, poison=value)
        feeds = feeds_of((7, 5))
        feeds["input_ids"][0, 2] = 1
        feeds["input_ids"][1] = 2
        found = poisoned.kernel(feeds)
        assert not np.isfinite(found[0, 2]).any()
        np.testing.assert_array_equal(found[1], Compared(KINDS["BERT"], dtype, library).kernel(feeds)[1])


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Any layer whose widths fit each other."""
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    head_size = 2 * draw(st.integers(1, 20))
    rotary, rms = draw(st.booleans()), draw(st.booleans())
    causal = draw(st.booleans())
    window = draw(st.none() | st.integers(0, 9)) if not causal else None
    return Layer(
        hidden=draw(st.integers(2, 90)),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        inner=draw(st.integers(2, 150)),
        norm=draw(st.sampled_from(["pre", "post"])),
        rms=rms,
        pieces=rms and draw(st.booleans()),
        biases=draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "silu"])),
        gated=draw(st.booleans()),
        fused=draw(st.booleans()),
        rotary=rotary,
        head_norms=rotary and draw(st.booleans()),
        causal=causal,
        window=window,
        position_bias=not causal and window is None and draw(st.booleans()),
        filled=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(layer=layers(), lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4), rows=st.integers(-1, 80))
def test_fuzzed(layer: Layer, lengths: list[int], rows: int, dtype: str, library: native.Library) -> None:
    compared = Compared(layer, dtype, library)
    assert compared.found.blocks, compared.found.stock
    feeds = feeds_of(lengths)
    assume(not layer.filled or isinstance(native.find(2), native.Library))
    if layer.filled:
        feeds |= {"input_ids": feeds_of([max(lengths)] * len(lengths))["input_ids"], "query_rows": np.array(rows)}
    check(compared, feeds, dtype)
