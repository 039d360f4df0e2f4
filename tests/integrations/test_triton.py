"""Triton: its model answers every request by itself, and the real server gives what the model gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, pair_graph, toy_table, write_bundle
from triton_server import InferError, Triton, packages, triton

import stonnx
from stonnx.cli import main

TEXTS = ["bread rises", "the river flows", "the sun shines", "what is the city", "", "bread"]
QUERY = "what rises"
SAME = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def bundles(toys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    graph = pair_graph(toy_table(3, 5), np.float32([0.5, 0.1, 0.2]), "Identity")
    directory = tmp_path_factory.mktemp("labels") / "labels"
    labels = write_bundle(directory, {"default": graph}, task="rerank", num_labels=3, activation="identity")
    return toys | {"labels": labels}


class Request:
    """A request as Triton's Python backend gives it."""

    def __init__(self, parameters: str = "", cancelled: bool = False, **columns: list[bytes]) -> None:
        self.columns, self._parameters, self._cancelled = columns, parameters, cancelled

    def parameters(self) -> str:
        return self._parameters

    def is_cancelled(self) -> bool:
        return self._cancelled


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Triton's module, as far as a model uses it: tests of what the server's timing would leave to chance."""
    from types import SimpleNamespace

    def tensor(request: Request, name: str) -> Any:
        return SimpleNamespace(as_numpy=lambda: np.array([[text] for text in request.columns[name]], dtype=object))

    module = types.ModuleType("triton_python_backend_utils")

    class TritonError(Exception):
        INVALID_ARG, INTERNAL, CANCELLED = "invalid", "internal", "cancelled"

        def __init__(self, message: str, code: str) -> None:
            super().__init__(message)
            self.code = code

    module.TritonError = TritonError  # type: ignore[attr-defined]
    module.Tensor = lambda name, array: (name, array)  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = tensor  # type: ignore[attr-defined]
    module.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(  # type: ignore[attr-defined]
        outputs=dict(output_tensors), error=error
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.delitem(sys.modules, "stonnx.integrations.triton", raising=False)
    yield module
    sys.modules.pop("stonnx.integrations.triton", None)


class TestRequests:
    def model(self, bundle: Path, task: str) -> Any:
        import json

        from stonnx.integrations.triton import TritonModel

        model = TritonModel()
        model.bundle = bundle
        names = ["query", "text"] if task == "rerank" else ["text"]
        settings = {"device": {"string_value": "cpu"}, "threads": {"string_value": "1"}}
        config = {"parameters": settings, "input": [{"name": name} for name in names]}
        model.initialize({"model_config": json.dumps(config), "model_instance_kind": "CPU"})
        return model

    def test_a_faulty_request_does_not_disturb_the_others(self, backend: Any, bundles: dict[str, Path]) -> None:
        model = self.model(bundles["dense"], "embedding")
        requests = [
            Request(text=[b"bread rises", b"the sun"]),
            Request(text=[b"bread", b"\xff"]),
            Request(text=[b"city " * 100], parameters='{"truncate": false}'),
            Request(text=[b"bread"], parameters='{"input_type": "query", "unknown": 1}'),
            Request(text=[b"bread"], parameters='{"input_type": "passage"}'),
            Request(text=[b"bread"], parameters='{"normalize": "yes"}'),
            Request(text=[b"bread"], parameters='{"prompt_name": "nothing"}'),
            Request(text=[b"bread"], cancelled=True),
            Request(text=[b"river"]),
            Request(text=["half a pair \ud800".encode("utf-8", "surrogatepass")]),
        ]
        responses = model.execute(requests)
        dense = stonnx.SentenceTransformer(bundles["dense"])
        for index, expected in (
            (0, dense.encode(["bread rises", "the sun"])),
            (3, dense.encode_query(["bread"])),
            (8, dense.encode(["river"])),
        ):
            assert responses[index].error is None
            np.testing.assert_allclose(responses[index].outputs["embedding"], expected, **SAME)
        errors = {index: (one.error.code, str(one.error)) for index, one in enumerate(responses) if one.error}
        assert set(errors) == {1, 2, 4, 5, 6, 7, 9}
        assert errors.pop(7)[0] == "cancelled"
        assert {code for code, _ in errors.values()} == {"invalid"}
        assert "Text 1 of the input 'text' is not UTF-8" in errors[1][1]
        assert "has 102 tokens" in errors[2][1]
        assert "'input_type' must be 'query' or 'document', got 'passage'" in errors[4][1]
        assert "'normalize' must be true or false" in errors[5][1]
        assert "nothing" in errors[6][1]

    def test_a_run_that_fails_is_an_error_of_its_request(
        self, backend: Any, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = self.model(bundles["dense"], "embedding")
        encode = model._model.encode

        def fails(texts: list[str], **options: Any) -> Any:
            if "poison" in texts:
                raise stonnx.RunError("out of memory")
            return encode(texts, **options)

        monkeypatch.setattr(model._model, "encode", fails)
        good, bad = model.execute([Request(text=[b"bread"]), Request(text=[b"poison"])])
        assert good.error is None
        assert (bad.error.code, str(bad.error)) == ("internal", "RunError: out of memory")

    def test_pairs_and_sparse_rows(self, backend: Any, bundles: dict[str, Path]) -> None:
        labels = self.model(bundles["labels"], "rerank")
        one, two = labels.execute([Request(query=[b"a", b"b"], text=[b"c", b"d"]), Request(query=[b"e"], text=[b"f"])])
        expected = stonnx.CrossEncoder(bundles["labels"]).predict([("a", "c"), ("b", "d"), ("e", "f")])
        np.testing.assert_allclose(np.concatenate([one.outputs["scores"], two.outputs["scores"]]), expected, **SAME)
        sparse = self.model(bundles["sparse"], "sparse")
        (answer,) = sparse.execute([Request(text=[text.encode() for text in TEXTS])])
        matrix = stonnx.SparseEncoder(bundles["sparse"]).encode(TEXTS)
        assert_sparse(answer.outputs, matrix)


def assert_sparse(outputs: dict[str, Any], matrix: Any) -> None:
    assert (outputs["values"][outputs["indices"] < 0] == 0).all()
    for row, (indices, values) in enumerate(zip(outputs["indices"], outputs["values"], strict=True)):
        start, end = matrix.indptr[row : row + 2]
        np.testing.assert_array_equal(indices[indices >= 0], matrix.indices[start:end])
        np.testing.assert_allclose(values[indices >= 0], matrix.data[start:end], **SAME)


def commands(path: Path) -> str:
    """The command of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    packages()
    directory = tmp_path_factory.mktemp("triton")
    repository = directory / "repository"
    for name, bundle in bundles.items():
        assert main(["triton", str(bundle), "-o", str(repository), "--name", name]) == 0
    slow = dense_bundle(directory / "slow", width=256, rounds=400, max_seq_length=256)
    options = ["--max-batch-size", "16", "--threads", "1", "--max-queue-size"]
    assert main(["triton", str(slow), "-o", str(repository), *options, "64"]) == 0
    assert main(["triton", str(slow), "-o", str(repository), "--name", "narrow", *options, "1"]) == 0
    with triton(repository, directory) as server:
        yield server


