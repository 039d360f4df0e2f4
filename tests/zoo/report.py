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

from stonnx._bundle import Manifest, read_manifest
from stonnx_export import export

from . import ROWS, build_checkpoint

_HEAD = """# Models that are tested

Each row is a checkpoint in the published structure of the model (architecture, pooling, heads, tokenizer kind, limits)
with seeded random weights, smaller where the size adds nothing: see `tests/zoo/table.py`. It is exported at fp32 and
compared with sentence-transformers {ours} on PyTorch {torch}: texts in many scripts and of all lengths up to beyond the
limit, alone and in batches. Token ids are equal in every row; otherwise the export would have been refused.
`difference` is the largest one, relative to the largest value where that is over 1; `batching` is the largest change of
a text's result by the texts beside it. `tests/parity/test_models.py` tests each row; `python -m tests.zoo.report`
writes this page.

| model | task | architecture | modules | lowest cosine | difference | batching |
|---|---|---|---|---|---|---|
"""


def line(name: str, manifest: Manifest) -> str:
    """A row of the table."""
    fidelity = manifest.fidelity
    assert fidelity is not None
    modules = ", ".join(module.type for module in manifest.modules)
    routes = "" if len(manifest.routes) == 1 else f" (routes {', '.join(manifest.routes)})"
    figures = f"{fidelity.cosine_min:.7f} | {fidelity.max_abs_difference:.1e} | {fidelity.batch_invariance:.1e}"
    return f"| {name} | {manifest.task} | {manifest.architecture} | {modules}{routes} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="models of the table (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"))
    arguments = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        for row in ROWS:
            if arguments.names and row.name not in arguments.names:
                continue
            checkpoint = build_checkpoint(row, Path(directory))
            bundle = export(checkpoint, Path(directory) / f"{row.slug}-fp32", name=row.name, show_progress=False)
            lines.append(line(row.name, read_manifest(bundle)))
            print(lines[-1], flush=True)
    head = _HEAD.format(ours=metadata.version("sentence-transformers"), torch=metadata.version("torch"))
    arguments.output.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
