"""What docs/architecture.md says has to be touched for a task and for a provider is enough: a toy of each."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundles import dense_bundle, dense_graph, sparse_graph, toy_table, toy_tokenizer, write_bundle

import stonnx
from stonnx import cli
from stonnx._device import providers as providers_module
from stonnx._device.provider import CPU, Configured, Provider, Setup
from stonnx._errors import DeviceError, InvalidArgumentError
from stonnx._guide.guide import Query, read_guide, recommend
from stonnx._load import load_model
from stonnx._tasks import TASKS, TaskRow

ROOT = Path(__file__).parents[1]
WIDTH = 8
TEXTS = ["bread rises", "the river flows"]


@pytest.fixture
def toy_task(monkeypatch: pytest.MonkeyPatch) -> TaskRow:
    """A further task: a row and its public class, and nothing else."""
    row = TaskRow(
        name="toy",
        class_name="ToyEncoder",
        organization="toys",
        output="sentence_embedding",
        result="sentence_embedding",
        kind="dense",
        does="gives toy vectors",
        token_output="token_embeddings",
        similarity="manhattan",
    )
    monkeypatch.setitem(TASKS, "toy", row)
    monkeypatch.setattr(stonnx, "ToyEncoder", ToyEncoder, raising=False)
    return row


class ToyEncoder(stonnx.SentenceTransformer):
    """The class of the task."""

    _task = "toy"


@pytest.fixture
def toy_bundle(toy_task: TaskRow, tmp_path: Path) -> Path:
    graphs = {"default": dense_graph(toy_table(WIDTH, 5))}
    return write_bundle(tmp_path / "toy", graphs, task="toy", embedding_dimension=WIDTH)


def expected() -> np.ndarray:
    return np.stack([toy_table(WIDTH, 5)[toy_tokenizer().encode(text).ids].mean(axis=0) for text in TEXTS])


class TestTask:
    def test_its_bundles_run(self, toy_bundle: Path) -> None:
        model = ToyEncoder(toy_bundle, threads=1)
        np.testing.assert_allclose(model.encode(TEXTS), expected(), atol=1e-6)
        assert (model.similarity_fn_name, model.info.task) == ("manhattan", "toy")
        assert model.prompts == {"query": "", "document": ""}
        assert model.encode(TEXTS, output_value="token_embeddings")[0].shape[1] == WIDTH

    def test_other_classes_name_its_own(self, toy_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match=r"task 'toy'. Load it with stonnx\.ToyEncoder, not with Sen"):
            stonnx.SentenceTransformer(toy_bundle)
        with pytest.raises(InvalidArgumentError, match=r"Load it with stonnx\.SentenceTransformer, not with ToyEn"):
            ToyEncoder(dense_bundle(tmp_path / "dense"))

    def test_a_bare_name_is_of_its_organization(self, toy_task: TaskRow, tmp_path: Path) -> None:
        with pytest.raises(stonnx.ModelNotFoundError, match=r"toys/some-model"):
            ToyEncoder("some-model", local_files_only=True, cache_folder=str(tmp_path))

    def test_the_command_line_reads_it(self, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["info", str(toy_bundle)]) == 0
        assert re.search(r"similarity +manhattan \(not set by the model\)", capsys.readouterr().out)

    def test_a_bundle_is_loaded_with_its_class(self, toy_bundle: Path) -> None:
        assert type(load_model(toy_bundle, threads=1)) is ToyEncoder

    def test_it_is_served(self, toy_bundle: Path, tmp_path: Path) -> None:
        for package in ("starlette", "msgspec", "orjson", "prometheus_client", "httpx"):
            pytest.importorskip(package)
        from starlette.testclient import TestClient

        from stonnx.serve import app, settings

        graphs = {"default": sparse_graph(toy_table(WIDTH, 3))}
        sparse = write_bundle(tmp_path / "sparse", graphs, task="sparse", embedding_dimension=WIDTH)
        models = (settings.ModelSettings(str(toy_bundle)), settings.ModelSettings(str(sparse)))
        server = app.Server(settings.Settings(models=models, threads=1, port=0))
        with TestClient(server.app) as client:
            deadline = time.monotonic() + 60
            while client.get("/health/ready").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            vectors = client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json()
            np.testing.assert_allclose(vectors, expected(), atol=1e-6)
            metadata = client.get("/v2/models/toy").json()
            assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, WIDTH]}]
            refused = client.post("/predict", json={"inputs": TEXTS, "model": "toy"}).json()
        assert "The model 'toy' gives toy vectors (/v1/embeddings, /embeddings, /embed, " in refused["error"]

    def test_the_guide_may_have_models_for_it(self, toy_task: TaskRow) -> None:
        file = resources.files("stonnx._guide").joinpath("guide.json")
        data = json.loads(file.read_text(encoding="utf-8"))
        first = data["models"][0]
        data["models"].append({**first, "name": "toys/small", "task": "toy"})
        data["uses"].append({**data["uses"][0], "name": "play", "models": ["toys/small"]})
        answer = recommend(read_guide(json.dumps(data)), Query(task="toy"))
        assert (answer.use.name, [model.name for model in answer.models]) == ("play", ["toys/small"])

    def test_without_the_row_it_is_refused(self, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(TASKS, "toy")
        with pytest.raises(stonnx.BundleFormatError, match=r"task is 'toy', allowed are 'embedding', 'sparse', 'rera"):
            stonnx.SentenceTransformer(toy_bundle)


class TestProvider:
    """A device ``toy`` that is onnxruntime's CPU under another name."""

    @pytest.fixture
    def setups(self, monkeypatch: pytest.MonkeyPatch) -> list[Setup]:
        setups: list[Setup] = []

        def configure(setup: Setup) -> Configured:
            setups.append(setup)
            return Configured({"use_arena": "0"})

        row = Provider("toy", CPU, "pip install toy", "toy", indexed=True, configure=configure)
        self.missing: str | None = None
        row = replace(row, load_libraries=lambda onnxruntime: self.missing)
        monkeypatch.setattr(providers_module, "PROVIDERS", (*providers_module.PROVIDERS, row))
        return setups

    def test_it_runs_and_configures_itself(self, setups: list[Setup], tmp_path: Path) -> None:
        model = stonnx.SentenceTransformer(dense_bundle(tmp_path / "dense"), device="toy:1", threads=1)
        np.testing.assert_allclose(model.encode(TEXTS), expected(), atol=1e-6)
        assert model.device == "toy:1"
        assert {(str(setup.device), setup.threads, setup.precision) for setup in setups} == {("toy:1", 1, "fp32")}

    def test_it_says_what_is_missing(self, setups: list[Setup], tmp_path: Path) -> None:
        self.missing = "there is no toy in the box"
        with pytest.raises(DeviceError, match=r"device 'toy' needs CPUExecutionProvider, and there is no toy in the"):
            stonnx.SentenceTransformer(dense_bundle(tmp_path / "dense"), device="toy")

    def test_it_is_among_those_that_are_allowed(self, setups: list[Setup], tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match=r"openvino, toy, toy:0\."):
            stonnx.SentenceTransformer(dense_bundle(tmp_path / "dense"), device="tpu")


