"""From the results of a study's runs to means, spreads and paired differences."""

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from dual_precision.training.checkpoint import Checkpoints
from dual_precision.training.log import read_records
from experiments.study.courses import course_of
from experiments.study.matrix import Entry, Matrix, Run
from experiments.study.plans import Pair
from experiments.study.runner import finished
from experiments.workdir import CONFIG, read_rows

CONFIDENCE = 0.95
SPLITS = ("validation", "test")
MODES = ("low", "high")
TWINS, OURS = "twins", "two_phase joint"

Summary = dict[str, Any]


def spread(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and the confidence interval of the mean (Student's t).

    sd and interval are None where there is a single value: nothing is known about its spread.

    >>> [round(end, 6) for end in spread([1.0, 2.0, 3.0])["interval"]]
    [-0.484138, 4.484138]
    """
    mean, count = statistics.fmean(values), len(values)
    sd = statistics.stdev(values) if count > 1 else None
    interval = None
    if sd is not None:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * sd / math.sqrt(count)
        interval = [round(float(mean + sign * half), 10) for sign in (-1, 1)]
    return {"values": list(values), "mean": mean, "sd": sd, "interval": interval}


def read_run(folder: Path, run: Run) -> dict[str, dict] | None:
    """Mode -> row of the run's results; None while it is not finished."""
    if not finished(folder / run.name):
        return None
    rows = read_rows(folder / run.name)
    return {row["mode"]: row for row in rows}


def collect(
    matrix: Matrix,
    folder: Path,
    about: Mapping[str, Any],
    line: Callable[[Run], Sequence[str]],
) -> dict[str, Any]:
    """Everything that the study's table and plots show; runs that are not finished are left out.

    Args:
      folder: of the runs.
      about: goes into the results as it is.
      line: the command of a run.
    """
    runs = {run.name: run for run in matrix.runs}
    found = {name: read_run(folder, run) for name, run in runs.items()}
    done = [name for name in runs if found[name] is not None]
    links = {name: _links(folder, runs[name]) for name in done}
    by_pair: dict[Pair, list[Entry]] = {row.pair: [] for row in matrix.rows}
    for row in matrix.rows:
        if all(found[run.name] is not None for run, _ in row.sources.values()):
            by_pair[row.pair].append(row)
    ablated = matrix.ablation_pair
    return {
        **about,
        "confidence": CONFIDENCE,
        "pairs": [_pair(pair, own, found, links) for pair, own in by_pair.items()],
        "ablations": _ablations(matrix.ablations, found),
        "ablation_pair": dict(zip(MODES, ablated, strict=True)) if ablated else None,
        "runs": {name: {**links[name], "command": shlex.join(line(runs[name]))} for name in done},
        "missing": [name for name in runs if name not in links],
    }


def _links(folder: Path, run: Run) -> dict[str, Any]:
    """Where a run's config and last checkpoint are, relative to the study's folder; its course.

    Checkpoints may have been deleted to save space: None is one that is not there, and a number of
    updates that nothing says any more.
    """
    workdir = folder / run.name
    records, steps = read_records(workdir / "metrics.jsonl"), Checkpoints(workdir).steps()
    step = max([*steps[-1:], *(record["step"] for record in records[-1:])], default=None)
    last = workdir / "checkpoints" / str(step) if step in steps else None
    updates = None if step is None else step // run.config.accumulate
    links = {"config": workdir / CONFIG, "checkpoint": last, "log": folder / f"{run.name}.log"}
    relative = {
        what: str(path.relative_to(folder.parent)) if path else None for what, path in links.items()
    }
    course = course_of(run.config, records)
    return {"cost": run.config.recipe.cost, "updates": updates, **relative, "course": course}


def _pair(pair: Pair, rows: Sequence[Entry], found: Mapping, links: Mapping) -> dict[str, Any]:
    methods: dict[str, dict[int, Entry]] = {}
    for row in rows:
        methods.setdefault(row.method, {})[row.seed] = row
    accuracy = {method: _accuracy(own, found) for method, own in methods.items()}
    summaries = {}
    for method, own in methods.items():
        first = next(iter(own.values()))
        updates = [links[run.name]["updates"] for run, _ in first.sources.values()]
        summaries[method] = {
            "cost": first.cost,
            "updates": max((n for n in updates if n is not None), default=None),
            "seeds": list(own),
            "runs": {s: {m: c.name for m, (c, _) in r.sources.items()} for s, r in own.items()},
            "accuracy": {
                split: {mode: spread(list(by_seed.values())) for mode, by_seed in modes.items()}
                for split, modes in accuracy[method].items()
            },
            "gap": _gaps(methods, accuracy, method, TWINS),
        }
    ours = {other: _gaps(methods, accuracy, OURS, other) for other in methods if other != OURS}
    return {"low": pair[0], "high": pair[1], "methods": summaries, "ours_less": ours}


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


def _gaps(methods: Mapping, accuracy: Mapping, method: str, other: str) -> Summary:
    """split -> mode -> `method` less `other`, paired by seed; "worse" is a seed's smaller one.

    Modes that both read from the same network are left out: there is nothing to compare.
    """
    if method == other or not {method, other} <= methods.keys():
        return {}
    own, theirs = methods[method], methods[other]
    seeds = [seed for seed in own if seed in theirs]
    modes = [mode for mode in MODES if seeds and _distinct(own[seeds[0]], theirs[seeds[0]], mode)]
    gaps: Summary = {}
    for split in SPLITS if modes else ():
        left, right = accuracy[method][split], accuracy[other][split]
        each = {mode: [left[mode][s] - right[mode][s] for s in seeds] for mode in modes}
        each["worse"] = [min(values) for values in zip(*each.values(), strict=True)]
        gaps[split] = {name: spread(values) for name, values in each.items()}
    return gaps


def _distinct(own: Entry, other: Entry, mode: str) -> bool:
    return (
        mode in own.sources and mode in other.sources and own.sources[mode] != other.sources[mode]
    )


def _ablations(
    ablations: Mapping[str, tuple[Run, str]], found: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Validation accuracy only: nothing here may be chosen by the test set."""
    accuracy = {
        title: {mode: row["validation"] for mode, row in found[run.name].items()}
        for title, (run, _) in ablations.items()
        if found[run.name] is not None
    }
    return [
        {
            "title": title,
            "against": ablations[title][1],
            "run": ablations[title][0].name,
            "cost": ablations[title][0].config.recipe.cost,
            "validation": own,
            "change": {m: own[m] - start[m] for m in own},
        }
        for title, own in accuracy.items()
        if (start := accuracy.get(ablations[title][1]))
    ]
