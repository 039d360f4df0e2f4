"""The settings of a server, as data. Each is an option, an environment variable and a key of the TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from stonnx._errors import InvalidArgumentError

PREFIX = "STONNX_"
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
_TYPES: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "Mapping": dict}


@dataclass(frozen=True)
class ModelSettings:
    """One model to serve: a table ``[[model]]`` of the TOML file.

    Attributes:
        bundle: The directory of a bundle, or a Hub id.
        name: The name that clients use. Empty: the last part of ``bundle``.
        aliases: Other names for it.
        task: The task (a key of ``TASKS``), if ``bundle`` is a Hub name that does not say it.
        device, threads, max_seq_length, max_batch_tokens, revision, dtype: As for the model classes.
        default_prompt: Name of the prompt for texts whose kind the request does not say.
        prompts: Further prompts, by name.
    """

    bundle: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    task: str | None = None
    device: str | None = None
    threads: int | None = None
    max_seq_length: int | None = None
    max_batch_tokens: int | None = None
    revision: str | None = None
    dtype: str | None = None
    default_prompt: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)


def _setting(default: Any, text: str, **more: Any) -> Any:
    metadata = {"help": text, **more}
    if isinstance(default, list):
        return field(default_factory=tuple, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of a server.

    The help of a field is the help of its option. ``restart`` marks those that cannot change while the server runs.
    """

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for all", restart=True)
    port: int = _setting(8080, "port to listen on; 0 takes a free one", restart=True)
    alias: tuple[str, ...] = _setting(
        [], "another name for a model, as text-embedding-3-small=minilm", metavar="A=NAME"
    )
    device: str | None = _setting(
        None, "where models run: cpu, cuda, cuda:1, tensorrt, openvino (default: the best)", restart=True
    )
    threads: int | None = _setting(
        None, "CPU threads of each model (default: as many as the process may use CPUs)", restart=True
    )
    default_prompt: str | None = _setting(
        None, "name of the prompt for texts of which a request does not say what they are", metavar="NAME", restart=True
    )
    token_ids: Literal["refuse", "model"] = _setting(
        "refuse",
        "token ids instead of texts: refuse them, or take them as ids of this model's tokenizer",
        choices=("refuse", "model"),
    )
    api_key: tuple[str, ...] = _setting(
        [], "a key that clients must send; repeat it for several", metavar="KEY", variable="API_KEYS"
    )
    api_key_file: str | None = _setting(None, "file of keys, one a line; read again on SIGHUP", metavar="FILE")
    protect_metrics: bool = _setting(False, "ask for a key at /metrics too", restart=True)
    cors_origin: tuple[str, ...] = _setting(
        [], "let pages of this origin call the server, * for all (default: none)", metavar="ORIGIN", restart=True
    )
    max_body_mb: float = _setting(32.0, "largest body of a request, in MB")
    max_texts: int = _setting(2048, "most texts of a request")
    max_text_characters: int = _setting(1_000_000, "longest text, in characters")
    max_queued_tokens: int | None = _setting(
        None, "most tokens that wait, of small requests and of large ones each (default: what 10 s compute)"
    )
    max_bodies_mb: float | None = _setting(
        None,
        "most MB of the bodies of all requests in progress (default: an eighth of the memory that may be used)",
        restart=True,
    )
    request_timeout: float = _setting(60.0, "seconds that a request may take; clients may ask for less")
    bulk_timeout: float = _setting(600.0, "the same for requests of more than 8 texts, which let the others go first")
    body_timeout: float = _setting(30.0, "seconds that a client may take to send a request")
    drain_delay: float = _setting(1.0, "seconds after SIGTERM in which new requests are still answered")
    drain_timeout: float = _setting(30.0, "seconds that requests in progress have to end after that")
    probe_seconds: float = _setting(30.0, "how often health repeats the probe of each bundle; 0 never", restart=True)
    watch: bool = _setting(False, "load a bundle again when its files are replaced; SIGHUP does so once", restart=True)
    access_log: bool = _setting(True, "log each request")
    log_format: Literal["text", "json"] = _setting("text", "form of the log", choices=("text", "json"), restart=True)
    tei_metrics: bool = _setting(
        False, "also give the metrics under the names of text-embeddings-inference", restart=True
    )
    otlp_endpoint: str | None = _setting(
        None, "send traces to this OTLP/HTTP endpoint, as http://localhost:4318/v1/traces", metavar="URL", restart=True
    )
    models: tuple[ModelSettings, ...] = ()

    def check(self) -> None:
        """Refuse values that are not possible.

        Raises:
            InvalidArgumentError: A value is not possible.
        """
        if not self.models:
            raise InvalidArgumentError(
                "There is no model to serve. Name one: stonnx serve BUNDLE, or a [[model]] in the --config file."
            )
        if not 0 <= self.port <= 65535:
            raise InvalidArgumentError(f"port must be from 0 to 65535, got {self.port!r}. 0 takes a free one.")
        positive = ("max_body_mb", "max_texts", "max_text_characters", "max_queued_tokens", "max_bodies_mb")
        for name in (*positive, "request_timeout", "bulk_timeout", "body_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgumentError(f"{name} must be positive, got {value!r}.")
        for name in ("drain_delay", "drain_timeout", "probe_seconds"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must not be negative, got {getattr(self, name)!r}.")
        for entry in fields(self):
            allowed = entry.metadata.get("choices")
            if allowed and getattr(self, entry.name) not in allowed:
                raise InvalidArgumentError(
                    f"{entry.name} must be one of {', '.join(allowed)}, got {getattr(self, entry.name)!r}."
                )


def changed(old: Settings, new: Settings) -> tuple[Settings, list[str]]:
    """The settings that apply after they were read again, and the names of the changed ones that need a restart."""
    names = [entry.name for entry in option_fields() if entry.metadata.get("restart")]
    kept = [name for name in names if getattr(new, name) != getattr(old, name)]
    return replace(new, **{name: getattr(old, name) for name in kept}), kept


def option_fields() -> list[Any]:
    """The fields of :class:`Settings` that are options."""
    return [entry for entry in fields(Settings) if entry.metadata]


def variable_of(entry: Any) -> str:
    """The environment variable of a setting."""
    return PREFIX + str(entry.metadata.get("variable", entry.name.upper()))


def read_settings(
    options: Mapping[str, Any],
    bundles: Sequence[str],
    config: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from options, which win over environment variables, which win over the TOML file.

    Args:
        options: The given values, by the names of the fields.
        bundles: ``BUNDLE`` or ``NAME=BUNDLE`` of the command line; they replace the models of the file.
        config: The TOML file.
        environment: ``os.environ``, unless told otherwise.

    Raises:
        InvalidArgumentError: A value is not allowed, or a key is unknown.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    models: list[ModelSettings] = []
    if config is None and environment.get(f"{PREFIX}CONFIG"):
        config = Path(environment[f"{PREFIX}CONFIG"])
    if config is not None:
        values, models = _read_file(config)
    for entry in option_fields():
        text = environment.get(variable_of(entry))
        if text is not None:
            values[entry.name] = _from_text(entry, text)
    named = bundles or [part for part in environment.get(f"{PREFIX}MODELS", "").split(",") if part]
    if named:
        models = [_named(text) for text in named]
    values |= {name: value for name, value in options.items() if value is not None}
    settings = replace(Settings(), **values, models=tuple(models))
    settings.check()
    return settings


def _named(text: str) -> ModelSettings:
    name, equals, bundle = text.partition("=")
    # A path may have an equals sign. The part before it is a name only if it does not have a slash.
    if equals and "/" not in name and name:
        return ModelSettings(bundle, name)
    return ModelSettings(text)


def _from_text(entry: Any, text: str) -> Any:
    kind = str(entry.type)
    variable = variable_of(entry)
    try:
        if kind.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind.startswith("bool"):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[
                text.lower()
            ]
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
    except (ValueError, KeyError):
        wanted = "true or false" if kind.startswith("bool") else "a number"
        raise InvalidArgumentError(f"{variable} must be {wanted}, got {text!r}.") from None
    return text


def _read_file(path: Path) -> tuple[dict[str, Any], list[ModelSettings]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} is not valid TOML: {error}") from error
    tables = data.pop("model", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidArgumentError(f"{path}: each model is a table of its own: [[model]]")
    known = {entry.name: entry for entry in option_fields()}
    values = {key: _checked(path, key, value, known) for key, value in data.items()}
    models = []
    of_model = {entry.name: entry for entry in fields(ModelSettings)}
    for table in tables:
        if "bundle" not in table:
            raise InvalidArgumentError(f"{path}: a [[model]] needs a bundle: its directory, or its Hub id.")
        models.append(
            ModelSettings(**{key: _checked(path, f"model.{key}", value, of_model) for key, value in table.items()})
        )
    return values, models


def _checked(path: Path, key: str, value: Any, known: Mapping[str, Any]) -> Any:
    name = key.removeprefix("model.")
    if name not in known:
        raise InvalidArgumentError(f"{path}: {key} is not known. Allowed: {', '.join(known)}.")
    kind = str(known[name].type)
    if kind.startswith("tuple"):
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise InvalidArgumentError(f"{path}: {key} must be a list of strings, got {value!r}.")
        return tuple(value)
    wanted = _TYPES.get(kind.split("[")[0].split(" ")[0], str)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise InvalidArgumentError(f"{path}: {key} must be of the type {kind}, got {value!r}.")
    return value
