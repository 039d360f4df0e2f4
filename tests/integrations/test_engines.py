"""Spark, Dask and Daft, each as it is: the columns that they make are those of the model, and faults are errors.

An engine that is not installed skips its tests; `make test-integrations` makes an environment with all of them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Daft, Dask, Spark
from toy_bundles import dense_bundle, pair_graph, toy_table, write_bundle

import stonnx

TEXTS = ["bread rises", "the river flows", "the sun shines", "what is the city", "bread", "the sun is of the river"]
QUERY = "what rises"
pytestmark = [
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    # Daft does not close the pipes to its processes.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

# Engines form their own batches: what stonnx promises for a text in any batch.
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((Spark, "pyspark"), id="spark", marks=pytest.mark.slow),
        pytest.param((Dask, "distributed"), id="dask", marks=pytest.mark.slow),
        pytest.param((Daft, "daft"), id="daft"),
    ],
)
def host(request: pytest.FixtureRequest) -> Iterator[Any]:
    kind, package = request.param
    pytest.importorskip(package)
    pytest.importorskip("pyarrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, map(str, sys.path))))
        host = kind()
        yield host
        host.close()


@pytest.fixture(scope="module")
def bundles(toys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    graph = pair_graph(toy_table(3, 5), np.float32([0.5, 0.1, 0.2]), "Identity")
    directory = tmp_path_factory.mktemp("labels") / "labels"
    labels = write_bundle(directory, {"default": graph}, task="rerank", num_labels=3, activation="identity")
    return toys | {"labels": labels}


def steps() -> Any:
    """The steps that every engine has."""
    pytest.importorskip("pyarrow")
    from stonnx.integrations import _steps

    return _steps


class TestColumns:
    def test_vectors_sparse_vectors_and_scores(self, host: Any, bundles: dict[str, Path]) -> None:
        new = steps()
        texts = TEXTS * 20
        frame = host.frame(id=list(range(len(texts))), text=texts, query=[QUERY] * len(texts))
        made = host.columns(
            host.add_columns(
                frame,
                new.Embed(bundles["dense"], task="document", encode_kwargs={"normalize_embeddings": True}),
                new.Embed(
                    bundles["dense"],
                    column="query",
                    output_column="short",
                    task="query",
                    encode_kwargs={"truncate_dim": 3},
                ),
                new.Sparse(bundles["sparse"], encode_kwargs={"max_active_dims": 5}),
                new.Rank(bundles["rerank"]),
                new.Rank(bundles["labels"], output_column="labels"),
            )
        )
        assert made["id"] == list(range(len(texts)))
        assert made["text"] == texts
        dense = stonnx.SentenceTransformer(bundles["dense"])
        expected = dense.encode_document(texts, normalize_embeddings=True)
        np.testing.assert_allclose(np.stack(made["embedding"]), expected, **SAME)
        np.testing.assert_allclose(np.stack(made["short"])[0], dense.encode_query(QUERY, truncate_dim=3), **SAME)
        matrix = stonnx.SparseEncoder(bundles["sparse"]).encode(texts, max_active_dims=5)
        for row, (indices, values) in enumerate(zip(made["indices"], made["values"], strict=True)):
            start, end = matrix.indptr[row : row + 2]
            np.testing.assert_array_equal(indices, matrix.indices[start:end])
            np.testing.assert_allclose(values, matrix.data[start:end], **SAME)
        pairs = [(QUERY, text) for text in texts]
        np.testing.assert_allclose(made["score"], stonnx.CrossEncoder(bundles["rerank"]).predict(pairs), **SAME)
        three = stonnx.CrossEncoder(bundles["labels"]).predict(pairs)
        np.testing.assert_allclose(np.stack(made["labels"]), three, **SAME)

    def test_no_rows_and_a_column_that_exists(self, host: Any, bundles: dict[str, Path]) -> None:
        embed = steps().Embed(bundles["dense"])
        made = host.columns(host.add_columns(host.without_rows(host.frame(id=[0], text=["bread"])), embed))
        assert made == {"id": [], "text": [], "embedding": []}
        made = host.columns(host.add_columns(host.frame(id=[0], embedding=["x"], text=["bread"]), embed))
        assert {name: len(column) for name, column in made.items()} == {"id": 1, "text": 1, "embedding": 1}
        assert len(made["embedding"][0]) == 8

    def test_rows_without_a_text_are_kept_with_the_reason(self, host: Any, bundles: dict[str, Path]) -> None:
        new = steps()
        long = "city " * 100
        frame = host.frame(id=[0, 1, 2, 3], text=["bread", None, "river", long], query=[None, "bread", "what", "is"])
        made = host.columns(
            host.add_columns(
                frame,
                new.Embed(bundles["dense"], error_column="e1", too_long="error"),
                new.Sparse(bundles["sparse"], error_column="e2"),
                new.Rank(bundles["rerank"], error_column="e3"),
            )
        )
        expected = stonnx.SentenceTransformer(bundles["dense"]).encode(["bread", "river"])
        np.testing.assert_allclose([made["embedding"][0], made["embedding"][2]], expected, **SAME)
        assert made["embedding"][1] is made["indices"][1] is made["values"][1] is made["embedding"][3] is None
        assert [score is None for score in made["score"]] == [True, True, False, False]
        assert [error is None for error in made["e2"]] == [True, False, True, True]
        assert [error is None for error in made["e3"]] == [False, False, True, True]
        assert "the column 'text' has no value" in made["e1"][1]
        assert "has 102 tokens" in made["e1"][3]

    def test_a_row_without_a_text_is_an_error_that_names_it(self, host: Any, bundles: dict[str, Path]) -> None:
        frame = host.add_columns(host.frame(id=[7, 8, 9], text=["bread", "sun", None]), steps().Embed(bundles["dense"]))
        with pytest.raises(Exception, match=r"Row \d of a batch of \d \(id=9\): the column 'text' has no value"):
            host.columns(frame)

    def test_wrong_columns(self, host: Any, bundles: dict[str, Path]) -> None:
        new = steps()
        frame = host.frame(id=[0, 1], text=["bread", "sun"])
        with pytest.raises(stonnx.InvalidArgumentError, match=r"no column 'txt'; its columns: id, text\. Name the one"):
            host.add_columns(frame, new.Embed(bundles["dense"], column="txt"))
        with pytest.raises(stonnx.InvalidArgumentError, match=r"column 'id' holds \w+, not texts\. Convert it first"):
            host.add_columns(frame, new.Embed(bundles["dense"], column="id"))


class TestWorkers:
    def test_a_bundle_that_a_worker_cannot_read(self, host: Any, tmp_path: Path) -> None:
        embed = steps().Embed(dense_bundle(tmp_path / "bundle"))
        frame = host.add_columns(host.frame(id=[0, 1], text=["bread", "sun"]), embed, **host.in_processes)
        shutil.rmtree(tmp_path / "bundle")
        with pytest.raises(Exception, match=r"cannot read the bundle .* Copy the bundle to the same path"):
            host.columns(frame)

    def test_another_bundle_at_the_same_path(self, host: Any, tmp_path: Path) -> None:
        embed = steps().Embed(dense_bundle(tmp_path / "bundle"))
        frame = host.add_columns(host.frame(id=[0, 1], text=["bread", "sun"]), embed, **host.in_processes)
        shutil.rmtree(tmp_path / "bundle")
        dense_bundle(tmp_path / "bundle", width=4)
        with pytest.raises(Exception, match="finds another bundle under"):
            host.columns(frame)

    def test_a_killed_worker(self, host: Any, bundles: dict[str, Path], tmp_path: Path) -> None:
        """The result is complete, without a row lost or twice, or there is an error."""
        killed = tmp_path / "killed"

        # A class of this function goes to the workers by value; they cannot import this file.
        class Dies(steps().Embed):  # type: ignore[misc]
            def compute(self, texts: list[Any]) -> Any:
                if texts and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().compute(texts)

        texts = TEXTS * 20
        frame = host.frame(id=list(range(len(texts))), text=texts)
        frame = host.add_columns(frame, Dies(bundles["dense"]), **host.in_processes)
        if not host.survives:
            with pytest.raises(Exception):  # noqa: B017, PT011 : of the engine's own class
                host.columns(frame)
            assert killed.exists()
            return
        made = host.columns(frame)
        assert killed.exists()
        assert made["id"] == list(range(len(texts)))
        expected = stonnx.SentenceTransformer(bundles["dense"]).encode(texts)
        np.testing.assert_allclose(np.stack(made["embedding"]), expected, **SAME)


class TestSteps:
    """What does not need an engine."""

    def test_a_process_loads_a_bundle_once(self, bundles: dict[str, Path]) -> None:
        embed = steps().Embed(bundles["dense"])
        again = pickle.loads(pickle.dumps(embed))
        assert embed.model() is again.model()
        assert embed.on(1).model().info.threads == 1

    def test_a_process_keeps_few_models(self, tmp_path: Path) -> None:
        made = [steps().Embed(dense_bundle(tmp_path / str(index))) for index in range(6)]
        first = made[0].model()
        for embed in made[1:]:
            embed.model()
        assert made[0].model() is not first

    def test_relative_paths_are_resolved(self, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(bundles["dense"].parent)
        embed = steps().Embed("dense")
        monkeypatch.chdir("/")
        assert embed.model.name == str(bundles["dense"])
        embed.model()

    def test_wrong_arguments(self, bundles: dict[str, Path]) -> None:
        new = steps()
        with pytest.raises(stonnx.ModelNotFoundError):
            new.Embed("/nowhere")
        with pytest.raises(stonnx.InvalidArgumentError, match=r"a bundle for the task 'sparse'"):
            new.Embed(bundles["sparse"])
        with pytest.raises(stonnx.InvalidArgumentError, match="each worker loads it for itself; got SentenceTransf"):
            new.Embed(stonnx.SentenceTransformer(bundles["dense"]))
        with pytest.raises(stonnx.InvalidArgumentError, match="does not have an argument 'colour'"):
            new.Embed(bundles["dense"], colour=3)

    def test_a_driver_without_the_device_of_the_workers(self, bundles: dict[str, Path]) -> None:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this machine has the device")
        embed = steps().Embed(bundles["dense"], device="cuda")
        assert [field.name for field in embed.fields()] == ["embedding"]
        with pytest.raises(stonnx.DeviceError):
            embed.model()

    @pytest.mark.parametrize(("driver", "worker"), [("avx2", ""), ("", "avx512_vnni"), ("avx2", "avx512_vnni")])
    def test_a_worker_with_other_kernels_than_the_driver(
        self, driver: str, worker: str, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernels = driver
        info = stonnx.SentenceTransformer.info.fget  # type: ignore[attr-defined]
        monkeypatch.setattr(
            stonnx.SentenceTransformer, "info", property(lambda model: replace(info(model), kernels=kernels))
        )
        embed = steps().Embed(bundles["dense"])
        embed.fields()
        kernels = worker
        step = pickle.loads(pickle.dumps(embed.on(2)))
        if driver and worker:  # they differ in the last bits only
            step.model()
            return
        with pytest.raises(stonnx.DeviceError, match=f"The worker on {socket.gethostname()} runs .* native kernels"):
            step.model()

    def test_fields(self, bundles: dict[str, Path]) -> None:
        pa = pytest.importorskip("pyarrow")
        new = steps()
        (embedding,) = new.Embed(bundles["dense"], encode_kwargs={"precision": "ubinary"}).fields()
        assert embedding.type == pa.list_(pa.uint8(), 1)
        fields = new.Sparse(bundles["sparse"], error_column="error").fields()
        assert [field.name for field in fields] == ["indices", "values", "error"]
        assert new.Rank(bundles["labels"]).fields()[0].type == pa.list_(pa.float32(), 3)
