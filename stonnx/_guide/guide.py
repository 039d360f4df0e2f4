"""Which model for what: the published models of ``guide.json``, filtered and ranked.

Loading a model never looks here: any checkpoint can be exported, in the guide or not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from stonnx._decode import Decoder
from stonnx._errors import InvalidArgumentError, StonnxError
from stonnx._tasks import TASKS, Task

# Codes of languages that can be written in two ways.
_SAME_LANGUAGE = {"nb": "no", "nn": "no", "iw": "he", "in": "id"}


class GuideError(StonnxError, ValueError):
    """``guide.json`` does not have the form that it must have."""


@dataclass(frozen=True)
class Citation:
    """The place of a publication."""

    title: str
    url: str


@dataclass(frozen=True)
class Measure:
    """The meaning of a figure. More is always better."""

    kind: Literal["quality", "speed"]
    title: str


@dataclass(frozen=True)
class Figure:
    """A published number, and the key of its source."""

    value: float
    source: str


@dataclass(frozen=True)
class Languages:
    """Languages of a model: their number, in words, and their codes as published."""

    label: str
    source: str
    codes: tuple[str, ...]

    def include(self, code: str) -> bool:
        """Whether a language is among them, whatever its region: ``pt`` is included if ``pt-br`` is."""
        return _language(code) in {_language(own) for own in self.codes}


@dataclass(frozen=True)
class Use:
    """A leaf of the decision chart: its models in the order of recommendation, and the measures to compare them by."""

    name: str
    summary: str
    # Why its first model is the first.
    why: str
    quality: str
    speed: str
    models: tuple[str, ...]
    # The use whose models stand in for languages that its own models do not know.
    other_languages: str | None


@dataclass(frozen=True)
class GuideModel:
    """A published model. ``dimension``, ``similarity`` and ``normalized`` are None if it does not give vectors."""

    name: str
    task: Task
    dimension: int | None
    max_seq_length: int
    similarity: Literal["cosine", "dot"] | None
    normalized: bool | None
    # The key of its Languages.
    languages: str
    summary: str
    # By measure; None if no figure was published.
    figures: Mapping[str, Figure | None]


@dataclass(frozen=True)
class Guide:
    """The contents of ``guide.json``."""

    sources: Mapping[str, Citation]
    measures: Mapping[str, Measure]
    languages: Mapping[str, Languages]
    uses: tuple[Use, ...]
    models: tuple[GuideModel, ...]

    def model(self, name: str) -> GuideModel:
        """The model with a name."""
        return next(model for model in self.models if model.name == name)

    def use(self, name: str) -> Use:
        """The use with a name."""
        return next(use for use in self.uses if use.name == name)

    def uses_of(self, model: GuideModel) -> list[Use]:
        """The uses of a model, first the one that ranks it highest."""
        uses = [use for use in self.uses if model.name in use.models]
        return sorted(uses, key=lambda use: use.models.index(model.name))


@dataclass(frozen=True)
class Query:
    """The wanted properties. A model must have all of them."""

    task: str | None = None
    use: str | None = None
    languages: tuple[str, ...] = ()
    prefer: Literal["fast", "best"] | None = None
    max_dim: int | None = None

    def __bool__(self) -> bool:
        return self != Query()


@dataclass(frozen=True)
class Answer:
    """The fitting models of a use, the recommended one first with a reason; then fitting models of other uses.

    ``note`` says why the use is not the requested one.
    """

    use: Use
    models: tuple[GuideModel, ...]
    why: str
    others: tuple[GuideModel, ...]
    note: str = ""


def read_guide(text: str | None = None) -> Guide:
    """Read and validate the guide.

    Args:
        text: JSON. None: ``guide.json`` of this package.

    Raises:
        GuideError: It is not JSON, a field is missing, unknown or of another type, or a name does not exist.

    Example:
        >>> read_guide().model("all-MiniLM-L6-v2").dimension
        384
    """
    if text is None:
        text = resources.files("stonnx._guide").joinpath("guide.json").read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise GuideError(f"guide.json is not JSON: {error}") from error
    guide = _DECODE(Guide, data, "guide")
    _check_references(guide)
    return guide


def recommend(guide: Guide, query: Query) -> Answer:
    """The fitting models, ranked as in the decision chart: by its order, or by a measure if the query prefers one.

    If no model of the use knows the languages, those of another use stand in, best first, and the answer says so.

    Raises:
        InvalidArgumentError: Part of the query is unknown, or no model fits all of it.

    Example:
        >>> recommend(read_guide(), Query(use="general", prefer="best")).models[0].name
        'all-mpnet-base-v2'
    """
    _check_query(guide, query)
    stand_in = _stand_in(guide, query)
    if stand_in is not None:
        note = f"No model of the guide for {query.use} knows {' and '.join(query.languages)}; {stand_in.use} models do."
        return dataclasses.replace(recommend(_measured_for(guide, query, stand_in), stand_in), note=note)
    fitting = _fitting(guide, query)
    if query.use is not None:
        use = guide.use(query.use)
    else:
        first = _likely_use(query)
        order = sorted(guide.uses, key=lambda use: use.name != first)
        # A query for another task than the likely use has goes to the first use with a model for that task.
        use = next((use for use in order if any(model.name in use.models for model in fitting)), order[0])
    models = sorted((model for model in fitting if model.name in use.models), key=_ranking(use, query.prefer))
    if not models:
        raise InvalidArgumentError(_nothing_fits(guide, query))
    others = () if query.use is not None else tuple(model for model in fitting if model not in models)
    return Answer(use, tuple(models), _why(guide, use, models, query), others)


# --- ranking ---------------------------------------------------------------------------------------------------------


def _check_query(guide: Guide, query: Query) -> None:
    codes = sorted({_language(code) for languages in guide.languages.values() for code in languages.codes})
    asked = [
        ("--task", query.task, list(dict.fromkeys(model.task for model in guide.models))),
        ("--for", query.use, [use.name for use in guide.uses]),
    ]
    asked += [("--language", code if _language(code) not in codes else None, codes) for code in query.languages]
    for option, value, allowed in asked:
        if value is not None and value not in allowed:
            raise InvalidArgumentError(f"{option} {value!r} is not known. Allowed: {', '.join(allowed)}.")
    if query.max_dim is not None and query.max_dim < 1:
        raise InvalidArgumentError(f"--max-dim must be a positive number of dimensions, got {query.max_dim}.")


def _fits(guide: Guide, model: GuideModel, query: Query) -> bool:
    return (
        (query.task is None or model.task == query.task)
        and (query.use is None or model.name in guide.use(query.use).models)
        and all(guide.languages[model.languages].include(code) for code in query.languages)
        and (query.max_dim is None or model.dimension is None or model.dimension <= query.max_dim)
    )


def _fitting(guide: Guide, query: Query) -> list[GuideModel]:
    return [model for model in guide.models if _fits(guide, model, query)]


def _stand_in(guide: Guide, query: Query) -> Query | None:
    """The query for another use, if only the languages keep the models of this one from fitting."""
    use = guide.use(query.use).other_languages if query.use is not None else None
    if use is None or _fitting(guide, query) or not _fitting(guide, dataclasses.replace(query, languages=())):
        return None
    stand_in = dataclasses.replace(query, use=use, prefer=query.prefer or "best")
    return stand_in if _fitting(guide, stand_in) else None


def _measured_for(guide: Guide, query: Query, stand_in: Query) -> Guide:
    """The guide in which stand-ins have the quality measure of the use that they stand in for, if it was published."""
    assert query.use is not None
    measure, models = guide.use(query.use).quality, _fitting(guide, stand_in)
    if not all(measure in model.figures for model in models) or not any(model.figures[measure] for model in models):
        return guide
    uses = (dataclasses.replace(use, quality=measure) if use.name == stand_in.use else use for use in guide.uses)
    return dataclasses.replace(guide, uses=tuple(uses))


def _likely_use(query: Query) -> str:
    """The chart's first question, answered from the rest of the query."""
    return "multilingual" if any(_language(code) != "en" for code in query.languages) else "general"


