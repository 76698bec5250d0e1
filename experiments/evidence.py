"""From the results of a study's cells to means, spreads and paired differences."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from dual_precision.training.checkpoint import Checkpoints
from experiments.cifar import RESULTS
from experiments.matrix import Cell, Entry, Pair, passes_of
from experiments.runner import finished
from experiments.workdir import CONFIG

CONFIDENCE = 0.95
SPLITS = ("validation", "test")
# A gap is a mode's accuracy less its twin's, of the same seed; in points.
REFERENCES = {"twins": "gap", "long twins": "long_gap"}

Summary = dict[str, Any]


def spread(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and the confidence interval of the mean (Student's t).

    sd and interval are None where there is a single value: nothing is known about its spread.

    >>> spread([1.0, 2.0, 3.0])["interval"]
    [-0.4841377117, 4.4841377117]
    """
    mean, count = statistics.fmean(values), len(values)
    sd = statistics.stdev(values) if count > 1 else None
    interval = None
    if sd is not None:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * sd / math.sqrt(count)
        interval = [round(float(mean + sign * half), 10) for sign in (-1, 1)]
    return {"values": list(values), "mean": mean, "sd": sd, "interval": interval}


def read_cell(folder: Path, cell: Cell) -> dict[str, dict] | None:
    """Mode -> row of the cell's results; None while it is not finished."""
    if not finished(folder / cell.name):
        return None
    rows = json.loads((folder / cell.name / RESULTS).read_text())["rows"]
    return {row["mode"]: row for row in rows}


def collect(
    rows: Sequence[Entry], ablations: Mapping[str, Cell], folder: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that the study's table and plots show; cells that are not finished are left out.

    Args:
      about: goes into the results as it is.
    """
    cells = {cell.name: cell for row in rows for cell, _ in row.sources.values()}
    cells |= {cell.name: cell for cell in ablations.values()}
    found = {name: read_cell(folder, cell) for name, cell in cells.items()}
    pairs = list(dict.fromkeys(row.pair for row in rows))
    return {
        **about,
        "confidence": CONFIDENCE,
        "pairs": [_pair(pair, [r for r in rows if r.pair == pair], found) for pair in pairs],
        "ablations": _ablations(ablations, found),
        "cells": {
            name: _links(folder, cell) for name, cell in cells.items() if found[name] is not None
        },
        "missing": [name for name in cells if found[name] is None],
    }


def _links(folder: Path, cell: Cell) -> dict[str, Any]:
    """Where a cell's config and last checkpoint are, relative to the study's folder."""
    workdir = folder / cell.name
    last = workdir / "checkpoints" / str(Checkpoints(workdir).steps()[-1])
    links = {"config": workdir / CONFIG, "checkpoint": last, "log": folder / f"{cell.name}.log"}
    relative = {what: str(path.relative_to(folder.parent)) for what, path in links.items()}
    return {"cost": passes_of(cell.config), **relative}


def _pair(pair: Pair, rows: Sequence[Entry], found: Mapping[str, Any]) -> dict[str, Any]:
    methods: dict[str, dict[int, Entry]] = {}
    for row in rows:
        if all(found[cell.name] is not None for cell, _ in row.sources.values()):
            methods.setdefault(row.method, {})[row.seed] = row
    accuracy = {method: _accuracy(own, found) for method, own in methods.items()}
    summaries = {}
    for method, own in methods.items():
        summary: Summary = {
            "cost": next(iter(own.values())).cost,
            "seeds": list(own),
            "cells": {s: {m: c.name for m, (c, _) in r.sources.items()} for s, r in own.items()},
            "accuracy": {
                split: {mode: spread(list(by_seed.values())) for mode, by_seed in modes.items()}
                for split, modes in accuracy[method].items()
            },
        }
        for reference, name in REFERENCES.items():
            if reference in accuracy and method != "float":  # which is no mode's twin
                summary[name] = {
                    split: _gaps(accuracy[method][split], accuracy[reference][split])
                    for split in SPLITS
                }
        summaries[method] = summary
    return {"low": pair[0], "high": pair[1], "methods": summaries}


def _accuracy(rows: Mapping[int, Entry], found: Mapping[str, Any]) -> dict[str, dict]:
    """split -> mode -> seed -> percent."""
    return {
        split: {
            mode: {
                seed: found[row.sources[mode][0].name][row.sources[mode][1]][split]
                for seed, row in rows.items()
            }
            for mode in next(iter(rows.values())).sources
        }
        for split in SPLITS
    }


def _gaps(own: Mapping[str, Mapping], twins: Mapping[str, Mapping]) -> Summary:
    """Paired by seed: each mode less its twin, and the worse of the two of each seed."""
    modes = [mode for mode in own if mode in twins]
    seeds = [seed for seed in own[modes[0]] if seed in twins[modes[0]]] if modes else []
    if not seeds:
        return {}
    gaps = {mode: [own[mode][seed] - twins[mode][seed] for seed in seeds] for mode in modes}
    gaps["worse"] = [min(each) for each in zip(*gaps.values(), strict=True)]
    return {name: spread(values) for name, values in gaps.items()}


def _ablations(cells: Mapping[str, Cell], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Validation accuracy only: nothing here may be chosen by the test set."""
    done = {title: cell for title, cell in cells.items() if found[cell.name] is not None}
    reference = next(iter(cells), None)
    if reference not in done:
        return []
    start = {mode: row["validation"] for mode, row in found[done[reference].name].items()}
    table = []
    for title, cell in done.items():
        own = {mode: row["validation"] for mode, row in found[cell.name].items()}
        change = {mode: own[mode] - start[mode] for mode in own}
        table.append(
            {
                "title": title,
                "cell": cell.name,
                "cost": passes_of(cell.config),
                "validation": own,
                "change": change,
                "worse": min(change.values()),
            }
        )
    return table
