"""Ray Data and Ray Serve on this machine: the same results as in process, also after the death of an actor.

It takes minutes. `make test-integrations` makes an environment with Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stonnx

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROWS = 120
PATIENCE = 300
# Actors form batches of their own: what stonnx promises for a text in any of them.
SAME = {"rtol": 0, "atol": 1e-6}
WORDS = ("bread", "rises", "river", "flows", "sun", "shines", "city")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray Serve gives up a proxy that needs more than 5 s to start, as it does on a busy machine.
        for check in ("READY", "HEALTH"):
            patch.setenv(f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S", str(PATIENCE))
        # Ray gives its workers the priority 15, which beside other programs means hardly any time.
        patch.setenv("RAY_worker_niceness", "0")
        # A resumed or restarted job needs one more actor than there are CPUs on a small machine.
        ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def table(rows: int = ROWS) -> Any:
    texts = [f"the {WORDS[number % 7]} {WORDS[number // 7 % 7]} {number}" for number in range(rows)]
    queries = [f"what {WORDS[number % 5]}" for number in range(rows)]
    return pa.table({"id": list(range(rows)), "text": texts, "query": queries})


def dataset(rows: int = ROWS, blocks: int = 4) -> Any:
    return ray.data.from_arrow(table(rows)).repartition(blocks)


def pool(size: int = 1) -> Any:
    return ray.data.ActorPoolStrategy(size=size)


def run(kind: Any, bundle: Any, data: Any = None, *, actors: int = 1, form: str = "pyarrow", **options: Any) -> Any:
    """All rows with their results, by id."""
    found = (dataset() if data is None else data).map_batches(
        kind,
        fn_constructor_args=[str(bundle)],
        fn_constructor_kwargs=options,
        compute=pool(actors),
        num_cpus=1,
        batch_size=16,
        batch_format=form,
    )
    return sorted(found.take_all(), key=lambda row: row["id"])


@pytest.mark.parametrize("form", ["pyarrow", "numpy", "pandas"])
def test_embeddings(form: str, toys: dict[str, Path]) -> None:
    from stonnx.integrations.ray import Embed

    rows = run(Embed, toys["dense"], form=form, task="document", encode_kwargs={"normalize_embeddings": True})
    expected = stonnx.SentenceTransformer(toys["dense"]).encode_document(
        table()["text"].to_pylist(), normalize_embeddings=True
    )
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert [row["text"] for row in rows] == table()["text"].to_pylist()
    np.testing.assert_allclose(np.stack([np.asarray(row["embedding"]) for row in rows]), expected, **SAME)


@pytest.mark.parametrize("form", ["pyarrow", "numpy", "pandas"])
def test_sparse_vectors(form: str, toys: dict[str, Path]) -> None:
    from stonnx.integrations.ray import Sparse

    expected = stonnx.SparseEncoder(toys["sparse"]).encode(table()["text"].to_pylist())
    for number, row in enumerate(run(Sparse, toys["sparse"], form=form)):
        start, end = expected.indptr[number : number + 2]
        assert list(row["indices"]) == expected.indices[start:end].tolist()
        np.testing.assert_allclose(row["values"], expected.data[start:end], **SAME)


def test_scores(toys: dict[str, Path]) -> None:
    from stonnx.integrations.ray import Rank

    pairs = list(zip(table()["query"].to_pylist(), table()["text"].to_pylist(), strict=True))
    expected = stonnx.CrossEncoder(toys["rerank"]).predict(pairs)
    np.testing.assert_allclose([row["score"] for row in run(Rank, toys["rerank"])], expected, **SAME)


def test_threads_are_the_cpus_of_the_actor(toys: dict[str, Path]) -> None:
    from stonnx.integrations.ray import Embed

    class Threads(Embed):
        def __call__(self, batch: Any) -> Any:
            return pa.table({"threads": [self.model().info.threads], "tokenizers": [os.environ["RAYON_NUM_THREADS"]]})

    for cpus, threads in ((1, 1), (2, 2), (0.5, 1)):
        found = dataset(4, 1).map_batches(
            Threads, fn_constructor_args=[str(toys["dense"])], compute=pool(), num_cpus=cpus, batch_format="pyarrow"
        )
        assert found.take_all() == [{"threads": threads, "tokenizers": str(threads)}]


def test_parquet_in_and_out(toys: dict[str, Path], tmp_path: Path) -> None:
    """As the documentation has it. Other programs read lists of fixed size, not tensors of Ray."""
    import pyarrow.parquet as pq

    from stonnx.integrations.ray import Embed

    pq.write_table(table(), tmp_path / "passages.parquet")
    ray.data.read_parquet(str(tmp_path / "passages.parquet")).map_batches(
        Embed, fn_constructor_args=[str(toys["dense"])], compute=pool(2), num_cpus=1, batch_format="pyarrow"
    ).write_parquet(str(tmp_path / "vectors"))
    found = pq.read_table(tmp_path / "vectors").sort_by("id")
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    expected = stonnx.SentenceTransformer(toys["dense"]).encode(table()["text"].to_pylist())
    np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), expected, **SAME)


def test_a_killed_actor_loses_and_repeats_no_row(toys: dict[str, Path], tmp_path: Path) -> None:
    from stonnx.integrations.ray import Embed

    class Deadly(Embed):
        """The first actor that sees row 50 is killed in the middle of its batch."""

        def __call__(self, batch: Any) -> Any:
            result = super().__call__(batch)
            if 50 in batch["id"].to_pylist():
                try:
                    (tmp_path / "killed").touch(exist_ok=False)
                except FileExistsError:
                    return result
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    rows = run(Deadly, toys["dense"], actors=2)
    assert (tmp_path / "killed").exists()
    assert [row["id"] for row in rows] == list(range(ROWS))
    expected = stonnx.SentenceTransformer(toys["dense"]).encode(table()["text"].to_pylist())
    np.testing.assert_allclose(np.stack([row["embedding"] for row in rows]), expected, **SAME)


def test_a_bundle_that_an_actor_cannot_find() -> None:
    from stonnx.integrations.ray import Embed

    with pytest.raises(ray.exceptions.RayError, match="every node needs the bundle"):
        run(Embed, "/nowhere/bundle")


def test_a_damaged_bundle(toys: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from stonnx.integrations.ray import Embed

    shutil.copytree(toys["dense"], tmp_path / "damaged")
    (tmp_path / "damaged" / "stonnx.json").write_text("{")
    with pytest.raises(ray.exceptions.RayError, match="BundleFormatError"):
        run(Embed, tmp_path / "damaged")


def test_rows_that_are_not_texts(toys: dict[str, Path]) -> None:
    from stonnx.integrations.ray import Embed

    texts = [None if number in (7, 90) else f"the sun {number}" for number in range(ROWS)]
    data = ray.data.from_arrow(pa.table({"id": list(range(ROWS)), "text": texts}))
    with pytest.raises(ray.exceptions.RayError, match=r"Row 7 of a batch of 16 \(id=7\)"):
        run(Embed, toys["dense"], data)
    rows = run(Embed, toys["dense"], data, error_column="error")
    assert [row["id"] for row in rows if row["error"] is not None] == [7, 90]
    assert [row["id"] for row in rows if row["embedding"] is None] == [7, 90]
    with pytest.raises(ray.exceptions.RayError, match="no column 'body'; its columns: id, text"):
        run(Embed, toys["dense"], data, column="body")


def ask(path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:8123{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def answered(path: str, body: Any = None) -> Any:
    """The first answer, of a deployment that starts."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(path, body)
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def processes(title: str) -> list[int]:
    """The processes of this test's cluster with such a title. They are children of its raylet, which is a child."""

    def parent(process: int) -> int:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
            if command.startswith(title) and parent(parent(int(directory.name))) == os.getpid():
                found.append(int(directory.name))
    return found


