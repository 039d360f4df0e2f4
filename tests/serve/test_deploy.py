"""The files of ``examples/deploy``: they parse, they name options that exist, and what stops a server waits for it."""

from __future__ import annotations

import configparser
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stonnx.serve.settings import Settings, option_fields, read_settings, variable_of

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
CLONE = DEPLOY.parents[1]
VARIABLES = {variable_of(entry) for entry in option_fields()} | {"STONNX_MODELS", "STONNX_HOME"}
OPTIONS = {"--" + entry.name.replace("_", "-") for entry in option_fields()} | {"--config"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The one service of the Compose file."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["stonnx"])


@pytest.fixture(scope="module")
def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects of the Kubernetes file, by their kind."""
    return {entry["kind"]: entry for entry in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    """The section [Service] of the systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "stonnx.service")
    return parser["Service"]


def drain_seconds(settings: Settings) -> float:
    return settings.drain_delay + settings.drain_timeout


def test_the_toml_file_is_read_without_a_complaint() -> None:
    settings = read_settings({}, [], DEPLOY / "stonnx.toml", {})
    assert [(model.name, model.aliases) for model in settings.models] == [("minilm", ("text-embedding-3-small",))]
    commented = (DEPLOY / "stonnx.toml").read_text().replace("# [[", "[[").replace("# name", "name")
    assert len(tomllib.loads(commented.replace("# bundle", "bundle"))["model"]) == 2


def test_compose_waits_longer_than_the_drain_and_mounts_what_the_file_names(compose: dict[str, Any]) -> None:
    settings = read_settings({}, [], DEPLOY / "stonnx.toml", {})
    assert float(compose["stop_grace_period"].removesuffix("s")) > drain_seconds(settings)
    assert set(compose["environment"]) <= VARIABLES
    assert {part for part in compose["command"] if part.startswith("--")} <= OPTIONS
    places = [volume.split(":")[1] for volume in compose["volumes"]]
    assert Path(settings.models[0].bundle).parent.as_posix() in places
    assert compose["command"][1] in places
    assert (DEPLOY / compose["build"]["context"] / compose["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert all((DEPLOY / volume.split(":")[0]).resolve().is_relative_to(CLONE) for volume in compose["volumes"])


def test_kubernetes_waits_longer_than_the_drain_and_probes_what_is_there(
    kubernetes: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "stonnx.toml"
    config.write_text(kubernetes["ConfigMap"]["data"]["stonnx.toml"])
    settings = read_settings({}, [], config, {})
    pod = kubernetes["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + drain_seconds(settings)
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    (port,) = container["ports"]
    assert all(container[f"{name}Probe"]["httpGet"]["port"] == port["name"] for name in paths)
    assert port["containerPort"] == settings.port
    assert {entry["name"] for entry in container["env"]} <= VARIABLES
    assert {part for part in container["args"] if part.startswith("--")} <= OPTIONS
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    labels = kubernetes["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kubernetes["Service"]["spec"]["selector"] == labels
    assert kubernetes["Deployment"]["spec"]["selector"]["matchLabels"] == labels


def test_the_unit_waits_longer_than_the_drain_and_names_options_that_exist(unit: configparser.SectionProxy) -> None:
    settings = read_settings({}, [], DEPLOY / "stonnx.toml", {})
    assert float(unit["TimeoutStopSec"]) > drain_seconds(settings)
    command = shlex.split(unit["ExecStart"])
    assert command[1] == "serve"
    assert {part for part in command if part.startswith("--")} <= OPTIONS
    variables = {part.split("=")[0] for part in unit["Environment"].split()}
    assert {name for name in variables if name.startswith("STONNX")} <= VARIABLES


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "stonnx.service").read_text()
    # The program is not installed here: everything but that is checked.
    (tmp_path / "stonnx.service").write_text(
        text.replace("/opt/stonnx/bin/stonnx", shutil.which("true") or "/bin/true")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "stonnx.service"], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if "stonnx.service" in line]
    assert not complaints


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def test_the_dockerfile_is_of_known_instructions_and_variables() -> None:
    known = {"FROM", "COPY", "RUN", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}
    found = instructions()
    assert {name for name, _ in found} == known
    assert found[0][0] == "FROM"
    (variables,) = [dict(part.split("=", 1) for part in shlex.split(text)) for name, text in found if name == "ENV"]
    assert {name for name in variables if name.startswith("STONNX")} <= VARIABLES
    # Settings take these values as they are: a port is a number, a form of the log is one of two.
    settings = read_settings({}, ["/models/x"], None, variables)
    assert dict(found)["EXPOSE"] == str(settings.port)
    assert f":{settings.port}/health/ready" in dict(found)["HEALTHCHECK"]
    assert settings.host == "0.0.0.0"
    assert dict(found)["USER"].isdigit()
    assert dict(found)["ENTRYPOINT"] == '["stonnx", "serve"]'


def test_the_build_context_holds_what_the_wheel_is_made_of() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())
    packages = {package.split("/")[0] for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert kept == packages | {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert all((CLONE / name).exists() for name in kept)


def test_extras_that_the_files_install_exist() -> None:
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    for file in ("Dockerfile", "stonnx.service"):
        for named in re.findall(r"\[([a-z,]+)\]\"", (DEPLOY / file).read_text()):
            assert set(named.split(",")) <= extras


def test_every_setting_of_the_examples_is_still_a_field() -> None:
    names = {entry.name for entry in dataclasses.fields(Settings)}
    for text in ((DEPLOY / "stonnx.toml").read_text(), (DEPLOY / "kubernetes.yaml").read_text()):
        assert set(re.findall(r"^\s*(\w+) = \d", text, flags=re.MULTILINE)) <= names


def test_the_demo_of_make_has_kernels_and_answers_the_first_request_of_the_page() -> None:
    rule = re.search(r"^serve-demo:(.*)\n((?:\t.*\n)+)", (CLONE / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    assert {Path(name).name for name in rule.group(1).split()} == {".installed-demo", ".installed-kernels"}
    (served,) = re.findall(r"stonnx serve (.*)", rule.group(2))
    page = (CLONE / "docs" / "serving.md").read_text(encoding="utf-8")
    arguments = shlex.split(re.findall(r"^curl (?:.*\\\n)*.*", page, re.MULTILINE)[0])
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert body["model"] in [Path(bundle).name for bundle in served.split()]
