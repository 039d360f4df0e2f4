"""The guide as people and programs read it: a table in which every figure has its source, and JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence

from stonnx._guide.guide import Answer, Guide, GuideModel, Use, number

WIDTH = 120

_HEADER = ["model", "task", "dim", "tokens", "score", "norm", "langs", "quality", "speed"]


def table(guide: Guide, answer: Answer | None = None) -> str:
    """All models by use, or those of an answer, in at most 120 columns and with the source of every figure."""
    lines: list[str] = []
    if answer is None:
        groups = [(use, [m for m in guide.models if guide.uses_of(m)[0] == use]) for use in guide.uses]
    else:
        name = answer.models[0].name
        lines += _wrapped(answer.note)
        lines += _wrapped(f"Recommended for {answer.use.name}: {name}, {answer.why}.")
        lines += [f"Export it with: {_command(name)}", ""]
        groups = [(answer.use, list(answer.models))]
        groups += [(use, [m for m in answer.others if guide.uses_of(m)[0] == use]) for use in guide.uses]
    groups = [(use, models) for use, models in groups if models]
    notes = _Notes(guide)
    rows = [_HEADER]
    for use, models in groups:
        for rank, model in enumerate(models, 1):
            ranked = f"{rank}. " if answer is not None and use == answer.use else ""
            rows.append([ranked + model.name, *_cells(guide, model, use, notes)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    printed = iter(_row(row, widths) for row in rows)
    lines.append(next(printed))
    for use, models in groups:
        measures = f"quality: {guide.measures[use.quality].title}; speed: {guide.measures[use.speed].title}"
        lines += ["", f"{use.name}: {use.summary}", measures, *(next(printed) for _ in models)]
    lines += ["", "tokens: texts are cut there; norm: vectors have length 1; -: not published, or not applicable"]
    lines += notes.lines()
    lines.append("These pages compare older models. Newer checkpoints are exported alike: stonnx export MODEL")
    if answer is None:
        lines.append("One for your purpose: stonnx models --for USE [--language CODE] [--fast | --best]")
    return "\n".join(lines)


def as_json(guide: Guide, answer: Answer | None = None) -> str:
    """All models, or those of an answer with the recommendation, as JSON with the source of every figure."""
    models = guide.models if answer is None else (*answer.models, *answer.others)
    recommendation = None
    if answer is not None:
        name = answer.models[0].name
        recommendation = {"name": name, "use": answer.use.name, "why": answer.why}
        recommendation |= {"note": answer.note, "command": _command(name)}
    rows = []
    for model in models:
        languages = guide.languages[model.languages]
        rows.append(
            dataclasses.asdict(model)
            | {"uses": [use.name for use in guide.uses_of(model)], "languages": dataclasses.asdict(languages)}
        )
    found = {
        "recommendation": recommendation,
        "models": rows,
        "measures": {key: dataclasses.asdict(measure) for key, measure in guide.measures.items()},
        "sources": {key: dataclasses.asdict(source) for key, source in guide.sources.items()},
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def _command(name: str) -> str:
    return f"stonnx export {name}"


class _Notes:
    """The sources of figures, and their measure if it is not the measure of their column."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide
        self._sources: list[str] = []
        self._measures: list[str] = []

    def cell(self, model: GuideModel, measure: str) -> str:
        """The figure of a model with its marks; if it does not exist, one of the same kind by another measure."""
        kind = self._guide.measures[measure].kind
        others = (key for key in model.figures if self._guide.measures[key].kind == kind)
        for key in (measure, *others):
            figure = model.figures[key]
            if figure is not None:
                mark = "" if key == measure else chr(ord("a") + _position(key, self._measures))
                return f"{number(figure.value)}{mark} [{_position(figure.source, self._sources) + 1}]"
        return "-"

    def lines(self) -> list[str]:
        titles = [self._guide.measures[key].title for key in self._measures]
        sources = [self._guide.sources[key] for key in self._sources]
        return [
            *(f"{chr(ord('a') + index)}: not comparable, {title}" for index, title in enumerate(titles)),
            *(f"[{index}] {source.title}: {source.url}" for index, source in enumerate(sources, 1)),
        ]


def _position(key: str, keys: list[str]) -> int:
    if key not in keys:
        keys.append(key)
    return keys.index(key)


def _cells(guide: Guide, model: GuideModel, use: Use, notes: _Notes) -> list[str]:
    return [
        model.task,
        "-" if model.dimension is None else str(model.dimension),
        str(model.max_seq_length),
        model.similarity or "-",
        "-" if model.normalized is None else "yes" if model.normalized else "no",
        guide.languages[model.languages].label,
        notes.cell(model, use.quality),
        notes.cell(model, use.speed),
    ]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *rest = (
        cell.ljust(width) if column in (0, 1, 4, 5) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([name, *rest]).rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
