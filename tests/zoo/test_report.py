"""docs/models.md has the rows of the table, in its order, and the text that ``python -m tests.zoo.report`` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import late_interaction
from .rows import ROWS, row
from .table import IMAGE_MODELS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
FP32, INT8, IMAGES = (
    [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")][1:]
    for part in re.split(r"\n## (?:int8|Texts and images)\n", PAGE)
)


def test_every_row_of_the_table_has_its_figures() -> None:
    names = [row.name for row in (*ROWS, *late_interaction.ROWS)]
    assert [cells[0] for cells in FP32] == names
    assert [cells[0] for cells in INT8] == names
    recipes = ("fp32", "bf16", "int8")
    assert [(cells[0], cells[1]) for cells in IMAGES] == [
        (row.name, dtype) for row in IMAGE_MODELS for dtype in recipes
    ]


@pytest.mark.parametrize("cells", FP32, ids=lambda cells: cells[0])
def test_a_row_says_what_the_table_says(cells: list[str]) -> None:
    _, *modules = cells[3].partition(" (")[0].split(", ")
    late = next((late for late in late_interaction.ROWS if late.name == cells[0]), None)
    if late is None:
        model = row(cells[0])
        assert cells[1:3] == [model.task, model.backbone.model_type]
        answers = ["LogitScore"] if model.head and model.head.answers else []
        assert modules == [*(type(module).__name__ for module in model.chain), *answers]
    else:
        assert cells[1:3] == ["multivector", late.backbone.model_type]
        layers = ["Dense"] * len(late.dimensions)
        assert modules[: len(layers) + 2] == [*layers, "MultiVectorMask", "Normalize"]
        assert (modules[-1] == "HierarchicalTokenPooling") == bool(late.pooling)
    cosine, difference, batching = (float(cell) for cell in cells[4:])
    assert cosine > 0.99999
    assert max(difference, batching) < 1e-3


@pytest.mark.parametrize("cells", INT8, ids=lambda cells: cells[0])
def test_a_row_of_int8_has_figures_or_a_reason(cells: list[str]) -> None:
    if cells[1].startswith("refused: "):
        assert cells[2:] == [""] * 5
    else:
        assert len([float(cell) for cell in cells[1:5]]) == 4
        assert int(cells[5]) >= 0


@pytest.mark.parametrize("cells", IMAGES, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_row_of_images_has_its_figures_or_a_reason(cells: list[str]) -> None:
    if cells[2].startswith("refused: "):
        assert cells[1] != "fp32"
        assert cells[3:] == [""] * 6
        return
    _, lowest, neighbours, _, of_images, neighbours_of_images, kept = (float(cell) for cell in cells[2:])
    assert min(lowest, of_images) > {"fp32": 0.99999, "bf16": 0.9999, "int8": 0.98}[cells[1]]
    assert min(neighbours, neighbours_of_images) >= 0.9
    assert kept >= 0
