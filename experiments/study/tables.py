"""A study's results as Markdown tables and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.figures.drawing import COLOURS, pyplot_for_files
from experiments.figures.tables import markdown_table
from experiments.study.matrix import REESTIMATED
from experiments.study.results import CONFIDENCE, MODES, OURS

_DASH = "-"
_GAPS = (*MODES, "worse")


def report(results: Mapping[str, Any]) -> str:
    """The whole study as Markdown."""
    parts = [f"# Study `{results['preset']}`: {results['model']}, {results['dataset']}", ""]
    parts += [f"`{results['command']}`", ""]
    parts += [legend(results), ""]
    for pair in results["pairs"]:
        if not pair["methods"]:
            continue
        parts += [f"## low {pair['low']}, high {pair['high']}", "", pair_table(pair), ""]
        if any(pair["ours_less"].values()):
            parts += [f"Paired differences, `{OURS}` less the others:", "", lead_table(pair), ""]
    if results["ablations"]:
        # Results of an earlier version do not say: their ablations are of the first pair.
        pair = results.get("ablation_pair") or results["pairs"][0]
        parts += [f"## What each part of `{OURS}` brings", ""]
        parts += [_ABLATION_NOTE.format(**pair), "", ablation_table(results["ablations"]), ""]
    if results["missing"]:
        parts += ["Not finished: " + ", ".join(f"`{name}`" for name in results["missing"]), ""]
    return "\n".join(parts)


def legend(results: Mapping[str, Any]) -> str:
    """What the columns mean, and those rows that need a word."""
    methods = {method for pair in results["pairs"] for method in pair["methods"]}
    notes = [f"- `{method}`: {note}" for method, note in _ROWS.items() if method in methods]
    columns = _COLUMNS.format(confidence=round(100 * results["confidence"]))
    return "\n".join([columns, "", *notes]) if notes else columns


_COLUMNS = """\
Test accuracy in percent, mean ± sample standard deviation over seeds. A gap is the accuracy of a
mode less that of its twin of the same seed, in points, with the {confidence} % confidence interval
of its mean (Student's t, each by itself, over seeds alone: one split, one test set); "worse" is the
smaller of the two gaps of a seed. Cost is in passes: one mode run forward and backward over one
epoch. Updates are those of one network. First and last layer have 8-bit weights throughout."""

_ROWS = {
    "twins": "one network for each mode; together they cost what one dual network costs.",
    "half-batch twins": "twins on batches of half the size: twice the updates for the same cost.",
    "long twins": "each gets the whole cost of one dual network.",
    "truncate": "the high twin, cut to the width of low. Low has the statistics of high, which"
    " belong to other weights, and input steps fitted to one batch.",
    "truncate re-estimated": "the same twin, trained once more; after the cut the statistics of low"
    f" are estimated again, on {REESTIMATED} training batches. The fair baseline.",
}

_ABLATION_NOTE = """\
low {low}, high {high}, seed 0, validation accuracy alone. One seed:
compare changes with the standard deviations over seeds in the tables above."""


def pair_table(pair: Mapping[str, Any], split: str = "test") -> str:
    """One row per method."""
    rows = []
    for method, summary in pair["methods"].items():
        accuracy = {mode: _number(value) for mode, value in summary["accuracy"][split].items()}
        if "float" in accuracy:
            accuracy = {"high": f"{accuracy['float']} (float)"}
        row = {"method": method, **summary, "seeds": len(summary["seeds"]), **accuracy}
        rows.append(row | _gaps_of(summary["gap"].get(split, {}), " gap"))
    columns = [
        ("method", "method", "{}"),
        ("cost", "cost", "{:g}"),
        ("updates", "updates", "{:,}"),
        *((name, name, "{}") for name in ("seeds", *MODES)),
        *((f"{name} gap", f"{name} gap", "{}") for name in _GAPS),
    ]
    return markdown_table(rows, columns, left=("method",), missing=_DASH)


def lead_table(pair: Mapping[str, Any], split: str = "test") -> str:
    """By how much `two_phase joint` is ahead of each other method."""
    rows = [
        {"less": other, **_gaps_of(gaps[split])}
        for other, gaps in pair["ours_less"].items()
        if split in gaps
    ]
    columns = [(name, name, "{}") for name in ("less", *_GAPS)]
    return markdown_table(rows, columns, left=("less",), missing=_DASH)


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every row with its change from the row that it differs from in one thing."""
    lines = []
    for row in rows:
        start = row["against"] == row["title"]
        modes = {
            mode: f"{row['validation'][mode]:.2f}"
            + ("" if start else f" ({row['change'][mode]:+.2f})")
            for mode in MODES
        }
        against = None if start else row["against"]
        lines.append({"change": row["title"], "compared with": against, **modes})
    columns = [(name, name, "{}") for name in ("change", "compared with", *MODES)]
    return markdown_table(lines, columns, left=("change", "compared with"), missing=_DASH)


def _gaps_of(gaps: Mapping[str, Any], end: str = "") -> dict[str, str]:
    return {f"{name}{end}": _gap(gaps[name]) for name in _GAPS if name in gaps}


def _number(value: Mapping[str, Any]) -> str:
    sd = f" ± {value['sd']:.2f}" if value["sd"] is not None else ""
    return f"{value['mean']:.2f}{sd}"


def _gap(value: Mapping[str, Any]) -> str:
    interval = value["interval"]
    around = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    return f"{value['mean']:+.2f}{around}"


def plot_pair(pair: Mapping[str, Any], stem: Path, split: str = "test") -> list[Path]:
    """Accuracy of every method's modes, and their gaps to the twins; writes PNG and SVG."""
    plt = pyplot_for_files()
    methods = list(pair["methods"])
    height = 1.1 + 0.42 * len(methods)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, height), sharey=True, layout="constrained", width_ratios=(3, 2)
    )
    for place, method in enumerate(methods):
        summary = pair["methods"][method]
        _draw_row(left, place, summary["accuracy"][split], "values")
        _draw_row(right, place, summary["gap"].get(split, {}), "interval")
    left.set(yticks=range(len(methods)), yticklabels=methods, xlabel=f"{split} accuracy, %")
    left.set_ylim(len(methods) - 0.4, -0.6)
    right.axvline(0, color="k", lw=0.8)
    right.set(xlabel=f"gap to the twin, points ({100 * CONFIDENCE:.0f} % interval)")
    drawn = {mode for method in methods for mode in pair["methods"][method]["accuracy"][split]}
    labels = {"low": f"low ({pair['low']})", "high": f"high ({pair['high']})", "float": "float"}
    handles = [
        plt.Line2D([], [], marker="o", ls="", color=COLOURS[mode], label=label)
        for mode, label in labels.items()
        if mode in drawn
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    paths = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
    with plt.rc_context({"svg.hashsalt": "study"}):  # the same figure, the same file
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=144, metadata=metadata)
    plt.close(figure)
    return paths


def _draw_row(axes: Any, place: float, modes: Mapping[str, Any], whiskers: str) -> None:
    """The mean of each mode, with every seed's value, or the confidence interval, behind it."""
    for mode, offset in (("low", -0.12), ("high", 0.12), ("float", 0.0)):
        if mode not in modes:
            continue
        value, y = modes[mode], place + offset
        if whiskers == "interval" and value["interval"]:
            axes.plot(value["interval"], [y, y], "-", color=COLOURS[mode], lw=1.5, alpha=0.7)
        else:
            axes.plot(value["values"], [y] * len(value["values"]), "|", color=COLOURS[mode], ms=8)
        axes.plot(value["mean"], y, "o", color=COLOURS[mode], ms=5)
