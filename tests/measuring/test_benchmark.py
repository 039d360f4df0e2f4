"""The benchmark measures what it says, and what cannot be measured is in its report with the reason."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks import texts
from benchmarks.peers import environments, models, report, worker
from benchmarks.peers.drivers import DRIVERS, by_length, feeds
from benchmarks.peers.environments import ENVIRONMENTS
from benchmarks.peers.models import MODELS
from benchmarks.peers.systems import REFERENCE, SYSTEMS, TASKS, WORKLOADS, System
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.questions import accuracy


@pytest.mark.parametrize(
    ("name", "tokens"), [("short", 14), ("passages", 75), ("long", 256), ("single", 14), ("splade", 75)]
)
def test_texts_have_the_stated_number_of_tokens(minilm_checkpoint: Path, name: str, tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    inputs = next(workload.inputs() for workload in WORKLOADS if workload.name == name)
    assert {len(encoding) for encoding in tokenizer.encode_batch(list(inputs))} == {tokens}


def test_mixed_texts_are_skewed_and_all_different() -> None:
    lengths = np.array([len(text.split()) for text in texts.mixed_texts(2000)])
    assert abs(np.log(lengths[lengths < 250]).std() - 0.8) < 0.1
    assert np.median(lengths) < lengths.mean()
    assert len(set(texts.sentences(1000))) == 1000


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_rows_of_the_tables_fit_together(system: System) -> None:
    assert system.driver in DRIVERS
    assert system.environment in ENVIRONMENTS
    assert set(system.models.values()) <= set(MODELS)
    assert {MODELS[model].task for model in system.models.values()} == set(system.models)
    assert bool(system.cannot) == (set(system.models) != set(TASKS))


def test_batches_stay_in_the_token_budget() -> None:
    lengths = [3, 200, 14, 14, 90, 7, 300]
    batches = by_length(lengths, 256)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 256 for batch in batches)


def test_feeds_are_padded_on_the_right(minilm_checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    arrays = feeds(tokenizer.encode_batch([("a b", "c"), ("a", "b")]))
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]
    assert arrays["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]


class TestAccuracy:
    rows = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)

    def test_what_is_the_same_is_perfect(self) -> None:
        data = accuracy.Sample([""] * 60, [(0, 1), (2, 3), (4, 5)], [1.0, 2.0, 3.0])
        figures = accuracy.compare("embedding", data, self.rows, self.rows)
        assert figures.cosine_min == pytest.approx(1)
        assert (figures.overlap, figures.spearman_drop) == (1, 0)

    def test_what_differs_shows(self) -> None:
        # As people score them, so that any other order costs points.
        pairs = [(index, index + 1) for index in range(0, 20, 2)]
        scores = [
            float((self.rows[a] @ self.rows[b]) / np.linalg.norm(self.rows[[a, b]], axis=1).prod()) for a, b in pairs
        ]
        other = self.rows.copy()
        other[7] *= -1
        figures = accuracy.compare("embedding", accuracy.Sample([""] * 60, pairs, scores), self.rows, other)
        assert figures.cosine_min == pytest.approx(-1)
        assert figures.spearman_drop is not None
        assert figures.spearman_drop > 1
        assert figures.overlap is not None
        assert 0.5 < figures.overlap < 1

    def test_scale_means_nothing_to_a_cosine_and_everything_to_a_score(self) -> None:
        assert accuracy.agreement("embedding", self.rows, 2 * self.rows) == pytest.approx(1)
        scores = np.array([0.5, 1.0, -1.0])
        assert accuracy.agreement("rerank", scores, 2 * scores) == pytest.approx(0)
        assert accuracy.compare("rerank", accuracy.Sample([]), scores, 2 * scores).spearman_drop == pytest.approx(0)

    def test_active_words_are_compared(self) -> None:
        a, b = np.array([[1.0, 2.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 0.5, 0.0]])
        assert accuracy.compare("sparse", accuracy.Sample([""]), a, b).overlap == pytest.approx(2 / 3)

    def test_two_empty_vectors_are_the_same(self) -> None:
        assert accuracy.cosines(np.zeros((1, 3)), np.zeros((1, 3))).tolist() == [1]
        assert accuracy.cosines(np.zeros((1, 3)), np.ones((1, 3))).tolist() == [0]

    @pytest.mark.parametrize("task", TASKS)
    def test_every_input_shares_batches(self, task: str) -> None:
        inputs, alone, ways = accuracy.invariance_inputs(task)
        for groups in (alone, *ways):
            assert sorted(index for group in groups for index in group) == list(range(len(inputs)))
        assert all(len(group) > 1 for groups in ways for group in groups)


class TestWorker:
    """With the environment of the tests in place of one of the benchmark's own."""

    @pytest.fixture
    def system(self, monkeypatch: pytest.MonkeyPatch) -> System:
        monkeypatch.setattr(worker, "python", lambda environment: Path(sys.executable))
        return next(system for system in SYSTEMS if system.name == "stonnx fp32")

    @pytest.fixture
    def started(self, system: System, minilm_bundle: Path, tmp_path: Path) -> Worker:
        system = replace(system, models={"embedding": minilm_bundle.name})
        return Worker(system, "embedding", minilm_bundle.parent, tmp_path)

    def test_measures(self, started: Worker) -> None:
        assert started.ask("rate", workload="short", batching={}) > 0
        assert len(started.ask("latencies", workload="single")) == 100
        assert started.start_seconds > 0
        started.close()

    def test_memory_is_its_own(self, system: System, minilm_bundle: Path, tmp_path: Path) -> None:
        """And not that of the process that starts it."""
        system = replace(system, models={"embedding": minilm_bundle.name})
        large = np.ones(1 << 27)
        started = Worker(system, "embedding", minilm_bundle.parent, tmp_path)
        assert 50 < started.ask("memory") < large.nbytes / 1e6
        started.close()

    def test_a_start_is_no_compilation(
        self, system: System, minilm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the caller's variables say that nothing compiled is to be kept, it would be one each time."""
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setattr(environments, "CACHE", tmp_path / "cache")
        system = replace(system, models={"embedding": minilm_bundle.name})
        Worker(system, "embedding", minilm_bundle.parent, tmp_path).close()
        assert len(list((tmp_path / "cache").rglob("sentence_transformer.*.pyc"))) == 1

    def test_rows_come_in_the_order_of_the_inputs(self, started: Worker) -> None:
        inputs = ["Bread rises.", "The tides follow the moon.", "A third one."]
        together = started.vectors(inputs, [[0, 1, 2]], {})
        groups = started.vectors(inputs, [[2, 0], [1]], {"batch_size": 1})
        np.testing.assert_allclose(together, groups, atol=1e-6)
        assert together.shape == (3, 384)
        assert abs(together[0] @ together[1]) < 0.9
        started.close()

    def test_an_error_is_told_and_the_worker_goes_on(self, started: Worker) -> None:
        with pytest.raises(WorkerError, match="batch_size"):
            started.ask("rate", workload="short", batching={"batch_size": 0})
        assert started.ask("memory") > 0
        started.close()

    def test_a_worker_that_cannot_start_leaves_its_last_words(self, system: System, tmp_path: Path) -> None:
        with pytest.raises(WorkerError, match="nowhere-embedding"):
            Worker(replace(system, models={"embedding": "nowhere-embedding"}), "embedding", tmp_path, tmp_path)


def test_a_model_that_cannot_be_made_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The tests' environment has no OpenVINO. What the model is made from counts as made.
    monkeypatch.setattr(models, "python", lambda environment: Path(sys.executable))
    for source in ("checkpoint-embedding", "onnx-fp32-embedding"):
        models._key_file(tmp_path, source).write_text(models._key(source))
    failed = models.ensure(["openvino-fp32-embedding"], tmp_path, tmp_path)
    assert failed == {"openvino-fp32-embedding": "ModuleNotFoundError: No module named 'openvino'"}
    assert models.ensure(["openvino-fp32-embedding"], tmp_path, tmp_path) == failed  # not taken for made


class TestReport:
    @pytest.fixture
    def results(self) -> report.Results:
        good = {"cosine_mean": 1.0, "cosine_min": 0.9999, "overlap": 1.0, "spearman_drop": 0.0, "invariance": 1.0}
        loose = good | {"invariance": 0.987, "cosine_min": 0.96}
        return {
            "date": "2026-01-01",
            "machine": {
                "cpu": "c",
                "cores": 2,
                "features": ["avx2"],
                "system": "s",
                "python": "3",
                "load_at_start": 0.0,
            },
            "versions": {"a": {"numpy": "2.4.6"}, "b": {"numpy": "2.5.0"}},
            "rounds": 3,
            "seconds": 60.0,
            "accuracy_data": "built-in sentences",
            "turns": {
                # The second round is half as fast for all: its ratio is like the others.
                "short": {REFERENCE: [100.0, 50.0, 100.0], "stonnx int8": [400.0, 200.0, 500.0]},
                "single": {REFERENCE: [[8.0, 9.0, 10.0]], "stonnx int8": [[2.0, 3.0, 4.0]]},
            },
            "batching": {REFERENCE: {"short": {"batch_size": 32}}, "stonnx int8": {"short": {}}},
            "accuracy": {REFERENCE: {"embedding": good}, "stonnx int8": {"embedding": loose}},
            "missing": {"OpenVINO fp32": {"all": "cannot be installed: no wheel"}},
            "idle_share": {REFERENCE: 0.004},
            "footprint": {},
        }

    def test_ratios_are_taken_within_rounds(self, results: report.Results) -> None:
        assert report.ratios(results, "short", "stonnx int8") == [4, 4, 5]
        assert report.ratios(results, "single", "stonnx int8") == [4]

    def test_tables(self, results: report.Results) -> None:
        text = report.tables(results)
        assert "| stonnx int8 | 400/s 4.00x (4.00-5.00) |" in text
        assert "**0.9600**" in text
        assert "**0.987000**" in text
        assert "- OpenVINO fp32, all: cannot be installed: no wheel" in text
        assert "numpy 2.4.6 and 2.5.0" in text
        assert "| stonnx int8 | 2.00 | 3.00 | 4.00 | 2.0 | 4.00x (4.00-4.00) |" in text