@pytest.mark.slow
class TestServer:
    """With the real server."""

    def test_vectors(self, server: Triton, bundles: dict[str, Path]) -> None:
        dense = stonnx.SentenceTransformer(bundles["dense"])
        assert server.get("/v2/models/dense")["outputs"] == [
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 8]}
        ]
        vectors = server.infer("dense", {"text": TEXTS})["embedding"]
        np.testing.assert_allclose(vectors, dense.encode(TEXTS), **SAME)
        vectors = server.infer("dense", {"text": TEXTS}, input_type="query", normalize=True)["embedding"]
        np.testing.assert_allclose(vectors, dense.encode_query(TEXTS, normalize_embeddings=True), **SAME)
        vectors = server.infer("dense", {"text": TEXTS}, prompt_name="document")["embedding"]
        np.testing.assert_allclose(vectors, dense.encode_document(TEXTS), **SAME)

    def test_sparse_vectors_and_scores(self, server: Triton, bundles: dict[str, Path]) -> None:
        assert_sparse(server.infer("sparse", {"text": TEXTS}), stonnx.SparseEncoder(bundles["sparse"]).encode(TEXTS))
        pairs = [(QUERY, text) for text in TEXTS]
        columns = {"query": [QUERY] * len(TEXTS), "text": TEXTS}
        reranker = stonnx.CrossEncoder(bundles["rerank"])
        scores = server.infer("rerank", columns)["scores"]
        np.testing.assert_allclose(scores, reranker.predict(pairs)[:, None], **SAME)
        scores = server.infer("rerank", columns, raw_scores=True)["scores"]
        np.testing.assert_allclose(scores, reranker.predict(pairs, activation_fn="identity")[:, None], **SAME)
        scores = server.infer("labels", columns)["scores"]
        np.testing.assert_allclose(scores, stonnx.CrossEncoder(bundles["labels"]).predict(pairs), **SAME)

    def test_errors_are_answers(self, server: Triton) -> None:
        with pytest.raises(InferError, match="Text 1 of the input 'text' is not UTF-8") as caught:
            server.infer("dense", {"text": ["bread", b"\xff"]})
        assert caught.value.status == 400
        with pytest.raises(InferError, match="Text 0 has 102 tokens, and the model reads 16"):
            server.infer("dense", {"text": ["city " * 100]}, truncate=False)
        with pytest.raises(InferError, match="batch-size must be <= 64"):
            server.infer("dense", {"text": ["bread"] * 65})
        assert server.infer("dense", {"text": ["bread"]})["embedding"].shape == (1, 8)

    def test_requests_that_wait_run_together(self, server: Triton) -> None:
        text = "the river flows " * 60
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: server.infer("slow", {"text": [text]})["embedding"], range(48)))
        assert all(np.allclose(answer, answers[0], **SAME) for answer in answers)
        (counts,) = server.get("/v2/models/slow/stats")["model_stats"]
        assert counts["inference_count"] == 48
        assert counts["execution_count"] < 48

    def test_a_full_queue_refuses(self, server: Triton) -> None:
        text = "the river flows " * 60

        def ask(_: int) -> Any:
            try:
                return server.infer("narrow", {"text": [text] * 16})["embedding"]
            except InferError as error:
                return error

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(12)))
        refused = [answer for answer in answers if isinstance(answer, InferError)]
        assert 0 < len(refused) < 12
        assert {error.status for error in refused} == {503}
        assert all("queue" in error.message for error in refused)

    def test_a_request_that_waited_too_long(self, server: Triton) -> None:
        text = "the river flows " * 60
        with ThreadPoolExecutor(8) as pool:
            others = [pool.submit(server.infer, "slow", {"text": [text] * 16}) for _ in range(8)]
            late = pool.submit(server.infer, "slow", {"text": [text] * 16}, timeout=1)  # microseconds
            with pytest.raises(InferError, match="timeout") as caught:
                late.result()
            assert caught.value.status == 503
            assert all(other.result()["embedding"].shape == (16, 256) for other in others)

    def test_a_killed_model(self, server: Triton) -> None:
        """The process of one model is killed: a request gets an error or its result, and never hangs."""
        (stub,) = [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if f"{server.repository}/sparse/1/model.py" in commands(path)
        ]
        os.kill(int(stub), signal.SIGKILL)
        for _ in range(3):
            with contextlib.suppress(InferError):
                server.infer("sparse", {"text": TEXTS}, patience=30)
        assert server.infer("dense", {"text": ["bread"]})["embedding"].shape == (1, 8)

    def test_a_bundle_that_is_gone(self, tmp_path: Path) -> None:
        packages()
        bundle = dense_bundle(tmp_path / "bundle")
        assert main(["triton", str(bundle), "-o", str(tmp_path / "repository"), "--link"]) == 0
        shutil.rmtree(bundle)
        with triton(tmp_path / "repository", tmp_path, ready=False) as server:
            with pytest.raises(InferError):
                server.infer("bundle", {"text": ["bread"]})
            assert "ModelNotFoundError" in server.log()