class TestServe:
    @pytest.fixture(scope="class", autouse=True)
    def _serving(self, toys: dict[str, Path]) -> Iterator[None]:
        for package in ("ray.serve", "msgspec", "orjson"):
            pytest.importorskip(package)
        from ray import serve

        from stonnx.integrations.ray_serve import deployment

        with contextlib.suppress(TimeoutError):  # it waits for a minute only
            serve.start(http_options={"host": "127.0.0.1", "port": 8123})
        application = deployment(
            [f"vectors={toys['dense']}", str(toys["sparse"]), str(toys["rerank"])],
            num_cpus=1,
            max_replicas=2,
            alias=("text-embedding-3-small=vectors",),
            deployment_options={"health_check_period_s": 1, "health_check_timeout_s": 5},
        )
        serve.run(application, name="stonnx")
        answered("/health/ready")
        yield
        serve.shutdown()

    def test_it_speaks_the_dialects_of_the_server(self, toys: dict[str, Path]) -> None:
        texts = ["the river flows", "bread rises"]
        answer = ask("/v1/embeddings", {"input": texts, "model": "text-embedding-3-small"})
        expected = stonnx.SentenceTransformer(toys["dense"]).encode(texts)
        np.testing.assert_allclose([row["embedding"] for row in answer["data"]], expected, **SAME)
        ranks = ask("/rerank", {"query": "what rises", "texts": texts})
        scores = stonnx.CrossEncoder(toys["rerank"]).predict([("what rises", text) for text in texts])
        np.testing.assert_allclose([row["score"] for row in ranks], sorted(scores, reverse=True), **SAME)
        sparse = ask("/embed_sparse", {"inputs": texts})
        assert [len(row) for row in sparse] == np.diff(
            stonnx.SparseEncoder(toys["sparse"]).encode(texts).indptr
        ).tolist()
        assert ask("/health/ready") == {"status": "ready"}

    def test_errors_are_those_of_the_server(self) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask("/v1/embeddings", {"input": "a", "model": "unknown"})
        assert caught.value.code == 404
        assert "vectors" in json.load(caught.value)["error"]["message"]

    def test_a_killed_replica_is_replaced(self) -> None:
        (process,) = processes("ray::ServeReplica:stonnx:stonnx")
        os.kill(process, signal.SIGKILL)
        answer = answered("/v1/embeddings", {"input": "a", "model": "vectors"})
        assert len(answer["data"]) == 1
        assert processes("ray::ServeReplica:stonnx:stonnx") != [process]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"port": 80}, "a matter of Ray Serve"),
        ({"speed": 1}, "speed is not a setting. Allowed: alias"),
        ({"max_texts": 0}, "max_texts must be positive"),
    ],
)
def test_refused_settings(settings: dict[str, Any], said: str) -> None:
    pytest.importorskip("ray.serve")
    from stonnx.integrations.ray_serve import deployment

    with pytest.raises(stonnx.InvalidArgumentError, match=said):
        deployment("bundle", **settings)


def test_a_deployment_whose_bundle_is_not_there() -> None:
    pytest.importorskip("ray.serve")
    from ray import serve

    from stonnx.integrations.ray_serve import deployment

    options = {"max_constructor_retry_count": 1}
    with pytest.raises(Exception, match="failed"):
        serve.run(deployment("/nowhere/bundle", deployment_options=options), name="missing")
    assert "is not a directory here" in serve.status().applications["missing"].deployments["stonnx"].message
    serve.shutdown()
