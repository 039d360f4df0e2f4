"""Results to tables and plots.

    python -m benchmarks.peers.report DIRECTORY

reads results.json there and writes results.md, speed.png, accuracy.png and latency.png beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.systems import REFERENCE, SYSTEMS, WORKLOADS

# Below these bounds, a system does not give the model's vectors, however fast it is. Tables mark it; plots hatch it.
_CLOSE, _INVARIANT = 0.99, 0.9999
_COLOURS = {
    "stonnx": "#c1272d",
    "sentence-transformers": "#8c8c8c",
    "onnxruntime": "#3b6fb6",
    "OpenVINO": "#7a4fa3",
    "CTranslate2": "#2a8c82",
    "fastembed": "#d08a1d",
    "light-embed": "#8a6d3b",
    "ggmbed": "#5d7a2c",
    "candding": "#b5557f",
}
_PACKAGES = (
    "onnxruntime",
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum-onnx",
    "openvino",
    "nncf",
    "ctranslate2",
    "fastembed",
    "light-embed",
    "ggmbed",
    "candding",
    "tokenizers",
    "numpy",
)

Results = dict[str, Any]


def write(directory: Path) -> None:
    """Write the tables and the plots of the results in a directory."""
    results: Results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    (directory / "results.md").write_text(tables(results), encoding="utf-8")
    if "embedding" in {task for figures in results["accuracy"].values() for task in figures}:
        _plot_speed(results, directory / "speed.png")
        _plot_accuracy(results, directory / "accuracy.png")
        _plot_latency(results, directory / "latency.png")


def tables(results: Results) -> str:
    """All tables, as markdown."""
    parts = [_heading(results)]
    for task, title, columns in (
        ("embedding", "Embeddings", ("cosine", "spearman", "overlap", "invariance")),
        ("rerank", "Reranking", ("rank", "difference", "invariance of scores")),
        ("sparse", "SPLADE", ("cosine", "active words", "invariance")),
    ):
        workloads = [
            workload
            for workload in WORKLOADS
            if workload.task == task and not workload.alone and results["turns"].get(workload.name)
        ]
        if workloads:
            parts.append(f"## {title}\n\n" + _speed_table(results, task, [w.name for w in workloads], columns))
    parts += [_latency_table(results), _against_table(results), _footprint_table(results), _notes(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def ratios(results: Results, workload: str, system: str, reference: str = REFERENCE) -> list[float]:
    """How many times as fast as the reference a system is, for each round that both took part in."""
    turns = results["turns"].get(workload, {})
    pairs = zip(turns.get(system, ()), turns.get(reference, ()), strict=False)
    # A latency is [p50, p95, p99]: lower is better.
    return [b[0] / a[0] if isinstance(a, list) else a / b for a, b in pairs]


def _heading(results: Results) -> str:
    machine = results["machine"]
    seen: dict[str, dict[str, None]] = {}
    for versions in results["versions"].values():
        for package in _PACKAGES:
            if package in versions:
                seen.setdefault(package, {})[versions[package]] = None
    packages = ", ".join(f"{package} {' and '.join(versions)}" for package, versions in seen.items())
    # Older results do not have this figure.
    product = f"A product of bytes reaches {machine['int8_product']}. " if "int8_product" in machine else ""
    text = (
        f"{results['date']}, {machine['cpu']} with {', '.join(machine['features'])}, {machine['system']}, "
        f"Python {machine['python']}, {packages}. {_rounds(results)} rounds, {results['seconds'] / 60:.0f} minutes, "
        f"load before the start {machine['load_at_start']:.1f}. {product}Rates are medians; in brackets the "
        f"range over the rounds of the ratio to the first row. Accuracy on {results['accuracy_data']}. "
        f"**Bold**: a cosine below {_CLOSE} or one that depends on the batch, below {_INVARIANT}."
    )
    return f"# all-MiniLM-L6-v2 on {machine['cores']} cores\n\n{textwrap.fill(text, 120, break_on_hyphens=False)}"


def _rounds(results: Results) -> str:
    """The number of rounds that fit into the time."""
    counts = sorted({max(map(len, turns.values())) for turns in results["turns"].values() if turns})
    return " to ".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]]))) or "0"


def _speed_table(results: Results, task: str, workloads: Sequence[str], columns: Sequence[str]) -> str:
    titles = {workload.name: workload.title for workload in WORKLOADS}
    header = ["system", *(titles[name] for name in workloads), *(_FIGURES[column][0] for column in columns)]
    rows = []
    for name in _in_order(results["accuracy"]):
        figures = results["accuracy"][name].get(task)
        if figures is None:
            continue
        speeds = [_speed(results, workload, name) for workload in workloads]
        rows.append([name, *speeds, *(_FIGURES[column][1](figures) for column in columns)])
    return _table(header, rows)


def _speed(results: Results, workload: str, name: str) -> str:
    turns = results["turns"].get(workload, {}).get(name)
    if not turns:
        return "-"
    rate = statistics.median(turns)
    return f"{rate:,.{0 if rate >= 100 else 1}f}/s{_ratio(ratios(results, workload, name))}"


def _ratio(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f" {statistics.median(values):.2f}x ({min(values):.2f}-{max(values):.2f})"


def _optional(key: str, form: str, bad: Callable[[float], bool] = lambda _: False) -> Callable[[dict[str, Any]], str]:
    def text(figures: dict[str, Any]) -> str:
        value = figures[key]
        if value is None:
            return "-"
        return f"**{value:{form}}**" if bad(value) else f"{value:{form}}"

    return text


def _cosine(figures: dict[str, Any]) -> str:
    lowest = f"{figures['cosine_min']:.4f}"
    return f"{figures['cosine_mean']:.5f} / {f'**{lowest}**' if figures['cosine_min'] < _CLOSE else lowest}"


# Column headings and cells of the accuracy figures.
_FIGURES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "cosine": ("cosine to fp32, mean / lowest", _cosine),
    "spearman": ("Spearman drop, points", _optional("spearman_drop", "+.2f")),
    "overlap": ("same top 10", _optional("overlap", ".3f")),
    "active words": ("same active words", _optional("overlap", ".3f")),
    "invariance": ("alone / in a batch, lowest cosine", _optional("invariance", ".6f", lambda v: v < _INVARIANT)),
    "rank": ("rank correlation with fp32", lambda figures: f"{1 - figures['spearman_drop'] / 100:.5f}"),
    "difference": ("largest difference", _optional("difference", ".2g")),
    "invariance of scores": (
        "alone / in a batch, largest difference",
        lambda figures: f"{1 - figures['invariance']:.2g}",
    ),
}


def _latency_table(results: Results) -> str:
    turns = results["turns"].get("single", {})
    if not turns:
        return ""
    rows = []
    for name in _in_order(turns):
        p50, p95, p99 = (statistics.median(column) for column in zip(*turns[name], strict=True))
        speed = _ratio(ratios(results, "single", name))
        rows.append([name, f"{p50:.2f}", f"{p95:.2f}", f"{p99:.2f}", f"{p99 / p50:.1f}", speed.strip()])
    return "## One short text at a time, milliseconds\n\n" + _table(
        ["system", "p50", "p95", "p99", "p99 over p50", "p50 against PyTorch"], rows
    )


def _against_table(results: Results) -> str:
    """The speed of stonnx over that of each peer, within the rounds."""
    names = [workload.name for workload in WORKLOADS if results["turns"].get(workload.name)]
    rows = []
    for ours in ("stonnx fp32", "stonnx int8", "stonnx int8, kernels", "stonnx bf16, kernels"):
        if ours not in results["accuracy"]:
            continue
        for peer in _in_order(results["accuracy"]):
            cells = [ratios(results, workload, ours, peer) for workload in names]
            if not peer.startswith("stonnx"):
                rows.append([ours, peer, *(_ratio(cell).strip() or "-" for cell in cells)])
    return "## stonnx over each peer\n\n" + _table(["", "times as fast as", *names], rows) if rows else ""


def _footprint_table(results: Results) -> str:
    columns = {
        "import_seconds": ("import, s", ".2f"),
        "first_vector_seconds": ("process start to first vector, s", ".2f"),
        "peak_mb": ("peak memory, MB", ",.0f"),
        "model_mb": ("model, MB", ",.0f"),
        "environment_mb": ("installed packages, MB", ",.0f"),
    }
    rows = [
        [name, *(f"{results['footprint'][name][key]:{form}}" for key, (_, form) in columns.items())]
        for name in _in_order(results["footprint"])
    ]
    header = ["system", *(title for title, _ in columns.values())]
    if not rows:
        return ""
    starts = f"Seconds: medians of fresh processes, {results['starts']} of each system."
    return "\n\n".join(("## Start-up, memory, size", _table(header, rows), starts))


def _notes(results: Results) -> str:
    batching = [
        f"| {name} | "
        + "; ".join(f"{workload}: {_batching(chosen)}" for workload, chosen in results["batching"][name].items())
        + " |"
        for name in _in_order(results["batching"])
    ]
    lines = ["## Batching, as calibrated\n", "| system | |\n|---|---|", *batching]
    if results["missing"]:
        lines.append("\n## Not measured\n")
        lines += [
            f"- {name}, {task}: {reason}"
            for name in _in_order(results["missing"])
            for task, reason in results["missing"][name].items()
        ]
    busiest = max(results["idle_share"].items(), key=lambda item: item[1], default=("", 0.0))
    lines.append(f"\nWhile another system measured, none used more than {busiest[1]:.1%} of a core ({busiest[0]}).")
    return "\n".join(lines)


def _batching(chosen: dict[str, int]) -> str:
    return ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in chosen.items()) or "its own"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_order(names: Iterable[str]) -> list[str]:
    present = set(names)
    return [system.name for system in SYSTEMS if system.name in present]


def _colour(name: str) -> str:
    return next(colour for family, colour in _COLOURS.items() if name.startswith(family))


def _trusted(results: Results, name: str) -> bool:
    figures = results["accuracy"][name]["embedding"]
    return bool(figures["cosine_min"] >= _CLOSE and figures["invariance"] >= _INVARIANT)


def _plot_speed(results: Results, file: Path) -> None:
    from matplotlib.figure import Figure

    shown = [w for w in WORKLOADS if w.task == "embedding" and not w.alone and results["turns"].get(w.name)]
    names = [name for name in _in_order(results["accuracy"]) if "embedding" in results["accuracy"][name]]
    if not shown:
        return
    figure = Figure(figsize=(3.2 * len(shown) + 2.2, 0.32 * len(names) + 1.3), layout="constrained")
    for axes, workload in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for row, name in enumerate(names):
            values = ratios(results, workload.name, name)
            if not values:
                continue
            middle = statistics.median(values)
            axes.barh(
                row,
                middle,
                xerr=[[middle - min(values)], [max(values) - middle]],
                color=_colour(name) if _trusted(results, name) else "white",
                edgecolor=_colour(name),
                hatch="" if _trusted(results, name) else "////",
                error_kw={"elinewidth": 1},
            )
        axes.set_title(workload.title, fontsize=10)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    figure.supxlabel(
        "times as fast as sentence-transformers with PyTorch. Hatched: vectors that depend on the batch or have a "
        f"cosine to fp32 below {_CLOSE}",
        fontsize=9,
    )
    figure.savefig(file, dpi=130)


def _plot_accuracy(results: Results, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    workload = next((name for name in ("passages", *results["turns"]) if name in results["turns"]), "")
    for name in _in_order(results["accuracy"]):
        values = ratios(results, workload, name)
        figures = results["accuracy"][name].get("embedding")
        if not values or figures is None:
            continue
        # The scale is logarithmic. Rounding errors of fp32 all count the same.
        error = max(1 - figures["cosine_min"], 1e-7)
        filled = figures["invariance"] >= _INVARIANT
        colour = _colour(name)
        axes.plot(statistics.median(values), error, "o", color=colour, markerfacecolor=colour if filled else "white")
        axes.annotate(
            name,
            (statistics.median(values), error),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"{workload}: times as fast as sentence-transformers with PyTorch")
    axes.set_ylabel("1 - lowest cosine to fp32 (up is better)")
    axes.set_title("Speed and accuracy. Hollow: a text's vector depends on its batch", fontsize=10)
    axes.margins(x=0.2)
    figure.savefig(file, dpi=130)


def _plot_latency(results: Results, file: Path) -> None:
    from matplotlib.figure import Figure

    turns = results["turns"].get("single", {})
    names = _in_order(turns)
    if not names:
        return
    figure = Figure(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        p50, _, p99 = (statistics.median(column) for column in zip(*turns[name], strict=True))
        axes.barh(row, p50, xerr=[[0], [p99 - p50]], color=_colour(name), error_kw={"elinewidth": 1})
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("one short text, milliseconds: p50, and p99 as the whisker")
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
