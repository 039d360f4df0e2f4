"""Settings from options, variables and a file; and what is wrong with them."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from toy_bundles import dense_graph, toy_table, write_bundle

from serve.conftest import Process
from stonnx import DeviceError, InvalidArgumentError
from stonnx.cli import main
from stonnx.serve.models import Models
from stonnx.serve.server import _listen as listen
from stonnx.serve.server import memory_problem
from stonnx.serve.settings import ModelSettings, Settings, option_fields, read_settings, variable_of


def test_options_win_over_variables_and_these_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'port = 1\nmax_texts = 1\nhost = "file"\napi_key = ["a", "b"]\nrequest_timeout = 3\n'
        '[[model]]\nbundle = "one"\nname = "first"\naliases = ["x"]\n[model.prompts]\nquery = "q: "\n'
        '[[model]]\nbundle = "two"\nmax_seq_length = 128\n',
        encoding="utf-8",
    )
    environment = {"STONNX_PORT": "2", "STONNX_MAX_TEXTS": "2", "STONNX_WATCH": "true", "STONNX_ACCESS_LOG": "0"}
    settings = read_settings({"port": 3}, [], file, environment)
    assert (settings.port, settings.max_texts, settings.host, settings.request_timeout) == (3, 2, "file", 3)
    assert (settings.api_key, settings.watch, settings.access_log) == (("a", "b"), True, False)
    assert settings.models == (
        ModelSettings("one", "first", ("x",), prompts={"query": "q: "}),
        ModelSettings("two", max_seq_length=128),
    )
    # Bundles of the command line replace those of the file.
    assert read_settings({}, ["a=b/c", "d/e=f"], file, {}).models == (ModelSettings("b/c", "a"), ModelSettings("d/e=f"))
    assert read_settings({}, [], None, {"STONNX_MODELS": "a=b,c"}).models == (
        ModelSettings("b", "a"),
        ModelSettings("c"),
    )
    assert read_settings({}, [], None, {"STONNX_CONFIG": str(file)}).host == "file"
    assert read_settings({}, ["a"], None, {"STONNX_API_KEYS": "k1, k2,"}).api_key == ("k1", "k2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "not valid TOML"),
        ("prot = 1", "prot is not known. Allowed: host, port"),
        ('port = "1"', "port must be of the type int"),
        ("port = true", "port must be of the type int"),
        ('api_key = "a"', "must be a list of strings"),
        ("[[model]]\nname = 'a'", "needs a bundle"),
        ("[[model]]\nbundle = 'a'\nbndle = 'b'", "model.bndle is not known"),
        ("[model]\nbundle = 'a'", "[[model]]"),
        ("max_texts = 0\n[[model]]\nbundle = 'a'", "max_texts must be positive"),
        ("log_format = 'xml'\n[[model]]\nbundle = 'a'", "text, json"),
        ("", "no model to serve"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgumentError) as caught:
        read_settings({}, [], file, {})
    assert message in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_settings({}, [], tmp_path / "nope.toml", {})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STONNX_PORT", "x", "STONNX_PORT must be a number"),
        ("STONNX_PORT", "65536", "port must be from 0 to 65535, got 65536"),
        ("STONNX_WATCH", "maybe", "STONNX_WATCH must be true or false"),
        ("STONNX_MAX_BODY_MB", "-1", "max_body_mb must be positive"),
        ("STONNX_MAX_QUEUED_TOKENS", "0", "max_queued_tokens must be positive"),
        ("STONNX_DRAIN_DELAY", "-1", "drain_delay must not be negative"),
        ("STONNX_TOKEN_IDS", "all", "refuse, model"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_settings({}, ["a"], None, {variable: value})
    assert message in str(caught.value)


def test_an_address_that_is_taken_and_one_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "a", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: " in said
    assert "Another program listens there. Choose another --port; 0 takes a free one." in said
    assert main(["serve", "a", "--host", "203.0.113.1", "--port", "0"]) == 1  # RFC 5737: nobody has it
    assert "--host is an address of this machine" in capsys.readouterr().err


def test_little_memory_is_warned_of() -> None:
    assert memory_problem(79, 100) is memory_problem(None, 100) is memory_problem(99, None) is None
    said = memory_problem(900_000_000, 1_000_000_000)
    assert said is not None
    assert "The models take 900 MB of the 1,000 MB that this process may use" in said
    assert "--threads 1" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_responses_do_not_wait_for_acknowledgements(host: str) -> None:
    """Without TCP_NODELAY, a response of two packets takes 40 ms, the time after which Linux acknowledges the first."""
    try:
        listener = listen(Settings(host=host, port=0))
    except DeviceError:
        pytest.skip(f"This machine does not have {host}.")
    with listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_models_have_names_of_their_own(tmp_path: Path) -> None:
    def names(*bundles: ModelSettings, **more: Any) -> list[str]:
        return list(Models(Settings(models=bundles, **more), lambda _: None).names)

    (tmp_path / "bundle").mkdir()
    assert names(ModelSettings(str(tmp_path / "bundle")), ModelSettings("org/name"), ModelSettings("x", "y")) == [
        "bundle",
        "name",
        "y",
    ]
    with pytest.raises(InvalidArgumentError, match="Two models are called 'name'"):
        names(ModelSettings("a/name"), ModelSettings("b/name"))


@pytest.mark.parametrize("alias", ["x", "toy=toy-dense", "toy-dense=toy-dense", "x=nope"])
def test_a_wrong_alias_is_refused(dense_path: Path, alias: str) -> None:
    settings = Settings(models=(ModelSettings(str(dense_path)),), alias=(alias,))
    if alias == "toy=toy-dense":
        models = Models(settings, lambda _: None)
        models.load()
        assert models.aliases == {"toy": "toy-dense"}
        models.close()
        return
    with pytest.raises(InvalidArgumentError, match="alias") as caught:
        Models(settings, lambda _: None).load()
    if alias == "x=nope":
        assert str(caught.value) == "alias x=nope: there is no model 'nope'. The models are: toy-dense."


def test_a_default_prompt_that_no_model_has_is_refused(dense_path: Path) -> None:
    settings = Settings(models=(ModelSettings(str(dense_path), default_prompt="nope"),))
    with pytest.raises(InvalidArgumentError, match="nope"):
        Models(settings, lambda _: None).load()


def test_a_default_prompt_of_all_models_that_none_has_is_refused(
    start: Any, dense_path: Path, rerank_path: Path
) -> None:
    """It would start, and every text would go without the prompt."""
    process: Process = start(f"dense={dense_path}", f"rerank={rerank_path}", "--default-prompt", "nonsuch", wait=False)
    assert process.process.wait(60) == 1
    assert process.wait_for("nonsuch").string.endswith(
        "No model has the prompt 'nonsuch' of default_prompt. The prompts are: dense has query, document; rerank "
        "has none. Name one of these, or define it in the --config file: a table [model.prompts] after its [[model]]."
    )
    # Models with a prompt of their own do not make it right.
    settings = Settings(models=(ModelSettings(str(dense_path), default_prompt="query"),), default_prompt="nonsuch")
    with pytest.raises(InvalidArgumentError, match="'nonsuch' of default_prompt"):
        Models(settings, lambda _: None).load()


def test_a_default_prompt_of_all_models_that_some_have(
    dense_path: Path, rerank_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, prompts = str(dense_path), {"city": "what city "}
    with caplog.at_level("WARNING", logger="stonnx.serve"):
        models = Models(
            Settings(
                models=(
                    ModelSettings(bundle, "has", prompts=prompts),
                    ModelSettings(bundle, "own", prompts=prompts, default_prompt="query"),
                    ModelSettings(bundle, "other", default_prompt="query"),
                    ModelSettings(bundle, "lacks"),
                    ModelSettings(str(rerank_path), "rerank"),
                ),
                default_prompt="city",
            ),
            lambda _: None,
        )
        models.load()
    found = {served.name: served.model.default_prompt_name for served in models}
    models.close()
    assert found == {"has": "city", "own": "query", "other": "query", "lacks": None, "rerank": None}
    assert [record.getMessage() for record in caplog.records] == [
        f"The model {name} does not have the prompt 'city' of default_prompt: its texts get no prompt. Its prompts: "
        + prompts
        for name, prompts in (("lacks", "query, document"), ("rerank", "none"))
    ]


def test_an_empty_default_prompt_is_none(dense_path: Path) -> None:
    """As an environment variable that is set to nothing."""
    models = Models(Settings(models=(ModelSettings(str(dense_path)),), default_prompt=""), lambda _: None)
    models.load()
    models.close()


def test_a_default_prompt_of_a_model_that_needs_a_task(tmp_path: Path) -> None:
    graphs = {name: dense_graph(toy_table(8, seed)) for seed, name in enumerate(("query", "document"))}
    fields = {"task": "embedding", "embedding_dimension": 8, "default_route": "query", "needs_task": True}
    bundle = write_bundle(tmp_path / "router", graphs, prompts={"query": "q: "}, **fields)
    models = Models(Settings(models=(ModelSettings(str(bundle)),), default_prompt="query"), lambda _: None)
    models.load()
    (served,) = models
    assert served.model.default_prompt_name == "query"
    assert min(served.max_queued_tokens.values()) > 0
    models.close()


def test_help_names_every_setting_and_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for entry in option_fields():
        # argparse breaks lines at hyphens.
        assert variable_of(entry) in text.replace("- ", "-")
    assert "curl localhost:8080/v1/embeddings" in text


def test_the_documentation_has_every_setting_that_needs_a_restart() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"the log says so if they were changed: ([^.]*)\.", " ".join(page.split()))
    names = [entry.name for entry in option_fields() if entry.metadata.get("restart")]
    assert re.findall(r"`(\w+)`", listed) == names


def test_without_a_model_the_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 1
    assert "stonnx serve BUNDLE" in capsys.readouterr().err


def test_a_file_with_prompts_aliases_and_limits_is_served(start: Any, dense_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        f'default_prompt = "query"\nmax_texts = 2\n[[model]]\nname = "toy"\nbundle = "{dense_path}"\n'
        'aliases = ["a", "b"]\nmax_seq_length = 8\nthreads = 1\n[model.prompts]\nquery = "question: "\n',
        encoding="utf-8",
    )
    process: Process = start("--config", file)
    client = process.client
    reply = client.post("/v1/embeddings", json={"input": "the river", "model": "b"}).json()
    by_name = client.post("/v1/embeddings", json={"input": "the river", "prompt_name": "query"}).json()
    assert reply["data"] == by_name["data"]
    assert (
        reply["data"]
        != client.post("/v1/embeddings", json={"input": "the river", "model": "a:document"}).json()["data"]
    )
    assert client.post("/v1/embeddings", json={"input": ["a", "b", "c"]}).status_code == 413
    assert client.get("/info").json()["max_input_length"] == 8