def _measure(use: Use, prefer: Literal["fast", "best"]) -> str:
    return use.quality if prefer == "best" else use.speed


def _ranking(use: Use, prefer: Literal["fast", "best"] | None) -> Callable[[GuideModel], tuple[float, int]]:
    def key(model: GuideModel) -> tuple[float, int]:
        figure = model.figures[_measure(use, prefer)] if prefer else None
        return -figure.value if figure else 0.0, use.models.index(model.name)

    return key


def _why(guide: Guide, use: Use, models: Sequence[GuideModel], query: Query) -> str:
    first = models[0]
    if len(models) == 1:
        narrowed = len(use.models) > 1
        return f"the only one of the guide that fits: {first.summary}" if narrowed else use.why
    if query.prefer:
        figure = first.figures[_measure(use, query.prefer)]
        if figure is not None:
            if query.prefer == "best":
                return f"the most accurate of the {len(models)} that fit ({number(figure.value)})"
            speed = f"{number(figure.value)} {guide.measures[use.speed].title}"
            return f"the fastest of the {len(models)} that fit ({speed})"
    return use.why if first.name == use.models[0] else f"the first in the guide's order that fits: {first.summary}"


def _nothing_fits(guide: Guide, query: Query) -> str:
    """The parts to leave out of a query that no model fits."""
    given = {
        "task": f"--task {query.task}",
        "use": f"--for {query.use}",
        "languages": " ".join(f"--language {code}" for code in query.languages),
        "max_dim": f"--max-dim {query.max_dim}",
    }
    asked = {name: text for name, text in given.items() if getattr(query, name) not in (None, ())}
    ways: list[str] = []
    for name, text in asked.items():
        left_out: dict[str, Any] = {name: () if name == "languages" else None}
        relaxed = dataclasses.replace(query, **left_out)
        names = [model.name for model in _fitting(guide, relaxed)]
        if names:
            ways.append(f"without {text} there is {', '.join(names)}")
    advice = f"Leave one out: {'; '.join(ways)}." if ways else "Ask for less at a time."
    return f"No model of the guide fits {' '.join(asked.values())}. {advice}"


