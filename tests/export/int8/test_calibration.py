"""Calibration: ranges of values over texts or random tokens, and files of texts that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
from small_graphs import HIDDEN, VOCABULARY, encoder, nodes_of, run_as_it_is
from zoo.table import TokenizerKind
from zoo.tokenizers import build_tokenizer

import stonnx_export.calibration.measure as measuring
from stonnx import cli
from stonnx._bundle.manifest import ChatTemplate
from stonnx._errors import InvalidArgumentError
from stonnx_export import export
from stonnx_export.calibration.measure import (
    measure,
    random_sequences,
    read_texts,
    text_sequences,
    tokens,
)
from stonnx_export.originals.original import OriginalTokenizer

LINES = [f"Line {number} of a file." for number in range(16)]
# The tokens around every text.
ENDS: dict[TokenizerKind, tuple[list[str], list[str]]] = {
    "wordpiece-uncased": (["[CLS]"], ["[SEP]"]),
    "wordpiece-cased": (["[CLS]"], ["[SEP]"]),
    "wordpiece-mpnet": (["<s>"], ["</s>"]),
    "bpe-roberta": (["<s>"], ["</s>"]),
    "bpe-modernbert": (["[CLS]"], ["[SEP]"]),
    "bpe-qwen": ([], ["<|endoftext|>"]),
    "bpe-gemma": (["<bos>"], ["<eos>"]),
    "unigram-xlmr": (["<s>"], ["</s>"]),
    "wordpiece-model2vec": ([], []),
}


def original(backend: tokenizers.Tokenizer, *, add_special_tokens: bool = True) -> OriginalTokenizer:
    return OriginalTokenizer(backend, 64, 0, 0, "right", (), add_special_tokens)


class TestRandomSequences:
    @pytest.mark.parametrize("kind", ENDS)
    def test_special_tokens_at_both_ends(self, kind: TokenizerKind) -> None:
        backend = build_tokenizer(kind)
        front, back = ([backend.token_to_id(token) for token in tokens] for tokens in ENDS[kind])
        sequences = random_sequences(original(backend), 64)
        assert (len(sequences), {len(sequence) for sequence in sequences}) == (64, {64})
        inner = []
        for sequence in sequences:
            assert sequence[: len(front)] == front
            assert sequence[len(sequence) - len(back) :] == back
            inner += sequence[len(front) : len(sequence) - len(back)]
        size = backend.get_vocab_size(with_added_tokens=False)
        assert set(inner) <= set(range(size))
        # An eighth is punctuation. The others are from all over the vocabulary: of each tenth about a tenth.
        backend.no_padding()
        marks = set(backend.encode(". , ? ! : ; - ' \" ( )", add_special_tokens=False).ids)
        assert np.mean([number in marks for number in inner]) == pytest.approx(1 / 8, abs=0.03)
        assert backend.encode("a.", add_special_tokens=False).ids[-1] in inner
        others = [number for number in inner if number not in marks]
        counts = np.histogram(others, bins=10, range=(0, size))[0] / len(others)
        np.testing.assert_allclose(counts, 0.1, atol=0.02)

    def test_always_the_same(self) -> None:
        tokenizer = original(build_tokenizer("bpe-roberta"))
        assert random_sequences(tokenizer, 64) == random_sequences(tokenizer, 64)
        assert len({tuple(sequence) for sequence in random_sequences(tokenizer, 64)}) == 64

    @pytest.mark.parametrize(("limit", "length"), [(8192, 64), (64, 64), (63, 63), (10, 10), (3, 3)])
    def test_the_limit_of_the_model(self, limit: int, length: int) -> None:
        sequences = random_sequences(original(build_tokenizer("wordpiece-uncased")), limit)
        assert {len(sequence) for sequence in sequences} == {length}

    def test_a_route_without_special_tokens(self) -> None:
        backend = build_tokenizer("wordpiece-uncased")
        first = {sequence[0] for sequence in random_sequences(original(backend, add_special_tokens=False), 64)}
        assert len(first) > 32

    def test_the_settings_of_the_original_do_not_matter_and_stay(self) -> None:
        backend = build_tokenizer("wordpiece-uncased")
        expected = random_sequences(original(backend), 64)
        backend.enable_truncation(2)
        backend.enable_padding(length=128)
        settings = backend.to_str()
        assert random_sequences(original(backend), 64) == expected
        assert backend.to_str() == settings


class TestTextSequences:
    TEXTS = ("Green tea.", "a " * 200, "")

    def test_ids_are_those_of_the_tokenizer(self) -> None:
        backend = build_tokenizer("wordpiece-uncased")
        backend.enable_padding(length=128)
        settings = backend.to_str()
        sequences = text_sequences(original(backend), self.TEXTS, 20)
        assert backend.to_str() == settings
        backend.no_padding()
        backend.enable_truncation(20)
        assert sequences == [backend.encode(text).ids for text in self.TEXTS]
        assert [len(sequence) for sequence in sequences] == [len(sequences[0]), 20, 2]

    def test_texts_without_tokens_are_left_out(self) -> None:
        backend = build_tokenizer("wordpiece-uncased")
        sequences = text_sequences(original(backend, add_special_tokens=False), self.TEXTS, 20)
        assert sequences == [backend.encode("Green tea.", add_special_tokens=False).ids, [*sequences[1]]]
        assert len(sequences[1]) == 20


class TestFiles:
    @staticmethod
    def write(tmp_path: Path, content: bytes) -> Path:
        (tmp_path / "texts.txt").write_bytes(content)
        return tmp_path / "texts.txt"

    def test_a_text_in_each_line(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "\r\n\n  ".join(["größer 大きい", *LINES]).encode() + b"   \n\n")
        assert read_texts(file) == ["größer 大きい", *LINES]

    def test_at_most_a_thousand(self, tmp_path: Path) -> None:
        texts = read_texts(self.write(tmp_path, b"\n".join(b"%d" % number for number in range(3000))))
        assert texts == [str(number) for number in range(1000)]

    def test_the_rest_of_a_large_file_is_not_read(self, tmp_path: Path) -> None:
        """Not even for what would be wrong with it."""
        assert (
            read_texts(self.write(tmp_path, b"one line\n" * 10_000 + b"\0" * 10_000 + b"\xff")) == ["one line"] * 1000
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param(b"", "has 0 lines that are not empty", id="empty"),
            pytest.param(b"\n \n\t\n" * 50, "has 0 lines that are not empty", id="blank"),
            pytest.param(b"one line", "has 1 lines that are not empty", id="one line"),
            pytest.param("\n".join(LINES[1:]).encode(), "has 15 lines that are not empty", id="one too few"),
            pytest.param(bytes(range(256)) * 100, "is not a text in UTF-8", id="binary"),
            pytest.param(b"a\0b\n" * 50, "has NUL characters", id="NUL"),
            pytest.param("\n".join(LINES).encode("utf-16"), "is not a text in UTF-8", id="UTF-16"),
            pytest.param("\n".join(["größer", *LINES]).encode("latin-1"), "is not a text in UTF-8", id="Latin-1"),
        ],
    )
    def test_no_texts(self, tmp_path: Path, content: bytes, message: str) -> None:
        file = self.write(tmp_path, content)
        with pytest.raises(InvalidArgumentError, match=message) as raised:
            read_texts(file)
        assert str(file) in str(raised.value)
        assert "at least 16 lines, one text in each, or without --calibrate" in str(raised.value)

    @pytest.mark.parametrize(("name", "message"), [("missing.txt", "No such file"), ("", "Is a directory")])
    def test_no_file(self, tmp_path: Path, name: str, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=f"cannot be read: {message}"):
            read_texts(tmp_path / name)

    @pytest.mark.parametrize(
        ("dtype", "message"), [("int8", "has 1 lines"), ("fp32", "fp32 does not"), ("fp16", "fp16 does not")]
    )
    def test_refused_before_a_checkpoint_is_looked_for(self, tmp_path: Path, dtype: str, message: str) -> None:
        file = self.write(tmp_path, b"one line")
        with pytest.raises(InvalidArgumentError, match=message):
            export("no/such/model", tmp_path / "new" / "bundle", dtype=dtype, calibrate=file)
        assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]

    @pytest.mark.parametrize(("dtype", "message"), [("int8", "has 1 lines"), ("fp32", "calibrate is for recipes that")])
    def test_on_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, message: str
    ) -> None:
        file = self.write(tmp_path, b"one line")
        arguments = ["export", "no/such/model", "-o", str(tmp_path / "out"), "--dtype", dtype, "--calibrate", str(file)]
        assert cli.main(arguments) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert message in output.err
        assert "Traceback" not in output.err


class TestRanges:
    SEQUENCES = ([1, 2, 3], [4], list(range(5, VOCABULARY)))

    def test_the_largest_magnitudes_of_all_texts(self) -> None:
        model = encoder()
        values = [node.inputs[0] for node in nodes_of(model, "MatMul")]
        ranges = {name: found.peak for name, found in measure(model, values, self.SEQUENCES).items()}
        assert set(ranges) == {str(value.name) for value in values}
        # The same values as outputs of the graph.
        plain = encoder()
        names = sorted(ranges)
        plain.graph.outputs[:] = [
            next(value for node in plain.graph for value in node.outputs if value.name == name) for name in names
        ]
        expected: list[np.ndarray] = []
        for sequence in self.SEQUENCES:
            ids = np.array([sequence])
            found = [
                np.abs(array[0]).max(axis=0) for array in run_as_it_is(plain, input_ids=ids, attention_mask=ids * 0 + 1)
            ]
            expected = [np.maximum(*pair) for pair in zip(expected, found, strict=True)] if expected else found
        for name, array in zip(names, expected, strict=True):
            np.testing.assert_allclose(ranges[name], array, rtol=1e-6)
        assert {len(array) for array in ranges.values()} == {HIDDEN, 2 * HIDDEN}

    def test_the_moments_of_all_tokens(self) -> None:
        model = encoder()
        values = [node.inputs[0] for node in nodes_of(model, "MatMul")]
        measured = measure(model, values, self.SEQUENCES, values[:-1])
        assert [measured[str(value.name)].moments is None for value in values] == [False] * (len(values) - 1) + [True]
        for value in values[:-1]:
            rows = [arrays[str(value.name)] for arrays in tokens(model, [value], self.SEQUENCES)]
            assert [len(row) for row in rows] == [len(sequence) for sequence in self.SEQUENCES]
            x = np.concatenate(rows).astype(np.float64)
            np.testing.assert_allclose(measured[str(value.name)].moments, x.T @ x / len(x), rtol=1e-4, atol=1e-5)

    def test_the_parts_make_the_whole(self) -> None:
        """Texts in two lists, of different lengths, measure as in one."""
        model = encoder()
        values = [node.inputs[0] for node in nodes_of(model, "MatMul")]
        whole, one, other = (
            measure(model, values, sequences, values)
            for sequences in (self.SEQUENCES, self.SEQUENCES[:1], self.SEQUENCES[1:])
        )
        for name, expected in whole.items():
            merged = one[name].merged(other[name])
            assert merged.count == expected.count == sum(map(len, self.SEQUENCES))
            np.testing.assert_array_equal(merged.peak, expected.peak)
            np.testing.assert_allclose(merged.moments, expected.moments, rtol=1e-4, atol=1e-5)

    def test_a_value_that_is_an_output_of_the_graph(self) -> None:
        model = encoder()
        output = model.graph.outputs[0]
        assert len(next(iter(tokens(model, [output], self.SEQUENCES)))[str(output.name)]) == 3
        assert list(model.graph.outputs) == [output]

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_graph_stays_as_it_is(self, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        model = encoder()
        before = ir.to_proto(model)
        values = [node.inputs[0] for node in nodes_of(model, "MatMul")]
        if fails:
            monkeypatch.setattr(measuring, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                measure(model, values, self.SEQUENCES)
        else:
            measure(model, values, self.SEQUENCES)
        after = ir.to_proto(model)
        assert after.graph.node == before.graph.node
        assert after.graph.output == before.graph.output


def test_the_texts_of_a_chat_model_are_in_its_template() -> None:
    backend = build_tokenizer("bpe-qwen-chat")
    form = ("<|im_start|>", "query", " and ", "document", "<|im_end|>\n<think>")
    tokenizer = OriginalTokenizer(backend, 40, 0, 0, "right", (), False, chat=ChatTemplate(pair=form))
    first, *_, last = [backend.token_to_id(token) for token in ("<|im_start|>", "<think>")]
    for sequence in (*random_sequences(tokenizer, 40), *text_sequences(tokenizer, ["a", "b", "c"], 40)):
        assert (sequence[0], sequence[-1]) == (first, last)
        assert len(sequence) <= 40
    assert len(text_sequences(tokenizer, ["a", "b", "c"], 40)) == 2
