"""Turns figures of load into a page: the required lines, tables, and a plot.

    python -m benchmarks.serving.report serving-load.json [OTHER.json ...]

writes the page and its plot beside the first file again, with the measurements of further runs.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.client import CUT
from benchmarks.serving.load import TOLERANCE

Results = dict[str, Any]
# The requirements: shares and factors of the lines below.
_OF_ENCODE, _RUNS, _FLAT, _PADDING, _GROWTH, _PEERS, _WAIT = 0.9, 3.0, 0.8, 1.3, 0.02, 2.0, 20.0


@dataclass(frozen=True)
class Line:
    """A required line, the finding, and whether that is enough."""

    asked: str
    found: str
    met: bool


def write(directory: Path, results: Results) -> list[Line]:
    """Write ``serving-load.md`` and ``serving-load.png``. Returns the lines that are not met."""
    lines = list(_lines(results))
    (directory / "serving-load.md").write_text(page(results, lines), encoding="utf-8")
    if _is_drawn(results):
        _plot(results, directory / "serving-load.png")
    return [line for line in lines if not line.met]


def page(results: Results, lines: Sequence[Line]) -> str:
    """The page, as Markdown."""
    machine, shapes, peers = results["machine"], results.get("shapes", {}), results.get("peers")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        "# `stonnx serve` under load",
        textwrap.fill(
            f"Made by `make bench-serve` on {results['date']}, on {machine['cpus']} CPUs of {machine['cpu']}, with "
            f"{versions}. Client and servers share these CPUs, and other work did too: {machine['load']:.0f} processes "
            "wanted them when the run began. Compare figures of this page with each other only. Requests at random "
            "times are timed from the moment when they were due, so that a late client does not flatter the server. "
            "Every answer is compared with the vector of its text alone.",
            120,
            break_on_hyphens=False,
        ),
        _table(("asked", "found", ""), [(line.asked, line.found, "yes" if line.met else "**no**") for line in lines]),
    ]
    if _is_drawn(results):
        parts.append("![Latency by load, throughput by clients, and peers](serving-load.png)")
    parts += [_SECTIONS[name](figures) for name, figures in shapes.items() if name in _SECTIONS]
    if peers:
        parts.append(_peers(peers))
    return "\n\n".join(parts) + "\n"


def _is_drawn(results: Results) -> bool:
    return {"rates", "clients"} <= results.get("shapes", {}).keys()


def _lines(results: Results) -> Iterator[Line]:
    shapes, peers = results.get("shapes", {}), results.get("peers")
    tallies = list(_tallies(shapes))
    if tallies:
        checked, wrong = (sum(tally[key] for tally in tallies) for key in ("checked", "wrong"))
        largest = max(tally["largest_difference"] for tally in tallies)
        found = f"{wrong} of {checked:,}, largest difference {largest:.1e}"
        yield Line(f"no answer differs from the vector of its text alone by more than {TOLERANCE:g}", found, not wrong)
        running = list(_tallies({name: figures for name, figures in shapes.items() if name != "stop"}))
        errors = sum(count for tally in running for status, count in tally["statuses"].items() if status[0] in "-05")
        yield Line("no 5xx and no connection that ends without an answer", f"{errors}", not errors)
    if "against_encode" in shapes:
        ratio, by_cpu = (shapes["against_encode"][key] for key in ("ratio", "cpu_ratio"))
        asked = f"2,048 texts in a request at least {_OF_ENCODE:g} times as fast as `encode` on the same texts"
        yield Line(asked, f"{ratio:.2f}, by CPU time {by_cpu:.2f}", ratio >= _OF_ENCODE)
    if "bulk" in shapes:
        runs = shapes["bulk"]["queries"]["p99"] / shapes["bulk"]["run_p99_ms"]
        yield Line(
            f"p99 of a query beside bulk work at most {_RUNS:g} runs",
            f"{shapes['bulk']['queries']['p99']:.0f} ms, {runs:.1f} runs of {shapes['bulk']['run_p99_ms']:.0f} ms",
            runs <= _RUNS,
        )
    if "clients" in shapes:
        rates = [row["per_second"] for row in shapes["clients"]["rows"] if row["clients"] > 1]
        asked = f"requests a second from 2 to 64 clients: lowest at least {_FLAT:g} of the highest"
        cpu = [row["cpu_ms"] for row in shapes["clients"]["rows"] if row["clients"] > 1]
        found = f"{min(rates):.0f} to {max(rates):.0f}; CPU time of a request {min(cpu):.1f} to {max(cpu):.1f} ms"
        yield Line(asked, found, min(rates) >= _FLAT * max(rates))
    if "mix" in shapes:
        padding = shapes["mix"]["padding"]
        yield Line(f"padding of log-normal lengths under {_PADDING:g}", f"{padding:.2f}", padding < _PADDING)
    if "overload" in shapes:
        figures = shapes["overload"]
        found = ", ".join(f"{count:,} with {status}" for status, count in figures["statuses"].items())
        right = set(figures["statuses"]) <= {"200", "429"} and not figures["without_retry_after"]
        yield Line("at three times the capacity only 200 and 429, these with Retry-After", found, right)
        wait = figures["p99"] / 1000
        asked = f"p99 of what is answered then at most {_WAIT:g} s, twice what the queue holds"
        yield Line(asked, f"{wait:.0f} s", wait <= _WAIT)
    if "cancels" in shapes:
        figures = shapes["cancels"]
        left = figures["queued_tokens"] + figures["tokens_after"]
        found = f"next answer after {figures['next_ms']:.0f} ms, {left:.0f} tokens wait or run a second later"
        yield Line("after 1,000 cancelled requests the next is answered, and nothing runs on", found, not left)
    if "soak" in shapes:
        figures = shapes["soak"]
        asked = f"resident memory of the last quarter of the soak at most {_GROWTH:.0%} above the third"
        found = f"{figures['growth']:+.1%} after {figures['minutes']:g} minutes"
        yield Line(asked, found, figures["growth"] <= _GROWTH)
    if "stop" in shapes:
        figures = shapes["stop"]
        cut = sum(each["statuses"].get(str(CUT), 0) for each in (figures, figures["jobs"]))
        ready, code = figures["ready_after_signal"], figures["exit_code"]
        found = f"{cut} cut, not ready with {ready}, exit code {code} after {figures['stop_seconds']:.1f} s"
        yield Line("SIGTERM under load: no request cut, exit code 0", found, (cut, ready, code) == (0, 503, 0))
    if peers:
        rows = peers["rows"]
        best = max((name for name in rows if name.startswith("stonnx")), key=lambda name: rows[name]["short"])
        for name in rows:
            if not name.startswith("stonnx"):
                ratios = [rows[best][shape] / rows[name][shape] for shape in ("short", "mix")]
                cpu = [rows[name][f"{shape}_cpu_ms"] / rows[best][f"{shape}_cpu_ms"] for shape in ("short", "mix")]
                asked = f"requests a second at least {_PEERS:g} times those of {name}"
                found = f"{best}: {ratios[0]:.1f} (one short text), {ratios[1]:.1f} (mix)"
                found += f"; by CPU time of the server {cpu[0]:.1f} and {cpu[1]:.1f}"
                yield Line(asked, found, min(ratios) >= _PEERS)
        for name in peers["failed"]:
            yield Line(f"{name} beside it", "does not start here", False)


def _tallies(figures: Any) -> Iterator[Mapping[str, Any]]:
    """All tallies inside figures, however deep."""
    if isinstance(figures, list):
        for entry in figures:
            yield from _tallies(entry)
    elif isinstance(figures, dict):
        if "statuses" in figures:
            yield figures
        for entry in figures.values():
            yield from _tallies(entry)


def _clients(figures: Results) -> str:
    rows = [
        (
            row["clients"],
            *_spread(row),
            f"{row['per_second']:.0f}",
            f"{row['cpu_ms']:.1f}",
            f"{row['resident_mb']:.0f}",
        )
        for row in figures["rows"]
    ]
    return "## One short text a request, by clients\n\n" + _table(
        ("clients", *_SPREAD, "requests a second", "CPU ms a request", "resident MB"), rows
    )


def _rates(figures: Results) -> str:
    rows = [(f"{row['share']:.0%}", *_spread(row), f"{row['per_second']:.0f}") for row in figures["rows"]]
    text = "## One short text a request, at random times\n\n"
    return text + _table(("share of the capacity", *_SPREAD, "requests a second"), rows)


def _beside(figures: Results) -> str:
    rows = [("queries alone", *_spread(figures["alone"])), ("queries beside bulk work", *_spread(figures["queries"]))]
    jobs = figures["jobs"]
    speed = jobs["per_second"] * 2048
    text = f"Meanwhile {jobs['answered']} requests of 2,048 texts were answered, {speed:.0f} texts a second."
    return "## Single queries beside requests of 2,048 texts\n\n" + _table(("", *_SPREAD), rows) + f"\n\n{text}"


def _long(figures: Results) -> str:
    kinds = {"alone": "short texts alone", "beside": "beside long ones", "long": "the long ones, 8,000 characters"}
    rows = [(title, *_spread(figures[name])) for name, title in kinds.items()]
    return "## Short texts beside long ones\n\n" + _table(("", *_SPREAD), rows)


def _overload(figures: Results) -> str:
    rows = [
        (
            *_spread(figures),
            f"{figures['per_second']:.0f}",
            f"{figures['before_mb']:.0f}",
            f"{figures['highest_mb']:.0f}",
        )
    ]
    head = (*_SPREAD, "answered a second", "resident MB before", "highest")
    return "## Three times the capacity\n\nOf the requests that were answered:\n\n" + _table(head, rows)


def _peers(figures: Results) -> str:
    rows = []
    for name, row in figures["rows"].items():
        spread = [f"{row[shape]:.0f} ({_range(row['rounds'], shape)})" for shape in ("short", "mix")]
        cpu = [f"{row[f'{shape}_cpu_ms']:.1f}" for shape in ("short", "mix")]
        memory = f"{row['rounds'][-1]['resident_mb']:.0f}"
        rows.append((name, *spread, *cpu, memory, f"{row['largest_difference']:.0e}"))
    head = ("server", "one short text", "mix", "CPU ms, short", "CPU ms, mix", "resident MB", "largest difference")
    text = (
        "Requests a second of 16 clients, medians and ranges of three rounds in turns, all servers on the same CPUs, "
        "and the CPU time of the server for a request. On CPUs that others want too, a server with many threads gets a "
        "larger share of them; CPU time does not depend on it. The last column compares with the vector of the text "
        "alone: for peers with that of the fp32 bundle."
    )
    text = textwrap.fill(text, 120, break_on_hyphens=False)
    return f"## Beside other servers\n\n{text}\n\n" + _table(head, rows)


def _range(rounds: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{min(row[key] for row in rounds):.0f} to {max(row[key] for row in rounds):.0f}"


_SPREAD = ("p50, ms", "p90, ms", "p99, ms")
_SECTIONS = {"clients": _clients, "rates": _rates, "bulk": _beside, "long": _long, "overload": _overload}


def _spread(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[key]:.1f}" for key in ("p50", "p90", "p99")]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _plot(results: Results, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes, peers = results["shapes"], results.get("peers")
    figure, axes = pyplot.subplots(1, 3 if peers else 2, figsize=(13 if peers else 9, 3.6), layout="constrained")
    rates = shapes["rates"]["rows"]
    shares = [100 * row["share"] for row in rates]
    for key, colour in (("p50", "#0a6c74"), ("p90", "#2d828e"), ("p99", "#b0560b")):
        axes[0].plot(shares, [row[key] for row in rates], marker="o", color=colour, label=key)
    axes[0].set(xlabel="% of the capacity", ylabel="ms", title="Latency of one short text", ylim=(0, None))
    axes[0].legend(frameon=False)
    rows = shapes["clients"]["rows"]
    axes[1].plot([row["clients"] for row in rows], [row["per_second"] for row in rows], marker="o", color="#0a6c74")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks([row["clients"] for row in rows], [str(row["clients"]) for row in rows])
    axes[1].set(xlabel="clients", ylabel="requests a second", title="Throughput by clients", ylim=(0, None))
    if peers:
        names = list(peers["rows"])
        colours = ["#0a6c74" if name.startswith("stonnx") else "#98a2a6" for name in names]
        axes[2].barh(names[::-1], [peers["rows"][name]["mix"] for name in names[::-1]], color=colours[::-1])
        axes[2].set(xlabel="requests a second", title="Texts of mixed lengths, 16 clients")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def merged(parts: Sequence[Results]) -> Results:
    """One report of several runs on the same machine. Earlier runs overrule later ones."""
    results: Results = {"shapes": {}}
    for part in parts:
        results = {**part, **results, "shapes": {**part.get("shapes", {}), **results["shapes"]}}
    return results


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    missed = write(files[0].parent, merged([json.loads(file.read_text(encoding="utf-8")) for file in files]))
    sys.exit(bool(missed))