def rows_of_page() -> dict[str, list[str]]:
    """What the table "To add X, touch Y" says: the files of each X."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## To add something")[2]
    rows = re.findall(r"^\| (an? [^|]+?) +\| (.+?) +\|$", table, re.MULTILINE)
    return {name: re.findall(r"`([\w./*<>-]+)`", files) for name, files in rows}


def test_the_page_names_files_that_exist() -> None:
    rows = rows_of_page()
    assert {"a task", "a provider", "a pass", "a recipe", "a head"} <= rows.keys()
    for name, files in rows.items():
        assert files, name
        for file in files:
            if "/" in file and "<" not in file:
                assert (ROOT / file).exists(), f"{name}: {file}"


def test_the_page_has_a_line_for_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms: list[Any] = [path for path in (ROOT / "stonnx").iterdir() if (path / "__init__.py").is_file()]
    rooms += [path for path in (ROOT / "export" / "stonnx_export").iterdir() if (path / "__init__.py").is_file()]
    missing = [f"{path.name}/" for path in rooms if f"`{path.name}/`" not in page]
    assert not missing


def test_tables_of_the_exporter_have_every_task() -> None:
    pytest.importorskip("onnx_ir")
    from stonnx_export.recipes import RECIPES
    from stonnx_export.write.model_card import USAGES

    assert USAGES.keys() == TASKS.keys()
    for recipe in RECIPES.values():
        assert recipe.tolerance.keys() == TASKS.keys(), recipe.name