def number(value: float) -> str:
    """A figure as it was published."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


# --- reading ---------------------------------------------------------------------------------------------------------


def _language(code: str) -> str:
    primary = code.lower().replace("_", "-").partition("-")[0]
    return _SAME_LANGUAGE.get(primary, primary)


def _is_written_on_purpose(value: Any) -> bool:
    """Whether a value is more than a blank: figures are positive, and texts and lists are not empty."""
    return value is False or (bool(value) and (not isinstance(value, int | float) or value > 0))


_DECODE = Decoder(
    GuideError,
    whole="guide",
    before="",
    lacking=lambda field: f"guide.json lacks the field {field!r}.",
    is_exact=True,
    accepts=_is_written_on_purpose,
)


def _check_references(guide: Guide) -> None:
    def check(name: str, known: Iterable[str], where: str) -> None:
        if name not in known:
            raise GuideError(f"{where} is {name!r}. Known are: {', '.join(known)}.")

    names = [model.name for model in guide.models]
    if len(set(names)) != len(names):
        raise GuideError("guide.models has a name twice.")
    for languages in guide.languages.values():
        check(languages.source, guide.sources, f"The source of the languages {languages.label!r}")
    for use in guide.uses:
        for name in use.models:
            check(name, names, f"A model of {use.name}")
            for measure in (use.quality, use.speed):
                check(measure, guide.model(name).figures, f"A measure of {use.name}, a key of {name}'s figures,")
        for measure, kind in ((use.quality, "quality"), (use.speed, "speed")):
            if guide.measures[measure].kind != kind:
                raise GuideError(f"{use.name} has {measure!r} as {kind}.")
        if use.other_languages is not None:
            check(use.other_languages, [other.name for other in guide.uses], f"What stands in for {use.name}")
    for model in guide.models:
        check(model.task, TASKS, f"The task of {model.name}")
        check(model.languages, guide.languages, f"The languages of {model.name}")
        if not guide.uses_of(model):
            raise GuideError(f"{model.name} does not belong to any use.")
        for measure, figure in model.figures.items():
            check(measure, guide.measures, f"A figure of {model.name}")
            if figure is not None:
                check(figure.source, guide.sources, f"The source of {measure} of {model.name}")
