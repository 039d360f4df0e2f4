"""How close is each model of the table to PyTorch? Writes docs/models.md.

    python -m tests.zoo.report [-o docs/models.md] [NAME ...]

Weights of most models cannot be had where this runs, so each is a checkpoint in the model's published structure with
seeded random weights, smaller where the size adds nothing (see tests/zoo). The figures are the fidelity reports of the
bundles, measured by the exporter against sentence-transformers.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib import metadata
from pathlib import Path

from stonnx._bundle.manifest import Manifest, read_manifest
from stonnx._errors import FidelityError
from stonnx_export import export

from . import ROWS, build_checkpoint
from .late_checkpoints import build_late_checkpoint
from .late_interaction import ROWS as LATE_ROWS
from .late_interaction import LateRow
from .table import IMAGE_MODELS, ImageModelRow

_HEAD = """# Models that are tested

Each row is a checkpoint in the published structure of the model (architecture, pooling, heads, tokenizer kind, limits)
with seeded random weights, smaller if the size adds nothing: see `tests/zoo/table.py`. It is exported at fp32 and
compared with sentence-transformers {ours} on PyTorch {torch}: texts in many scripts and of all lengths up to beyond
the limit, alone and in batches. Token ids are equal in every row; otherwise the export would have been refused. Weights
are float32. The report of a checkpoint of 16 bits compares with the same weights in float32, and says how far away the
original's own results in 16 bits are: 1e-3 to 1e-2. `difference` is the largest one, relative to the largest value if
that is over 1; `batching` is the largest change of a text's result by the texts beside it.
`tests/parity/test_models.py` tests each row, `tests/parity/test_multi_vector_encoder.py` those of late interaction,
whose figures are of the vectors of tokens; `python -m tests.zoo.report` writes this page.

| model | task | architecture | modules | lowest cosine | difference | batching |
|---|---|---|---|---|---|---|
"""


_INT8 = """
## int8

The same checkpoints with `--dtype int8`. `agreement` is the share of ten nearest neighbours that stay the same, for
sparse models that of active dimensions, for rerankers the rank correlation of the logits; `invariance` the lowest
cosine of a text's result alone and in a batch; `kept` the matrix products that stay in float32 for accuracy. Random
weights are harder for some of these figures than trained ones: their neighbours are closer together.

| model | cosine mean | lowest | agreement | invariance | kept | rewrites of the graph |
|---|---|---|---|---|---|---|
"""


_IMAGES = """
## Texts and images

Models of two towers, which both have the precision of the recipe. The pixels of 64 images are those of the original's
processor on pillow, to the last bit; otherwise the export would have been refused. The images are made up, because no
photographs come with the exporter: waves, slopes, clouds, noise and drawn shapes, of many sizes and modes. `neighbours`
is the share of ten nearest neighbours that stay the same, `kept` the products or weights that stay in float32.

| model | recipe | texts: cosine mean | lowest | neighbours | images: cosine mean | lowest | neighbours | kept |
|---|---|---|---|---|---|---|---|---|
"""


def image_line(name: str, manifest: Manifest) -> str:
    """A row of the table of models that read images."""
    assert manifest.image is not None
    figures = [
        f"{found.cosine_mean:.7f} | {found.cosine_min:.7f} | {found.neighbours_overlap:.3f}"
        for found in (manifest.fidelity, manifest.image.fidelity)
        if found is not None
    ]
    kept = len({*manifest.kept, *manifest.image.kept})
    return f"| {name} | {manifest.recipe} | {' | '.join(figures)} | {kept} |"


def image_lines_of(row: ImageModelRow, directory: Path) -> list[str]:
    """The rows of a model that reads images, one for each recipe of the CPU."""
    from tests.clip_checkpoints import write_clip

    checkpoint, lines = write_clip(directory / row.name, row=row), []
    for dtype in ("fp32", "bf16", "int8"):
        target = directory / f"{row.name}-{dtype}"
        try:
            bundle = export(checkpoint, target, dtype=dtype, name=row.name, show_progress=False)
            lines.append(image_line(row.name, read_manifest(bundle)))
        except FidelityError as error:
            lines.append(f"| {row.name} | {dtype} | {_refused(error)} |{' |' * 6}")
    return lines


def _refused(error: FidelityError) -> str:
    what = "images, " if "images" in str(error).partition(". ")[0] else ""
    return f"refused: {what}{str(error).rpartition('on the CPU: ')[2].partition('. ')[0]}"


def line(name: str, manifest: Manifest) -> str:
    """A row of the table."""
    fidelity = manifest.fidelity
    assert fidelity is not None
    modules = ", ".join(module.type for module in manifest.modules)
    routes = "" if len(manifest.routes) == 1 else f" (routes {', '.join(manifest.routes)})"
    figures = f"{fidelity.cosine_min:.7f} | {fidelity.max_abs_difference:.1e} | {fidelity.batch_invariance:.1e}"
    return f"| {name} | {manifest.task} | {manifest.architecture} | {modules}{routes} | {figures} |"


def int8_line(name: str, manifest: Manifest) -> str:
    """A row of the table for int8."""
    fidelity = manifest.fidelity
    assert fidelity is not None
    every = (fidelity.active_overlap, fidelity.rank_correlation, fidelity.neighbours_overlap)
    agreement = next((figure for figure in every if figure is not None), float("nan"))
    rewrites = ", ".join(f"{name} {count}" for name, count in manifest.rewrites.items() if count)
    figures = (
        f"{fidelity.cosine_mean:.5f} | {fidelity.cosine_min:.5f} | {agreement:.3f} | {fidelity.invariance_cosine:.7f}"
    )
    return f"| {name} | {figures} | {len(manifest.kept)} | {rewrites} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="models of the table (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"))
    arguments = parser.parse_args()
    lines, int8_lines, image_lines = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for row in IMAGE_MODELS:
            if arguments.names and row.name not in arguments.names:
                continue
            image_lines += image_lines_of(row, Path(directory))
            print(*image_lines[-3:], sep="\n", flush=True)
        for row in (*ROWS, *LATE_ROWS):
            if arguments.names and row.name not in arguments.names:
                continue
            if isinstance(row, LateRow):
                checkpoint = build_late_checkpoint(row, Path(directory))
            else:
                checkpoint = build_checkpoint(row, Path(directory))
            bundle = export(checkpoint, Path(directory) / f"{row.slug}-fp32", name=row.name, show_progress=False)
            lines.append(line(row.name, read_manifest(bundle)))
            try:
                bundle = export(
                    checkpoint, Path(directory) / f"{row.slug}-int8", dtype="int8", name=row.name, show_progress=False
                )
                int8_lines.append(int8_line(row.name, read_manifest(bundle)))
            except FidelityError as error:
                int8_lines.append(
                    f"| {row.name} | refused: {str(error).partition(': ')[2].partition('. ')[0]} | | | | | |"
                )
            print(lines[-1], int8_lines[-1], sep="\n", flush=True)
    head = _HEAD.format(ours=metadata.version("sentence-transformers"), torch=metadata.version("torch"))
    tables = [*lines, _INT8 + "\n".join(int8_lines), _IMAGES + "\n".join(image_lines)]
    arguments.output.write_text(head + "\n".join(tables) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
